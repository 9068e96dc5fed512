"""Agreement of matched units in blocks of weights; blocks of one shape are computed together, as each by itself.

What is unusual in a block (entries that float32 cannot square, rows without content, duplicate units, possible tables)
is left to the plain path, `of_block`. The others go the same steps, with one call for many blocks.
"""

from collections.abc import Sequence

import numpy as np

from stemma.kinship.weights.constants.tables import ROWS, is_table, waves
from stemma.kinship.weights.maps.blocks import EXTREME, FAINT, ROUNDS, UnitBlock
from stemma.kinship.weights.order.similarity import DUPLICATE, informative
from stemma.kinship.weights.reordering_bound import free_numbers, free_numbers_of_many, gains

SAME = 0.999
"""Mean cosine from which factors of units are not divided out."""

FEWEST = 4
"""Least units of an axis."""

TOGETHER = 1 << 18
"""Entries of blocks that are computed together, and an eighth of them the largest block that is not computed alone."""

Agreement = tuple[float, float, float, int]
"""Gain, mean cosine, exponent and number of matched units."""


def of_blocks(blocks: Sequence[UnitBlock]) -> list[Agreement | None]:
    """The agreement of each block, as `of_block` gives it.

    Args:
        blocks: Any number; those of one shape are computed together.

    Returns:
        Per block its agreement; None for tables.
    """
    alike: dict[tuple, list[int]] = {}
    for i, b in enumerate(blocks):
        if b.a.shape == b.b.shape and b.a.dtype == b.b.dtype == np.float32 and 2 * b.a.size <= TOGETHER // 8:
            alike.setdefault((b.a.shape, b.free, _layout(b.a), _layout(b.b)), []).append(i)
    out: dict[int, Agreement | None] = {}
    for (shape, free, *_), found in alike.items():
        step = max(1, TOGETHER // (2 * int(np.prod(shape))))
        for at in range(0, len(found), step):
            some = found[at : at + step]
            a, b = _stacked([blocks[i].a for i in some]), _stacked([blocks[i].b for i in some])
            agreed = _of_stacks(a, b, free)
            out |= {i: one for i, one in zip(some, agreed, strict=True) if one is not None}
    return [out[i] if i in out else of_block(block) for i, block in enumerate(blocks)]


def _layout(x: np.ndarray) -> tuple[int, ...]:
    """The axes in the order in which they lie in memory: entries are added up in that order."""
    return tuple(sorted(range(x.ndim), key=lambda i: (-x.strides[i], i)))


def _stacked(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks of one shape and layout in one array, in which each keeps its layout."""
    order = _layout(blocks[0])
    stack = np.stack([np.ascontiguousarray(x.transpose(order)) for x in blocks])
    return stack.transpose(0, *(order.index(i) + 1 for i in range(len(order))))


def _picked(stack: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Some of the blocks, in their layout."""
    return stack if len(places) == len(stack) else _stacked([stack[i] for i in places])


def of_block(block: UnitBlock) -> Agreement | None:
    """The agreement of matched units of one block, the better of two ways to scale them; None for a table."""
    if is_table(block.a[:, 0]) or is_table(block.b[:, 0]):
        return None
    filled = float(((block.a != 0) | (block.b != 0)).mean())  # a common mask is no evidence
    shown = [_gain_of_units(*block.vectors(rescaled=False), filled)]
    if shown[0][1] < SAME:
        shown.append(_gain_of_units(*block.vectors(rescaled=True), filled))
    return max(shown)


def _gain_of_units(u: np.ndarray, v: np.ndarray, filled: float) -> Agreement:
    """Gain, mean cosine, exponent and number of matched rows, without duplicate rows."""
    usable = informative(u, v)
    u, v = u[usable], v[usable]
    if len(u) < FEWEST:
        return 0.0, 0.0, 0.0, 0
    similarity = u @ v.T
    own = similarity.diagonal()
    exponent = filled * free_numbers(similarity, np.arange(len(own)), u.shape[1])
    return float(gains(own, exponent).sum()), float(own.mean()), exponent, len(own)


def _of_stacks(a: np.ndarray, b: np.ndarray, free: tuple[int, ...]) -> list[Agreement | None]:
    """The agreement of blocks, `[blocks, units, rows per unit, …]`; None for those that need a closer look."""
    usual = _usual(a) & _usual(b) & ~_maybe_table(a[:, :, 0]) & ~_maybe_table(b[:, :, 0])
    filled = ((a != 0) | (b != 0)).reshape(len(a), -1).mean(axis=1)
    out: list[Agreement | None] = [None] * len(a)
    plain, done = _agreements(a, b, filled, usual)
    apart = [i for i, one in plain.items() if one[1] < SAME]
    for i in done - {*apart}:
        out[i] = plain[i]
    if apart:
        x, y = (_normalised(_picked(side, apart), free) for side in (a, b))
        scaled, _ = _agreements(x, y, filled[apart], _usual(x) & _usual(y))
        for k, i in enumerate(apart):
            out[i] = max(plain[i], scaled[k]) if k in scaled else None
    return out


def _usual(x: np.ndarray) -> np.ndarray:
    """Blocks whose squares float32 holds."""
    flat = x.reshape(len(x), -1)
    largest = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
    return (largest > EXTREME[0]) & (largest < EXTREME[1])


def _maybe_table(x: np.ndarray) -> np.ndarray:
    """Blocks of which some rows may be waves, `[blocks, …]`; see `is_table`."""
    out = np.zeros(len(x), bool)
    for axis in range(1, x.ndim):
        length = x.shape[axis]
        if length < 16:
            continue
        rows = np.moveaxis(x, axis, -1).reshape(len(x), -1, length)
        rows = rows[:, :: max(1, rows.shape[1] // ROWS)][:, :ROWS]
        out |= ~(np.ptp(rows, axis=2) > 0).all(axis=1)
        probe = rows[:, 1:3].astype(np.float64)
        if probe.shape[1]:
            out |= waves(probe.reshape(-1, length)).reshape(len(x), -1).any(axis=1)
    return out


def _agreements(
    a: np.ndarray, b: np.ndarray, filled: np.ndarray, usual: np.ndarray
) -> tuple[dict[int, Agreement], set[int]]:  # fmt: skip
    """Agreements by number of the blocks in which every unit carries information."""
    u, v = _directions(a), _directions(b)
    usual = usual & _all_informative(u) & _all_informative(v)
    places = np.flatnonzero(usual).tolist()
    if not places or u.shape[1] < FEWEST:
        return {}, set()
    u, v = np.ascontiguousarray(u[places]), np.ascontiguousarray(v[places])  # as rows that were picked are laid out
    similarity = np.matmul(u, v.transpose(0, 2, 1))
    own = np.ascontiguousarray(similarity.diagonal(axis1=1, axis2=2))
    numbers = free_numbers_of_many(similarity, u.shape[2])
    out = {}
    for i, cosines, free in zip(places, own, numbers, strict=True):
        exponent = float(filled[i]) * free
        out[i] = float(gains(cosines, exponent).sum()), float(cosines.mean()), exponent, len(cosines)
    return out, {*out}


def _directions(x: np.ndarray) -> np.ndarray:
    """As `blocks.directions`, of blocks; units without content are zero."""
    units = x.reshape(*x.shape[:2], -1)
    norm = np.linalg.norm(units, axis=2, keepdims=True)
    least = np.maximum(norm.max(axis=1, keepdims=True), np.float32(1e-30)) * np.float32(FAINT)
    alive = norm > least
    out = np.multiply(units, np.where(alive, 1 / np.where(alive, norm, 1), 0), dtype=np.float32, casting="same_kind")
    count = alive.sum(axis=1, keepdims=True)
    common = out.sum(axis=1, keepdims=True) / np.maximum(count, 1).astype(np.float32)
    out -= np.where(count >= 2, alive * common, 0)
    norm = np.linalg.norm(out, axis=2, keepdims=True)
    out *= np.where(norm > 1e-5, 1 / np.where(norm > 0, norm, 1), 0)
    return out


def _all_informative(u: np.ndarray) -> np.ndarray:
    """Blocks of which no unit is zero, and none a duplicate of another."""
    gram = np.abs(np.matmul(u, u.transpose(0, 2, 1)))
    places = np.arange(u.shape[1])
    gram[:, places, places] = 0
    return np.all(u.any(axis=2), axis=1) & ~(gram > DUPLICATE).any(axis=(1, 2))


def _normalised(x: np.ndarray, free: tuple[int, ...]) -> np.ndarray:
    """As `blocks.normalise_axes`, of the rows of units and of the axes that carry units."""
    rows = x.reshape(len(x), -1, *x.shape[3:])
    for _ in range(ROUNDS):
        for axis in (1, *free):
            others = tuple(i for i in range(1, rows.ndim) if i != axis)
            rms = np.sqrt(np.mean(rows * rows, axis=others, keepdims=True, dtype=np.float64)).astype(rows.dtype)
            top = rms.reshape(len(rms), -1).max(axis=1).reshape(-1, *(1,) * (rms.ndim - 1))
            rows = rows / np.where(rms > np.float32(FAINT) * top, rms, 1)
    return rows.reshape(x.shape)
