"""A registry on a PostgreSQL server: who may do what, what is told, what a crash leaves, and that no password shows."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of
from postgresql import Server
from registries import rows, tamper
from stemma.errors import MisuseError, RegistryError, StemmaError, UnknownNameError, UnusableRegistryError
from stemma.registry import Registry, database, postgresql_server, schema, server_blobs, storage
from stemma.registry.database import registry_address, without_password
from stemma.registry.model_records import describe, write_copy
from stemma.registry.transfer import copy_registry
from stemma.types import Digest
from test_registry import SPEC, enrol, model, sketch

pytestmark = pytest.mark.anywhere

SECRET = "s3cr3t-pw"


@pytest.fixture
def registry(postgresql: Server) -> Iterator[Registry]:
    with Registry(postgresql.address()) as r:
        yield r


def users(server: Server, schema_name: str) -> dict[str, str]:
    """Addresses of users with a password: the owner, one who writes, one who reads, one with no rights at all."""
    names = {what: f"{what}_{schema_name}" for what in ("owner", "writer", "reader", "nobody")}
    server.do(*(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'" for name in names.values()),
              f"GRANT CREATE ON DATABASE postgres TO {names['owner']}")  # fmt: skip
    return {what: server.address(schema_name, f"{name}:{SECRET}") for what, name in names.items()}


# Addresses and passwords


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"postgresql://u:{SECRET}@localhost:1/db", "cannot be reached"),
        (f"postgresql://u:{SECRET}@nowhere.invalid/db", "cannot be reached"),
        (f"postgresql://u@localhost:1/db?password={SECRET}&sslmode=wrong", "cannot be reached"),
        (f"postgresql://u:{SECRET}@localhost:1/db?colour=blue", "colour"),
        (f"postgresql://u:{SECRET}%zz@localhost:1/db", "cannot be reached"),
        (f"postgresql://u:{SECRET}@/db?schema=pg_temp", "cannot be the schema"),
        (f"postgresql://u:{SECRET}@/db?schema=a%22b", "cannot be the schema"),
        (f"postgresql://u:{SECRET}/db", "%XX"),
        (f"postgresql://u:a@{SECRET}@h/db", "%XX"),
        (f"postgresql://u:a/{SECRET}@h/db", "%XX"),
        (f"postgresql+asyncpg://u:{SECRET}@h/db", "driver"),
        (f"mysql://u:{SECRET}@h/db", "not supported"),
    ],
)
def test_no_password_is_ever_shown(run: Run, address: str, said: str) -> None:
    for words in (("list",), ("check", "--json")):
        code, out, err = run(*words, "--registry", address)
        assert code == 1
        assert said in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1
        assert SECRET not in out + err
    with pytest.raises(StemmaError) as raised:
        Registry(address).models()
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert SECRET not in without_password(address) or "@" not in address


@pytest.mark.parametrize(
    "words",
    [("list", "--registry", f"postgresql:/ada:{SECRET}@h/db"), ("list", "--registry", f"postgresql:ada:{SECRET}@h/db"),
     ("list", "--registry", f"PostgreSQL://ada:{SECRET}@h/db"), ("add", f"postgresql://ada:{SECRET}@h/db", "--json"),
     ("trace", "x", "--against", f"postgres://ada:{SECRET}@h/db"), ("verify", "edit", f"postgresql://a:{SECRET}@h/d")],
)  # fmt: skip
def test_an_address_that_is_misspelt_or_misplaced_is_not_repeated(
    run: Run, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a registry in a file of that name would be made
    code, out, err = run(*words)
    assert code in (1, 2)
    assert "address of a registry" in err
    assert SECRET not in out + err
    assert not list(tmp_path.iterdir())


def test_an_address_has_parts() -> None:
    given = registry_address(f"postgres://u:{SECRET}@[::1]:5433,other/db?sslmode=require&schema=team-1.b&x=a+b")
    assert isinstance(given, database.ServerAddress)
    assert given.conninfo == f"postgresql://u:{SECRET}@[::1]:5433,other/db?sslmode=require&x=a+b"
    assert (given.schema, given.where) == (
        "team-1.b", "postgres://u:***@[::1]:5433,other/db?sslmode=require&schema=team-1.b&x=a+b",
    )  # fmt: skip
    assert SECRET not in repr(given)
    assert without_password("postgresql://u@h/db?a=1&PassWord=x&sslpassword=y#z") == (
        "postgresql://u@h/db?a=1&PassWord=***&sslpassword=***"
    )
    assert without_password("/srv/me/r.db") == "/srv/me/r.db"


def test_a_wrong_user_password_or_database_is_one_sentence(postgresql: Server, run: Run) -> None:
    known = users(postgresql, "wrong")["owner"]
    for address, said in (
        (known.replace(SECRET, "another"), "the server refuses the user or the password"),
        (postgresql.address("wrong", f"stranger:{SECRET}"), "the server refuses the user or the password"),
        (postgresql.address("wrong", database="nowhere"), '"nowhere" does not exist'),
    ):
        code, _, err = run("trace", "x", "--registry", address)
        assert (code, len(err.splitlines())) == (1, 1)
        assert said in err


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, _, err = run("list", "--registry", "postgresql://h/db")
    assert code == 1
    assert "pip install 'stemma-ml[postgres]'" in err


# What is there already


def test_tables_of_another_program_are_left_alone(postgresql: Server) -> None:
    postgresql.do("CREATE SCHEMA foreign1", "CREATE TABLE foreign1.model (x int)", "CREATE SCHEMA empty1",
                  "CREATE SCHEMA foreign2", "CREATE TABLE foreign2.migration (number int, at text)")  # fmt: skip
    for name in ("foreign1", "foreign2"):
        with pytest.raises(UnusableRegistryError, match=r"tables of another program.*schema=NAME"):
            Registry(postgresql.address(name)).make_writable()
    with Registry(postgresql.address("empty1")) as registry:
        assert not registry.exists()
        enrol(registry, "m", 1)
        assert registry.check() == []


def test_a_server_that_will_not_do_is_refused(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    postgresql.do("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(UnusableRegistryError, match=r"encoding SQL_ASCII\. Use one with UTF8"):
        Registry(postgresql.address(database="ascii")).make_writable()
    monkeypatch.setattr(postgresql_server, "OLDEST", 99)
    with pytest.raises(UnusableRegistryError, match=r"is PostgreSQL \d+, and Stemma needs 99 or newer"):
        Registry(postgresql.address()).models()


def test_each_user_may_do_what_the_documents_say(
    postgresql: Server, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = users(postgresql, "roles")
    for what in ("reader", "nobody"):
        with pytest.raises(UnusableRegistryError, match=r"may not create one.*read-only"):
            Registry(may[what]).make_writable()
        assert Registry(may[what]).models() == ()
    with Registry(may["owner"]) as registry:
        enrol(registry, "m", 1)
    document = (Path(__file__).parents[1] / "docs" / "how-to" / "registry-on-a-server.md").read_text()
    granted = document.partition("-- after the first model\n")[2].partition("```")[0]
    granted = re.sub(r"\bstemma_(owner|writer|reader)\b", r"\1_roles", granted)
    granted = re.sub(r"\bSCHEMA stemma\b|\bstemma\.", lambda m: m[0].replace("stemma", "roles"), granted)
    grants = [text for text in granted.split(";") if text.strip()]
    assert len(grants) >= 5
    postgresql.do(*grants)
    with Registry(may["writer"]) as registry:
        record, tensors = describe(model("n", 2))
        large = sketch(record.digest, 2, extra=200_000)
        registry.add(record, tensors, [large], weights=lambda path: write_copy(model("n", 2), path))
        enrol(registry, "m", 3, replace=True)
        registry.put_evidence(Digest("a"), Digest("b"), SPEC, {"x": 1})
        registry.put_tree("lineage", {"x": 1}, {})
        assert registry.remove("n").name == "n"
        assert registry.check() == []
    with Registry(may["reader"]) as registry:
        assert [r.name for r in registry.models()] == ["m"]
        assert registry.check() == []
        for change in (registry.make_writable, lambda: registry.remove("m"), lambda: enrol(registry, "o", 4)):
            with pytest.raises(UnusableRegistryError, match="read-only; nothing was changed"):
                change()
    save_file(arrays_of(3), tmp_path / "asked.safetensors")
    for what in ("writer", "reader"):
        code, out, err = run("trace", tmp_path / "asked.safetensors", "--registry", may[what], "--json")
        assert (code, err) == (0, "")
        assert '"n_searched": 1' in out
    with pytest.raises(UnusableRegistryError, match="may not read the registry"):
        Registry(may["nobody"]).models()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("next", lambda connection: None)))
    for what in ("writer", "reader"):  # a new version of Stemma: only the owner may bring the tables up to date
        with pytest.raises(UnusableRegistryError, match=r"older schema .* may not migrate it"):
            Registry(may[what]).models()
    with Registry(may["owner"]) as registry:
        assert [r.name for r in registry.models()] == ["m"]


def test_a_session_that_may_not_write_reads(postgresql: Server) -> None:
    with Registry(postgresql.address("standby")) as registry:
        enrol(registry, "m", 1)
    with Registry(postgresql.address("standby") + "&options=-c%20default_transaction_read_only%3Don") as registry:
        assert registry.get("m").name == "m"
        with pytest.raises(UnusableRegistryError, match="read-only; nothing was changed"):
            registry.remove("m")


# Several at once


def open_writable(address: str) -> None:
    with Registry(address) as registry:
        registry.make_writable()


def test_a_migration_is_applied_once_whoever_comes_first(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgresql.address()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:2])
        open_writable(address)
    at_once = [threading.Thread(target=open_writable, args=(address,)) for _ in range(6)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    with Registry(address) as registry:
        assert rows(registry, "SELECT number FROM migration ORDER BY 1") == [
            (i + 1,) for i in range(len(schema.MIGRATIONS))
        ]
        enrol(registry, "m", 1)
        assert registry.check() == []


def test_readers_wait_for_nobody_and_writers_take_turns(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgresql.address()
    with Registry(address) as registry:
        enrol(registry, "m", 1)
    monkeypatch.setattr(postgresql_server, "BUSY_SECONDS", 1.0)
    writer, other, reader = storage.at(address)[1], Registry(address), Registry(address)
    with writer.writing() as connection:
        connection.execute(schema.live.delete())
        start = time.monotonic()
        assert [r.name for r in reader.models()] == ["m"]
        assert reader.check() == [] or time.monotonic() - start < 30
        assert time.monotonic() - start < 30
        with pytest.raises(UnusableRegistryError, match="locked by another process"):
            other.remove("m")
        another = Registry(postgresql.address())  # another registry of the same database is not locked
        assert enrol(another, "x", 1).name == "x"
        another.close()
        connection.rollback()
    assert other.remove("m").name == "m"
    for one in (writer, other, reader):
        one.close()


def test_a_reader_sees_one_state(registry: Registry) -> None:
    for i in range(3):
        enrol(registry, f"m{i}", i)
    found = registry.fingerprints(SPEC)
    first = next(found)
    enrol(registry, "m9", 9)
    registry.remove("m1")
    assert len({first.model, *(f.model for f in found)}) == 3
    assert len(list(registry.fingerprints(SPEC))) == 3


# Crashes


def hold_a_transaction(address: str) -> None:
    with storage.at(address)[1].writing() as connection:
        connection.execute(schema.live.delete())
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        time.sleep(60)


def started(call: str) -> "subprocess.Popen[str]":
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_registry_server as t; {call}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_writer_killed_in_its_transaction_leaves_nothing(registry: Registry) -> None:
    enrol(registry, "m", 1)
    with started(f"t.hold_a_transaction({registry.where!r})") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "holding\n"
        writer.send_signal(signal.SIGKILL)
    assert enrol(registry, "n", 2).name == "n"  # waits until the server has noticed
    assert [r.name for r in registry.models()] == ["m", "n"]
    assert registry.check() == []


def enrol_until_told(address: str, prefix: str) -> None:
    """Enrols one model after another and says which are stored; an error of the registry is said and not the end."""
    with Registry(address) as registry:
        for seed in range(10_000):
            m = model(f"{prefix}{seed}", seed)
            record, tensors = describe(m)
            while True:
                try:
                    registry.add(record, tensors, [sketch(record.digest, seed, 9_000)],
                                 weights=lambda path, m=m: write_copy(m, path))  # fmt: skip
                except UnusableRegistryError as e:
                    sys.stdout.write(f"error {e}\n")
                    sys.stdout.flush()
                    time.sleep(0.1)
                    continue
                break
            sys.stdout.write(f"{record.name}\n")
            sys.stdout.flush()


@pytest.mark.slow
def test_a_server_killed_in_mid_write_loses_and_doubles_nothing(postgresql: Server) -> None:
    """One process of the server is killed, then all at once, twice; the writers go on with the same connections."""
    address = postgresql.address()
    open_writable(address)
    writers = [started(f"t.enrol_until_told({address!r}, 'w{i}-')") for i in range(3)]
    said: list[list[str]] = [[] for _ in writers]

    def listen(i: int) -> None:
        for line in writers[i].stdout or ():
            said[i].append(line.rstrip("\n"))

    ears = [threading.Thread(target=listen, args=(i,)) for i in range(len(writers))]
    for ear in ears:
        ear.start()

    def go_on() -> None:
        """Wait until every writer has stored some more."""
        before, deadline = [len(lines) for lines in said], time.monotonic() + 60
        while any(len(lines) < n + 5 for lines, n in zip(said, before, strict=True)) and time.monotonic() < deadline:
            time.sleep(0.05)

    go_on()
    with contextlib.closing(postgresql.connect()) as c:
        [(victim,)] = c.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'stemma' LIMIT 1").fetchall()
        os.kill(victim, signal.SIGKILL)
    for _ in range(2):
        go_on()
        postgresql.stop(at_once=True)
        time.sleep(0.5)
        postgresql.start()
    go_on()
    for writer in writers:
        writer.kill()
        writer.wait()
    for ear in ears:
        ear.join()
    errors = {line for lines in said for line in lines if line.startswith("error")}
    assert errors
    assert all("was lost" in e or "cannot be reached" in e for e in errors), errors
    stored = [line for lines in said for line in lines if not line.startswith("error")]
    assert len(stored) == len(set(stored)) > 10
    with Registry(address) as registry:
        names = [r.name for r in registry.models()]
        assert set(stored) <= set(names)
        assert len(names) - len(stored) <= len(writers)  # a commit whose answer was lost, of each
        assert len(rows(registry, "SELECT 1 FROM model")) == len(names)
        assert all(registry.weights(r) is not None for r in registry.models()[:5])
        assert registry.check() == []


def test_the_same_connections_serve_after_a_restart(postgresql: Server) -> None:
    with Registry(postgresql.address()) as registry:
        enrol(registry, "l", 0)
        enrol(registry, "m", 1)
        found = registry.fingerprints(SPEC)
        next(found)
        postgresql.stop(at_once=True)
        with pytest.raises(UnusableRegistryError, match="cannot be reached"):
            registry.models()
        with pytest.raises(UnusableRegistryError, match="was lost"):
            next(found)
        postgresql.start()
        assert [r.name for r in registry.models()] == ["l", "m"]
        enrol(registry, "n", 2)
        assert registry.check() == []


# Blobs and names


def test_large_blobs_are_in_pieces_and_fetched_once(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(server_blobs, "PIECE", 1000)
    record, tensors = describe(model("m", 1))
    content = np.random.default_rng(0).bytes(123_456)
    stored = registry.add(record, tensors, weights=lambda path: path.write_bytes(content)).record
    assert rows(registry, "SELECT count(*), max(number) FROM blob_piece") == [(124, 123)]
    path = registry.weights(stored)
    assert path is not None
    assert path.read_bytes() == content
    assert path == registry.weights(stored)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [path]
    path.unlink()
    tamper(registry, "UPDATE blob_piece SET content = ? WHERE number = 77", b"x" * 1000)
    assert [f.kind for f in registry.check()] == ["blob"]
    with pytest.raises(RegistryError, match="was altered"):
        registry.weights(stored)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]

    for digest in ("sha256:../../../../etc/passwd", "/etc/passwd", "x"):  # a server that means harm
        with pytest.raises(RegistryError, match="is not a digest"):
            registry.weights(replace(stored, weights=Digest(digest)))

    def ends_badly() -> None:
        with registry._database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM blob_piece")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        ends_badly()
    assert rows(registry, "SELECT count(*) FROM blob_piece") == [(124,)]


def test_hostile_names_are_stored_or_refused_and_stop_nothing(registry: Registry, tmp_path: Path, run: Run) -> None:
    kept = ["<script>alert(1)</script>", "a' OR 1=1; DROP TABLE model; --", "%s %(x)s :y", "Ünï/模型", "b" * 2000]
    for i, name in enumerate(kept):
        assert enrol(registry, name, i).name == name
        assert registry.get(name).name == name
    assert [r.name for r in registry.models()] == sorted(kept)
    rng = np.random.default_rng(0)
    endless = "".join(chr(c) for c in rng.integers(0x4E00, 0x9FFF, 10_000))
    with pytest.raises(RegistryError, match="too long for a registry on a server") as raised:
        enrol(registry, endless, 9)
    assert not isinstance(raised.value, UnusableRegistryError)  # the next model is enrolled all the same
    for name in ("\x1b[31m", "a\u202eb", "a\nb"):
        with pytest.raises(RegistryError, match="not a valid model name"):
            enrol(registry, name, 9)
    for name in ("nul\0byte", "lone\udcff"):
        with pytest.raises((UnknownNameError, RegistryError)):
            registry.get(name)
    folder = tmp_path / "m"
    folder.mkdir()
    for i, name in enumerate(["x.safetensors", "-rf.safetensors", "a&b=c#d?e.safetensors"]):
        save_file(arrays_of(i), folder / name)
    assert run("add", folder, "--registry", registry.where)[0] == 0
    assert len(registry.models()) == len(kept) + 3
    assert registry.check() == []


# Migration


def filled(registry: Registry, n: int = 12) -> None:
    for i in range(n):
        enrol(registry, f"m{i}", i)
    enrol(registry, "m3", 77, replace=True)
    registry.remove("m4")
    m = model("kept", 5)
    record, tensors = describe(m)
    registry.add(record, tensors, [replace(sketch(record.digest, 5, extra=60_000))],
                 weights=lambda path: write_copy(m, path))  # fmt: skip
    registry.put_evidence(Digest("a"), Digest("b"), SPEC, {"x": [1, None, "é"]})
    registry.put_tree("lineage", {"x": 1}, {"alpha": 0.01})


def all_rows(registry: Registry) -> dict[str, list]:
    with registry._database.reading() as connection:
        tables = (t for t in schema.metadata.sorted_tables if t is not schema.migration)
        return {t.name: sorted(map(tuple, connection.execute(t.select())), key=repr) for t in tables}


def test_a_registry_goes_to_a_server_and_back(postgresql: Server, tmp_path: Path, run: Run) -> None:
    file, back, address = tmp_path / "a.db", tmp_path / "b.db", postgresql.address()
    with Registry(file) as registry:
        filled(registry)
    code, out, err = run("registry", "migrate", file, address)
    assert (code, err) == (0, "")
    assert "are the same in both places" in out
    assert run("registry", "migrate", address, back, "--json")[0] == 0
    with Registry(file) as a, Registry(address) as b, Registry(back) as c:
        assert all_rows(a) == all_rows(b) == all_rows(c)
        for r in (a, b, c):
            assert r.check() == []
            path = r.weights(r.get("kept"))
            assert path is not None
            assert path.read_bytes() == a.weights(a.get("kept")).read_bytes()
            for seed, name in ((91, "new"), (92, "newer")):  # numbers go on after those that were copied
                assert enrol(r, name, seed).name == name
            assert r.check() == []
    for source, target, kind, said in (
        (file, address, RegistryError, "is not empty"),
        (file, file, MisuseError, "given twice"),
        (tmp_path / "none.db", postgresql.address(), UnusableRegistryError, "there is no registry at"),
    ):
        with pytest.raises(kind, match=said):
            copy_registry(str(source), str(target))
    assert not (tmp_path / "none.db").exists()


def test_an_interrupted_copy_leaves_nothing_and_is_made_again(postgresql: Server, tmp_path: Path) -> None:
    with Registry(tmp_path / "a.db") as registry:
        filled(registry, 6)
    with Registry(tmp_path / "a.db") as registry:
        for target in (postgresql.address(), str(tmp_path / "b.db")):

            def stop(what: str, done: int, total: int | None) -> None:
                if what == "copying sketch_bits":
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                copy_registry(str(registry.path), target, stop)
            with Registry(target) as copy:
                assert not any(all_rows(copy).values())
                assert copy.check() == []
            copy_registry(str(registry.path), target)
            with Registry(target) as copy:
                assert all_rows(copy) == all_rows(registry)
                assert copy.check() == []


def test_a_damaged_blob_is_not_copied(postgresql: Server, tmp_path: Path) -> None:
    with Registry(tmp_path / "a.db") as registry:
        filled(registry, 5)
        kept = registry.weights(registry.get("kept"))
    assert kept is not None
    target = postgresql.address()
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + b"x")
    with pytest.raises(RegistryError, match="was altered; nothing was copied"):
        copy_registry(tmp_path / "a.db", target)
    kept.unlink()
    with pytest.raises(RegistryError, match="is missing; nothing was copied"):
        copy_registry(tmp_path / "a.db", target)
    with Registry(target) as copy:
        assert not any(all_rows(copy).values())


# Commands


@pytest.mark.slow
def test_every_command_takes_a_server(
    postgresql: Server, models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = users(postgresql, "commands")["owner"]
    monkeypatch.setenv("STEMMA_REGISTRY", address)
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shown = []

    def ask(*words: object, code: int = 0) -> str:
        for given in (words, (*words, "--json")):
            found, out, err = run(*given)
            assert found == code, (given, err)
            shown.append(out + err)
        return shown[-2]

    assert "There is no registry at postgresql://owner_commands:***@" in ask("list")
    assert "there is no registry" in ask("check", code=1)
    assert "3 added" in ask("add", models, "--keep-weights")
    assert "3 models" in ask("list")
    assert "weights       sha256:" in ask("show", "a")
    assert "is a copy of a" in ask("trace", tmp_path / "copy.safetensors")
    assert "related" in ask("trace", tmp_path / "child.safetensors")
    save_file(child_of(arrays_of(1), 3), models / "later.safetensors")
    assert "later" in ask("scan", models, "--add")
    assert "4 models" in ask("lineage")
    assert "OK: 4 models" in ask("check")
    (models / "a.safetensors").unlink()
    assert "is a copy of a" in ask("trace", tmp_path / "copy.safetensors")  # compared with the stored copy
    for form in ("cyclonedx", "sarif", "model-card"):
        assert run("export", "later", "--format", form)[0] == 0
        shown.append(run("export", "later", "--format", form)[1])
    assert run("remove", "stranger-2")[0] == 0
    assert "3 models" in ask("list")
    assert "stemma list" in ask("list", "--search", "nothing like it")
    assert not [text for text in shown if SECRET in text]


@pytest.mark.slow
def test_the_atlas_shows_a_server_and_no_password(
    postgresql: Server, models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the web extra is not installed")
    from starlette.testclient import TestClient

    from stemma.web.app import create_app
    from stemma.web.settings import Settings

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    address = users(postgresql, "atlas")["owner"]
    assert run("add", models, "--registry", address)[0] == 0
    assert run("lineage", "--registry", address)[0] == 0
    settings = Settings(registry=address)
    with TestClient(create_app(settings), base_url=f"http://127.0.0.1:{settings.port}") as client:
        pages = [client.get(path) for path in ("/", "/models", "/models/a", "/tree", "/trace")]
        asked = client.post("/ask", data={"kind": "compare", "a": "a", "b": "stranger"})
        assert asked.status_code == 200
        for _ in range(600):
            answer = client.get(str(asked.url), headers={"accept": "application/json"})
            if answer.json().get("state") in (None, "done", "failed"):
                break
            time.sleep(0.1)
        assert "independent" in client.get(str(asked.url)).text
        pages += [asked, answer, client.get(str(asked.url))]
    assert {page.status_code for page in pages} <= {200, 404}
    assert not [page for page in pages if SECRET in page.text]
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any(path.name == "job.json" for path in left)
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]


def same_name(address: str, seed: int) -> None:
    with Registry(address) as registry:
        for i in range(15):
            with contextlib.suppress(RegistryError):
                enrol(registry, f"contested{i}", 100 * seed + i)
            enrol(registry, f"replaced{i % 3}", 100 * seed + i, replace=True)


@pytest.mark.slow
def test_writers_that_want_the_same_names_leave_one_model_each(postgresql: Server) -> None:
    address, context = postgresql.address(), multiprocessing.get_context("spawn")
    workers = [context.Process(target=same_name, args=(address, i)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0] * 4
    with Registry(address) as registry:
        assert len(registry.models()) == 18
        firsts = rows(registry, "SELECT name, count(*) FROM model WHERE name LIKE 'contested%' GROUP BY 1")
        assert {n for _, n in firsts} == {1}
        assert registry.check() == []
