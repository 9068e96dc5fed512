"""Orders of rows that tools write: stretches put together, and exchanged axes."""

import numpy as np

STRETCH = 4
"""Least average length of moved stretches."""

LONGEST = 1 << 14
"""Rows of a block within which two axes may have been exchanged."""


def is_simple(places: np.ndarray) -> bool:
    """Whether an order of rows is simple enough for a tool: few stretches of equal steps, or exchanged axes."""
    steps = np.diff(places)
    if (steps == 1).all():
        return True
    stretches = 1 + int((np.diff(steps) != 0).sum())  # a jump between two stretches counts as one of its own
    return stretches * STRETCH <= 2 * len(places) or _exchanged(places) is not None


def _exchanged(places: np.ndarray) -> tuple[int, int] | None:
    """Block size and inner length if every block is a matrix written by columns."""
    n = len(places)
    for size in (s for s in range(4, min(n, LONGEST) + 1) if n % s == 0):
        blocks = places.reshape(-1, size)
        inside = blocks - blocks.min(axis=1, keepdims=True)
        if not (inside == inside[0]).all():
            continue
        step = int(inside[0][1])
        if step > 1 and size % step == 0 and np.array_equal(np.arange(size).reshape(-1, step).T.reshape(-1), inside[0]):
            return size, step
    return None
