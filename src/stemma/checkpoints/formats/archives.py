"""Records of zip archives (PyTorch, NumPy, Keras), read in slices without trusting the archive or extracting to disk.

Checksums are verified when a record is read completely and in order (`checked`), for formats that write them: PyTorch
deliberately does not compute them.
"""

import io
import itertools
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from stemma.checkpoints import budget
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.tensor import AbstractStorage
from stemma.errors import UnreadableModelError, UnsafeFileError

MAX_RATIO = 200
"""Largest expansion of a compressed record …"""
BOMB_SIZE = 256 << 20
"""… that expands to more than this many bytes."""
MAX_RECORDS = 250_000
_LISTED = b"PK\x01\x02"
"""Beginning of an entry in the list of an archive."""
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
PIECE_SIZE = 1 << 18
MAX_MARK = 1 << 12


@dataclass(frozen=True)
class Record:
    """One file in an archive.

    Attributes:
        name: Its path in the archive.
        size: Uncompressed bytes.
        storage: The bytes.
        crc: Their checksum according to the archive.
    """

    name: str
    size: int
    storage: AbstractStorage
    crc: int

    def checked(self) -> AbstractStorage:
        """The bytes as a storage that verifies their checksum when they are read completely and in order."""
        return ChecksumStorage(self.name, self.storage, self.size, self.crc)

    def read(self, limit: int) -> bytes:
        """All bytes of the record; raises if it is larger than `limit`."""
        if self.size > limit:
            raise UnreadableModelError(
                f"the archive's record '{self.name}' has {self.size} bytes; the limit is {limit}"
            )
        out = bytearray(self.size)
        self.storage.read_into(0, memoryview(out))
        return bytes(out)


class InflateStorage(AbstractStorage):
    """A compressed record, read forwards in slices; seeking back starts over."""

    def __init__(self, packed: FileStorage, size: int) -> None:
        self._packed = packed
        self._size = size
        self._lock = threading.Lock()
        self._restart()

    def __reduce__(self):
        return InflateStorage, (self._packed, self._size)

    def _restart(self) -> None:
        self._inflate = zlib.decompressobj(-15)
        self._consumed = 0
        self._at = 0
        self._tail = b""

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        if start + len(out) > self._size:
            raise UnreadableModelError(f"read past the end of a record in {self._packed.file.path}")
        with self._lock:
            if start < self._at:
                self._restart()
            while self._at < start:
                self._next(min(PIECE_SIZE, start - self._at))
            done = 0
            while done < len(out):
                piece = self._next(min(PIECE_SIZE, len(out) - done))
                out[done : done + len(piece)] = piece
                done += len(piece)

    def _next(self, most: int) -> bytes:
        # at least one and at most `most` bytes
        while True:
            fed = b""
            if not self._tail and self._consumed < self._packed.length:
                fed = bytearray(min(PIECE_SIZE, self._packed.length - self._consumed))
                self._packed.read_into(self._consumed, memoryview(fed))
                self._consumed += len(fed)
            try:
                piece = self._inflate.decompress(self._tail or fed, most)
            except zlib.error as e:
                raise UnreadableModelError(f"{self._packed.file.path} holds a corrupt compressed record") from e
            self._tail = self._inflate.unconsumed_tail
            if piece:
                self._at += len(piece)
                return piece
            if self._inflate.eof or (not self._tail and self._consumed >= self._packed.length):
                raise UnreadableModelError(f"{self._packed.file.path} holds a compressed record that ends too early")


class ChecksumStorage(AbstractStorage):
    """Verifies the checksum of a record at the end of every complete, in-order read."""

    def __init__(self, name: str, storage: AbstractStorage, size: int, crc: int) -> None:
        self._arguments = (name, storage, size, crc)
        self._lock = threading.Lock()
        self._at, self._sum = 0, 0
        self._marks = {0: 0}

    def __reduce__(self):
        return ChecksumStorage, self._arguments

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        name, storage, size, crc = self._arguments
        with self._lock:
            storage.read_into(start, out)
            if start != self._at:
                self._at, self._sum = (start, self._marks[start]) if start in self._marks else (-1, 0)
            if self._at == start:
                self._at, self._sum = start + len(out), zlib.crc32(out, self._sum)
                if self._at < MAX_MARK:  # later reads start where a header ends
                    self._marks[self._at] = self._sum
                if self._at == size and self._sum != crc:
                    raise UnreadableModelError(
                        f"the record '{name}' is damaged: its checksum does not match. Download the file again"
                    )


class _Part(io.RawIOBase):
    """A byte range of a file as a seekable file."""

    def __init__(self, file: SourceFile, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        n = max(0, self._size - self._at)
        n = n if size is None or size < 0 else min(n, size)
        self._at += n
        return self._file.read(self._begin + self._at - n, n)


def records(path: Path, begin: int = 0, end: int | None = None) -> dict[str, Record]:
    """Records of a zip archive by name, without folders; `begin` and `end` delimit an archive inside a file."""
    file = SourceFile(path)
    try:
        if not 0 <= begin <= (file.size if end is None else end) <= file.size:
            raise UnreadableModelError(f"{path} ends before its archive does. Was the download truncated?")
        part = _Part(file, begin, file.size if end is None else end)
        _check_length(path, part)
        with zipfile.ZipFile(part) as archive:
            infos = archive.infolist()
    except UnreadableModelError:
        raise
    except Exception as e:  # zipfile raises many kinds of error on damaged input
        raise UnreadableModelError(
            f"{path} is a damaged zip archive ({type(e).__name__}). Was the download truncated?"
        ) from e
    out: dict[str, Record] = {}
    spans: list[tuple[int, int]] = []
    for info in infos:
        if not info.filename:
            raise UnreadableModelError(f"{path}: a record of the archive has no name")
        if info.is_dir():
            continue
        if info.filename in out:
            raise UnreadableModelError(f"{path}: the record '{info.filename}' appears twice")
        budget.current().entries()
        record, span = _record(file, info, begin)
        out[info.filename] = record
        spans.append(span)
    spans.sort()
    if any(a_end > b_start for (_, a_end), (b_start, _) in itertools.pairwise(spans)):
        raise UnreadableModelError(f"{path}: records of the archive overlap")
    return out


def _check_length(path: Path, part: _Part) -> None:
    """Raise if the list of an archive is longer than `zipfile` should be given, which holds an object per record."""
    end = zipfile._EndRecData(part)  # ty: ignore[missing-attribute] - no public function finds the list alone
    if not end:
        return
    size = min(int(end[zipfile._ECD_SIZE]), part.seek(0, io.SEEK_END))  # ty: ignore[missing-attribute]
    budget.current().text(size)
    part.seek(max(0, int(end[zipfile._ECD_LOCATION]) - size))  # ty: ignore[missing-attribute]
    listed = part.read(size).count(_LISTED)
    if listed > MAX_RECORDS:
        budget.current().refuse(f"its archive lists {listed:,} records; the limit is {MAX_RECORDS:,}", "Save fewer")


def _record(file: SourceFile, info: zipfile.ZipInfo, base: int) -> tuple[Record, tuple[int, int]]:
    name = info.filename
    if name.startswith(("/", "\\")) or "\\" in name or ".." in name.split("/") or name[1:2] == ":":
        raise UnsafeFileError(
            f"{file.path}: the record name {name!r} points outside the archive; the file was not read"
        )
    if info.flag_bits & 1:
        raise UnreadableModelError(f"{file.path}: the record '{name}' is encrypted")
    head = file.read(base + info.header_offset, _LOCAL.size)
    magic, *_, name_length, extra_length = _LOCAL.unpack(head)
    begin = base + info.header_offset + _LOCAL.size + name_length + extra_length
    if magic != b"PK\x03\x04" or begin + info.compress_size > file.size:
        raise UnreadableModelError(
            f"{file.path}: the record '{name}' is not at its listed position. Was the download truncated?"
        )
    stored_name = file.read(base + info.header_offset + _LOCAL.size, name_length)
    if stored_name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", errors="replace") != info.orig_filename:
        raise UnreadableModelError(f"{file.path}: the record '{name}' has a different name in its local header")
    packed = FileStorage(file, begin, info.compress_size)
    span = (base + info.header_offset, begin + info.compress_size)
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise UnreadableModelError(f"{file.path}: the record '{name}' has contradictory sizes")
        return Record(name, info.file_size, packed, info.CRC), span
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise UnreadableModelError(
            f"{file.path}: the record '{name}' uses the unsupported compression method {info.compress_type}"
        )
    if info.file_size > BOMB_SIZE and info.file_size > MAX_RATIO * max(1, info.compress_size):
        raise UnreadableModelError(
            f"{file.path}: the record '{name}' would expand from {info.compress_size} to {info.file_size} bytes: "
            "possible zip bomb, not read"
        )
    return Record(name, info.file_size, InflateStorage(packed, info.file_size), info.CRC), span
