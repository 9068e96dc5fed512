"""Where a registry lies, and what every database that holds one answers: a SQLite file or a PostgreSQL server."""

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from stemma.errors import UnusableRegistryError
from stemma.registry import schema

BUSY_SECONDS = 30.0
"""How long a writer waits for another before it fails."""

SCHEMES = ("postgresql", "postgres")
"""What an address of a server begins with."""

DEFAULT_SCHEMA = "stemma"
"""Schema of the database in which the tables lie where the address names none."""

_MISSPELT = re.compile(r"(?i)postgres(?:ql)?(?:\+\w+)?:(?=[/\\]|[^/\\]*@)")
"""A server's address that would be taken for the name of a file."""

_USE = "Use a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a registry on a server.

    Attributes:
        conninfo: What libpq is given; it may hold a password and is never shown.
        schema: Schema in which the tables lie.
        where: The address as it may be shown.
    """

    conninfo: str = field(repr=False)
    schema: str
    where: str


def registry_address(url: str | os.PathLike[str] | None = None) -> Path | ServerAddress:
    """Where a registry lies: as given, else as `STEMMA_REGISTRY` says, else a file in the user data folder."""
    text = os.fspath(url) if url else os.environ.get("STEMMA_REGISTRY", "")
    if not text:
        import platformdirs

        return platformdirs.user_data_path("stemma") / "registry.db"
    if text.partition("://")[0].partition("+")[0] in SCHEMES and "://" in text:
        return _server_address(text)
    if _MISSPELT.match(text):
        raise UnusableRegistryError(  # what follows may hold a password: it is not shown
            "the address of a registry on a server begins with postgresql://, in small letters and with two slashes"
        )
    if text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    elif "://" in text:
        raise UnusableRegistryError(f"the registry address {without_password(text)!r} is not supported. {_USE}")
    if not text:
        raise UnusableRegistryError(f"the registry address has no file name. {_USE}")
    return Path(text).expanduser().absolute()


def _server_address(text: str) -> ServerAddress:
    """The parts of `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME&…`; libpq reads all but the schema."""
    scheme, _, rest = text.partition("://")
    if scheme not in (*SCHEMES, "postgresql+psycopg"):
        raise UnusableRegistryError(f"the registry address has the driver {scheme!r}. Write postgresql://")
    rest, _, query = rest.partition("?")
    authority, _, database = rest.partition("/")
    ports = [h.rpartition("]")[2].partition(":")[2] for h in authority.rpartition("@")[2].split(",")]
    if "@" in database or authority.count("@") > 1 or not all(p.isdigit() for p in ports if p):
        raise UnusableRegistryError(  # what stands in the wrong place may be the password: it is not shown
            "the registry address cannot be read. Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special "
            "characters of the password as %XX"
        )
    given = query.split("&") if query else []
    name = next((unquote(g.removeprefix("schema=")) for g in given if g.startswith("schema=")), DEFAULT_SCHEMA)
    reserved = name.startswith("pg_") or name == "information_schema"
    if reserved or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", name):
        raise UnusableRegistryError(
            f"{name[:80]!r} cannot be the schema of a registry. Use up to 63 letters, digits, dots, hyphens and "
            "underscores that do not begin with pg_"
        )
    kept = "&".join(g for g in given if not g.startswith("schema="))
    conninfo = f"postgresql://{rest}" + (f"?{kept}" if kept else "")
    return ServerAddress(conninfo, name, without_password(text))


_SECRET = re.compile(r"(?i)(?<=[?&])((?:ssl)?password)=[^&]*")


def without_password(url: str) -> str:
    """An address as it may be shown: what stands between the user's name and the last `@` is left out."""
    place, mark, query = url.partition("?") if "@" not in url.partition("?")[2] else (url, "", "")
    place = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", place)
    return _SECRET.sub(r"\1=***", place + mark + query)


def secrets_of(address: str) -> tuple[str, ...]:
    """Every form in which a password of an address could be quoted in somebody else's message."""
    found = [m for pattern in (r"(?<=://)[^:/@]*:(.*)@", r"(?i)[?&](?:ssl)?password=([^&]*)")
             for m in re.findall(pattern, address)]  # fmt: skip
    with contextlib.suppress(ValueError):
        found += [urlsplit(address).password or ""]
    return tuple(sorted({form for m in found for form in (m, unquote(m)) if form}, key=len, reverse=True))


class AbstractDatabase(ABC):
    """Transactions on the tables of one registry, which the first writer creates or migrates."""

    where: str
    """Where it lies, as people are told."""

    read_only = False
    """Whether it can be read and not written; known once it was opened."""

    def __init__(self, where: str, engine: sa.Engine) -> None:
        self.where = where
        self._engine = engine
        self._ready = False

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a registry."""

    @abstractmethod
    def problems(self, connection: sa.Connection) -> list[str]:
        """What the database itself finds damaged."""

    @abstractmethod
    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[sa.Row]) -> None:
        """Add many whole rows, with their numbers."""

    @abstractmethod
    def finish_copy(self, connection: sa.Connection) -> None:
        """Let numbers of new rows follow those of rows that were copied with their numbers."""

    @abstractmethod
    def readable_errors(self) -> contextlib.AbstractContextManager[None]:
        """Raise registry errors instead of those of the database and the system."""

    @abstractmethod
    def _prepare(self) -> None:
        """Check what is there, and bring it up to date where it may be written; sets `read_only`."""

    @abstractmethod
    def _transaction(
        self, *, write: bool, first: Callable[[sa.Connection], None] | None = None
    ) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction: a snapshot for reading, or one that no other writer shares."""

    def close(self) -> None:
        """Close all connections; the next transaction opens new ones."""
        self._engine.dispose()
        self._ready = False

    @contextlib.contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """A connection in a read transaction; of an empty registry if there is none."""
        with self.readable_errors():
            if not self.exists():
                with _empty_database() as connection:
                    yield connection
                return
            self._open()
            with self._transaction(write=False) as connection:
                yield connection

    @contextlib.contextmanager
    def writing(self, first: Callable[[sa.Connection], None] | None = None) -> Generator[sa.Connection]:
        """A connection that holds the write lock; on leaving without an error all changes are on disk, else none.

        Args:
            first: Long work that needs no lock, in the same transaction; a server does it before it takes the lock.

        Yields:
            The connection.

        Raises:
            UnusableRegistryError: If it cannot be written.
        """
        with self.readable_errors():
            self._open()
            if self.read_only:
                raise UnusableRegistryError(f"the registry {self.where} is read-only; nothing was changed")
            with self._transaction(write=True, first=first) as connection:
                yield connection

    def _open(self) -> None:
        if not self._ready:
            self._prepare()
            self._ready = True

    def _refuse_older(self, found: int, who: str = "is read-only, so it cannot be migrated") -> None:
        """Raise unless a schema that may not be migrated is the newest."""
        schema.refuse_newer(found, self.where)
        if found < len(schema.MIGRATIONS):
            raise UnusableRegistryError(
                f"the registry {self.where} has the older schema {found} and {who}. Open it once where it is writable"
            )

    def _migrate(self, before_first: Callable[[sa.Connection], None]) -> None:
        """Apply what is missing, each migration in a transaction of its own; another process may do the same."""
        while True:
            with self._transaction(write=True) as connection:
                found = schema.version(connection)
                schema.refuse_newer(found, self.where)
                if found == len(schema.MIGRATIONS):
                    return
                if found == 0:
                    before_first(connection)
                schema.apply_next(connection, found + 1)


@contextlib.contextmanager
def _empty_database() -> Generator[sa.Connection]:
    """A connection to an empty registry in memory: reading creates nothing."""
    with sa.create_engine("sqlite://").connect() as connection:
        schema.metadata.create_all(connection)
        yield connection
