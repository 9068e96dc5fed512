"""Safetensors: an eight-byte length, a JSON header, raw bytes; read in slices without mapping the file."""

import json
import os
import struct
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.errors import UnreadableModelError

MAX_HEADER = 100_000_000
"""Bytes of a header that the format allows."""

MOST_AXES = 64
"""Largest number of axes of an array."""


class Safetensors(AbstractFormat):
    """The safetensors container; shards are combined by the folder reader."""

    name: ClassVar[str] = "safetensors"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`; names that the writer dropped as aliases stay dropped."""
        tensors, metadata = read(path)
        names = {t.name for t in tensors}
        dropped = sorted(k for k, v in metadata.items() if v in names and k not in names)
        notes = tuple(f"'{k}' is tied to '{metadata[k]}' and counted once" for k in dropped)
        return Contents({"": tuple(tensors)}, {k: v for k, v in metadata.items() if k not in dropped}, notes)


def read(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """Tensors of a `.safetensors` file under their stored names, and its metadata; no tensor bytes are read."""
    file = SourceFile(path)
    size = file.size
    length = struct.unpack("<Q", file.read(0, 8))[0] if size >= 8 else -1
    if not 0 < length <= min(MAX_HEADER, size - 8):
        raise UnreadableModelError(f"{path} is not a safetensors file: its header claims {length} of {size} bytes")
    budget.current().text(length)
    header = _header(path, file.read(8, length))
    budget.current().count(len(header))
    base, tensors, spans = 8 + length, [], []
    metadata = header.pop("__metadata__", {})
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        tensor = Tensor(name, dtype, shape, FileStorage(file, base + begin, end - begin))
        if end - begin != tensor.nbytes:
            raise UnreadableModelError(
                f"{path}: tensor '{name}' has {end - begin} bytes, but its shape needs {tensor.nbytes}"
            )
        tensors.append(tensor)
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise UnreadableModelError(f"{path}: tensor bytes overlap or leave a gap at byte {min(begin, at)}")
        at = end
    if base + at != size:
        raise UnreadableModelError(
            f"{path} has {size} bytes, but its header describes {base + at}. Was the download truncated?"
        )
    return tensors, {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _header(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise UnreadableModelError(f"{path}: a name appears twice in the header")
        return out

    try:
        header = budget.parse(raw, unique)
    except (ValueError, RecursionError) as e:
        raise UnreadableModelError(f"{path} is not a safetensors file: its header is not JSON") from e
    if not isinstance(header, dict):
        raise UnreadableModelError(f"{path} is not a safetensors file: its header is not a JSON object")
    return header


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as e:
        raise UnreadableModelError(f"{path}: the header entry of '{name}' is malformed") from e
    numbers = (*shape, begin, end)
    if {*map(type, numbers)} != {int} or min(numbers) < 0 or max(numbers) >= 2**62 or begin > end:
        raise UnreadableModelError(f"{path}: the header entry of '{name}' has invalid numbers {list(numbers)}")
    if len(shape) > MOST_AXES:
        raise UnreadableModelError(f"{path}: tensor '{name}' has {len(shape)} axes; the limit is {MOST_AXES}")
    if dtype not in ITEMSIZE:
        raise UnreadableModelError(f"{path}: tensor '{name}' has the unknown dtype {dtype!r}")
    return dtype, shape, begin, end


def write(path: Path, tensors: list[Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file slice by slice under a temporary name, then rename it; an existing file is replaced."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for t in tensors:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as f:
            f.write(struct.pack("<Q", len(raw)) + raw)
            for t in tensors:
                for part in t.chunks():
                    f.write(part)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
