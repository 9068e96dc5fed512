"""Models on servers: read by ranges, known in part, never taken for more than was read, whatever the server does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hub_server
from hub_server import TOKEN, Hub
from sparse_models import LLAMA_7B, shapes_of, write_sparse
from stemma.checkpoints import budget, remote_models, sample
from stemma.checkpoints.digest import is_partial
from stemma.checkpoints.load import from_arrays, load
from stemma.checkpoints.remote import answers, parse, range_cache, remote_file, replica
from stemma.checkpoints.sample import bytes_read, sampled
from stemma.cli import main
from stemma.errors import RemoteError, StemmaError
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.kinship.compare import compare
from stemma.kinship.explain import explain
from stemma.kinship.weights import entries
from stemma.registry import Registry
from stemma.types import RelationKind
from stemma.workspace import Workspace

pytest.importorskip("huggingface_hub")
pytest.importorskip("httpx")

EXAMPLE = Path(__file__).parents[1] / "examples" / "public_registry"
MAIN = "from stemma.cli import main; main()"

WIDTH, UNITS = 256, 512
CONFIG = {
    **LLAMA_7B, "hidden_size": WIDTH, "intermediate_size": UNITS, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 512,
}  # fmt: skip


def network(seed: int, base: dict[str, np.ndarray] | None = None, noise: float = 0.2) -> dict[str, np.ndarray]:
    """A small Llama, or a base with noise on it."""
    draw = np.random.default_rng(seed)
    fresh = {n: draw.standard_normal(s, np.float32) * np.float32(0.02) for n, s in shapes_of(CONFIG).items()}
    fresh = {n: x + (x.ndim == 1) for n, x in fresh.items()}
    return fresh if base is None else {n: x + np.float32(noise) * fresh[n] for n, x in base.items()}


def write(folder: Path, arrays: dict[str, np.ndarray], card: str = "", shards: int = 1) -> Path:
    """A repository's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if card:
        (folder / "README.md").write_text(card)
    if shards == 1:
        save_file(arrays, folder / "model.safetensors")
        return folder
    names, weight_map = sorted(arrays), {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: arrays[n] for n in names[k::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[k::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of small models, as of large ones."""
    monkeypatch.setattr(remote_models, "WHOLE", 1 << 16)
    monkeypatch.setattr(sample, "WHOLE", 1 << 10)
    monkeypatch.setattr(sample, "ENTRIES", 1 << 14)
    monkeypatch.setattr(entries, "READ", 1 << 13)
    monkeypatch.setattr(replica, "HEAD", 1 << 12)
    for name, value in (("JOINED", 1 << 10), ("AHEAD", 1 << 10)):
        monkeypatch.setattr(remote_file, name, value)
    monkeypatch.setattr(answers, "PAUSE", 0.01)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> Iterator[Hub]:
    """A hub with a child and a stranger; the parent lies in `tmp_path / "parent"`."""
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "registry.db"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was first imported
    parent = network(1)
    write(tmp_path / "parent", parent)
    card = "---\nlicense: mit\nbase_model: acme/parent\n---\nThis model was trained from scratch.\n"
    child = write(tmp_path / "child", network(2, parent), card)
    stranger = write(tmp_path / "stranger", network(3))
    with hub_server.serve(acme__child=child, acme__stranger=stranger) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def workspace(tmp_path: Path) -> Workspace:
    return Workspace(Registry(str(tmp_path / "registry.db")))


@pytest.mark.first(1)
def test_a_child_on_a_hub_is_traced_to_its_local_parent_as_from_disk(hub: Hub, tmp_path: Path) -> None:
    known = workspace(tmp_path)
    known.add([tmp_path / "parent"])
    child = known.resolve("hf:acme/child")
    from_disk = known.trace(load(tmp_path / "child")).to_dict()
    from_hub = known.trace(child).to_dict()
    assert from_hub["verdict"] == from_disk["verdict"]
    assert from_hub["verdict"] in ("related", "descends")
    assert not from_hub["copies"]
    relatives = [[(r["name"], r["role"]) for r in (*d["parents"], *d["relatives"])] for d in (from_hub, from_disk)]
    assert relatives[0] == relatives[1]
    assert [name for name, _ in relatives[0]] == ["parent"]
    assert {t["what"] for t in from_hub["not_tested"]} == {"unread"}  # so that gates close
    read, total = bytes_read(child)
    assert read < total / 3
    size = (tmp_path / "child" / "model.safetensors").stat().st_size
    assert hub.sent["model.safetensors"] < size / 3
    assert any(f"{total - read:,} of {total:,} bytes" in gap for gap in from_hub["cannot_see"])
    assert child.source == f"hf:acme/child@{hub.commit('acme/child')}"
    assert (child.claims["license"], child.claims["base_model"]) == ("mit", "acme/parent")
    assert child.claims[remote_models.CLAIMED_FILES].startswith("model.safetensors=")
    explained = explain(load(tmp_path / "parent"), child)
    assert explained.relative == pytest.approx(0.2, abs=0.01)
    assert any("were compared" in note for note in explained.notes)


def test_the_same_model_has_the_same_partial_digest_wherever_it_lies(hub: Hub, tmp_path: Path) -> None:
    child = load("hf:acme/child")
    assert is_partial(child.digest)
    assert is_partial(child.names_free_digest)
    assert child.digest == sampled(load(tmp_path / "child")).digest
    address = f"{hub.url}/acme/child/resolve/main/model.safetensors"
    assert load(address).digest == child.digest
    assert load(address).source == address
    hub.repositories["acme/sharded"] = write(tmp_path / "sharded", network(2, network(1)), shards=3)
    assert load("hf:acme/sharded@main").digest == child.digest
    whole = load("hf:acme/child#whole")
    assert whole.digest == load(tmp_path / "child").digest
    assert not is_partial(whole.digest)
    assert load("hf:acme/stranger").digest != child.digest


def test_equal_samples_are_related_and_never_called_copies(hub: Hub, tmp_path: Path) -> None:
    arrays = network(2, network(1))
    arrays["model.layers.0.mlp.up_proj.weight"][-1] = 7.0  # a row that no sample holds
    hub.repositories["acme/altered"] = write(tmp_path / "altered", arrays)
    child, altered = load("hf:acme/child"), load("hf:acme/altered")
    assert child.digest == altered.digest
    for other in (altered, load(tmp_path / "child")):
        found = compare(other, child)
        assert (found.verdict, found.relation.kind) == ("related", RelationKind.RELATED)
        assert found.relation.steps == ("agrees in all bytes read",)
        assert "whether the rest does is not known" in found.relation.reason
    known = workspace(tmp_path)
    assert [r.status for r in known.add(["hf:acme/altered", tmp_path / "child"])] == ["added", "added"]
    traced = known.trace(child)
    assert (traced.verdict, traced.copies) == ("related", ())
    assert not known.check()


def test_a_sample_never_shows_independence(hub: Hub, tmp_path: Path) -> None:
    found = compare(load(tmp_path / "parent"), load("hf:acme/stranger"))
    assert found.verdict == "inconclusive"
    assert {t["what"] for t in found.not_tested} == {"unread"}
    known = workspace(tmp_path)
    known.add([tmp_path / "parent"])
    assert known.trace(load("hf:acme/stranger")).verdict == "inconclusive"
    order, moved = np.random.default_rng(0).permutation(UNITS), network(1)
    for i in range(4):
        for name, at in (("gate", (order,)), ("up", (order,)), ("down", (slice(None), order))):
            moved[f"model.layers.{i}.mlp.{name}_proj.weight"] = moved[f"model.layers.{i}.mlp.{name}_proj.weight"][at]
    hub.repositories["acme/moved"] = write(tmp_path / "moved", moved)
    assert compare(load(tmp_path / "parent"), load("hf:acme/moved")).verdict != "independent"


RIGHT = ("dropped", "truncated", "429", "503")
WRONG = {
    "changed": "changed while it was read", "grown": "changed while it was read", "wrong-range": "were sent",
    "no-ranges": "whole file where a part is asked", "long-length": "contradicts itself",
    "short-length": "contradicts itself", "encoded": "encoded", "*429-long": "asks to wait 86,400 seconds",
    "*no-tag": "names no version", "*dropped": "given up", "*429": "given up", "*long-header": "given up",
    "*redirect-file": "only https:// is", "*redirect-loop": "leads in a circle",
    "hostile-tree": "would leave its folder",
}  # fmt: skip


@pytest.mark.anywhere
@pytest.mark.slow
def test_a_faulty_server_gives_a_right_answer_or_one_clear_error(hub: Hub, tmp_path: Path) -> None:
    expected = sampled(load(tmp_path / "child")).digest
    for fault in RIGHT:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        hub.faults = ["", fault, fault, ""]
        assert load("hf:acme/child").digest == expected, fault
    known = workspace(tmp_path)
    for fault, said in WRONG.items():
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        hub.faults = [fault] if fault.startswith("*") or fault == "hostile-tree" else ["", "", fault]
        (result,) = known.add(["hf:acme/child"])
        assert (result.status, result.digest) == ("failed", None), fault
        assert said in (result.error or ""), (fault, result.error)
        assert "\n" not in (result.error or "")
        assert "signature" not in (result.error or "")
        assert known.registry.count() == 0
    hub.faults = []
    assert [r.digest for r in known.add(["hf:acme/child"])] == [expected]


@pytest.mark.anywhere
def test_what_was_fetched_is_not_fetched_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults = [*[""] * 5, *["changed"] * 50]
    known = workspace(tmp_path)
    assert known.add(["hf:acme/child"])[0].status == "failed"
    before, ranges = hub.total, tmp_path / "cache" / "remote" / "ranges"
    kept = sum(p.stat().st_size for p in ranges.rglob("*") if p.is_file())
    assert kept > 1 << 14
    hub.faults, hub.versions = [], type(hub.versions)()
    again = known.add(["hf:acme/child"])[0]
    assert again.status == "added", again.error
    size = hub.total
    assert known.add(["hf:acme/child"])[0].status == "known"
    assert load("hf:acme/child").is_partial
    assert hub.total == size  # neither by the known commit nor by the cache
    read, _ = bytes_read(load("hf:acme/child"))
    assert size - before < 1.1 * read + (1 << 14) - kept
    monkeypatch.setenv("STEMMA_REMOTE_CACHE_GB", "0.00001")
    monkeypatch.setattr(range_cache, "YOUNG", -1.0)
    range_cache.make_room()
    kept = sum(p.stat().st_size for p in (tmp_path / "cache" / "remote").rglob("*") if p.is_file())
    assert kept <= 10_000
    assert not any((tmp_path / "cache" / "remote" / "replicas").iterdir())


@pytest.mark.anywhere
def test_a_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add("acme/child")
    with pytest.raises(RemoteError, match="private"):
        load("hf:acme/child")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load("hf:acme/child").is_partial
    sent = {path.partition("?")[0]: headers.get("Authorization") for _, path, headers in hub.seen}
    assert any(value == f"Bearer {TOKEN}" for path, value in sent.items() if "/resolve/" in path or "/api/" in path)
    elsewhere = [h for _, path, h in hub.seen if "signature=" in path]
    assert elsewhere
    assert not any("Authorization" in headers for headers in elsewhere)


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf:", "is not a repository"), ("hf:../../etc/passwd", "is not a repository"), ("hf:a/b/c", "is not a"),
        ("hf:acme/child@", "names no revision"), ("hf:acme/child@../x", "names no revision"),
        ("hf:\x1b[31m/x", "is not a repository"), ("hf:" + "a" * 10_000, "is not a repository"),
        ("http://example.org/model.safetensors", "only https:// is"),
        ("https://user:word@example.org/m.safetensors", "password in the address"),
        ("https://example.org/model.bin", "not the address of a file of weights"),
        ("https://exa mple.org/m.safetensors", "is not an address"), ("https:///m.safetensors", "is not an address"),
    ],
)  # fmt: skip
def test_unsafe_addresses_are_refused_before_anything_is_asked(address: str, said: str) -> None:
    with pytest.raises(RemoteError, match=said) as raised:
        parse(address)
    assert len(str(raised.value)) < 400
    assert "\x1b" not in str(raised.value)
    assert "word@" not in str(raised.value)


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("https://h.org/m", "http://h.org/m"), ("https://h.org/m", "file:///etc/passwd"),
        ("https://h.org/m", "https://169.254.169.254/latest"), ("https://h.org/m", "https://localhost/m"),
        ("https://h.org/m", "https://[::1]/m"), ("https://h.org/m", "https://2130706433/m"),
        ("https://h.org/m", "https://10.0.0.1/m"), ("https://h.org/m", "ftp://h.org/m"), ("https://h.org/m", ""),
    ],
)  # fmt: skip
def test_redirects_to_other_schemes_and_private_hosts_are_refused(before: str, after: str) -> None:
    with pytest.raises(RemoteError):
        answers.redirected(before, after)
    assert answers.redirected("https://h.org/m", "https://cafe.de/n?x=1") == "https://cafe.de/n?x=1"
    assert answers.redirected("https://h.org/a/m", "/b/m") == "https://h.org/b/m"


@pytest.mark.anywhere
def test_offline_and_missing_things_are_one_clear_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x" * 100)
    hub.repositories["acme/pickled"] = pickled
    for address, said in (
        ("hf:acme/nothing", "no such repository"), ("hf:acme/child@v9", "no such revision"),
        ("hf:acme/pickled", "pickles .pytorch_model.bin.*--download"),
        (f"{hub.url}/acme/child/resolve/main/other.safetensors", "no such file"),
    ):  # fmt: skip
        with pytest.raises(StemmaError, match=said):
            load(address)
    known = workspace(tmp_path)
    known.add(["hf:acme/child", tmp_path / "parent"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
        load("hf:acme/child")
    gone = known.reopen(known.show("acme/child"))
    assert "HF_HUB_OFFLINE" in gone.notes[0]
    assert {f.kind for f in known.check()} == {"source-gone"}
    assert known.trace(load(tmp_path / "parent")).verdict in ("related", "inconclusive")


def test_codes_are_compared_by_rows_and_decide_nothing_by_columns(small: None) -> None:
    draw = np.random.default_rng(0)

    def coded(noise: int) -> dict[str, np.ndarray]:
        out = {f"l{i}.weight_scale": np.full((WIDTH, 1), 0.01, np.float32) for i in range(8)}
        for i in range(8):
            codes = np.random.default_rng(i).integers(-110, 111, (WIDTH, WIDTH)) + draw.integers(-noise, noise + 1)
            out[f"l{i}.weight"] = codes.astype(np.int8)
        return out

    by_rows = sampled(from_arrays(coded(9), "by rows"))
    assert by_rows.weights["l0.weight"].readable == 64
    assert compare(from_arrays(coded(0), "parent"), by_rows).verdict == "related"
    packed = {"token.weight": draw.standard_normal((300, 24), np.float32)}
    for i in range(8):
        packed[f"l{i}.qweight"] = draw.integers(0, 2**31, (64, 512)).astype(np.int32)
        packed[f"l{i}.qzeros"] = draw.integers(0, 2**31, (4, 64)).astype(np.int32)
        packed[f"l{i}.scales"] = np.full((4, 512), 0.01, np.float16)
        packed[f"l{i}.g_idx"] = np.repeat(np.arange(4), 128).astype(np.int32)
    by_columns = sampled(from_arrays(packed, "by columns"))
    assert by_columns.weights["l0.weight"].readable == 0
    assert WeightSketch()(by_columns).values["bits"].any()
    assert compare(from_arrays(coded(0), "parent"), by_columns).verdict == "inconclusive"


LORA = "base_model.model.model.layers.1.self_attn.q_proj.lora"


def test_an_adapter_is_merged_with_its_base_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/parent"] = tmp_path / "parent"
    folder = tmp_path / "adapter"
    folder.mkdir()
    draw, rank = np.random.default_rng(5), 4
    low = {
        f"{LORA}_{x}.weight": draw.standard_normal(s, np.float32)
        for x, s in (("A", (rank, WIDTH)), ("B", (WIDTH, rank)))
    }
    save_file(low, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "acme/parent"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    hub.repositories["acme/adapter"] = folder
    merged = load("hf:acme/adapter")
    assert merged.is_partial
    assert merged.claims["base_model_name_or_path"] == "acme/parent"
    rows = merged.tensors["model.layers.1.self_attn.q_proj.weight"].rows(0, 8)
    a, b = (low[f"{LORA}_{x}.weight"] for x in "AB")
    assert np.allclose(rows, network(1)["model.layers.1.self_attn.q_proj.weight"][:8] + (b @ a)[:8], atol=1e-4)
    assert compare(load(tmp_path / "parent"), merged).verdict == "related"
    assert not any(str(tmp_path) in note for note in merged.notes)
    for place in (str(tmp_path / "parent"), "../parent", "file:///etc"):  # a folder of whoever reads it
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": place}))
        with pytest.raises(RemoteError, match="no repository of the hub"):
            load("hf:acme/adapter")


def run(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


@pytest.mark.anywhere
def test_a_list_of_repositories_is_enrolled_line_by_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("# two models\nacme/child\n\nhf:acme/stranger@main  # one more\nacme/gone\n<script>\n")
    assert run("add", "--hub-list", str(listed), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert sorted((m["name"], m["status"]) for m in document["models"]) == [
        ("<script>", "failed"), ("acme/child", "added"), ("acme/gone", "failed"), ("acme/stranger@main", "added"),
    ]  # fmt: skip
    assert document["failed"] == 2
    assert all(m["digest"].startswith("partial:") for m in document["models"] if m["digest"])
    listed.write_text("acme/child\nhf:acme/stranger@main\n")
    sent = hub.total
    assert run("add", "--hub-list", str(listed), "--json") == 0
    assert [m["status"] for m in json.loads(capsys.readouterr().out)["models"]] == ["known", "known"]
    assert hub.total == sent
    assert run("show", "acme/child", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["copies"], shown["shared"]) == ("hub", [], [])
    assert shown["digest"].startswith("partial:sha256:")
    assert run("show", shown["digest"][:26]) == 0
    assert "partial:sha256:" in capsys.readouterr().out
    assert run("lineage", str(tmp_path / "parent"), "hf:acme/child", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["families"]) == 1


@pytest.mark.slow
def test_a_family_tree_neither_clears_a_sample_nor_takes_equal_samples_for_one_model(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, rest = network(2, network(1)), network(50)
    for name, x in arrays.items():
        if rows := sample.sampled_rows(x.shape):
            x[rows:] = rest[name][rows:]  # somebody's leading rows, and other weights behind them
    hub.repositories["acme/a"] = write(tmp_path / "a", arrays)
    typed = ["hf:acme/a", "hf:acme/stranger", str(tmp_path / "child"), str(tmp_path / "parent")]
    assert run("add", *typed) == 0
    capsys.readouterr()
    assert run("lineage", "--fail-on-descendant-of", "parent", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert {t["model"] for t in found["not_tested"] if t["what"] == "unread"} >= {"acme/a", "acme/stranger"}
    assert {(e["parent"], e["child"]) for e in found["edges"]} <= {("parent", "child"), ("child", "parent")}
    assert any(r["models"] == ["acme/a", "child"] and "only a sample" in r["reason"] for r in found["refused"])
    assert run("lineage", "--fail-on-descendant-of", "acme/stranger") == 3
    assert "child descends from acme/stranger is not decided" in " ".join(capsys.readouterr().err.split())
    assert run("export", "--all", "--format", "intoto") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "only a sample" in said
    assert run("export", "--all", "--format", "spdx", "--out", str(tmp_path / "out"), "--json") == 0
    assert "no-known-parent" not in (tmp_path / "out").read_text()


def test_equal_samples_are_no_copies_where_weights_are_gone_or_only_told_of(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = network(2, network(1))
    arrays["model.layers.0.mlp.up_proj.weight"][-1] = 7.0  # a row that no sample holds
    hub.repositories["acme/altered"] = write(tmp_path / "altered", arrays)
    assert run("add", "hf:acme/child", "hf:acme/altered") == 0
    assert run("registry", "export", str(tmp_path / "x.reg"), "acme/child", "--name", "acme") == 0
    there = ("--registry", str(tmp_path / "there.db"))
    assert run("registry", "import", str(tmp_path / "x.reg"), *there) == 0
    digest = Registry(str(tmp_path / "registry.db")).get("acme/child").digest
    capsys.readouterr()
    assert run("show", digest[:30], *there, "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "acme/child@acme"
    assert run("show", digest[:30]) == 1  # two models have this sample
    assert "acme/altered" in capsys.readouterr().err
    assert run("trace", "hf:acme/altered", *there, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("compare", "acme/child", "acme/altered", "--json") == 0
    gone = json.loads(capsys.readouterr().out)
    for answer in (found["relatives"][0], gone):
        assert answer["relation"] == "related"
        assert "whether the rest of the two agrees is not known" in json.dumps(answer)
    assert (found["verdict"], found["copies"], gone["verdict"]) == ("related", [], "related")
    assert {t["what"] for t in gone["not_tested"]} == {"weights-gone"}


def test_a_change_behind_the_sample_is_seen_when_a_model_is_added_again(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", "hf:acme/child") == 0
    arrays = network(2, network(1))
    arrays["model.layers.0.mlp.up_proj.weight"][-1] = 7.0  # a row that no sample holds
    write(tmp_path / "child", arrays, "other words")
    capsys.readouterr()
    assert run("add", "hf:acme/child") == 1
    assert "the hub lists another SHA-256" in " ".join(capsys.readouterr().err.split())
    assert run("add", "hf:acme/child", "--replace") == 0
    first, last = load(f"hf:acme/child@{hub.commit('acme/child')}"), load(tmp_path / "child")
    assert explain(last, first).kind is RelationKind.RELATED  # and not a copy
    with Registry(str(tmp_path / "registry.db")) as registry:
        assert registry.get("acme/child").source == first.source


@pytest.mark.anywhere
def test_the_key_of_a_signed_address_is_in_no_output(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{hub.url}/acme/child/resolve/main/model.safetensors?signature=c4f3k3y"
    parent, page = str(tmp_path / "parent"), tmp_path / "page.html"
    said = ""
    for words in (
        ("trace", address, "--against", parent), ("trace", parent, "--against", address, "--json"),
        ("compare", parent, address, "--html", str(page), "--json"), ("compare", parent, address),
        ("lineage", parent, address, "--json"), ("add", address, "--json"), ("show", "model", "--json"),
        ("add", address.replace("model.", "other.")), ("trace", parent, "--fail-on-descendant-of", address),
        ("registry", "subscribe", address), ("registry", "forget", address),
    ):  # fmt: skip
        run(*words)
        said += "".join(capsys.readouterr())
    assert "/resolve/main/model.safetensors" in said + page.read_text()
    assert "c4f3k3y" not in said + page.read_text()
    assert address.partition("?")[2] in "".join(path for _, path, _ in hub.seen)  # it was used


@pytest.mark.slow
def test_a_lineage_with_samples_excludes_nothing_and_keeps_the_gate_closed(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = workspace(tmp_path)
    stranger = write(tmp_path / "renamed", {f"x.{k}": x for k, x in enumerate(network(5).values())})
    assert [r.status for r in known.add([tmp_path / "parent", "hf:acme/child", "hf:acme/stranger", stranger])] == [
        "added"
    ] * 4
    for kept in (False, True):  # drawn, and kept as drawn
        assert run("lineage", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert bool(document.get("reused")) == kept
        assert [f for f in document["families"] if len(f) > 1] == [["acme/child", "parent"]]
        assert {t["model"] for t in document["not_tested"] if t["what"] == "unread"} >= {"acme/stranger", "renamed"}
    assert run("lineage", "--fail-on-descendant-of", "parent") == 3
    assert "whether acme/stranger descends from parent is not decided" in " ".join(capsys.readouterr().err.split())


def test_the_budget_of_a_model_on_a_server_is_of_its_whole_size(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LIMITS", replace(budget.LIMITS, free_bytes=1 << 10, growth=2))
    monkeypatch.setattr(budget.Budget.__init__, "__defaults__", (budget.LIMITS,))
    assert load("hf:acme/child").is_partial


@pytest.mark.anywhere
@pytest.mark.slow
def test_the_example_builds_a_registry_and_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "stemma"
    program.parent.mkdir()
    has_export = (
        "registry"
        in subprocess.run(
            [sys.executable, "-m", "stemma.cli", "--help"], capture_output=True, text=True, check=False
        ).stdout.split("Usage")[0]
    )
    stand_in = "" if has_export else f'[ "$1 $2" = "registry export" ] && exec cp {tmp_path / "registry.db"} "$3"\n'
    program.write_text(f'#!/usr/bin/env bash\n{stand_in}exec {sys.executable} -c "{MAIN}" "$@"\n')
    program.chmod(0o755)
    listed, out, key = (tmp_path / name for name in ("models.txt", "registry.stemma", "key.pem"))
    listed.write_text("acme/child\nacme/gone\n")
    key.write_text("a key")

    def build() -> subprocess.CompletedProcess[str]:
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        words = [str(EXAMPLE / "build.sh"), str(listed), str(out), *([] if has_export else [str(key)])]
        return subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)

    first = build()
    assert (first.returncode, out.exists()) == (1, True), first.stderr
    assert "acme/gone" in first.stderr
    sent = hub.total
    listed.write_text("acme/child\n")
    second = build()
    assert second.returncode == 0, second.stderr
    assert "1 known" in second.stdout
    assert hub.total == sent
    names = [line.split(" #")[0].strip() for line in (EXAMPLE / "models.txt").read_text().splitlines()]
    assert all(parse(f"hf:{name}").repository for name in names if name and not name.startswith("#"))
    assert "build.sh models.txt" in (EXAMPLE / "workflow.yml").read_text()


@pytest.mark.anywhere
@pytest.mark.slow
def test_seven_billion_parameters_are_enrolled_and_traced_by_three_per_cent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    total = write_sparse(tmp_path / "parent", LLAMA_7B, 1)
    write_sparse(tmp_path / "child", LLAMA_7B, 2, base=1)
    assert total > 13e9
    with hub_server.serve(acme__child=tmp_path / "child") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        known = workspace(tmp_path)
        (result,) = known.add(["hf:acme/child"])
        assert (result.status, result.error) == ("added", None)
        found = known.trace(known.resolve("hf:acme/child"), against=[tmp_path / "parent"])
        assert found.verdict == "related"
        assert [r["name"] for r in (*found.parents, *found.relatives)] == ["parent"]
        assert hub.total < 0.03 * total
    for folder in ("parent", "child", "cache"):
        shutil.rmtree(tmp_path / folder)


@pytest.mark.slow
def test_a_sample_that_a_large_registry_did_not_compare_clears_nobody(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    for i in range(4):
        write(folder / f"m{i}", network(20 + i))
    known = workspace(tmp_path)
    assert all(r.status == "added" for r in known.add([folder]))
    suspect = load(write(tmp_path / "suspect", network(60)))
    assert "unread" not in {t["what"] for t in known.trace(suspect, limit=1).not_tested}
    assert known.add(["hf:acme/stranger"])[0].status == "added"
    found = known.trace(suspect, limit=1)
    compared = {c["name"] for c in found.candidates}
    assert "acme/stranger" in compared or "unread" in {t["what"] for t in found.not_tested}
    assert found.verdict != "no-known-parent"
