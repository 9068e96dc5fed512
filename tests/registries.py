"""Registries as plain databases, past all of Stemma: a file, or a schema of a server."""

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stemma.registry import Registry


def place_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where a fixture with the parameters `sqlite` and `postgresql` puts a registry."""
    return str(folder / "r.db") if request.param == "sqlite" else request.getfixturevalue("postgresql").address()


def connect(registry: "Registry") -> Any:
    """A plain connection to the tables of a registry."""
    if registry.path is not None:
        return contextlib.closing(sqlite3.connect(registry.path))
    import psycopg

    place, _, schema = registry.where.partition("&schema=")
    return contextlib.closing(psycopg.connect(place, options=f"-c search_path={schema}"))


def rows(registry: "Registry", query: str) -> list[tuple]:
    """What a query finds."""
    with connect(registry) as c:
        return c.execute(query).fetchall()


def tamper(registry: "Registry", statement: str, *values: object) -> None:
    """Change one row behind the back of a registry."""
    registry.close()
    if registry.path is None:
        statement = statement.replace("?", "%s").replace("zeroblob(256)", "decode(repeat('00', 256), 'hex')")
    with connect(registry) as c:
        assert c.execute(statement, values).rowcount == 1
        c.commit()
