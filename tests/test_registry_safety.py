"""What the registry refuses, finds and survives: foreign files, tampering, several writers, unwilling disks."""

import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from registries import place_of, rows, tamper
from stemma.errors import RegistryError, UnknownNameError, UnusableRegistryError
from stemma.registry import Registry, records, schema, storage
from stemma.registry.blobs import INLINE_LIMIT, BlobFolder
from stemma.registry.database import registry_address
from stemma.registry.model_records import describe, write_copy
from stemma.types import Digest, Spec
from test_registry import SPEC, arrays, enrol, model, sketch

pytestmark = pytest.mark.anywhere


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return place_of(request, tmp_path)


@pytest.fixture
def registry(address: str) -> Iterator[Registry]:
    with Registry(address) as r:
        yield r


IN_A_FILE = pytest.mark.parametrize("address", ["sqlite"], indirect=True)
"""What is about the file itself: bytes on a disk, and what lies beside it; a server has its own."""


# Where it lies


def test_where_the_registry_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "env.db"))
    assert registry_address() == tmp_path / "env.db"
    assert registry_address(tmp_path / "x.db") == registry_address(f"sqlite:///{tmp_path}/x.db") == tmp_path / "x.db"
    monkeypatch.delenv("STEMMA_REGISTRY")
    assert registry_address().name == "registry.db"
    for bad in ("mysql://host/db", "sqlite:///"):
        with pytest.raises(RegistryError, match="Use a path"):
            registry_address(bad)


def test_reading_makes_no_registry(registry: Registry) -> None:
    assert registry.models() == ()
    assert registry.check() == []
    assert len(registry.sketch_index(SPEC)) == 0
    with pytest.raises(UnknownNameError):
        registry.get("m")
    assert not registry.exists()
    enrol(registry, "m", 1)
    assert registry.exists()


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    with Registry(tmp_path / "new" / "r.db") as registry:
        assert registry.models() == ()
        assert not (tmp_path / "new").exists()


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("CREATE TABLE t (x)")
        c.commit()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_text("not a database, but long enough to be read as one" * 9), "not a Stemma registry"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + b"\0" * 20), "not a Stemma registry"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64), "not a Stemma registry"),
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
    before = registry.path and registry.path.read_bytes()
    for use in (registry.models, registry.make_writable):
        with pytest.raises(UnusableRegistryError, match=r"schema 99.*Update Stemma"):
            use()
    assert (registry.path and registry.path.read_bytes()) == before


# Migrations


def columns(registry: Registry) -> dict[str, set[str]]:
    if registry.path is not None:
        inspector = sa.inspect(sa.create_engine(f"sqlite:///{registry.path}"))
        return {t: {c["name"] for c in inspector.get_columns(t)} for t in inspector.get_table_names()}
    found: dict[str, set[str]] = {}
    schema_name = registry.where.partition("&schema=")[2]
    listed = f"SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = '{schema_name}'"
    for table, column in rows(registry, listed):
        found.setdefault(table, set()).add(column)
    assert found.pop("blob_piece", None) in ({"digest", "number", "content"}, None)
    return found


@pytest.mark.parametrize("start", range(len(schema.MIGRATIONS) + 1))
def test_every_earlier_schema_is_brought_up_to_date(
    registry: Registry, address: str, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    if start == 0:
        if registry.path is not None:
            registry.path.touch()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:start])
            old = storage.at(address)[1]
            with old.writing() as connection:
                assert schema.version(connection) == start
                blob = {"digest": records.bytes_digest(b"kept"), "size": 4, "content": b"kept"}
                connection.execute(schema.blob.insert().values(**blob))
            old.close()
    enrol(registry, "m", 1)
    assert registry.check() == []
    assert columns(registry) == {t.name: {c.name for c in t.columns} for t in schema.metadata.sorted_tables}
    numbers = rows(registry, "SELECT number, name FROM migration ORDER BY number")
    assert numbers == [(i + 1, name) for i, (name, _) in enumerate(schema.MIGRATIONS)]
    kept = rows(registry, "SELECT content FROM blob WHERE size = 4")
    assert start == 0 or [bytes(content) for (content,) in kept] == [b"kept"]
    if registry.path is not None:
        settings_ = [rows(registry, f"PRAGMA {p}")[0][0] for p in ("page_size", "journal_mode", "application_id")]
        assert settings_ == [16384, "wal", schema.APPLICATION_ID]


def test_a_migration_that_fails_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        raise RegistryError("stop")

    enrol(registry, "m", 1)
    registry.close()
    before = columns(registry)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("fails", fails)))
        with pytest.raises(RegistryError, match="stop"):
            registry.models()
        registry.close()
    assert columns(registry) == before
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
        if registry.path is None:
            [(whole,)] = rows(registry, f"SELECT content FROM blob_piece WHERE digest = '{digest}'")
            for change in (flipped(whole, len(whole) // 2), whole[:-1], whole):
                tamper(registry, "UPDATE blob_piece SET content = ? WHERE digest = ?", change, digest)
                assert [f.subject for f in registry.check()] == [digest] * (change != whole)
            tamper(registry, "DELETE FROM blob_piece WHERE digest = ?", digest)
            assert [f.subject for f in registry.check()] == [digest]
            tamper(registry, "INSERT INTO blob_piece VALUES (?, 0, ?)", digest, whole)
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
        ("DELETE FROM tensor_key WHERE key = (SELECT min(key) FROM tensor_key)", "index"),
        ("UPDATE sketch_bits SET bits = zeroblob(256) WHERE content_id = 1", "index"),
        ("UPDATE content SET names_free_digest = 'x' WHERE id = 1", "index"),
        ("DELETE FROM blob WHERE digest = (SELECT manifest FROM content WHERE id = 1)", "blob"),
        ("DELETE FROM blob WHERE digest = (SELECT blob_digest FROM fingerprint WHERE id = 1)", "blob"),
        ("DELETE FROM model WHERE id = 2", "database"),  # a server refuses it
        ("UPDATE spec SET content = '{}'", "record"),
    ],
)
def test_check_finds_what_was_changed_behind_its_back(registry: Registry, statement: str, kind: str) -> None:
    for i in range(3):
        enrol(registry, f"m{i}", i)
    assert registry.check() == []
    if registry.path is None and kind == "database":
        with pytest.raises(Exception, match="violates foreign key"):
            tamper(registry, statement)
        return
    tamper(registry, statement)
    assert kind in {f.kind for f in registry.check()}


@IN_A_FILE
def test_check_finds_a_damaged_file(registry: Registry) -> None:
    for i in range(30):
        enrol(registry, f"m{i}", i)
    registry.close()
    whole = registry.path.read_bytes()
    registry.path.write_bytes(whole[: len(whole) // 2])
    findings = registry.check()
    assert [f.kind for f in findings] == ["database"]
    assert "damaged" in findings[0].message


def everything(registry: Registry) -> list:
    return [
        registry.models(),
        [registry.tensors(m.digest) for m in registry.models()],
        [(f.model, f.spec, {k: v.tobytes() for k, v in f.values.items()}) for f in registry.fingerprints(SPEC)],
        registry.get_evidence(Digest("a"), Digest("b"), SPEC),
    ]


@pytest.mark.slow
def test_damage_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    """Bits flipped at random: `check` finds it, or every record still reads as before; never another error."""
    with Registry(tmp_path / "r.db") as registry:
        for i in range(8):
            enrol(registry, f"m{i}", i)
        registry.put_evidence(Digest("a"), Digest("b"), SPEC, {"x": 1})
        before = everything(registry)
    whole, rng, found = registry.path.read_bytes(), np.random.default_rng(3), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.choice([1, 3, 30])):
            damaged[at] ^= 1 << int(rng.integers(8))
        registry.path.write_bytes(damaged)
        with Registry(registry.path) as r:
            if r.check():
                found += 1
                for use in (lambda r=r: everything(r), lambda r=r: r.get("mx"), lambda r=r: r.sketch_index(SPEC)):
                    with contextlib.suppress(RegistryError, UnknownNameError):
                        use()
            else:
                assert everything(r) == before
        for leftover in ("-wal", "-shm"):
            registry.path.with_name("r.db" + leftover).unlink(missing_ok=True)
    assert found > 10


def test_check_names_sources_that_went_or_changed(registry: Registry, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from stemma.networks.load import load

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


@IN_A_FILE
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
    assert [p.name for p in BlobFolder(blobs).stale_folders()] == ["one", "two"]
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


def add_many(address: str, prefix: str, seeds: range, shared: bool) -> None:
    with Registry(address) as registry:
        for seed in seeds:
            enrol(registry, f"{prefix}{seed}", seed)
            if shared:
                enrol(registry, f"shared{seed}", seed)


@pytest.mark.slow
def test_several_processes_add_at_once(address: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(address, f"p{i}-", range(12), True)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0] * 4
    expected = {f"p{i}-{s}": s for i in range(4) for s in range(12)} | {f"shared{s}": s for s in range(12)}
    with Registry(address) as registry:
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
    "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
    "from test_registry_safety import use_read_only; use_read_only(Path(sys.argv[1])); "
    "sys.stdout.write('as it should be')"
)


@pytest.mark.slow
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
from test_registry_safety import Registry, UnusableRegistryError, describe, enrol, model, write_copy
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


@pytest.mark.slow
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


def test_two_registries_of_one_process_keep_the_log_that_they_write_to(tmp_path: Path) -> None:
    """A second one, as a server or a notebook opens it, must not drop the locks of the first."""
    path = tmp_path / "r.db"
    with Registry(path) as first, Registry(path) as second:
        first.make_writable()
        assert second.count() == 0
        other = "import sys; from stemma.registry import Registry; Registry(sys.argv[1]).make_writable()"
        subprocess.run([sys.executable, "-c", other, path], check=True)
        assert path.with_name("r.db-wal").exists()  # else what `first` writes now is seen by nobody
