"""Byte ranges of files: each file is opened once and read with positioned reads into a caller's buffer.

Files are not memory-mapped: mapped pages would count as resident memory, and a mapped file that shrinks kills the
process.
"""

import contextlib
import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints import budget
from stemma.checkpoints.remote import replica
from stemma.checkpoints.tensor import AbstractStorage
from stemma.errors import NotAModelError, UnreadableModelError

AHEAD = 1 << 20
"""Reads of at least this many bytes ask the system to read ahead."""
MAX_OPEN = 64
"""File descriptors kept open; the least recently used is closed first."""


class _Recent:
    """Open file descriptors, least recently used first; a descriptor in use is never closed.

    A file closes its descriptor when it is garbage-collected, which can happen during any line below. So closing takes
    no lock and changes nothing here: the code that removes a descriptor from the file's list closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._order: OrderedDict[int, weakref.ref[SourceFile]] = OrderedDict()

    @contextlib.contextmanager
    def borrow(self, file: "SourceFile") -> Generator[int]:
        with self._lock:
            if not file.descriptors:
                file.descriptors.append(file.connect())
            descriptor = file.descriptors[0]
            file.users += 1
            self._order[id(file)] = weakref.ref(file)
            self._order.move_to_end(id(file))
        try:
            yield descriptor
        finally:
            with self._lock:
                file.users -= 1
                if len(self._order) > MAX_OPEN:
                    self._close_idle()

    def _close_idle(self) -> None:
        for key in list(self._order):
            file = self._order[key]()
            if file is not None and (file.users or len(self._order) <= MAX_OPEN):
                continue
            del self._order[key]
            if file is not None:
                file.close()


_RECENT = _Recent()
os.register_at_fork(after_in_child=_RECENT.__init__)


class SourceFile:
    """One file, as it was when first opened.

    The descriptor is opened at the first read and closed when no tensor refers to the file.

    Attributes:
        path: Where it is.
        size: Bytes.
        descriptors: The open descriptor, if any.
        users: Reads in progress.
        remote: The file on a server that it stands for, if it does.

    """

    def __init__(self, path: Path) -> None:
        self.descriptors: list[int] = []
        self.path = path
        self.users = 0
        self.remote = replica.file_at(path)
        if self.remote is not None:
            self.size = self.remote.size
            budget.current().opened(path.stat(), self.size)
            return
        try:
            stat = path.stat()
        except OSError as e:
            raise NotAModelError(f"{path} cannot be opened: {e.strerror or e}") from e
        budget.current().opened(stat)
        self.size = stat.st_size
        self._identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return SourceFile, (self.path,)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; the next read opens the file again."""
        with contextlib.suppress(IndexError, AttributeError):  # none is open, or the file never existed
            os.close(self.descriptors.pop())

    def connect(self) -> int:
        """Open the file; raises if it is missing or has changed since it was first opened."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise UnreadableModelError(f"{self.path} can no longer be opened: {e.strerror or e}") from e
        stat = os.fstat(descriptor)
        if (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) != self._identity:
            os.close(descriptor)
            raise UnreadableModelError(f"{self.path} changed since it was first read. Load it again")
        return descriptor

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on."""
        if self.remote is not None:
            self.remote.read_into(offset, out)
            return
        done = 0
        with _RECENT.borrow(self) as descriptor:
            if len(out) >= AHEAD and hasattr(os, "posix_fadvise"):  # read ahead while this slice is processed
                os.posix_fadvise(descriptor, offset + len(out), len(out), os.POSIX_FADV_WILLNEED)
            while done < len(out):
                try:
                    n = os.preadv(descriptor, [out[done:]], offset + done)
                except OSError as e:
                    raise UnreadableModelError(f"{self.path} cannot be read: {e.strerror or e}") from e
                if not n:
                    raise UnreadableModelError(f"{self.path} became shorter while it was being read. Was it replaced?")
                done += n

    def read(self, offset: int, length: int) -> bytes:
        """Read a few bytes (headers), checked against the file's size before memory is allocated."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnreadableModelError(
                f"{self.path} ends at byte {self.size}, but bytes {offset} to {offset + length} are needed"
            )
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)


class Cursor:
    """Reads forwards through headers and tables, in windows, never beyond an end.

    Attributes:
        file: The file.
        at: The next byte.
        end: The byte after the last.
    """

    def __init__(self, file: SourceFile, at: int = 0, end: int | None = None) -> None:
        self.file = file
        self.at = at
        self.end = file.size if end is None else end
        self._window = b""
        self._begin = at
        self._ahead = 256

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        if n < 0 or self.at + n > self.end:
            raise UnreadableModelError(
                f"{self.file.path} ends inside a table at byte {self.end}. Was the download truncated?"
            )
        begin = self.at - self._begin
        if begin + n > len(self._window):
            self._begin, begin = self.at, 0
            self._window = self.file.read(self.at, max(n, min(self._ahead, self.end - self.at)))
            self._ahead = min(1 << 18, 4 * self._ahead)
        self.at += n
        return self._window[begin : begin + n]

    def skip(self, n: int) -> None:
        """Move past `n` bytes without reading them."""
        if n < 0 or self.at + n > self.end:
            raise UnreadableModelError(
                f"{self.file.path} ends inside a table at byte {self.end}. Was the download truncated?"
            )
        self.at += n
        if self.at > self._begin + len(self._window):
            self._begin, self._window, self._ahead = self.at, b"", 256

    def number(self, form: str) -> Any:
        """The next number; `form` is a `struct` format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]


@dataclass(frozen=True)
class FileStorage(AbstractStorage):
    """A run of bytes in a file.

    Attributes:
        file: The file.
        offset: Where the run starts.
        length: Its bytes.
    """

    file: SourceFile
    offset: int
    length: int

    def place(self, length: int) -> tuple[SourceFile, int] | None:
        """See `AbstractStorage.place`."""
        return (self.file, self.offset) if length <= self.length else None

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        if start + len(out) > self.length:
            raise UnreadableModelError(f"read past the end of a tensor in {self.file.path}")
        self.file.read_into(self.offset + start, out)
