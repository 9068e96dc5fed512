"""Measures: two fingerprints to a distance.

`ALL` lists every measure; the first that accepts what a fingerprinter produces is the default.
"""

from stemma.measures.base import AbstractMeasure
from stemma.measures.decision_distance import DecisionDistance
from stemma.measures.distance_correlation import DistanceCorrelation
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.label_disagreement import LabelDisagreement
from stemma.measures.linear_cka import LinearCka
from stemma.measures.mean_cca import MeanCca
from stemma.measures.procrustes import Procrustes
from stemma.measures.pwcca import Pwcca
from stemma.measures.rsa import Rsa
from stemma.measures.sample_correlation import SampleCorrelation
from stemma.measures.softmax_difference import SoftmaxDifference
from stemma.measures.svcca import Svcca

ALL: tuple[type[AbstractMeasure], ...] = (
    FieldCosine,
    JensenShannon,
    SoftmaxDifference,
    LabelDisagreement,
    LinearCka,
    MeanCca,
    Svcca,
    Pwcca,
    Procrustes,
    Rsa,
    DistanceCorrelation,
    DecisionDistance,
    SampleCorrelation,
)
