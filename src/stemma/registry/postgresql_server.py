"""A registry in one schema of a PostgreSQL database, for several writers on several machines.

Writers take turns: each holds an advisory lock until its transaction ends. Readers see the registry as it was when
their transaction began, and wait for nobody.
"""

import contextlib
import zlib
from collections.abc import Callable, Generator, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from stemma.errors import MissingExtraError, RegistryError, UnusableRegistryError
from stemma.registry import schema, server_blobs
from stemma.registry.database import BUSY_SECONDS, AbstractDatabase, ServerAddress, secrets_of
from stemma.types.text import plain

if TYPE_CHECKING:
    import psycopg

OLDEST = 14
"""Oldest version of PostgreSQL that is supported."""

CONNECT_SECONDS = 10
"""How long a server may take to answer, unless the address says otherwise."""

_UNREACHABLE = (
    ("password authentication failed", "the server refuses the user or the password"),
    ("no password supplied", "the server wants a password. Set PGPASSWORD or use a password file (~/.pgpass)"),
    ("no pg_hba.conf entry", "the server admits no such connection (see its pg_hba.conf)"),
    ("too many clients", "the server has no free connection. Try again later"),
    ("too many connections", "the server has no free connection. Try again later"),
    ("remaining connection slots", "the server has no free connection. Try again later"),
    ("starting up", "the server is starting. Try again later"),
    ("shutting down", "the server is shutting down. Try again later"),
    ("recovery mode", "the server is recovering. Try again later"),
)
"""What is told of a failed connection, by words of the server's message."""

_BY_STATE = {
    "42501": "does not allow this user to do that",
    "25006": "is read-only; nothing was changed",
    "53100": "has no disk space left; nothing was changed. Free some space and try again",
    "53200": "is out of memory; nothing was changed. Try again later",
    "53300": "has no free connection. Try again later",
    "55P03": f"was locked by another process for {BUSY_SECONDS:.0f} s. Try again later",
    "40P01": "stopped two writers that waited for each other; nothing was changed. Try again",
    "57014": "took longer than its server allows; nothing was changed",
    "XX001": "is damaged. Restore a backup",
    "XX002": "is damaged. Restore a backup",
}
"""What is told of an error, by its SQLSTATE."""

_LOST = ("08", "57P0")
"""Beginnings of the SQLSTATE of a connection that is gone."""


class PostgreSQLServer(AbstractDatabase):
    """Transactions on one schema of a PostgreSQL database."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._exists = False
        self._search_path = f'SET LOCAL search_path TO "{address.schema}"'
        self._psycopg = _psycopg()
        engine = sa.create_engine(
            "postgresql+psycopg://", creator=self._connect, poolclass=sa.QueuePool, hide_parameters=True
        )
        sa.event.listen(engine, "begin", self._begin)
        super().__init__(address.where, engine)

    def close(self) -> None:
        """See `AbstractDatabase.close`."""
        super().close()
        self._exists = False

    def exists(self) -> bool:
        """See `AbstractDatabase.exists`."""
        if not self._exists:
            with self.readable_errors(), self._transaction(write=False) as connection:
                self._exists = bool(connection.execute(_THERE, {"schema": self._address.schema}).scalar())
        return self._exists

    def problems(self, connection: sa.Connection) -> list[str]:
        """See `AbstractDatabase.problems`; a server verifies its pages when it reads them."""
        return []

    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[sa.Row]) -> None:
        """See `AbstractDatabase.insert`."""
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        raw = connection.connection.driver_connection
        assert raw is not None
        with raw.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as copy:
            for row in rows:
                copy.write_row(row)

    def finish_copy(self, connection: sa.Connection) -> None:
        """See `AbstractDatabase.finish_copy`."""
        for table in schema.metadata.sorted_tables:
            column = table.autoincrement_column
            if column is not None:
                newest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
                sequence = sa.func.pg_get_serial_sequence(f'"{self._address.schema}"."{table.name}"', column.name)
                connection.execute(sa.select(sa.func.setval(sequence, newest, False)))

    # Transactions

    @contextlib.contextmanager
    def _transaction(
        self, *, write: bool, first: Callable[[sa.Connection], None] | None = None
    ) -> Generator[sa.Connection]:
        connection, transaction = self._begun(write=write)
        with connection, transaction:
            if first:
                first(connection)
            if write:
                key = zlib.crc32(self._address.schema.encode()) - (1 << 31)  # a lock for each schema of a database
                connection.execute(_LOCK, {"program": schema.APPLICATION_ID, "schema": key})
            yield connection

    def _begun(self, *, write: bool) -> tuple[sa.Connection, sa.Transaction]:
        """A connection in a new transaction; one that a restart of the server has cut is replaced."""
        for again in (True, False):
            connection = self._engine.connect().execution_options(stemma_write=write)
            try:
                return connection, connection.begin()
            except BaseException as e:
                connection.invalidate()
                connection.close()
                if not again or not self._is_lost(e):
                    raise
                self._engine.dispose()
        raise AssertionError

    def _begin(self, connection: sa.Connection) -> None:
        mode = "READ COMMITTED READ WRITE"  # what stands is read after the lock is held
        if not connection.get_execution_options().get("stemma_write"):
            mode = "REPEATABLE READ READ ONLY"
        timeout = f"SET LOCAL lock_timeout TO '{BUSY_SECONDS:.0f}s'"
        cursor = self._psycopg.Cursor(connection.connection.driver_connection)  # of text: it takes several statements
        cursor.execute(f"BEGIN ISOLATION LEVEL {mode}; {self._search_path}; {timeout}", prepare=False)

    def _connect(self) -> "psycopg.Connection":
        from psycopg.conninfo import conninfo_to_dict

        own = {"connect_timeout": CONNECT_SECONDS, "application_name": "stemma", "keepalives_idle": 60}
        try:
            given = conninfo_to_dict(self._address.conninfo)
            options = {k: v for k, v in own.items() if k not in given}
            connection = self._psycopg.connect(  # transactions begin in `_begin`
                self._address.conninfo, autocommit=True, client_encoding="utf8", cursor_factory=_binary(), **options
            )
        except self._psycopg.Error as e:
            said = self._said(e)
            why = next((f"{told} ({said})" for sign, told in _UNREACHABLE if sign in said.lower()), said)
            raise UnusableRegistryError(f"the registry {self.where} cannot be reached: {why}") from self._shown(e)
        version = connection.info.server_version
        if version < OLDEST * 10000:
            connection.close()
            raise UnusableRegistryError(
                f"the server of the registry {self.where} is PostgreSQL {version // 10000}, and Stemma needs "
                f"{OLDEST} or newer"
            )
        return connection

    # What is there

    def _prepare(self) -> None:
        with self._transaction(write=False) as connection:
            rights = connection.execute(_RIGHTS, {"schema": self._address.schema}).one()
            self._inspect(connection, rights)
            found = schema.version(connection)
            may_insert = found > 0 and connection.execute(_MAY_INSERT).scalar()
        schema.refuse_newer(found, self.where)
        self.read_only = rights.standby or rights.read_only == "on" or (found > 0 and not may_insert)
        if found == len(schema.MIGRATIONS):
            return
        if self.read_only or not rights.may_create:
            if found:
                self._refuse_older(found, f"the user {rights.who!r} may not migrate it")
            raise UnusableRegistryError(
                f"there is no registry at {self.where}, and the user {rights.who!r} may not create one: it is "
                "read-only for this user. Have the owner of the database make it with: stemma add PATH"
            )
        self._migrate(self._create)

    def _inspect(self, connection: sa.Connection, rights: sa.Row) -> None:
        """Refuse what is no registry, and what cannot hold one."""
        if not rights.version.startswith("PostgreSQL "):
            raise UnusableRegistryError(
                f"the server of the registry {self.where} is not PostgreSQL ({rights.version.split(' ')[0]}), and "
                "another one may not lock as it does"
            )
        if rights.encoding != "UTF8":
            raise UnusableRegistryError(
                f"the database of the registry {self.where} has the encoding {rights.encoding}. Use one with UTF8"
            )
        if not rights.schema_there:
            return
        name, inspector = self._address.schema, sa.inspect(connection)
        tables = set(inspector.get_table_names(name))
        columns = {c["name"] for c in inspector.get_columns("migration", name)} if "migration" in tables else set()
        if tables and columns != {c.name for c in schema.migration.columns}:
            raise UnusableRegistryError(
                f"the schema {name!r} of {self.where} holds tables of another program; it was not changed. Name "
                "another one with ?schema=NAME"
            )
        if tables and not rights.may_use:
            raise UnusableRegistryError(f"the user {rights.who!r} may not read the registry {self.where}")

    def _create(self, connection: sa.Connection) -> None:
        if not connection.execute(_RIGHTS, {"schema": self._address.schema}).one().schema_there:
            connection.exec_driver_sql(f'CREATE SCHEMA "{self._address.schema}"')
        server_blobs.create_table(connection)

    # Errors

    @contextlib.contextmanager
    def readable_errors(self) -> Generator[None]:
        """See `AbstractDatabase.readable_errors`."""
        try:
            yield
        except (DBAPIError, self._psycopg.Error) as e:
            cause = (isinstance(e, DBAPIError) and e.orig) or e
            raise self._error(cause) from self._shown(e)
        except InvalidRequestError as e:  # the connection ended within the transaction
            raise UnusableRegistryError(f"the connection to the registry {self.where} was lost") from e
        except NoFreeConnection as e:
            raise UnusableRegistryError(f"too many threads use the registry {self.where}. Use fewer --jobs") from e
        except UnicodeEncodeError as e:
            raise RegistryError("a name or path is not valid Unicode and cannot be stored. Rename the file") from e
        except OSError as e:
            raise UnusableRegistryError(f"the registry {self.where} cannot be used ({e.strerror or e})") from e

    def _is_lost(self, error: BaseException) -> bool:
        """Whether there is no connection, or it is gone."""
        cause = (isinstance(error, DBAPIError) and error.orig) or error
        state = getattr(cause, "sqlstate", None)
        return isinstance(cause, self._psycopg.OperationalError) and (not state or state.startswith(_LOST))

    def _said(self, cause: BaseException) -> str:
        """What the server or its library says, in one line and without passwords."""
        said = " ".join(str(cause).split())
        for secret in secrets_of(self._address.conninfo):
            said = said.replace(secret, "***")
        return plain(said[:300])

    def _shown(self, cause: BaseException) -> BaseException | None:
        """The cause as a traceback may show it: none if it quotes a password."""
        return None if any(s in str(cause) for s in secrets_of(self._address.conninfo)) else cause

    def _error(self, cause: BaseException) -> RegistryError:
        state, said = getattr(cause, "sqlstate", None) or "", self._said(cause)
        if state == "54000":
            return RegistryError(
                "a name or path is too long for a registry on a server, where 2,000 bytes are safe. Use --name"
            )
        if state in _BY_STATE:
            return UnusableRegistryError(f"the registry {self.where} {_BY_STATE[state]} ({said})")
        if self._is_lost(cause):
            return UnusableRegistryError(
                f"the connection to the registry {self.where} was lost ({said}). Ask again: what was stored already is "
                "not stored twice"
            )
        return UnusableRegistryError(f"the registry {self.where} cannot be used ({said}); nothing was changed")


_LOCK = sa.text("SELECT pg_advisory_xact_lock(:program, :schema)")

_THERE = sa.text(
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema AND c.relname = 'migration')"
)

_MAY_INSERT = sa.text("SELECT has_table_privilege('model', 'INSERT')")

_RIGHTS = sa.text("""
SELECT version() AS version, current_setting('server_encoding') AS encoding, current_user AS who,
    pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only') AS read_only,
    n.oid IS NOT NULL AS schema_there, has_schema_privilege(n.oid, 'USAGE') AS may_use,
    COALESCE(has_schema_privilege(n.oid, 'CREATE'), has_database_privilege(current_database(), 'CREATE')) AS may_create
FROM (SELECT 1) AS one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = :schema
""")


@cache
def _binary() -> type:
    """Cursors that fetch bytes as bytes and not as text, which takes half the time and the traffic."""
    from psycopg import Cursor, pq

    class BinaryCursor(Cursor):
        def __init__(self, connection: "psycopg.Connection", **given: Any) -> None:
            super().__init__(connection, **given)
            self.format = pq.Format.BINARY

    return BinaryCursor


def _psycopg() -> ModuleType:
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("a registry on a PostgreSQL server", "psycopg", "postgres") from None
    return psycopg
