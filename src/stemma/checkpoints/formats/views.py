"""Storages over other storages: offsets, byte swapping, strided views, concatenations; each read in slices."""

import bisect
import itertools
import math
import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stemma.checkpoints.tensor import CHUNK, AbstractStorage, fill

BLOCK = 32 << 20
"""Bytes of a strided view that are gathered at once: short runs are slow to read slice by slice."""
_LAST_BLOCK = threading.local()
"""The block that this thread gathered last, and its storage: the next slice is usually in it."""


@dataclass(frozen=True)
class OffsetStorage(AbstractStorage):
    """The bytes of another storage from `offset` on."""

    base: AbstractStorage
    offset: int

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        self.base.read_into(self.offset + start, out)


@dataclass(frozen=True)
class ByteSwappedStorage(AbstractStorage):
    """Big-endian numbers as little-endian ones.

    Attributes:
        base: The stored bytes.
        width: Bytes per number (per part of a complex number).
    """

    base: AbstractStorage
    width: int

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""

        def swapped(first: int, last: int) -> np.ndarray:
            raw = np.empty((last - first, self.width), np.uint8)
            self.base.read_into(first * self.width, raw.reshape(-1).data)
            return np.ascontiguousarray(raw[:, ::-1]).reshape(-1)

        fill(start, out, self.width, CHUNK // self.width, swapped)


@dataclass(frozen=True)
class StridedStorage(AbstractStorage):
    """A view whose consecutive elements are not consecutive in the file (transposed, sliced, Fortran order).

    One gathered block of at most `BLOCK` bytes (or one row, if larger) is held per reading thread.

    Attributes:
        base: The stored bytes.
        itemsize: Bytes per element.
        offset: Elements before the view's first.
        shape: Of the view: at least one axis, none empty.
        strides: Elements between neighbours on each axis, not negative.

    """

    base: AbstractStorage
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        row = self.itemsize * math.prod(self.shape[1:])
        outer = self._outer()
        extent = 1 + sum((self.shape[i] - 1) * self.strides[i] for i in range(1, len(self.shape)) if i not in outer)
        runs = math.prod(self.shape[i] for i in outer)
        room = BLOCK // (self.itemsize * runs) - extent
        step = max(1, min(BLOCK // row, room // self.strides[0] if self.strides[0] else BLOCK // row))
        fill(start, out, row, step, lambda first, last: self._block(first, last, step, row))

    def _block(self, first: int, last: int, step: int, row: int) -> np.ndarray:
        begin = first // step * step
        key = (begin, step)
        if getattr(_LAST_BLOCK, "storage", None) is not self or _LAST_BLOCK.key != key:
            _LAST_BLOCK.storage, _LAST_BLOCK.rows = None, None  # the old block goes before the new one comes
            _LAST_BLOCK.rows = self._rows(begin, min(begin + step, self.shape[0]))
            _LAST_BLOCK.storage, _LAST_BLOCK.key = self, key
        return _LAST_BLOCK.rows[(first - begin) * row : (last - begin) * row]

    def _outer(self) -> list[int]:
        return [i for i in range(1, len(self.shape)) if self.strides[i] > self.strides[0]]

    def _rows(self, first: int, last: int) -> np.ndarray:
        outer = self._outer()
        inner = [i for i in range(1, len(self.shape)) if i not in outer]
        extent = 1 + (last - first - 1) * self.strides[0] + sum((self.shape[i] - 1) * self.strides[i] for i in inner)
        sizes = tuple(self.shape[i] for i in outer)
        raw = np.empty((math.prod(sizes), extent, self.itemsize), np.uint8)
        for run, index in zip(raw, itertools.product(*map(range, sizes)), strict=True):
            at = (
                self.offset
                + first * self.strides[0]
                + sum(i * self.strides[a] for i, a in zip(index, outer, strict=True))
            )
            self.base.read_into(at * self.itemsize, run.reshape(-1).data)
        steps = (*(self.strides[i] * self.itemsize for i in (0, *inner)), 1)
        view = np.lib.stride_tricks.as_strided(
            raw.reshape(*sizes, -1), (*sizes, last - first, *(self.shape[i] for i in inner), self.itemsize),
            (*raw.reshape(*sizes, -1).strides[:-1], *steps),
        )  # fmt: skip
        order = [*outer, 0, *inner]
        back = [order.index(i) for i in range(len(self.shape))]
        return np.ascontiguousarray(view.transpose(*back, len(self.shape))).reshape(-1)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of C order, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements of a view follow one another in C order."""
    return 0 in shape or all(n == 1 or s == c for n, s, c in zip(shape, strides, contiguous(shape), strict=True))


def strided_storage(
    base: AbstractStorage, itemsize: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> AbstractStorage:
    """The storage of a view, as direct as its strides (in elements) allow."""
    if is_contiguous(shape, strides):
        return OffsetStorage(base, offset * itemsize) if offset else base
    return StridedStorage(base, itemsize, offset, shape, strides)


@dataclass(frozen=True)
class ConcatStorage(AbstractStorage):
    """Concatenated storages, each with its number of bytes."""

    parts: tuple[tuple[AbstractStorage, int], ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(length for _, length in self.parts))

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        done, i = 0, bisect.bisect_right(self._ends, start)
        while done < len(out) and i < len(self.parts):
            part, length = self.parts[i]
            at = start + done - (self._ends[i] - length)
            n = min(length - at, len(out) - done)
            part.read_into(at, out[done : done + n])
            done, i = done + n, i + 1


@dataclass(frozen=True)
class ColumnConcatStorage(AbstractStorage):
    """Matrices with equal row counts, concatenated along columns, each with the bytes of its row."""

    parts: tuple[tuple[AbstractStorage, int], ...]

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        row = sum(width for _, width in self.parts)
        fill(start, out, row, max(1, CHUNK // row), self._rows)

    def _rows(self, first: int, last: int) -> np.ndarray:
        rows = []
        for part, width in self.parts:
            raw = np.empty((last - first, width), np.uint8)
            part.read_into(first * width, raw.reshape(-1).data)
            rows.append(raw)
        return np.concatenate(rows, axis=1).reshape(-1)
