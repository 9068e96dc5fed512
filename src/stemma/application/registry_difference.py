"""What do two registries not have in common? Request, answer and JSON document of `stemma registry diff`."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Schema
from stemma.application.import_registry import acceptance, without_secrets
from stemma.errors import ExchangeError

if TYPE_CHECKING:
    from stemma.registry import Registry
    from stemma.registry.exchange.differences import Differences, Holdings, Listed
    from stemma.registry.exchange.merging import Acceptance


@dataclass(frozen=True, kw_only=True)
class RegistryDifferenceRequest:
    """What `stemma registry diff` is asked.

    Attributes:
        address: File or address of an export, or another registry.
        public_key: Files of public keys, one of which must have signed; none is asked for if empty.
        registry: Registry; the default one if null.
    """

    address: str
    public_key: tuple[str, ...] = ()
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A model as a registry lists it.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        licence: Licence as stated, else as its card says; null where neither does.
    """

    name: str
    digest: str
    licence: str | None


@dataclass(frozen=True, slots=True)
class TwoPart:
    """A name that the two registries do not agree on.

    Attributes:
        name: Name of the model.
        here: What it is in this registry.
        there: What it is in the other one.
    """

    name: str
    here: ListedPart
    there: ListedPart


@dataclass(frozen=True, kw_only=True)
class RegistryDifferenceDocument(Document):
    """What two registries do not have in common.

    Attributes:
        other: Name of the other registry.
        identity: What tells the other from further registries; null where it never exported anything.
        signed_by: SHA-256 of the public key that signed its export; null where it is not signed, or no export.
        equal: Whether nothing differs.
        models_here: Number of models that this registry enrolled itself.
        models_there: Number of models that the other one enrolled itself.
        only_here: Models whose weights the other registry does not have.
        only_there: Models whose weights are neither enrolled here nor known from that registry.
        already_known: Number of models of the other registry that are not enrolled here, and known from there.
        licences: Models with the same name and weights, and another licence.
        names: Names that stand for other weights in the other registry.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.registry-diff", 1)

    asked: RegistryDifferenceRequest
    other: str
    identity: str | None
    signed_by: str | None
    equal: bool
    models_here: int
    models_there: int
    only_here: tuple[ListedPart, ...]
    only_there: tuple[ListedPart, ...]
    already_known: int
    licences: tuple[TwoPart, ...]
    names: tuple[TwoPart, ...]


@dataclass(frozen=True, kw_only=True)
class RegistryDifferenceAnswer:
    """What two registries do not have in common.

    Attributes:
        request: What was asked.
        here: This registry.
        there: The other one.
        result: What differs.
        already_known: Number of models of the other registry that are known from there.
    """

    request: RegistryDifferenceRequest
    here: "Holdings"
    there: "Holdings"
    result: "Differences"
    already_known: int

    def document(self) -> dict[str, Any]:
        """The document that `stemma registry diff --json` prints."""
        found, there = self.result, self.there
        return RegistryDifferenceDocument.of(
            without_secrets(self.request), other=there.title, identity=there.identity, signed_by=there.signed_by,
            equal=found.none, models_here=len(self.here.models), models_there=len(there.models),
            only_here=tuple(map(_part, found.only_here)), only_there=tuple(map(_part, found.only_there)),
            already_known=self.already_known,
            licences=tuple(TwoPart(a.name, _part(a), _part(b)) for a, b in found.licences),
            names=tuple(TwoPart(a.name, _part(a), _part(b)) for a, b in found.names),
        ).to_dict()  # fmt: skip


def _part(model: "Listed") -> ListedPart:
    return ListedPart(model.name, model.digest, model.licence)


def registry_difference(request: RegistryDifferenceRequest) -> RegistryDifferenceAnswer:
    """Compare what this registry enrolled itself with an export, or with another registry; nothing is changed.

    Args:
        request: The two.

    Returns:
        What differs.
    """
    from stemma.registry import Registry
    from stemma.registry.exchange.differences import differences

    accept = replace(acceptance(request.public_key), one=True)
    with Registry(request.registry) as registry:
        here, there = registry.exchange.holdings("this registry"), _other(registry, request.address, accept)
        found = differences(here, there)
        known = registry.exchange.known_digests(there.identity) if there.identity else set()
    told = tuple(m for m in found.only_there if m.digest in known)
    rest = tuple(m for m in found.only_there if m.digest not in known)
    return RegistryDifferenceAnswer(
        request=request, here=here, there=there, result=replace(found, only_there=rest), already_known=len(told)
    )


def _other(registry: "Registry", address: str, accept: "Acceptance") -> "Holdings":
    """The other registry: a database, or else an export."""
    from pathlib import Path

    from stemma.registry import Registry
    from stemma.registry.database import without_password

    database = re.match(r"(sqlite|postgresql)[+a-z0-9]*://", address) is not None
    if not database and "://" not in address and Path(address).is_file():
        with Path(address).open("rb") as file:
            database = file.read(16) == b"SQLite format 3\0"
    if not database:
        return registry.exchange.export_holdings(address, accept)
    if accept.keys:
        raise ExchangeError(f"{without_password(address)} is a registry itself and no export: it has no signature")
    with Registry(address) as other:
        return other.exchange.holdings(without_password(address))
