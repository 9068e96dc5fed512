"""Projection-weighted canonical correlation (PWCCA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.cca import canonical_correlations, check_sample_count, principal_directions
from stemma.measures.samples import center, sample_matrices


@final
@dataclass(frozen=True)
class Pwcca(AbstractMeasure):
    """One minus the projection-weighted mean canonical correlation, averaged over both directions.

    Each canonical variable is weighted by its absolute products with all features, so that rare directions have little
    weight. The weights depend on the coordinates: invariant to permutations of units, not to rotations.

    Source: Morcos et al. 2018, arXiv:1806.05759. Departure: the mean of both orders, so that it is symmetric; the
    published one uses the weights of the first model only.
    """

    name = "pwcca"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.SCALING, Law.TRANSLATION})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        given = sample_matrices(a, b, self.name)
        x, y = (principal_directions(v) for v in given)
        check_sample_count(x, y, self.name)
        found, *variables = canonical_correlations(x, y)
        weights = [np.abs(v.T @ center(features)).sum(1) for v, features in zip(variables, given, strict=True)]
        return np.array([1 - np.mean([np.average(found, weights=w) for w in weights])])
