"""Canonical correlation of the principal directions (SVCCA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.cca import canonical_correlations, principal_directions
from stemma.measures.samples import sample_matrices


@final
@dataclass(frozen=True)
class Svcca(AbstractMeasure):
    """One minus the mean canonical correlation of the strongest principal directions of two sets of features.

    With few directions, canonical correlation can be used with more features than samples. The mean correlation of
    independent features still grows with `most`: compare values for the same number of probes only.

    Attributes:
        variance: Share of the variance that the kept directions hold.
        most: Most directions kept on a side, as a share of the samples.

    Source: Raghu et al. 2017, arXiv:1706.05806, which keeps .99 of the variance. Departure: the limit by the number of
    samples, without which wide layers correlate perfectly by chance.
    """

    variance: float = 0.99
    most: float = 0.2

    name = "svcca"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL, Law.SCALING,
                      Law.TRANSLATION})  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1 or not 0 < self.most < 0.5:
            raise MisuseError("variance must be in (0, 1] and most in (0, 0.5)")

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        x, y = (principal_directions(v) for v in sample_matrices(a, b, self.name, int(np.ceil(1 / self.most))))
        limit = max(1, int(self.most * len(x.basis)))
        x, y = (d.leading(min(limit, d.count_for_variance(self.variance))) for d in (x, y))
        return np.array([1 - canonical_correlations(x, y)[0].mean()])
