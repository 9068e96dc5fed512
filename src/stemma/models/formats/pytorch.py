"""PyTorch files, zip and legacy, read without torch and without running anything in them."""

import io
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.errors import NotAModelError, UnreadableModelError
from stemma.models.formats import archives, pickles
from stemma.models.formats.base import AbstractFormat, Contents
from stemma.models.formats.files import FileStorage, SourceFile
from stemma.models.formats.layouts import SwappedStorage, laid_out
from stemma.models.model import ITEMSIZE, AbstractStorage, ArrayStorage, Tensor, dtype_code
from stemma.models.names import unwrap

MAX_PICKLE = 1 << 28
MAX_NODES = 500_000
MAX_EXPANDED = 64 << 20
"""Bytes to which a view that repeats its elements may grow."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEADS = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", b"L119547037146038801333356L\n.")

Open = Callable[[pickles.Stored], tuple[AbstractStorage, int]]


class PyTorch(AbstractFormat):
    """`torch.save` files of either format."""

    name: ClassVar[str] = "PyTorch"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".pyth", ".model")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`.

        Returns:
            True for the legacy magic, and for zip archives with a `data.pkl`.
        """
        if head.startswith(_LEGACY_HEADS):
            return True
        return (
            head[:4] == b"PK\x03\x04"
            and len(head) > 30
            and path.suffix.lower() not in (".npz", ".keras")
            and _has_pickle(path, head)
        )

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`.

        Returns:
            The contents.

        Raises:
            UnreadableModelError: If the file is damaged or would run code.
            NotAModelError: If it is a tar archive.
        """
        with path.open("rb") as f:
            head = f.read(512)
        if head[:4] == b"PK\x03\x04":
            return _read_zip(path)
        if head[257:262] == b"ustar":
            raise NotAModelError(
                f"{path} is a tar archive (torch before 0.1.10, or a bundle), which Stemma does not read"
            )
        return _read_legacy(path)


def _has_pickle(path: Path, head: bytes) -> bool:
    names = struct.unpack("<H", head[26:28])[0]
    first = head[30 : 30 + names]
    if first.endswith(b"data.pkl"):
        return True
    try:
        return any(n.endswith("data.pkl") and n.count("/") <= 1 for n in archives.records(path))
    except UnreadableModelError:
        return path.suffix.lower() in PyTorch.suffixes


def _read_zip(path: Path) -> Contents:
    records = archives.records(path)
    top = sorted(n for n in records if n.rpartition("/")[2] == "data.pkl" and n.count("/") <= 1)
    if len(top) != 1:
        raise UnreadableModelError(f"{path} is no PyTorch file: it has {len(top)} records 'data.pkl'")
    root = top[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records or any(n.startswith(f"{root}code/") for n in records):
        raise NotAModelError(f"{path} is a TorchScript program, which Stemma does not read. Save its state_dict")
    order = records[f"{root}byteorder"].read(16) if f"{root}byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise UnreadableModelError(f"{path}: unknown byte order {order!r}")

    def opened(stored: pickles.Stored) -> tuple[AbstractStorage, int]:
        record = records.get(f"{root}data/{stored.key}")
        if record is None:
            raise UnreadableModelError(f"{path}: the storage '{stored.key}' is missing")
        if record.size < stored.count * ITEMSIZE[stored.code]:
            raise UnreadableModelError(f"{path}: the storage '{stored.key}' has {record.size} bytes, too few")
        return record.storage, record.size

    stream = io.BytesIO(records[top[0]].read(MAX_PICKLE))
    tree = pickles.read(stream, path, lambda pid: _stored(path, pid))
    return _contents(path, tree, opened, swapped=order == b"big")


def _stored(path: Path, pid: Any) -> pickles.Stored:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], pickles.Kind):
        raise UnreadableModelError(f"{path}: a storage is described in an unknown way")
    key, count = pid[2], pid[4]
    if not isinstance(key, (str, int)) or type(count) is not int or not 0 <= count < 2**48:
        raise UnreadableModelError(f"{path}: a storage has the impossible size {count!r}")
    return pickles.Stored(str(key), pid[1].code, count)


def _read_legacy(path: Path) -> Contents:
    # four pickles, the keys of the storages, then each storage: its element count and its bytes
    file = SourceFile(path)
    seen: dict[str, pickles.Stored] = {}
    views: dict[str, tuple[str, int, int]] = {}

    def storage(pid: Any) -> pickles.Stored:
        stored = _stored(path, pid)
        if seen.setdefault(stored.key, stored) != stored:
            raise UnreadableModelError(f"{path}: the storage '{stored.key}' is described twice")
        part = pid[5] if len(pid) > 5 else None
        if part is None:
            return stored
        key, offset, count = part
        if type(offset) is not int or type(count) is not int or min(offset, count) < 0 or offset + count > stored.count:
            raise UnreadableModelError(f"{path}: a view leaves its storage")
        views[str(key)] = (stored.key, offset, count)
        return pickles.Stored(str(key), stored.code, count)

    with path.open("rb") as f:
        magic = pickles.read(f, path, storage)
        if magic != LEGACY_MAGIC:
            raise NotAModelError(f"{path} is a bare Python pickle, not a PyTorch file, and is not read")
        _protocol, system = pickles.read(f, path, storage), pickles.read(f, path, storage)
        tree = pickles.read(f, path, storage)
        keys = pickles.read(f, path, storage)
        at = f.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(seen):
        raise UnreadableModelError(f"{path}: the list of storages does not name each storage once")
    little = not isinstance(system, dict) or system.get("little_endian", True)
    runs: dict[str, FileStorage] = {}
    for key in map(str, keys):
        count, wanted = struct.unpack("<q" if little else ">q", file.read(at, 8))[0], seen[key]
        length = wanted.count * ITEMSIZE[wanted.code]
        if count != wanted.count or at + 8 + length > file.size:
            raise UnreadableModelError(f"{path}: the storage '{key}' says {count} elements, {wanted.count} are needed")
        runs[key] = FileStorage(file, at + 8, length)
        at += 8 + length
    if at != file.size:
        raise UnreadableModelError(f"{path} has {file.size - at} bytes behind its last storage")

    def opened(stored: pickles.Stored) -> tuple[AbstractStorage, int]:
        key, offset, count = views.get(stored.key, (stored.key, 0, stored.count))
        width = ITEMSIZE[stored.code]
        return FileStorage(file, runs[key].offset + offset * width, count * width), count * width

    return _contents(path, tree, opened, swapped=not little)


def _contents(path: Path, tree: Any, opened: Open, *, swapped: bool) -> Contents:
    grower = _Grower(path, opened, swapped)
    if isinstance(tree, (pickles.View, pickles.Array, pickles.Quantized)):
        tree = {"tensor": tree}
    if not isinstance(tree, (dict, list, tuple)):
        raise NotAModelError(f"{path} holds no tensors: its content is a {type(tree).__name__}")
    if isinstance(tree, dict) and {"state", "param_groups"} == set(tree):
        raise NotAModelError(f"{path} holds an optimizer's state, not a network. Give the file with the weights")
    grown = grower.grow(tree, "", 0)
    parts, notes = unwrap(grown if isinstance(grown, Mapping) else {})
    if grower.holes:
        notes.append(f"{grower.holes} entries that are no tensors were left out")
    named = {p: tuple(Tensor(n, t.dtype, t.shape, t.storage) for n, t in found.items()) for p, found in parts.items()}
    return Contents(named, {}, tuple(notes), _aliases(parts, grower.places))


def _aliases(
    parts: Mapping[str, Mapping[str, Tensor]], places: Mapping[int, tuple[Any, ...]]
) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for found in parts.values():
        for name, t in found.items():
            if id(t) in places and t.size:
                groups.setdefault((id(found), *places[id(t)]), []).append(name)
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


class _Grower:
    """Turns the records of a pickle into nested tensors, checking each against its storage."""

    def __init__(self, path: Path, opened: Open, swapped: bool) -> None:
        self.path, self.opened, self.swapped = path, opened, swapped
        self.holes = 0
        self.nodes = 0
        self.places: dict[int, tuple[Any, ...]] = {}
        self._kept: list[Tensor] = []

    def grow(self, node: Any, name: str, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > pickles.MAX_DEPTH:
            raise UnreadableModelError(f"{self.path} is nested too deeply or too widely to be a checkpoint")
        if isinstance(node, (list, tuple)):
            node = dict(enumerate(node))
        if isinstance(node, dict):
            return self._branch(node, depth)
        if isinstance(node, pickles.View):
            return self.tensor(node, name)
        if isinstance(node, pickles.Array):
            return self._array(node, name)
        self.holes += 1
        return None

    def _branch(self, node: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.items():
            name = str(key) if isinstance(key, (str, int)) else None
            if name is None:
                self.holes += 1
                continue
            if name in out:
                raise UnreadableModelError(f"{self.path}: two tensors have the same name '{name}'")
            if isinstance(value, pickles.Quantized):
                out.update(self._quantized(name, value))
                continue
            grown = self.grow(value, name, depth + 1)
            if grown is not None:
                out[name] = grown
        return out

    def tensor(self, view: pickles.View, name: str) -> Tensor:
        path, code = self.path, view.code
        shape, strides = view.shape, view.strides
        fits = (
            isinstance(shape, (tuple, list)) and isinstance(strides, (tuple, list)) and len(shape) == len(strides) <= 64
        )
        numbers = (view.offset, *shape, *strides) if fits else (-1,)
        if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
            raise UnreadableModelError(
                f"{path}: the tensor '{name}' has an impossible shape {shape!r} or strides {strides!r}"
            )
        if isinstance(view.flags, dict) and any(view.flags.get(k) for k in ("conj", "neg")):
            raise UnreadableModelError(f"{path}: the tensor '{name}' is a lazy conjugate. Resolve it before saving")
        shape, strides, width = tuple(shape), tuple(strides), ITEMSIZE[code]
        storage, length = self.opened(view.stored)
        count = math.prod(shape)
        last = view.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if count and (last + 1) * width > min(length, view.stored.count * ITEMSIZE[view.stored.code]):
            raise UnreadableModelError(f"{path}: the tensor '{name}' reaches beyond its storage")
        if count * width > max(length, MAX_EXPANDED):
            raise UnreadableModelError(
                f"{path}: the tensor '{name}' repeats {length} bytes until they are {count * width}"
            )
        if self.swapped and width > 1:
            storage = SwappedStorage(storage, width // 2 if code.startswith("C") else width)
        tensor = Tensor(name, code, shape, laid_out(storage, width, view.offset, shape, strides) if count else storage)
        self._kept.append(tensor)  # keeps the id in `places` its own
        self.places[id(tensor)] = (view.stored.key, view.offset, shape, strides, code)
        return tensor

    def _quantized(self, name: str, value: pickles.Quantized) -> dict[str, Any]:
        out: dict[str, Any] = {name: self.tensor(value.codes, name)}
        for label, number, kind in (("scale", value.scale, np.float64), ("zero_point", value.zero_point, np.int64)):
            if isinstance(number, pickles.View):
                out[f"{name}::{label}"] = self.tensor(number, name)
            elif isinstance(number, (int, float)):
                made = np.array([number], kind) if abs(number) < 2**53 else np.zeros(1, kind)
                code = "F64" if kind is np.float64 else "I64"
                out[f"{name}::{label}"] = Tensor(f"{name}::{label}", code, (1,), ArrayStorage(lambda made=made: made))
        return out

    def _array(self, node: pickles.Array, name: str) -> Tensor | None:
        state = node.state
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], pickles.Dtype):
            self.holes += 1
            return None
        _, shape, kind, fortran, raw = state
        try:
            dtype = np.dtype(kind.order.replace("|", "=") + kind.text) if kind.text[:1] in "fiubc" else None
        except TypeError:
            dtype = None
        code = dtype_code(dtype) if dtype is not None else None
        if dtype is None or code is None or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            self.holes += 1
            return None
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(raw):
            raise UnreadableModelError(f"{self.path}: the array '{name}' of shape {shape} has {len(raw)} bytes")
        array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
        return Tensor(name, code, shape, ArrayStorage(lambda: array.astype(dtype.newbyteorder("<"))))
