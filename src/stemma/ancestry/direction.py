"""Which of two related models came first, or neither: a calibrated classifier of pairs, which may abstain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.geometry import ANTISYMMETRIC, SYMMETRIC, Geometry, PairFeatures

FEATURE_NAMES = (*ANTISYMMETRIC, *(f"size of {name}" for name in ANTISYMMETRIC), *SYMMETRIC)
"""Features of a pair that the trees use."""

FORWARD, BACKWARD, NEITHER = 0, 1, 2
"""Outputs: the first is an ancestor of the second, the second of the first, neither of the other."""


def feature_row(features: PairFeatures) -> np.ndarray:
    """Input of the trees for one pair, `float64 [len(FEATURE_NAMES)]`."""
    a = features.antisymmetric
    return np.concatenate([a, np.abs(a), features.symmetric])


@dataclass(frozen=True, eq=False)
class DirectionModel:
    """Classifies pairs of related models; the answer for (b, a) is exactly that for (a, b) swapped.

    Attributes:
        trees: Three outputs, trained on families with known history (`stemma.training.direction`).
    """

    trees: BoostedTrees

    def probabilities(self, geometry: Geometry, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Probabilities that the first of a pair is an ancestor of the second, the second of the first, or neither.

        Cost: the features of the pairs, about ten milliseconds each, once per geometry.

        Returns:
            `float64 [pairs, 3]`; neither has probability 1 where the two share no tensor that changed.
        """
        out = np.tile([0.0, 0.0, 1.0], (len(pairs), 1))
        features = [geometry.pair_features(i, j) for i, j in pairs]
        comparable = [k for k, m in enumerate(features) if m is not None]
        if comparable:
            known = [m for m in features if m is not None]
            out[comparable] = self.from_features(known)
        return out

    def from_features(self, pairs: Sequence[PairFeatures]) -> np.ndarray:
        """The same from features of pairs, `float64 [pairs, 3]`."""
        rows = np.stack([feature_row(p) for p in pairs] + [feature_row(p.swapped()) for p in pairs])
        p = _softmax(self.trees.scores(rows))
        forward, swapped = p[: len(pairs)], p[len(pairs) :]
        return (forward + swapped[:, [BACKWARD, FORWARD, NEITHER]]) / 2


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
