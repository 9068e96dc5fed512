"""TensorFlow checkpoints and variables of SavedModels: a table of entries, and shards of raw bytes.

Source: `tensorflow/core/protobuf/tensor_bundle.proto` (entries) and the LevelDB table format (doc/table_format.md:
blocks of keys with shared prefixes, a footer with the position of the index). The graph is not read.
"""

import bisect
import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.sliced_tensors import assemble_slices
from stemma.checkpoints.tensor import Tensor
from stemma.errors import UnreadableModelError

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48
DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip
"""Dtype codes by the numbers of `tensorflow/core/framework/types.proto`."""
STRING = 7
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Suffix of variable names in object-based checkpoints."""
TRAINING = re.compile(
    r"/\.OPTIMIZER_SLOT/|^(optimizer|_optimizer|save_counter|global_step|beta[12]_power)(/|$)|"
    r"/(Adam|Adam_1|Momentum|Adagrad|RMSProp|RMSProp_1|Ftrl|Ftrl_1|adam_m|adam_v)$|^_CHECKPOINTABLE_OBJECT_GRAPH$"
)
"""Names of training state."""


@dataclass
class _Entry:
    """A BundleEntryProto: where a tensor or slice is stored."""

    kind: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    slices: list[tuple[tuple[int, int], ...]] = field(default_factory=list)


class TensorFlow(AbstractFormat):
    """A checkpoint's `.index` file, with `.data-00000-of-00001` and so on in the same folder."""

    name: ClassVar[str] = "TensorFlow checkpoint"
    suffixes: ClassVar[tuple[str, ...]] = ()

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        if path.suffix != ".index":
            return False
        file = SourceFile(path)
        return file.size >= FOOTER and file.read(file.size - 8, 8) == MAGIC

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`; training state is left out."""
        file = SourceFile(path)
        rows = dict(_rows(file))
        shards = _shards(path, rows.pop(b"", b""))
        entries = {key: _entry(path, value) for key, value in rows.items()}
        tensors, left_out, keys = [], [], sorted(entries)
        for key, entry in entries.items():
            name = key.decode("utf-8", errors="replace")
            if key.startswith(b"\0"):
                continue  # slices are read with their variable
            if TRAINING.search(name) or entry.kind == STRING:
                left_out.append(name)
                continue
            tensors.append(_tensor(path, name.removesuffix(VALUE), key, entry, entries, keys, shards))
        note = f"left out: {', '.join(left_out[:8])}{' …' if len(left_out) > 8 else ''}"
        return Contents({"": tuple(tensors)}, {}, (note,) if left_out else ())


def _rows(file: SourceFile) -> Iterator[tuple[bytes, bytes]]:
    footer = _ByteReader(file.read(file.size - FOOTER, FOOTER - 8), file.path)
    _, _, offset, size = (footer.varint() for _ in range(4))  # the first block is not needed
    for _, place in _block(file, offset, size):
        at = _ByteReader(place, file.path)
        yield from _block(file, at.varint(), at.varint())


def _block(file: SourceFile, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    # each key omits the prefix that it shares with the previous one
    costs = budget.current()
    costs.text(size)
    raw = file.read(offset, size + 1)
    if raw[-1]:
        raise UnreadableModelError(
            f"{file.path} is compressed, which is not supported and which TensorFlow does not write"
        )
    restarts = struct.unpack("<I", raw[-5:-1])[0] if size >= 4 else 0
    end = size - 4 * (restarts + 1)
    if end < 0:
        raise UnreadableModelError(f"{file.path} holds a damaged block at byte {offset}")
    at, key = _ByteReader(raw[:end], file.path), b""
    while at.at < end:
        shared, fresh, length = at.varint(), at.varint(), at.varint()
        if shared > len(key):
            raise UnreadableModelError(f"{file.path} holds a damaged block at byte {offset}")
        key = key[:shared] + at.take(fresh)
        costs.entries(8)
        costs.text(len(key) + length)
        yield key, at.take(length)


class _ByteReader:
    """Reads bytes forwards."""

    def __init__(self, raw: bytes, path: Path) -> None:
        self.raw, self.path, self.at = raw, path, 0

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.raw):
            raise UnreadableModelError(f"{self.path} ends inside an entry of its table. Was the download truncated?")
        self.at += n
        return self.raw[self.at - n : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise UnreadableModelError(f"{self.path} is damaged: a number in its table does not end")


def _message(path: Path, raw: bytes) -> Iterator[tuple[int, Any]]:
    at = _ByteReader(raw, path)
    while at.at < len(raw):
        tag = at.varint()
        if tag & 7 == 0:
            value = at.varint()
            yield tag >> 3, value - 2**64 if value >= 2**63 else value
        elif tag & 7 in (1, 2, 5):
            yield tag >> 3, at.take({1: 8, 5: 4}.get(tag & 7) or at.varint())
        else:
            raise UnreadableModelError(f"{path} is damaged: an entry in its table is not a valid protobuf")


def _shards(path: Path, header: bytes) -> list[SourceFile]:
    fields = dict(_message(path, header))
    count, big = fields.get(1, 0), fields.get(2, 0)
    if big or type(count) is not int or not 0 < count < 100_000:
        raise UnreadableModelError(f"{path} is not supported: it is big-endian, or claims {count!r} shards")
    files = [path.with_suffix(f".data-{i:05d}-of-{count:05d}") for i in range(count)]
    missing = [f for f in files if not f.is_file()]
    if missing:
        raise UnreadableModelError(
            f"{path}: {len(missing)} of {count} shards are missing (first {missing[0].name}). Put them in the same "
            "folder"
        )
    return [SourceFile(f) for f in files]


def _entry(path: Path, raw: bytes) -> _Entry:
    entry = _Entry()
    for number, value in _message(path, raw):
        if number == 2 and isinstance(value, bytes):
            entry.shape = tuple(_number(dict(_message(path, d)).get(1, 0)) for n, d in _message(path, value) if n == 2)
        elif number == 7 and isinstance(value, bytes):
            extents = [dict(_message(path, e)) for n, e in _message(path, value) if n == 1]
            entry.slices.append(tuple((_number(e.get(1, 0)), _number(e.get(2, -1))) for e in extents))
        elif number in (1, 3, 4, 5) and isinstance(value, int):
            setattr(entry, {1: "kind", 3: "shard", 4: "offset", 5: "size"}[number], value)
    if len(entry.shape) > 64 or any(not 0 <= n < 2**48 for n in entry.shape):
        raise UnreadableModelError(f"{path} lists a tensor of the invalid shape {list(entry.shape)}")
    return entry


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -2


def _tensor(
    path: Path,
    name: str,
    key: bytes,
    entry: _Entry,
    entries: Mapping[bytes, _Entry],
    keys: list[bytes],
    shards: list[SourceFile],
) -> Tensor:
    if entry.kind not in DTYPES:
        raise UnreadableModelError(f"{path}: '{name}' has the dtype number {entry.kind}, which is not supported")
    if not entry.slices:
        return _stored(path, name, entry, shards)
    begin = b"\0" + key.replace(b"\xff", b"\xff\0").replace(b"\0", b"\0\xff") + b"\0\1"
    first = bisect.bisect_left(keys, begin)
    own = itertools.takewhile(lambda k: k.startswith(begin), itertools.islice(keys, first, None))
    parts = [_stored(path, name, entries[k], shards) for k in own]
    if len(parts) != len(entry.slices) or any(len(s) != len(entry.shape) for s in entry.slices):
        raise UnreadableModelError(f"{path}: slices of the variable '{name}' are missing")
    starts = sorted(tuple(at for at, _ in s) for s in entry.slices)  # keys are in the order of starts
    return assemble_slices(path, name, entry.shape, dict(zip(starts, parts, strict=True)))


def _stored(path: Path, name: str, entry: _Entry, shards: list[SourceFile]) -> Tensor:
    tensor = Tensor(name, DTYPES.get(entry.kind, "U8"), entry.shape, FileStorage(shards[0], 0, 0))
    if entry.kind not in DTYPES or entry.size != tensor.nbytes or not 0 <= entry.shard < len(shards):
        raise UnreadableModelError(f"{path}: '{name}' has {entry.size} bytes, but its shape needs {tensor.nbytes}")
    file = shards[entry.shard]
    if entry.offset < 0 or entry.offset + entry.size > file.size:
        raise UnreadableModelError(f"{file.path} ends before '{name}' does. Was the download truncated?")
    return Tensor(name, tensor.dtype, tensor.shape, FileStorage(file, entry.offset, entry.size))
