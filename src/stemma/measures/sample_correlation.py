"""Sample correlation (SAC): cosines between outputs for pairs of probes, compared between models."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.sample_cosines import sample_cosines


@final
@dataclass(frozen=True)
class SampleCorrelation(AbstractMeasure):
    """The mean absolute difference between two models' cosines of the outputs of pairs of probes.

    Models with different classes, heads and architectures can be compared, and only outputs are needed. It is a
    pseudometric. Memory: n * n / 2 numbers a model.

    Source: Guan et al. 2022, SAC, arXiv:2210.15427. Departure: the mean is over pairs of different probes (the
    published one counts the n equal ones too, a factor of (n - 1) / n), and the choice of probes (misclassified or
    mixed ones in the publication) is left to the caller.
    """

    name = "sample-correlation"
    accepts = frozenset({"outputs", "features"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL,
                      Law.SCALING})  # fmt: skip
    top = 2.0

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        u, v = sample_cosines(a, b, self.name)
        return np.array([np.abs(u - v).mean()])
