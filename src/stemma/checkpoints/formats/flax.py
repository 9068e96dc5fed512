"""Flax msgpack: nested maps of arrays, which are read in place."""

import math
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import Cursor, FileStorage, SourceFile
from stemma.checkpoints.formats.views import ConcatStorage
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.checkpoints.tensor_names import unwrap
from stemma.errors import UnreadableModelError

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
ARRAY, SCALAR = 1, 3
WRAPPERS = ("target", "params", "state_dict", "model_params")
CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_LENGTHS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"),
    0xC9: ("ext", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"), 0xDC: ("list", ">H"),
    0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


class Flax(AbstractFormat):
    """`flax.serialization` files; recognised by extension, since the format has no magic number."""

    name: ClassVar[str] = "Flax msgpack"
    suffixes: ClassVar[tuple[str, ...]] = (".msgpack",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return False

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`; nested names are joined by `/`."""
        walker = _Walker(SourceFile(path))
        tree = walker.value(walker.cursor, 0)
        if walker.cursor.at != walker.cursor.end or not isinstance(tree, dict):
            raise UnreadableModelError(f"{path} is not a Flax file: its content is not a single msgpack map")
        parts, notes = unwrap(walker.arrays(tree, ""), "/", WRAPPERS)
        if walker.ignored:
            notes.append(f"{walker.ignored} entries that are not arrays were left out")
        named = {p: tuple(Tensor(n, t.dtype, t.shape, t.storage) for n, t in f.items()) for p, f in parts.items()}
        return Contents(named, {}, tuple(notes))


class _Walker:
    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.cursor = Cursor(file)
        self.budget = budget.current()
        self.arrays_listed = 0
        self.ignored = 0

    def value(self, cursor: Cursor, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UnreadableModelError(f"{self.file.path} has too many nested entries for a checkpoint")
        self.budget.entries(2)
        code = cursor.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 256
        if code in _NUMBERS:
            return cursor.number(_NUMBERS[code])
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in range(0xD4, 0xD9):
            return self._sized(cursor, "ext", 1 << (code - 0xD4), depth)
        if code in _LENGTHS:
            kind, form = _LENGTHS[code]
            return self._sized(cursor, kind, cursor.number(form), depth)
        if code == 0xC1:
            raise UnreadableModelError(f"{self.file.path} is not msgpack: invalid byte c1 at position {cursor.at - 1}")
        kind = "map" if code < 0x90 else "list" if code < 0xA0 else "str"
        return self._sized(cursor, kind, code & (0x1F if kind == "str" else 0x0F), depth)

    def _sized(self, cursor: Cursor, kind: str, n: int, depth: int) -> Any:
        if kind == "str":
            self.budget.text(n)
            return cursor.take(n).decode("utf-8", errors="replace")
        if kind == "bin":
            at = cursor.at
            cursor.skip(n)
            return (at, n)
        if kind in ("list", "map"):
            self.budget.count(n)  # before the entries are read
        if kind == "list":
            return [self.value(cursor, depth + 1) for _ in range(n)]
        if kind == "ext":
            return self._extension(cursor, n)
        out: dict[Any, Any] = {}
        for _ in range(n):
            key = self.value(cursor, depth + 1)
            if not isinstance(key, (str, int)) or str(key) in out:
                raise UnreadableModelError(
                    f"{self.file.path}: a name is not a string or appears twice: {str(key)[:80]!r}"
                )
            out[str(key)] = self.value(cursor, depth + 1)
        return out

    def _extension(self, cursor: Cursor, n: int) -> Any:
        kind, at = cursor.number(">b"), cursor.at
        cursor.skip(n)
        if kind not in (ARRAY, SCALAR):
            return None
        inner = Cursor(self.file, at, at + n)
        content = self.value(inner, MAX_DEPTH - 4)
        if inner.at != inner.end or not isinstance(content, list) or len(content) != 3:
            raise UnreadableModelError(f"{self.file.path}: an array at byte {at} is malformed")
        shape, dtype, data = content
        if dtype not in DTYPES or not isinstance(shape, list) or not isinstance(data, tuple):
            raise UnreadableModelError(f"{self.file.path}: an array at byte {at} has the unknown dtype {dtype!r}")
        if any(type(s) is not int or not 0 <= s < 2**48 for s in shape) or len(shape) > 64:
            raise UnreadableModelError(f"{self.file.path}: an array at byte {at} has an invalid shape {shape}")
        self.arrays_listed += 1
        self.budget.count(self.arrays_listed)
        length = math.prod(shape) * ITEMSIZE[DTYPES[dtype]]
        if length != data[1]:
            raise UnreadableModelError(f"{self.file.path}: an array of shape {shape} has {data[1]} bytes, not {length}")
        return Tensor("", DTYPES[dtype], tuple(shape), FileStorage(self.file, data[0], length))

    def arrays(self, node: dict[str, Any], name: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.items():
            called = f"{name}/{key}" if name else key
            value = dict(zip(map(str, range(len(value))), value, strict=True)) if isinstance(value, list) else value
            if isinstance(value, Tensor):
                out[key] = value
            elif isinstance(value, dict):
                found = self._joined(value, called) if CHUNKED in value else self.arrays(value, called)
                if found:
                    out[key] = found
            else:
                self.ignored += 1
        return out

    def _joined(self, node: dict[str, Any], name: str) -> Tensor:
        shape, chunks = node.get("shape"), node.get("chunks")
        shape = list(shape.values()) if isinstance(shape, dict) else shape
        parts = list(chunks.values()) if isinstance(chunks, dict) else chunks
        ok = isinstance(shape, list) and isinstance(parts, list) and parts and all(isinstance(p, Tensor) for p in parts)
        if not ok or any(type(s) is not int or not 0 <= s < 2**48 for s in shape):
            raise UnreadableModelError(f"{self.file.path}: the chunked array '{name}' is malformed")
        if len({p.dtype for p in parts}) > 1 or sum(p.size for p in parts) != math.prod(shape):
            raise UnreadableModelError(f"{self.file.path}: the chunks of '{name}' do not add up to its shape")
        return Tensor("", parts[0].dtype, tuple(shape), ConcatStorage(tuple((p.storage, p.nbytes) for p in parts)))
