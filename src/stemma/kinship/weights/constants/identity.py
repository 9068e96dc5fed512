"""Matrices near the identity, which independent networks share."""

from math import lgamma, log

import numpy as np

TIED = 1e-4
"""Significance level at which a matrix counts as near the identity."""

CORNER = 128
"""Number of first units and coordinates that are compared."""

KERNELS = (1, 3, 5, 7, 9, 25, 49)
"""Entries of a kernel from one input to one unit, as layers usually have them."""


def near_identity(x: np.ndarray) -> bool:
    """Whether units point at the coordinate of their own number more often than chance; decided by one model."""
    if not x.size:
        return False
    n, width = len(x), x[0].size
    sizes = {*KERNELS, max(width // n, 1)}
    for size in (s for s in sizes if width % s == 0):
        corner = x.reshape(n, width // size, size)[:CORNER, : min(n, CORNER)]
        rows, columns = corner.shape[:2]
        energy = np.square(corner, dtype=np.float64).sum(axis=2)
        t = int((energy.argmax(axis=0) == np.arange(columns)).sum())
        bound = lgamma(columns + 1) - lgamma(t + 1) - lgamma(columns - t + 1) + lgamma(rows - t + 1) - lgamma(rows + 1)
        if t and bound <= log(TIED / len(sizes)):
            return True
    return False
