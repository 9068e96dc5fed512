"""What two registries do not have in common, by name, weights and licence."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from stemma.registry import rows, schema
from stemma.registry.database import AbstractDatabase
from stemma.registry.exchange import statements
from stemma.registry.exchange.merging import Acceptance
from stemma.registry.exchange.sections import Section, sections, survey
from stemma.registry.exchange.statements import MODEL


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as a registry lists it.

    Attributes:
        name: Its name.
        digest: Digest of its weights.
        licence: Licence as stated, else as its card says; None where neither does.
    """

    name: str
    digest: str
    licence: str | None


@dataclass(frozen=True)
class Holdings:
    """The models of a registry.

    Attributes:
        models: By name.
        title: What the registry is called.
        identity: What tells it from others; None where it never exported anything.
        signed_by: Of its export; None where it is not signed, or not an export.
        digests: Of statements, where it is an export.
    """

    models: Mapping[str, Listed]
    title: str
    identity: str | None = None
    signed_by: str | None = None
    digests: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Differences:
    """What two registries do not have in common.

    Attributes:
        only_here: Models whose weights the other does not have.
        only_there: Models whose weights this one does not have.
        licences: Models with the same weights under the same name and another licence: here, and there.
        names: Names that stand for other weights in the other registry: here, and there.
    """

    only_here: tuple[Listed, ...]
    only_there: tuple[Listed, ...]
    licences: tuple[tuple[Listed, Listed], ...]
    names: tuple[tuple[Listed, Listed], ...]

    @property
    def none(self) -> bool:
        """Whether there are none."""
        return not (self.only_here or self.only_there or self.licences or self.names)


def differences(here: Holdings, there: Holdings) -> Differences:
    """What the holdings do not have in common."""
    here_digests, there_digests = ({m.digest for m in side.models.values()} for side in (here, there))
    both = sorted(here.models.keys() & there.models.keys())
    pairs = [(here.models[name], there.models[name]) for name in both]
    return Differences(
        _without(here.models.values(), there_digests),
        _without(there.models.values(), here_digests),
        tuple((a, b) for a, b in pairs if a.digest == b.digest and a.licence != b.licence),
        tuple((a, b) for a, b in pairs if a.digest != b.digest),
    )


def _without(models: Iterable[Listed], digests: set[str]) -> tuple[Listed, ...]:
    return tuple(sorted((m for m in models if m.digest not in digests), key=lambda m: m.name))


def own_holdings(database: AbstractDatabase, title: str) -> Holdings:
    """The models that a registry enrolled itself."""
    with database.reading() as connection:
        records = map(rows.model_record, connection.execute(rows.select_live()).scalars())
        models = {r.name: Listed(r.name, r.digest, r.licence) for r in records}
        identity = connection.execute(sa.select(schema.identity.c.identity)).scalar()
    return Holdings(models, title, identity)


def export_holdings(path: Path, accept: Acceptance) -> Holdings:
    """The models in an export, which is checked as if it were imported."""
    with path.open("rb") as file:
        found = survey(file)
        accept.check(found)
        file.seek(0)
        newest: dict[str, tuple[str, str, Listed | None]] = {}
        digests = set[str]()
        for digest, name, order, listed in _models(found, file):
            digests.add(digest)
            newest[name] = max(newest.get(name, ("", "", None)), (order, digest, listed), key=lambda x: x[:2])
    models = {name: listed for name, (_, _, listed) in newest.items() if listed is not None}
    return Holdings(models, found[0].name, found[0].identity, found[0].signed_by, frozenset(digests))


def _models(found: list[Section], file: BinaryIO) -> Iterator[tuple[str, str, str, Listed | None]]:
    for _, reader in zip(found, sections(file), strict=True):
        for digest, text in reader.lines():
            one = statements.parse(text)
            if one.kind != MODEL:
                continue
            body = one.body
            record = None if body["removed"] else statements.model_record(body)
            listed = None if record is None else Listed(record.name, record.digest, record.licence)
            yield digest, one.key, one.order, listed


def known_digests(database: AbstractDatabase, identity: str) -> set[str]:
    """Digests of the models that are known from a registry."""
    k, o = schema.known_model.c, schema.origin.c
    with database.reading() as connection:
        query = sa.select(k.digest).join(schema.origin, o.id == k.origin_id)
        found = query.where(o.identity == identity, k.removed == sa.false())
        return set(connection.execute(found).scalars())
