"""Which of two relatives came first, or neither: a calibrated model of what weights show, which abstains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.geometry import ANTISYMMETRIC, SYMMETRIC, Geometry, PairFeatures

COLUMNS = (*ANTISYMMETRIC, *(f"size of {name}" for name in ANTISYMMETRIC), *SYMMETRIC)
"""What the trees look at."""

FORWARD, BACKWARD, NEITHER = 0, 1, 2
"""Outputs: the first is an ancestor of the second, the second of the first, neither of the other."""


def columns(features: PairFeatures) -> np.ndarray:
    """One row for the trees.

    Returns:
        `float64 [len(COLUMNS)]`.
    """
    a = features.antisymmetric
    return np.concatenate([a, np.abs(a), features.symmetric])


@dataclass(frozen=True, eq=False)
class Direction:
    """Asks boosted trees about pairs of relatives; the answer for (b, a) is exactly that for (a, b) turned round.

    Attributes:
        trees: Three outputs, trained on families with known history (`stemma.training.direction`).
    """

    trees: BoostedTrees

    def probabilities(self, geometry: Geometry, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """What each ordered pair of relatives is.

        Cost: the features of the pairs, about ten milliseconds each, once per geometry.

        Args:
            geometry: Of the relatives.
            pairs: Positions of the two models in it.

        Returns:
            `float64 [pairs, 3]`: first is ancestor, second is ancestor, neither; neither for certain where the two
            share nothing that changed.
        """
        out = np.tile([0.0, 0.0, 1.0], (len(pairs), 1))
        measured = [geometry.pair(i, j) for i, j in pairs]
        told = [k for k, m in enumerate(measured) if m is not None]
        if told:
            given = [m for m in measured if m is not None]
            out[told] = self.of_features(given)
        return out

    def of_features(self, pairs: Sequence[PairFeatures]) -> np.ndarray:
        """The same for features at hand.

        Returns:
            `float64 [pairs, 3]`.
        """
        rows = np.stack([columns(p) for p in pairs] + [columns(p.turned()) for p in pairs])
        p = _softmax(self.trees.scores(rows))
        straight, turned = p[: len(pairs)], p[len(pairs) :]
        return (straight + turned[:, [BACKWARD, FORWARD, NEITHER]]) / 2


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
