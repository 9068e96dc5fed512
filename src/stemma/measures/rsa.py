"""Representational similarity analysis (RSA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.samples import CONSTANT_TOLERANCE, sample_matrices


@final
@dataclass(frozen=True)
class Rsa(AbstractMeasure):
    """One minus the rank correlation of two dissimilarity matrices over pairs of samples.

    The dissimilarity of two samples in one model is one minus the Pearson correlation of their features; only their
    order is compared. Memory: n * n / 2 numbers a model.

    Source: Kriegeskorte et al. 2008, Front. Syst. Neurosci. 2; for networks Dwivedi and Roig 2019, arXiv:1904.11740.
    """

    name = "rsa"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.SCALING, Law.SHIFT})
    top = 2.0

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        from scipy.stats import spearmanr

        first, second = (self._dissimilarities(v) for v in sample_matrices(a, b, self.name))
        return np.array([np.clip(1 - spearmanr(first, second).statistic, 0, 2)])

    def _dissimilarities(self, x: np.ndarray) -> np.ndarray:
        from scipy.spatial.distance import pdist

        flat = np.ptp(x, axis=1) <= CONSTANT_TOLERANCE * np.abs(x).max()
        if flat.any():
            raise MisuseError(
                f"{self.name} correlates features, but at sample {int(flat.argmax())} all features of one model are "
                "equal. Remove that probe, or use another layer or linear-cka"
            )
        # Rounded, so that equal distances stay tied whatever the order of the features.
        found = np.round(pdist(x, "correlation"), 10)
        if np.ptp(found) == 0:
            raise MisuseError(f"{self.name} is undefined: all samples of one model have equal distances")
        return found
