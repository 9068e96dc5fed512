"""What this registry tells others: its models, their sketches, evidence and family tree, without weights or paths."""

import base64
import dataclasses
import json
import os
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stemma.checkpoints import cards
from stemma.checkpoints.privacy import Scrubber, public_source
from stemma.errors import ExchangeError, RegistryError, UnknownNameError
from stemma.registry import blobs, family_trees, records, rows, schema
from stemma.registry.exchange import statements
from stemma.registry.exchange.statements import EDGE, EVIDENCE, LINEAGE, MAX_MODEL, MODEL, TREE, Statement, statement
from stemma.registry.records import ModelRecord, TensorRecord
from stemma.types import Digest, jsonable

MAX_CLAIMS = 4 << 10
"""Bytes of configuration, and of claims, that go into an export, compressed."""

MAX_LIST = 28 << 10
"""Bytes of a list of tensors, compressed."""

LISTED = 768
"""Tensors that are listed of a model with too many: the largest."""

BATCH = 200


@dataclass
class OwnStatements:
    """The statements of a registry about what it found itself.

    Attributes:
        connection: In a transaction.
        folder: Blobs of the registry.
        names: Which models; all if empty.
        left_out: How much was left out, by what; complete when every statement was read.
    """

    connection: sa.Connection
    folder: blobs.AbstractBlobs
    names: frozenset[str] = frozenset()
    left_out: Counter[str] = field(default_factory=Counter)
    _spent: dict[str, int] = field(default_factory=dict)
    _names_of: dict[str, list[str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Statement]:
        """Every statement, in an order that depends on nothing but the registry."""
        self._scrub = self._scrubber()
        yield from self._models()
        yield from self._evidence()
        yield from self._tree()

    def _made(self, kind: str, make: Callable[[], Statement]) -> Statement | None:
        """A statement; None where a reader would refuse it, which is counted."""
        try:
            return make()
        except ExchangeError:
            self.left_out[f"{kind} of an unusual form"] += 1
            return None

    def _scrubber(self) -> Scrubber:
        found = self.connection.execute(rows.select_live()).scalars()
        return Scrubber.of((json.loads(text)["source"] for text in found), str(Path.home()))

    # Models

    def _models(self) -> Iterator[Statement]:
        m = schema.model.c
        newest = sa.select(sa.func.max(m.id)).group_by(m.name)
        listed = self.connection.execute(sa.select(m.id, m.name).where(m.id.in_(newest)).order_by(m.name)).all()
        listed = sorted((r.name, r.id) for r in listed if not self.names or r.name in self.names)
        for at in range(0, len(listed), BATCH):
            ids = [i for _, i in listed[at : at + BATCH]]
            found = {r.id: r for r in self.connection.execute(sa.select(schema.model).where(m.id.in_(ids)))}
            for i in ids:
                made = self._made(MODEL, partial(self._tombstone if found[i].removed else self._model, found[i]))
                if made is not None:
                    yield made

    def _tombstone(self, row: sa.Row) -> Statement:
        name = self._name(row.name, row.digest)
        return statement(MODEL, name, (row.id, 0, 0), removed=True, digest=row.digest)

    def _name(self, name: str, digest: str) -> str:
        """The name, which is a path of the exporter's where two checkpoints could not be told apart otherwise."""
        if not Path(name).is_absolute() and ":\\" not in name:
            return name
        return f"{public_source(name)}~{digest.rpartition(':')[2][:8]}"

    def _model(self, row: sa.Row) -> Statement:
        record = rows.model_record(row.record)
        name = self._name(record.name, record.digest)
        self._names_of.setdefault(record.digest, []).append(name)
        kept, newest = self._sketches(schema.fingerprint, record.digest)
        functional, newest_functional = self._sketches(schema.functional_sketch, record.digest)
        tensors = rows.tensors(self.connection, self.folder, record.digest) or ()
        body: dict[str, Any] = {
            "removed": False,
            "record": self._record(record, name),
            "sketches": kept,
            "functional": [],
            **self._tensors(tensors),
        }
        revision = (row.id, newest, newest_functional)
        made = statement(MODEL, name, revision, **body)
        size = _size(made.text, MAX_MODEL)
        if size > MAX_MODEL:
            self.left_out["weight sketches that are too large"] += len(kept)
            body["sketches"] = []
            made = statement(MODEL, name, revision, **body)
            size = _size(made.text, MAX_MODEL)
        for one in functional:
            if len(one["values"]) > 2 * MAX_MODEL:
                self.left_out["functional sketches that are too large"] += 1
                continue
            more = {**body, "functional": [*body["functional"], one]}
            larger = statement(MODEL, name, revision, **more)
            if (new := _size(larger.text, MAX_MODEL)) > MAX_MODEL:
                self.left_out["functional sketches that are too large"] += 1
                continue
            body, made, size = more, larger, new
        if size == len(made.text):  # most of it is base64, which shrinks to three quarters
            size = size * 4 // 5
        self._spent[record.digest] = max(size, self._spent.get(record.digest, 0))
        return made

    def _record(self, record: ModelRecord, name: str) -> dict[str, Any]:
        fields = dataclasses.asdict(record)
        del fields["weights"]
        claims, config = self._scrub.value(dict(record.claims)), self._scrub.value(record.config)
        if _size(records.canonical_json(claims), MAX_CLAIMS) > MAX_CLAIMS:
            self.left_out["claims that are too long"] += 1
            claims = {k: v for k, v in cards.provenance_claims(claims).items() if isinstance(v, str) and len(v) < 1000}
        if config is not None and _size(records.canonical_json(config), MAX_CLAIMS) > MAX_CLAIMS:
            self.left_out["configurations that are too long"] += 1
            config = None
        return {**fields, "name": name, "source": public_source(record.source), "claims": claims, "config": config}

    def _tensors(self, listed: Sequence[TensorRecord]) -> dict[str, Any]:
        """All tensors where they fit, else the largest, in the order of their names."""
        short = [t for t in listed if len(t.name) <= 4 * statements.MAX_NAME]
        columns = statements.tensor_columns(short)
        if len(short) == len(listed) and _size(records.canonical_json(columns), MAX_LIST) <= MAX_LIST:
            return {"tensors": columns, "complete": True}
        self.left_out["lists of tensors that were cut"] += 1
        largest = sorted(short, key=lambda t: (-_elements(t), t.name))[:LISTED]
        columns = statements.tensor_columns(sorted(largest, key=lambda t: t.name))
        while _size(records.canonical_json(columns), MAX_LIST) > MAX_LIST and largest:
            largest = largest[: len(largest) // 2]
            columns = statements.tensor_columns(sorted(largest, key=lambda t: t.name))
        return {"tensors": columns, "complete": False}

    def _sketches(self, table: sa.Table, model: Digest) -> tuple[list[dict[str, Any]], int]:
        """The newest sketches of a model by each method and probes, and the number of the newest row."""
        newest: dict[tuple[str, ...], sa.Row] = {}
        query = sa.select(table).where(table.c.model_digest == model).order_by(table.c.id)
        last = 0
        for row in self.connection.execute(query):
            newest[row.spec_digest, getattr(row, "probes_digest", "")] = row
            last = row.id
        out = []
        for key in sorted(newest):
            record = json.loads(newest[key].record)
            try:
                content = rows.read_blob(self.connection, self.folder, record["blob"])
            except RegistryError:
                self.left_out["sketches whose values are missing"] += 1
                continue
            packed = base64.b64encode(content).decode()
            out.append({"network": record.get("network"), "probes": record["probes"], "spec": record["spec"],
                        "added_at": record["added_at"], "values": packed})  # fmt: skip
        return out, last

    # Evidence and family tree

    def _evidence(self) -> Iterator[Statement]:
        """The newest result of each method for each pair of models that are told of."""
        e = schema.evidence.c
        newest: dict[tuple[str, str, str], int] = {}
        for i, a, b, spec in self.connection.execute(sa.select(e.id, e.a, e.b, e.spec_digest).order_by(e.id)):
            if a in self._names_of and b in self._names_of:
                newest[a, b, spec] = i
        ids = [newest[pair] for pair in sorted(newest)]
        for at in range(0, len(ids), BATCH):
            query = sa.select(e.id, e.record).where(e.id.in_(ids[at : at + BATCH]))
            texts = {row.id: row.record for row in self.connection.execute(query)}
            for i in ids[at : at + BATCH]:
                raw = rows.evidence_record(texts[i])
                spec, content = jsonable(raw.spec), self._scrub.value(jsonable(raw.content))
                about = {"a": raw.a, "b": raw.b, "spec": spec, "content": content, "added_at": raw.added_at}
                key = statements.pair_key(raw.a, raw.b, spec)
                made = self._made(EVIDENCE, partial(statement, EVIDENCE, key, (i,), **about))
                if made is not None and self._afford(
                    raw.b, _size(made.text), related=content.get("verdict") == "related"
                ):
                    yield made

    def _afford(self, digest: str, size: int, *, related: bool) -> bool:
        """Whether the second model of a pair has room for this evidence; a third of it is for relations alone."""
        spent = self._spent.get(digest, 0) + size
        if spent > (MAX_MODEL if related else MAX_MODEL * 2 // 3):
            self.left_out["evidence that is too much"] += 1
            return False
        self._spent[digest] = spent
        return True

    def _tree(self) -> Iterator[Statement]:
        tree = family_trees.read(self.connection, self.folder, family_trees.LINEAGE)
        if tree is None:
            return
        found = tree.lineage
        known = {m.name: m.digest for m in found.models}
        edges = []
        for edge in found.edges:
            ends = [(name, known.get(name, "")) for name in (edge.parent, edge.child)]
            told = [self._name(name, digest) for name, digest in ends]
            if any(t not in self._names_of.get(d, ()) for t, (_, d) in zip(told, ends, strict=True)):
                self.left_out["edges to models that are not told of"] += 1
                continue
            parent, child = ({"name": t, "digest": d} for t, (_, d) in zip(told, ends, strict=True))
            about = {"parent": parent, "child": child, "relation": str(edge.relation), "confidence": edge.confidence,
                     "p_value": edge.p_value}  # fmt: skip
            made = self._made(EDGE, partial(statement, EDGE, statements.edge_key(parent, child), (tree.id,), **about))
            edges += [] if made is None else [made]
        yield statement(TREE, LINEAGE, (tree.id,), facts=dict(tree.facts), edges=len(edges), added_at=tree.added_at,
                        stemma_version=tree.stemma_version)  # fmt: skip
        yield from sorted(edges, key=lambda made: made.key)


def _elements(t: TensorRecord) -> int:
    out = 1
    for n in t.shape:
        out *= n
    return out


def _size(text: str, limit: int = 0) -> int:
    """Bytes that a text takes, compressed; no more than its own, which is enough where that is below the limit."""
    return len(text) if len(text) <= limit and text.isascii() else len(zlib.compress(text.encode(), 6))


def check_names(connection: sa.Connection, names: Sequence[str]) -> None:
    """Raise if the registry never had a model of one of these names."""
    for name in names:
        m = schema.model.c
        if connection.execute(sa.select(m.id).where(m.name == name).limit(1)).scalar() is None:
            raise UnknownNameError(rows.unknown_name_message(connection, name))


def own_identity(connection: sa.Connection, name: str | None) -> tuple[str, str]:
    """Identity and name of this registry; made where it has none, and renamed where a name is given."""
    c = schema.identity.c
    found = connection.execute(sa.select(c.identity, c.name)).first()
    if found is None:
        identity = secrets.token_hex(16)
        chosen = name or f"registry-{identity[:8]}"
        connection.execute(schema.identity.insert().values(identity=identity, name=chosen))
        return identity, chosen
    if name is not None and name != found.name:
        connection.execute(schema.identity.update().where(c.identity == found.identity).values(name=name))
    return found.identity, name or found.name


def created(connection: sa.Connection) -> str:
    """The time of an export: of SOURCE_DATE_EPOCH, else of the newest change, so that equal registries agree."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isascii() and epoch.isdigit():
        try:
            return datetime.fromtimestamp(int(epoch), UTC).isoformat(timespec="seconds")
        except (ValueError, OverflowError, OSError):
            pass
    text = connection.execute(sa.select(schema.model.c.record).order_by(schema.model.c.id.desc()).limit(1)).scalar()
    last: Mapping[str, Any] = {} if text is None else json.loads(text)
    return str(last.get("added_at") or last.get("removed_at") or "")
