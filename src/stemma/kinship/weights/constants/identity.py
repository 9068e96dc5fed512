"""Matrices near the identity: such a start, a recurrence, a shortcut. Strangers share it."""

from math import lgamma, log

import numpy as np

TIED = 1e-4
"""Level at which a matrix counts as tied to its own coordinates."""

CORNER = 128
"""Units and coordinates that are looked at for that, the first of each."""

KERNELS = (1, 3, 5, 7, 9, 25, 49)
"""Entries of a kernel from one input to one unit, as layers usually have them."""


def near_identity(x: np.ndarray) -> bool:
    """Whether the units of one model point at the coordinates of their own number, by this model alone.

    In a matrix or kernel near the identity (such a start, a recurrence, a shortcut that was not recognised) they do, in
    any two models, whatever their history. The model's own order decides, so the law for the pair still holds. Each
    coordinate has one unit that it moves most; that t of m coordinates have the unit of their number happens to n units
    in an order of chance with a probability of at most C(m, t) (n - t)! / n!.

    Args:
        x: Units as rows, `[units, coordinates]` or with more axes, in the model's own order.

    Returns:
        True where the matrix is to be left out.
    """
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
