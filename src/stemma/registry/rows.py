"""Read and write rows, inside a transaction that the caller opened."""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

import stemma
from stemma.checkpoints import digest as digests
from stemma.checkpoints.digest import is_partial
from stemma.checkpoints.remote_models import CLAIMED_FILES
from stemma.errors import RegistryError
from stemma.registry import blobs, records, schema
from stemma.registry.records import AddStatus, EvidenceRecord, FingerprintRecord, ModelRecord, TensorRecord
from stemma.registry.search import SKETCH_BYTES
from stemma.types import Digest, Fingerprint, Spec, jsonable

T = TypeVar("T")

QUERY_BATCH = 500
"""Largest number of values in one query."""

BITS = "bits"
"""The array of a fingerprint's values that is added to the search index."""

UNIT_KEYS = "unit_keys"
"""The array of a fingerprint's values that is added to the index of hidden units."""


def timestamp() -> str:
    """The current time, UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def tensor_key(digest: Digest) -> int:
    """The first eight bytes of a tensor digest as a signed number: its lookup key."""
    number = int(digest.rpartition(":")[2][:16], 16)
    return number - (number >> 63 << 64)


def encode(content: Mapping[str, Any]) -> dict[str, str]:
    """The columns `record` and `record_digest` of a record."""
    text = records.canonical_json(content)
    return {"record": text, "record_digest": records.bytes_digest(text.encode())}


def decode(text: str, build: Callable[[Any], T]) -> T:
    """The record in a `record` column; `build` makes it from JSON values."""
    try:
        return build(json.loads(text))
    except (KeyError, TypeError, ValueError) as e:
        raise RegistryError(f"a stored record is damaged ({text[:60]}…). Run `stemma check` to find it") from e


# Models


def select_live() -> sa.Select:
    """A query for the records of all live models, on `live_model`, `model` and `content`."""
    return (
        sa.select(schema.model.c.record)
        .select_from(schema.live)
        .join(schema.model, schema.model.c.id == schema.live.c.model_id)
        .join(schema.content, schema.content.c.id == schema.live.c.content_id)
    )


def is_live(content_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Whether a live model has these contents, asked row by row: a list of all would be made anew each time."""
    return sa.exists().where(schema.live.c.content_id == content_id)


def model_record(text: str) -> ModelRecord:
    """The model record in a `record` column."""
    return decode(text, lambda raw: ModelRecord(**raw))


def live_model(connection: sa.Connection, name: str) -> ModelRecord | None:
    """The record of the live model with this name, or None."""
    if "\0" in name:  # which PostgreSQL refuses to compare with
        return None
    text = connection.execute(select_live().where(schema.live.c.name == name)).scalar()
    return model_record(text) if text is not None else None


def sampled_models(connection: sa.Connection) -> frozenset[Digest]:
    """Digests of the live models of which only a sample was read."""
    m = schema.model.c
    found = sa.select(m.digest).join(schema.live, schema.live.c.model_id == m.id)
    return frozenset(map(Digest, connection.execute(found.where(m.digest.startswith(digests.PARTIAL))).scalars()))


def unknown_name_message(connection: sa.Connection, text: str) -> str:
    """The message for an unknown name, with similar names."""
    query = sa.select(schema.live.c.name).order_by(schema.live.c.name).limit(20_000)
    names = [str(name) for name in connection.execute(query).scalars()]
    last = {name.rpartition("/")[2]: name for name in reversed(names)}
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    close += [last[c] for c in difflib.get_close_matches(text, list(last), n=3, cutoff=0.6) if last[c] not in close]
    close = close[:3]
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else "Run `stemma list` to see all names"
    return f"there is no model '{text}' in the registry. {hint}"


def add_status(known: ModelRecord | None, record: ModelRecord, replace: bool) -> AddStatus:
    """Added, known or replaced; raises if the name has other weights, or these under another licence."""
    if known is None:
        return AddStatus.ADDED
    relicensed = record.license is not None and record.license != known.license
    if replace and (relicensed or (known.digest, known.source) != (record.digest, record.source)):
        return AddStatus.REPLACED
    files = [r.claims.get(CLAIMED_FILES) for r in (known, record)]
    if known.digest == record.digest and is_partial(record.digest) and None not in files and files[0] != files[1]:
        raise RegistryError(
            f"'{record.name}' is registered from other files: what was read of them is the same, but the hub lists "
            "another SHA-256 than then. Use another name, or --replace"
        )
    if known.digest == record.digest and not relicensed:
        return AddStatus.KNOWN
    if known.digest == record.digest and known.license is None:
        return AddStatus.REPLACED
    if known.digest == record.digest:
        raise RegistryError(
            f"'{record.name}' is registered under the licence {known.license}, not {record.license}. "
            "Use --replace to change it"
        )
    raise RegistryError(
        f"'{record.name}' is registered with different weights ({known.digest[:19]}…, now {record.digest[:19]}…). "
        "Use another name, or --replace"
    )


def with_timestamp(record: ModelRecord, weights: Digest | None) -> ModelRecord:
    """The record with time, version and digest of the stored copy."""
    return dataclasses.replace(record, weights=weights, added_at=timestamp(), stemma_version=stemma.__version__)


def model_row(record: ModelRecord) -> dict[str, Any]:
    """The row of a model."""
    return {"name": record.name, "digest": record.digest, "removed": False, **encode(dataclasses.asdict(record))}


def append_model(connection: sa.Connection, record: ModelRecord, content_id: int) -> None:
    """Make a record the live one of its name."""
    added = connection.execute(schema.model.insert().values(**model_row(record))).inserted_primary_key
    assert added is not None
    connection.execute(schema.live.delete().where(schema.live.c.name == record.name))
    connection.execute(schema.live.insert().values(name=record.name, model_id=added[0], content_id=content_id))


def append_tombstone(connection: sa.Connection, record: ModelRecord) -> None:
    """Remove a name: append a tombstone row."""
    stone = {
        "name": record.name,
        "digest": record.digest,
        "removed_at": timestamp(),
        "stemma_version": stemma.__version__,
    }
    row = {"name": record.name, "digest": record.digest, "removed": True, **encode(stone)}
    connection.execute(schema.model.insert().values(**row))
    connection.execute(schema.live.delete().where(schema.live.c.name == record.name))


def put_content(
    connection: sa.Connection, record: ModelRecord, listed: Sequence[TensorRecord], listing: bytes, *, staged: bool
) -> int:
    """Store a model's list of tensors and index each tensor; returns the content id."""
    c = schema.content.c
    known = connection.execute(sa.select(c.id).where(c.digest == record.digest)).scalar()
    if known is not None:
        return known
    manifest = records.bytes_digest(listing)
    put_blob(connection, manifest, listing, staged=staged)
    values = {"digest": record.digest, "names_free_digest": record.names_free_digest, "manifest": manifest}
    inserted = connection.execute(schema.content.insert().values(**values)).inserted_primary_key
    assert inserted is not None
    insert_keys(connection, schema.tensor_key, {inserted[0]: tensor_keys(listed)})
    return inserted[0]


def tensor_keys(listed: Sequence[TensorRecord]) -> list[int]:
    """The lookup keys of tensors, sorted, each once."""
    return sorted({tensor_key(t.digest) for t in listed})


def insert_keys(connection: sa.Connection, table: sa.Table, keys_of: Mapping[int, Sequence[int]]) -> None:
    """Index tensors or units by content; the driver is asked directly, for a checkpoint may have 100,000 of them."""
    if not any(keys_of.values()):
        return
    compiled = table.insert().compile(dialect=connection.dialect)
    names = compiled.positiontup if compiled.positional else None
    pairs: list[Any]
    if names and names[0] == "key":
        pairs = [(k, content_id) for content_id, keys in keys_of.items() for k in keys]
    elif names:
        pairs = [(content_id, k) for content_id, keys in keys_of.items() for k in keys]
    else:
        pairs = [{"key": k, "content_id": content_id} for content_id, keys in keys_of.items() for k in keys]
    connection.exec_driver_sql(str(compiled), pairs)


# Blobs


def blob_row(connection: sa.Connection, digest: Digest) -> sa.Row | None:
    """Size and content of a blob (content None if it is a file), or None."""
    b = schema.blob.c
    return connection.execute(sa.select(b.size, b.content).where(b.digest == digest)).first()


def put_blob(connection: sa.Connection, digest: Digest, content: bytes, *, staged: bool) -> None:
    """Record a blob, in the database unless it was written as a file (`staged`)."""
    put_blob_row(connection, digest, len(content), None if staged else content)


def put_blob_row(connection: sa.Connection, digest: Digest, size: int, content: bytes | None) -> None:
    """Record a blob unless it is known."""
    if blob_row(connection, digest) is None:
        connection.execute(schema.blob.insert().values(digest=digest, size=size, content=content))


def read_blob(connection: sa.Connection, large: blobs.AbstractBlobs, digest: Digest) -> bytes:
    """The bytes of a blob, not verified (`check` does that)."""
    row = blob_row(connection, digest)
    if row is not None and row.content is not None:
        return row.content
    pieces = None if row is None else large.pieces(connection, digest)
    if pieces is None:
        raise RegistryError(f"the blob {digest} is missing from the registry. Run `stemma check` to list all problems")
    return b"".join(pieces)


def tensors(connection: sa.Connection, large: blobs.AbstractBlobs, model: Digest) -> tuple[TensorRecord, ...] | None:
    """The tensors of a model, sorted by name; None if it was never added."""
    c = schema.content.c
    manifest = connection.execute(sa.select(c.manifest).where(c.digest == model)).scalar()
    return None if manifest is None else records.parse_manifest(read_blob(connection, large, manifest))


def models_sharing_tensors(
    connection: sa.Connection, large: blobs.AbstractBlobs, wanted: frozenset[Digest], limit: int | None
) -> dict[Digest, frozenset[Digest]]:
    """Shared tensors by digest of the live models that have some of them; most shared first, at most `limit`."""
    keys, hits, t = sorted({tensor_key(d) for d in wanted}), Counter[int](), schema.tensor_key.c
    for at in range(0, len(keys), QUERY_BATCH):
        found = sa.select(t.content_id).where(t.key.in_(keys[at : at + QUERY_BATCH]), is_live(t.content_id))
        hits.update(connection.execute(found).scalars())
    shared = {}
    for content_id in sorted(hits, key=lambda c: (-hits[c], c))[:limit]:
        model = connection.execute(sa.select(schema.content.c.digest).where(schema.content.c.id == content_id))
        digest = Digest(model.scalar_one())
        shared[digest] = wanted.intersection(x.digest for x in tensors(connection, large, digest) or ())
    return dict(sorted(((d, s) for d, s in shared.items() if s), key=lambda item: (-len(item[1]), item[0])))


# Fingerprints


def fingerprint_record(text: str) -> FingerprintRecord:
    """The fingerprint record in a `record` column."""
    return decode(
        text,
        lambda raw: FingerprintRecord(raw["model"], raw["probes"], Spec(**raw["spec"]), raw["blob"], raw["added_at"]),
    )


def newest_fingerprint(connection: sa.Connection, model: Digest, spec_digest: Digest) -> FingerprintRecord | None:
    """The newest fingerprint of a model by one method, or None."""
    f = schema.fingerprint.c
    query = sa.select(f.record).where(f.model_digest == model, f.spec_digest == spec_digest)
    text = connection.execute(query.order_by(f.id.desc()).limit(1)).scalar()
    return fingerprint_record(text) if text is not None else None


def put_fingerprint(
    connection: sa.Connection, content_id: int, value: Fingerprint, packed: bytes, *, staged: bool
) -> None:
    """Store a fingerprint unless the newest one has equal values; `staged`: its bytes were written as a file."""
    digest = records.bytes_digest(packed)
    spec_digest = value.spec.digest
    newest = newest_fingerprint(connection, value.model, spec_digest)
    if newest and newest.blob == digest:
        return
    put_blob(connection, digest, packed, staged=staged)
    connection.execute(schema.fingerprint.insert().values(**fingerprint_row(value, spec_digest, digest)))
    if BITS in value.values:
        put_bits(connection, content_id, value.spec, value.values[BITS])
    if UNIT_KEYS in value.values:
        connection.execute(schema.unit_key.delete().where(schema.unit_key.c.content_id == content_id))
        insert_keys(connection, schema.unit_key, {content_id: unit_keys(value)})


def fingerprint_row(value: Fingerprint, spec_digest: Digest, blob: Digest) -> dict[str, Any]:
    """The row of a fingerprint whose values are a blob."""
    record = FingerprintRecord(value.model, value.probes, value.spec, blob, timestamp())
    row = {"model_digest": value.model, "spec_digest": spec_digest, "blob_digest": blob}
    return {**row, **encode(jsonable(record))}


def unit_keys(value: Fingerprint) -> list[int]:
    """The keys of hidden units in a fingerprint, sorted, each once."""
    return sorted(set(value.values[UNIT_KEYS].tolist())) if UNIT_KEYS in value.values else []


def models_sharing_units(connection: sa.Connection, keys: Sequence[int], limit: int) -> list[Digest]:
    """The live models with at least two of the keys of hidden units; most of them first."""
    u, shared = schema.unit_key.c, sa.func.count()
    found = (
        sa.select(u.content_id, shared.label("shared"))
        .where(u.key.in_(keys[:QUERY_BATCH]), is_live(u.content_id))
        .group_by(u.content_id)
        .having(shared > 1)
        .order_by(shared.desc(), u.content_id)
        .limit(limit)
        .subquery()
    )
    joined = sa.select(schema.content.c.digest).join(found, found.c.content_id == schema.content.c.id)
    return [Digest(d) for d in connection.execute(joined.order_by(found.c.shared.desc())).scalars()]


def put_bits(connection: sa.Connection, content_id: int, spec: Spec, bits: np.ndarray) -> None:
    """Add a sketch to the search index."""
    row = {"spec_id": spec_id(connection, spec), "content_id": content_id, "bits": checked_bits(spec, bits)}
    b = schema.sketch_bits.c
    connection.execute(schema.sketch_bits.delete().where(b.spec_id == row["spec_id"], b.content_id == content_id))
    connection.execute(schema.sketch_bits.insert().values(**row))


def checked_bits(spec: Spec, bits: np.ndarray) -> bytes:
    """A sketch as the search index holds it."""
    if bits.dtype != np.uint8 or bits.shape != (SKETCH_BYTES,):
        raise RegistryError(
            f"a sketch must be uint8 [{SKETCH_BYTES}], but '{spec.name}' returned {bits.dtype} {list(bits.shape)}"
        )
    return bits.tobytes()


def spec_id(connection: sa.Connection, spec: Spec) -> int:
    """The number of a method in the search index; one that is new to the registry is recorded."""
    s, digest = schema.spec.c, spec.digest
    known = connection.execute(sa.select(s.id).where(s.digest == digest)).scalar()
    if known is not None:
        return known
    row = {"digest": digest, "content": records.canonical_json(jsonable(spec))}
    inserted = connection.execute(schema.spec.insert().values(**row)).inserted_primary_key
    assert inserted is not None
    return inserted[0]


def live_sketches(connection: sa.Connection, spec: Spec) -> Sequence[sa.Row]:
    """Model digest and bits of the search index of one method, for live models."""
    b = schema.sketch_bits.c
    return connection.execute(
        sa.select(schema.content.c.digest, b.bits)
        .select_from(schema.sketch_bits)
        .join(schema.content, schema.content.c.id == b.content_id)
        .join(schema.spec, schema.spec.c.id == b.spec_id)
        .where(schema.spec.c.digest == spec.digest, b.content_id.in_(sa.select(schema.live.c.content_id)))
    ).all()


# Evidence


def evidence_record(text: str) -> EvidenceRecord:
    """The evidence record in a `record` column."""
    return decode(
        text, lambda raw: EvidenceRecord(raw["a"], raw["b"], Spec(**raw["spec"]), raw["content"], raw["added_at"])
    )
