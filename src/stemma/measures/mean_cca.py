"""Mean canonical correlation (CCA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.cca import canonical_correlations, check_sample_count, principal_directions
from stemma.measures.samples import sample_matrices


@final
@dataclass(frozen=True)
class MeanCca(AbstractMeasure):
    """One minus the mean canonical correlation of two sets of features.

    Invariant to invertible linear maps of either side: all directions have equal weight, whatever their variance. It
    needs more samples than directions on both sides together (otherwise some correlate perfectly by chance), and
    independent features have correlations of about the root of directions per sample. `Svcca` uses the strong
    directions only.

    Source: Hotelling 1936, Biometrika 28; the mean as in Kornblith et al. 2019, arXiv:1905.00414, table 1.
    """

    name = "mean-cca"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL, Law.LINEAR,
                      Law.SCALING, Law.TRANSLATION})  # fmt: skip

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        x, y = (principal_directions(v) for v in sample_matrices(a, b, self.name))
        check_sample_count(x, y, self.name)
        return np.array([1 - canonical_correlations(x, y)[0].mean()])
