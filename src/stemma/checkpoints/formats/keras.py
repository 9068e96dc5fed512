"""Keras: HDF5 weight files and `.keras` archives, through h5py.

Uncompressed data sets are read in place; compressed or chunked ones through h5py, in row slices. Names are the paths
below `model_weights`.
"""

import io
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.views import ByteSwappedStorage, OffsetStorage
from stemma.checkpoints.tensor import CHUNK, AbstractStorage, ArrayStorage, Tensor, dtype_code, fill
from stemma.errors import MissingExtraError, NotAModelError, UnreadableModelError

MAGIC = b"\x89HDF\r\n\x1a\n"
OPTIMIZER_GROUPS = ("optimizer_weights", "optimizer", "_optimizer")
MAX_OBJECTS = 200_000
MAX_PACKED = 256 << 20
"""Bytes of a compressed `.keras` archive's weights; they are held in memory while the model is."""
MAX_CHUNK = 256 << 20
"""Bytes of one chunk, which the library unpacks as a whole; Keras and h5py choose chunks of a megabyte or less."""
FEW_CHUNKS, CHUNK_ENTRY = 10_000, 16
"""Chunks that a data set may have whatever its size on disk; others need this many bytes in an index."""


class Hdf5(AbstractFormat):
    """Keras weights in HDF5."""

    name: ClassVar[str] = "Keras HDF5"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        file = SourceFile(path)
        return _read(path, FileStorage(file, 0, file.size), file.size)


class Keras(AbstractFormat):
    """Keras 3 archives: the weights are an HDF5 file inside."""

    name: ClassVar[str] = "Keras archive"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head[:4] == b"PK\x03\x04" and path.suffix.lower() == ".keras"

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        record = archives.records(path).get("model.weights.h5")
        if record is None:
            raise UnreadableModelError(f"{path} is not a Keras archive: it contains no model.weights.h5")
        if not isinstance(record.storage, archives.InflateStorage):
            return _read(path, record.storage, record.size)
        if record.size > MAX_PACKED:  # h5py seeks, and a compressed record can only be read forwards
            raise UnreadableModelError(
                f"{path} holds {record.size} bytes of compressed weights, which is too many. Save it uncompressed"
            )
        held = np.empty(record.size, np.uint8)
        record.checked().read_into(0, held.data)
        return _read(path, ArrayStorage(lambda: held), record.size)


class _Stream(io.RawIOBase):
    """A storage as a seekable file for h5py."""

    def __init__(self, storage: AbstractStorage, size: int) -> None:
        self._storage, self._size, self._at = storage, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._size - self._at))
        if n:
            self._storage.read_into(self._at, view[:n])
            self._at += n
        return n


class _H5File:
    """The file as h5py sees it, opened on first use; calls are serialised."""

    def __init__(self, path: Path, storage: AbstractStorage, size: int) -> None:
        self.path, self.storage, self.size = path, storage, size
        self.lock = threading.Lock()
        self._file: Any = None

    def __reduce__(self):
        return _H5File, (self.path, self.storage, self.size)

    def file(self) -> Any:
        if self._file is None:
            try:
                import h5py
            except ImportError as e:
                raise MissingExtraError(f"{self.path}: reading Keras files", "h5py", "formats") from e
            try:
                self._file = h5py.File(_Stream(self.storage, self.size), "r")
            except Exception as e:  # h5py raises many kinds of error on damaged files
                raise UnreadableModelError(f"{self.path} is a damaged HDF5 file ({type(e).__name__})") from e
        return self._file


class _DatasetStorage(AbstractStorage):
    """A compressed or chunked data set."""

    def __init__(self, library: _H5File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._library, self._name, self._shape, self._dtype = library, name, shape, dtype

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        row = self._dtype.itemsize * math.prod(self._shape[1:])
        fill(start, out, row, max(1, CHUNK // row), self._rows)

    def _rows(self, first: int, last: int) -> np.ndarray:
        with self._library.lock:
            try:
                data = self._library.file()[self._name]
                values = data[first:last] if self._shape else np.asarray(data[()])
            except Exception as e:  # see `_H5File.file`
                raise UnreadableModelError(f"{self._library.path}: '{self._name}' cannot be read: {e}") from e
        return np.ascontiguousarray(values, self._dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _read(path: Path, storage: AbstractStorage, size: int) -> Contents:
    library = _H5File(path, storage, size)
    try:
        with library.lock:
            file = library.file()
            root = "model_weights" if "model_weights" in file else ""
            left_out = [n for n in file if n in OPTIMIZER_GROUPS]
            tensors, size = [], 0
            for tensor in _walk(library, file[root] if root else file, path):
                tensors.append(tensor)
                size += tensor.nbytes
                budget.current().count(len(tensors))
                budget.current().expands(size)
    except (UnreadableModelError, NotAModelError, MissingExtraError):
        raise
    except Exception as e:  # see `_H5File.file`
        raise UnreadableModelError(f"{path} is a damaged HDF5 file ({type(e).__name__})") from e
    return Contents({"": tuple(tensors)}, {}, (f"left out: {', '.join(left_out)}",) if left_out else ())


def _walk(library: _H5File, root: Any, path: Path) -> Iterator[Tensor]:
    import h5py
    from h5py import h5o  # ty: ignore

    stack: list[tuple[str, Any]] = [("", root)]
    visited: set[tuple[int, int]] = set()
    while stack:
        prefix, group = stack.pop()
        if len(visited) + len(stack) > MAX_OBJECTS:
            raise UnreadableModelError(f"{path} holds more than {MAX_OBJECTS} objects, which is not supported")
        for key in group:
            budget.current().text(len(prefix) + len(key))
            budget.current().entries(8)  # asking the library for an object costs as much as reading some numbers
            if not prefix and key in OPTIMIZER_GROUPS:
                continue
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnreadableModelError(f"{path}: '{prefix}{key}' is a soft or external link, which is not followed")
            item = group[key]
            info = h5o.get_info(item.id)
            if isinstance(item, h5py.Group):
                if (info.fileno, info.addr) in visited:
                    raise UnreadableModelError(f"{path}: the groups form a loop at '{prefix}{key}'")
                visited.add((info.fileno, info.addr))
                stack.append((f"{prefix}{key}/", item))
            elif isinstance(item, h5py.Dataset):
                yield from _dataset(library, prefix + key, item, path)


def _check_chunks(path: Path, name: str, item: Any, length: int) -> None:
    """Raise for chunks that cost far more than their bytes: huge ones, and more of them than are in the file."""
    if not item.chunks:
        return
    chunk = math.prod(item.chunks) * item.dtype.itemsize
    chunks = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    if chunk > max(MAX_CHUNK, 2 * length):
        raise UnreadableModelError(f"{path}: a chunk of '{name}' expands to {chunk} bytes: possible bomb, not read")
    if chunks > FEW_CHUNKS + item.id.get_storage_size() // CHUNK_ENTRY:
        raise UnreadableModelError(
            f"{path}: '{name}' has {chunks} chunks, most of which were never written: possible bomb, not read"
        )


def _dataset(library: _H5File, name: str, item: Any, path: Path) -> Iterator[Tensor]:
    dtype, shape = item.dtype, item.shape
    code = dtype_code(dtype) if dtype.kind in "fiubc" else None
    if code is None or shape is None:
        return  # not weights
    if item.external or item.is_virtual:
        raise UnreadableModelError(f"{path}: '{name}' is stored in another file, which was not read")
    length = math.prod(shape) * dtype.itemsize
    offset = item.id.get_offset()
    if offset is not None:
        if offset < 0 or offset + length > library.size:
            raise UnreadableModelError(f"{path} ends inside '{name}'. Was the download truncated?")
        storage: AbstractStorage = OffsetStorage(library.storage, offset)
        if dtype.byteorder == ">":
            storage = ByteSwappedStorage(storage, dtype.itemsize // (2 if dtype.kind == "c" else 1))
    else:
        _check_chunks(path, name, item, length)
        storage = _DatasetStorage(library, item.name, shape, dtype)
    yield Tensor(name, code, shape, storage)
