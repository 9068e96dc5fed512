"""Integrity check: every digest is recomputed from the files."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from stemma.errors import RegistryError, StemmaError
from stemma.fingerprints.unit_keys import UnitKeys
from stemma.registry import blobs, records, rows, schema, sketch_file
from stemma.registry.database import Database
from stemma.registry.records import Finding, ModelRecord, Progress, TensorRecord
from stemma.types import Digest, Spec


def run(database: Database, folder: blobs.BlobFolder, path: Path, progress: Progress | None = None) -> list[Finding]:
    """Every check, from the database file to the sources of models; `progress` is called for each source."""
    try:
        with database.reading() as connection:
            broken = _database(connection, path)
            if broken:
                return broken
            findings = [*_rows(connection), *_blobs(connection, folder), *_index(connection, folder)]
            findings += _index_files(connection, path)
            live = list(_live_models(connection))
            findings += [
                Finding("leftover", str(p), f"{p} was left by a killed process. Delete it")
                for p in folder.stale_folders()
            ]
    except RegistryError as e:
        return [Finding("database", str(path), str(e))]
    for i, m in enumerate(live):
        if progress:
            progress(f"checking {m.name}", i, len(live))
        findings += _source(m, database, folder)
    return findings


def _live_models(connection: sa.Connection) -> Iterator[ModelRecord]:
    for text in connection.execute(rows.select_live()).scalars():
        with contextlib.suppress(RegistryError):  # reported as a record
            yield rows.model_record(text)


def _database(connection: sa.Connection, path: Path) -> list[Finding]:
    problems = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    problems = [
        *problems,
        *(f"{r[0]} row {r[1]} refers to a missing row" for r in connection.exec_driver_sql("PRAGMA foreign_key_check")),
    ]
    return [Finding("database", str(path), f"{path} is damaged: {s}. Restore a backup") for s in problems if s != "ok"]


_MIRRORED = {
    schema.model: {"name": "name", "digest": "digest"},
    schema.fingerprint: {"model_digest": "model", "blob_digest": "blob"},
    schema.evidence: {"a": "a", "b": "b"},
    schema.functional_sketch: {
        "model_digest": "model",
        "network_digest": "network",
        "probes_digest": "probes",
        "blob_digest": "blob",
    },
    schema.family_tree: {"kind": "kind", "blob_digest": "blob"},
    schema.scan: {"place": "place"},
}
"""Columns that repeat a field of the row's record, so that it can be looked up."""


def _rows(connection: sa.Connection) -> Iterator[Finding]:
    for table, mirrored in _MIRRORED.items():
        for row in connection.execute(sa.select(table)):
            subject = f"{table.name} {row.id}"
            if records.bytes_digest(row.record.encode()) != row.record_digest:
                yield Finding(
                    "record", subject, f"{subject} was altered: its content does not match its recorded digest"
                )
                continue
            record = json.loads(row.record)
            wrong = [c for c, f in mirrored.items() if getattr(row, c) != record[f]]
            if wrong:
                yield Finding("record", subject, f"{subject} was altered: {', '.join(wrong)} do not match its record")
    for row in connection.execute(sa.select(schema.spec)):
        if records.bytes_digest(row.content.encode()) != row.digest:
            yield Finding(
                "record", f"spec {row.id}", f"spec {row.id} was altered: its content does not match its digest"
            )


def _blobs(connection: sa.Connection, folder: blobs.BlobFolder) -> Iterator[Finding]:
    for row in connection.execute(sa.select(schema.blob)):
        path = folder.path(row.digest)
        if row.content is None and not path.exists():
            yield Finding("blob", row.digest, f"{path} is missing. Restore a backup")
            continue
        found = blobs.file_digest(path) if row.content is None else records.bytes_digest(row.content)
        if found != row.digest:
            where = path if row.content is None else "a blob in the registry"
            yield Finding("blob", row.digest, f"{where} was altered: its digest is {found}, not {row.digest}")
    known = sa.select(schema.blob.c.digest)
    named = connection.execute(
        sa.select(schema.fingerprint.c.blob_digest)
        .where(schema.fingerprint.c.blob_digest.not_in(known))
        .union(
            sa.select(schema.content.c.manifest).where(schema.content.c.manifest.not_in(known)),
            sa.select(schema.functional_sketch.c.blob_digest).where(
                schema.functional_sketch.c.blob_digest.not_in(known)
            ),
            sa.select(schema.family_tree.c.blob_digest).where(schema.family_tree.c.blob_digest.not_in(known)),
        )
    )
    for digest in named.scalars():
        yield Finding("blob", digest, f"the blob {digest} is missing from the registry. Restore a backup")
    for m in _live_models(connection):
        if m.weights and rows.blob_row(connection, m.weights) is None:
            yield Finding(
                "blob", m.name, f"the stored weights of '{m.name}' are missing from the registry. Restore a backup"
            )


def _manifest(connection: sa.Connection, folder: blobs.BlobFolder, digest: Digest) -> tuple[TensorRecord, ...] | None:
    try:
        return rows.tensors(connection, folder, digest)
    except RegistryError:
        return None


def _index(connection: sa.Connection, folder: blobs.BlobFolder) -> Iterator[Finding]:
    """Contradictions between index tables and the records they are derived from."""
    newest: dict[str, sa.Row] = {}
    for row in connection.execute(sa.select(schema.model).order_by(schema.model.c.id)):
        newest[row.name] = row
    ids = {r.id: r.digest for r in connection.execute(sa.select(schema.content))}
    expected = {n: (r.id, r.digest) for n, r in newest.items() if not r.removed}
    found = {r.name: (r.model_id, ids.get(r.content_id)) for r in connection.execute(sa.select(schema.live))}
    for name in sorted(expected.items() ^ found.items(), key=str):
        yield Finding("index", name[0], f"the list of live models does not match the records of '{name[0]}'")
    for row in connection.execute(sa.select(schema.content)):
        tensors = _manifest(connection, folder, row.digest)
        if tensors is None:
            continue  # reported as a blob
        if records.model_digests(tensors) != (row.digest, row.names_free_digest):
            yield Finding("index", row.digest, f"the digests of {row.digest} do not match its tensors")
            continue
        keys = sa.select(schema.tensor_key.c.key).where(schema.tensor_key.c.content_id == row.id)
        if set(connection.execute(keys).scalars()) != {rows.tensor_key(t.digest) for t in tensors}:
            yield Finding("index", row.digest, f"the tensor index of {row.digest} does not match its tensors")
    yield from _bits(connection, folder, ids)
    yield from _unit_keys(connection, folder, ids)


def _bits(connection: sa.Connection, folder: blobs.BlobFolder, ids: dict[int, str]) -> Iterator[Finding]:
    specs = {r.id: r.digest for r in connection.execute(sa.select(schema.spec))}
    for row in connection.execute(sa.select(schema.sketch_bits)):
        model = Digest(ids.get(row.content_id, ""))
        try:
            record = rows.newest_fingerprint(connection, model, Digest(specs.get(row.spec_id, "")))
            values = blobs.unpack(rows.read_blob(connection, folder, record.blob)) if record else {}
            same = rows.BITS in values and values[rows.BITS].tobytes() == row.bits
        except RegistryError:
            continue  # reported as a blob
        if not same:
            yield Finding(
                "index", model, f"the search index has a sketch of {model} that does not match its fingerprint"
            )


def _unit_keys(connection: sa.Connection, folder: blobs.BlobFolder, ids: dict[int, str]) -> Iterator[Finding]:
    held: dict[int, set[int]] = {}
    for row in connection.execute(sa.select(schema.unit_key)):
        held.setdefault(row.content_id, set()).add(row.key)
    spec = UnitKeys().spec
    for content, model in ids.items():
        try:
            record = rows.newest_fingerprint(connection, Digest(model), spec.digest)
            values = blobs.unpack(rows.read_blob(connection, folder, record.blob)) if record else {}
        except RegistryError:
            continue  # reported as a blob
        expected = set(values[rows.UNIT_KEYS].tolist()) if rows.UNIT_KEYS in values else set()
        if record and held.get(content, set()) != expected:
            yield Finding("index", model, f"the index of hidden units of {model} does not match its fingerprint")


def _index_files(connection: sa.Connection, path: Path) -> Iterator[Finding]:
    """Files of the search index that differ from the database; the next search makes such a file anew."""
    for row in connection.execute(sa.select(schema.spec)):
        with contextlib.suppress(TypeError, ValueError):  # reported as a record
            spec = Spec(**json.loads(row.content))
            file = sketch_file.path_of(path, spec)
            wrong = sketch_file.differences(connection, file, spec)
            if wrong:
                file.unlink(missing_ok=True)
                yield Finding(
                    "index",
                    str(file),
                    f"{wrong} sketches in {file} did not match the registry, so that "
                    "models may not have been found. It was removed, and the next search makes it anew",
                )


def _source(m: ModelRecord, database: Database, folder: blobs.BlobFolder) -> list[Finding]:
    if m.source.startswith("python:"):
        return []
    path = Path(m.source)
    if not path.exists():
        kept = "its stored weights remain" if m.weights else "only its sketch remains"
        return [Finding("source-gone", m.name, f"the source of '{m.name}' is missing at {path}; {kept}")]
    from stemma.networks.load import open_models

    try:
        models = open_models(path)
        if any(x.digest == m.digest for x in models):
            return []
        with database.reading() as connection:
            before = {t.name: t.digest for t in _manifest(connection, folder, m.digest) or ()}
        best = max(models, key=lambda x: len(before.items() & x.tensor_digests.items()))
        detail = _difference(before, best.tensor_digests)
    except (StemmaError, OSError) as e:
        detail = f"it can no longer be read ({e})"
    return [Finding("source-changed", m.name, f"the source of '{m.name}', {path}, has changed: {detail}")]


def _difference(before: Mapping[str, Digest], after: Mapping[str, Digest]) -> str:
    """How the tensors of a source changed, as part of a sentence."""
    changed = sorted(n for n in before.keys() & after.keys() if before[n] != after[n])
    missing, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    parts = [
        f"{len(g)} tensors {word} ({', '.join(g[:3])}{', …' if len(g) > 3 else ''})"
        for word, g in (("changed", changed), ("missing", missing), ("new", new))
        if g
    ]
    return ", ".join(parts) or "the tensors are stored differently"
