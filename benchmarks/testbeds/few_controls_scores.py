"""Areas under the ROC curve and rates of the benchmark of few controls, with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata

DRAWS = 400

Sides = tuple[Sequence[float], Sequence[float]]
"""Scores of positives and of negatives; larger is closer."""


def rate(calls: Sequence[bool]) -> dict[str, Any]:
    """A share with Wilson's interval; pairs that share a network are counted one by one."""
    hits, n = int(sum(calls)), len(calls)
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return {"hits": hits, "n": n, "rate": hits / n, "interval": [float(found.low), float(found.high)]}


def area(positives: Sequence[float], negatives: Sequence[float]) -> dict[str, Any]:
    """Area under the curve, with an interval that draws both sides anew."""
    draw = np.random.default_rng(1)
    p, n = np.asarray(positives, float), np.asarray(negatives, float)
    again = [_area(draw.choice(p, len(p)), draw.choice(n, len(n))) for _ in range(DRAWS)]
    return {"area": _area(p, n), "interval": [float(q) for q in np.quantile(again, (0.025, 0.975))],
            "positives": len(p), "negatives": len(n)}  # fmt: skip


def interval_of_gap(first: Sides, second: Sides) -> dict[str, Any]:
    """The difference of two areas of the same pairs, which are drawn anew together."""
    draw = np.random.default_rng(2)
    (p, n), (q, m) = ([np.asarray(s, float) for s in sides] for sides in (first, second))
    gaps = []
    for _ in range(DRAWS):
        i, j = draw.integers(0, len(p), len(p)), draw.integers(0, len(n), len(n))
        gaps.append(_area(p[i], n[j]) - _area(q[i], m[j]))
    return {"gap": _area(p, n) - _area(q, m), "interval": [float(x) for x in np.quantile(gaps, (0.025, 0.975))]}


def _area(p: np.ndarray, n: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([p, n]))
    return float((ranks[: len(p)].sum() - len(p) * (len(p) + 1) / 2) / (len(p) * len(n)))
