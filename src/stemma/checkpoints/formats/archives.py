"""Records of zip archives (PyTorch, NumPy, Keras), read in slices and distrusted: nothing is extracted to disk.

Checksums are compared where the format means them, when a record is read from its beginning to its end (`checked`);
PyTorch writes archives whose checksums are deliberately not computed.
"""

import io
import itertools
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.tensor import AbstractStorage
from stemma.errors import UnreadableModelError, UnsafeFileError

MAX_RATIO = 200
"""A compressed record may not grow by more than this …"""
BOMB = 256 << 20
"""… once it is larger than this many bytes."""
MAX_RECORDS = 1_000_000
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
PIECE = 1 << 18
MARKED = 1 << 12


@dataclass(frozen=True)
class Record:
    """One file of an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes when unpacked.
        storage: Where they come from.
        crc: Their checksum as the archive says.
    """

    name: str
    size: int
    storage: AbstractStorage
    crc: int

    def checked(self) -> AbstractStorage:
        """The bytes, with their checksum compared by whoever reads all of them in order.

        Returns:
            A storage over the record's.
        """
        return ChecksumStorage(self.name, self.storage, self.size, self.crc)

    def read(self, limit: int) -> bytes:
        """The whole record.

        Args:
            limit: Largest size that is reasonable for it.

        Returns:
            Its bytes.

        Raises:
            UnreadableModelError: If it is larger than the limit.
        """
        if self.size > limit:
            raise UnreadableModelError(
                f"the archive's record '{self.name}' has {self.size} bytes, {limit} are the limit"
            )
        out = bytearray(self.size)
        self.storage.read_into(0, memoryview(out))
        return bytes(out)


class InflateStorage(AbstractStorage):
    """A compressed record: read forwards in slices; going back starts over."""

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
        """See `AbstractStorage.read_into`.

        Raises:
            UnreadableModelError: If the record is corrupt or shorter than it says.
        """
        if start + len(out) > self._size:
            raise UnreadableModelError(f"read past the end of a record in {self._packed.file.path}")
        with self._lock:
            if start < self._at:
                self._restart()
            while self._at < start:
                self._next(min(PIECE, start - self._at))
            done = 0
            while done < len(out):
                piece = self._next(min(PIECE, len(out) - done))
                out[done : done + len(piece)] = piece
                done += len(piece)

    def _next(self, most: int) -> bytes:
        # at least one and at most `most` bytes
        while True:
            fed = b""
            if not self._tail and self._consumed < self._packed.length:
                fed = bytearray(min(PIECE, self._packed.length - self._consumed))
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
    """Compares a record's checksum at the end of every reading that went through it in order."""

    def __init__(self, name: str, whole: AbstractStorage, size: int, crc: int) -> None:
        self._arguments = (name, whole, size, crc)
        self._lock = threading.Lock()
        self._at, self._sum = 0, 0
        self._marks = {0: 0}

    def __reduce__(self):
        return ChecksumStorage, self._arguments

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`.

        Raises:
            UnreadableModelError: If this reading ended the record and the checksum is another.
        """
        name, whole, size, crc = self._arguments
        with self._lock:
            whole.read_into(start, out)
            if start != self._at:
                self._at, self._sum = (start, self._marks[start]) if start in self._marks else (-1, 0)
            if self._at == start:
                self._at, self._sum = start + len(out), zlib.crc32(out, self._sum)
                if self._at < MARKED:  # where a header ends, later readings begin
                    self._marks[self._at] = self._sum
                if self._at == size and self._sum != crc:
                    raise UnreadableModelError(
                        f"the record '{name}' is damaged: its checksum is not the one it was stored with"
                    )


class _Part(io.RawIOBase):
    """A part of a file as a file of its own."""

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
    """The records of an archive.

    Args:
        path: A zip file, or a file in which one lies.
        begin: Where the archive begins.
        end: The byte behind it; the file's end if None.

    Returns:
        Records by name, in the archive's order; folders are left out.

    Raises:
        UnreadableModelError: If the archive is damaged, ambiguous, encrypted or a bomb.
    """
    file = SourceFile(path)
    try:
        if not 0 <= begin <= (file.size if end is None else end) <= file.size:
            raise UnreadableModelError(f"{path} ends before the archive inside it does. Truncated download?")
        with zipfile.ZipFile(_Part(file, begin, file.size if end is None else end)) as archive:
            infos = archive.infolist()
    except UnreadableModelError:
        raise
    except Exception as e:  # zipfile raises many kinds of error on damaged input
        raise UnreadableModelError(f"{path} is a damaged zip archive ({type(e).__name__}). Truncated download?") from e
    if len(infos) > MAX_RECORDS:
        raise UnreadableModelError(f"{path} lists {len(infos)} records, {MAX_RECORDS} are the limit")
    out: dict[str, Record] = {}
    spans: list[tuple[int, int]] = []
    for info in infos:
        if not info.filename:
            raise UnreadableModelError(f"{path}: a record of the archive has no name")
        if info.is_dir():
            continue
        if info.filename in out:
            raise UnreadableModelError(f"{path}: the record '{info.filename}' appears twice")
        record, span = _record(file, info, begin)
        out[info.filename] = record
        spans.append(span)
    spans.sort()
    if any(a_end > b_start for (_, a_end), (b_start, _) in itertools.pairwise(spans)):
        raise UnreadableModelError(f"{path}: records of the archive overlap")
    return out


def _record(file: SourceFile, info: zipfile.ZipInfo, base: int) -> tuple[Record, tuple[int, int]]:
    name = info.filename
    if name.startswith(("/", "\\")) or "\\" in name or ".." in name.split("/") or name[1:2] == ":":
        raise UnsafeFileError(f"{file.path}: the record {name!r} leaves the archive; it was not read")
    if info.flag_bits & 1:
        raise UnreadableModelError(f"{file.path}: the record '{name}' is encrypted")
    head = file.read(base + info.header_offset, _LOCAL.size)
    magic, *_, name_length, extra_length = _LOCAL.unpack(head)
    begin = base + info.header_offset + _LOCAL.size + name_length + extra_length
    if magic != b"PK\x03\x04" or begin + info.compress_size > file.size:
        raise UnreadableModelError(
            f"{file.path}: the record '{name}' is not where the archive says. Truncated download?"
        )
    stored_name = file.read(base + info.header_offset + _LOCAL.size, name_length)
    if stored_name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", errors="replace") != info.orig_filename:
        raise UnreadableModelError(f"{file.path}: the record '{name}' has another name where it lies")
    packed = FileStorage(file, begin, info.compress_size)
    span = (base + info.header_offset, begin + info.compress_size)
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise UnreadableModelError(f"{file.path}: the record '{name}' has two sizes")
        return Record(name, info.file_size, packed, info.CRC), span
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise UnreadableModelError(f"{file.path}: the record '{name}' is compressed by method {info.compress_type}")
    if info.file_size > BOMB and info.file_size > MAX_RATIO * max(1, info.compress_size):
        raise UnreadableModelError(
            f"{file.path}: the record '{name}' would grow from {info.compress_size} to {info.file_size} bytes: a bomb?"
        )
    return Record(name, info.file_size, InflateStorage(packed, info.file_size), info.CRC), span
