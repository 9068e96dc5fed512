"""Confidence intervals of distances over probes."""

from collections.abc import Callable

import numpy as np

from stemma.errors import MisuseError

LEVEL = 0.95
GROUPS = 20
"""Number of groups of probes in the jackknife."""


def mean_interval(per_probe: np.ndarray, *, counted: bool = False) -> tuple[float, tuple[float, float] | None]:
    """Mean of values `[k]` and its 95 % interval: t, or Wilson (1927) for proportions; None for one probe."""
    from scipy.stats import binomtest, t

    mean, k = float(per_probe.mean()), len(per_probe)
    if k < 2:
        return mean, None
    if counted and np.isin(per_probe, (0, 1)).all():
        found = binomtest(int(per_probe.sum()), k).proportion_ci(LEVEL, method="wilson")
        return mean, (float(found.low), float(found.high))
    half = float(t.ppf((1 + LEVEL) / 2, k - 1) * per_probe.std(ddof=1) / np.sqrt(k))
    return mean, (max(0.0, mean - half), mean + half)


def jackknife(statistic: Callable[[np.ndarray], float], count: int, value: float) -> tuple[float, float] | None:
    """95 % interval of a statistic by the grouped jackknife (Tukey 1958), cut at 0; None below four probes."""
    from scipy.stats import t

    groups = min(GROUPS, count)
    if groups < 4:
        return None
    index = np.arange(count)
    try:
        left_out = np.array([statistic(index[index % groups != g]) for g in range(groups)])
    except MisuseError:
        return None
    spread = float(np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum()))
    half = float(t.ppf((1 + LEVEL) / 2, groups - 1)) * spread
    return max(0.0, value - half), value + half


def at_boundary(interval: tuple[float, float], value: float, units: int) -> tuple[float, float]:
    """An interval of a share from a resampling of units, made exact where all units agree.

    Units that are all right (or all wrong) are so in every resampling, whose interval is then a point. There the exact
    interval of Clopper and Pearson (1934) over the units takes its place: from .025 ** (1 / units) to 1, or its mirror.

    Args:
        interval: Both ends, from the resampling.
        value: The share in all units.
        units: Independent units: families, victims or sources, not the pairs or probes within them.

    Returns:
        Both ends.
    """
    low, high = (float(end) for end in interval)
    exact = ((1 - LEVEL) / 2) ** (1 / max(units, 1))
    if value >= 1:
        return min(low, exact), 1.0
    return (0.0, max(high, 1 - exact)) if value <= 0 else (low, high)
