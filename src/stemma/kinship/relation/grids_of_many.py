"""Quantisation grids of many tensors: those that certainly lie on none are ruled out together.

It goes the same way as `grids.grid_of`, with every comparison widened by `MARGIN`: sums over many tensors are added up
in another order, which moves a step by a few units in its last place.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from stemma.kinship.relation.grids import (
    BLOCKS,
    EXACT,
    GROUPS,
    MAX_LEVELS,
    MIN_VALUES,
    MOST_SLACK,
    PEEK,
    ROWS,
    TABLE,
    Grid,
    Key,
    cache_key,
    grid_of,
    is_remembered,
    remembered,
)  # fmt: skip

MARGIN = 1e-6
"""Relative margin by which a comparison must fail."""

TOGETHER = 1 << 16
"""Entries of tensors that are looked at together, and of the largest one that is not looked at alone."""


def grids_of(tensors: Sequence[np.ndarray], roundings: Sequence[float]) -> list[Grid | None]:
    """The grids of many tensors, as `grid_of` finds them.

    Args:
        tensors: Finite entries of each, rows first.
        roundings: Their relative rounding errors.

    Returns:
        Per tensor its grid, or None.
    """
    out: dict[int, Grid | None] = {}
    alike: dict[tuple[tuple[int, ...], float], list[int]] = {}
    keys: dict[int, Key] = {}
    for i, (x, rounding) in enumerate(zip(tensors, roundings, strict=True)):
        keys[i] = cache_key(x, rounding)
        if 0 < x.size <= TOGETHER and x.ndim > 1 and not is_remembered(keys[i]):
            alike.setdefault((x.shape, rounding), []).append(i)
    for (shape, rounding), found in alike.items():
        step = max(1, TOGETHER // int(np.prod(shape)))
        for at in range(0, len(found), step):
            some = found[at : at + step]
            none = certainly_none(np.stack([tensors[i] for i in some]), rounding)
            out |= {i: remembered(keys[i], None) for i, certain in zip(some, none, strict=True) if certain}
    return [out[i] if i in out else grid_of(x, r) for i, (x, r) in enumerate(zip(tensors, roundings, strict=True))]


def certainly_none(stack: np.ndarray, rounding: float) -> np.ndarray:
    """Which of some tensors certainly lie on no grid.

    Args:
        stack: Finite entries, `[tensors, rows, …]`.
        rounding: Their relative rounding error.

    Returns:
        True for a tensor for which `grid_of` returns None; `[tensors]`. False says nothing.
    """
    flat = stack.reshape(*stack.shape[:2], -1)
    chosen = flat[:, :: max(1, -(-flat.shape[1] // ROWS))]
    if chosen[0].size < 32:
        return np.ones(len(stack), bool)
    out = np.ones(len(stack), bool)
    for groups in _groupings(flat, chosen):
        left = np.flatnonzero(out)
        if not len(left):
            break
        out[left] = _ruled_out(groups[left], rounding)
    return out


def _groupings(flat: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The first groups of each way to share a step, `[tensors, groups, entries]`: `PEEK`, or all where there are fewer.

    Args:
        flat: The tensors, `[tensors, rows, entries]`.
        chosen: The rows that are used.

    Yields:
        The groups. Of blocks, those with too few entries for a step are left out, and the last of a row may be shorter:
        it is filled up with its last entry, which adds no value.
    """
    yield chosen.reshape(len(chosen), 1, -1)
    yield chosen[:, :PEEK]
    width = flat.shape[2]
    if flat.shape[1] >= 32:
        yield flat[:, :4096, :: max(1, width // ROWS)][:, :, :PEEK].transpose(0, 2, 1)
    for block in BLOCKS:
        if block < width:
            places = [(k, i) for k in range(chosen.shape[1]) for i in range(0, width, block)]
            some = [(k, i) for k, i in places[:: max(1, len(places) // (2 * GROUPS))] if width - i >= MIN_VALUES][:PEEK]
            columns = np.array([np.minimum(np.arange(i, i + block), width - 1) for _, i in some])
            yield chosen[:, np.array([k for k, _ in some])[:, None], columns]


def _ruled_out(groups: np.ndarray, rounding: float) -> np.ndarray:
    """Tensors of whose groups every one certainly has no step, and which hold too many values for a table."""
    tensors, count, length = groups.shape
    if length < MIN_VALUES:
        return np.zeros(tensors, bool)
    values = groups.astype(np.float64)
    top = np.abs(values).max(axis=2, keepdims=True)
    levels = np.round(values / np.where(top > 0, top, 1), 2)
    levels = np.sort(levels.reshape(tensors, -1), axis=1)
    out = (np.diff(levels, axis=1) != 0).sum(axis=1) >= TABLE
    values.sort(axis=2)
    left = np.flatnonzero(out)
    out[left] = ~_may_have_step(values[left].reshape(-1, length), rounding).reshape(-1, count).any(axis=1)
    return out


def _may_have_step(u: np.ndarray, rounding: float) -> np.ndarray:
    """Whether sorted rows may have a step of which their distinct values are multiples."""
    gaps = np.diff(u, axis=1)
    first = np.concatenate([np.ones((len(u), 1), bool), gaps > 0], axis=1)
    maybe = first.sum(axis=1) < MIN_VALUES  # such a group shows nothing by itself
    gaps = np.sort(np.where(gaps > 0, gaps, np.inf), axis=1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        span = u[:, -1] - u[:, 0]
        small = np.maximum(gaps[:, 0], np.maximum(u[:, -1], -u[:, 0]) * rounding * 2)
        open_ = np.flatnonzero(~maybe & ~(span / small > 1.15 * MAX_LEVELS * (1 + MARGIN)))
        u, gaps, small, span, first = u[open_], gaps[open_], small[open_], span[open_], first[open_]
        near = (gaps < 1.5 * small[:, None]).sum(axis=1)
        at = np.arange(len(u))
        median = (gaps[at, (near - 1) // 2] + gaps[at, near // 2]) / 2  # of the gaps near the smallest
        found = ~(near > 0) | ~np.isfinite(median)
        going = ~found
        for divisor in (1, 2, 3):
            step = median / divisor
            going &= ~(span / step > (MAX_LEVELS - 1) * (1 + MARGIN))
            for origin in (np.zeros(len(u)), u[:, 0]):
                rows = np.flatnonzero(going & ~found)
                found[rows] = _fits(u[rows], first[rows], origin[rows], step[rows], rounding)
    maybe[open_] |= found
    return maybe


def _fits(u: np.ndarray, first: np.ndarray, origin: np.ndarray, step: np.ndarray, rounding: float) -> np.ndarray:
    """Whether all distinct values may be multiples of a step, fitted as in `grids`, from an origin on."""
    values = u - origin[:, None]
    for limit in (8, 32, MAX_LEVELS):
        scaled = values / step[:, None]
        codes = np.rint(scaled)
        used = first & (np.abs(codes) <= limit)
        codes = np.where(used, codes, 0.0)
        square = (codes * codes).sum(axis=1)
        step = np.where(square > 0, step * (scaled * codes).sum(axis=1) / np.where(square > 0, square, 1), step)
    codes = values / step[:, None]
    slack = EXACT + 2 * rounding * np.abs(u) / np.abs(step)[:, None]
    usable = first & (slack <= MOST_SLACK * (1 + MARGIN))
    off = np.abs(codes - np.rint(codes)) > slack * (1 + MARGIN) + MARGIN
    surely = first & (slack <= MOST_SLACK * (1 - MARGIN))
    return ~(off & surely).any(axis=1) & (usable.sum(axis=1) >= MIN_VALUES)
