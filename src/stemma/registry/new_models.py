"""Writes models that a registry knows nothing of yet, many with one statement per table instead of twenty per model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stemma.errors import RegistryError
from stemma.registry import records, rows, schema
from stemma.registry.additions import Addition
from stemma.registry.records import AddOutcome, AddStatus
from stemma.types import Digest, Spec


def write_each(
    connection: sa.Connection, additions: Sequence[Addition], *, replace: bool
) -> list[AddOutcome | RegistryError]:
    """Write several models in one transaction; one that is refused leaves nothing behind and stops no other."""
    out: dict[int, AddOutcome | RegistryError] = {}
    new = _new(connection, additions)
    prepared: dict[int, _Prepared] = {}
    for i in new:
        try:
            prepared[i] = _Prepared.of(additions[i])
        except RegistryError as e:
            out[i] = e
    if prepared:
        _insert(connection, [*prepared.values()])
    out |= {i: AddOutcome(p.record, AddStatus.ADDED) for i, p in prepared.items()}
    for i, one in enumerate(additions):
        if i in out:
            continue
        try:
            with connection.begin_nested():
                out[i] = one.write(connection, replace=replace)
        except RegistryError as e:
            out[i] = e
    return [out[i] for i in range(len(additions))]


def _new(connection: sa.Connection, additions: Sequence[Addition]) -> list[int]:
    """Positions of models of whose name and weights neither the registry nor an earlier one of them tells."""
    names = [a.record.name for a in additions]
    digests = [a.record.digest for a in additions]
    known_names = _among(connection, schema.live.c.name, names)
    known_digests = _among(connection, schema.content.c.digest, digests)
    known_digests |= _among(connection, schema.fingerprint.c.model_digest, digests)
    found = []
    for i, (name, digest) in enumerate(zip(names, digests, strict=True)):
        if name not in known_names and digest not in known_digests and _is_plain(additions[i]):
            found.append(i)
        known_names.add(name)
        known_digests.add(digest)
    return found


def _is_plain(addition: Addition) -> bool:
    """Whether nothing of it is a file, and no method occurs twice."""
    methods = [f.spec.name for f in addition.fingerprints]
    return not addition.large and len(set(methods)) == len(methods)


def _among(connection: sa.Connection, column: sa.Column, values: Sequence[str]) -> set[str]:
    """Those of some values that a column has."""
    out: set[str] = set()
    for at in range(0, len(values), rows.QUERY_BATCH):
        wanted = sa.select(column).where(column.in_(values[at : at + rows.QUERY_BATCH]))
        out.update(connection.execute(wanted.distinct()).scalars())
    return out


@dataclass(frozen=True)
class _Prepared:
    """What is written of a new model: everything that may be refused was computed before anything is written."""

    addition: Addition
    record: records.ModelRecord
    model: dict[str, Any]
    manifest: Digest
    fingerprints: tuple[dict[str, Any], ...]
    bits: tuple[tuple[Spec, bytes], ...]

    @classmethod
    def of(cls, addition: Addition) -> "_Prepared":
        record = rows.with_timestamp(addition.record, None)
        fingerprints, bits = [], []
        for f, packed in zip(addition.fingerprints, addition.packed, strict=True):
            fingerprints.append(rows.fingerprint_row(f, f.spec.digest, records.bytes_digest(packed)))
            if rows.BITS in f.values:
                bits.append((f.spec, rows.checked_bits(f.spec, f.values[rows.BITS])))
        manifest = records.bytes_digest(addition.listing)
        return cls(addition, record, rows.model_row(record), manifest, tuple(fingerprints), tuple(bits))

    @property
    def blobs(self) -> list[tuple[Digest, bytes]]:
        """The bytes that its rows refer to, by digest."""
        packed = zip((f["blob_digest"] for f in self.fingerprints), self.addition.packed, strict=True)
        return [(self.manifest, self.addition.listing), *packed]


def _insert(connection: sa.Connection, new: Sequence[_Prepared]) -> None:
    content, model = schema.content.c, schema.model.c
    blobs = {digest: packed for p in new for digest, packed in p.blobs}
    missing = blobs.keys() - _among(connection, schema.blob.c.digest, [*blobs])
    blob_rows = [{"digest": d, "size": len(b), "content": b} for d, b in blobs.items() if d in missing]
    _insert_rows(connection, schema.blob, blob_rows)
    contents = [
        {"digest": p.record.digest, "names_free_digest": p.record.names_free_digest, "manifest": p.manifest}
        for p in new
    ]
    _insert_rows(connection, schema.content, contents)
    ids = _numbers(connection, content.digest, content.id, [p.record.digest for p in new])
    place = [ids[p.record.digest] for p in new]
    rows.insert_keys(
        connection, schema.tensor_key,
        {c: rows.tensor_keys(p.addition.tensors) for c, p in zip(place, new, strict=True)},
    )  # fmt: skip
    _insert_rows(connection, schema.fingerprint, [f for p in new for f in p.fingerprints])
    specs: list[Spec] = []
    numbers: list[int] = []
    bits = []
    for c, p in zip(place, new, strict=True):
        for spec, packed in p.bits:
            if spec not in specs:
                specs.append(spec)
                numbers.append(rows.spec_id(connection, spec))
            bits.append({"spec_id": numbers[specs.index(spec)], "content_id": c, "bits": packed})
    _insert_rows(connection, schema.sketch_bits, bits)
    units = {
        c: [k for f in p.addition.fingerprints for k in rows.unit_keys(f)] for c, p in zip(place, new, strict=True)
    }
    rows.insert_keys(connection, schema.unit_key, units)
    _insert_rows(connection, schema.model, [p.model for p in new])
    newest = _numbers(connection, model.name, model.id, [p.record.name for p in new])
    live = [{"name": p.record.name, "model_id": newest[p.record.name], "content_id": c}
            for c, p in zip(place, new, strict=True)]  # fmt: skip
    _insert_rows(connection, schema.live, live)


def _insert_rows(connection: sa.Connection, table: sa.Table, values: list[dict[str, Any]]) -> None:
    if values:
        connection.execute(table.insert(), values)


def _numbers(connection: sa.Connection, key: sa.Column, number: sa.Column, wanted: Sequence[str]) -> dict[str, int]:
    """The newest number by key."""
    out: dict[str, int] = {}
    for at in range(0, len(wanted), rows.QUERY_BATCH):
        found = sa.select(key, sa.func.max(number)).where(key.in_(wanted[at : at + rows.QUERY_BATCH])).group_by(key)
        out.update((k, n) for k, n in connection.execute(found))
    return out
