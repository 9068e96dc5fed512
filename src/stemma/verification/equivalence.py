"""How far suspects lie outside a group, with an interval over models."""

from dataclasses import dataclass

import numpy as np

from stemma.verification.permutation_test import excess


@dataclass(frozen=True, slots=True)
class Excess:
    """Excess distance to a group, as a share of the mean distance inside it: 0 is like a member.

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
    """The excess of the first models over the others, with limits that would hold for other models of the group.

    One suspect is taken as it is; several stand for the method that made them, so they are resampled too.

    Args:
        distances: `[n, n]`, the suspects first, at least three others.
        suspects: How many.
        alpha: Each limit fails with this probability.

    Returns:
        Estimate and limits.

    Source: jackknife of a two-sample U-statistic (Arvesen 1969, Ann. Math. Statist. 40).
    """
    from scipy.stats import t

    value, inside = _share(distances, suspects)
    count = len(distances)
    variance, freedom = 0.0, np.inf
    groups = [range(suspects, count), *([range(suspects)] if suspects > 1 else [])]
    for group in groups:
        left_out = []
        for i in group:
            kept = [j for j in range(count) if j != i]
            left_out.append(_share(distances[np.ix_(kept, kept)], suspects - (i < suspects))[0])
        size = len(left_out)
        variance += (size - 1) / size * float(np.square(np.array(left_out) - np.mean(left_out)).sum())
        freedom = min(freedom, size - 1)
    half = float(t.ppf(1 - alpha, freedom)) * variance**0.5
    return Excess(value, value - half, value + half, inside)


def _share(distances: np.ndarray, suspects: int) -> tuple[float, float]:
    chosen = np.arange(len(distances)) < suspects
    others = distances[np.ix_(~chosen, ~chosen)]
    inside = float(others.sum() / (len(others) * (len(others) - 1)))
    over = float(excess(distances, chosen[None])[0])
    return (over / inside if inside > 0 else 0.0), inside
