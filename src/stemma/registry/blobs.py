"""Content-addressed bytes: small ones inside the database, large ones as files named by their digest.

This is what a registry in a file does; on a server the large ones lie in the database too, see `server_blobs`. A file
reaches its final name only when it is complete and on disk. While a writer is active it holds a shared lock and
a folder under `staging/`; files there without a lock were left by a killed process, and the next writer removes them.
"""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import sqlalchemy as sa

try:
    import fcntl
except ImportError:  # Windows: unused files are not deleted
    fcntl = None

from stemma.checkpoints import digest as digests
from stemma.errors import RegistryError
from stemma.types import Digest

INLINE_LIMIT = 64 << 10
"""Smallest blob, in bytes, that is stored as a separate file."""

_BUFFER = 1 << 20


def pack(values: Mapping[str, np.ndarray]) -> bytes:
    """The values of a fingerprint as safetensors bytes; equal values give equal bytes."""
    from safetensors.numpy import save

    return save({k: np.array(values[k], order="C") for k in sorted(values)})


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The named arrays in bytes written by `pack`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except (SafetensorError, ValueError) as e:
        raise RegistryError(f"a stored fingerprint is damaged ({e}). Run `stemma check` to find it") from e


def digest_of(pieces: Iterable[bytes]) -> Digest:
    """Digest of bytes that come in pieces."""
    h = hashlib.sha256()
    for piece in pieces:
        h.update(piece)
    return Digest(f"{digests.ALGORITHM}:{h.hexdigest()}")


def file_digest(path: Path) -> Digest:
    """Digest of a file's bytes; one pass, 1 MiB in memory."""
    h, buffer = hashlib.sha256(), bytearray(_BUFFER)
    with path.open("rb", buffering=0) as f:
        while n := f.readinto(buffer):
            h.update(memoryview(buffer)[:n])
    return Digest(f"{digests.ALGORITHM}:{h.hexdigest()}")


def path_in(folder: Path, digest: Digest) -> Path:
    """The path of a blob in a folder; raises for a digest that is none, and could lead out of the folder."""
    name = digest.rpartition(":")[2]
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise RegistryError(f"{digest!r} is not a digest. Use sha256: and 64 hexadecimal digits")
    return folder / name[:2] / name


class AbstractStage(ABC):
    """Large blobs of one transaction: files that are written, but not yet part of the registry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Digest, Path] = {}
        self._count = 0

    def put(self, write: Callable[[Path], None]) -> tuple[Digest, int]:
        """Have `write` fill a file, and return its digest and size."""
        path = self._folder / f"{self._count}.partial"
        self._count += 1
        write(path)
        digest = file_digest(path)
        self._files[digest] = path
        return digest, path.stat().st_size

    @abstractmethod
    def upload(self, connection: sa.Connection) -> None:
        """Store what is not on this machine; called in the transaction that records it, before others have to wait."""

    @abstractmethod
    def publish(self) -> None:
        """Make them part of the registry; called just before the transaction that records them commits."""


class AbstractBlobs(ABC):
    """Where the large blobs of one registry lie; `blob` rows without content stand for them."""

    @abstractmethod
    def staging(self) -> contextlib.AbstractContextManager[AbstractStage]:
        """A stage for the blobs of one transaction; what is not published is removed at the end of the block."""

    @abstractmethod
    def where(self, digest: Digest) -> str:
        """Where a blob with this digest lies, as people are told; it may not exist."""

    @abstractmethod
    def pieces(self, connection: sa.Connection, digest: Digest) -> Iterator[bytes] | None:
        """The bytes of a blob, in order; None if it is missing."""

    @abstractmethod
    def file(self, connection: sa.Connection, digest: Digest) -> Path | None:
        """A file with the bytes of a blob; None if it is missing."""

    @abstractmethod
    def stale_folders(self) -> list[Path]:
        """What killed writers left; empty while a writer is active."""

    @abstractmethod
    def sweep(self, referred: Callable[[Digest], bool]) -> None:
        """Remove what killed writers left, except blobs that a record refers to; a no-op while a writer is active."""


class Stage(AbstractStage):
    """Files that are written but not yet under their final names."""

    def __init__(self, folder: Path, target: Callable[[Digest], Path]) -> None:
        super().__init__(folder)
        self._target = target

    def put(self, write: Callable[[Path], None]) -> tuple[Digest, int]:
        """See `AbstractStage.put`; what it wrote is on disk."""
        digest, size = super().put(write)
        with self._files[digest].open("rb") as f:
            os.fsync(f.fileno())
        return digest, size

    def upload(self, connection: sa.Connection) -> None:
        """See `AbstractStage.upload`; the files are where they belong."""

    def publish(self) -> None:
        """Move every file to its final name; see `AbstractStage.publish`."""
        for digest, path in self._files.items():
            target = self._target(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / target.name).touch()  # if the transaction fails, the clean-up finds the file by this mark
            path.replace(target)
            _sync_folder(target.parent)


class BlobFolder(AbstractBlobs):
    """The files of one registry, in `<registry>.blobs/`, two levels deep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staging = folder / "staging"

    def path(self, digest: Digest) -> Path:
        """The path of a blob with this digest; it may not exist."""
        return path_in(self.folder, digest)

    def where(self, digest: Digest) -> str:
        """See `AbstractBlobs.where`."""
        return str(self.path(digest))

    def pieces(self, connection: sa.Connection, digest: Digest) -> Iterator[bytes] | None:
        """See `AbstractBlobs.pieces`."""
        path = self.path(digest)
        return _read(path) if path.exists() else None

    def file(self, connection: sa.Connection, digest: Digest) -> Path | None:
        """See `AbstractBlobs.file`."""
        path = self.path(digest)
        return path if path.exists() else None

    @contextlib.contextmanager
    def staging(self) -> Generator[Stage]:
        """See `AbstractBlobs.staging`."""
        self._staging.mkdir(parents=True, exist_ok=True)
        with self._locked(shared=True):
            folder = self._staging / uuid.uuid4().hex
            folder.mkdir()
            try:
                yield Stage(folder, self.path)
            except BaseException:
                for partial in folder.glob("*.partial"):
                    partial.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # not empty if a blob was published: the clean-up checks whether it is used
                raise
            shutil.rmtree(folder)

    def stale_folders(self) -> list[Path]:
        """Staging folders of killed writers; see `AbstractBlobs.stale_folders`."""
        if fcntl is None or not self._staging.is_dir():
            return []
        with self._locked(shared=False) as locked:
            return sorted(self._staging.iterdir()) if locked else []

    def sweep(self, referred: Callable[[Digest], bool]) -> None:
        """See `AbstractBlobs.sweep`."""
        if fcntl is None or not self._staging.is_dir():
            return
        with self._locked(shared=False) as locked:
            for leftover in self._staging.iterdir() if locked else ():
                for mark in leftover.iterdir():
                    digest = Digest(f"{digests.ALGORITHM}:{mark.name}")
                    if len(mark.name) == 64 and not referred(digest):
                        self.path(digest).unlink(missing_ok=True)
                shutil.rmtree(leftover)

    @contextlib.contextmanager
    def _locked(self, *, shared: bool) -> Generator[bool]:
        """Hold the folder's lock (an exclusive one without waiting); yields whether it is held."""
        lock = self.folder / "lock"
        if shared:
            lock.touch()
        if fcntl is None or not lock.exists():
            yield shared
            return
        with lock.open("rb") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        while piece := f.read(_BUFFER):
            yield piece


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
