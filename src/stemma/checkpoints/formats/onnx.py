"""ONNX: initialisers and constants of a graph, read in place; the graph itself is not built.

The protobuf wire format is parsed here, so that models of any size are read in slices; the `onnx` package would load
the whole file.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import Cursor, FileStorage, SourceFile
from stemma.checkpoints.formats.onnx_scales import Node, annotate_scales
from stemma.checkpoints.tensor import ITEMSIZE, AbstractStorage, ArrayStorage, Tensor
from stemma.errors import UnreadableModelError, UnsafeFileError

DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2",
}  # fmt: skip
UNPACKED = {18: "FLOAT8E4M3FNUZ", 20: "FLOAT8E5M2FNUZ", 21: "UINT4", 22: "INT4", 23: "FLOAT4E2M1", 24: "FLOAT8E8M0"}
STRINGS = 8
MAX_DEPTH = 16
MAX_TYPED = 1 << 28
"""Elements that a typed (not raw) field may hold: it has to be decoded as a whole."""
PIECE = 1 << 20
"""Bytes of varints that are decoded at once."""
TYPED = {4: "<f4", 5: "int32", 7: "int64", 10: "<f8", 11: "uint64"}


@dataclass
class _Proto:
    """A TensorProto while it is read: numbers, and the position of its data."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: tuple[int, int] | None = None
    typed: list[tuple[int, int, int]] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)
    outside: bool = False


class Onnx(AbstractFormat):
    """ONNX models, recognised by extension, since the format has no magic number."""

    name: ClassVar[str] = "ONNX"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return False

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        file = SourceFile(path)
        graph: tuple[int, int] | None = None
        claims: dict[str, str] = {}
        for number, value in _fields(file, 0, file.size):
            if number == 7 and isinstance(value, tuple):
                if graph is not None:
                    raise UnreadableModelError(f"{path} is malformed: it contains two graphs")
                graph = value
            elif number in (2, 3) and isinstance(value, tuple):
                claims["producer" if number == 2 else "producer_version"] = _text(file, value)
        if graph is None:
            raise UnreadableModelError(f"{path} is not an ONNX model: it contains no graph")
        notes: list[str] = []
        nodes: list[Node] = []
        tensors: list[Tensor] = []
        for tensor in _graph(file, graph, "", 0, notes, nodes):
            tensors.append(tensor)
            budget.current().count(len(tensors))
        if len({t.name for t in tensors}) == len(tensors):  # duplicate names are refused later
            tensors = list(annotate_scales(tensors, nodes))
        return Contents({"": tuple(tensors)}, claims, tuple(notes))


def _fields(file: SourceFile, begin: int, end: int) -> Iterator[tuple[int, Any]]:
    # yields numbers for varints and fixed fields, (begin, end) for delimited ones
    cursor, costs = Cursor(file, begin, end), budget.current()
    while cursor.at < end:
        costs.entries()
        tag = _varint(cursor)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, _varint(cursor)
        elif wire == 2:
            length = _varint(cursor)
            at = cursor.at
            cursor.skip(length)
            yield number, (at, at + length)
        elif wire in (1, 5):
            yield number, cursor.take(8 if wire == 1 else 4)
        else:
            raise UnreadableModelError(f"{file.path} is not a valid protobuf: wire type {wire} at byte {cursor.at}")
        if not number:
            raise UnreadableModelError(f"{file.path} is not a valid protobuf: field 0 at byte {cursor.at}")


def _varint(cursor: Cursor) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = cursor.take(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1)
    raise UnreadableModelError(f"{cursor.file.path} is not a valid protobuf: a number does not end at byte {cursor.at}")


def _text(file: SourceFile, span: tuple[int, int]) -> str:
    if span[1] - span[0] > 1 << 16:
        raise UnreadableModelError(f"{file.path} is damaged: it has a name of {span[1] - span[0]} bytes")
    budget.current().text(span[1] - span[0])
    return file.read(span[0], span[1] - span[0]).decode("utf-8", errors="replace")


def _graph(
    file: SourceFile, span: tuple[int, int], prefix: str, depth: int, notes: list[str], nodes: list[Node]
) -> Iterator[Tensor]:
    if depth > MAX_DEPTH:
        raise UnreadableModelError(f"{file.path} nests graphs deeper than {MAX_DEPTH}")
    for number, value in _fields(file, *span):
        if not isinstance(value, tuple):
            continue
        if number == 5:
            yield from _tensor(file, value, prefix, None, notes)
        elif number == 15:
            notes.append("a sparse initializer was left out")
        elif number == 1:
            yield from _node(file, value, prefix, depth, notes, nodes)


def _node(
    file: SourceFile, span: tuple[int, int], prefix: str, depth: int, notes: list[str], nodes: list[Node]
) -> Iterator[Tensor]:
    output, attributes, node = "", [], Node()
    budget.current().entries(16)  # graphs of the largest models have some ten thousand
    nodes.append(node)
    for number, value in _fields(file, *span):
        if number == 2 and isinstance(value, tuple) and not output:
            output = _text(file, value)
        elif number == 1 and isinstance(value, tuple):
            budget.current().text(len(prefix))
            node.inputs.append(prefix + _text(file, value))
        elif number == 4 and isinstance(value, tuple):
            node.operator = _text(file, value)
        elif number == 5 and isinstance(value, tuple):
            attributes.append(value)
    for attribute in attributes:
        name = ""
        for number, value in _fields(file, *attribute):
            if number == 1 and isinstance(value, tuple):
                name = _text(file, value)
            elif number == 3 and isinstance(value, int):
                node.numbers[name] = value - 2**64 if value >= 2**63 else value
            elif number == 5 and isinstance(value, tuple):
                yield from _tensor(file, value, prefix, output, notes)
            elif number in (6, 11) and isinstance(value, tuple):
                yield from _graph(file, value, f"{prefix}{output}/", depth + 1, notes, nodes)


def _tensor(
    file: SourceFile, span: tuple[int, int], prefix: str, name: str | None, notes: list[str]
) -> Iterator[Tensor]:
    p = _proto(file, span)
    called = f"{prefix}{name or p.name}"
    budget.current().text(len(called))
    if p.kind == STRINGS:
        notes.append(f"'{called}' holds text and was left out")
        return
    if p.kind not in DTYPES:
        what = UNPACKED.get(p.kind, f"type {p.kind}")
        raise UnreadableModelError(f"{file.path}: packed format {what} is not supported (tensor '{called}')")
    if any(not 0 <= n < 2**48 for n in p.dims) or len(p.dims) > 64:
        raise UnreadableModelError(f"{file.path}: the tensor '{called}' has an invalid shape {p.dims}")
    code, shape = DTYPES[p.kind], tuple(p.dims)
    length = math.prod(shape) * ITEMSIZE[code]
    storage: AbstractStorage
    if p.outside or p.external:
        storage = _external(file, called, p.external, length)
    elif p.raw is not None:
        if p.raw[1] - p.raw[0] != length:
            raise UnreadableModelError(
                f"{file.path}: '{called}' has {p.raw[1] - p.raw[0]} bytes, but its shape needs {length}"
            )
        storage = FileStorage(file, p.raw[0], length)
    else:
        storage = _typed(file, called, p, code, math.prod(shape))
    yield Tensor(called, code, shape, storage)


def _proto(file: SourceFile, span: tuple[int, int]) -> _Proto:
    p = _Proto()
    for number, value in _fields(file, *span):
        if number == 1 and not isinstance(value, bytes):
            p.dims.extend([value] if isinstance(value, int) else _varints(file, value, 64))
        elif number == 2 and isinstance(value, int):
            p.kind = value
        elif number == 8 and isinstance(value, tuple):
            p.name = _text(file, value)
        elif number == 9 and isinstance(value, tuple):
            p.raw = value
        elif number == 13 and isinstance(value, tuple):
            pair = {n: _text(file, v) for n, v in _fields(file, *value) if isinstance(v, tuple)}
            p.external[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:
            p.outside = value == 1
        elif number in TYPED and isinstance(value, tuple):
            p.typed.append((number, *value))
    if len(p.dims) != len([d for d in p.dims if isinstance(d, int)]):
        raise UnreadableModelError(f"{file.path}: the tensor '{p.name}' has a malformed shape")
    return p


def _varints(file: SourceFile, span: tuple[int, int], most: int) -> list[int]:
    cursor = Cursor(file, *span)
    out: list[int] = []
    while cursor.at < span[1]:
        out.append(_varint(cursor))
        if len(out) > most:
            raise UnreadableModelError(f"{file.path}: a list has more than {most} numbers")
    return out


def _typed(file: SourceFile, name: str, p: _Proto, code: str, count: int) -> AbstractStorage:
    """Data in `float_data`, `int32_data` and so on; varints are decoded at the first read."""
    is_complex = code in ("C64", "C128")
    numbers = count * (2 if is_complex else 1)
    kinds = {k for k, _, _ in p.typed}
    if len(kinds) > 1 or (numbers and not kinds) or numbers > MAX_TYPED:
        raise UnreadableModelError(f"{file.path}: the tensor '{name}' has no data, or data in two fields")
    if not numbers:
        return ArrayStorage(lambda: np.empty(0, np.uint8))
    fixed = {4: 4, 10: 8}.get(next(iter(kinds)))
    bytes_there = sum(end - begin for _, begin, end in p.typed)
    if (fixed and bytes_there != numbers * fixed) or bytes_there < numbers:
        raise UnreadableModelError(f"{file.path}: the tensor '{name}' has {bytes_there} bytes for {numbers} numbers")
    if fixed and fixed * numbers != count * ITEMSIZE[code]:
        raise UnreadableModelError(f"{file.path}: the tensor '{name}' has data of another type")
    if fixed and len(p.typed) == 1:
        return FileStorage(file, p.typed[0][1], bytes_there)

    def make() -> np.ndarray:
        raw = b"".join(file.read(begin, end - begin) for _, begin, end in p.typed)
        if fixed:
            return np.frombuffer(raw, np.uint8)
        out, done = np.empty(numbers, f"<u{ITEMSIZE[code] // (2 if is_complex else 1)}"), 0
        for piece in _whole_varints(raw):
            values = _decode_varints(piece)
            if not len(values) or done + len(values) > numbers:
                raise UnreadableModelError(f"{file.path}: the tensor '{name}' does not hold {numbers} numbers")
            out[done : done + len(values)] = values  # as many low bits as the type has
            done += len(values)
        if done != numbers:
            raise UnreadableModelError(f"{file.path}: the tensor '{name}' has {done} numbers, not {numbers}")
        return out

    return ArrayStorage(make)


def _whole_varints(raw: bytes) -> Iterator[bytes]:
    """Pieces of a run of varints that end where a number ends: decoding takes many times their bytes."""
    at = 0
    while at < len(raw):
        end = min(at + PIECE, len(raw))
        while end < len(raw) and raw[end - 1] >= 0x80 and end - at < PIECE + 10:
            end += 1
        yield raw[at:end]
        at = end


def _decode_varints(raw: bytes) -> np.ndarray:
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if not len(data) or not len(ends) or ends[-1] != len(data) - 1:
        return np.empty(0, np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        return np.empty(0, np.uint64)
    values = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max())):
        active = lengths > i
        values[active] |= (data[starts[active] + i] & np.uint64(0x7F)) << np.uint64(7 * i)
    return values


def _external(file: SourceFile, name: str, where: dict[str, str], length: int) -> AbstractStorage:
    location = where.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or location.startswith(("/", "\\")) or ".." in parts or ":" in location or "\0" in location:
        raise UnsafeFileError(f"{file.path}: '{name}' is stored at {location!r}, outside the folder; it was not read")
    path = file.path.parent / location
    inside = os.path.realpath(file.path.parent)
    if not path.is_file() or not os.path.realpath(path).startswith(inside + os.sep):
        raise UnreadableModelError(f"{file.path}: the external data file {location!r} is not in the folder")
    try:
        offset, stated = int(where.get("offset") or 0), int(where.get("length") or length)
    except ValueError as e:
        raise UnreadableModelError(f"{file.path}: '{name}' has a malformed offset or length in {location!r}") from e
    outside = SourceFile(path)
    if offset < 0 or stated != length or offset + length > outside.size:
        raise UnreadableModelError(
            f"{file.path}: '{name}' needs {length} bytes at offset {offset} of {location!r}, which does not match the "
            "file"
        )
    return FileStorage(outside, offset, length)
