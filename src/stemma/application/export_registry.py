"""Write what a registry knows to a file. Request, answer and JSON document of `stemma registry export`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Schema

if TYPE_CHECKING:
    from stemma.registry.exchange.sections import Section


@dataclass(frozen=True, kw_only=True)
class ExportRegistryRequest:
    """What `stemma registry export` is asked.

    Attributes:
        path: File that is written.
        names: Models; all if empty.
        name: How the registry calls itself from now on; as before if null.
        sign: File of the private key; the export is not signed if null.
        registry: Registry; the default one if null.
    """

    path: str
    names: tuple[str, ...] = ()
    name: str | None = None
    sign: str | None = None
    registry: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportRegistryDocument(Document):
    """A registry that was written to a file.

    Attributes:
        path: File that was written.
        size: Bytes of the file.
        name: How the registry calls itself.
        identity: What tells it from other registries.
        statements: Number of statements: models, models that were removed, evidence, edges of the family tree.
        complete: Whether it holds everything that the registry found itself.
        left_out: How much was left out, by what.
        digest: SHA-256 of the statements.
        signed_by: SHA-256 of the public key that verifies the signature; null where it is not signed.
        known_left_out: Number of models that other registries told of, which are theirs to export.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.registry-export", 1)

    asked: ExportRegistryRequest
    path: str
    size: int
    name: str
    identity: str
    statements: int
    complete: bool
    left_out: Mapping[str, int]
    digest: str
    signed_by: str | None
    known_left_out: int


@dataclass(frozen=True, kw_only=True)
class ExportRegistryAnswer:
    """A registry that was written to a file.

    Attributes:
        request: What was asked.
        section: What was written.
        size: Bytes of the file.
        known_left_out: Number of models that other registries told of.
    """

    request: ExportRegistryRequest
    section: "Section"
    size: int
    known_left_out: int

    def document(self) -> dict[str, Any]:
        """The document that `stemma registry export --json` prints."""
        found = self.section
        return ExportRegistryDocument.of(
            self.request, path=self.request.path, size=self.size, name=found.name, identity=found.identity,
            statements=found.statements, complete=found.complete, left_out=found.left_out, digest=found.digest,
            signed_by=found.signed_by, known_left_out=self.known_left_out,
        ).to_dict()  # fmt: skip


def export_registry(request: ExportRegistryRequest) -> ExportRegistryAnswer:
    """Write what a registry found itself to a file, without weights and without paths.

    Args:
        request: The registry, the file, and who signs.

    Returns:
        What was written.
    """
    from stemma.registry import Registry
    from stemma.verification.signatures.keys import read_private_key

    key = None if request.sign is None else read_private_key(request.sign)
    path = Path(request.path)
    with Registry(request.registry) as registry:
        section = registry.exchange.export(path, request.names, request.name, key)
        known = registry.known.count()
    return ExportRegistryAnswer(request=request, section=section, size=path.stat().st_size, known_left_out=known)
