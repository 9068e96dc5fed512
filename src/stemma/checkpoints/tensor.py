"""Lazily read tensors, and storages that provide their bytes.

A format (see `formats/`) creates `Tensor`s whose storage yields raw bytes in slices. Whatever needs decoding or
arithmetic (bfloat16, block quantisation, a merged adapter) is a storage of its own.
"""

import abc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import numpy as np

from stemma.errors import PartlyReadError

CHUNK = 4 << 20
"""Bytes per slice when a tensor is streamed."""

GAP = 1 << 15
"""Gap in bytes between two rows up to which reading through is cheaper than a second read."""

ITEMSIZE: Mapping[str, int] = MappingProxyType(
    {
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
        "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
        "C64": 8, "C128": 16,
    }
)  # fmt: skip
"""Bytes per element of each dtype code (the codes are those of safetensors)."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def dtype_code(dtype: np.dtype) -> str | None:
    """The dtype code of a NumPy (or `ml_dtypes`) dtype, None where there is none."""
    named = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    if dtype.name in named:
        return named[dtype.name]
    letter = {"f": "F", "i": "I", "u": "U", "c": "C"}.get(dtype.kind)
    code = "BOOL" if dtype.kind == "b" else f"{letter}{dtype.itemsize * 8}"
    return code if code in ITEMSIZE else None


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Raw little-endian `uint8` bytes as a flat array: float32 for floats under 64 bits, else the native type."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8:
        return _FLOAT8[dtype][raw]
    native = raw.view(_NUMPY[dtype])
    return native.astype(np.float32) if dtype == "F16" else native


_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1", "C64": "<c8", "C128": "<c16",
}  # fmt: skip


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as flat little-endian `uint8` bytes, rounded to nearest even; `F64`, `F32`, `F16` or `BF16`."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, _NUMPY[dtype]).reshape(-1).view(np.uint8)
    bits = np.ascontiguousarray(values, "<f4").reshape(-1).view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2").view(np.uint8)


def _float8(exponent_bits: int, mantissa_bits: int, *, infinities: bool) -> np.ndarray:
    """All 256 values of an 8-bit float by code (OCP FP8: E4M3 has no infinities and one NaN per sign)."""
    code = np.arange(256, dtype=np.int64)
    sign = np.where(code >> 7, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    top = exponent == (1 << exponent_bits) - 1
    if infinities:
        value = np.where(top, np.where(fraction == 0, np.inf, np.nan), value)
    else:
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    return (sign * value).astype(np.float32)


_FLOAT8 = {"F8_E4M3": _float8(4, 3, infinities=False), "F8_E5M2": _float8(5, 2, infinities=True)}


class ByteSource(Protocol):
    """Bytes that several tensors lie in."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on."""


class AbstractStorage(abc.ABC):
    """Where a tensor's bytes come from."""

    def place(self, length: int) -> tuple[ByteSource, int] | None:
        """Where the first `length` canonical bytes lie as they are: what can be read, and the offset; else None."""
        del length
        return None

    @abc.abstractmethod
    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the tensor's canonical bytes (little-endian, C order) from byte `start` on.

        Args:
            start: First byte, counted from the tensor's first element.
            out: Writable bytes; all of it is filled.

        Raises:
            UnreadableModelError: If the bytes are no longer available.
        """


@dataclass(frozen=True)
class ArrayStorage(AbstractStorage):
    """Bytes of an array that is made on first use: small tensors, and formats that cannot be read in slices.

    Attributes:
        make: Returns the array, C-contiguous after `ascontiguousarray`, in the dtype that the tensor declares.
    """

    make: Callable[[], np.ndarray]

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.ascontiguousarray(self.make()).reshape(-1).view(np.uint8)

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        out[:] = self._bytes.data[start : start + len(out)]


def fill(start: int, out: memoryview, row: int, step: int, make: Callable[[int, int], np.ndarray]) -> None:
    """Fill `out` from byte `start` on with rows of `row` bytes; `make(first, last)` computes at most `step` rows."""
    done = 0
    while done < len(out):
        first, skip = divmod(start + done, row)
        last = min(first + step, -(-(start + len(out)) // row))
        raw = make(first, last)[skip:]
        n = min(len(raw), len(out) - done)
        out[done : done + n] = raw.data[:n]
        done += n


@dataclass(frozen=True)
class RowStorage(AbstractStorage):
    """Bytes of rows that are computed on demand: dequantised weights, merged adapters.

    Attributes:
        make: `make(start, stop)` returns rows `start:stop` as numbers.
        shape: Shape of the tensor; a scalar is one row.
        dtype: What the numbers are rounded to: a float dtype code.
    """

    make: Callable[[int, int], np.ndarray]
    shape: tuple[int, ...]
    dtype: str = "F32"

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`; whole rows are computed, a few megabytes at a time."""
        row = ITEMSIZE[self.dtype] * math.prod(self.shape[1:])
        fill(start, out, row, max(1, CHUNK // row), lambda a, b: encode(self.make(a, b), self.dtype))


@dataclass(frozen=True)
class Tensor:
    """A lazily read tensor.

    Attributes:
        name: Canonical name (wrappers and prefixes removed).
        dtype: Code as in `ITEMSIZE`.
        shape: Axis lengths; empty for a scalar.
        storage: Where its bytes come from.
        leading: How many leading entries of the first axis can be read, where not all were fetched; else None.
        size: Number of elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: AbstractStorage = field(repr=False, compare=False)
    leading: int | None = None
    size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Count the elements once: they are asked for again and again."""
        object.__setattr__(self, "size", math.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical representation."""
        return self.size * ITEMSIZE[self.dtype]

    @property
    def readable(self) -> int:
        """Leading entries of the first axis that can be read; 1 for a scalar."""
        whole = self.shape[0] if self.shape else 1
        return whole if self.leading is None else min(self.leading, whole)

    def cut(self) -> "Tensor":
        """The part that can be read, as a tensor of its own."""
        return self if self.leading is None else replace(self, shape=(self.readable, *self.shape[1:]), leading=None)

    def _check_readable(self, stop: int) -> None:
        if self.leading is not None and stop > self.readable:
            raise PartlyReadError(
                f"of the tensor '{self.name}' only {self.readable:,} of {self.shape[0]:,} rows were read, and "
                f"this needs {stop:,}. Write #whole behind the address of the model to read all of it"
            )

    @property
    def is_float(self) -> bool:
        """Whether the elements are real numbers (not codes, indices or flags)."""
        return self.dtype in FLOATS

    def chunks(self, buffer: bytearray | None = None) -> Iterator[memoryview]:
        """The canonical bytes in order; every slice is in the same buffer and valid until the next."""
        self._check_readable(self.shape[0] if self.shape else 1)
        buffer = bytearray(min(CHUNK, self.nbytes)) if buffer is None else buffer
        view = memoryview(buffer)
        for start in range(0, self.nbytes, len(buffer) or 1):
            part = view[: min(len(buffer), self.nbytes - start)]
            self.storage.read_into(start, part)
            yield part

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Entries `start:stop` of the first axis as an array `[stop - start, *shape[1:]]`, narrow floats as float32."""
        self._check_readable(stop)
        row = self.nbytes // self.shape[0] if self.shape and self.shape[0] else 0
        raw = np.empty((stop - start) * row, np.uint8)
        if raw.size:
            self.storage.read_into(start * row, raw.data)
        return decode(raw, self.dtype).reshape(stop - start, *self.shape[1:])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Entries of the first axis at ascending positions, decoded as `rows` does."""
        self._check_readable(int(rows[-1]) + 1 if len(rows) else 0)
        row = self.nbytes // self.shape[0] if self.shape and self.shape[0] else 0
        raw = np.empty((len(rows), row), np.uint8)
        gap = row if isinstance(self.storage, RowStorage) else GAP  # computing rows costs more than reading
        breaks = np.flatnonzero(np.diff(rows) * row > gap) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
            start, stop = (int(rows[first]), int(rows[last - 1]) + 1) if last > first else (0, 0)
            if stop - start == last - first:
                self.storage.read_into(start * row, raw[first:last].reshape(-1).data)
            elif last > first:
                piece = np.empty((stop - start, row), np.uint8)
                self.storage.read_into(start * row, piece.reshape(-1).data)
                raw[first:last] = piece[rows[first:last] - start]
        return decode(raw.reshape(-1), self.dtype).reshape(len(rows), *self.shape[1:])

    def array(self) -> np.ndarray:
        """The whole tensor, decoded as `rows` does; for tensors that fit into memory."""
        self._check_readable(self.shape[0] if self.shape else 1)
        raw = np.empty(self.nbytes, np.uint8)
        if raw.size:
            self.storage.read_into(0, raw.data)
        return decode(raw, self.dtype).reshape(self.shape)
