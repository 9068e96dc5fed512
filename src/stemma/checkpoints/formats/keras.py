"""Keras: HDF5 weight files and `.keras` archives, through h5py.

Uncompressed data sets are read at their place in the file; compressed or chunked ones through the library, row slices
at a time. Names are the paths below `model_weights`.
"""

import io
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.views import PartStorage, SwappedStorage
from stemma.checkpoints.tensor import CHUNK, AbstractStorage, ArrayStorage, Tensor, dtype_code, fill
from stemma.errors import MissingExtraError, NotAModelError, UnreadableModelError

MAGIC = b"\x89HDF\r\n\x1a\n"
SKIPPED = ("optimizer_weights", "optimizer", "_optimizer")
MAX_OBJECTS = 200_000
MAX_PACKED = 256 << 20
"""Bytes of a compressed `.keras` archive's weights; they are held in memory while the model is."""
MAX_GROWTH = 200
"""A compressed data set may not grow by more than this once it is larger than `archives.BOMB`."""


class Hdf5(AbstractFormat):
    """Keras weights in HDF5."""

    name: ClassVar[str] = "Keras HDF5"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`.

        Returns:
            True for the magic.
        """
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`.

        Returns:
            The contents.
        """
        file = SourceFile(path)
        return _read(path, FileStorage(file, 0, file.size), file.size)


class Keras(AbstractFormat):
    """Keras 3 archives: the weights are an HDF5 file inside."""

    name: ClassVar[str] = "Keras archive"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`.

        Returns:
            True for a zip archive with that ending.
        """
        return head[:4] == b"PK\x03\x04" and path.suffix.lower() == ".keras"

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`.

        Returns:
            The contents.

        Raises:
            UnreadableModelError: If the archive holds no weights.
        """
        record = archives.records(path).get("model.weights.h5")
        if record is None:
            raise UnreadableModelError(f"{path} is no Keras archive: it holds no model.weights.h5")
        if not isinstance(record.storage, archives.InflateStorage):
            return _read(path, record.storage, record.size)
        if record.size > MAX_PACKED:  # the library jumps to and fro, and a compressed record can only be read forwards
            raise UnreadableModelError(f"{path} compresses {record.size} bytes of weights. Save it uncompressed")
        held = np.empty(record.size, np.uint8)
        record.checked().read_into(0, held.data)
        return _read(path, ArrayStorage(lambda: held), record.size)


class _Stream(io.RawIOBase):
    """A storage as a file that the library can seek in."""

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


class _Library:
    """The file as the library sees it, opened on first use; its calls come one at a time."""

    def __init__(self, path: Path, storage: AbstractStorage, size: int) -> None:
        self.path, self.storage, self.size = path, storage, size
        self.lock = threading.Lock()
        self._file: Any = None

    def __reduce__(self):
        return _Library, (self.path, self.storage, self.size)

    def file(self) -> Any:
        if self._file is None:
            try:
                import h5py
            except ImportError as e:
                raise MissingExtraError(f"{self.path}: reading Keras files", "h5py", "formats") from e
            try:
                self._file = h5py.File(_Stream(self.storage, self.size), "r")
            except Exception as e:  # the library raises many kinds of error on damaged files
                raise UnreadableModelError(f"{self.path} is a damaged HDF5 file ({type(e).__name__})") from e
        return self._file


class _DatasetStorage(AbstractStorage):
    """A compressed or chunked data set."""

    def __init__(self, library: _Library, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
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
            except Exception as e:  # see `_Library.file`
                raise UnreadableModelError(f"{self._library.path}: '{self._name}' cannot be read: {e}") from e
        return np.ascontiguousarray(values, self._dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _read(path: Path, storage: AbstractStorage, size: int) -> Contents:
    library = _Library(path, storage, size)
    try:
        with library.lock:
            file = library.file()
            root = "model_weights" if "model_weights" in file else ""
            left_out = [n for n in file if n in SKIPPED]
            tensors = tuple(_walk(library, file[root] if root else file, path))
    except (UnreadableModelError, NotAModelError, MissingExtraError):
        raise
    except Exception as e:  # see `_Library.file`
        raise UnreadableModelError(f"{path} is a damaged HDF5 file ({type(e).__name__})") from e
    return Contents({"": tensors}, {}, (f"left out: {', '.join(left_out)}",) if left_out else ())


def _walk(library: _Library, root: Any, path: Path) -> Iterator[Tensor]:
    import h5py
    from h5py import h5o  # ty: ignore

    stack: list[tuple[str, Any]] = [("", root)]
    seen: set[tuple[int, int]] = set()
    while stack:
        prefix, group = stack.pop()
        if len(seen) + len(stack) > MAX_OBJECTS:
            raise UnreadableModelError(f"{path} holds more than {MAX_OBJECTS} objects")
        for key in group:
            if not prefix and key in SKIPPED:
                continue
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnreadableModelError(f"{path}: '{prefix}{key}' is a link out of its place; it was not followed")
            item = group[key]
            info = h5o.get_info(item.id)
            if isinstance(item, h5py.Group):
                if (info.fileno, info.addr) in seen:
                    raise UnreadableModelError(f"{path}: the groups form a loop at '{prefix}{key}'")
                seen.add((info.fileno, info.addr))
                stack.append((f"{prefix}{key}/", item))
            elif isinstance(item, h5py.Dataset):
                yield from _dataset(library, prefix + key, item, path)


def _dataset(library: _Library, name: str, item: Any, path: Path) -> Iterator[Tensor]:
    dtype, shape = item.dtype, item.shape
    code = dtype_code(dtype) if dtype.kind in "fiubc" else None
    if code is None or shape is None:
        return  # texts and the like are no weights
    if item.external or item.is_virtual:
        raise UnreadableModelError(f"{path}: '{name}' lies in another file; it was not read")
    length = math.prod(shape) * dtype.itemsize
    offset = item.id.get_offset()
    if offset is not None:
        if offset < 0 or offset + length > library.size:
            raise UnreadableModelError(f"{path} ends inside '{name}'. Truncated download?")
        storage: AbstractStorage = PartStorage(library.storage, offset)
        if dtype.byteorder == ">":
            storage = SwappedStorage(storage, dtype.itemsize // (2 if dtype.kind == "c" else 1))
    else:
        if length > archives.BOMB and length > MAX_GROWTH * max(1, item.id.get_storage_size()):
            raise UnreadableModelError(f"{path}: '{name}' would grow to {length} bytes: a bomb?")
        storage = _DatasetStorage(library, item.name, shape, dtype)
    yield Tensor(name, code, shape, storage)
