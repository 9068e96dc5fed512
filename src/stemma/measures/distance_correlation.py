"""Distance correlation."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.samples import refuse_repeats, sample_matrices

TINY = 1e-14
"""Distance variances (of distances with mean square one) below this are rounding errors."""


@final
@dataclass(frozen=True)
class DistanceCorrelation(AbstractMeasure):
    """One minus the squared distance correlation of two sets of features.

    It detects dependence of any form, not only linear: with many probes it is 1 for independent features only. The
    plain estimate (in [0, 1]) is far below 1 for wide independent features and few samples; the corrected one is 1 on
    average and may exceed it (never 2). Memory: n * n numbers a model.

    Attributes:
        corrected: The bias-corrected estimate; needs four samples.

    Source: Szekely, Rizzo and Bakirov 2007, Ann. Statist. 35; the correction by Szekely and Rizzo 2013, J. Multivar.
    Anal. 117; for networks Zhen et al. 2022, arXiv:2207.09980.
    """

    corrected: bool = True

    name = "distance-correlation"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL, Law.SCALING,
                      Law.TRANSLATION})  # fmt: skip
    top = 2.0

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        x, y = sample_matrices(a, b, self.name, 4 if self.corrected else 2)
        if self.corrected:
            refuse_repeats(a, b, self.name)
        u, v = self._centered_distances(x), self._centered_distances(y)
        variance_x, variance_y = np.vdot(u, u), np.vdot(v, v)
        if min(variance_x, variance_y) <= TINY * u.size:
            raise MisuseError(f"{self.name} is undefined: all samples of one model have equal distances")
        return np.array([1 - np.clip(np.vdot(u, v) / np.sqrt(variance_x * variance_y), -1, 1)])

    def _centered_distances(self, x: np.ndarray) -> np.ndarray:
        """Distances between samples with the means of rows and columns taken off."""
        from scipy.spatial.distance import pdist, squareform

        d = squareform(pdist(x))
        d /= np.sqrt(np.square(d).mean())
        n = len(d)
        if not self.corrected:
            means = d.mean(0)
            return d - means - means[:, None] + means.mean()
        sums = d.sum(0)
        d = d - (sums + sums[:, None]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(d, 0)
        return d
