"""Move a registry from a file to a server, or back."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema

if TYPE_CHECKING:
    from stemma.registry.transfer import Copied


@dataclass(frozen=True, kw_only=True)
class MigrateRequest:
    """What `stemma registry migrate` is asked.

    Attributes:
        source: Registry that is copied: a path or an address.
        target: Registry that is not there yet, or empty.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class TablePart:
    """One table that was copied.

    Attributes:
        name: Name of the table.
        rows: Number of its rows.
        digest: Digest of its rows, computed on both sides.
    """

    name: str
    rows: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class MigrateDocument(Document):
    """A registry that was copied whole into an empty one.

    Attributes:
        source: Where it was, without a password.
        target: Where the copy is, without a password.
        tables: Every table that was copied.
        large_blobs: Number of large blobs, such as kept weights.
        large_bytes: Bytes of these.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.registry-migrate", 1)

    asked: MigrateRequest
    source: str
    target: str
    tables: tuple[TablePart, ...]
    large_blobs: int
    large_bytes: int


@dataclass(frozen=True, kw_only=True)
class MigrateAnswer:
    """A registry that was copied.

    Attributes:
        request: What was asked.
        result: What was copied.
    """

    request: MigrateRequest
    result: "Copied"

    def document(self) -> dict[str, Any]:
        """The document that `stemma registry migrate --json` prints."""
        from stemma.registry.database import without_password

        asked, found = self.request, self.result
        shown = replace(asked, source=without_password(asked.source), target=without_password(asked.target))
        return MigrateDocument.of(
            shown,
            source=found.source,
            target=found.target,
            tables=tuple(TablePart(t.name, t.rows, t.digest) for t in found.tables),
            large_blobs=found.large_blobs,
            large_bytes=found.large_bytes,
        ).to_dict()


def migrate_registry(request: MigrateRequest, progress: Progress | None = None) -> MigrateAnswer:
    """Copy a whole registry into an empty one, and verify every row and blob of it.

    Args:
        request: From where, and to where.
        progress: Told what is being done.

    Returns:
        What was copied.

    Raises:
        MisuseError: If a place is not named.
    """
    from stemma.errors import MisuseError
    from stemma.registry.transfer import copy_registry

    if not request.source or not request.target:
        raise MisuseError("a registry to copy and the place of its copy are needed, and one of them is empty")
    return MigrateAnswer(request=request, result=copy_registry(request.source, request.target, progress))
