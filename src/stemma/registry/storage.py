"""What holds a registry: the database with its records, and where its large blobs lie."""

import hashlib
import os
from pathlib import Path

from stemma.registry.blobs import AbstractBlobs, BlobFolder
from stemma.registry.database import AbstractDatabase, ServerAddress, registry_address
from stemma.registry.postgresql_server import PostgreSQLServer
from stemma.registry.server_blobs import ServerBlobs
from stemma.registry.sqlite_file import SQLiteFile


def at(url: str | os.PathLike[str] | None = None) -> tuple[Path | None, AbstractDatabase, AbstractBlobs]:
    """The file of a registry (None on a server), its database and its large blobs."""
    place = registry_address(url)
    if isinstance(place, ServerAddress):
        return None, PostgreSQLServer(place), ServerBlobs()
    return place, SQLiteFile(place), BlobFolder(place.with_name(place.name + ".blobs"))


def derived_files(database: AbstractDatabase, path: Path | None) -> Path:
    """What the names of files begin with that are derived from a registry: beside its file, else in the user cache."""
    if path is not None:
        return path
    import platformdirs

    name = hashlib.sha256(database.where.encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("stemma") / "registries" / name
