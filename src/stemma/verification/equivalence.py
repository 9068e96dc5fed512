"""Excess distance of models to a group, with confidence limits over models."""

from dataclasses import dataclass

import numpy as np

from stemma.verification.permutation_test import excess


@dataclass(frozen=True, slots=True)
class Excess:
    """Excess distance to a group, as a fraction of the mean distance inside it: 0 is like a member.

    Attributes:
        share: The estimate.
        low: One-sided lower limit.
        high: One-sided upper limit.
        inside: Mean distance between two members of the group, in the measure's own unit.
    """

    share: float
    low: float
    high: float
    inside: float


def excess_over_group(distances: np.ndarray, suspects: int, alpha: float) -> Excess:
    """The excess of the first models over the others, with limits that generalise to other models of the group."""
    # One suspect is taken as it is; several represent the method that made them, so they are resampled too. Each
    # limit fails with probability `alpha`. Jackknife of a two-sample U-statistic (Arvesen 1969, Ann. Math. Statist.
    # 40).
    from scipy.stats import t

    value, inside = _share(distances, suspects)
    count = len(distances)
    variance, freedom = 0.0, np.inf
    groups = [range(suspects, count), *([range(suspects)] if suspects > 1 else [])]
    for group in groups:
        estimates = []
        for i in group:
            kept = [j for j in range(count) if j != i]
            estimates.append(_share(distances[np.ix_(kept, kept)], suspects - (i < suspects))[0])
        size = len(estimates)
        variance += (size - 1) / size * float(np.square(np.array(estimates) - np.mean(estimates)).sum())
        freedom = min(freedom, size - 1)
    half = float(t.ppf(1 - alpha, freedom)) * variance**0.5
    return Excess(value, value - half, value + half, inside)


def _share(distances: np.ndarray, suspects: int) -> tuple[float, float]:
    chosen = np.arange(len(distances)) < suspects
    others = distances[np.ix_(~chosen, ~chosen)]
    inside = float(others.sum() / (len(others) * (len(others) - 1)))
    over = float(excess(distances, chosen[None])[0])
    return (over / inside if inside > 0 else 0.0), inside
