"""Which unit goes with which, given how alike they are: all pairs at once, also where there are tens of thousands."""

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
    """How alike units are, over all views.

    Args:
        views: Units as rows.
        rows: Which units of the one side.
        signed: Whether the opposite counts like the same, in each view by itself.

    Returns:
        `[rows, m]`.
    """
    total: np.ndarray | None = None
    for u, v in views:
        product = u[rows] @ v.T
        if signed:
            np.abs(product, out=product)
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None
    return total


def matched(views: Views, *, signed: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Match units one to one.

    Up to `EXACT` units by linear assignment; more of them by mutual nearest neighbours, again among those that are
    left, in stripes so that no square of all pairs is held.

    Args:
        views: Units as rows.
        signed: Whether the opposite counts like the same.
        seed: Of the relabelling that makes ties fall at random.

    Returns:
        Rows and columns that go together, rows ascending; of large sets perhaps not all.
    """
    generator = np.random.default_rng(seed)
    if not signed:  # one product instead of several
        views = [(np.hstack([u for u, _ in views]), np.hstack([v for _, v in views]))]
    n, m = len(views[0][0]), len(views[0][1])
    if max(n, m) <= EXACT:
        return assign(similarities(views, slice(None), signed=signed), generator)
    p, q = generator.permutation(n), generator.permutation(m)
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
    """For each unit of the one side its nearest of the other, and the other way round."""
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
