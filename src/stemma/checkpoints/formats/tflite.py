"""TensorFlow Lite: constant tensors of every subgraph, quantised ones with `::scale` and `::zero_point`.

The flatbuffer tables are parsed here, and the buffers are read in place.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.tensor import ITEMSIZE, ArrayStorage, Tensor
from stemma.errors import UnreadableModelError

DTYPES = {
    0: "F32", 1: "F16", 2: "I32", 3: "U8", 4: "I64", 6: "BOOL", 7: "I16", 8: "C64", 9: "I8", 10: "F64", 11: "C128",
    12: "U64", 15: "U32", 16: "U16", 18: "BF16",
}  # fmt: skip
STRINGS, RESOURCES, INT4 = 5, (13, 14), 17
MAX_ENTRIES = 1 << 20
MOST_SLOTS = 16
"""Fields of a table that are looked at; readers use the first seven."""


class Tflite(AbstractFormat):
    """TensorFlow Lite flatbuffers (`TFL3`)."""

    name: ClassVar[str] = "TensorFlow Lite"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head[4:8] == b"TFL3"

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        file = SourceFile(path)
        if file.size < 16 or file.read(4, 4) != b"TFL3":
            raise UnreadableModelError(f"{path} is not a TensorFlow Lite file: its identifier is missing")
        model = _Table(file, struct.unpack("<I", file.read(0, 4))[0])
        buffers = model.tables(4)
        notes: list[str] = []
        out: list[Tensor] = []
        taken: set[str] = set()
        for i, graph in enumerate(model.tables(2)):
            for j, tensor in enumerate(graph.tables(0)):
                found = list(_tensor(file, tensor, buffers, notes))
                name = found[0].name if found else ""
                if found and (not name or name in taken):
                    found = [
                        Tensor(f"{name}#{i}.{j}" + t.name[len(name) :], t.dtype, t.shape, t.storage) for t in found
                    ]
                taken.update(t.name for t in found)
                out.extend(found)
                budget.current().count(len(out))
        return Contents({"": tuple(out)}, {}, tuple(notes))


class _Table:
    """A flatbuffer table: its fields by slot, every offset checked against the file."""

    def __init__(self, file: SourceFile, at: int) -> None:
        self.file, self.at = file, at
        begin = at - struct.unpack("<i", file.read(at, 4))[0]
        length = struct.unpack("<H", file.read(begin, 2))[0] if begin >= 0 else 0
        if length < 4 or length % 2:
            raise UnreadableModelError(f"{file.path} has a damaged table at byte {at}")
        # the slots that readers ask for; a hostile table lists thirty thousand
        length = min(length, 4 + 2 * MOST_SLOTS)
        self._slots = struct.unpack(f"<{length // 2 - 2}H", file.read(begin + 4, length - 4))

    def place(self, slot: int) -> int | None:
        offset = self._slots[slot] if slot < len(self._slots) else 0
        return self.at + offset if offset else None

    def number(self, slot: int, form: str, default: int = 0) -> int:
        at = self.place(slot)
        return default if at is None else struct.unpack(form, self.file.read(at, struct.calcsize(form)))[0]

    def follow(self, slot: int) -> int | None:
        at = self.place(slot)
        return None if at is None else at + struct.unpack("<I", self.file.read(at, 4))[0]

    def vector(self, slot: int, itemsize: int) -> tuple[int, int]:
        # position of the first element, and number of elements
        at = self.follow(slot)
        if at is None:
            return 0, 0
        n = struct.unpack("<I", self.file.read(at, 4))[0]
        if at + 4 + n * itemsize > self.file.size:
            raise UnreadableModelError(
                f"{self.file.path} ends inside a list of {n} entries. Was the download truncated?"
            )
        return at + 4, n

    def table(self, slot: int) -> "_Table | None":
        at = self.follow(slot)
        return None if at is None else _Table(self.file, at)

    def tables(self, slot: int) -> list["_Table"]:
        at, n = self.vector(slot, 4)
        if n > MAX_ENTRIES:
            raise UnreadableModelError(f"{self.file.path} is damaged: a table claims {n} entries")
        budget.current().entries(16 * n)  # the largest graphs have some thousand
        offsets = struct.unpack(f"<{n}I", self.file.read(at, 4 * n)) if n else ()
        return [_Table(self.file, at + 4 * i + offset) for i, offset in enumerate(offsets)]

    def numbers(self, slot: int, dtype: str) -> np.ndarray:
        width = np.dtype(dtype).itemsize
        at, n = self.vector(slot, width)
        return np.frombuffer(self.file.read(at, n * width), dtype) if n else np.empty(0, dtype)

    def text(self, slot: int) -> str:
        at, n = self.vector(slot, 1)
        if n > 1 << 16:
            raise UnreadableModelError(f"{self.file.path} is damaged: it has a name of {n} bytes")
        budget.current().text(n)
        return self.file.read(at, n).decode("utf-8", errors="replace") if n else ""


def _tensor(file: SourceFile, table: _Table, buffers: list[_Table], notes: list[str]) -> Iterator[Tensor]:
    number = table.number(2, "<I")
    if number >= len(buffers):
        raise UnreadableModelError(f"{file.path}: a tensor names the buffer {number} of {len(buffers)}")
    at, length = _data(file, buffers[number])
    if not length:
        return  # an activation
    name, kind = table.text(3), table.number(1, "<b")
    if kind == STRINGS or kind in RESOURCES:
        notes.append(f"'{name}' does not hold numbers and was left out")
        return
    if kind not in DTYPES or table.place(6) is not None:
        what = "int4" if kind == INT4 else "sparse" if kind in DTYPES else f"type {kind}"
        raise UnreadableModelError(f"{file.path}: packed format {what} is not supported (tensor '{name}')")
    shape = tuple(int(n) for n in table.numbers(0, "<i4"))
    code = DTYPES[kind]
    if any(n < 0 for n in shape) or math.prod(shape) * ITEMSIZE[code] != length:
        raise UnreadableModelError(f"{file.path}: '{name}' of shape {list(shape)} has {length} bytes")
    yield Tensor(name, code, shape, FileStorage(file, at, length))
    quantization = table.table(4)
    if quantization is None:
        return
    for slot, label, dtype, letter in ((2, "scale", "<f4", "F32"), (3, "zero_point", "<i8", "I64")):
        values = quantization.numbers(slot, dtype)
        if values.size:
            yield Tensor(f"{name}::{label}", letter, values.shape, ArrayStorage(lambda values=values: values))


def _data(file: SourceFile, buffer: _Table) -> tuple[int, int]:
    at, length = buffer.vector(0, 1)
    if not length:  # beyond two gigabytes the bytes follow the tables
        at, length = buffer.number(1, "<Q"), buffer.number(2, "<Q")
        if at <= 1 or not length:
            return 0, 0
    if at + length > file.size:
        raise UnreadableModelError(f"{file.path} ends inside a buffer. Was the download truncated?")
    return at, length
