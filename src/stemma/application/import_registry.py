"""Take in what another registry exported. Request, answer and JSON document of `stemma registry import`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Schema

if TYPE_CHECKING:
    from stemma.registry.exchange.merging import Acceptance, Imported


@dataclass(frozen=True, kw_only=True)
class ImportRegistryRequest:
    """What `stemma registry import` is asked.

    Attributes:
        address: File or address of an export.
        public_key: Files of public keys, one of which must have signed; none is asked for if empty.
        name: Name of the other registry here; the one it gives itself if null.
        registry: Registry; the default one if null.
    """

    address: str
    public_key: tuple[str, ...] = ()
    name: str | None = None
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class ImportedPart:
    """What became of the export of one registry.

    Attributes:
        registry: Name of the other registry here.
        identity: What tells it from other registries.
        signed_by: SHA-256 of the public key that signed the export; null where it is not signed.
        statements: Number of statements in the export.
        new: Number of those that were not known.
        models: Number of models that are known from this registry now.
        complete: Whether the export holds everything that the registry found itself.
        left_out: How much the exporter left out, by what.
        first: Whether nothing was known from this registry before.
        own: Whether it is an export of this registry itself, of which nothing is taken.
        newer_known: When the newest export that is known was made, where this one is older; null otherwise.
    """

    registry: str
    identity: str
    signed_by: str | None
    statements: int
    new: int
    models: int
    complete: bool
    left_out: Mapping[str, int]
    first: bool
    own: bool
    newer_known: str | None


@dataclass(frozen=True, kw_only=True)
class ImportRegistryDocument(Document):
    """What became of the exports in a file.

    Attributes:
        imported: One entry for each registry in the file.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.registry-import", 1)

    asked: ImportRegistryRequest
    imported: tuple[ImportedPart, ...]


@dataclass(frozen=True, kw_only=True)
class ImportRegistryAnswer:
    """What became of the exports in a file.

    Attributes:
        request: What was asked.
        imported: One entry for each registry in the file.
    """

    request: ImportRegistryRequest
    imported: "tuple[Imported, ...]"

    def document(self) -> dict[str, Any]:
        """The document that `stemma registry import --json` prints."""
        return ImportRegistryDocument.of(
            without_secrets(self.request), imported=tuple(map(imported_part, self.imported))
        ).to_dict()


def imported_part(found: "Imported") -> ImportedPart:
    """What became of one export, as part of a document."""
    section = found.section
    return ImportedPart(
        registry=found.name, identity=section.identity, signed_by=section.signed_by, statements=section.statements,
        new=found.new, models=found.models, complete=section.complete, left_out=section.left_out, first=found.first,
        own=found.own, newer_known=found.newer_known,
    )  # fmt: skip


def without_secrets(request: Any) -> Any:
    """A request whose address may be shown: no password, no token."""
    from dataclasses import replace

    from stemma.checkpoints.privacy import public_address

    address = request.address
    return replace(request, address=public_address(address)) if address and "://" in address else request


def acceptance(public_key: Sequence[str], name: str | None = None) -> "Acceptance":
    """Which exports are accepted, with the keys read."""
    from stemma.registry.exchange.merging import Acceptance
    from stemma.registry.exchange.sections import check_registry_name
    from stemma.verification.signatures.keys import read_public_key

    if name is not None:
        check_registry_name(name)
    return Acceptance(tuple(read_public_key(path).identity for path in public_key), name)


def import_registry(request: ImportRegistryRequest) -> ImportRegistryAnswer:
    """Take in what other registries exported, all of a file or nothing.

    What they tell is kept apart from what this registry found itself.

    Args:
        request: The file or address, and who must have signed it.

    Returns:
        What became of each export in it.
    """
    from stemma.registry import Registry

    accept = acceptance(request.public_key, request.name)
    with Registry(request.registry) as registry:
        imported = registry.exchange.import_from(request.address, accept)
    return ImportRegistryAnswer(request=request, imported=tuple(imported))
