"""The registry against a plain dict, a slow scan, and files that were tampered with."""

import contextlib
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.errors import RegistryError, UnknownNameError, UnusableRegistryError
from stemma.models.load import from_arrays
from stemma.models.model import Model
from stemma.registry import AddStatus, ModelRecord, Registry, SketchIndex, TensorRecord, records, schema
from stemma.registry.blobs import INLINE_LIMIT, BlobFolder, pack, unpack
from stemma.registry.database import Database, locate
from stemma.registry.describe import describe, write_copy
from stemma.types import Digest, Fingerprint, Spec

SPEC = Spec("sketch", 1, {"seed": 0})


def arrays(seed: int, layers: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"l{i}.weight": rng.standard_normal((4, 5)).astype(np.float32) for i in range(layers)}


def model(name: str, seed: int) -> Model:
    return from_arrays(arrays(seed), name)


def sketch(digest: Digest, seed: int, extra: int = 8) -> Fingerprint:
    rng = np.random.default_rng(seed)
    values = {"bits": rng.integers(0, 256, 256, dtype=np.uint8), "units": rng.standard_normal(extra)}
    return Fingerprint(digest, None, SPEC, values)


def enrol(registry: Registry, name: str, seed: int, **options) -> ModelRecord:
    record, tensors = describe(model(name, seed))
    return registry.add(record, tensors, [sketch(record.digest, seed)], **options).record


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "r.db") as r:
        yield r


def rows(registry: Registry, query: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(registry.path)) as c:
        return c.execute(query).fetchall()


def tamper(registry: Registry, statement: str, *values: object) -> None:
    registry.close()
    with contextlib.closing(sqlite3.connect(registry.path)) as c:
        assert c.execute(statement, values).rowcount == 1
        c.commit()


# Round trips


def test_a_model_comes_back_as_it_was_given(registry: Registry) -> None:
    m = replace(model("família/模型 1", 1), config={"a": [1, {"b": None}], "eps": 1e-5}, claims={"license": "mit"})
    record, tensors = describe(m, license="apache-2.0")
    stored = registry.add(record, tensors).record
    assert registry.get(m.name) == stored == registry.models()[0] == registry.by_digest(m.digest)[0]
    assert replace(stored, added_at="", stemma_version="") == record
    assert stored.added_at
    assert stored.stemma_version
    assert registry.tensors(m.digest) == tuple(sorted(tensors, key=lambda t: t.name))


def test_numbers_that_json_lacks_are_stored_by_name(registry: Registry) -> None:
    record, tensors = describe(replace(model("m", 1), config={"scale": float("nan"), "clip": [float("inf")]}))
    assert registry.add(record, tensors).record.config == {"scale": "nan", "clip": ["inf"]}


def test_fingerprints_come_back_bit_for_bit(registry: Registry) -> None:
    made = {}
    for seed in range(5):
        record, tensors = describe(model(f"m{seed}", seed))
        made[record.digest] = sketch(record.digest, seed, extra=20_000 if seed == 3 else 8)
        registry.add(record, tensors, [made[record.digest]])
    found = {f.model: f for f in registry.fingerprints(SPEC)}
    assert found.keys() == made.keys()
    for digest, f in made.items():
        one = registry.fingerprint(digest, SPEC)
        assert one is not None
        for other in (one, found[digest]):
            assert other.spec == SPEC
            assert {k: v.tobytes() for k, v in other.values.items()} == {k: v.tobytes() for k, v in f.values.items()}
    assert registry.fingerprint(record.digest, Spec("sketch", 2, {"seed": 0})) is None
    assert list(registry.fingerprints(Spec("sketch", 2, {"seed": 0}))) == []


def test_packed_values_are_the_same_bytes_whatever_their_order_and_layout() -> None:
    a, b = np.arange(12.0).reshape(3, 4), np.arange(3, dtype=np.int8)
    content = pack({"a": a, "b": b, "c": np.array(2, np.float32)})
    assert content == pack({"c": np.array(2, np.float32), "b": b, "a": np.asfortranarray(a)})
    assert {k: v.tolist() for k, v in unpack(content).items()} == {"a": a.tolist(), "b": [0, 1, 2], "c": 2.0}
    with pytest.raises(RegistryError, match="damaged"):
        unpack(content[:-1])


def test_the_newest_evidence_of_an_ordered_pair_counts(registry: Registry) -> None:
    a, b = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
    assert registry.get_evidence(a, b, SPEC) is None
    registry.put_evidence(a, b, SPEC, {"p": 0.5})
    registry.put_evidence(a, b, SPEC, {"p": 0.25, "list": [1, None, "x"]})
    found = registry.get_evidence(a, b, SPEC)
    assert found is not None
    assert (found.a, found.b, found.spec, found.content) == (a, b, SPEC, {"p": 0.25, "list": [1, None, "x"]})
    assert registry.get_evidence(b, a, SPEC) is None
    assert registry.get_evidence(a, b, Spec("sketch", 1, {"seed": 1})) is None
    assert len(rows(registry, "SELECT * FROM evidence")) == 2


def test_kept_weights_are_a_readable_copy(registry: Registry) -> None:
    m = model("m", 1)
    record, tensors = describe(m)
    stored = registry.add(record, tensors, weights=lambda path: write_copy(m, path)).record
    path = registry.weights(stored)
    assert path is not None
    from safetensors.numpy import load_file

    assert {k: v.tobytes() for k, v in load_file(path).items()} == {k: v.tobytes() for k, v in arrays(1).items()}
    assert registry.weights(enrol(registry, "without", 2)) is None
    assert registry.check() == []
    path.unlink()
    with pytest.raises(RegistryError, match="gone"):
        registry.weights(stored)


def test_large_blobs_are_files_and_small_ones_are_rows(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    registry.add(record, tensors, [sketch(record.digest, 1, extra=INLINE_LIMIT)])
    sizes = dict(rows(registry, "SELECT size, content IS NULL FROM blob"))
    assert all(is_file == (size >= INLINE_LIMIT) for size, is_file in sizes.items())
    assert len(set(sizes.values())) == 2
    assert registry.check() == []


# Names


def test_a_known_model_is_not_enrolled_again(registry: Registry) -> None:
    enrol(registry, "m", 1)
    record, tensors = describe(model("m", 1))
    assert registry.add(record, tensors, [sketch(record.digest, 1)]).status is AddStatus.KNOWN
    assert len(rows(registry, "SELECT * FROM model")) == len(rows(registry, "SELECT * FROM fingerprint")) == 1


def test_a_known_name_with_other_weights_needs_replace(registry: Registry) -> None:
    old = enrol(registry, "m", 1)
    record, tensors = describe(model("m", 2))
    with pytest.raises(RegistryError, match="'m' is enrolled with other weights"):
        registry.add(record, tensors)
    assert registry.get("m") == old
    assert registry.add(record, tensors, replace=True).status is AddStatus.REPLACED
    assert registry.get("m").digest == record.digest
    assert registry.by_digest(old.digest) == ()
    assert len(rows(registry, "SELECT * FROM model")) == 2  # the old row stays


def test_removal_is_a_tombstone(registry: Registry) -> None:
    old = enrol(registry, "m", 1)
    assert registry.remove("m") == old
    assert registry.models() == ()
    assert list(registry.fingerprints(SPEC)) == []
    assert len(registry.sketch_index(SPEC)) == 0
    assert registry.by_tensor_digests([t.digest for t in describe(model("m", 1))[1]]) == {}
    assert [r for (r,) in rows(registry, "SELECT removed FROM model ORDER BY id")] == [0, 1]
    with pytest.raises(UnknownNameError):
        registry.remove("m")
    assert enrol(registry, "m", 2).name == "m"
    assert registry.check() == []


@pytest.mark.parametrize("name", ["", " m", "a\nb", "\x1b[31m", "a\u202eb"])
def test_names_that_cannot_be_shown_are_refused(registry: Registry, name: str) -> None:
    record, tensors = describe(model("m", 1))
    with pytest.raises(RegistryError, match="cannot be a model's name"):
        registry.add(replace(record, name=name), tensors)
    assert registry.models() == ()


def test_a_record_must_follow_from_its_tensors(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    with pytest.raises(RegistryError, match="do not give its digest"):
        registry.add(record, tensors[1:])
    with pytest.raises(RegistryError, match="do not give its digest"):
        registry.add(replace(record, names_free_digest=record.digest), tensors)
    with pytest.raises(RegistryError, match="was handed in with"):
        registry.add(record, tensors, [sketch(Digest("sha256:" + "0" * 64), 1)])
    with pytest.raises(RegistryError, match="rename the file or tensor"):
        registry.add(replace(record, source="/x/\udcff"), tensors)
    assert registry.models() == ()


def test_lookup_by_name_then_by_digest(registry: Registry) -> None:
    a, b = enrol(registry, "alpha", 1), enrol(registry, "beta", 2)
    enrol(registry, "alpha-copy", 1)
    hexadecimal = a.digest.removeprefix("sha256:")
    assert registry.get(hexadecimal[:8]).name == registry.get(a.digest).name == "alpha"
    assert registry.get("sha256:" + hexadecimal[:12]).digest == a.digest
    assert [r.name for r in registry.by_digest(a.digest)] == ["alpha", "alpha-copy"]
    with pytest.raises(UnknownNameError, match=r"'alhpa'.*Did you mean 'alpha'"):
        registry.get("alhpa")
    enrol(registry, "hub/org/omega", 4)
    with pytest.raises(UnknownNameError, match="Did you mean 'hub/org/omega'"):
        registry.get("omega")
    with pytest.raises(UnknownNameError, match="stemma list"):
        registry.get(hexadecimal[:7])
    enrol(registry, b.digest[7:15], 3)  # a name goes before a digest
    assert registry.get(b.digest[7:15]).digest != b.digest


def test_a_prefix_of_several_digests_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "verified_manifest", lambda record, tensors: records.manifest(tensors))
    record, tensors = describe(model("m", 1))
    for i in "12":
        registry.add(replace(record, name=f"m{i}", digest=Digest("sha256:" + "ab" * 5 + i * 54)), tensors)
    with pytest.raises(RegistryError, match=r"fits 2 models: 'm1' .*'m2' .*Give more digits"):
        registry.get("abababab")
    assert registry.get("ab" * 5 + "2").name == "m2"


def test_renamed_copies_are_found_without_names(registry: Registry) -> None:
    enrol(registry, "m", 1)
    renamed = from_arrays({f"other.{k}": v for k, v in arrays(1).items()}, "x")
    assert registry.by_digest(renamed.digest) == ()
    assert [r.name for r in registry.by_names_free_digest(renamed.names_free_digest)] == ["m"]


def test_shared_tensors_are_those_of_a_slow_scan(registry: Registry) -> None:
    rng, pool = random.Random(5), list(arrays(9, layers=12).values())
    contents: dict[Digest, set[Digest]] = {}
    for i in range(25):
        chosen = rng.sample(pool, 4)
        record, tensors = describe(from_arrays({f"t{j}": a for j, a in enumerate(chosen)}, f"m{i}"))
        registry.add(record, tensors)
        contents[record.digest] = {t.digest for t in tensors}
    wanted = set(rng.sample(sorted(set().union(*contents.values())), 5))
    expected = {d: c & wanted for d, c in contents.items() if c & wanted}
    found = registry.by_tensor_digests(wanted)
    assert found == expected
    assert list(found) == sorted(expected, key=lambda d: (-len(expected[d]), d))
    counts = sorted(map(len, expected.values()), reverse=True)
    assert [len(v) for v in registry.by_tensor_digests(wanted, limit=3).values()] == counts[:3]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "replace", "remove"]), st.sampled_from("abc"), st.integers(0, 3)),
        max_size=14,
    )
)
def test_the_registry_is_a_dict_with_a_memory(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    """Any sequence of changes leaves what the same changes leave in a dict, also when it is opened anew."""
    path = tmp_path_factory.mktemp("r") / "r.db"
    expected: dict[str, Digest] = {}
    with Registry(path) as registry:
        for what, name, seed in steps:
            digest = model(name, seed).digest
            if what == "remove":
                if name in expected:
                    registry.remove(name)
                    del expected[name]
                else:
                    with pytest.raises(UnknownNameError):
                        registry.remove(name)
            elif what == "add" and expected.get(name, digest) != digest:
                with pytest.raises(RegistryError):
                    enrol(registry, name, seed)
            else:
                enrol(registry, name, seed, replace=what == "replace")
                expected[name] = digest
            assert {r.name: r.digest for r in registry.models()} == expected
    with Registry(path) as registry:
        assert {r.name: r.digest for r in registry.models()} == expected
        assert {f.model for f in registry.fingerprints(SPEC)} == set(expected.values())
        assert len(registry.sketch_index(SPEC)) == len(set(expected.values()))
        assert registry.check() == []


# Where it lies


def test_where_the_registry_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "env.db"))
    assert locate() == tmp_path / "env.db"
    assert locate(tmp_path / "x.db") == locate(f"sqlite:///{tmp_path}/x.db") == tmp_path / "x.db"
    monkeypatch.delenv("STEMMA_REGISTRY")
    assert locate().name == "registry.db"
    for bad in ("postgresql://host/db", "sqlite:///"):
        with pytest.raises(RegistryError, match="give a path"):
            locate(bad)


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with Registry(tmp_path / "new" / "r.db") as registry:
        assert registry.models() == ()
        assert registry.check() == []
        with pytest.raises(UnknownNameError):
            registry.get("m")
        assert not (tmp_path / "new").exists()
        enrol(registry, "m", 1)
        assert registry.path.exists()


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("CREATE TABLE t (x)")
        c.commit()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_text("not a database, but long enough to be read as one" * 9), "no Stemma registry"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + b"\0" * 20), "no Stemma registry"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64), "another program"),
        (foreign, "another program"),
    ],
    ids=["text", "truncated", "garbage", "foreign"],
)
def test_what_is_no_registry_is_refused_and_left_alone(tmp_path: Path, make, said: str) -> None:
    path = tmp_path / "r.db"
    make(path)
    before = path.read_bytes()
    registry = Registry(path)
    for use in (registry.models, registry.make_writable, lambda: enrol(registry, "m", 1)):
        with pytest.raises(UnusableRegistryError, match=said):
            use()
    assert registry.check()[0].kind == "database"
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.db"]


def test_a_folder_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(UnusableRegistryError, match="is a folder"):
        Registry(tmp_path).models()


def test_a_registry_of_the_future_is_refused(registry: Registry) -> None:
    enrol(registry, "m", 1)
    tamper(registry, "INSERT INTO migration VALUES (99, 'future', 'now')")
    before = registry.path.read_bytes()
    with pytest.raises(UnusableRegistryError, match=r"schema 99.*update Stemma"):
        registry.models()
    assert registry.path.read_bytes() == before


# Migrations


def columns(path: Path) -> dict[str, set[str]]:
    inspector = sa.inspect(sa.create_engine(f"sqlite:///{path}"))
    return {t: {c["name"] for c in inspector.get_columns(t)} for t in inspector.get_table_names()}


@pytest.mark.parametrize("start", range(len(schema.MIGRATIONS) + 1))
def test_every_earlier_schema_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    path = tmp_path / "r.db"
    if start == 0:
        path.touch()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:start])
            old = Database(path)
            with old.writing() as connection:
                assert schema.version(connection) == start
                blob = {"digest": records.of_bytes(b"kept"), "size": 4, "content": b"kept"}
                connection.execute(schema.blob.insert().values(**blob))
            old.close()
    with Registry(path) as registry:
        enrol(registry, "m", 1)
        assert registry.check() == []
    assert columns(path) == {t.name: {c.name for c in t.columns} for t in schema.metadata.sorted_tables}
    numbers = rows(registry, "SELECT number, name FROM migration ORDER BY number")
    assert numbers == [(i + 1, name) for i, (name, _) in enumerate(schema.MIGRATIONS)]
    assert start == 0 or ("kept",) in rows(registry, "SELECT CAST(content AS TEXT) FROM blob WHERE size = 4")
    settings_ = [rows(registry, f"PRAGMA {p}")[0][0] for p in ("page_size", "journal_mode", "application_id")]
    assert settings_ == [16384, "wal", schema.APPLICATION_ID]


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x)")
        raise RegistryError("stop")

    with Registry(tmp_path / "r.db") as registry:
        enrol(registry, "m", 1)
        registry.close()
        before = columns(registry.path)
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("fails", fails)))
            with pytest.raises(RegistryError, match="stop"):
                registry.models()
            registry.close()
        assert columns(registry.path) == before
        assert [r.name for r in registry.models()] == ["m"]


# Check


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_check_is_silent_on_a_sound_registry(registry: Registry) -> None:
    for i in range(5):
        enrol(registry, f"m{i}", i)
    enrol(registry, "m1", 7, replace=True)
    registry.remove("m2")
    registry.put_evidence(Digest("a"), Digest("b"), SPEC, {"x": 1})
    assert registry.check() == []


@pytest.mark.parametrize("table", ["model", "fingerprint", "evidence"])
def test_check_finds_a_flipped_byte_in_any_record(registry: Registry, table: str) -> None:
    enrol(registry, "m", 1)
    registry.put_evidence(Digest("a"), Digest("b"), SPEC, {"x": 1})
    text = rows(registry, f"SELECT record FROM {table}")[0][0].encode()
    for at in (2, len(text) // 2, len(text) - 3):
        tamper(registry, f"UPDATE {table} SET record = ?", flipped(text, at).decode())
        assert any(f.kind == "record" and f.subject == f"{table} 1" for f in registry.check())
        with contextlib.suppress(RegistryError):  # never another error
            assert len(registry.models()) == 1
            assert len(list(registry.fingerprints(SPEC))) <= 1
            registry.get_evidence(Digest("a"), Digest("b"), SPEC)
    tamper(registry, f"UPDATE {table} SET record = ?", text.decode())
    assert registry.check() == []


def test_check_finds_a_flipped_byte_in_any_blob(registry: Registry) -> None:
    m = model("m", 1)
    record, tensors = describe(m)
    registry.add(
        record,
        tensors,
        [sketch(record.digest, 1), replace(sketch(record.digest, 2, INLINE_LIMIT), spec=Spec("large"))],
        weights=lambda path: write_copy(m, path),
    )
    assert registry.check() == []
    for digest, content in rows(registry, "SELECT digest, content FROM blob"):
        if content is not None:
            for at in (0, len(content) // 2, len(content) - 1):
                tamper(registry, "UPDATE blob SET content = ? WHERE digest = ?", flipped(content, at), digest)
                assert any(f.kind == "blob" and f.subject == digest for f in registry.check())
            tamper(registry, "UPDATE blob SET content = ? WHERE digest = ?", content, digest)
            continue
        name = digest.removeprefix("sha256:")
        path = registry.path.with_name("r.db.blobs") / name[:2] / name
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, len(whole) // 2))
        assert [f.subject for f in registry.check()] == [digest]
        path.unlink()
        assert [f.subject for f in registry.check()] == [digest]
        path.write_bytes(whole)
    assert registry.check() == []


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM live WHERE name = 'm1'", "index"),
        ("UPDATE live SET model_id = 1 WHERE name = 'm1'", "index"),
        ("UPDATE model SET digest = 'x' WHERE id = 2", "record"),
        ("DELETE FROM tensor_key WHERE rowid IS NULL OR key = (SELECT min(key) FROM tensor_key)", "index"),
        ("UPDATE sketch_bits SET bits = zeroblob(256) WHERE content_id = 1", "index"),
        ("UPDATE content SET names_free_digest = 'x' WHERE id = 1", "index"),
        ("DELETE FROM blob WHERE digest = (SELECT manifest FROM content WHERE id = 1)", "blob"),
        ("DELETE FROM blob WHERE digest = (SELECT blob_digest FROM fingerprint WHERE id = 1)", "blob"),
        ("DELETE FROM model WHERE id = 2", "database"),
        ("UPDATE spec SET content = '{}'", "record"),
    ],
)
def test_check_finds_what_was_changed_behind_its_back(registry: Registry, statement: str, kind: str) -> None:
    for i in range(3):
        enrol(registry, f"m{i}", i)
    assert registry.check() == []
    tamper(registry, statement.replace("rowid IS NULL OR ", ""))
    assert kind in {f.kind for f in registry.check()}


def test_check_finds_a_damaged_file(registry: Registry) -> None:
    for i in range(30):
        enrol(registry, f"m{i}", i)
    registry.close()
    whole = registry.path.read_bytes()
    registry.path.write_bytes(whole[: len(whole) // 2])
    findings = registry.check()
    assert [f.kind for f in findings] == ["database"]
    assert "damaged" in findings[0].message


def test_check_names_sources_that_went_or_changed(registry: Registry, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from stemma.models.load import load

    paths = {n: tmp_path / f"{n}.safetensors" for n in ("same", "gone", "changed", "broken", "re-saved")}
    for i, path in enumerate(paths.values()):
        save_file(arrays(i), path)
        registry.add(*describe(load(path)))
    assert registry.check() == []
    paths["gone"].unlink()
    save_file({**arrays(2), "l1.weight": arrays(7)["l1.weight"], "new": np.ones(3)}, paths["changed"])
    paths["broken"].write_bytes(b"")
    save_file(arrays(4), paths["re-saved"], metadata={"note": "same weights"})
    found = {f.subject: f for f in registry.check()}
    assert {n: f.kind for n, f in found.items()} == {
        "gone": "source-gone",
        "changed": "source-changed",
        "broken": "source-changed",
    }
    assert "1 tensors changed (l1.weight), 1 tensors new (new)" in found["changed"].message


def test_what_a_killed_writer_left_is_swept_by_the_next(registry: Registry) -> None:
    m = model("m", 1)
    record, tensors = describe(m)
    kept = registry.weights(registry.add(record, tensors, weights=lambda path: write_copy(m, path)).record)
    assert kept is not None
    blobs = kept.parents[1]
    orphan = blobs / "00" / ("0" * 64)
    orphan.parent.mkdir()
    orphan.write_bytes(b"published, never recorded")
    for name, mark in (("one", orphan.name), ("two", kept.name)):
        (blobs / "staging" / name).mkdir()
        (blobs / "staging" / name / mark).touch()
        (blobs / "staging" / name / "0.partial").write_bytes(b"half")
    assert [p.name for p in BlobFolder(blobs).leftovers()] == ["one", "two"]
    with Registry(registry.path) as busy, Registry(registry.path) as other:
        n = model("n", 2)

        def meanwhile(path: Path) -> None:
            assert other.check() == []
            write_copy(n, path)

        staging = blobs / "staging"
        before = {p.name for p in staging.iterdir()}
        busy.add(*describe(n), weights=meanwhile)
        assert before == {"one", "two"}
        assert list(staging.iterdir()) == []
    assert kept.exists()
    assert not orphan.exists()


# Several processes, unwilling disks


def add_many(path: Path, prefix: str, seeds: range, shared: bool) -> None:
    with Registry(path) as registry:
        for seed in seeds:
            enrol(registry, f"{prefix}{seed}", seed)
            if shared:
                enrol(registry, f"shared{seed}", seed)


def test_several_processes_add_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "r.db", multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(path, f"p{i}-", range(12), True)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0] * 4
    expected = {f"p{i}-{s}": s for i in range(4) for s in range(12)} | {f"shared{s}": s for s in range(12)}
    with Registry(path) as registry:
        assert {r.name: r.digest for r in registry.models()} == {n: model(n, s).digest for n, s in expected.items()}
        assert registry.check() == []
        assert len(rows(registry, "SELECT * FROM model")) == len(expected)  # nothing was enrolled twice
        assert len(rows(registry, "SELECT * FROM content")) == 12


def use_read_only(home: Path) -> None:
    """What must hold where the folder `home`, with a registry of one model `m`, cannot be written."""
    left = home / "r.db.blobs" / "staging" / "left"
    assert left.is_dir()
    with Registry(home / "r.db") as registry:
        assert registry.get("m").name == "m"
        assert len(registry.sketch_index(SPEC)) == 1
        assert [(f.kind, f.subject) for f in registry.check()] == [("leftover", str(left))]
        record, tensors = describe(model("n", 2))
        for change in (
            registry.make_writable,
            lambda: registry.remove("m"),
            lambda: registry.add(record, tensors),
            lambda: registry.add(record, tensors, weights=lambda path: write_copy(model("n", 2), path)),
            lambda: registry.put_evidence(Digest("a"), Digest("b"), SPEC, {}),
            Registry(home / "other.db").make_writable,
        ):
            with pytest.raises(UnusableRegistryError, match="read-only"):
                change()
        assert Registry(home / "other.db").models() == ()


MOUNTED = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77; exec "$2" -c "$3" "$1" "$4"'
"""Makes a folder read-only for one process: the mount lives in a name space of its own and dies with it."""

USE = (
    "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from test_registry import use_read_only; "
    "use_read_only(Path(sys.argv[1])); sys.stdout.write('as it should be')"
)


def test_a_read_only_registry_is_read_and_never_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Registry(home / "r.db") as registry:
        enrol(registry, "m", 1)
    (home / "r.db.blobs" / "staging" / "left").mkdir(parents=True)
    (home / "r.db.blobs" / "lock").touch()
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    if os.geteuid() != 0:
        (home / "r.db").chmod(0o444)
        home.chmod(0o555)
        use_read_only(home)
        home.chmod(0o755)
        (home / "r.db").chmod(0o644)
    else:
        shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, "sh"]
        try:
            done = subprocess.run(
                [*shell, home, sys.executable, USE, Path(__file__).parent],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            pytest.skip("the super-user may write anywhere, and there is no unshare here")
        if done.returncode in (1, 77) and not done.stdout and "Traceback" not in done.stderr:
            pytest.skip("the super-user may write anywhere, and mounting is not allowed here")
        assert done.stdout == "as it should be", done.stderr
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    with Registry(home / "r.db") as registry:
        assert [r.name for r in registry.models()] == ["m"]
        enrol(registry, "n", 2)
        assert registry.check() == []


FILL = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_registry import Registry, UnusableRegistryError, describe, enrol, model, write_copy
with Registry(sys.argv[1]) as registry:
    enrol(registry, "first", 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        for seed in range(1, 5000):
            enrol(registry, f"m{seed}", seed)
            sys.stdout.write(f"m{seed}\\n"); sys.stdout.flush()
    except UnusableRegistryError as e:
        sys.stdout.write(f"error {e}\\n")
    try:
        m = model("weights", 9)
        registry.add(*describe(m), weights=lambda path: path.write_bytes(b"0" * 20_000_000))
    except UnusableRegistryError as e:
        sys.stdout.write(f"error {e}\\n")
    sys.stdout.write(f"readable {len(registry.models())}\\n")
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "r.db"
    done = subprocess.run(
        [sys.executable, "-c", FILL, path, Path(__file__).parent, "6000000"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    enrolled = ["first", *(line for line in lines if line.startswith("m"))]
    assert len(enrolled) > 2
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 2
    assert all("is full" in e for e in errors), errors
    assert lines[-1] == f"readable {len(enrolled)}"
    with Registry(path) as registry:
        assert sorted(r.name for r in registry.models()) == sorted(enrolled)
        enrol(registry, "after", 99)
        assert registry.check() == []


# Search


def slow_nearest(digests: list[Digest], bits: np.ndarray, query: np.ndarray, n: int) -> list[tuple]:
    def hamming(a: np.ndarray, b: np.ndarray) -> int:
        return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))

    both = [(hamming(row[:128], query[:128]), hamming(row[128:], query[128:])) for row in bits]
    ranked = []
    for d, (ordered, invariant) in zip(digests, both, strict=True):
        rank = min(sum(o < ordered for o, _ in both), sum(i < invariant for _, i in both))
        ranked.append((rank, ordered + invariant, d, ordered, invariant))
    return [(d, rank, ordered, invariant) for rank, _, d, ordered, invariant in sorted(ranked)[:n]]


@pytest.mark.parametrize("n", [1, 7, 60, 1000])
def test_the_search_is_that_of_a_slow_scan(n: int) -> None:
    rng = np.random.default_rng(n)
    bits = rng.integers(0, 256, (60, 256), dtype=np.uint8)
    bits[10:20] = bits[3]  # ties
    digests = [Digest(f"sha256:{rng.integers(1 << 62):064x}") for _ in bits]
    query = bits[3].copy()
    query[:9] ^= 1
    found = SketchIndex(digests, bits).nearest(query, n)
    assert [(f.digest, f.rank, f.ordered, f.invariant) for f in found] == slow_nearest(digests, bits, query, n)


def test_either_code_suffices_to_be_found() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 256, (3000, 256), dtype=np.uint8)
    digests = [Digest(f"sha256:{i:064x}") for i in range(3000)]
    index = SketchIndex(digests, bits)
    unrelated = rng.integers(0, 256, 256, dtype=np.uint8)
    for half in (slice(0, 128), slice(128, 256)):
        query = unrelated.copy()
        query[half] = bits[1234][half]
        assert digests[1234] in {f.digest for f in index.nearest(query, 2)}
    assert digests[1234] not in {f.digest for f in index.nearest(unrelated, 2)}  # the control


def test_an_empty_index_and_wrong_sketches() -> None:
    index = SketchIndex([], np.zeros((0, 256), np.uint8))
    assert index.nearest(np.zeros(256, np.uint8), 5) == ()
    with pytest.raises(RegistryError, match="a sketch is uint8"):
        index.nearest(np.zeros(255, np.uint8), 5)
    with pytest.raises(RegistryError, match="sketches are uint8"):
        SketchIndex([Digest("a")], np.zeros((1, 10), np.uint8))


def test_the_index_follows_a_corrected_fingerprint(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    for seed in (1, 2):
        registry.add(record, tensors, [sketch(record.digest, seed)])
    newest = sketch(record.digest, 2).values["bits"]
    assert registry.sketch_index(SPEC).nearest(newest, 1)[0].ordered == 0
    assert len(rows(registry, "SELECT * FROM fingerprint")) == 2
    assert registry.check() == []
    bad = Fingerprint(record.digest, None, SPEC, {"bits": np.zeros(9, np.uint8)})
    with pytest.raises(RegistryError, match="uint8"):
        registry.add(record, tensors, [bad])


def test_records_are_digested_over_canonical_json() -> None:
    """The stored form is a contract: these digests may never change."""
    assert records.canonical({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'
    assert records.of_bytes(b'{"a":1}') == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    listing = records.manifest(
        [TensorRecord("b", "F32", (2, 3), Digest("d")), TensorRecord("a", "I8", (), Digest("e"))]
    )
    assert json.loads(listing) == [["a", "I8", [], "e", True], ["b", "F32", [2, 3], "d", True]]
    assert records.manifest(reversed(records.parse_manifest(listing))) == listing
    assert asdict(records.parse_manifest(listing)[0])["shape"] == ()
    with pytest.raises(RegistryError, match="JSON"):
        records.canonical({"x": object()})
