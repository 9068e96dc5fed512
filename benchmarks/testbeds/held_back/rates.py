"""Shares with intervals over sources, the unit that generalises."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

DRAWS = 1000
Z = 1.959964


def rate(hits: Sequence[bool], sources: Sequence[int]) -> dict[str, Any]:
    """A share with a 95 % Wilson interval whose n is worth the sources.

    Answers about one source are alike. So n is divided by how much more the shares of sources vary than those of
    independent answers would, and is at most the number of answers; where all answers agree, n is the number of
    sources.
    """
    x, of = np.asarray(hits, float), np.asarray(sources)
    if not len(x):
        return {"n": 0}
    groups = [x[of == s] for s in np.unique(of)]
    share, n = float(x.mean()), len(x)
    worth = float(len(groups))
    if 0 < share < 1 and len(groups) > 1:
        off = np.array([(g - share).sum() for g in groups])
        variance = len(groups) / (len(groups) - 1) * float(np.square(off).sum()) / n**2
        worth = min(n, share * (1 - share) / max(variance, 1e-12))
    middle = (share + Z**2 / (2 * worth)) / (1 + Z**2 / worth)
    half = Z * np.sqrt(share * (1 - share) / worth + Z**2 / (4 * worth**2)) / (1 + Z**2 / worth)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"share": round(share, 4), "interval": [round(float(low), 4), round(float(high), 4)], "n": n,
            "sources": len(groups)}  # fmt: skip


def area(own: np.ndarray, other: np.ndarray) -> float:
    """Area under the curve."""
    ranks = rankdata(np.concatenate([own, other]))
    return float((ranks[: len(own)].sum() - len(own) * (len(own) + 1) / 2) / (len(own) * len(other)))


def over_sources(
    columns: Sequence[np.ndarray], sources: np.ndarray, figure: Callable[..., float], seed: int = 0
) -> dict[str, Any]:
    """A figure with a 95 % interval by drawing sources again.

    Args:
        columns: What `figure` takes, one entry per row.
        sources: Of each row.
        figure: From columns to a number.
        seed: Of the draws.

    Returns:
        `value`, `interval` and how many `sources`.
    """
    names = np.unique(sources)
    rows = [np.flatnonzero(sources == s) for s in names]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        at = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        drawn.append(figure(*(c[at] for c in columns)))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    value = figure(*columns)
    return {"value": round(value, 4), "interval": [round(float(low), 4), round(float(high), 4)], "sources": len(names)}
