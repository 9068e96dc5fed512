"""Canonical correlations of two sets of features, and their principal directions."""

from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.samples import center

MIN_SINGULAR_RATIO = 1e-7
"""Singular values below this share of the largest are rounding of float32 features."""


@dataclass(frozen=True, eq=False)
class PrincipalDirections:
    """The centred samples in an orthonormal basis, largest variance first.

    Attributes:
        basis: `[n, rank]`, orthonormal columns.
        variance: Share of the variance along each.
    """

    basis: np.ndarray
    variance: np.ndarray

    def leading(self, count: int) -> "PrincipalDirections":
        """The `count` directions of largest variance."""
        return PrincipalDirections(self.basis[:, :count], self.variance[:count])

    def count_for_variance(self, share: float) -> int:
        """The smallest number of directions that hold this share of the variance."""
        return int(np.searchsorted(np.cumsum(self.variance), share * (1 - 1e-12)) + 1)


def principal_directions(x: np.ndarray) -> PrincipalDirections:
    """Principal directions of samples `[n, p]`, without those that are only rounding."""
    u, s, _ = np.linalg.svd(center(x), full_matrices=False)
    kept = s > MIN_SINGULAR_RATIO * s[0]
    return PrincipalDirections(u[:, kept], np.square(s[kept]) / np.square(s[kept]).sum())


def canonical_correlations(x: PrincipalDirections, y: PrincipalDirections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canonical correlations `[c]`, largest first, and the unit-length canonical variables of both sides `[n, c]`."""
    u, s, v = np.linalg.svd(x.basis.T @ y.basis, full_matrices=False)
    return np.clip(s, 0, 1), x.basis @ u, y.basis @ v.T


def check_sample_count(x: PrincipalDirections, y: PrincipalDirections, measure: str) -> None:
    """Raise if there are so many directions that some correlate perfectly by chance."""
    samples, directions = len(x.basis), x.basis.shape[1] + y.basis.shape[1]
    if directions >= samples:
        raise MisuseError(
            f"{measure} needs more samples than directions, but there are {samples} samples and {directions} "
            "directions, so some correlate perfectly by chance. Use more probes, svcca or linear-cka"
        )
