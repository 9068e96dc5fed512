"""The family tree of a registry as it was last drawn, and where its models stand on the drawing."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from stemma.errors import RegistryError
from stemma.registry import blobs, records, rows, schema
from stemma.types import Edge, Lineage, ModelRef

LINEAGE, DRAWING = "lineage", "drawing"


@dataclass(frozen=True, slots=True)
class StoredTree:
    """What was stored of a family tree.

    Attributes:
        id: Number of its row; the newest has the largest.
        added_at: When it was stored, UTC, ISO 8601.
        stemma_version: Version that stored it.
        facts: What it was made with, as plain JSON values.
        content: The lineage, or the drawing, as plain JSON values.
    """

    id: int
    added_at: str
    stemma_version: str
    facts: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def lineage(self) -> Lineage:
        """The content as a lineage."""
        return lineage_from(self.content)


def pack(content: Mapping[str, Any]) -> bytes:
    """Plain JSON values as bytes; equal values give equal bytes."""
    return zlib.compress(records.canonical_json(content).encode(), 6)


def put(connection: sa.Connection, kind: str, packed: bytes, facts: Mapping[str, Any], *, staged: bool) -> None:
    """Store a tree unless the newest of its kind is the same; `staged`: its bytes were written as a file."""
    from stemma import __version__

    digest = records.bytes_digest(packed)
    newest = _newest(connection, kind)
    if newest is not None and newest.blob_digest == digest and json.loads(newest.record)["facts"] == dict(facts):
        return
    rows.put_blob(connection, digest, packed, staged=staged)
    record = {"kind": kind, "blob": digest, "facts": dict(facts), "added_at": rows.timestamp(),
              "stemma_version": __version__}  # fmt: skip
    row = {"kind": kind, "blob_digest": digest, **rows.encode(record)}
    connection.execute(schema.family_tree.insert().values(**row))


def newest_id(connection: sa.Connection, kind: str) -> int:
    """Number of the newest row of a kind; 0 without one."""
    found = _newest(connection, kind)
    return 0 if found is None else found.id


def read(connection: sa.Connection, large: blobs.AbstractBlobs, kind: str) -> StoredTree | None:
    """The newest tree of a kind, or None."""
    row = _newest(connection, kind)
    if row is None:
        return None
    record: Mapping[str, Any] = rows.decode(row.record, lambda raw: raw)
    try:
        content = json.loads(zlib.decompress(rows.read_blob(connection, large, row.blob_digest)))
    except (zlib.error, ValueError) as e:
        raise RegistryError(f"the stored family tree is damaged ({e}). Draw it again with: stemma lineage") from e
    return StoredTree(row.id, record["added_at"], record["stemma_version"], record["facts"], content)


def _newest(connection: sa.Connection, kind: str) -> sa.Row | None:
    t = schema.family_tree.c
    query = sa.select(t.id, t.blob_digest, t.record).where(t.kind == kind)
    return connection.execute(query.order_by(t.id.desc()).limit(1)).first()


def lineage_from(content: Mapping[str, Any]) -> Lineage:
    """The lineage in the JSON values that its `to_dict` gives; fields of later versions are left out."""
    known = {field.name for field in fields(Lineage)}
    values = {name: tuple(value) for name, value in content.items() if name in known}
    edge = {field.name for field in fields(Edge)}
    values["models"] = tuple(ModelRef(m["name"], m["digest"]) for m in content["models"])
    values["edges"] = tuple(Edge(**{k: v for k, v in e.items() if k in edge}) for e in content["edges"])
    values["families"] = tuple(tuple(family) for family in content["families"])
    return Lineage(**values)
