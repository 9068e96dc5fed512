"""Take in what another registry exported: the union of its statements, in one transaction, apart from one's own."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from stemma.errors import ExchangeError
from stemma.registry import rows, schema
from stemma.registry.database import AbstractDatabase
from stemma.registry.exchange import statements
from stemma.registry.exchange.sections import Section, SectionReader, sections, survey
from stemma.registry.exchange.statements import MODEL, Statement
from stemma.registry.ingest import fingerprinters
from stemma.types import Digest, jsonable

BATCH = 200

PENDING = 200_000
"""Lookup keys of tensors that are inserted at once, in their order: one by one they would be all over the index."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one section.

    Attributes:
        section: What was imported.
        name: The name of the registry here.
        new: Statements that were not known yet.
        models: Live models of that registry that are known now.
        first: Whether nothing was known from this registry before.
        own: Whether it is an export of this registry itself, of which nothing is taken.
        newer_known: When the newest export that is known was made, if this one is older; else None.
    """

    section: Section
    name: str
    new: int
    models: int
    first: bool
    own: bool = False
    newer_known: str | None = None


@dataclass(frozen=True)
class Acceptance:
    """Which exports are accepted.

    Attributes:
        keys: SHA-256 of public keys, one of which must have signed; any or none if empty.
        name: Name of the registry here; the one it gives itself if None.
        one: Whether the file must be of one registry.
    """

    keys: tuple[str, ...] = ()
    name: str | None = None
    one: bool = False

    def check(self, found: list[Section]) -> None:
        """Raise unless every section is signed as asked."""
        if (self.one or self.name is not None) and len({s.identity for s in found}) > 1:
            raise ExchangeError("the file holds exports of several registries: import each by itself")
        for section in found if self.keys else ():
            if section.signed_by is None:
                raise ExchangeError(f"the export of '{section.name}' is not signed; nothing was imported")
            if section.signed_by not in self.keys:
                raise ExchangeError(
                    f"the export of '{section.name}' is signed with another key ({section.signed_by[:16]}…) than the "
                    "one given; nothing was imported"
                )


def import_file(
    database: AbstractDatabase, path: Path, accept: Acceptance, source: str, identity: str | None = None
) -> list[Imported]:
    """Import every section of a file, or nothing.

    The whole file is checked before the registry is touched: digests, seals, signatures. Statements are checked while
    they are written, in a transaction that an error undoes.

    Args:
        database: Of this registry.
        path: The file.
        accept: Which exports are accepted.
        source: Where it comes from, for receipts: a public address, or a file name.
        identity: Identity that the file must be of; any if None.

    Returns:
        What became of each section.

    Raises:
        ExchangeError: If the file is damaged or hostile, or not from whom it is expected.
    """
    with path.open("rb") as file:
        found = survey(file)
        accept.check(found)
        if identity is not None and any(s.identity != identity for s in found):
            raise ExchangeError("the address now holds the export of another registry; nothing was imported")
        file.seek(0)
        with database.writing() as connection:
            out = []
            for expected, reader in zip(found, sections(file), strict=True):
                out.append(_Merge(connection, expected, accept, source).run(reader))
                if reader.section != expected:
                    raise ExchangeError("the file changed while it was being imported; nothing was imported")
            return out


@dataclass
class _Merge:
    """The merge of one section."""

    connection: sa.Connection
    section: Section
    accept: Acceptance
    source: str

    def run(self, reader: SectionReader) -> Imported:
        own = self.connection.execute(sa.select(schema.identity.c.name).where(
            schema.identity.c.identity == self.section.identity)).scalar()  # fmt: skip
        if own is not None:
            for _ in reader.lines():
                pass
            return Imported(self.section, own, 0, 0, first=False, own=True)
        self._origin, name, first = self._pinned_origin()
        newest = self._newest_export()
        self._receipt = self._write_receipt(name)
        self._known = self._digests()
        self._current = self._current_models()
        self._pending = list[tuple[int, int]]()
        self._spec = jsonable(fingerprinters()[0].spec)
        new = 0
        batch = list[Statement]()
        for digest, text in reader.lines():
            if f"sha256:{digest}" in self._known:
                continue
            self._known.add(Digest(f"sha256:{digest}"))
            batch.append(statements.parse(text))
            new += 1
            if len(batch) == BATCH:
                self._write(batch)
                batch = []
        self._write(batch)
        self._write_keys()
        live = sum(1 for _, _, removed, _ in self._current.values() if not removed)
        newer = newest if newest is not None and newest > self.section.created else None
        return Imported(self.section, name, new, live, first, newer_known=newer)

    def _pinned_origin(self) -> tuple[int, str, bool]:
        """The row of the other registry, its name here, and whether it is new; its key must not have changed."""
        o, section = schema.origin.c, self.section
        row = self.connection.execute(sa.select(schema.origin).where(o.identity == section.identity)).first()
        if row is None:
            return self._new_origin()
        if self.accept.name not in (None, row.name):
            raise ExchangeError(
                f"this registry is known as '{row.name}' here already, not as '{self.accept.name}'. Leave out --as"
            )
        if row.signed_by != section.signed_by:
            if section.signed_by is None or section.signed_by not in self.accept.keys:
                raise ExchangeError(_changed_key(row.name, row.signed_by, section.signed_by))
            self.connection.execute(schema.origin.update().where(o.id == row.id).values(signed_by=section.signed_by))
            drop_statements(self.connection, row.id)  # whoever had the other key may have written anything
        return row.id, row.name, False

    def _new_origin(self) -> tuple[int, str, bool]:
        o, section = schema.origin.c, self.section
        name = self.accept.name or section.name
        taken = self.connection.execute(sa.select(o.identity).where(o.name == name)).scalar()
        own = self.connection.execute(sa.select(schema.identity.c.name)).scalar()
        if taken is not None or own == name:
            whose = "this registry itself" if own == name else "another registry"
            raise ExchangeError(
                f"'{name}' is the name of {whose} here, and this export is not from there. If you trust it, give it a "
                "name of its own: --as NAME"
            )
        values = {"identity": section.identity, "name": name, "signed_by": section.signed_by,
                  "added_at": rows.timestamp()}  # fmt: skip
        key = self.connection.execute(schema.origin.insert().values(**values)).inserted_primary_key
        assert key is not None
        return key[0], name, True

    def _newest_export(self) -> str | None:
        """When the newest export of this registry that was imported here was made."""
        r = schema.receipt.c
        texts = self.connection.execute(sa.select(r.record).where(r.origin_id == self._origin)).scalars()
        return max((rows.decode(text, lambda record: str(record["created"])) for text in texts), default=None)

    def _write_receipt(self, name: str) -> int:
        record = {"registry": name, "source": self.source, "imported_at": rows.timestamp(), **jsonable(self.section)}
        values = {"origin_id": self._origin, **rows.encode(record)}
        key = self.connection.execute(schema.receipt.insert().values(**values)).inserted_primary_key
        assert key is not None
        return key[0]

    def _digests(self) -> set[str]:
        s = schema.statement.c
        return set(self.connection.execute(sa.select(s.digest).where(s.origin_id == self._origin)).scalars())

    def _current_models(self) -> dict[str, tuple[str, str, bool, int]]:
        """By name: revision, digest of the statement, whether it is a tombstone, and number of the row."""
        k = schema.known_model.c
        query = sa.select(k.name, k.revision, k.statement_digest, k.removed, k.statement_id)
        found = self.connection.execute(query.where(k.origin_id == self._origin))
        return {r.name: (r.revision, r.statement_digest, r.removed, r.statement_id) for r in found}

    def _write(self, batch: list[Statement]) -> None:
        if not batch:
            return
        values = [
            {"origin_id": self._origin, "receipt_id": self._receipt, "kind": one.kind, "key": one.key,
             "revision": one.order, "digest": one.digest, "content": zlib.compress(one.text.encode(), 1)}
            for one in batch
        ]  # fmt: skip
        insert = schema.statement.insert().returning(schema.statement.c.id, sort_by_parameter_order=True)
        ids = self.connection.execute(insert, values).scalars().all()
        self._index([(i, one) for i, one in zip(ids, batch, strict=True) if one.kind == MODEL])

    def _index(self, models: list[tuple[int, Statement]]) -> None:
        """Make the newest statement about each name the one that counts."""
        newest: dict[str, tuple[int, Statement]] = {}
        for i, one in models:
            known = self._current.get(one.key)
            if known is None or (one.order, one.digest) > known[:2]:
                self._current[one.key] = (one.order, one.digest, one.body["removed"], i)
                newest[one.key] = (i, one)
        if not newest:
            return
        k, t = schema.known_model.c, schema.known_tensor.c
        here = sa.and_(k.origin_id == self._origin, k.name.in_(list(newest)))
        old = self.connection.execute(sa.select(k.statement_id).where(here)).scalars().all()
        if old:
            self._write_keys()
            self.connection.execute(schema.known_tensor.delete().where(t.statement_id.in_(old)))
            self.connection.execute(schema.known_model.delete().where(here))
        self.connection.execute(schema.known_model.insert(), [self._row(i, one) for i, one in newest.values()])
        self._pending += [(key, i) for i, one in newest.values() for key in _tensor_keys(one.body)]
        if len(self._pending) >= PENDING:
            self._write_keys()

    def _write_keys(self) -> None:
        if self._pending:
            rows_ = [{"key": key, "statement_id": i} for key, i in sorted(self._pending)]
            self.connection.execute(schema.known_tensor.insert(), rows_)
            self._pending = []

    def _row(self, i: int, one: Statement) -> dict[str, Any]:
        body = one.body
        record = body.get("record", {})
        return {"origin_id": self._origin, "name": one.key, "statement_id": i, "revision": one.order,
                "statement_digest": one.digest, "removed": body["removed"],
                "digest": record.get("digest", body.get("digest")),
                "names_free_digest": record.get("names_free_digest"), "bits": self._bits(body)}  # fmt: skip

    def _bits(self, body: Mapping[str, Any]) -> bytes | None:
        values = weight_sketch(body, self._spec)
        return None if values is None or "bits" not in values else values["bits"].tobytes()


def drop_statements(connection: sa.Connection, origin: int) -> None:
    """Drop everything that another registry told; its row and its subscriptions stay."""
    told = sa.select(schema.statement.c.id).where(schema.statement.c.origin_id == origin)
    connection.execute(schema.known_tensor.delete().where(schema.known_tensor.c.statement_id.in_(told)))
    for table in (schema.known_model, schema.statement, schema.receipt):
        connection.execute(table.delete().where(table.c.origin_id == origin))


def weight_sketch(body: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The values of the weight sketch by one method, None without one."""
    for sketch in body.get("sketches", ()):
        if sketch["spec"] == spec:
            return statements.sketch_values(sketch)
    return None


def _tensor_keys(body: Mapping[str, Any]) -> Iterator[int]:
    """Lookup keys of the matrices of a model, each once: a vector of ones is shared by thousands."""
    if body["removed"]:
        return
    yield from sorted(statements.tensor_keys(body["tensors"]))


def _changed_key(name: str, before: str | None, now: str | None) -> str:
    was = "was not signed until now" if before is None else f"was signed with the key {before[:16]}…"
    is_ = "is not signed" if now is None else f"is signed with the key {now[:16]}…"
    hint = "" if now is None else ". If its owner confirms the new key, give it: --public-key KEY.pem"
    return f"what is known from '{name}' {was}, and this export {is_}; nothing was imported{hint}"
