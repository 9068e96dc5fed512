"""PyTorch files, zip and legacy, read without torch and without running anything in them."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints import budget
from stemma.checkpoints.formats import archives, pickle_records, pickles
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.pickled_tensors import contents, refuse_other_models
from stemma.checkpoints.tensor import ITEMSIZE, AbstractStorage
from stemma.errors import NotAModelError, UnreadableModelError

MAX_PICKLE = 1 << 28
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEADS = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", b"L119547037146038801333356L\n.")


class PyTorch(AbstractFormat):
    """`torch.save` files of either format."""

    name: ClassVar[str] = "PyTorch"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".pyth", ".model")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        if head.startswith(_LEGACY_HEADS):
            return True
        return (
            head[:4] == b"PK\x03\x04"
            and len(head) > 30
            and path.suffix.lower() not in (".npz", ".keras")
            and _has_pickle(path, head)
        )

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        with path.open("rb") as f:
            head = f.read(512)
        if head[:4] == b"PK\x03\x04":
            return _read_zip(path)
        try:
            return _read_legacy(path)
        except pickles.DamagedPickleError as e:
            if head[:1] == b"\x80":
                raise
            raise NotAModelError(
                f"{path} has an unknown format: its first bytes {head[:8]!r} are not those of a PyTorch file. "
                "Convert it to safetensors or ONNX with the program that made it"
            ) from e


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
    if not top:
        inside = ", ".join(list(records)[:3])
        raise NotAModelError(
            f"{path} is a zip archive but not a PyTorch file ({inside} …): unpack it and use the checkpoint inside"
        )
    return read_records(path, records, top)


def read_records(path: Path, records: Mapping[str, archives.Record], top: list[str]) -> Contents:
    """Tensors in the records of a PyTorch archive; `top` are the names of its pickles."""
    if len(top) != 1:
        raise UnreadableModelError(f"{path} is not a valid PyTorch file: it has {len(top)} records named 'data.pkl'")
    root = top[0].removesuffix("data.pkl")
    order = records[f"{root}byteorder"].read(16) if f"{root}byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise UnreadableModelError(f"{path}: unknown byte order {order!r}")
    swapped = order == b"big"
    scripted = f"{root}constants.pkl" in records or any(n.startswith(f"{root}code/") for n in records)
    if not scripted:
        return _pickle(path, records, root, "data", swapped)
    note = "a TorchScript program: only its weights were read, its code was not"
    try:
        found = _pickle(path, records, root, "data", swapped)
    except NotAModelError:
        found = Contents({})
    # a frozen program stores its weights as constants
    if not any(found.parts.values()) and f"{root}constants.pkl" in records:
        found = _pickle(path, records, root, "constants", swapped)
    notes = (note, *(n for n in found.notes if "were not run" not in n))
    return Contents(found.parts, found.metadata, notes, found.aliases)


def _pickle(path: Path, records: Mapping[str, archives.Record], root: str, label: str, swapped: bool) -> Contents:
    # the storages of LABEL.pkl are in the folder LABEL
    def opened(stored: pickle_records.StorageRef) -> tuple[AbstractStorage, int]:
        record = records.get(f"{root}{label}/{stored.key}")
        if record is None:
            raise UnreadableModelError(f"{path}: the storage '{stored.key}' is missing")
        if record.size < stored.count * ITEMSIZE[stored.code]:
            raise UnreadableModelError(
                f"{path}: the storage '{stored.key}' has {record.size} bytes, fewer than its tensors need"
            )
        return record.storage, record.size

    record = records[f"{root}{label}.pkl"]
    if not isinstance(record.storage, FileStorage):  # a compressed pickle may be thousands of times its bytes on disk
        budget.current().text(record.size)
    stream = io.BytesIO(record.read(MAX_PICKLE))
    foreign: set[str] = set()
    tree = pickles.read(stream, path, lambda pid: _stored(path, pid), foreign)
    return contents(path, tree, opened, swapped=swapped, foreign=foreign)


def _stored(path: Path, pid: Any) -> Any:
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
        return pid[1]  # a class with its source
    if (
        not isinstance(pid, tuple)
        or len(pid) < 5
        or pid[0] != "storage"
        or not isinstance(pid[1], pickle_records.DtypeRecord)
    ):
        raise UnreadableModelError(f"{path}: a storage has an unknown description")
    key, count = pid[2], pid[4]
    if not isinstance(key, (str, int)) or type(count) is not int or not 0 <= count < 2**48:
        raise UnreadableModelError(f"{path}: a storage has the invalid size {pickle_records.shown(count)}")
    return pickle_records.StorageRef(str(key), pid[1].code, count)


def _read_legacy(path: Path) -> Contents:
    # four pickles, the storage keys, then for each storage its element count and bytes
    file = SourceFile(path)
    storages: dict[str, pickle_records.StorageRef] = {}
    views: dict[str, tuple[str, int, int]] = {}

    def storage(pid: Any) -> Any:
        stored = _stored(path, pid)
        if not isinstance(stored, pickle_records.StorageRef):
            return stored
        if storages.setdefault(stored.key, stored) != stored:
            raise UnreadableModelError(f"{path}: the storage '{stored.key}' is described twice")
        part = pid[5] if len(pid) > 5 else None
        if part is None:
            return stored
        key, offset, count = part
        if type(offset) is not int or type(count) is not int or min(offset, count) < 0 or offset + count > stored.count:
            raise UnreadableModelError(f"{path}: a tensor view reaches outside its storage")
        views[str(key)] = (stored.key, offset, count)
        return pickle_records.StorageRef(str(key), stored.code, count)

    foreign: set[str] = set()
    with path.open("rb") as f:
        magic = pickles.read(f, path, storage)
        if magic != LEGACY_MAGIC:
            if isinstance(magic, pickle_records.UnknownObject):
                refuse_other_models(path, magic.label)
            raise NotAModelError(
                f"{path} is a plain Python pickle, not a PyTorch file, which is not supported: "
                "load it where it was made, and save its arrays as safetensors or .npz"
            )
        _protocol, system = pickles.read(f, path, storage), pickles.read(f, path, storage)
        tree = pickles.read(f, path, storage, foreign)
        keys = pickles.read(f, path, storage)
        at = f.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise UnreadableModelError(f"{path}: the list of storages does not match the storages in use")
    little = not isinstance(system, dict) or system.get("little_endian", True)
    runs: dict[str, FileStorage] = {}
    for key in map(str, keys):
        count, wanted = struct.unpack("<q" if little else ">q", file.read(at, 8))[0], storages[key]
        length = wanted.count * ITEMSIZE[wanted.code]
        if count != wanted.count or at + 8 + length > file.size:
            raise UnreadableModelError(
                f"{path}: the storage '{key}' has {count} elements, but {wanted.count} are needed"
            )
        runs[key] = FileStorage(file, at + 8, length)
        at += 8 + length
    if at != file.size:
        raise UnreadableModelError(f"{path} has {file.size - at} unexpected bytes after its last storage")

    def opened(stored: pickle_records.StorageRef) -> tuple[AbstractStorage, int]:
        key, offset, count = views.get(stored.key, (stored.key, 0, stored.count))
        width = ITEMSIZE[stored.code]
        return FileStorage(file, runs[key].offset + offset * width, count * width), count * width

    return contents(path, tree, opened, swapped=not little, foreign=foreign)
