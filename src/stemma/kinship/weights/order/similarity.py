"""Similarity of units, and which of them carry information."""

import numpy as np

DUPLICATE = 1 - 1e-6
"""Cosine above which two units of one model are duplicates."""


def directions(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units at norm 1 without their common direction, and which are informative (not zero, not constant)."""
    x = np.asarray(units, np.float32)
    norm = _norms(x)
    alive = norm > 1e-9 * max(float(norm.max(initial=0.0)), 1e-30)
    x = x / np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    if alive.sum() >= 2:
        x = x - x[alive].mean(axis=0)
    norm = _norms(x)
    alive &= norm > 1e-5
    x = x / np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    return x, alive


def _norms(x: np.ndarray) -> np.ndarray:
    """Norms of rows, scaled first so that huge entries do not overflow."""
    top = float(np.abs(x).max(initial=0.0))
    if not 1e-15 < top < 1e15:
        x = (x / (top or 1.0)).astype(np.float32)
        return np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64) * top
    return np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64)


def distinct(x: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The mask without units that duplicate another one, since ties would look like agreement."""
    gram = np.abs(x @ x.T)
    np.fill_diagonal(gram, 0.0)
    return alive & ~(gram[:, alive] > DUPLICATE).any(axis=1)


def informative(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which pairs of directions carry information: nonzero on both sides, and no duplicates."""
    alive = np.logical_and(u.any(axis=1), v.any(axis=1))
    return alive & distinct(u, alive) & distinct(v, alive)


def assign(similarity: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Linear assignment of largest total similarity, after random relabelling so that ties fall at random."""
    from scipy.optimize import linear_sum_assignment

    p = generator.permutation(similarity.shape[0])
    q = generator.permutation(similarity.shape[1])
    r, c = linear_sum_assignment(-similarity[np.ix_(p, q)])
    rows, columns = p[r], q[c]
    order = np.argsort(rows)
    return rows[order], columns[order]
