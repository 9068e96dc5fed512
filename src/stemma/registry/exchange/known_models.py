"""Models that are known from other registries: what they are called here, who told of them, and what is known of them.

Nothing here was read by this registry. A digest, a sketch, a licence or a parent is what the other registry says.
"""

import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import sqlalchemy as sa

from stemma.checkpoints.digest import PARTIAL
from stemma.checkpoints.model import Model
from stemma.errors import RegistryError
from stemma.registry import model_records, rows, schema
from stemma.registry.database import AbstractDatabase
from stemma.registry.exchange import statements
from stemma.registry.exchange.merging import weight_sketch
from stemma.registry.exchange.statements import EDGE, EVIDENCE, TREE, Statement
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord
from stemma.types import Digest, Fingerprint, KnownFrom, jsonable

BATCH = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Another registry.

    Attributes:
        id: Number of its row.
        identity: As it states it.
        name: Its name here.
        signed_by: SHA-256 of the pinned public key; None where it does not sign.
        added_at: When something was first known from it.
        models: Number of models that are known from it, but for those that it removed.
    """

    id: int
    identity: str
    name: str
    signed_by: str | None
    added_at: str
    models: int


@dataclass(frozen=True)
class KnownModel:
    """A model that another registry tells of.

    Attributes:
        name: Its name here: its own, `@`, and the name of the registry.
        body: The statement.
        told: By whom.
    """

    name: str
    body: dict[str, Any]
    told: KnownFrom

    @cached_property
    def record(self) -> ModelRecord:
        """What the registry says of it, under its name here."""
        return replace(statements.model_record(self.body), name=self.name)

    @property
    def complete(self) -> bool:
        """Whether all its tensors are listed, so that its digest is known to be theirs."""
        return bool(self.body["complete"])

    @property
    def reason(self) -> str:
        """Why its weights are not read."""
        return f"'{self.name}' is {self.told.sentence}, which holds no weights"

    @cached_property
    def sketch(self) -> Fingerprint | None:
        """Its weight sketch as the registry tells it, by the method of this version; None without one."""
        spec = fingerprinters()[0].spec
        values = weight_sketch(self.body, jsonable(spec))
        return None if values is None else Fingerprint(self.record.digest, None, spec, values)

    def opened(self) -> Model:
        """A model that can be identified but not read."""
        listed = statements.tensor_records(self.body["tensors"])
        model = model_records.model_without_weights(self.record, listed, self.reason)
        model.__dict__["known_sketch"] = self.sketch
        model.__dict__["known_from"] = self.told
        return model


class KnownModels:
    """The models that are known from other registries."""

    def __init__(self, database: AbstractDatabase) -> None:
        """Read them from the tables of a registry."""
        self._database = database

    def origins(self) -> tuple[Origin, ...]:
        """The other registries, sorted by name."""
        o, k = schema.origin.c, schema.known_model.c
        count = sa.select(sa.func.count()).where(k.origin_id == o.id, k.removed == sa.false()).scalar_subquery()
        query = sa.select(o.id, o.identity, o.name, o.signed_by, o.added_at, count.label("models")).order_by(o.name)
        with self._database.reading() as connection:
            return tuple(Origin(*row) for row in connection.execute(query))

    def count(self) -> int:
        """Number of models that are known from other registries."""
        k = schema.known_model.c
        with self._database.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).where(k.removed == sa.false())).scalar_one()

    def models(self) -> tuple[KnownModel, ...]:
        """All of them, by registry and name."""
        with self._database.reading() as connection:
            return tuple(self._read(connection, schema.known_model.c.removed == sa.false()))

    def records(self) -> Iterator[tuple[ModelRecord, KnownFrom]]:
        """The records of all of them, a part at a time."""
        with self._database.reading() as connection:
            for known in self._read(connection, schema.known_model.c.removed == sa.false()):
                yield known.record, known.told

    def find(self, text: str) -> tuple[KnownModel, ...]:
        """Those of this name, or with a digest that begins so (8 hexadecimal digits or more)."""
        k, o = schema.known_model.c, schema.origin.c
        with self._database.reading() as connection:
            named = []
            for origin, title in connection.execute(sa.select(o.id, o.name)).all():
                name = text
                while name.endswith(f"@{title}"):  # more than once where the name is taken here
                    name = name[: -len(title) - 1]
                    named.append(sa.and_(k.origin_id == origin, k.name == name))
            found = list(self._read(connection, sa.and_(k.removed == sa.false(), sa.or_(*named)))) if named else []
            found = [x for x in found if x.name == text]
            start = PARTIAL if text.startswith(PARTIAL) else ""
            prefix = text.removeprefix(PARTIAL).removeprefix("sha256:")
            if not found and 8 <= len(prefix) <= 64 and all(c in "0123456789abcdef" for c in prefix):
                low = f"{start}sha256:{prefix}"
                here = sa.and_(k.removed == sa.false(), k.digest >= low, k.digest < low + "g")
                found = list(self._read(connection, here))
        return tuple(found)

    def by_digest(self, digest: Digest) -> tuple[KnownModel, ...]:
        """Those that are said to have these weights."""
        k = schema.known_model.c
        with self._database.reading() as connection:
            return tuple(self._read(connection, sa.and_(k.removed == sa.false(), k.digest == digest)))

    def nearest(
        self, digest: Digest, names_free: Digest, tensors: Collection[Digest], bits: np.ndarray | None, limit: int
    ) -> tuple[KnownModel, ...]:
        """Those to look at for a model: with the same weights, with some of its matrices, and the nearest by sketch.

        Every registry has a limit of its own, so that none can crowd out another, or the models enrolled here.

        Args:
            digest: Of the model.
            names_free: The same without names.
            tensors: Digests of its matrices.
            bits: Of its weight sketch; None without one.
            limit: Models of each registry that are looked at for sharing, and for their sketch.

        Returns:
            The models, by registry and name.
        """
        k = schema.known_model.c
        with self._database.reading() as connection:
            live = k.removed == sa.false()
            same = sa.and_(live, sa.or_(k.digest == digest, k.names_free_digest == names_free))
            found = connection.execute(sa.select(k.origin_id, k.name, k.statement_id).where(same))
            ids = _first_of_each(map(tuple, found), limit)
            ids |= _sharing(connection, {rows.tensor_key(d) for d in tensors}, limit)
            if bits is not None:
                ids |= _by_sketch(connection, bits, limit)
            listed, out = sorted(ids), list[KnownModel]()
            for at in range(0, len(listed), BATCH):
                out += self._read(connection, k.statement_id.in_(listed[at : at + BATCH]))
        return tuple(sorted(out, key=lambda x: (x.told.registry, x.name)))

    def edges(self, known: KnownModel) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
        """Edges to a model and from it in the family tree that its registry drew last, with names as here."""
        edges = [e for e in self.told_edges(known.told.registry)]
        name = known.name
        return tuple(e for e in edges if e["child"] == name), tuple(e for e in edges if e["parent"] == name)

    def told_edges(self, registry: str | None = None) -> Iterator[dict[str, Any]]:
        """The edges that other registries drew between models that they still hold, with names as here."""
        k = schema.known_model.c
        for origin in self.origins():
            if registry not in (None, origin.name):
                continue
            with self._database.reading() as connection:
                live = sa.select(k.name, k.digest).where(k.origin_id == origin.id, k.removed == sa.false())
                held = {tuple(row) for row in connection.execute(live)}
                trees = list(_bodies(connection, origin.id, TREE))
                newest = max((tree.revision for tree in trees), default=None)
                edges = [e for e in _bodies(connection, origin.id, EDGE) if e.revision == newest]
                told = KnownFrom(origin.name, origin.identity, origin.signed_by)
                for edge in edges:
                    body = edge.body
                    ends = [(body[end]["name"], body[end]["digest"]) for end in ("parent", "child")]
                    if held.issuperset(ends):
                        parent, child = (f"{name}@{origin.name}" for name, _ in ends)
                        said = {field: body[field] for field in ("relation", "confidence", "p_value")}
                        yield {"parent": parent, "child": child, **said, "known_from": told}

    def evidence(self, known: KnownModel) -> Iterator[dict[str, Any]]:
        """What the registry of a model computed on pairs with it: the other model, the method and the verdict."""
        k, o, digest = schema.known_model.c, schema.origin.c, known.record.digest
        with self._database.reading() as connection:
            origin = connection.execute(sa.select(o.id).where(o.name == known.told.registry)).scalar_one()
            live = sa.select(k.digest, k.name).where(k.origin_id == origin, k.removed == sa.false())
            names = {d: f"{name}@{known.told.registry}" for d, name in connection.execute(live.order_by(k.name.desc()))}
            for one in _bodies(connection, origin, EVIDENCE):
                body = one.body
                ends = (body["a"], body["b"])
                if digest in ends and names.keys() >= set(ends):
                    verdict = body["content"].get("verdict")
                    said = {"verdict": verdict if isinstance(verdict, str) else "", "added_at": body["added_at"]}
                    yield {"other": names[ends[ends[0] == digest]], "method": body["spec"]["name"], **said}

    def _read(self, connection: sa.Connection, condition: Any) -> Iterator[KnownModel]:
        k, s, o, r = schema.known_model.c, schema.statement.c, schema.origin.c, schema.receipt.c
        query = (
            sa.select(k.name, s.content, o.name.label("registry"), o.identity, r.record)
            .select_from(schema.known_model)
            .join(schema.statement, s.id == k.statement_id)
            .join(schema.origin, o.id == k.origin_id)
            .join(schema.receipt, r.id == s.receipt_id)
            .where(condition)
            .order_by(o.name, k.name)
        )
        found = connection.execute(query, execution_options={"yield_per": BATCH})
        for part in found.partitions(BATCH):
            names = [f"{row.name}@{row.registry}" for row in part]
            taken = _own_names(connection, names)
            for name, row in zip(names, part, strict=True):
                while name in taken:  # names of models that are enrolled here stay as they are
                    name = f"{name}@{row.registry}"
                receipt = rows.decode(row.record, lambda raw: raw)
                told = KnownFrom(row.registry, row.identity, receipt.get("signed_by"))
                yield KnownModel(name, _unpacked(row.content), told)


def _own_names(connection: sa.Connection, names: Sequence[str]) -> set[str]:
    n, out = schema.live.c.name, set[str]()
    for start in range(0, len(names), BATCH):
        out |= set(connection.execute(sa.select(n).where(n.in_(names[start : start + BATCH]))).scalars())
    return out


def _unpacked(content: bytes) -> dict[str, Any]:
    try:
        return json.loads(zlib.decompress(content))
    except (zlib.error, ValueError) as e:
        raise RegistryError("what another registry told is damaged here. Run `stemma check` to find it") from e


def _bodies(connection: sa.Connection, origin: int, kind: str) -> Iterator[Statement]:
    """The newest statement about every key of a kind."""
    s = schema.statement.c
    newest: dict[str, tuple[str, str]] = {}
    query = sa.select(s.key, s.revision, s.digest).where(s.origin_id == origin, s.kind == kind)
    for key, revision, digest in connection.execute(query):
        newest[key] = max(newest.get(key, ("", "")), (revision, digest))
    digests = sorted(d for _, d in newest.values())
    for at in range(0, len(digests), BATCH):
        found = sa.select(s.content).where(s.origin_id == origin, s.digest.in_(digests[at : at + BATCH]))
        for content in connection.execute(found.order_by(s.key)).scalars().all():
            yield statements.parse(zlib.decompress(content).decode())


def _sharing(connection: sa.Connection, keys: set[int], limit: int) -> set[int]:
    """Statements about models with some of these tensors, of each registry those with most."""
    t, k = schema.known_tensor.c, schema.known_model.c
    hits: dict[int, tuple[int, int]] = {}
    listed = sorted(keys)
    for at in range(0, len(listed), BATCH):
        query = (
            sa.select(t.statement_id, k.origin_id, sa.func.count())
            .join(schema.known_model, k.statement_id == t.statement_id)
            .where(t.key.in_(listed[at : at + BATCH]), k.removed == sa.false())
            .group_by(t.statement_id, k.origin_id)
        )
        for i, origin, n in connection.execute(query):
            hits[i] = (origin, hits.get(i, (origin, 0))[1] + n)
    return _first_of_each(((origin, -n, i) for i, (origin, n) in hits.items()), limit)


def _by_sketch(connection: sa.Connection, bits: np.ndarray, limit: int) -> set[int]:
    """Statements about the models nearest by the better of both codes, of each registry."""
    k = schema.known_model.c
    query = sa.select(k.statement_id, k.origin_id, k.bits).where(k.removed == sa.false(), k.bits.is_not(None))
    near: list[tuple[int, int, int]] = []
    for part in connection.execute(query, execution_options={"yield_per": 4096}).partitions(4096):
        stored = np.frombuffer(b"".join(row.bits for row in part), np.uint8).reshape(len(part), 2, -1)
        apart = np.unpackbits(stored ^ bits.reshape(2, -1), axis=2).sum(axis=2).min(axis=1)
        near += [(row.origin_id, int(d), row.statement_id) for row, d in zip(part, apart, strict=True)]
    return _first_of_each(near, limit)


def _first_of_each(rows_: Any, limit: int) -> set[int]:
    """Of rows of origin, rank and number: the numbers of the first few of every origin."""
    taken: dict[int, int] = {}
    out = set()
    for origin, _, i in sorted(rows_):
        taken[origin] = taken.get(origin, 0) + 1
        if taken[origin] <= limit:
            out.add(i)
    return out
