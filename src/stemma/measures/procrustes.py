"""Procrustes distance: the angle between features after the best rotation."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.samples import center, reduce_columns, sample_matrices


@final
@dataclass(frozen=True)
class Procrustes(AbstractMeasure):
    """The angle between two sets of features after the best rotation, as a share of a right angle.

    Features are centred, scaled to length one as a whole, and the narrower side is padded with zeros. The angle is a
    metric, so it can be used for trees and nearest neighbours of models.
    Cost: a singular value decomposition of a square matrix of min(n, widest) columns.

    Source: Williams et al. 2021, arXiv:2110.14739, eq. 4 (the angular shape metric); Schonemann 1966, Psychometrika 31.
    """

    name = "procrustes"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL,
                      Law.SCALING, Law.TRANSLATION})  # fmt: skip

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        from scipy.linalg import orthogonal_procrustes

        x, y = (reduce_columns(center(v)) for v in sample_matrices(a, b, self.name))
        width = max(x.shape[1], y.shape[1])
        x, y = (np.pad(v / np.linalg.norm(v), ((0, 0), (0, width - v.shape[1]))) for v in (x, y))
        rotation, _ = orthogonal_procrustes(x, y)
        chord = np.linalg.norm(x @ rotation - y)  # more precise near 0 than the arc cosine of the nuclear norm
        return np.array([np.clip(4 / np.pi * np.arcsin(min(1.0, chord / 2)), 0, 1)])
