"""The SQLite file of a registry, safe for several reading and writing processes."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import DBAPIError

from stemma.errors import RegistryError, UnusableRegistryError
from stemma.registry import schema
from stemma.registry.database import BUSY_SECONDS, AbstractDatabase

PAGE_SIZE = 16384
"""A sketch row of a few kilobytes would waste half of SQLite's default page."""


class SQLiteFile(AbstractDatabase):
    """Transactions on one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.QueuePool)
        sa.event.listen(engine, "begin", _begin)
        super().__init__(str(path), engine)

    def exists(self) -> bool:
        """See `AbstractDatabase.exists`."""
        return self.path.exists()

    def problems(self, connection: sa.Connection) -> list[str]:
        """See `AbstractDatabase.problems`."""
        said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return [*(s for s in said if s != "ok"), *(f"{r[0]} row {r[1]} refers to a missing row" for r in broken)]

    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[sa.Row]) -> None:
        """See `AbstractDatabase.insert`."""
        connection.execute(table.insert(), [dict(row._mapping) for row in rows])

    def finish_copy(self, connection: sa.Connection) -> None:
        """See `AbstractDatabase.finish_copy`; SQLite does it by itself."""

    @contextlib.contextmanager
    def _transaction(
        self, *, write: bool, first: Callable[[sa.Connection], None] | None = None
    ) -> Generator[sa.Connection]:
        with self._engine.connect() as plain:
            connection = plain.execution_options(stemma_begin="IMMEDIATE" if write else "DEFERRED")
            with connection.begin():
                if first:
                    first(connection)
                yield connection

    def _prepare(self) -> None:
        self.read_only = self._inspect()
        if self.read_only:
            with self._transaction(write=False) as connection:
                found = schema.version(connection)
            self._refuse_older(found)
        else:
            self._migrate(_mark)
            self._use_wal()

    def _inspect(self) -> bool:
        """Check the file before SQLite opens it; returns whether it is read-only."""
        path = self.path
        if path.is_dir():
            raise UnusableRegistryError(f"the registry {path} is a folder. Use the path of a file")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise UnusableRegistryError(
                    f"the registry {path} does not exist and its folder is read-only. Use another path"
                )
            return False
        if path.stat().st_size:
            self._require_mark()
        return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))

    def _require_mark(self) -> None:
        """Refuse a file of another program, by its first page alone.

        SQLite reads it, as an immutable file, beside which nothing is written. A process that opens and closes a file
        by itself loses all locks that it has on it: others would then delete the log that a second connection of this
        process writes to.

        Raises:
            UnusableRegistryError: If it is such a file.
            DatabaseError: If it cannot be read.
        """
        name = f"file:{quote(str(self.path))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(name, uri=True, isolation_level=None)) as connection:
            try:
                found = connection.execute("PRAGMA application_id").fetchone()[0]
            except sqlite3.DatabaseError as e:
                if "not a database" not in str(e):
                    raise
                raise UnusableRegistryError(
                    f"{self.path} is not a Stemma registry (not an SQLite file); it was not changed"
                ) from e
        if found != schema.APPLICATION_ID:
            raise UnusableRegistryError(f"{self.path} is an SQLite file of another program; it was not changed")

    def _use_wal(self) -> None:
        """Switch to write-ahead logging, so that readers never wait; retried until no other process holds the file."""
        deadline = time.monotonic() + BUSY_SECONDS
        while not self._switched_to_wal(last=time.monotonic() > deadline):
            time.sleep(0.02)

    def _switched_to_wal(self, *, last: bool) -> bool:
        with contextlib.closing(self._connect()) as connection:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                return True
            try:
                return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
            except sqlite3.OperationalError as e:
                if last or "locked" not in str(e):
                    raise
                return False

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            return self._connect_read_only()
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")  # takes effect only before the first table
        connection.execute("PRAGMA synchronous = FULL")  # models reported as added survive a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        base = f"file:{quote(str(self.path))}"
        for flags in ("mode=ro", "immutable=1"):
            connection = sqlite3.connect(
                f"{base}?{flags}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as e:
                connection.close()
                journal = self.path.with_name(self.path.name + "-wal")
                if journal.exists() and journal.stat().st_size:
                    raise UnusableRegistryError(
                        f"the registry {self.path} was not closed properly and its folder is read-only. "
                        "Open it once where it is writable"
                    ) from e
                if flags != "mode=ro":
                    raise
            else:
                return connection
        raise UnusableRegistryError(f"the registry {self.path} cannot be opened for reading")

    @contextlib.contextmanager
    def readable_errors(self) -> Generator[None]:
        """See `AbstractDatabase.readable_errors`."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as e:
            cause = getattr(e, "orig", None) or e
            raise UnusableRegistryError(self._error_message(str(cause).lower())) from e
        except UnicodeDecodeError as e:  # SQLite quotes damaged bytes in its message
            raise UnusableRegistryError(self._error_message("malformed")) from e
        except UnicodeEncodeError as e:
            raise RegistryError("a name or path is not valid Unicode and cannot be stored. Rename the file") from e
        except OSError as e:
            raise UnusableRegistryError(self._error_message(f"{e.strerror or e}".lower())) from e

    def _error_message(self, cause: str) -> str:
        if any(sign in cause for sign in ("full", "no space", "too large", "quota", "disk i/o")):
            return f"the disk of the registry {self.path} is full or failing ({cause}). Free some space and try again"
        if "readonly" in cause or "read-only" in cause or "permission" in cause:
            return f"the registry {self.path} is read-only; nothing was changed"
        if "locked" in cause:
            return f"another process kept the registry {self.path} locked for {BUSY_SECONDS:.0f} s. Try again later"
        if "malformed" in cause or "not a database" in cause or "no such table" in cause:
            return f"the registry {self.path} is damaged ({cause}). Restore a backup"
        return f"the registry {self.path} cannot be used ({cause}); nothing was changed"


def _mark(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION_ID}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("stemma_begin", "DEFERRED"))
