"""Decision-distance vectors (ModelDiff): distances between outputs for pairs of probes."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.sample_cosines import sample_cosines


@final
@dataclass(frozen=True)
class DecisionDistance(AbstractMeasure):
    """The cosine distance between two decision-distance vectors.

    A model's vector holds, for every pair of probes, the cosine distance between its two outputs. Models with different
    classes, heads and architectures can be compared, and only outputs are needed. Memory: n * n / 2 numbers a model.

    Source: Li et al. 2021, ModelDiff, arXiv:2106.08890. Departure: all pairs of the probes given, instead of pairs of
    an input and a mutation optimised to spread the outputs.
    """

    name = "decision-distance"
    accepts = frozenset({"outputs", "features"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL, Law.SCALING})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        u, v = (1 - c for c in sample_cosines(a, b, self.name))
        lengths = [np.linalg.norm(w) for w in (u, v)]
        if min(lengths) < 1e-9:
            raise MisuseError(f"{self.name} is undefined: all outputs of one model have the same direction")
        between = np.linalg.norm(u / lengths[0] - v / lengths[1])
        return np.array([np.clip(between**2 / 2, 0, 1)])
