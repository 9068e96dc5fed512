"""Remembers which files were read, so that a run that is repeated or resumed does not read them again.

A file counts as the same while its size, its inode and its times of change are the same, as version control does; the
time of the inode's change cannot be set by copying or touching. It is a cache: without it, files are read.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stemma
from stemma.checkpoints import adapters
from stemma.checkpoints.load import Checkpoint
from stemma.registry.ingest import IngestedModel, fingerprinters

JUST_NOW = 2.0
"""Seconds within which a file may change twice without another time: what is that young is read again."""

MOST = 10_000
"""Files of one folder that are looked at; larger folders are always read."""

CARDS = (".json", ".md", ".yaml", ".txt")
"""Endings of what lies beside a file of weights and is read with it."""


IN_PARTS = (".onnx", ".index", ".json")
"""Endings of files whose tensors may lie in other files of their folder."""


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A model of a file that was read before.

    Attributes:
        name: Its name.
        digest: Its digest.
        source: Where it was read from.
        notes: What the reader omitted or changed.
    """

    name: str
    digest: str
    source: str
    notes: tuple[str, ...]


class FilesRead:
    """The memory, in one file of the cache folder; where that cannot be used, nothing is remembered."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._beside: dict[Path, tuple[str, float]] = {}
        self._reader = f"{stemma.__version__} {fingerprinters()[0].spec.digest}"

    @contextlib.contextmanager
    def opened(self) -> Generator["FilesRead"]:
        """Use the memory, and write it at the end."""
        with contextlib.suppress(OSError, sqlite3.Error):
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(folder / "files_read.sqlite", timeout=5, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=OFF")
            self._connection.execute("CREATE TABLE IF NOT EXISTS read (path TEXT PRIMARY KEY, state TEXT, models TEXT)")
        try:
            yield self
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def state(self, checkpoint: Checkpoint) -> str:
        """What identifies the files of a checkpoint as they are; empty where that cannot be told."""
        if not isinstance(checkpoint.path, Path):
            return ""
        path = checkpoint.path.absolute()
        try:
            own, newest = _state_of(files_of(path))
            if own and not path.is_dir():
                if path.parent not in self._beside:
                    cards = sorted(e.path for e in os.scandir(path.parent) if e.name.endswith(CARDS))
                    self._beside[path.parent] = _state_of(cards)
                own, newest = f"{own} {self._beside[path.parent][0]}", max(newest, self._beside[path.parent][1])
        except OSError:
            return ""
        if not own or time.time() - newest < JUST_NOW:
            return ""
        return hashlib.sha256(f"{self._reader} {checkpoint.name} {own}".encode(errors="surrogateescape")).hexdigest()

    def recall(self, checkpoint: Checkpoint, state: str) -> tuple[ReadModel, ...]:
        """The models that were read of the same files; empty where they were not."""
        if self._connection is None or not state:
            return ()
        try:
            row = self._connection.execute(
                "SELECT models FROM read WHERE path = ? AND state = ?", (_key(checkpoint), state)
            ).fetchone()
            return () if row is None else tuple(ReadModel(*m[:3], tuple(m[3])) for m in json.loads(row[0]))
        except (sqlite3.Error, ValueError, TypeError, IndexError):
            return ()

    def remember(self, checkpoint: Checkpoint, state: str, read: Sequence[IngestedModel]) -> None:
        """Remember what was read, unless the files have changed since `state` was taken."""
        if self._connection is None or not state or state != self.state(checkpoint):
            return
        models: list[Any] = [(m.record.name, m.record.digest, m.record.source, m.notes) for m in read]
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                "INSERT OR REPLACE INTO read VALUES (?, ?, ?)", (_key(checkpoint), state, json.dumps(models))
            )


def _state_of(files: Sequence[str]) -> tuple[str, float]:
    """A digest of the states of files, and the time of the newest change; an empty digest of too many."""
    found, newest = hashlib.sha256(), 0.0
    for file in files:
        stat = Path(file).stat()
        newest = max(newest, stat.st_mtime, stat.st_ctime)
        line = f"{file} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}\n"
        found.update(line.encode(errors="surrogateescape"))
    return ("" if len(files) > MOST else found.hexdigest()), newest


def files_of(path: Path) -> list[str]:
    """The files whose tensors are read with a checkpoint: its own, and those of the bases of adapters among them."""
    alone = not path.is_dir() and path.suffix.lower() not in IN_PARTS and path.name not in adapters.WEIGHTS
    found = [str(path)] if alone else _files_below(path if path.is_dir() else path.parent)
    bases = [adapters.base_of(Path(f).parent) for f in found if Path(f).name == adapters.CONFIG and not alone]
    for base in sorted({b for b in bases if b is not None}):
        found += _files_below(base) if base.is_dir() else [str(base)]
    return found


def _files_below(folder: Path) -> list[str]:
    """The files below a folder, sorted, hidden folders left out; a few more than `MOST` of a larger one."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        stat = Path(where).stat()
        seen = (stat.st_dev, stat.st_ino) in visited  # by a link
        folders[:] = [] if seen else sorted(f for f in folders if not f.startswith("."))
        visited.add((stat.st_dev, stat.st_ino))
        found += [str(Path(where) / name) for name in sorted(names)]
        if len(found) > MOST:
            break
    return found


def _cache_folder() -> Path:
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma"))


def _key(checkpoint: Checkpoint) -> str:
    return os.fsencode(os.path.abspath(checkpoint.path)).hex()  # noqa: PTH100 - links are kept
