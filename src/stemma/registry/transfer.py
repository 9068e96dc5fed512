"""Copy a whole registry into an empty one, from a file to a server or back: every row, every blob, in one transaction.

Nothing is there before everything is there and verified, so that a copy that was interrupted is simply made again.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from stemma.errors import MisuseError, RegistryError, UnusableRegistryError
from stemma.registry import schema, storage
from stemma.registry.blobs import AbstractBlobs, AbstractStage
from stemma.registry.database import AbstractDatabase
from stemma.registry.records import Progress
from stemma.types import Digest

BATCH = 1000
"""Rows that are copied at once."""


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """One table of a registry that was copied.

    Attributes:
        name: Name of the table.
        rows: Number of its rows.
        digest: SHA-256 over its rows, which was computed on both sides.
    """

    name: str
    rows: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Copied:
    """A registry that was copied.

    Attributes:
        source: Where it was.
        target: Where the copy is.
        tables: Its tables.
        large_blobs: Number of blobs that are not rows of a table.
        large_bytes: Bytes of these.
    """

    source: str
    target: str
    tables: tuple[CopiedTable, ...]
    large_blobs: int
    large_bytes: int


def copy_registry(
    source: str | os.PathLike[str], target: str | os.PathLike[str], progress: Progress | None = None
) -> Copied:
    """Copy a registry as it is now into an empty one.

    Args:
        source: Path or address of a registry.
        target: Path or address of a registry that is not there yet, or empty.
        progress: Called with what is copied, how much of it is done and of how much.

    Returns:
        What was copied.

    Raises:
        MisuseError: If both are the same.
        UnusableRegistryError: If there is no source.
        RegistryError: If the target holds something, or a blob of the source is missing or damaged.
    """
    (_, old, old_blobs), (_, new, new_blobs) = storage.at(source), storage.at(target)
    if old.where == new.where:
        raise MisuseError(f"{old.where} is given twice: a registry is copied to another place")
    try:
        if not old.exists():
            raise UnusableRegistryError(f"there is no registry at {old.where}")
        with old.reading() as reader:
            with new.writing() as writer:  # made or migrated, so that a registry that cannot be written is told at once
                _refuse_filled(writer, new.where)
            with new.readable_errors(), new_blobs.staging() as stage, new.writing() as writer:
                _refuse_filled(writer, new.where)
                large = _copy_blobs(reader, old_blobs, writer, stage, progress)
                tables = tuple(_copy_table(t, reader, writer, new, progress) for t in _tables())
                new.finish_copy(writer)
                stage.publish()
    finally:
        old.close()
        new.close()
    return Copied(old.where, new.where, tables, len(large), sum(large))


def _tables() -> list[sa.Table]:
    """All tables but the list of migrations, those that others refer to first."""
    return [t for t in schema.metadata.sorted_tables if t is not schema.migration]


def _refuse_filled(connection: sa.Connection, where: str) -> None:
    for table in _tables():
        rows = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        if rows:
            raise RegistryError(
                f"the registry {where} is not empty ({rows:,} rows of {table.name}); nothing was changed. A whole "
                "registry is copied only into an empty one"
            )


def _copy_blobs(
    reader: sa.Connection, old: AbstractBlobs, writer: sa.Connection, stage: AbstractStage, progress: Progress | None
) -> list[int]:
    """Copy the blobs that are not rows, each verified by its digest; returns their sizes."""
    b, sizes = schema.blob.c, []
    found = reader.execute(sa.select(b.digest, b.size).where(b.content.is_(None)).order_by(b.digest)).all()
    for at, (digest, size) in enumerate(found):
        if progress:
            progress("copying large blobs", at, len(found))
        pieces = old.pieces(reader, digest)
        if pieces is None:
            raise RegistryError(f"{old.where(digest)} is missing; nothing was copied. Restore a backup")

        def write(path: Path, pieces=pieces) -> None:
            with path.open("wb") as f:
                f.writelines(pieces)

        if stage.put(write) != (digest, size):
            raise RegistryError(f"{old.where(digest)} was altered; nothing was copied. Restore a backup")
        stage.upload(writer)
        sizes.append(size)
    return sizes


def _copy_table(
    table: sa.Table, reader: sa.Connection, writer: sa.Connection, new: AbstractDatabase, progress: Progress | None
) -> CopiedTable:
    total = reader.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    h, done = hashlib.sha256(), 0
    with contextlib.closing(_ordered(table, reader)) as rows:
        for batch in rows.partitions(BATCH):
            if progress:
                progress(f"copying {table.name}", done, total)
            new.insert(writer, table, batch)
            _update(h, batch)
            done += len(batch)
    there = hashlib.sha256()
    with contextlib.closing(_ordered(table, writer)) as rows:
        for batch in rows.partitions(BATCH):
            _update(there, batch)
    if (there.digest(), done) != (h.digest(), total):
        raise RegistryError(f"the rows of {table.name} did not arrive in {new.where} as they were; nothing was changed")
    return CopiedTable(table.name, done, Digest(f"sha256:{h.hexdigest()}"))


def _ordered(table: sa.Table, connection: sa.Connection) -> sa.CursorResult:
    query = sa.select(table).order_by(*table.primary_key.columns)
    return connection.execute(query, execution_options={"yield_per": BATCH})


def _update(h: "hashlib._Hash", rows: Sequence[sa.Row]) -> None:
    """Digest rows; texts, numbers, truth values and bytes are written alike whichever database they come from."""
    for row in rows:
        for value in row:
            if isinstance(value, bytes):
                h.update(b"%d bytes:" % len(value))
                h.update(value)
            else:
                h.update(f"{value!r},".encode())
        h.update(b"\n")
