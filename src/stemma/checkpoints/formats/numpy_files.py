"""NumPy files: `.npy`, and `.npz` array by array. Object arrays (pickles) are refused."""

import ast
import math
import re
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.views import ByteSwappedStorage, OffsetStorage, contiguous, strided_storage
from stemma.checkpoints.tensor import AbstractStorage, Tensor, dtype_code
from stemma.errors import NotAModelError, UnreadableModelError, UnsafeFileError

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Bytes of an array header, as NumPy itself limits them."""
_PLAIN = re.compile(r"^[<>|=]?[A-Za-z]\d{0,4}$")


class Npy(AbstractFormat):
    """One array; the tensor is called `array`."""

    name: ClassVar[str] = "NumPy .npy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        file = SourceFile(path)
        tensor = _array(str(path), "array", FileStorage(file, 0, file.size), file.size)
        return Contents({"": (tensor,)})


class Npz(AbstractFormat):
    """Named arrays; stored ones are read in place, compressed ones forwards in slices."""

    name: ClassVar[str] = "NumPy .npz"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """True for a zip archive whose first record is a `.npy`."""
        if head[:4] != b"PK\x03\x04" or len(head) < 30:
            return False
        length = struct.unpack("<H", head[26:28])[0]
        return head[30 : 30 + length].endswith(b".npy") or (length > 34 and path.suffix.lower() == ".npz")

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        records = archives.records(path)
        arrays = {n: r for n, r in records.items() if n.endswith(".npy")}
        notes = () if len(arrays) == len(records) else (f"{len(records) - len(arrays)} records are not arrays",)
        if not arrays:
            raise UnreadableModelError(f"{path} is a zip archive that contains no arrays")
        budget.current().count(len(arrays))
        made = (_array(f"{path}: '{n}'", n.removesuffix(".npy"), r.checked(), r.size) for n, r in arrays.items())
        return Contents({"": tuple(made)}, {}, notes)


def _array(where: str, name: str, storage: AbstractStorage, size: int) -> Tensor:
    start, header = _header(where, storage, size)
    try:
        kind, shape, fortran = header["descr"], header["shape"], header["fortran_order"]
        dtype = np.dtype(kind) if isinstance(kind, str) and _PLAIN.match(kind) else np.dtype(object)
    except (KeyError, TypeError, ValueError) as e:
        raise UnreadableModelError(f"{where} has a malformed array header") from e
    if dtype.hasobject and kind in ("|O", "O"):
        raise UnsafeFileError(f"{where} holds pickled Python objects, which are unsafe; it was not read")
    code = None if dtype.hasobject else dtype_code(dtype)
    if code is None and dtype.kind == "V" and dtype.itemsize in (1, 2):
        raise NotAModelError(
            f"{where} holds raw {dtype.itemsize}-byte records whose dtype NumPy does not store. Use safetensors"
        )
    if code is None:
        raise NotAModelError(f"{where} has dtype {str(kind)[:60]!r}, which is not a numeric type")
    if not isinstance(shape, tuple) or len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise UnreadableModelError(f"{where} has an invalid shape {shape!r}")
    if start + math.prod(shape) * dtype.itemsize != size:
        raise UnreadableModelError(f"{where} has {size - start} bytes for the shape {list(shape)} of {dtype}")
    body: AbstractStorage = OffsetStorage(storage, start)
    if dtype.byteorder == ">":
        body = ByteSwappedStorage(body, dtype.itemsize // (2 if dtype.kind == "c" else 1))
    strides = tuple(reversed(contiguous(tuple(reversed(shape))))) if fortran else contiguous(shape)
    return Tensor(name, code, shape, strided_storage(body, dtype.itemsize, 0, shape, strides))


def _header(where: str, storage: AbstractStorage, size: int) -> tuple[int, dict[str, Any]]:
    head = _run(storage, 0, min(10, size))
    if len(head) < 10 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        raise UnreadableModelError(f"{where} is not a NumPy array: its magic is {bytes(head[:8])!r}")
    if head[6] > 1:  # the length has four bytes
        head += _run(storage, 10, min(2, size - 10))
    length = int.from_bytes(head[8:], "little")
    start = len(head) + length
    if length > MAX_HEADER or start > size:
        raise UnreadableModelError(f"{where} is damaged: its header claims {length} of {size} bytes")
    budget.current().entries(1 + length // 8)
    raw = _run(storage, len(head), length)
    try:
        header = ast.literal_eval(raw.decode("utf-8" if head[6] == 3 else "latin1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as e:
        raise UnreadableModelError(f"{where} has a malformed array header") from e
    if not isinstance(header, dict):
        raise UnreadableModelError(f"{where} has a malformed array header")
    return start, header


def _run(storage: AbstractStorage, start: int, length: int) -> bytearray:
    out = bytearray(length)
    storage.read_into(start, memoryview(out))
    return out
