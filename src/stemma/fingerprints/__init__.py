"""What does it look like? Model, Probes → Fingerprint."""

from stemma.fingerprints.weight_sketch import WeightSketch

ALL = (WeightSketch,)
