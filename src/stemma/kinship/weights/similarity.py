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
    x = units.astype(np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    alive = norm > 1e-9 * max(float(norm.max(initial=0.0)), 1e-30)
    x = x / np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    if alive.sum() >= 2:
        x = x - x[alive].mean(axis=0)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    alive &= norm > 1e-5
    x = x / np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    return x, alive


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
