"""Content-addressed bytes: small ones inside the database, large ones as files named by their digest.

A file reaches its final name only when it is complete and on disk. While a writer is active it holds a shared lock and
a folder under `staging/`; files there without a lock were left by a killed process, and the next writer removes them.
"""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np

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


def file_digest(path: Path) -> Digest:
    """Digest of a file's bytes; one pass, 1 MiB in memory."""
    h, buffer = hashlib.sha256(), bytearray(_BUFFER)
    with path.open("rb", buffering=0) as f:
        while n := f.readinto(buffer):
            h.update(memoryview(buffer)[:n])
    return Digest(f"{digests.ALGORITHM}:{h.hexdigest()}")


class Stage:
    """Files that are written but not yet under their final names."""

    def __init__(self, folder: Path, target: Callable[[Digest], Path]) -> None:
        self._folder = folder
        self._target = target
        self._files: dict[Digest, Path] = {}

    def put(self, write: Callable[[Path], None]) -> tuple[Digest, int]:
        """Have `write` fill a file, sync it to disk, and return its digest and size."""
        path = self._folder / f"{len(self._files)}.partial"
        write(path)
        with path.open("rb") as f:
            os.fsync(f.fileno())
        digest = file_digest(path)
        self._files[digest] = path
        return digest, path.stat().st_size

    def publish(self) -> None:
        """Move every file to its final name; called just before the transaction that records them commits."""
        for digest, path in self._files.items():
            target = self._target(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / target.name).touch()  # if the transaction fails, the clean-up finds the file by this mark
            path.replace(target)
            _sync_folder(target.parent)


class BlobFolder:
    """The files of one registry, in `<registry>.blobs/`, two levels deep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staging = folder / "staging"

    def path(self, digest: Digest) -> Path:
        """The path of a blob with this digest; it may not exist."""
        name = digest.rpartition(":")[2]
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise RegistryError(f"{digest!r} is not a digest. Use sha256: and 64 hexadecimal digits")
        return self.folder / name[:2] / name

    @contextlib.contextmanager
    def staging(self) -> Generator[Stage]:
        """A stage for files of one transaction; unpublished files are removed at the end of the block."""
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
        """Staging folders of killed writers; empty while a writer is active."""
        if fcntl is None or not self._staging.is_dir():
            return []
        with self._locked(shared=False) as locked:
            return sorted(self._staging.iterdir()) if locked else []

    def sweep(self, referred: Callable[[Digest], bool]) -> None:
        """Remove what killed writers left, except blobs that a record refers to; a no-op while a writer is active."""
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


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
