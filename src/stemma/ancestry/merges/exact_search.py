"""Finds the rule and the fewest parents that reproduce a merged child down to rounding."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from stemma.ancestry.merges.merging_rules import Fit, layer_wise, linear, slerp, weights
from stemma.ancestry.merges.task_vectors import TaskVectors
from stemma.ancestry.merges.trimming_rules import common_ratio, dare, ties

RULES: Mapping[str, Callable[[TaskVectors, Sequence[int]], Fit | None]] = {
    "linear": linear, "slerp": slerp, "layer-wise": layer_wise, "ties": ties, "dare": dare,
}  # fmt: skip
"""The rules in the order in which they are tried, simplest first."""

MIN_WEIGHT = 1e-3
"""Smaller weights are dropped where a rule must hold exactly."""

MIN_RATIO_SHARE = 0.002
"""Share of entries at one ratio to the child from which a candidate counts as their only parent."""

MIN_INFORMATIVE_ENTRIES = 16
"""Moved entries of one tensor that suffice to show that a fit is not exact."""

MAX_CANDIDATES = 48
"""Candidates that are fitted together; of more, the first on the matching pursuit path."""


def exact_share(vectors: TaskVectors, fit: Fit) -> float:
    """Share of the moved entries at which a fit agrees with the child down to rounding; 0 with fewer than 64."""
    informative, agreeing = _agreement(vectors, fit)
    return float(agreeing[informative].mean()) if informative.sum() >= 64 else 0.0


def tensors_not_reproduced(vectors: TaskVectors, fit: Fit, share: float) -> tuple[int, bool]:
    """Tensors that a fit does not reproduce, however few of all entries they hold.

    A layer may hold one entry in a hundred, and still come from a parent that is missing.

    Returns:
        The number of tensors of which less than half of the entries agree, of those with at least 16 informative ones;
        and whether tensors agree entirely or not at all, as with layers that were trained or exchanged.
    """
    informative, agreeing = _agreement(vectors, fit)
    count = np.bincount(vectors.tensor[informative], minlength=1)
    exact = np.bincount(vectors.tensor[informative], agreeing[informative], minlength=1)
    informative_tensors = count >= MIN_INFORMATIVE_ENTRIES
    reproduced = informative_tensors & (exact >= share * count)
    others = informative_tensors & ~reproduced
    as_wholes = bool(reproduced.any() and others.any() and exact[others].sum() < 0.1 * count[others].sum())
    return int((informative_tensors & (exact < 0.5 * count)).sum()), as_wholes


def _agreement(vectors: TaskVectors, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Entries that are informative, for they moved or should have, and entries that agree down to rounding."""
    tolerance = vectors.tolerance * max(1.0, float(np.abs(fit.coefficients).sum()))
    with np.errstate(invalid="ignore"):
        informative = np.isfinite(fit.predicted) & (
            np.maximum(np.abs(vectors.child), np.abs(fit.predicted)) > 2 * tolerance
        )
        return informative, np.abs(vectors.child - fit.predicted) <= tolerance


def matching_pursuit(vectors: TaskVectors, rows: np.ndarray, max_parents: int, start: Sequence[int] = ()) -> list[int]:
    """Candidates in the order in which they explain most of the residual, refitted at each step.

    Args:
        vectors: The task vectors.
        rows: Entries to fit on.
        max_parents: Where to stop.
        start: Candidates that are selected already.

    Returns:
        Positions, `start` first.

    Source: Pati, Rezaiifar and Krishnaprasad 1993, with non-negative weights.
    """
    x, y = vectors.moves[:, rows] / vectors.scale[rows], vectors.child[rows] / vectors.scale[rows]
    norms = np.sqrt(np.square(x).sum(1))
    chosen = list(start)
    while len(chosen) < min(max_parents, vectors.n):
        left = y - weights(vectors, chosen, rows) @ x[chosen] if chosen else y
        gain = np.divide(x @ left, norms, out=np.full(vectors.n, -np.inf), where=norms > 0)
        gain[chosen] = -np.inf
        if gain.max() <= 0:
            break
        chosen.append(int(gain.argmax()))
    return chosen


def best_exact_fit(vectors: TaskVectors, max_parents: int, share: float) -> tuple[Fit, float]:
    """The simplest rule and the fewest parents that reproduce the child, or the fit that comes nearest.

    Rules that give all entries of a layer one weight are tried on the parents that non-negative least squares uses in
    the layers that it reproduces; SLERP on the two candidates that explain most; TIES and DARE, which leave some
    entries to one parent alone, on the candidates that have such entries.

    Args:
        vectors: The task vectors.
        max_parents: Largest number of parents.
        share: Share of entries from which a fit counts as exact.

    Returns:
        The best fit and its exact share.
    """
    greedy = matching_pursuit(
        vectors, np.arange(len(vectors.child)), MAX_CANDIDATES if vectors.n > MAX_CANDIDATES else 2
    )
    pool = list(range(vectors.n)) if vectors.n <= MAX_CANDIDATES else sorted(greedy)
    layer_candidates, pair, contributors = _by_layers(vectors, pool, share), tuple(sorted(greedy[:2])), None
    best_fit, best_share = Fit("none", (), (), np.zeros_like(vectors.child)), 0.0
    for name, rule in RULES.items():
        parents = pair if name == "slerp" else layer_candidates
        if name in ("ties", "dare"):
            parents = contributors = (
                _sole_contributors(vectors, max_parents + 2) if contributors is None else contributors
            )
        fit = rule(vectors, parents) if 0 < len(parents) <= 2 * max_parents else None
        exact = 0.0 if fit is None else exact_share(vectors, fit)
        if fit is not None and exact > best_share + 1e-3:
            best_fit, best_share = _drop_parents(vectors, fit, exact)
        if best_share >= share:
            break
    return best_fit, best_share


def _by_layers(vectors: TaskVectors, pool: Sequence[int], share: float) -> tuple[int, ...]:
    """Candidates used in layers that weights of their own reproduce; small layers are not informative."""
    used = np.zeros(len(pool))
    for layer in np.unique(vectors.layer):
        rows = np.flatnonzero(vectors.layer == layer)
        if len(rows) < 2 * len(pool):
            continue
        w = weights(vectors, pool, rows)
        error = np.abs(vectors.child[rows] - w @ vectors.of(pool, rows))
        tolerance = vectors.tolerance[rows] * max(1.0, float(w.sum()))
        if (error <= tolerance).mean() >= share:
            used = np.maximum(used, w)
    return tuple(i for i, w in zip(pool, used, strict=True) if w > MIN_WEIGHT)


def _sole_contributors(vectors: TaskVectors, max_parents: int) -> tuple[int, ...]:
    """Candidates with entries at one ratio to the child, most such entries first."""
    if not vectors.has_base:
        return ()
    common = np.array([common_ratio(vectors.child, x, vectors.tolerance)[0] for x in vectors.moves])
    return tuple(sorted(int(i) for i in np.argsort(-common)[:max_parents] if common[i] > MIN_RATIO_SHARE))


def _drop_parents(vectors: TaskVectors, fit: Fit, exact: float) -> tuple[Fit, float]:
    """Drop parents, least weight first, as long as the fit stays as exact."""
    for position in np.argsort(fit.coefficients):
        parent = fit.parents[position] if position < len(fit.parents) else None
        remaining = tuple(p for p in fit.parents if p != parent)
        if parent is None or len(remaining) == len(fit.parents) or not remaining:
            continue
        refitted = _refit(vectors, fit, remaining)
        if refitted is not None and (without := exact_share(vectors, refitted)) >= exact - 1e-3:
            return _drop_parents(vectors, refitted, max(without, exact))
    return fit, exact


def _refit(vectors: TaskVectors, fit: Fit, parents: Sequence[int]) -> Fit | None:
    name = {"task-arithmetic": "linear", "franken": "layer-wise"}.get(fit.rule, fit.rule)
    return RULES[name](vectors, parents)


def with_fewer_parents(vectors: TaskVectors, fit: Fit, share: float) -> tuple[Fit, tuple[tuple[int, ...], ...]]:
    """The exact fit with the fewest parents, and other sets of that size that fit as well (mixtures)."""
    if fit.rule not in ("linear", "task-arithmetic"):
        return fit, ()
    x = vectors.of(fit.parents)
    basis = np.linalg.qr(x.T)[0]
    left = vectors.moves - (vectors.moves @ basis) @ basis.T
    inside = np.linalg.norm(left, axis=1) <= 1e-3 * np.maximum(np.linalg.norm(vectors.moves, axis=1), 1e-30)
    pool = [i for i in range(vectors.n) if inside[i] or i in fit.parents]
    if len(pool) == len(fit.parents) or len(pool) > 12:
        return fit, ()
    for size in range(2, len(fit.parents) + 1):
        fits = [RULES["linear"](vectors, parents) for parents in combinations(pool, size)]
        good = [f for f in fits if f and min(f.coefficients) > MIN_WEIGHT and exact_share(vectors, f) >= share]
        if good:
            return good[0], tuple(f.parents for f in good[1:])
    return fit, ()
