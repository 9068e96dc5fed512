"""Fingerprinters: a model and probes to a fingerprint."""

from stemma.fingerprints.activations import Activations
from stemma.fingerprints.dna import DNA
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.jacobian import JacobianSketch
from stemma.fingerprints.outputs import Outputs
from stemma.fingerprints.parameter_gradients import ParameterGradients
from stemma.fingerprints.weight_sketch import WeightSketch

ALL = (WeightSketch, GradientField, Outputs, Activations, ParameterGradients, JacobianSketch, DNA)
