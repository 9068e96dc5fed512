"""Unit vectors of a pair of tensors, read through maps of their other axes into one order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.maps.axis_map import AxisMap, Part
from stemma.kinship.weights.order.pair_reader import finite

WHOLE, KEPT, SLICE = 1 << 22, 1 << 24, 1 << 20
"""Largest tensor that is read whole and cached, most cached entries, and entries of a larger tensor decoded at once."""

ROUNDS = 5
"""Rounds of alternating normalisation; rescaled copies agree to rounding after more rounds."""

FAINT = 1e-9
"""Relative norm below which a unit counts as zero."""

EXTREME = 1e-12, 1e12
"""Largest entries between which squares of float32 are safe."""


@dataclass(eq=False)
class TensorReader:
    """Reads parts of the tensors of a model, and caches the small ones.

    Attributes:
        model: The model.
        whole: Entries up to which a tensor is read whole and kept: it is read again while a map is searched.
    """

    model: Model
    whole: int = WHOLE
    _kept: dict[str, np.ndarray] = field(default_factory=dict)
    _entries: int = 0

    def take(self, name: str, axes: Sequence[int], picks: Mapping[int, np.ndarray]) -> np.ndarray:
        """Some rows of some axes, float32, non-finite entries zero; decodes only the rows needed."""
        tensor = self.model.weights[name]
        if tensor.size <= self.whole and tensor.leading is None:
            return _ordered(_pick(self._whole(name, tensor), picks), axes)
        return _ordered(_read(tensor, picks), axes)

    def _whole(self, name: str, tensor: Tensor) -> np.ndarray:
        if name not in self._kept:
            while self._kept and self._entries + tensor.size > KEPT:
                self._entries -= self._kept.pop(next(iter(self._kept))).size
            self._kept[name] = finite(tensor.array())
            self._entries += tensor.size
        return self._kept[name]


def _read(tensor: Tensor, picks: Mapping[int, np.ndarray]) -> np.ndarray:
    """Rows of the first axis in ascending runs, cut down as soon as they are decoded."""
    order = picks.get(0, np.arange(tensor.shape[0]))
    rest = {axis: rows for axis, rows in picks.items() if axis}
    place = np.argsort(order, kind="stable")
    shape = tuple(len(rest[i]) if i in rest else n for i, n in enumerate(tensor.shape))[1:]
    out = np.empty((len(order), *shape), np.float32)
    row = max(1, tensor.size // tensor.shape[0])
    for start, stop in _runs(order[place], max(1, SLICE // row)):
        out[place[start:stop]] = _pick(finite(tensor.take(order[place[start:stop]])), rest)
    return out


def _runs(ascending: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Stretches of rows that are read at once: as many as span no more than a slice, or one."""
    start = 0
    while start < len(ascending):
        stop = max(start + 1, int(np.searchsorted(ascending, ascending[start] + longest)))
        yield start, stop
        start = stop


def _pick(array: np.ndarray, picks: Mapping[int, np.ndarray]) -> np.ndarray:
    for axis, rows in picks.items():
        if len(rows) != array.shape[axis] or (np.diff(rows) != 1).any():
            array = np.take(array, rows, axis=axis)
    return array


def _ordered(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    rest = [i for i in range(array.ndim) if i not in axes]
    array = array.transpose(*axes, *rest)
    return array.reshape(array.shape[: len(axes)])


@dataclass(frozen=True, eq=False)
class UnitBlock:
    """Units of both sides with the same coordinates, in one order of coordinates.

    Attributes:
        a: `[units of the reference, rows per unit, coordinates, …]`.
        b: The same of the target.
        free: Which of the coordinate axes carry units, so that positive factors on them mean nothing.
        seen: Rows of the reference that were read, by position of the axis in the pairing.
    """

    a: np.ndarray
    b: np.ndarray
    free: tuple[int, ...]
    seen: Mapping[int, np.ndarray] = field(default_factory=dict)

    def of(self, rows: np.ndarray, columns: np.ndarray) -> "UnitBlock":
        """The block of some units of the reference and as many of the target."""
        return replace(self, a=self.a[rows], b=self.b[columns])

    def vectors(self, *, rescaled: bool, signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Unit directions of both sides without their common part; zero for uninformative units."""
        a = self._side(self.a, rescaled=rescaled, signed=signed)
        return a, self._side(self.b, rescaled=rescaled, signed=signed)

    def _side(self, x: np.ndarray, *, rescaled: bool, signed: bool) -> np.ndarray:
        """Units as rows; a unit of several rows may have one factor per row."""
        if rescaled:
            rows = x.reshape(-1, *x.shape[2:])
            x = normalise_axes(rows, (0, *(axis - 1 for axis in self.free))).reshape(x.shape)
        return directions(x.reshape(len(x), -1), signed=signed)


def directions(units: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Units `[units, coordinates]` at norm 1 without their common direction (kept where signs are free)."""
    units = safely_scaled(units)
    norm = np.linalg.norm(units, axis=1, keepdims=True)
    alive = norm > FAINT * max(float(norm.max(initial=0.0)), 1e-30)
    x = np.multiply(units, np.where(alive, 1 / np.where(alive, norm, 1), 0), dtype=np.float32, casting="same_kind")
    if alive.sum() >= 2 and not signed:
        x -= alive * (x.sum(axis=0) / np.float32(alive.sum()))
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x *= np.where(norm > 1e-5, 1 / np.where(norm > 0, norm, 1), 0)
    return x


def safely_scaled(x: np.ndarray) -> np.ndarray:
    """The array, divided by a power of two if squares of its entries would overflow or vanish."""
    largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    if not largest or EXTREME[0] < largest < EXTREME[1]:
        return x
    return np.ldexp(x, -int(np.frexp(largest)[1]))


def normalise_axes(x: np.ndarray, axes: Sequence[int], rounds: int = ROUNDS) -> np.ndarray:
    """Divide out positive factors along some axes, so that the root mean square is 1 at every place of them."""
    x = safely_scaled(x)
    for _ in range(rounds):
        for axis in axes:
            others = tuple(i for i in range(x.ndim) if i != axis)
            rms = np.sqrt(np.mean(x * x, axis=others, keepdims=True, dtype=np.float64)).astype(x.dtype)
            x = x / np.where(rms > FAINT * float(rms.max(initial=0.0)), rms, 1)
    return x


@dataclass(eq=False)
class MappedPair:
    """Readers of the reference and of the target, through maps of rows."""

    reference: TensorReader
    target: TensorReader

    def whole(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Both sides of a part, unmapped, with the axes of the pairing."""
        p = part.pairing
        own = {i: np.arange(x.a) + x.start for i, x in zip(p.axes_a, part.axes, strict=True)}
        other = {j: np.arange(x.b) + x.start for j, x in zip(p.axes_b, part.axes, strict=True)}
        return self.reference.take(p.a, p.axes_a, own), self.target.take(p.b, p.axes_b, other)

    def corners(self, part: Part, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first rows and columns of both sides, as matrices."""
        p = part.pairing
        read_a, read_b = self.reference.model.weights[p.a].readable, self.target.model.weights[p.b].readable
        own = {i: _first(min(x.a, length), x.start, i, read_a) for i, x in zip(p.axes_a, part.axes, strict=True)}
        other = {j: _first(min(x.b, length), x.start, j, read_b) for j, x in zip(p.axes_b, part.axes, strict=True)}
        x, y = self.reference.take(p.a, p.axes_a, own), self.target.take(p.b, p.axes_b, other)
        return x.reshape(len(x), -1), y.reshape(len(y), -1)

    def block(
        self, part: Part, maps: Sequence[AxisMap | None], axis: int, coordinates: int,
        units: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> UnitBlock | None:  # fmt: skip
        """The units of one axis, seen from all others.

        Args:
            part: The pair of tensors, or stretches of them.
            maps: A map of rows for every other axis.
            axis: Position of the axis whose units are wanted.
            coordinates: About how many coordinates of a unit are read, evenly spaced.
            units: Rows by unit, of both sides; all units of the axis unless given.

        Returns:
            The block; None where another axis has no map, or nothing on it has a counterpart.
        """
        axes = part.axes
        others = [k for k in range(len(axes)) if k != axis]
        known = [maps[k] for k in others]
        if any(m is None or not len(m.rows) for m in known):
            return None
        own, other = units if units is not None else (axes[axis].units(), axes[axis].units_of_target())
        if not len(own) or not len(other) or own.shape[1] != other.shape[1]:
            return None
        picks = dict(
            zip(others, _evenly_spaced([len(m.rows) for m in known if m is not None], coordinates), strict=True)
        )
        x, y = self._read_mapped(part, maps, picks, {axis: (own.reshape(-1), other.reshape(-1))})
        x, y = np.moveaxis(x, axis, 0), np.moveaxis(y, axis, 0)
        seen = {axis: own.reshape(-1)} | {
            k: m.rows[picks[k]] for k, m in zip(others, known, strict=True) if m is not None
        }
        free = tuple(2 + i for i, k in enumerate(others) if axes[k].free)
        return UnitBlock(x.reshape(*own.shape, *x.shape[1:]), y.reshape(*other.shape, *y.shape[1:]), free, seen)

    def mapped_entries(self, part: Part, maps: Sequence[AxisMap], entries: int) -> tuple[np.ndarray, np.ndarray]:
        """About so many entries of both sides, brought into one order by maps of all axes."""
        picks = dict(enumerate(_evenly_spaced([len(m.rows) for m in maps], entries)))
        return self._read_mapped(part, maps, picks, {})

    def _read_mapped(
        self, part: Part, maps: Sequence[AxisMap | None], picks: Mapping[int, np.ndarray],
        units: Mapping[int, tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Read both sides: mapped axes at some places of their maps, others at rows of their own."""
        p, own, other = part.pairing, {}, {}
        for k, (i, j, axis) in enumerate(zip(p.axes_a, p.axes_b, part.axes, strict=True)):
            m = maps[k]
            if k in units or m is None:
                rows, columns = units[k]
            else:
                rows, columns = m.rows[picks[k]], m.columns[picks[k]]
                rows = np.arange(axis.a) if m.rotation is not None else rows
            own[i], other[j] = rows + axis.start, columns + axis.start
        x = self.reference.take(p.a, p.axes_a, own)
        y = self.target.take(p.b, p.axes_b, other)
        for k, index in picks.items():
            m = maps[k]
            if m is not None and m.rotation is not None:
                x = np.moveaxis(np.tensordot(x, m.rotation[:, m.columns[index]], axes=(k, 0)), -1, k)
            elif m is not None and m.signs is not None:
                x = x * _along(m.signs[index], k, x.ndim)
        return x, y


def _first(rows: int, start: int, axis: int, readable: int) -> np.ndarray:
    """The first rows of an axis from some row on, as far as they were read."""
    return np.arange(min(rows, max(0, readable - start)) if axis == 0 else rows) + start


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return values.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(ndim)])


def _evenly_spaced(sizes: Sequence[int], wanted: int) -> list[np.ndarray]:
    """Evenly spaced positions on every axis whose product is about as large as wanted."""
    keep = list(sizes)
    while keep and int(np.prod(keep)) > wanted and max(keep) > 1:
        longest = int(np.argmax(keep))
        room = wanted // max(1, int(np.prod(keep)) // keep[longest])
        keep[longest] = room if room else keep[longest] // 2
    return [np.unique(np.linspace(0, n - 1, k).round().astype(int)) for n, k in zip(sizes, keep, strict=True)]
