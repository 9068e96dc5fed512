"""Which candidates a child was merged from: proposals, the exact search, and what held-out entries say."""

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

WEIGHT = 1e-3
"""Weights below this are left out where a rule must hold exactly."""

ALONE = 0.002
"""Share of entries at one ratio to the child from which a candidate counts as their only parent."""

TELLING = 16
"""Entries that moved, from which one tensor alone can show that a fit is not exact."""

WIDE = 48
"""Candidates that are looked at together; of more, those that come first on the greedy path."""


def exact_share(vectors: TaskVectors, fit: Fit) -> float:
    """Share of the entries that moved, or should have, at which a fit agrees with the child down to rounding.

    Args:
        vectors: The task vectors.
        fit: What a rule makes of some parents.

    Returns:
        A share in [0, 1]; 0 where fewer than 64 entries can tell.
    """
    tell, agrees = _agreement(vectors, fit)
    return float(agrees[tell].mean()) if tell.sum() >= 64 else 0.0


def broken_tensors(vectors: TaskVectors, fit: Fit, share: float) -> tuple[int, bool]:
    """Tensors that a fit does not reproduce, however few of all entries they hold.

    A layer may hold one entry in a hundred, and still come from a parent that is not there.

    Args:
        vectors: The task vectors.
        fit: What a rule makes of some parents.
        share: Share of a tensor's entries from which it counts as reproduced.

    Returns:
        The number of tensors of which less than half of the entries agree, of those where 16 entries or more can tell;
        and whether tensors agree as wholes or not at all, which layers that were trained on or exchanged do.
    """
    tell, agrees = _agreement(vectors, fit)
    count = np.bincount(vectors.tensor[tell], minlength=1)
    exact = np.bincount(vectors.tensor[tell], agrees[tell], minlength=1)
    telling = count >= TELLING
    reproduced = telling & (exact >= share * count)
    others = telling & ~reproduced
    as_wholes = bool(reproduced.any() and others.any() and exact[others].sum() < 0.1 * count[others].sum())
    return int((telling & (exact < 0.5 * count)).sum()), as_wholes


def _agreement(vectors: TaskVectors, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Entries that can tell, for they moved or should have, and entries that agree down to rounding."""
    tolerance = vectors.tolerance * max(1.0, float(np.abs(fit.coefficients).sum()))
    with np.errstate(invalid="ignore"):
        tell = np.isfinite(fit.predicted) & (np.maximum(np.abs(vectors.child), np.abs(fit.predicted)) > 2 * tolerance)
        return tell, np.abs(vectors.child - fit.predicted) <= tolerance


def path(vectors: TaskVectors, rows: np.ndarray, most: int, start: Sequence[int] = ()) -> list[int]:
    """Candidates in the order in which they explain most of what is left (matching pursuit with refitting).

    Args:
        vectors: The task vectors.
        rows: Entries to look at.
        most: Where to stop.
        start: Candidates that are in already.

    Returns:
        Positions, `start` first.

    Source: Pati, Rezaiifar and Krishnaprasad 1993, with non-negative weights.
    """
    x, y = vectors.moves[:, rows] / vectors.scale[rows], vectors.child[rows] / vectors.scale[rows]
    norms = np.sqrt(np.square(x).sum(1))
    chosen = list(start)
    while len(chosen) < min(most, vectors.n):
        left = y - weights(vectors, chosen, rows) @ x[chosen] if chosen else y
        gain = np.divide(x @ left, norms, out=np.full(vectors.n, -np.inf), where=norms > 0)
        gain[chosen] = -np.inf
        if gain.max() <= 0:
            break
        chosen.append(int(gain.argmax()))
    return chosen


def exhibited(vectors: TaskVectors, most: int, share: float) -> tuple[Fit, float]:
    """The simplest rule and the fewest parents that reproduce the child, or what came nearest to it.

    Rules that give all entries of a layer one weight are tried on what non-negative least squares needs in the layers
    that it reproduces; SLERP on the two candidates that explain most; TIES and DARE, which leave some entries to one
    parent alone, on the candidates that have such entries.

    Args:
        vectors: The task vectors.
        most: Largest number of parents.
        share: Share of entries from which a fit counts as exact.

    Returns:
        The best fit and its exact share.
    """
    greedy = path(vectors, np.arange(len(vectors.child)), WIDE if vectors.n > WIDE else 2)
    pool = list(range(vectors.n)) if vectors.n <= WIDE else sorted(greedy)
    layered, pair, alone = _by_layers(vectors, pool, share), tuple(sorted(greedy[:2])), None
    best, found = Fit("none", (), (), np.zeros_like(vectors.child)), 0.0
    for name, rule in RULES.items():
        parents = pair if name == "slerp" else layered
        if name in ("ties", "dare"):
            parents = alone = _alone(vectors, most + 2) if alone is None else alone
        fit = rule(vectors, parents) if 0 < len(parents) <= 2 * most else None
        exact = 0.0 if fit is None else exact_share(vectors, fit)
        if fit is not None and exact > found + 1e-3:
            best, found = _fewest(vectors, fit, exact)
        if found >= share:
            break
    return best, found


def _by_layers(vectors: TaskVectors, pool: Sequence[int], share: float) -> tuple[int, ...]:
    """Candidates that are used in layers which weights of their own reproduce; small layers cannot tell."""
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
    return tuple(i for i, w in zip(pool, used, strict=True) if w > WEIGHT)


def _alone(vectors: TaskVectors, most: int) -> tuple[int, ...]:
    """Candidates with entries at one ratio to the child, those with most first."""
    if not vectors.known:
        return ()
    common = np.array([common_ratio(vectors.child, x, vectors.tolerance)[0] for x in vectors.moves])
    return tuple(sorted(int(i) for i in np.argsort(-common)[:most] if common[i] > ALONE))


def _fewest(vectors: TaskVectors, fit: Fit, exact: float) -> tuple[Fit, float]:
    """Leave out parents as long as the fit stays as exact, those of least weight first."""
    for position in np.argsort(fit.coefficients):
        parent = fit.parents[position] if position < len(fit.parents) else None
        rest = tuple(p for p in fit.parents if p != parent)
        if parent is None or len(rest) == len(fit.parents) or not rest:
            continue
        again = _refit(vectors, fit, rest)
        if again is not None and (without := exact_share(vectors, again)) >= exact - 1e-3:
            return _fewest(vectors, again, max(without, exact))
    return fit, exact


def _refit(vectors: TaskVectors, fit: Fit, parents: Sequence[int]) -> Fit | None:
    name = {"task-arithmetic": "linear", "franken": "layer-wise"}.get(fit.rule, fit.rule)
    return RULES[name](vectors, parents)


def shorter(vectors: TaskVectors, fit: Fit, share: float) -> tuple[Fit, tuple[tuple[int, ...], ...]]:
    """Other sets of parents that explain the child as exactly, where candidates are mixtures of one another.

    Args:
        vectors: The task vectors.
        fit: An exact fit with one weight per parent.
        share: Share of entries from which a fit counts as exact.

    Returns:
        The fit with fewest parents, and all other sets of at most that size that do as well.
    """
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
        good = [f for f in fits if f and min(f.coefficients) > WEIGHT and exact_share(vectors, f) >= share]
        if good:
            return good[0], tuple(f.parents for f in good[1:])
    return fit, ()
