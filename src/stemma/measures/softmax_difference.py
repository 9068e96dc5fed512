"""Total variation of predicted probabilities."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.scores import mean_over_positions, probabilities


@final
@dataclass(frozen=True)
class SoftmaxDifference(AbstractMeasure):
    """Mean over probes of half the sum of absolute differences between the softmax of two outputs.

    This is the total variation: the largest difference in probability of any set of classes, 0 for equal and 1 for
    disjoint predictions. The mean absolute difference per class is 2 / classes of it. For one score per token, the mean
    over the positions.
    """

    name = "softmax-difference"
    accepts = frozenset({"outputs"})
    probewise = True
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED, Law.SHIFT})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[k]`."""
        p, q = probabilities(a, b, self.name)
        return mean_over_positions(np.clip(np.abs(p - q).sum(-1) / 2, 0, 1))
