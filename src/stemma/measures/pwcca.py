"""Projection-weighted canonical correlation (PWCCA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.cca import canonical_correlations, principal_directions
from stemma.measures.samples import center, sample_matrices


@final
@dataclass(frozen=True)
class Pwcca(AbstractMeasure):
    """One minus the projection-weighted mean canonical correlation, averaged over both directions.

    Each canonical variable counts by the absolute products of all features with it, so that directions which hardly
    occur hardly count. The weights follow the coordinates: units may be permuted, not rotated.

    Source: Morcos et al. 2018, arXiv:1806.05759. Departure: the published one takes the weights of the first model
    only; this one is the mean of both orders, so that it is symmetric.
    """

    name = "pwcca"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.SCALING, Law.TRANSLATION})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        given = sample_matrices(a, b, self.name)
        x, y = (principal_directions(v) for v in given)
        count = x.basis.shape[1] + y.basis.shape[1]
        if count >= len(x.basis):
            raise MisuseError(
                f"{self.name} needs more samples than directions, but there are {len(x.basis)} samples and {count} "
                "directions, so some correlate perfectly by chance. Use more probes, svcca or linear-cka"
            )
        found, *variables = canonical_correlations(x, y)
        weights = [np.abs(v.T @ center(features)).sum(1) for v, features in zip(variables, given, strict=True)]
        return np.array([1 - np.mean([np.average(found, weights=w) for w in weights])])
