"""What independent models have in common, by DNA: the population that codes are compared against."""

from dataclasses import dataclass, replace

import numpy as np

SHRINK = 0.1
"""Added to the spread of a population, in units of its median: with few models a probe's spread may be too small."""

MAX_DIRECTIONS = 6
"""Most main directions of a population that are removed: they reflect the task rather than provenance."""

MODELS_PER_DIRECTION = 8
"""Models of the population needed per such direction."""


@dataclass(frozen=True, eq=False)
class Population:
    """What independent models have in common at each probe.

    Attributes:
        mean: `[probes, channels]`.
        spread: Standard deviation with shrinkage, `[probes, channels]`.
        directions: `[channels, directions, probes]`, orthonormal, in which these models differ most.
    """

    mean: np.ndarray
    spread: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> "Population":
        """The population of some codes; the more tasks it covers, the better it removes the effect of the task.

        Args:
            codes: `[models, probes, channels]`.

        Returns:
            Mean, spread and main directions; for a single model zeros and ones.
        """
        plain = cls.plain(codes)
        count = min(MAX_DIRECTIONS, len(codes) // MODELS_PER_DIRECTION)
        if not count:
            return plain
        seen = np.moveaxis(plain(codes), -1, 0)
        seen = seen - seen.mean(1, keepdims=True)
        return replace(plain, directions=np.linalg.svd(seen, full_matrices=False)[2][:, :count])

    @classmethod
    def plain(cls, codes: np.ndarray) -> "Population":
        """Mean and spread of some codes `[models, probes, channels]`, without directions."""
        none = np.zeros((codes.shape[2], 0, codes.shape[1]))
        if len(codes) < 2:
            return cls(np.zeros(codes.shape[1:]), np.ones(codes.shape[1:]), none)
        spread = codes.std(0)
        return cls(codes.mean(0), spread + SHRINK * max(float(np.median(spread)), 1e-6), none)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[…, probes, channels]` as deviations from the population, centred, of norm 1 per channel."""
        found = (codes - self.mean) / self.spread
        found = unit(found - found.mean(-2, keepdims=True), -2)
        if not self.directions.shape[1]:
            return found
        along = np.einsum("...pc,ckp->...ck", found, self.directions)
        return unit(found - np.einsum("...ck,ckp->...pc", along, self.directions), -2)


def channel_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation over probes of codes `[n, probes, channels]` and `[m, …]`, per channel `[n, m, channels]`."""
    return np.einsum("apc,bpc->abc", a, b)


def unit(vectors: np.ndarray, axis: int = 1) -> np.ndarray:
    """Vectors divided by their norm along an axis."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-9)
