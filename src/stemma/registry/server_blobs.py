"""Large blobs of a registry on a server: in a table of the same database, in pieces of a megabyte.

They are stored in the transaction that records them, so that nothing is ever left over, and before it takes the write
lock, so that nobody waits for gigabytes. Whoever needs a blob as a file gets a verified copy in the cache folder.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import sqlalchemy as sa

from stemma.errors import RegistryError
from stemma.registry import blobs, schema
from stemma.types import Digest

PIECE = 1 << 20
"""Bytes of a blob in one row."""

piece = sa.Table(
    "blob_piece",
    sa.MetaData(),
    sa.Column("digest", sa.Text, primary_key=True, comment="of the whole blob"),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)


schema.fit_to_postgresql([piece])


def create_table(connection: sa.Connection) -> None:
    """Make the table of pieces, if need be; weights are not compressed."""
    piece.create(connection, checkfirst=True)
    connection.exec_driver_sql("ALTER TABLE blob_piece ALTER content SET STORAGE EXTERNAL")


def folder() -> Path:
    """The cache folder, which may not exist yet: `STEMMA_CACHE`, else the user's."""
    import platformdirs

    given = os.environ.get("STEMMA_CACHE")
    return Path(given or platformdirs.user_cache_dir("stemma")) / "blobs"


class ServerStage(blobs.AbstractStage):
    """Files of a temporary folder that are to become rows."""

    def upload(self, connection: sa.Connection) -> None:
        """See `AbstractStage.upload`; in the order of digests, so that two writers never wait for each other."""
        for digest, path in sorted(self._files.items()):
            known = sa.select(schema.blob.c.size).where(schema.blob.c.digest == digest)
            if connection.execute(known).first() is None:
                _store(connection, digest, path)
            path.unlink()
        self._files.clear()

    def publish(self) -> None:
        """See `AbstractStage.publish`; the commit does it."""


def _store(connection: sa.Connection, digest: Digest, path: Path) -> None:
    from sqlalchemy.dialects.postgresql import insert

    statement = insert(piece).on_conflict_do_nothing()
    with path.open("rb") as f:
        for number, content in enumerate(iter(lambda: f.read(PIECE), b"")):
            connection.execute(statement, {"digest": digest, "number": number, "content": content})


class ServerBlobs(blobs.AbstractBlobs):
    """The large blobs of a registry on a server."""

    @contextlib.contextmanager
    def staging(self) -> Generator[ServerStage]:
        """See `AbstractBlobs.staging`; `TMPDIR` says where the files lie until they are stored."""
        with tempfile.TemporaryDirectory(prefix="stemma-") as temporary:
            yield ServerStage(Path(temporary))

    def where(self, digest: Digest) -> str:
        """See `AbstractBlobs.where`."""
        return f"the blob {digest}"

    def pieces(self, connection: sa.Connection, digest: Digest) -> Iterator[bytes] | None:
        """See `AbstractBlobs.pieces`."""
        if connection.execute(sa.select(piece.c.number).where(piece.c.digest == digest).limit(1)).first() is None:
            return None
        return _rows(connection, digest)

    def file(self, connection: sa.Connection, digest: Digest) -> Path | None:
        """See `AbstractBlobs.file`; fetched once into the cache folder, and verified."""
        target = blobs.path_in(folder(), digest)
        size = connection.execute(sa.select(schema.blob.c.size).where(schema.blob.c.digest == digest)).scalar()
        found = None if size is None else self.pieces(connection, digest)
        if found is None:
            return None
        if target.exists() and target.stat().st_size == size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        try:
            with unfinished.open("wb") as f:
                f.writelines(found)
            if blobs.file_digest(unfinished) != digest:
                raise RegistryError(f"{self.where(digest)} was altered: its bytes do not match. Restore a backup")
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return target

    def stale_folders(self) -> list[Path]:
        """See `AbstractBlobs.stale_folders`; a transaction leaves nothing."""
        return []

    def sweep(self, referred: Callable[[Digest], bool]) -> None:
        """See `AbstractBlobs.sweep`; a transaction leaves nothing."""


def _rows(connection: sa.Connection, digest: Digest) -> Iterator[bytes]:
    """The pieces of a blob, a few at a time."""
    query = sa.select(piece.c.content).where(piece.c.digest == digest).order_by(piece.c.number)
    found = connection.execute(query, execution_options={"yield_per": 8})
    yield from (bytes(content) for content in found.scalars())
