"""Assignment of units between two models by similarity, also for tens of thousands of units."""

from collections.abc import Sequence

import numpy as np

from stemma.kinship.weights.order.similarity import assign

EXACT = 768
"""Units up to which the assignment of largest total similarity is computed."""

PASSES = 8
"""Rounds of mutual nearest neighbours of larger sets; what is left after them has no clear counterpart."""

FEW = 0.01
"""Share of units that may be left without a counterpart."""

STRIPE = 1 << 24
"""Similarities that are held at once."""

Views = Sequence[tuple[np.ndarray, np.ndarray]]
"""Units as rows, `[n, k]` and `[m, k]`, in every tensor that shows them; products of rows are similarities."""


def similarities(views: Views, rows: slice | np.ndarray, *, signed: bool) -> np.ndarray:
    """Similarity of units summed over all views, `[rows, m]`; absolute values per view where signs are free."""
    total: np.ndarray | None = None
    for u, v in views:
        product = u[rows] @ v.T
        if signed:
            np.abs(product, out=product)
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None
    return total


def assign_units(views: Views, *, signed: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Match units one to one: linear assignment up to `EXACT` units, mutual nearest neighbours beyond."""
    generator = np.random.default_rng(seed)
    if not signed:  # one product instead of several
        views = [(np.hstack([u for u, _ in views]), np.hstack([v for _, v in views]))]
    n, m = len(views[0][0]), len(views[0][1])
    if max(n, m) <= EXACT:
        return assign(similarities(views, slice(None), signed=signed), generator)
    p, q = generator.permutation(n), generator.permutation(m)
    shown_u, shown_v = (np.logical_or.reduce([pair[i].any(axis=1) for pair in views]) for i in (0, 1))
    p, q = p[shown_u[p]], q[shown_v[q]]  # units of zeros are alike to nothing, and a sparse file has ten thousands
    if not len(p) or not len(q):
        return np.zeros(0, int), np.zeros(0, int)
    rows, columns = _mutual([(u[p], v[q]) for u, v in views], signed=signed)
    rows, columns = p[rows], q[columns]
    order = np.argsort(rows)
    return rows[order], columns[order]


def _mutual(views: Views, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    left_u, left_v = np.arange(len(views[0][0])), np.arange(len(views[0][1]))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(PASSES):
        if not len(left_u) or not len(left_v):
            break
        nearest, back = _nearest([(u[left_u], v[left_v]) for u, v in views], signed=signed)
        pairs = np.flatnonzero(back[nearest] == np.arange(len(left_u)))
        found.append((left_u[pairs], left_v[nearest[pairs]]))
        left_v = np.delete(left_v, nearest[pairs])
        left_u = np.delete(left_u, pairs)
        if len(left_u) <= FEW * len(views[0][0]):
            break
    return np.concatenate([r for r, _ in found]), np.concatenate([c for _, c in found])


def _nearest(views: Views, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each unit of one side its nearest unit of the other, and vice versa."""
    n, m = len(views[0][0]), len(views[0][1])
    nearest = np.empty(n, int)
    best, back = np.full(m, -np.inf, np.float32), np.zeros(m, int)
    step = max(1, STRIPE // m)
    for start in range(0, n, step):
        alike = similarities(views, slice(start, start + step), signed=signed)
        nearest[start : start + step] = alike.argmax(axis=1)
        top = alike.argmax(axis=0)
        value = alike[top, np.arange(m)]
        better = value > best
        best[better], back[better] = value[better], top[better] + start
    return nearest, back
