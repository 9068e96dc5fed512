"""Registries that are exchanged: what is written, what is believed, and what a hostile file can do."""

import gzip
import http.server
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stemma.application.export import ExportRequest
from stemma.application.export import export as export_findings
from stemma.application.trace import TraceRequest, trace
from stemma.checkpoints.privacy import Scrubber, public_source
from stemma.cli import main
from stemma.errors import ExchangeError, RegistryError, UnknownNameError
from stemma.networks.load import from_arrays
from stemma.registry import Registry, schema
from stemma.registry.exchange import download, sections, statements
from stemma.registry.exchange.merging import Acceptance
from stemma.registry.ingest import fingerprinters
from stemma.registry.model_records import describe
from stemma.registry.records import ModelRecord
from stemma.types import RelationKind
from stemma.verification.signatures.keys import PrivateKey
from stemma.workspace import Workspace

pytestmark = pytest.mark.anywhere

ANY = Acceptance()


def arrays(seed: int, layers: int = 3, width: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.weight": rng.standard_normal((width, width)).astype("f4") for i in range(layers)}


def near(base: Mapping[str, np.ndarray], seed: int, much: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: w + much * rng.standard_normal(w.shape).astype("f4") for n, w in base.items()}


def enrol(
    registry: Registry, name: str, weights: Mapping[str, np.ndarray], license: str | None = None, **more: Any
) -> ModelRecord:
    """A model with its weight sketch, as `add` enrols it, without a file."""
    model = replace(from_arrays(dict(weights), name), **more.pop("with_", {}))
    record, tensors = describe(model, license)
    return registry.add(record, tensors, [f(model) for f in fingerprinters()], **more).record


def enrol_bare(registry: Registry, name: str, seed: int, **more: Any) -> None:
    """A model of one tiny tensor and no sketch: for tests of many."""
    record, tensors = describe(from_arrays({"w": np.full((2, 2), seed, "f4")}, name))
    registry.add(record, tensors, **more)


@pytest.fixture
def a(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "a.db") as registry:
        yield registry


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "b.db") as registry:
        yield registry


def told(registry: Registry) -> set[tuple[str, str]]:
    """Everything that others told a registry, as a set: origin and digest."""
    with registry._database.reading() as c:
        o, s = schema.origin.c, schema.statement.c
        return {tuple(row) for row in c.execute(sa.select(o.identity, s.digest).where(o.id == s.origin_id))}


def view(registry: Registry) -> dict[str, str]:
    """Names here and digests of the models that others tell of."""
    return {k.name: k.record.digest for k in registry.known.models()}


def dump(registry: Registry) -> list[str]:
    registry.make_writable()
    with registry._database.reading() as c:
        return [line for line in c.connection.driver_connection.iterdump() if "sqlite_sequence" not in line]  # ty: ignore


def key_pair(folder: Path, name: str, kind: str = "ed25519") -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def run(*typed: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in typed])
    return int(left.value.code or 0)


def document(capsys: pytest.CaptureFixture[str], *typed: object) -> tuple[dict[str, Any], int]:
    capsys.readouterr()
    code = run(*typed, "--json")
    out = capsys.readouterr().out
    return json.loads(out), code


# What is written


def test_an_export_holds_no_weights_no_path_and_no_password_of_the_exporter(tmp_path: Path, a: Registry) -> None:
    home = tmp_path / "Alice Smith" / "secret project"
    home.mkdir(parents=True)
    base = arrays(1, 4, 32)
    for name, weights in (("one", base), ("two", near(base, 2))):
        save_file(
            weights, home / f"{name}.safetensors", metadata={"trained_on": str(home / "data set"), "license": "mit"}
        )
    workspace = Workspace(a)
    assert all(r.error is None for r in workspace.add([home], license="mit"))
    workspace.trace(workspace.resolve("one"))
    enrol(
        a,
        f"{home}/as its path",
        arrays(9),
        with_={"config": {"_name_or_path": f"{home}/x", "k": "https://u:p@h/y?t=1"}},
    )
    a.exchange.export(tmp_path / "a.reg", name="acme")
    text = gzip.decompress((tmp_path / "a.reg").read_bytes()).decode()
    for secret in ("Alice", "secret project", str(tmp_path), "u:p", "t=1", "/tmp"):
        assert secret not in text
    raw = base["layers.0.weight"].tobytes()
    assert raw[:64] not in (tmp_path / "a.reg").read_bytes()
    assert {"one", "two"} < set(view_of_export(tmp_path / "a.reg"))
    assert '"source":"one.safetensors"' in text
    assert '"kind":"evidence"' in text
    assert "as its path~" in text


def view_of_export(path: Path) -> dict[str, Any]:
    found = {}
    with path.open("rb") as file:
        for reader in sections.sections(file):
            for _, text in reader.lines():
                one = statements.parse(text)
                found[one.key] = one.body
    return found


def test_paths_are_recognised_wherever_they_stand() -> None:
    scrub = Scrubber.of(["/data/my models/x.bin", "C:\\Users\\Bob Lee\\y.bin"], "/srv/bob").text
    said = {
        "'x' is no longer at /srv/bob/zoo/x.safetensors": "'x' is no longer at x.safetensors",
        "read /data/my models/x.bin, not /srv/y": "read x.bin, not y",
        "C:\\Users\\Bob Lee\\y.bin and \\\\host\\share\\z": "y.bin and z",
        "file:///etc/passwd; ~/k": "passwd; k",
        "see https://u:p@hub.example/a/b?token=1 and hf:org/name": "see https://hub.example/a/b and hf:org/name",
        "either/or, 1/2, layers/0/weight": "either/or, 1/2, layers/0/weight",
    }
    assert {text: scrub(text) for text in said} == said
    assert public_source("hf:org/name@main") == "hf:org/name@main"
    assert public_source("https://u:p@h.org/x.safetensors?k=1") == "https://h.org/x.safetensors"
    inner = ("http://127.0.0.1:8000", "https://10.0.0.5", "http://[fd00::1]", "https://models", "http://m.corp:80")
    assert {public_source(f"{host}/secret-project/x.bin?k=1") for host in inner} == {"x.bin"}
    assert scrub("read https://u:p@models.internal/secret/x.bin, then more") == "read x.bin, then more"
    assert public_source("/srv/bob/folder/") == "folder"


def test_hosts_and_paths_on_other_machines_are_left_out_of_texts() -> None:
    clean = Scrubber.of((), "/srv/alice").text
    for told in (
        "nas01:/export/alice/x", "alice@gpu01:/data/x", "10.0.0.3:/vol/alice/x", "git@git.corp:alice/x",
        "http://gitlab.intern/alice/x", "HTTP://BUILD.MGMT/alice/x", "http://127.1/alice/x", "path:/srv/alice/x",
    ):  # fmt: skip
        assert clean(f"made from {told}, then tuned") == "made from x, then tuned", told
    for told in ("hf:org/name", "git@github.com:org/name.git", "sha256:ab/cd", "https://h.org:8080/x", "12:30/13:30"):
        assert clean(f"made from {told}, then tuned") == f"made from {told}, then tuned"


def test_equal_registries_give_equal_bytes_and_a_signature_changes_no_statement(
    tmp_path: Path, a: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        enrol(a, f"m{i}", arrays(i))
    files = [tmp_path / f"{i}.reg" for i in range(4)]
    a.exchange.export(files[0], name="acme")
    a.exchange.export(files[1])
    private, _ = key_pair(tmp_path, "k")
    from stemma.verification.signatures.keys import read_private_key

    one = a.exchange.export(files[2], key=read_private_key(private))
    two = a.exchange.export(files[3], key=read_private_key(private))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[2].read_bytes() == files[3].read_bytes()
    assert one == two
    assert (
        gzip.decompress(files[2].read_bytes()).splitlines()[:-1]
        == gzip.decompress(files[0].read_bytes()).splitlines()[:-1]
    )
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert a.exchange.export(files[1]).created == "1970-01-01T00:00:00+00:00"


@pytest.mark.slow
def test_a_model_of_ten_thousand_tensors_takes_at_most_64_kib_and_its_cut_list_is_not_taken_for_proof(
    tmp_path: Path, a: Registry, b: Registry
) -> None:
    rng = np.random.default_rng(0)
    weights = {
        f"model.layers.{i // 10}.mlp.experts.{i % 10}.up_proj.weight": rng.standard_normal((1, 2)).astype("f4")
        for i in range(10_000)
    }
    weights["embed.weight"] = rng.standard_normal((64, 64)).astype("f4")
    long = {"model_type": "x", "blob": rng.bytes(40_000).hex()}
    record = enrol(a, "moe", weights, "mit", with_={"config": long, "claims": {"note": rng.bytes(40_000).hex()}})
    written = a.exchange.export(tmp_path / "a.reg", name="acme")
    assert (tmp_path / "a.reg").stat().st_size <= 64 << 10
    assert {"lists of tensors that were cut", "claims that are too long", "configurations that are too long"} == set(
        written.left_out
    )
    b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    (known,) = b.known.models()
    assert (known.complete, known.record.tensors, known.record.digest) == (False, 10_001, record.digest)
    assert known.sketch is not None
    assert "embed.weight" in known.opened().tensors
    shared = b.known.nearest(record.digest, record.names_free_digest, [], None, 4)
    assert [k.name for k in shared] == ["moe@acme"]


# Merging


names = st.sampled_from(["resnet", "vit", "bert"])
acts = st.one_of(
    st.tuples(st.just("add"), names, st.integers(1, 4)),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("export")),
)
changes = st.lists(st.tuples(st.integers(0, 2), acts), min_size=4, max_size=14)


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes, st.randoms(use_true_random=False))
@pytest.mark.slow
def test_merging_is_commutative_associative_and_idempotent(
    tmp_path_factory: pytest.TempPathFactory, done: list[Any], random: Any
) -> None:
    """Two examples; the slow test has more."""
    check_merging(tmp_path_factory.mktemp("merge"), done, random)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes, st.randoms(use_true_random=False))
def test_merging_more_often(tmp_path_factory: pytest.TempPathFactory, done: list[Any], random: Any) -> None:
    """The same with more histories."""
    check_merging(tmp_path_factory.mktemp("merge"), done, random)


def check_merging(folder: Path, done: list[Any], random: Any) -> None:
    """Whatever three registries do and export, and in whatever order and how often others import it: one union."""
    parties = [Registry(folder / f"{i}.db") for i in range(3)]
    files: list[Path] = []

    def export(who: int) -> None:
        path = folder / f"{len(files)}.reg"
        parties[who].exchange.export(path, name=f"r{who}")
        files.append(path)

    for who, change in done:
        if change[0] == "add":
            enrol_bare(parties[who], change[1], change[2], replace=True)
        elif change[0] == "export":
            export(who)
        elif any(m.name == change[1] for m in parties[who].models()):
            parties[who].remove(change[1])
    for who in range(3):
        export(who)
    one, two, three = (Registry(folder / f"{n}.db") for n in ("one", "two", "three"))
    for path in files:
        one.exchange.import_from(str(path), ANY)
    shuffled = [*files, *random.sample(files, k=random.randint(0, len(files)))]
    random.shuffle(shuffled)
    for path in shuffled:
        two.exchange.import_from(str(path), ANY)
    joined = folder / "joined.reg"
    joined.write_bytes(b"".join(path.read_bytes() for path in random.sample(files, k=len(files))))
    three.exchange.import_from(str(joined), ANY)
    assert told(one) == told(two) == told(three)
    expected = {f"{m.name}@r{i}": m.digest for i, party in enumerate(parties) for m in party.models()}
    assert view(one) == view(two) == view(three) == expected
    for who, party in enumerate(parties):  # and exchanged among each other, all three know the union
        own = {f"{m.name}@r{who}": m.digest for m in party.models()}
        for path in files[-3:]:
            party.exchange.import_from(str(path), ANY)
        assert view(party) | own == expected
    assert [r.check() for r in (one, two, three)] == [[], [], []] or all(f.kind == "source-gone" for f in one.check())
    for registry in (*parties, one, two, three):
        registry.close()


def test_changed_on_both_sides_and_imported_again_is_the_union(tmp_path: Path, a: Registry, b: Registry) -> None:
    to_b, to_a = tmp_path / "a.reg", tmp_path / "b.reg"
    enrol(a, "resnet", arrays(1), "mit")
    enrol(b, "resnet", arrays(2), "gpl-3.0")
    a.exchange.export(to_b, name="acme")
    b.exchange.export(to_a, name="bell")
    b.exchange.import_from(str(to_b), ANY)
    a.exchange.import_from(str(to_a), ANY)
    assert [m.name for m in a.models()] == [m.name for m in b.models()] == ["resnet"]
    assert (set(view(a)), set(view(b))) == ({"resnet@bell"}, {"resnet@acme"})
    enrol(a, "vit", arrays(3))
    a.remove("resnet")
    enrol(b, "bert", arrays(4))
    enrol(b, "resnet", arrays(2), "apache-2.0", replace=True)  # another licence for the same weights
    a.exchange.export(to_b)
    b.exchange.export(to_a)
    assert b.exchange.import_from(str(to_b), ANY)[0].new == 2
    assert a.exchange.import_from(str(to_a), ANY)[0].new == 2
    union = {"vit@acme", "resnet@bell", "bert@bell"}
    assert {f"{m.name}@acme" for m in a.models()} | set(view(a)) == union
    assert {f"{m.name}@bell" for m in b.models()} | set(view(b)) == union
    assert next(k for k in a.known.models() if k.name == "resnet@bell").record.license == "apache-2.0"
    assert [m.license for m in b.models() if m.name == "resnet"] == ["apache-2.0"]  # a's tombstone is a's alone
    assert b.exchange.import_from(str(to_b), ANY)[0].new == 0
    again = b.exchange.import_from(str(to_a), ANY)[0]
    assert (again.own, again.new) == (True, 0)


def test_a_part_may_be_exported_and_names_here_stay_as_they_are(tmp_path: Path, a: Registry, b: Registry) -> None:
    for i, name in enumerate(("one", "two")):
        enrol(a, name, arrays(i))
    written = a.exchange.export(tmp_path / "a.reg", ["two"], name="acme")
    assert (written.complete, written.statements) == (False, 1)
    enrol(b, "two@acme", arrays(7))
    b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    assert view(b) == {"two@acme@acme": a.get("two").digest}
    workspace = Workspace(b)
    assert workspace.resolve("two@acme").digest == b.get("two@acme").digest
    assert workspace.resolve("two@acme@acme").digest == a.get("two").digest
    with pytest.raises(UnknownNameError, match="three"):
        a.exchange.export(tmp_path / "c.reg", ["three"])
    assert not (tmp_path / "c.reg").exists()


# Signatures


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
@pytest.mark.first(1)
def test_the_key_is_pinned_and_an_impostor_is_refused(
    tmp_path: Path, a: Registry, b: Registry, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, mine_public = key_pair(tmp_path, "mine", kind)
    other, other_public = key_pair(tmp_path, "other", kind)
    enrol(a, "resnet", arrays(1))
    export, here = ("registry", "export", "--registry", a.where), ("--registry", b.where)
    files = {name: tmp_path / f"{name}.reg" for name in ("mine", "other", "none", "impostor")}
    assert run(*export, files["mine"], "--name", "acme", "--sign", mine) == 0
    assert run(*export, files["other"], "--sign", other) == 0
    assert run(*export, files["none"]) == 0
    with Registry(tmp_path / "evil.db") as evil:
        enrol(evil, "resnet", arrays(5))
        evil.exchange.export(files["impostor"], name="acme")
    before = dump(b)
    for refused in ("none", "other"):
        assert run("registry", "import", files[refused], "--public-key", mine_public, *here) == 1
    assert before == dump(b)
    assert run("registry", "import", files["mine"], *here) == 0
    assert "trusted on first use" in capsys.readouterr().out
    before = dump(b)
    for refused, why in (("none", "is not signed"), ("other", "signed with the key"), ("impostor", "--as NAME")):
        assert run("registry", "import", files[refused], *here) == 1
        assert why in capsys.readouterr().err.replace("\n", " ")
    assert before == dump(b)
    assert run("registry", "import", files["impostor"], "--as", "other-acme", *here) == 0
    found, _ = document(capsys, "registry", "known", *here)
    assert [(r["registry"], r["signed_by"] is None) for r in found["registries"]] == [
        ("acme", False),
        ("other-acme", True),
    ]
    assert run("registry", "import", files["other"], "--public-key", other_public, *here) == 0  # the owner confirmed it
    assert run("registry", "import", files["mine"], *here) == 1
    found, _ = document(capsys, "show", "resnet@acme", *here)
    pinned = PrivateKey(
        __import__("cryptography.hazmat.primitives.serialization", fromlist=["x"]).load_pem_private_key(
            other.read_bytes(), None
        )
    )
    assert found["known_from"]["signed_by"] == pinned.public.identity


def test_a_new_key_drops_what_was_told_under_the_old_one(
    tmp_path: Path, a: Registry, b: Registry, good: dict[str, Any]
) -> None:
    """Somebody speaks in the name of a registry, with revisions that no later statement of its owner can reach."""
    from stemma.verification.signatures.keys import read_private_key

    enrol(a, "vit", arrays(3))
    private, _ = key_pair(tmp_path, "k")
    owner = a.exchange.export(tmp_path / "a.reg", name="acme", key=read_private_key(private))
    forged = changed(changed(good, "revision", to=[1 << 61, 0, 0]), "record", "license", to="agpl-3.0")
    (tmp_path / "x.reg").write_bytes(sealed(canonical(forged), header={"identity": owner.identity, "name": "acme"}))
    b.exchange.import_from(str(tmp_path / "x.reg"), ANY)
    with pytest.raises(ExchangeError, match="was not signed until now"):
        b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    b.exchange.import_from(str(tmp_path / "a.reg"), Acceptance((owner.signed_by or "",)))
    assert {k.name: (k.record.license, k.told.signed_by) for k in b.known.models()} == {
        "resnet@acme": ("mit", owner.signed_by), "vit@acme": (None, owner.signed_by)
    }  # fmt: skip
    with pytest.raises(ExchangeError, match="is not signed"):
        b.exchange.import_from(str(tmp_path / "x.reg"), ANY)
    assert b.check() == [] or {f.kind for f in b.check()} == {"source-gone"}


def test_no_byte_can_be_changed_unseen(tmp_path: Path, a: Registry, b: Registry) -> None:
    """Each byte of a signed file, header, padding and seal included; and every place where it may be cut."""
    from stemma.verification.signatures.keys import read_private_key

    private, _ = key_pair(tmp_path, "k")
    enrol_bare(a, "resnet", 1)
    a.exchange.export(tmp_path / "a.reg", name="acme", key=read_private_key(private))
    whole, unseen = (tmp_path / "a.reg").read_bytes(), []
    assert sections.survey(BytesIO(whole))[0].signed_by
    for at in range(len(whole)):
        for bit in (1, 128) if at % 3 else (1, 2, 4, 8, 16, 32, 64, 128):
            changed = bytearray(whole)
            changed[at] ^= bit
            try:
                sections.survey(BytesIO(bytes(changed)))
                unseen.append((at, bit))
            except ExchangeError:
                pass
    for cut in range(len(whole)):
        with pytest.raises(ExchangeError):
            sections.survey(BytesIO(whole[:cut]))
    for more in (b"\0", b"{}", whole[:-1]):
        with pytest.raises(ExchangeError):
            sections.survey(BytesIO(whole + more))
    assert unseen == []
    assert len(sections.survey(BytesIO(whole + whole))) == 2
    assert told(b) == set()


# Hostile files


def sealed(*lines: bytes, header: Mapping[str, Any] | None = None, seal: Mapping[str, Any] | None = None) -> bytes:
    """A file with right digests around whatever somebody wrote."""
    first = {"format": "stemma.registry", "version": 1, "identity": "ab" * 16, "name": "evil", "stemma_version": "1",
             "created": "", "complete": True, **(header or {})}  # fmt: skip
    text = canonical(first) + b"\n"
    for line in lines:
        text += b'["%b",%b]\n' % (sha256(line).hexdigest().encode(), line)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    member = sections.HEAD + packer.compress(text) + packer.flush()
    member += (zlib.crc32(text)).to_bytes(4, "little") + (len(text) & 0xFFFFFFFF).to_bytes(4, "little")
    end = {
        "statements": len(lines),
        "left_out": {},
        "sha256": sha256(member).hexdigest(),
        "signature": None,
        **(seal or {}),
    }
    return member + sections._stored(canonical(end) + b"\n")


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


@pytest.fixture
def good(a: Registry, tmp_path: Path) -> dict[str, Any]:
    """The body of a good statement about a model."""
    enrol(a, "resnet", arrays(1), "mit")
    a.exchange.export(tmp_path / "good.reg", name="acme")
    return view_of_export(tmp_path / "good.reg")["resnet"]


def changed(body: Any, *path: Any, to: Any) -> Any:
    if not path:
        return to
    copy = list(body) if isinstance(body, list) else dict(body)
    copy[path[0]] = changed(copy[path[0]] if path[0] in copy or isinstance(copy, list) else None, *path[1:], to=to)
    return copy


def hostile_bodies(good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name in ("x" * 10_000, "\x1b[31mred", "two\nlines", "\u202eabc", "", " x", 5, None, ["x"], {"x": 1}):
        yield f"name {str(name)[:10]!r}", canonical(changed(changed(good, "key", to=name), "record", "name", to=name))
    wrong = ["x", -1, 1.5, None, True, 1 << 70, [], {}, "sha256:" + "0" * 64]
    for path in (("record", "tensors"), ("record", "parameters"), ("record", "digest"), ("record", "claims"),
                 ("record", "dtypes"), ("record", "added_at"), ("tensors",), ("tensors", "shapes"),
                 ("tensors", "digests"), ("tensors", "names"), ("tensors", "uncounted"), ("sketches",),
                 ("sketches", 0, "values"), ("sketches", 0, "spec"), ("revision",), ("complete",), ("removed",),
                 ("functional",), ("kind",), ("record",)):  # fmt: skip
        before: Any = good
        for step in path:
            before = before[step]
        for value in wrong:
            if value != before and not (
                value in ([], {}) and path[-1] in ("claims", "dtypes", "sketches", "functional")
            ):
                yield f"{path} {value!r}", canonical(changed(good, *path, to=value))
    text = canonical(good)
    yield "NaN", text.replace(b'"complete":true', b'"complete":NaN')
    yield "infinite", canonical(good).replace(b'"parameters":192', b'"parameters":1e999')
    yield "nested", b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield "lists", b"[" * 100_000 + b"]" * 100_000
    yield "twice", text.replace(b'"complete":true', b'"complete":true,"complete":true')
    yield "spaces", text.replace(b":true", b": true")
    yield "digits", text.replace(b'"parameters":192', b'"parameters":' + b"9" * 5000)
    yield "surrogate", text.replace(b'"license":"mit"', b'"license":"\\ud800"')
    yield "not UTF-8", text.replace(b'"license":"mit"', b'"license":"\xff"')
    yield "other tensors", canonical(changed(good, "tensors", "dtypes", to=["F16"] * 3))
    yield "more fields", canonical({**good, "weights": "/etc/passwd"})
    yield (
        "huge shape",
        canonical(changed(changed(good, "tensors", "shapes", to=[[1 << 61] * 9] * 3), "complete", to=False)),
    )
    yield "no name", canonical({k: v for k, v in good.items() if k != "key"})


@pytest.mark.slow
def test_every_hostile_statement_is_one_clear_error_and_changes_nothing(
    tmp_path: Path, b: Registry, good: dict[str, Any]
) -> None:
    path, accepted, unclear = tmp_path / "x.reg", list[str](), list[str]()
    path.write_bytes(sealed(canonical(good)))
    b.exchange.import_from(str(path), ANY)  # the frame itself is accepted
    b.exchange.forget("evil")
    before = dump(b)
    for what, line in hostile_bodies(good):
        path.write_bytes(sealed(canonical(good), line))
        try:
            b.exchange.import_from(str(path), ANY)
            accepted.append(what)
        except ExchangeError as e:
            unclear += [what] * (not 10 < len(str(e)) < 600 or "\n" in str(e))
    assert unclear == []
    assert accepted == []
    assert dump(b) == before


def test_hostile_frames_are_refused(tmp_path: Path, b: Registry, good: dict[str, Any]) -> None:
    line, path = canonical(good), tmp_path / "x.reg"
    bomb = sealed(b'{"a":"' + b"0" * (8 << 20) + b'"}')
    frames = {
        "newer": (sealed(line, header={"version": 2}), "Update Stemma"),
        "other format": (sealed(line, header={"format": "zip"}), "does not begin"),
        "bad name": (sealed(line, header={"name": "../../etc/passwd"}), "name of a registry"),
        "long name": (sealed(line, header={"name": "x" * 10_000}), "cannot be"),
        "bad identity": (sealed(line, header={"identity": "x"}), "does not name"),
        "bomb": (bomb, "longer than"),
        "bomb of lines": (sealed(*[b"0" * 500_000] * 40), "grows to more"),
        "wrong count": (sealed(line, seal={"statements": 7}), "was changed"),
        "wrong digest": (sealed(line, seal={"sha256": "0" * 64}), "was changed"),
        "huge left out": (sealed(line, seal={"left_out": {"x": 1 << 80}}), "left out"),
        "bad signature": (sealed(line, seal={"signature": {"envelope": {}, "key": "x"}}), "public key"),
        "gzip of others": (gzip.compress(b"hello"), "does not begin"),
        "a text": (b"hello" * 100, "does not begin"),
        "nothing": (b"", "ends too early"),
        "unsealed": (sealed(line)[:-200], "too early"),
    }
    before = dump(b)
    for content, why in frames.values():
        path.write_bytes(content)
        with pytest.raises(ExchangeError, match=why):
            b.exchange.import_from(str(path), ANY)
    assert dump(b) == before


def test_mutated_files_never_crash_hang_or_change_the_registry(
    tmp_path: Path, b: Registry, good: dict[str, Any]
) -> None:
    """A fast part of benchmarks/fuzz_exchange.py, which runs 5,000."""
    from benchmarks.fuzz_exchange import mutated

    before, path = dump(b), tmp_path / "x.reg"
    rng, accepted = np.random.default_rng(11), 0
    whole = sealed(canonical(good), canonical({"kind": "model", "key": "gone", "revision": [3, 0, 0], "removed": True,
                                               "digest": "sha256:" + "1" * 64}))  # fmt: skip
    for _ in range(100):
        path.write_bytes(mutated(whole, rng))
        try:
            for found in b.exchange.import_from(str(path), ANY):
                accepted += 1
                b.exchange.forget(found.name)
        except ExchangeError:
            assert dump(b) == before
        except UnknownNameError:  # it said nothing
            pass
    assert accepted < 15


# Framing somebody else


@pytest.fixture
def framed(tmp_path: Path, b: Registry) -> tuple[Path, Path]:
    """A registry with a model and its child, both read here; the file of a suspect, and a stranger."""
    base = arrays(1, 4, 48)
    for name, weights in (("base", base), ("sibling", near(base, 3))):
        save_file(weights, tmp_path / f"{name}.safetensors")
        Workspace(b).add([tmp_path / f"{name}.safetensors"], license="mit")
    save_file(near(base, 4), tmp_path / "suspect.safetensors")
    save_file(arrays(99, 4, 48), tmp_path / "stranger.safetensors")
    return tmp_path / "suspect.safetensors", tmp_path / "stranger.safetensors"


def asked(model: Path, registry: Registry, **more: Any) -> Any:
    return trace(TraceRequest(model=str(model), registry=registry.where, **more))


@pytest.mark.slow
def test_a_poisoned_registry_changes_no_finding_of_ones_own(
    tmp_path: Path, b: Registry, framed: tuple[Path, Path]
) -> None:
    """Somebody enrols my models and my suspect under their names, floods the search, and claims to be the parent."""
    from safetensors.numpy import load_file

    suspect, stranger = framed
    policies = [{}, {"deny_license": ("gpl-3.0",)}, {"fail_on": ("related",)}, {"fail_on": ("inconclusive",)},
                {"fail_on": ("no-known-parent",)}, {"fail_on_descendant_of": ("base",)}]  # fmt: skip
    before = {(m, i): asked(m, b, **p) for m in framed for i, p in enumerate(policies)}
    with Registry(tmp_path / "evil.db") as evil:
        for name in ("base", "sibling", "suspect", "stranger"):
            enrol(evil, f"stolen/{name}", load_file(tmp_path / f"{name}.safetensors"), "gpl-3.0")
        for i in range(20):  # nearer to the suspect than its true relatives
            enrol(evil, f"flood/{i}", near(load_file(suspect), 100 + i, 0.001), "gpl-3.0")
        evil.exchange.export(tmp_path / "evil.reg", name="evil")
    b.exchange.import_from(str(tmp_path / "evil.reg"), ANY)
    for (model, i), was in before.items():
        now = asked(model, b, **policies[i])
        for part in ("copies", "parents", "relatives", "candidates"):
            own = tuple(row for row in getattr(now.result, part) if not row.get("known_from"))
            assert own == getattr(was.result, part), part
            theirs = [row for row in getattr(now.result, part) if row.get("known_from")]
            assert all(row["name"].endswith("@evil") and row["known_from"].signed_by is None for row in theirs)
            assert all("known from registry evil (not signed)" in row["reason"] for row in theirs if "reason" in row)
        assert now.result.own_verdict == was.result.verdict
        assert now.claims == was.claims
        assert not was.ruling.closed or now.ruling.closed, policies[i]  # a gate may close, and never opens
        assert set(was.ruling.violations) <= set(now.ruling.violations)
        if was.result.verdict in ("descends", "related", "copy"):
            assert (now.result.verdict, now.result.known_from) == (was.result.verdict, ())
        else:
            assert now.result.known_from
            assert any("rests on the word of registry evil" in w for w in now.warnings)
            assert now.document()["known_from"][0]["registry"] == "evil"
    licence = asked(stranger, b, deny_license=("gpl-3.0",)).ruling
    assert any("known from registry evil (not signed)" in v and "gpl-3.0" in v for v in licence.violations)
    b.exchange.forget("evil")
    assert asked(stranger, b).result == before[stranger, 0].result


def test_a_foreign_licence_or_copy_never_opens_a_gate(tmp_path: Path, b: Registry) -> None:
    """An empty registry searches nothing, which closes a gate; a friendly stranger does not open it."""
    save_file(arrays(5, 4, 48), tmp_path / "mine.safetensors", metadata={"base_model": "somebody/base"})
    enrol(b, "other", arrays(6, 4, 48))
    closed = asked(tmp_path / "mine.safetensors", b, deny_license=("gpl-3.0",))
    assert closed.ruling.closed
    with Registry(tmp_path / "kind.db") as kind:
        enrol(kind, "clean", arrays(5, 4, 48), "mit")
        kind.exchange.export(tmp_path / "kind.reg", name="kind")
    b.exchange.import_from(str(tmp_path / "kind.reg"), ANY)
    after = asked(tmp_path / "mine.safetensors", b, deny_license=("gpl-3.0",))
    assert after.result.verdict == "copy"
    assert after.ruling.closed
    assert set(closed.ruling.untested) <= set(after.ruling.untested) | {closed.ruling.untested[0]}


def test_a_foreign_sketch_or_evidence_is_never_stored_as_ones_own(
    tmp_path: Path, b: Registry, framed: tuple[Path, Path]
) -> None:
    """What is told about weights that are enrolled here too leaves sketch, tensors and evidence of one's own alone."""
    tables = ("model", "live", "content", "tensor_key", "fingerprint", "sketch_bits", "evidence", "blob", "family_tree")

    def own() -> list[Any]:
        with b._database.reading() as c:
            return [sorted(map(repr, c.execute(sa.select(schema.metadata.tables[t])))) for t in tables]

    from safetensors.numpy import load_file

    before, digest = own(), b.get("base").digest
    with Registry(tmp_path / "evil.db") as evil:
        enrol(evil, "x", load_file(tmp_path / "base.safetensors"), "gpl-3.0")
        from stemma.registry import comparisons

        spec = comparisons.comparison_spec(0.01)
        evil.put_evidence(digest, digest, spec, {"verdict": "related"})
        evil.exchange.export(tmp_path / "evil.reg", name="evil")
        forged = view_of_export(tmp_path / "evil.reg")
    body = next(x for x in forged.values() if x["kind"] == "model")
    lied = changed(body, "sketches", to=[])  # a sketch that is missing, for weights that I have
    (tmp_path / "evil2.reg").write_bytes(sealed(canonical(lied)))
    for file in ("evil.reg", "evil2.reg"):
        b.exchange.import_from(str(tmp_path / file), Acceptance(name=file[:-4]))
    assert own() == before
    assert b.get_evidence(digest, digest, spec) is None
    assert b.by_digest(digest)[0].name == "base"
    assert Workspace(b).resolve(digest[7:20]).name == "base"


def test_statements_in_my_own_name_are_not_taken_from_others(tmp_path: Path, b: Registry, good: dict[str, Any]) -> None:
    enrol(b, "mine", arrays(8))
    b.exchange.export(tmp_path / "b.reg", name="bell")
    with b._database.reading() as c:
        identity = c.execute(sa.select(schema.identity.c.identity)).scalar_one()
    (tmp_path / "x.reg").write_bytes(sealed(canonical(good), header={"identity": identity, "name": "bell"}))
    before = dump(b)
    (found,) = b.exchange.import_from(str(tmp_path / "x.reg"), ANY)
    assert (found.own, found.new) == (True, 0)
    assert dump(b) == before
    (tmp_path / "y.reg").write_bytes(sealed(canonical(good), header={"name": "bell"}))
    with pytest.raises(ExchangeError, match="this registry itself"):
        b.exchange.import_from(str(tmp_path / "y.reg"), ANY)


# Answers


@pytest.mark.slow
def test_every_answer_says_from_whom_it_knows(
    tmp_path: Path, a: Registry, b: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = arrays(1, 4, 48)
    child = near(base, 2)
    for name, weights in (("base", base), ("child", child)):
        save_file(weights, tmp_path / f"{name}.safetensors")
    Workspace(a).add([tmp_path / "base.safetensors", tmp_path / "child.safetensors"], license="mit")
    assert run("lineage", "--registry", a.where) == 0
    workspace = Workspace(a)
    workspace.trace(workspace.resolve("child"))
    private, public = key_pair(tmp_path, "k")
    file, here = tmp_path / "a.reg", ("--registry", b.where)
    assert run("registry", "export", file, "--registry", a.where, "--name", "acme", "--sign", private) == 0
    assert run("registry", "import", file, *here, "--public-key", public) == 0
    save_file(near(base, 7), tmp_path / "suspect.safetensors")
    for name in ("base", "child"):
        (tmp_path / f"{name}.safetensors").rename(tmp_path / f"{name}-moved.safetensors")
    found, _ = document(capsys, "trace", "suspect.safetensors", *here)
    signer = found["known_from"][0]["signed_by"]
    sentence = f"known from registry acme (signed by {signer[:16]}…)"
    assert (found["verdict"], found["own_verdict"]) == ("related", "inconclusive")
    assert {r["name"] for r in found["relatives"]} == {"base@acme", "child@acme"}
    assert all(r["known_from"]["registry"] == "acme" and sentence in r["reason"] for r in found["relatives"])
    assert all(r["direction"] == "unknown" and r["role"] == "unknown" for r in found["relatives"])
    assert any("holds no weights" in t["why"] for t in found["not_tested"])
    found, _ = document(capsys, "trace", "child-moved.safetensors", *here)
    assert (found["verdict"], found["copies"][0]["known_from"]["signed_by"]) == ("copy", signer)
    found, _ = document(capsys, "compare", "suspect.safetensors", "base@acme", *here)
    assert (found["verdict"], found["a_known_from"], found["b_known_from"]["registry"]) == ("related", None, "acme")
    found, _ = document(capsys, "compare", "base@acme", "child@acme", *here)
    assert found["a_known_from"]["registry"] == "acme"
    assert found["not_tested"]
    found, _ = document(capsys, "list", "--known", "--search", "child", *here)
    assert [(k["name"], k["licence"], k["known_from"]["signed_by"]) for k in found["known"]] == [
        ("child@acme", "mit", signer)
    ]
    found, _ = document(capsys, "show", "child@acme", *here)
    assert found["known_from"]["registry"] == "acme"
    assert found["told_evidence"][0]["other"] == "base@acme"
    drawn = [(e["parent"], e["child"]) for e in (*found["parents"], *found["children"])]
    enrol(b, "mine", child)
    found, _ = document(capsys, "show", "mine", *here)
    assert found["known_as"] == ["child@acme"]
    found = {"told": [e for e in b.known.told_edges()]}
    assert {(e["parent"], e["child"]) for e in found["told"]} == set(drawn)
    for typed in (
        ("trace", "suspect.safetensors"),
        ("show", "child@acme"),
        ("compare", "suspect.safetensors", "base@acme"),
    ):
        capsys.readouterr()
        assert run(*typed, *here) == 0
        assert "known from" in " ".join(capsys.readouterr().out.split())
    assert run("trace", "suspect.safetensors", "--html", tmp_path / "t.html", *here) == 0
    assert sentence in (tmp_path / "t.html").read_text(encoding="utf-8")
    for kind in ("cyclonedx", "spdx", "sarif", "model-card", "intoto"):
        asked = ExportRequest(model="suspect.safetensors", format=kind, registry=b.where)
        assert "acme" in export_findings(asked).content.decode(), kind
    for refused in (
        ("explain", "base@acme", "child@acme"),
        ("trace", "suspect.safetensors", "--fail-on-descendant-of", "base@acme"),
    ):
        assert run(*refused, *here) in (1, 3)
    assert run("trace", "mine@nobody", *here) == 1


def test_a_gate_on_a_model_that_is_only_told_of_stays_closed(tmp_path: Path, a: Registry, b: Registry) -> None:
    weights = arrays(3, 4, 48)
    enrol(a, "x", weights, "mit")
    enrol(b, "mine", weights, "mit")
    enrol(b, "other", arrays(4, 4, 48), "mit")
    a.exchange.export(tmp_path / "a.reg", name="acme")
    b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    answer = asked(Path("x@acme"), b, fail_on=("pruned",))
    assert answer.ruling.closed
    assert any("what it says that they are" in t["why"] for t in answer.result.not_tested)
    assert {kind.value for kind in RelationKind} >= {"pruned"}


def test_an_older_export_is_told_and_takes_nothing_back(
    tmp_path: Path, a: Registry, b: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--registry", b.where)
    for year, name in ((1, "one"), (2, "two")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(year * 366 * 86400))
        enrol_bare(a, name, year)
        a.exchange.export(tmp_path / f"{year}.reg", name="acme")
    for year, newer in ((2, None), (1, "1972-01-03"), (2, None)):
        found, code = document(capsys, "registry", "import", str(tmp_path / f"{year}.reg"), *here)
        told = found["imported"][0]["newer_known"]
        assert (code, told and told[:10]) == (0, newer)
    assert set(view(b)) == {"one@acme", "two@acme"}
    assert run("registry", "import", str(tmp_path / "1.reg"), *here) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one of 1972-01-03 is known" in said
    assert f"stemma list --registry {b.where} --known" in said
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(2 * 366 * 86400 + 60))
    a.exchange.export(tmp_path / "later.reg")
    assert run("registry", "import", str(tmp_path / "later.reg"), *here) == 0
    assert run("registry", "import", str(tmp_path / "2.reg"), *here) == 0
    assert "made 1972-01-03T00:00:00; one of 1972-01-03T00:01:00" in " ".join(capsys.readouterr().out.split())
    assert run("registry", "import", str(tmp_path / "2.reg"), "--registry", a.where) == 0
    assert "nothing was taken" in capsys.readouterr().out


# Subscriptions


@contextmanager
def server(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}", seen
    finally:
        made.shutdown()
        made.server_close()


def test_a_subscription_downloads_what_changed_and_nothing_else(
    tmp_path: Path, a: Registry, b: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    enrol_bare(a, "one", 1)
    file, here = tmp_path / "a.reg", ("--registry", b.where)
    a.exchange.export(file, name="acme")
    sent: list[int] = []

    def answer(h: http.server.BaseHTTPRequestHandler) -> None:
        content = file.read_bytes()
        tag = f'"{sha256(content).hexdigest()[:16]}"'
        if h.headers["If-None-Match"] == tag:
            h.send_response(304)
            h.end_headers()
            return
        h.send_response(200)
        h.send_header("ETag", tag)
        h.send_header("Content-Length", str(len(content)))
        h.end_headers()
        h.wfile.write(content)
        sent.append(len(content))

    with server(answer) as (url, _):
        found, code = document(capsys, "registry", "subscribe", f"{url}/a.reg?token=secret", *here)
        assert (code, found["refreshed"][0]["status"]) == (0, "new")
        assert "secret" not in json.dumps(found)
        assert run("registry", "subscribe", f"{url}/a.reg?token=secret", *here) == 1
        found, code = document(capsys, "registry", "refresh", *here)
        assert (found["refreshed"][0]["status"], found["refreshed"][0]["downloaded"], code) == ("unchanged", 0, 0)
        enrol_bare(a, "two", 2)
        a.remove("one")
        a.exchange.export(file)
        found, code = document(capsys, "registry", "refresh", "acme", *here)
        assert (found["refreshed"][0]["status"], found["refreshed"][0]["imported"]["new"]) == ("new", 2)
        assert set(view(b)) == {"two@acme"}
        assert len(sent) == 2
        with Registry(tmp_path / "evil.db") as evil:  # the address is taken over
            enrol_bare(evil, "two", 3)
            evil.exchange.export(file, name="acme")
        before = dump(b)
        found, code = document(capsys, "registry", "refresh", *here)
        assert (code, found["failed"]) == (1, 1)
        assert "another registry" in found["refreshed"][0]["error"]
        assert dump(b) == before
    found, code = document(capsys, "registry", "refresh", *here)
    assert (code, found["refreshed"][0]["status"]) == (1, "failed")
    assert run("registry", "forget", "acme", *here) == 0
    assert (view(b), b.exchange.subscriptions()) == ({}, ())
    assert run("registry", "forget", "acme", *here) == 1
    assert run("registry", "refresh", "acme", *here) == 1


def test_a_hostile_server_is_a_clear_error(
    tmp_path: Path, a: Registry, b: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_bare(a, "one", 1)
    a.exchange.export(tmp_path / "a.reg", name="acme")
    content = (tmp_path / "a.reg").read_bytes()

    def answer(h: http.server.BaseHTTPRequestHandler) -> None:
        what = h.path.strip("/")
        if what.startswith("to-"):
            target = {"to-file": (tmp_path / "a.reg").as_uri(), "to-ftp": "ftp://127.0.0.1/x", "to-loop": "/to-loop"}[
                what
            ]
            h.send_response(302)
            h.send_header("Location", target)
            h.end_headers()
            return
        h.send_response(404 if what == "missing" else 200)
        h.send_header(
            "Content-Length",
            {"short": str(len(content) + 10), "huge": "9" * 15}.get(
                what, "0" if what == "empty" else str(len(content))
            ),
        )
        h.end_headers()
        h.wfile.write(content if what not in ("empty", "cut") else b"" if what == "empty" else content[:100])

    monkeypatch.setattr(download, "TIMEOUT", 2.0)
    before = dump(b)
    with server(answer) as (url, _):
        for what in ("to-file", "to-ftp", "to-loop", "missing", "short", "huge", "empty", "cut"):
            with pytest.raises(ExchangeError) as told_:
                b.exchange.import_from(f"{url}/{what}", ANY)
            assert len(str(told_.value)) < 400
        monkeypatch.setattr(download, "MAX_BYTES", 10)
        with pytest.raises(ExchangeError, match="more than"):
            b.exchange.import_from(f"{url}/x", ANY)
    for address in ("ftp://x/y", "http://127.0.0.1:1/x", "gopher://x", str(tmp_path / "none"), "http://[/"):
        with pytest.raises(ExchangeError):
            b.exchange.import_from(address, ANY)
    assert dump(b) == before


# Differences and integrity


@pytest.mark.slow
def test_differences_are_listed_and_end_with_one(
    tmp_path: Path, a: Registry, b: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    for registry in (a, b):
        enrol(registry, "same", arrays(1), "mit")
    enrol(a, "licence", arrays(2), "mit")
    enrol(b, "licence", arrays(2), "gpl-3.0")
    a.exchange.export(tmp_path / "a.reg", name="acme")
    for other in (tmp_path / "a.reg", a.where):
        found, code = document(capsys, "registry", "diff", other, "--registry", b.where)
        assert (code, found["only_here"], found["only_there"], found["names"]) == (1, [], [], [])
        assert [(x["name"], x["here"]["licence"], x["there"]["licence"]) for x in found["licences"]] == [
            ("licence", "gpl-3.0", "mit")
        ]
    enrol(b, "licence", arrays(2), "mit", replace=True)
    assert document(capsys, "registry", "diff", tmp_path / "a.reg", "--registry", b.where)[1] == 0
    enrol(a, "there", arrays(3))
    enrol(b, "here", arrays(4))
    enrol(a, "name", arrays(5))
    enrol(b, "name", arrays(6))
    a.exchange.export(tmp_path / "a.reg")
    found, code = document(capsys, "registry", "diff", tmp_path / "a.reg", "--registry", b.where)
    listed = {field: [x["name"] for x in found[field]] for field in ("only_here", "only_there", "names")}
    assert (code, listed) == (1, {"only_here": ["here", "name"], "only_there": ["name", "there"], "names": ["name"]})
    before = dump(b)
    b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    assert dump(b) != before
    found, _ = document(capsys, "registry", "diff", tmp_path / "a.reg", "--registry", b.where)
    assert (found["only_there"], found["already_known"]) == ([], 2)
    assert run("registry", "diff", tmp_path / "a.reg", "--registry", b.where) == 1
    assert "name taken" in capsys.readouterr().out


def test_check_finds_a_statement_that_was_altered_here(tmp_path: Path, a: Registry, b: Registry) -> None:
    enrol_bare(a, "one", 1)
    a.exchange.export(tmp_path / "a.reg", name="acme")
    b.exchange.import_from(str(tmp_path / "a.reg"), ANY)
    assert b.check() == []
    s, k = schema.statement, schema.known_model
    with b._database.writing() as c:
        c.execute(s.update().values(content=zlib.compress(b'{"kind":"model"}')))
        c.execute(k.update().values(revision="9"))
    assert {f.kind for f in b.check()} == {"record", "index"}
    with pytest.raises((RegistryError, ExchangeError, KeyError)):
        b.known.models()[0].record.digest  # noqa: B018
