"""What was worked out, in and out of rows: evidence on pairs, and functional sketches by network and probes."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from stemma.registry import records, rows, schema
from stemma.registry.records import EvidenceRecord, SketchRecord
from stemma.types import Digest, Fingerprint, Spec, jsonable


def put_evidence(connection: sa.Connection, a: Digest, b: Digest, spec: Spec, content: Mapping[str, Any]) -> None:
    """Keep what a method said about a pair."""
    record = {"a": a, "b": b, "spec": jsonable(spec), "content": jsonable(content), "added_at": rows.now()}
    row = {"a": a, "b": b, "spec_digest": spec.digest, **rows.encode(record)}
    connection.execute(schema.evidence.insert().values(**row))


def newest_evidence(connection: sa.Connection, a: Digest, b: Digest, spec: Spec) -> EvidenceRecord | None:
    """What a method said about an ordered pair.

    Returns:
        The newest answer, None where there is none.
    """
    e = schema.evidence.c
    query = sa.select(e.record).where(e.a == a, e.b == b, e.spec_digest == spec.digest)
    text = connection.execute(query.order_by(e.id.desc()).limit(1)).scalar()
    return None if text is None else rows.evidence_record(text)


def sketch_record(text: str) -> SketchRecord:
    """Read a stored record.

    Returns:
        The record.
    """

    def build(raw: dict[str, Any]) -> SketchRecord:
        spec = Spec(**raw["spec"])
        return SketchRecord(raw["model"], raw["network"], raw["probes"], spec, raw["blob"], raw["added_at"])

    return rows.decode(text, build)


def put_sketch(connection: sa.Connection, model: Digest, sketch: Fingerprint, packed: bytes, *, staged: bool) -> None:
    """Keep a functional sketch; one that is known is not kept again.

    Args:
        connection: In a write transaction.
        model: Digest of the weights.
        sketch: Under the network's digest, with the probes' digest.
        packed: Its values as bytes.
        staged: The bytes were written as a file.
    """
    assert sketch.probes is not None
    digest = records.of_bytes(packed)
    newest = newest_sketch(connection, model, sketch.probes, sketch.spec)
    if newest and (newest.blob, newest.network) == (digest, sketch.model):
        return
    rows.put_blob(connection, digest, packed, staged=staged)
    record = SketchRecord(model, sketch.model, sketch.probes, sketch.spec, digest, rows.now())
    row = {"model_digest": model, "network_digest": sketch.model, "probes_digest": sketch.probes,
           "spec_digest": sketch.spec.digest, "blob_digest": digest}  # fmt: skip
    connection.execute(schema.functional_sketch.insert().values(**row, **rows.encode(jsonable(record))))


def newest_sketch(connection: sa.Connection, model: Digest, probes: Digest, spec: Spec) -> SketchRecord | None:
    """What is kept of a model's function.

    Args:
        connection: To read from.
        model: Digest of the weights or of the network.
        probes: Digest of the probes.
        spec: The method.

    Returns:
        The last record, None where there is none.
    """
    s = schema.functional_sketch.c
    query = sa.select(s.record).where(
        sa.or_(s.model_digest == model, s.network_digest == model),
        s.probes_digest == probes,
        s.spec_digest == spec.digest,
    )
    text = connection.execute(query.order_by(s.id.desc()).limit(1)).scalar()
    return None if text is None else sketch_record(text)
