"""Quantiles of many numbers without sorting them all."""

import itertools

import numpy as np

from stemma.fingerprints.room import Room

_MANY = 1 << 16
"""Numbers per row from which the finer cells pay."""
_CELLS, _COARSE = 1 << 13, 1 << 11
_FEW = 4096
"""Below this many numbers a plain sort is quicker."""


def quantiles(rows: np.ndarray, count: int, room: Room | None = None) -> np.ndarray:
    """`count` of the sorted numbers of each row, evenly spaced from the smallest to the largest, each exact.

    The numbers are counted in cells first, and only those in the cells that are asked for are sorted.
    Cost: about a tenth of a sort.

    Args:
        rows: Finite numbers, `[rows, numbers]`.
        count: How many.
        room: Memory for the cells, where the caller has some.

    Returns:
        The same as `sort(rows)[:, linspace(0, numbers - 1, count).astype(int)]`; zeros for no numbers.
    """
    n = rows.shape[1]
    if not rows.size:
        return np.zeros((len(rows), count))
    at = np.linspace(0, n - 1, count).astype(int)
    low, high = rows.min(axis=1), rows.max(axis=1)
    with np.errstate(over="ignore"):
        width = high.astype(np.float64) - low.astype(np.float64)
    if n < _FEW or not np.isfinite(width).all() or width.min() < 1e-30:
        return np.sort(rows)[:, at]
    cells = _CELLS if n >= _MANY else _COARSE
    number = _cells_of(rows, low, width, cells, room or Room())
    last = np.cumsum(np.bincount(number.reshape(-1), minlength=len(rows) * cells))  # in a cell or before it
    place = (np.arange(len(rows))[:, None] * n + at).reshape(-1)
    wanted = np.searchsorted(last, place, side="right")
    needed = np.zeros(len(last), bool)
    needed[wanted] = True
    kept_number = np.flatnonzero(np.take(needed, number.reshape(-1)))
    kept = rows.reshape(-1)[kept_number]
    ends = np.searchsorted(kept_number, np.arange(len(rows) + 1) * n).tolist()
    for start, stop in itertools.pairwise(ends):
        kept[start:stop].sort()
    counts = np.diff(last, prepend=0)
    before = last[wanted] - counts[wanted]
    kept_before = (np.cumsum(counts * needed) - counts * needed)[wanted]
    return kept[kept_before + place - before].reshape(len(rows), count)


def _cells_of(rows: np.ndarray, low: np.ndarray, width: np.ndarray, cells: int, room: Room) -> np.ndarray:
    """The number of the cell of each entry, which grows with the row and with the entry."""
    cell = room.array("cells", rows.shape, np.float64)
    np.subtract(rows, low[:, None], out=cell, dtype=np.float64)
    cell *= ((cells - 2) / width)[:, None]
    cell += 2.0**52  # now the last bits are the whole number, which is faster than a conversion
    number = cell.view(np.int64)
    number &= 2 * cells - 1
    if len(rows) > 1:
        number += (np.arange(len(rows)) * cells)[:, None]
    return number
