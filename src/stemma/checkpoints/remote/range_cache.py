"""Ranges of files that were fetched, kept on disk by address, version and range, so that a broken run goes on."""

import contextlib
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

from stemma.checkpoints.remote.answers import Version
from stemma.checkpoints.remote.names import without_secrets

GIGABYTES = 10.0
"""Size of the cache, unless `STEMMA_REMOTE_CACHE_GB` gives another; what was not used for longest is dropped first."""

YOUNG = 3600.0
"""Seconds after its last use for which nothing of a file is dropped: another process may be reading it."""


def root() -> Path:
    """The folder of everything that is kept of models on servers: below `STEMMA_CACHE`, else the user's caches."""
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given).absolute() / "remote"
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma")).absolute() / "remote"


def limit() -> int:
    """Most bytes that are kept."""
    try:
        return int(float(os.environ.get("STEMMA_REMOTE_CACHE_GB", "") or GIGABYTES) * 1e9)
    except ValueError:
        return int(GIGABYTES * 1e9)


class RangeCache:
    """The ranges that are kept of one version of one file; threads may read and write at once."""

    def __init__(self, url: str, version: Version) -> None:
        key = f"{without_secrets(url)}\n{version.tag}\n{version.size}"
        self.folder = root() / "ranges" / hashlib.sha256(key.encode()).hexdigest()[:32]
        self._lock = threading.Lock()
        self._known = sorted(self._listed())
        if self._known:
            with contextlib.suppress(OSError):
                os.utime(self.folder)

    def _listed(self) -> list[tuple[int, int]]:
        out = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                start, _, stop = entry.name.partition("-")
                if start.isdigit() and stop.isdigit() and entry.stat().st_size == int(stop) - int(start):
                    out.append((int(start), int(stop)))
        return out

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of a range that are not kept, in order."""
        out, at = [], start
        with self._lock:
            known = [k for k in self._known if k[1] > start and k[0] < stop]
        for first, last in known:
            if first > at:
                out.append((at, first))
            at = max(at, last)
        return [*out, (at, stop)] if at < stop else out

    def put(self, start: int, content: bytes) -> None:
        """Keep a range; a disk that is full is no error, the range is fetched again then."""
        name = f"{start}-{start + len(content)}"
        partial = self.folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        with self._lock:
            self._known = sorted({*self._known, (start, start + len(content))})

    def read_into(self, start: int, out: memoryview) -> bool:
        """Fill `out` from kept ranges; False where some of it is not kept any more."""
        stop = start + len(out)
        with self._lock:
            known = [k for k in self._known if k[1] > start and k[0] < stop]
        at = start
        for first, last in known:
            if first > at:
                return False
            end = min(last, stop)
            if end <= at:
                continue
            try:
                with (self.folder / f"{first}-{last}").open("rb") as file:
                    file.seek(at - first)
                    n = file.readinto(out[at - start : end - start])
            except OSError:
                n = -1
            if n != end - at:
                with self._lock:
                    self._known = [k for k in self._known if k != (first, last)]
                return False
            at = end
        return at >= stop


def make_room() -> None:
    """Drop what was not used for longest until the cache is within its limit; files in use are left."""
    folder, sizes = root() / "ranges", []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in os.scandir(entry.path))
                sizes.append((entry.stat().st_mtime, size, entry.path))
    _drop_abandoned(root() / "replicas")
    total = sum(size for _, size, _ in sizes)
    for used, size, path in sorted(sizes):
        if total <= limit():
            break
        if time.time() - used > YOUNG:
            shutil.rmtree(path, ignore_errors=True)
            total -= size


def _drop_abandoned(folder: Path) -> None:
    """Remove what a killed process left."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if time.time() - entry.stat().st_mtime > 24 * YOUNG:
                shutil.rmtree(entry.path, ignore_errors=True)
