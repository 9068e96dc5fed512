"""Keeps answers of services on disk, so that a repeated command asks nothing again. No key is ever written."""

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np

from stemma.networks.endpoints.protocols import KINDS, Row


class KeptAnswers:
    """Answers of one service by input; where the cache folder cannot be used, they last as long as the command."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._connection: sqlite3.Connection | None = None
        self._now: dict[str, tuple[Row, float]] = {}

    @contextlib.contextmanager
    def opened(self) -> Generator["KeptAnswers"]:
        """Open the file, and close it."""
        with contextlib.suppress(OSError, sqlite3.Error):
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "answers.sqlite"
            file.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=5, isolation_level=None)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answer (service TEXT, input TEXT, row TEXT, at REAL, "
                "PRIMARY KEY (service, input))"
            )
        try:
            yield self
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def get(self, key: str) -> tuple[Row, float] | None:
        """The answer to an input, and when it was given; None where there is none."""
        if key in self._now:
            return self._now[key]
        if self._connection is None:
            return None
        try:
            query = "SELECT row, at FROM answer WHERE service = ? AND input = ?"
            found = self._connection.execute(query, (self._service, key)).fetchone()
            if found is None:
                return None
            kind, values = json.loads(found[0])
            row = str(kind), tuple(float(v) for v in values)
        except (sqlite3.Error, ValueError, TypeError):
            return None
        return (row, float(found[1])) if row[0] in KINDS and row[1] and np.isfinite(row[1]).all() else None

    def put(self, keys: Sequence[str], rows: Sequence[Row]) -> None:
        """Keep answers, at once."""
        now = time.time()
        self._now |= {key: (row, now) for key, row in zip(keys, rows, strict=True)}
        if self._connection is not None:
            values = [(self._service, k, json.dumps(row), now) for k, row in zip(keys, rows, strict=True)]
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?)", values)
                self._connection.execute("COMMIT")


def input_key(row: np.ndarray) -> str:
    """Identity of one input."""
    found = hashlib.sha256(f"{row.dtype} {row.shape}".encode())
    found.update(np.ascontiguousarray(row).data)
    return found.hexdigest()


def _cache_folder() -> Path:
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma"))
