"""How alike units are, and which of them carry information."""

import numpy as np

DUPLICATE = 1 - 1e-6
"""Cosine above which two units of one model are one unit twice."""


def directions(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised unit vectors without their common direction, so that the scale of a unit does not matter.

    Args:
        units: Array `[units, coordinates]`.

    Returns:
        The directions, and which units are informative: not zero, not constant, no duplicate of another unit.
    """
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
    """Norms of rows; scaled first, so that huge entries do not overflow."""
    top = float(np.abs(x).max(initial=0.0))
    if not 1e-15 < top < 1e15:
        x = (x / (top or 1.0)).astype(np.float32)
        return np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64) * top
    return np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64)


def distinct(x: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Leave out units that repeat another one: ties fake kinship.

    Args:
        x: Directions.
        alive: Units to consider.

    Returns:
        A smaller mask.
    """
    gram = np.abs(x @ x.T)
    np.fill_diagonal(gram, 0.0)
    return alive & ~(gram[:, alive] > DUPLICATE).any(axis=1)


def informative(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which of so many pairs of units say anything.

    Args:
        u: Directions of the one side, `[pairs, coordinates]`; zero where a unit has none.
        v: Those of the other.

    Returns:
        A mask: both sides have a direction, and neither repeats another one of its side.
    """
    alive = np.logical_and(u.any(axis=1), v.any(axis=1))
    return alive & distinct(u, alive) & distinct(v, alive)


def assign(similarity: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of largest total similarity, after a random relabelling of both sides.

    The relabelling makes ties fall at random: without it, equal rows would be matched in order.

    Args:
        similarity: Array `[units of A, units of B]`.
        generator: Source of the relabelling.

    Returns:
        Matched rows and columns, rows ascending.
    """
    from scipy.optimize import linear_sum_assignment

    p = generator.permutation(similarity.shape[0])
    q = generator.permutation(similarity.shape[1])
    r, c = linear_sum_assignment(-similarity[np.ix_(p, q)])
    rows, columns = p[r], q[c]
    order = np.argsort(rows)
    return rows[order], columns[order]
