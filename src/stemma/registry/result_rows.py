"""Rows of results: evidence on pairs, functional sketches by network and probes, scans of stores."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from stemma.registry import records, rows, schema
from stemma.registry.records import EvidenceRecord, ScannedCheckpoint, ScanRecord, SketchRecord
from stemma.types import Digest, Fingerprint, Spec, jsonable


def put_evidence(connection: sa.Connection, a: Digest, b: Digest, spec: Spec, content: Mapping[str, Any]) -> None:
    """Store the result of a method for a pair."""
    record = {"a": a, "b": b, "spec": jsonable(spec), "content": jsonable(content), "added_at": rows.timestamp()}
    row = {"a": a, "b": b, "spec_digest": spec.digest, **rows.encode(record)}
    connection.execute(schema.evidence.insert().values(**row))


def newest_evidence(connection: sa.Connection, a: Digest, b: Digest, spec: Spec) -> EvidenceRecord | None:
    """The newest result of a method for an ordered pair, or None."""
    e = schema.evidence.c
    query = sa.select(e.record).where(e.a == a, e.b == b, e.spec_digest == spec.digest)
    text = connection.execute(query.order_by(e.id.desc()).limit(1)).scalar()
    return None if text is None else rows.evidence_record(text)


def sketch_record(text: str) -> SketchRecord:
    """The sketch record in a `record` column."""

    def build(raw: dict[str, Any]) -> SketchRecord:
        spec = Spec(**raw["spec"])
        return SketchRecord(raw["model"], raw["network"], raw["probes"], spec, raw["blob"], raw["added_at"])

    return rows.decode(text, build)


def put_sketch(connection: sa.Connection, model: Digest, sketch: Fingerprint, packed: bytes, *, staged: bool) -> None:
    """Store a functional sketch unless it is known; `staged`: its bytes were written as a file."""
    assert sketch.probes is not None
    digest = records.bytes_digest(packed)
    newest = newest_sketch(connection, model, sketch.probes, sketch.spec)
    if newest and (newest.blob, newest.network) == (digest, sketch.model):
        return
    rows.put_blob(connection, digest, packed, staged=staged)
    record = SketchRecord(model, sketch.model, sketch.probes, sketch.spec, digest, rows.timestamp())
    row = {"model_digest": model, "network_digest": sketch.model, "probes_digest": sketch.probes,
           "spec_digest": sketch.spec.digest, "blob_digest": digest}  # fmt: skip
    connection.execute(schema.functional_sketch.insert().values(**row, **rows.encode(jsonable(record))))


def newest_sketch(connection: sa.Connection, model: Digest, probes: Digest, spec: Spec) -> SketchRecord | None:
    """The newest functional sketch of a model (digest of weights or network), or None."""
    s = schema.functional_sketch.c
    query = sa.select(s.record).where(
        sa.or_(s.model_digest == model, s.network_digest == model),
        s.probes_digest == probes,
        s.spec_digest == spec.digest,
    )
    text = connection.execute(query.order_by(s.id.desc()).limit(1)).scalar()
    return None if text is None else sketch_record(text)


def put_scan(connection: sa.Connection, scan: ScanRecord) -> None:
    """Store what a store of models held, unless the newest row says the same."""
    newest = newest_scan(connection, scan.place)
    if newest is not None and newest.checkpoints == scan.checkpoints:
        return
    record = {**jsonable(scan), "scanned_at": rows.timestamp()}
    connection.execute(schema.scan.insert().values(place=scan.place, **rows.encode(record)))


def newest_scan(connection: sa.Connection, place: str) -> ScanRecord | None:
    """What a store of models held when it was last scanned, or None."""
    s = schema.scan.c
    text = connection.execute(sa.select(s.record).where(s.place == place).order_by(s.id.desc()).limit(1)).scalar()
    return None if text is None else rows.decode(text, _scan_record)


def _scan_record(raw: dict[str, Any]) -> ScanRecord:
    checkpoints = (
        ScannedCheckpoint(
            tuple(c["names"]),
            c["path"],
            tuple((f[0], f[1], f[2], f[3], f[4]) for f in c["files"]),
            tuple((name, Digest(digest)) for name, digest in c["models"]),
            tuple(c["passed"]),
        )
        for c in raw["checkpoints"]
    )
    return ScanRecord(raw["place"], tuple(checkpoints), raw["scanned_at"])
