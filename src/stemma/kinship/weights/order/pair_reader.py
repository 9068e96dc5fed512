"""Reads paired tensors of two models into one order of axes, only as far as a test needs them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.correspondence import Pairing
from stemma.types import UnitGroup, UnitMember

WHOLE = 1 << 17
"""Largest tensor, in entries, that is read whole; of larger ones the first rows are read."""

COORDINATES = 512
"""Evenly spaced entries of a unit that a test uses; more add nothing."""


@dataclass(frozen=True)
class AlignedTensors:
    """Both tensors of a pairing in A's order of axes; rows of the first stored axis may be cut off."""

    a: np.ndarray
    b: np.ndarray


@dataclass(frozen=True)
class PairReader:
    """Reads and keeps the cuts of a pair of models.

    Attributes:
        a: First model.
        b: Second model.
        pairings: By name in A.
        entries: Tensors up to this size are read whole, of longer ones about as many entries.
        least: But at least so many rows.
    """

    a: Model
    b: Model
    pairings: Mapping[str, Pairing]
    entries: int = WHOLE
    least: int = 256
    _kept: dict[str, AlignedTensors] = field(default_factory=dict)

    def __getitem__(self, name: str) -> AlignedTensors:
        """The aligned tensors for A's tensor `name`, axes of length 1 removed, non-finite entries zero."""
        if name not in self._kept:
            p = self.pairings[name]
            ta, tb = self.a.weights[p.a], self.b.weights[p.b]
            rows = rows_to_read(ta, self.entries, self.least)
            if tb.leading is not None and p.axes_a[:1] == p.axes_b[:1] == (0,):
                rows = min(rows, tb.readable)
            x = _read(ta, p.axes_a, 0, rows if 0 in p.axes_a else ta.shape[0])
            first = p.axes_b[p.axes_a.index(0)] if 0 in p.axes_a else None
            limit = rows if first is not None and rows < ta.shape[0] else None
            y = _read(tb, p.axes_b, first, limit)
            self._kept[name] = AlignedTensors(x, y)
        return self._kept[name]

    def slices(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All of a pair of tensors that was read, some rows at a time if both store the same axis first."""
        p = self.pairings[name]
        ta, tb = self.a.weights[p.a], self.b.weights[p.b]
        together = p.axes_a[0] == 0 and p.axes_b[0] == 0 and ta.shape[0] == tb.shape[0]
        if not together:
            yield _read(ta, p.axes_a, None, None), _read(tb, p.axes_b, None, None)
            return
        step = max(1, (1 << 20) // max(1, ta.size // ta.shape[0]))
        last = min(ta.readable, tb.readable)
        for start in range(0, last, step):
            stop = min(start + step, last)
            yield _ordered(ta.rows(start, stop), p.axes_a), _ordered(tb.rows(start, stop), p.axes_b)

    def drop(self, name: str) -> None:
        """Release a pair that no later group needs."""
        self._kept.pop(name, None)


def rows_to_read(tensor: Tensor, entries: int, least: int) -> int:
    """How many first rows make about `entries` entries, but at least `least` rows."""
    if tensor.size <= entries or not tensor.shape[0]:
        return tensor.readable
    return min(tensor.readable, max(least, entries // (tensor.size // tensor.shape[0])))


def _read(tensor: Tensor, axes: tuple[int, ...], limited: int | None, limit: int | None) -> np.ndarray:
    """Decode a tensor with one axis cut to `limit`, axes in the given order, axes of length 1 dropped."""
    if limit is not None and limited == 0:
        array = tensor.rows(0, min(limit, tensor.shape[0]))
    elif limit is not None and limited is not None:
        step = max(1, WHOLE // max(1, tensor.size // tensor.shape[0]))
        cut = tuple(slice(None) if i != limited else slice(0, limit) for i in range(len(tensor.shape)))
        parts = [
            tensor.rows(s, min(s + step, tensor.shape[0]))[(slice(None), *cut[1:])].copy()
            for s in range(0, tensor.shape[0], step)
        ]
        array = np.concatenate(parts)
    else:
        array = tensor.array()
    return _ordered(array, axes)


def _ordered(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The given axes in that order; the others have length 1."""
    rest = [i for i in range(array.ndim) if i not in axes]
    array = array.transpose(*axes, *rest)
    return finite(array.reshape(array.shape[: len(axes)]))


def finite(x: np.ndarray) -> np.ndarray:
    """The array as float32 with non-finite entries zero; not copied where that is so already."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(x, np.float32)
        total = x.sum()
    return x if np.isfinite(total) else np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def unit_vectors(array: np.ndarray, axis: int, members: tuple[UnitMember, ...], size: int) -> np.ndarray:
    """Units of a group as rows `[units, block * coordinates]`; units with missing rows are left out."""
    moved = np.moveaxis(array, axis, 0)
    moved = moved.reshape(moved.shape[0], -1)
    parts, count = [], size
    for m in members:
        index = m.offset + _positions(m, size)
        count = min(count, int((index.max(axis=1) < len(moved)).sum()) if index.size else 0)
        parts.append(index)
    if not count:
        return np.zeros((0, 1), np.float32)
    step = -(-sum(p.shape[1] for p in parts) * moved.shape[1] // COORDINATES)
    thinned = moved[:, :: max(1, min(step, moved.shape[1]))]
    return np.concatenate([thinned[i[:count]].reshape(count, -1) for i in parts], axis=1)


def _positions(member: UnitMember, size: int) -> np.ndarray:
    """Rows of every unit relative to the offset: contiguous, or `stride` apart (interleaved layouts)."""
    unit, row = np.arange(size)[:, None], np.arange(member.block)[None, :]
    return unit * member.block + row if member.stride == 1 else unit + row * member.stride


def owned_members(groups: tuple[UnitGroup, ...]) -> dict[str, list[tuple[str, int, tuple[UnitMember, ...]]]]:
    """Give every tensor axis to the latest group that its tensor touches.

    Given the earlier groups, each later group's matching is then a uniform permutation under the null, so that the
    groups' statistics are independent by construction. Source: docs/methods/weight_tests.md, "one statistic per group".

    Returns:
        For each group name: (tensor, axis, segments) triples.
    """
    touching: dict[str, list[tuple[UnitGroup, UnitMember]]] = {}
    for g in groups:
        for m in g.members:
            touching.setdefault(m.tensor, []).append((g, m))
    out: dict[str, list[tuple[str, int, tuple[UnitMember, ...]]]] = {g.name: [] for g in groups}
    for tensor, pairs in touching.items():
        for axis in sorted({m.axis for _, m in pairs}):
            elsewhere = max((g.order for g, m in pairs if m.axis != axis), default=-1)
            for g in {g.name: g for g, m in pairs if m.axis == axis}.values():
                segments = tuple(m for h, m in pairs if h.name == g.name and m.axis == axis)
                same_elsewhere = any(h.name == g.name and m.axis != axis for h, m in pairs)
                if g.order > elsewhere and not same_elsewhere:
                    out[g.name].append((tensor, axis, segments))
    return out
