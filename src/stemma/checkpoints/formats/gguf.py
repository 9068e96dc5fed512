"""GGUF: header, tensor table, aligned data. Floats are read unchanged, quantised blocks as float32.

The header is parsed here, because the reader of the `gguf` package maps the whole file and loops as often as a damaged
file specifies; the package is used to decode blocks.
"""

import math
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import Cursor, FileStorage, SourceFile
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.errors import MissingExtraError, UnreadableModelError

MAGIC = b"GGUF"
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Types without quantisation."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9
MAX_TEXT = 1 << 24
MAX_ENTRIES = 1 << 20
MAX_BASES = 64
CLAIMS = ("general.name", "general.architecture", "general.basename", "general.finetune", "general.license",
          "general.license.name", "general.license.link")  # fmt: skip


class Gguf(AbstractFormat):
    """The llama.cpp container, versions 2 and 3, little-endian."""

    name: ClassVar[str] = "GGUF"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`; shapes are reversed to `[out, in]`."""
        file = SourceFile(path)
        cursor = Cursor(file)
        magic, version = cursor.take(4), cursor.number("<I")
        if magic != MAGIC or version not in (2, 3):
            swapped = version in (2 << 24, 3 << 24)
            what = (
                "big-endian, which is not supported"
                if swapped
                else f"version {version}; versions 2 and 3 are supported"
            )
            raise UnreadableModelError(f"{path} is not a supported GGUF file: magic {magic!r}, {what}")
        tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
        if tensors > MAX_ENTRIES or pairs > MAX_ENTRIES:
            raise UnreadableModelError(f"{path} is damaged: its header claims {tensors} tensors and {pairs} fields")
        budget.current().count(tensors)
        fields = _fields(cursor, pairs)
        align = fields.get("general.alignment", 32)
        if type(align) is not int or align < 1 or align & (align - 1) or align > 1 << 20:
            raise UnreadableModelError(f"{path} has the invalid alignment {align!r}")
        table = [_row(cursor) for _ in range(tensors)]
        base = -(-cursor.at // align) * align
        return Contents({"": _tensors(file, table, base, align)}, _claims(fields))


def _text(cursor: Cursor) -> str:
    n = cursor.number("<Q")
    if n > MAX_TEXT:
        raise UnreadableModelError(f"{cursor.file.path} is damaged: its header has a text of {n} bytes")
    return cursor.take(n).decode("utf-8", errors="replace")


def _fields(cursor: Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        key, kind = _text(cursor), cursor.number("<I")
        if key in fields:
            raise UnreadableModelError(f"{cursor.file.path}: the field '{key[:80]}' appears twice")
        fields[key] = value = _value(cursor, kind, 0)
        budget.current().text(len(key) + (len(value) if isinstance(value, str) else 0))
    return fields


def _value(cursor: Cursor, kind: int, depth: int) -> Any:
    # lists (vocabularies) are skipped
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == TEXT:
        return _text(cursor)
    if kind != LIST or depth > 4:
        raise UnreadableModelError(f"{cursor.file.path}: a field has the unknown type {kind}")
    inner, n = cursor.number("<I"), cursor.number("<Q")
    if inner in SCALARS:
        cursor.skip(n * struct.calcsize(SCALARS[inner]))
        return None
    if n > (cursor.file.size - cursor.at) // 8:
        raise UnreadableModelError(f"{cursor.file.path}: a list claims {n} entries, more than the file holds")
    for _ in range(n):
        budget.current().entries(2)
        _value(cursor, inner, depth + 1)
    return None


def _row(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = _text(cursor), cursor.number("<I")
    if axes > 8:
        raise UnreadableModelError(f"{cursor.file.path}: the tensor '{name[:80]}' has {axes} axes; the limit is 8")
    shape = tuple(cursor.number("<Q") for _ in range(axes))
    return name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _tensors(
    file: SourceFile, table: list[tuple[str, tuple[int, ...], int, int]], base: int, align: int
) -> tuple[Tensor, ...]:
    out: list[Tensor] = []
    end = 0
    for name, shape, kind, offset in sorted(table, key=lambda row: row[3]):
        if any(n >= 2**48 for n in shape) or offset % align or offset < end or offset - end >= align:
            raise UnreadableModelError(
                f"{file.path}: the tensor '{name}' of shape {list(shape)} overlaps or leaves a gap"
            )
        tensor, length = _tensor(file, name, shape, kind, base + offset)
        end = offset + length
        if base + end > file.size:
            raise UnreadableModelError(f"{file.path} ends before the tensor '{name}' does. Was the download truncated?")
        out.append(tensor)
    if file.size - base - end >= align:
        raise UnreadableModelError(f"{file.path} has {file.size - base - end} unexpected bytes after its last tensor")
    return tuple(out)


def _tensor(file: SourceFile, name: str, shape: tuple[int, ...], kind: int, at: int) -> tuple[Tensor, int]:
    count = math.prod(shape)
    if kind in PLAIN:
        tensor = Tensor(name, PLAIN[kind], shape, FileStorage(file, at, 0))
        return Tensor(name, PLAIN[kind], shape, FileStorage(file, at, tensor.nbytes)), tensor.nbytes
    dequantize, block, width, kind_name = _quant(file.path, name, kind)
    if not shape or shape[-1] % block:
        raise UnreadableModelError(
            f"{file.path}: the tensor '{name}' of shape {list(shape)} cannot be divided into {kind_name} blocks"
        )
    blocks = count // block
    stored = FileStorage(file, at, blocks * width)

    def make(first: int, last: int) -> np.ndarray:
        raw = np.empty((last - first, width), np.uint8)
        stored.read_into(first * width, raw.reshape(-1).data)
        with np.errstate(all="ignore"):
            return dequantize(raw)

    return Tensor(name, "F32", shape, RowStorage(make, (blocks, block))), blocks * width


def _quant(path: Path, name: str, kind: int) -> tuple[Any, int, int, str]:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
    except ImportError as e:
        raise MissingExtraError(f"{path}: reading quantised blocks", "gguf", "formats") from e
    try:
        found = GGMLQuantizationType(kind)
    except ValueError as e:
        raise UnreadableModelError(f"{path}: the tensor '{name}' has the unknown type {kind}") from e
    if found not in quants._type_traits:
        raise UnreadableModelError(f"{path}: packed format {found.name} is not supported (tensor '{name}')")
    block, width = GGML_QUANT_SIZES[found]
    return partial(quants.dequantize, qtype=found), block, width, found.name


def _claims(fields: Mapping[str, Any]) -> dict[str, str]:
    kept: dict[str, str] = {
        k.removeprefix("general."): str(fields[k]) for k in CLAIMS if isinstance(fields.get(k), str)
    }
    named = [fields.get(f"general.base_model.{i}.name") for i in range(MAX_BASES)]
    bases = ", ".join(b for b in named if isinstance(b, str) and b)
    return {**kept, "base_model": bases} if bases else kept
