"""Detection of quantisation grids: few levels, with one step per tensor, row, column or block."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.order.pair_reader import finite
from stemma.kinship.weights.residual import rounding

ROWS = 48
"""Rows of a tensor that are used, evenly spread."""

GROUPS = 96
"""Groups of one step whose spacing is used; twice as many blocks are read, in case some show nothing."""

BLOCKS = (256, 128, 64, 32, 16)
"""Lengths of blocks that share a step, longest first."""

MAX_LEVELS = 257
"""Most levels of a quantisation grid (8 bits)."""

MIN_VALUES = 6
"""Distinct values that a group needs for its spacing to be used."""

MAX_MISSES = 0.25
"""Largest share of groups without a step: with few distinct values none may be neighbours on the grid."""

READ = 1 << 18
"""Entries of a matrix that are read to decide whether a model is quantised."""

MIN_SHARE = 0.25
"""Share of entries on a grid from which a model counts as quantised."""

CACHE_SIZE = 1024
"""Tensors whose grid is cached, because a search compares every model many times."""

PEEK, TABLE = 8, 17
"""Groups that are checked first, and most values of a lookup table of levels."""

MOST_SLACK = 0.2
"""Steps by which rounding may move a value for it to be checked against the grid."""

EXACT = 0.02
"""How far from a multiple of the step a value may lie, in steps, beside the rounding of its number format."""


@dataclass(frozen=True)
class Grid:
    """A grid that a tensor's values lie on.

    Attributes:
        bits: Bits that its levels take.
        levels: Largest number of levels of any group, 0 where the levels are a table of unequal steps.
        per: What shares one step: `tensor`, `row`, `column` or `block of N`.
        symmetric: Zero is the middle of the codes; otherwise they have a zero point.
        uniform: All steps are equal; otherwise the levels come from a table (as NF4's do).
        variance: Mean square of the error that rounding to it makes.
        groups: Number of groups of the tensor, each with its own step.
    """

    bits: int
    levels: int
    per: str
    symmetric: bool
    uniform: bool
    variance: float
    groups: int


def grid_of(values: np.ndarray, rounding: float) -> Grid | None:
    """The coarsest grid of a tensor `[rows, …]` for its relative rounding error, cached; None if over 256 levels."""
    key = cache_key(values, rounding)
    if key not in _cache:
        return remembered(key, _grid_of(np.ascontiguousarray(values), rounding))
    return _cache.get(key)


Key = tuple[bytes, tuple[int, ...], str, float]
_cache: dict[Key, Grid | None] = {}


def cache_key(values: np.ndarray, rounding: float) -> Key:
    """What the grid of a tensor is remembered under."""
    contents = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=20).digest()
    return contents, values.shape, values.dtype.str, rounding


def is_remembered(key: Key) -> bool:
    """Whether it is known on which grid a tensor lies, or that it lies on none."""
    return key in _cache


def remembered(key: Key, grid: Grid | None) -> Grid | None:
    """The same grid, which is remembered; the oldest is forgotten."""
    while len(_cache) >= CACHE_SIZE:
        _cache.pop(next(iter(_cache)), None)
    _cache[key] = grid
    return grid


def _grid_of(values: np.ndarray, rounding: float) -> Grid | None:
    flat = values.reshape(len(values), -1)
    chosen = flat[:: max(1, -(-len(flat) // ROWS))]
    if chosen.size < 32 or not np.any(chosen):
        return None
    for per, groups, count in _groupings(flat, chosen):
        found = _on_grid(groups, rounding)
        if found is not None:
            return _grid(found, per, count)
    return None


def _groupings(flat: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[str, list[np.ndarray], int]]:
    """Ways to share a step, the one with the fewest steps first."""
    yield "tensor", [chosen.reshape(-1)], 1
    width = flat.shape[1]
    yield "row", list(chosen), len(flat)
    if len(flat) >= 32:
        yield "column", list(flat[:4096].T[:: max(1, width // ROWS)][:ROWS]), width
    for block in BLOCKS:
        if block < width:
            places = [(k, i) for k in range(len(chosen)) for i in range(0, width, block)]
            some = places[:: max(1, len(places) // (2 * GROUPS))]
            parts = [chosen[k, i : i + block] for k, i in some]
            yield f"block of {block}", parts, len(flat) * -(-width // block)


@dataclass(frozen=True)
class _Steps:
    """Step, lowest and highest code of each informative group of one grouping."""

    step: np.ndarray
    low: np.ndarray
    high: np.ndarray
    table: int = 0


def _on_grid(groups: list[np.ndarray], rounding: float) -> _Steps | None:
    if _dense(groups, rounding):
        return None
    found, misses, informative = [], 0, []
    for group in groups:
        u = _distinct(group)
        informative += [u] if 2 <= len(u) < MIN_VALUES else []
        if len(u) < MIN_VALUES:
            continue
        one = _step(u, rounding)
        misses += one is None
        found += [] if one is None else [one]
        none = misses == PEEK and not found  # with as many groups on a grid as it takes, one in ten thousand
        if none or len(found) + misses == GROUPS or misses > MAX_MISSES * GROUPS:
            break
    if not found and not misses:
        return (_few_values(groups, informative) or _table(groups)) if sum(g.size for g in groups) >= 32 else None
    if misses > MAX_MISSES * (len(found) + misses):
        return _table(groups)
    step, low, high = np.array(found).T
    return _Steps(step, low, high)


def _dense(groups: list[np.ndarray], rounding: float) -> bool:
    """Whether a few groups already show that there is no grid, because their values are too close together."""
    few = [u for g in groups[:: max(1, len(groups) // PEEK)][:PEEK] if len(u := _distinct(g)) >= MIN_VALUES]
    if len(few) < min(PEEK, len(groups)):
        return False
    for u in few:
        top = float(np.abs(u).max())
        small = max(float(np.diff(u).min()), top * rounding * 2)
        if (u[-1] - u[0]) / small <= 1.15 * MAX_LEVELS:
            return False
    return any(len(np.unique(np.round(u / np.abs(u).max(), 2))) > TABLE for u in few)


def _distinct(group: np.ndarray) -> np.ndarray:
    """Distinct finite values of a group."""
    return np.unique(group[np.isfinite(group)].astype(np.float64))


def _step(u: np.ndarray, rounding: float) -> tuple[float, float, float] | None:
    """The step of which all values are multiples, with the lowest and the highest code."""
    largest, gaps = np.abs(u).max(), np.diff(u)
    small = max(gaps.min(), largest * rounding * 2)
    if (u[-1] - u[0]) / small > 1.15 * MAX_LEVELS:
        return None
    for divisor in (1, 2, 3):
        step = float(np.median(gaps[gaps < 1.5 * small])) / divisor
        if (u[-1] - u[0]) / step > MAX_LEVELS - 1:
            return None
        for origin in (0.0, u[0]):
            fitted = _fitted(u - origin, step)
            codes = (u - origin) / fitted
            slack = EXACT + 2 * rounding * np.abs(u) / fitted
            usable = slack <= MOST_SLACK  # large codes may be rounded by a whole step: they show nothing
            if usable.sum() >= MIN_VALUES and (np.abs(codes - np.rint(codes)) <= slack)[usable].all():
                return fitted, round(float(codes[0])), round(float(codes[-1]))
    return None


def _fitted(values: np.ndarray, step: float) -> float:
    """A step by least squares, from the smallest codes outwards: an error of 1 % is a whole code at code 100."""
    for limit in (8, 32, MAX_LEVELS):
        codes = np.rint(values / step)
        near = np.abs(codes) <= limit
        square = float(codes[near] @ codes[near])
        step = step * float((values[near] / step) @ codes[near]) / square if square else step
    return step


def _few_values(groups: list[np.ndarray], informative: list[np.ndarray]) -> _Steps | None:
    """Groups of very few values (one or two bits), where repetition is the evidence."""
    if not informative or any(
        g.size < 8 * len(u) for g, u in zip(groups, map(_distinct, groups), strict=True) if g.size
    ):
        return None
    steps = [(float(np.diff(u).min()), u) for u in informative]
    if any((np.abs(np.diff(u) / s - np.rint(np.diff(u) / s)) > EXACT).any() for s, u in steps):
        return None
    codes = [(s, round(u[0] / s), round(u[-1] / s)) for s, u in steps]
    step, low, high = np.array(codes).T
    return _Steps(step, low, high)


def _table(groups: list[np.ndarray]) -> _Steps | None:
    """At most sixteen distinct values at any spacing, once every group is divided by its largest entry."""
    groups = [g for g in groups if g.size >= MIN_VALUES]
    first = next((g for g in groups if np.any(g)), np.zeros(1))
    if len(np.unique(np.round(first.astype(np.float64) / (float(np.abs(first).max()) or 1.0), 2))) > TABLE:
        return None
    tops = np.array([float(np.abs(g).max()) for g in groups])
    scaled = [np.round(g.astype(np.float64) / top, 2) for g, top in zip(groups, tops, strict=True) if top > 0]
    values = np.concatenate(scaled) if scaled else np.zeros(0)
    levels = np.unique(values)
    if not 2 <= len(levels) <= 17 or values.size < 16 * len(levels):
        return None
    even = len(levels) > 2 and bool(np.ptp(np.diff(levels)) < 0.021)
    half = np.array([(len(levels) - 1) / 2])
    step = tops[tops > 0] * 2 / (len(levels) - 1)
    return _Steps(step, -half, half, table=0 if even else len(levels))


def _grid(found: _Steps, per: str, groups: int) -> Grid:
    variance = float(np.mean(found.step**2)) / 12
    if found.table:
        return Grid(int(np.ceil(np.log2(found.table - 0.5))), 0, per, True, False, variance, groups)
    spans = found.high - found.low
    top = np.maximum(np.abs(found.low), np.abs(found.high))
    limit = int(top.max())
    levels = int(spans.max()) + 1
    # With a zero point every group spans all codes; without, every group reaches the same largest code.
    symmetric = float(np.mean(top == limit)) >= max(0.5, float(np.mean(spans >= levels - 2)))
    bits = int(np.ceil(np.log2(limit + 1))) + 1 if symmetric else int(np.ceil(np.log2(max(2, levels))))
    return Grid(max(1, min(8, bits)), levels, per, symmetric, True, variance, groups)


def grid_like(values: np.ndarray, like: Grid) -> Grid:
    """The grid that a tensor (rows are units) would have if it was rounded like another one."""
    flat = values.reshape(len(values) if like.per != "tensor" else 1, -1).astype(np.float64)
    top = np.abs(flat).max(axis=1)
    spans = flat.max(axis=1, initial=0.0) - flat.min(axis=1, initial=0.0)
    steps = top / max(1, 2 ** (like.bits - 1) - 1) if like.symmetric else spans / (2**like.bits - 1)
    return replace(like, variance=float(np.mean(steps**2)) / 12, groups=len(flat))


def lies_on_grid(model: Model) -> bool:
    """Whether a model was quantised: at least `MIN_SHARE` of its entries are codes or lie on a grid."""
    found = matrices(model)
    on = 0
    for name, tensor in found.items():
        stored = model.tensors.get(name)
        if stored is not None and not stored.is_float:
            on += tensor.size
        else:
            few = tensor.rows(0, max(1, min(tensor.readable, READ // max(1, tensor.size // tensor.shape[0]))))
            on += tensor.size if grid_of(finite(few), rounding(model, name)) else 0
    return on >= MIN_SHARE * max(1, sum(t.size for t in found.values()))
