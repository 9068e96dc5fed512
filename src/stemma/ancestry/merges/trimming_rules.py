"""Merging rules that choose among entries: TIES trims and elects, DARE drops at random and rescales.

Both leave some entries to one parent alone, where the child's task vector is that parent's times one number. That ratio
shows the parents before anything is fitted.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from stemma.ancestry.merges.merging_rules import Fit, weights
from stemma.ancestry.merges.task_vectors import TaskVectors

ENTRIES = 8_000
"""Entries that densities, drop rates and masks are searched on; all of them are tested."""

RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Drop rates from which the fit of DARE starts."""


def ties(vectors: TaskVectors, parents: Sequence[int]) -> Fit | None:
    """Trim each task vector to its largest entries, elect a sign per entry, average what agrees, scale.

    Where the child kept the base's value every parent was trimmed, which gives the density; without such entries it is
    searched, from coarse to fine. Trimming is tried per tensor and over the whole model.

    Args:
        vectors: The task vectors; the base must be known.
        parents: Positions of the candidates.

    Returns:
        The fit, with `density`, `scale` and where the trimming was done; None without a base.

    Source: Yadav et al., NeurIPS 2023 (arXiv:2306.01708); weighted means as mergekit computes them.
    """
    if not vectors.has_base or not parents:
        return None
    x, k = vectors.of(parents), len(vectors.child)
    some = np.unique(np.linspace(0, k - 1, min(k, ENTRIES)).astype(int))
    zero = (np.abs(vectors.child) <= vectors.tolerance) & (np.abs(x).max(0) > vectors.tolerance)
    best = None
    for scope in ("tensor", "model"):
        ranks = np.stack([_ranks(np.abs(row), vectors.tensor if scope == "tensor" else None) for row in x])
        if zero.sum() >= 64:
            highest = np.where(x[:, zero] != 0, ranks[:, zero], 0.0).max(0)  # ranks among equal zeros say nothing
            edges = [float(np.quantile(highest, q, method="higher")) for q in (1.0, 0.999, 0.99)]
            edges = [e + 1e-9 for e in edges]
        else:
            edges = [_search_threshold(vectors, x[:, some], ranks[:, some], some)]
        for edge in edges:
            w, predicted = _trimmed(vectors, x, ranks >= edge, np.arange(k))
            near = np.abs(vectors.child - predicted) <= vectors.tolerance
            error = float(np.square((vectors.child - predicted) / vectors.scale).sum())
            quality = (round(float((near & ~zero).mean()), 3), -error)
            if best is None or quality > best[0]:
                best = quality, w, predicted, {"density": float((ranks >= edge).mean()), "trimmed_per": scope}
    assert best is not None
    _, w, predicted, details = best
    return Fit("ties", tuple(parents), tuple(w.tolist()), predicted, {**details, "scale": float(w.sum())})


def _search_threshold(vectors: TaskVectors, x: np.ndarray, ranks: np.ndarray, rows: np.ndarray) -> float:
    """The rank from which entries survive, by least squares over a grid that is refined around its best."""
    best, lowest, step, edges = 0.0, np.inf, 0.05, np.arange(0.0, 0.951, 0.05)
    while step > 1e-3:
        for edge in edges:
            _, predicted = _trimmed(vectors, x, ranks >= edge, rows)
            error = float(np.square((vectors.child[rows] - predicted) / vectors.scale[rows]).sum())
            if error < lowest:
                lowest, best = error, float(edge)
        step /= 5
        edges = np.clip(best + step * np.arange(-5, 6), 0, 1)
    return best


def _ranks(size: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Rank of each entry within its group, in [0, 1)."""
    groups = np.zeros(len(size), int) if groups is None else groups
    order = np.lexsort((size, groups))
    counts = np.bincount(groups)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranks = np.empty(len(size))
    ranks[order] = (np.arange(len(size)) - first[groups[order]]) / counts[groups[order]]
    return ranks


def _trimmed(
    vectors: TaskVectors, x: np.ndarray, survives: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, which sum to the scale, and prediction for given trimming."""
    y, unit = vectors.child[rows], vectors.scale[rows]
    trimmed = np.where(survives, x, 0.0)
    best, lowest = (np.zeros(len(x)), np.zeros(len(rows))), np.inf
    share = np.full(len(x), 1 / len(x))
    for _ in range(3):
        agree = (np.sign(trimmed) == np.sign(share @ trimmed)) & (trimmed != 0)
        weight = share @ agree
        mean = np.divide(share @ (trimmed * agree), weight, out=np.zeros(len(rows)), where=weight > 0)
        scale = _scale_of(y, mean, unit, agree.sum(0) == 1)
        error = float(np.abs((y - scale * mean) / unit).sum())
        if error < lowest:
            best, lowest = (scale * share, scale * mean), error
        several = agree.sum(0) > 1
        if scale <= 0 or not several.any():
            break
        share = _shares(agree[:, several] * (y / scale - x)[:, several] / unit[several])
    return best


def _scale_of(y: np.ndarray, mean: np.ndarray, unit: np.ndarray, single: np.ndarray) -> float:
    """Median ratio where one parent survives alone (exact whatever the weights), least squares otherwise."""
    single = single & (mean != 0)
    if single.sum() >= 64:
        large = single & (np.abs(mean) >= np.median(np.abs(mean[single])))
        return max(0.0, float(np.median(y[large] / mean[large])))
    square = float(np.square(mean / unit).sum())
    return max(0.0, float((y * mean / unit**2).sum()) / square) if square > 0 else 0.0


def _shares(z: np.ndarray) -> np.ndarray:
    """Weights that sum to 1 and make every entry of `share @ z` small; outliers are left out once."""
    share = np.full(len(z), 1 / len(z))
    for keep in (1.0, 0.8):
        size = np.abs(share @ z)
        used = z[:, size <= np.quantile(size, keep)]
        found = np.abs(np.linalg.eigh(used @ used.T)[1][:, 0])
        share = found / found.sum()
    return share


def dare(vectors: TaskVectors, parents: Sequence[int], seed: int = 0) -> Fit | None:
    """Drop entries of each task vector at random, rescale the others, add: each entry is one of 2^n subset sums.

    Assigns each entry to the nearest subset sum and refits the rescaled weights, from several drop rates.

    Args:
        vectors: The task vectors; the base must be known.
        parents: Positions of the candidates, at most 8.
        seed: Of the sample of entries that is fitted.

    Returns:
        The fit, with the `drop_rate` of each parent; None without a base or with too many parents.

    Source: Yu et al., ICML 2024 (arXiv:2311.03099).
    """
    if not vectors.has_base or not 0 < len(parents) <= 8:
        return None
    k = len(vectors.child)
    rows = np.arange(k) if k <= ENTRIES else np.sort(np.random.default_rng(seed).choice(k, ENTRIES, replace=False))
    x, y, scale = vectors.of(parents, rows), vectors.child[rows], vectors.scale[rows]
    subsets = np.array(list(product((0.0, 1.0), repeat=len(parents))))
    mean = weights(vectors, parents, rows)
    tolerance = vectors.tolerance[rows]
    best, most = None, -1.0
    starts = [mean / (1 - rate) for rate in RATES]
    modal_ratios = np.array([common_ratio(y, one, tolerance)[1] for one in x])
    if (modal_ratios > 0).any():
        starts.insert(0, np.where(modal_ratios > 0, modal_ratios, mean / (1 - 0.5)))
    for c in starts:
        for _ in range(12):
            chosen = subsets[_nearest(y, (subsets * c), x)]
            near = _close_entries(y - c @ (chosen.T * x), tolerance)
            active = (chosen.T * x / scale)[:, near]
            gram = active @ active.T + 1e-12 * np.eye(len(c))
            new = np.linalg.solve(gram, active @ (y / scale)[near])
            if np.allclose(new, c, rtol=1e-9, atol=0):
                break
            c = new
        hit = float((np.abs(y - c @ (chosen.T * x)) <= tolerance * max(1.0, np.abs(c).sum())).mean())
        if hit > most:
            best, most = c, hit
    assert best is not None
    index = np.concatenate([
        _nearest(vectors.child[i : i + ENTRIES], subsets * best, vectors.of(parents, slice(i, i + ENTRIES)))
        for i in range(0, k, ENTRIES)
    ])  # fmt: skip
    chosen = subsets[index].T
    informative = np.abs(best[:, None] * vectors.of(parents)) > 4 * vectors.tolerance
    rates = 1 - (chosen * informative).sum(1) / np.maximum(informative.sum(1), 1)
    effective = best * (1 - rates)
    details = {"drop_rate": rates.tolist()}
    return Fit("dare", tuple(parents), tuple(effective.tolist()), best @ (chosen * vectors.of(parents)), details)


def _close_entries(error: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Entries that agree almost exactly where enough do (a missing parent spoils the others), else all."""
    near = np.abs(error) <= 64 * tolerance
    return near if near.sum() >= max(64, 0.02 * len(error)) else np.ones(len(error), bool)


def _nearest(y: np.ndarray, table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which row of the table, times x, is nearest to y, entry by entry."""
    nearest, distance = np.zeros(len(y), int), np.full(len(y), np.inf)
    for i, row in enumerate(table):
        error = np.abs(y - row @ x)
        closer = error < distance
        nearest[closer], distance[closer] = i, error[closer]
    return nearest


def common_ratio(y: np.ndarray, x: np.ndarray, tolerance: np.ndarray) -> tuple[float, float]:
    """The ratio of child to candidate that most entries share down to rounding.

    Entries that are one parent's alone (trimmed or dropped in the others) have one ratio.

    Args:
        y: `[k]`, the child's task vector.
        x: `[k]`, a candidate's.
        tolerance: `[k]`, of the child.

    Returns:
        The share of entries at the ratio and the ratio; two zeros where it is no more common than chance.
    """
    informative = (np.abs(y) > 16 * tolerance) & (np.abs(x) > 16 * tolerance)
    ratio = y[informative] / x[informative]
    positive = ratio[ratio > 0]
    if len(positive) < 64:
        return 0.0, 0.0
    logs = np.sort(np.log(positive))
    width = float(np.median(2 * tolerance[informative] / np.abs(y[informative])))
    inside = np.searchsorted(logs, logs + width, side="right") - np.arange(len(logs))
    top = int(inside.argmax())
    expected = 20 + 10 * len(logs) * width  # a density of logs around 1 gives about n * width by chance
    if inside[top] < expected:
        return 0.0, 0.0
    return float(inside[top]) / len(y), float(np.exp(np.median(logs[top : top + inside[top]])))
