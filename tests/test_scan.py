"""Scans of model stores: what is new, changed and gone, what is read, and what is not followed."""

import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from checkpoints import Run, arrays_of, child_of
from stemma.checkpoints.formats.files import SourceFile
from stemma.checkpoints.stores.store import Store
from stemma.registry import Registry

pytestmark = pytest.mark.anywhere

CARD = "---\nlicense: gpl-3.0\nbase_model: acme/base\n---\n# A model\n"


class Hub:
    """A cache of the Hugging Face hub, as huggingface_hub lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def repository(self, name: str) -> Path:
        return self.root / f"models--{name.replace('/', '--')}"

    def revision(self, name: str, revision: str, files: dict[str, bytes], *, links: bool = True) -> Path:
        folder = self.repository(name)
        for part in ("blobs", "refs", f"snapshots/{revision}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
        for file, content in files.items():
            target = folder / "snapshots" / revision / file
            if not links:
                target.write_bytes(content)
                continue
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            if not blob.exists():
                blob.write_bytes(content)
            target.symlink_to(os.path.relpath(blob, target.parent))
        return folder / "snapshots" / revision


class Ollama:
    """A store of Ollama: manifests and blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "manifests").mkdir(parents=True)
        (root / "blobs").mkdir()

    def blob(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs" / f"sha256-{digest}"
        if not path.exists():
            path.write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def manifest(self, name: str, layers: list[dict[str, Any]]) -> Path:
        path = self.root / "manifests" / "registry.ollama.ai" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
        return path

    def model(self, name: str, weights: bytes, licence: bytes = b"MIT License\n\nCopyright") -> Path:
        return self.manifest(
            name,
            [
                {"mediaType": "application/vnd.ollama.image.model", **self.blob(weights)},
                {"mediaType": "application/vnd.ollama.image.license", **self.blob(licence)},
                {"mediaType": "application/vnd.ollama.image.template", **self.blob(b"{{ .Prompt }}")},
            ],
        )


def gguf_bytes(arrays: dict[str, np.ndarray], folder: Path) -> bytes:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "tmp.gguf", "llama")
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = (folder / "tmp.gguf").read_bytes()
    (folder / "tmp.gguf").unlink()
    return content


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "no-ollama"))
    return Hub(tmp_path / "hub")


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ollama:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return Ollama(tmp_path / "ollama")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of weights that are read, one entry per read."""
    counted: list[int] = []
    read, read_into = SourceFile.read, SourceFile.read_into

    def counting_read(self: SourceFile, offset: int, length: int) -> bytes:
        counted.append(length)
        return read(self, offset, length)

    def counting_read_into(self: SourceFile, offset: int, out: memoryview) -> None:
        counted.append(len(out))
        read_into(self, offset, out)

    monkeypatch.setattr(SourceFile, "read", counting_read)
    monkeypatch.setattr(SourceFile, "read_into", counting_read_into)
    return counted


def scanned(run: Run, *words: object, code: int = 0) -> dict[str, Any]:
    found, out, err = run("scan", *words, "--json")
    assert found == code, (found, err)
    return json.loads(out)


def counts(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return answer["n_models"], answer["n_new"], answer["n_changed"], answer["n_gone"]


def test_a_hub_cache_is_read_once_by_content_and_not_again(run: Run, hub: Hub, reads: list[int]) -> None:
    base, child = save(arrays_of(0)), save(child_of(arrays_of(0), 5))
    for revision in ("a" * 40, "b" * 40, "c" * 40):
        hub.revision(
            "acme/base", revision, {"model.safetensors": base, "config.json": b"{}", "README.md": CARD.encode()}
        )
    hub.revision("gpt2", "d" * 40, {"model.safetensors": child, "config.json": b"{}"})
    answer = scanned(run, "--add")
    assert counts(answer) == (2, 2, 0, 0)
    first, second = answer["models"]
    assert first["names"] == [f"hf:acme/base@{x * 7}" for x in "abc"]
    assert first["claims"] == {"license": "gpl-3.0", "base_model": "acme/base"}
    assert (first["enrolled"], second["name"]) == ("added", "hf:gpt2@ddddddd")
    assert [f["name"] for f in second["findings"]] == ["hf:acme/base@aaaaaaa"]
    assert sum(reads) >= len(base) + len(child) - 4000
    assert {m["name"] for m in json.loads(run("list", "--json")[1])["models"]} == {first["name"], second["name"]}
    reads.clear()
    again = scanned(run)
    assert counts(again) == (2, 0, 0, 0)
    assert sum(reads) == 0
    assert run("scan")[1].startswith("2 models: 0 new, 0 changed, 0 gone\n")
    assert run("check")[0] == 0


def test_without_links_and_with_several_checkpoints_in_a_revision(run: Run, hub: Hub) -> None:
    base = save(arrays_of(0))
    for revision in ("a" * 40, "b" * 40):
        hub.revision("acme/base", revision, {"model.safetensors": base, "config.json": b"{}"}, links=False)
    hub.revision("acme/two", "e" * 40, {"x.safetensors": save(arrays_of(1)), "y.safetensors": save(arrays_of(2)),
                                        "README.md": b"---\nlicense: mit\n---\n"})  # fmt: skip
    answer = scanned(run, "--hf")
    assert [m["name"] for m in answer["models"]] == ["hf:acme/base@aaaaaaa", "hf:acme/two@eeeeeee/x",
                                                     "hf:acme/two@eeeeeee/y"]  # fmt: skip
    assert answer["models"][0]["names"] == ["hf:acme/base@aaaaaaa", "hf:acme/base@bbbbbbb"]
    assert answer["models"][1]["claims"] == {"license": "mit"}
    hub.revision("acme/base", "f" * 40, {"model.safetensors": base, "config.json": b"{}"}, links=False)
    assert counts(scanned(run)) == (3, 0, 0, 0)  # a new revision with the same weights is nothing new


def test_what_is_new_changed_and_gone(run: Run, hub: Hub) -> None:
    folder = hub.root.parent / "models"
    folder.mkdir()
    save_file(arrays_of(0), folder / "a.safetensors")
    save_file(arrays_of(1), folder / "b.safetensors")
    assert counts(scanned(run, folder)) == (2, 2, 0, 0)
    save_file(arrays_of(2), folder / "b.safetensors")
    save_file(arrays_of(3), folder / "c.safetensors")
    answer = scanned(run, folder)
    assert counts(answer) == (3, 1, 1, 0)
    assert {m["name"]: m["status"] for m in answer["models"]} == {"a": "unchanged", "b": "changed", "c": "new"}
    (folder / "a.safetensors").rename(folder / "moved.safetensors")
    (folder / "c.safetensors").unlink()
    answer = scanned(run, folder)
    assert counts(answer) == (2, 0, 0, 1)
    assert {m["name"]: m["status"] for m in answer["models"]} == {"moved": "unchanged", "b": "unchanged", "c": "gone"}
    assert counts(scanned(run, folder)) == (2, 0, 0, 0)
    shutil.rmtree(folder)
    folder.mkdir()
    assert counts(scanned(run, folder)) == (0, 0, 0, 2)
    code, _, err = run("scan", folder)
    assert (code, "nothing was scanned" in err) == (1, True)


def test_a_change_that_keeps_size_and_time_is_found(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "a.safetensors"
    save_file(arrays_of(0), path)
    scanned(run, folder)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\x80\x3f"
    with path.open("r+b") as file:  # the same inode, size and time of change
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert counts(scanned(run, folder)) == (1, 0, 1, 0)


def test_an_ollama_store(run: Run, ollama: Ollama, tmp_path: Path, reads: list[int]) -> None:
    first, second = (gguf_bytes(arrays_of(seed), tmp_path) for seed in (0, 1))
    ollama.model("library/llama3/8b", first, b"\nLLAMA 3 COMMUNITY\x1b LICENSE AGREEMENT\nmore\n")
    ollama.model("library/llama3/latest", first, b"\nLLAMA 3 COMMUNITY\x1b LICENSE AGREEMENT\nmore\n")
    ollama.model("someone/tuned/q4", second)
    answer = scanned(run, "--ollama", "--add")
    assert counts(answer) == (2, 2, 0, 0)
    assert answer["models"][0]["names"] == ["ollama:llama3:8b", "ollama:llama3:latest"]
    assert answer["models"][1]["name"] == "ollama:someone/tuned:q4"
    assert "LLAMA 3 COMMUNITY" in answer["models"][0]["claims"]["license"]
    reads.clear()
    assert counts(scanned(run)) == (2, 0, 0, 0)
    assert sum(reads) == 0
    # A tag that stands for other weights now is a change, although the weights themselves are known.
    ollama.model("library/llama3/latest", second)
    answer = scanned(run)
    assert (answer["n_changed"], answer["n_new"]) == (1, 0)
    assert next(m for m in answer["models"] if m["status"] == "changed")["names"][0] == "ollama:llama3:latest"
    assert run("trace", "ollama:llama3:8b")[0] == 0  # enrolled under its name, read from its blob


def test_partial_downloads_are_listed(run: Run, hub: Hub) -> None:
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    shard = save({"a": np.ones(3, np.float32)})
    half = {"model.safetensors.index.json": index.encode(), "model-00001-of-00002.safetensors": shard}
    hub.revision("acme/half", "a" * 40, {**half, "config.json": b"{}"})
    snapshot = hub.revision("acme/dangling", "b" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"{}"})
    (snapshot / "model.safetensors").resolve().unlink()
    hub.revision("acme/begun", "c" * 40, {"config.json": b"{}"})
    (hub.repository("acme/begun") / "blobs" / "123.incomplete").write_bytes(b"\0" * 10)
    hub.revision("acme/tokenizer", "d" * 40, {"tokenizer.json": b"{}"})
    hub.revision("acme/good", "e" * 40, {"model.safetensors": save(arrays_of(1)), "config.json": b"{}"})
    answer = scanned(run, code=1)
    assert counts(answer) == (1, 1, 0, 0)
    open_ = {t["model"].partition("@")[0]: t["what"] for t in answer["not_tested"]}
    assert open_ == {name: "incomplete-download" for name in ("hf:acme/half", "hf:acme/dangling", "hf:acme/begun")}
    assert {(x["what"], x["name"].partition("@")[0]) for x in answer["left_out"]} == {
        ("unfinished-file", "hf:acme/begun/123.incomplete"), ("no-weights", "hf:acme/tokenizer"),
    }  # fmt: skip
    assert run("scan", "--allow-untested")[0] == 0
    code, _, err = run("scan", "--fail-on", "copy")
    assert (code, "not tested: hf:acme/half@aaaaaaa: " in err) == (3, True)


def test_nothing_outside_a_store_is_touched(run: Run, hub: Hub, ollama: Ollama, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    save_file(arrays_of(7), secret / "model.safetensors")
    (secret / "config.json").write_text("{}")
    good = save(arrays_of(1))
    snapshot = hub.revision("acme/evil", "a" * 40, {"config.json": b"{}"})
    (snapshot / "model.safetensors").symlink_to(secret / "model.safetensors")
    hub.revision("acme/refs", "b" * 40, {"model.safetensors": good, "config.json": b"{}"})
    (hub.repository("acme/refs") / "refs" / "main").write_text("../../../../secret")
    (hub.repository("acme/refs") / "snapshots" / ("c" * 40)).symlink_to(secret)
    (hub.root / "models--acme--linked").symlink_to(secret)
    (hub.repository("acme/inner") / "snapshots" / ("d" * 40)).mkdir(parents=True)
    (hub.repository("acme/inner") / "snapshots" / ("d" * 40) / "deep").symlink_to(secret)
    answer = scanned(run, hub.root, code=1)
    assert [m["name"] for m in answer["models"]] == ["hf:acme/refs@bbbbbbb"]
    assert {t["what"] for t in answer["not_tested"]} == {"link-outside"}
    assert len(answer["not_tested"]) == 4
    layer = {"mediaType": "application/vnd.ollama.image.model"}
    for number, digest in enumerate(
        ("sha256:../../secret/model.safetensors", "../secret", "sha256-" + "Z" * 64, None, 5)
    ):
        ollama.manifest(f"library/evil/{number}", [{**layer, "digest": digest, "size": 1}])
    linked = "0" * 64
    (ollama.root / "blobs" / f"sha256-{linked}").symlink_to(secret / "model.safetensors")
    ollama.manifest("library/evil/linked", [{**layer, "digest": f"sha256:{linked}"}])
    ollama.manifest("library/evil/short", [{**layer, **ollama.blob(b"short"), "size": 6}])
    ollama.manifest("library/evil/gone", [{**layer, "digest": f"sha256:{'1' * 64}", "size": 6}])
    (ollama.root / "manifests" / "registry.ollama.ai" / "library" / "evil" / "text").write_text("{not json")
    (ollama.root / "manifests" / "out").symlink_to(secret)
    ollama.manifest("library/evil/a\x1b[31m\u202e\n<script>", [{**layer, **ollama.blob(b"no weights at all")}])
    answer = scanned(run, ollama.root, code=1)
    assert answer["models"] == []
    assert sorted(t["what"] for t in answer["not_tested"]) == sorted(
        ["bad-manifest"] * 6 + ["link-outside"] * 2 + ["incomplete-download"] * 2 + ["unreadable-file"]
    )
    shown = "".join(map(str, run("scan", ollama.root)))
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_folder_with_links_out_of_it(run: Run, tmp_path: Path) -> None:
    folder, other = tmp_path / "models", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    save_file(arrays_of(0), other / "x.safetensors")
    save_file(arrays_of(1), folder / "mine.safetensors")
    (folder / "x.safetensors").symlink_to(other / "x.safetensors")
    (folder / "more").symlink_to(other)
    (folder / "inner.safetensors").symlink_to(folder / "mine.safetensors")
    answer = scanned(run, folder, code=1)
    assert [m["names"] for m in answer["models"]] == [["inner", "mine"]]
    assert {(t["what"], t["model"]) for t in answer["not_tested"]} == {
        ("link-outside", "x.safetensors"), ("link-outside", "more")
    }  # fmt: skip


def test_a_store_that_is_not_there_and_one_that_is_empty(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    for words in ((), ("--hf",), ("--ollama",), (tmp_path / "nowhere",)):
        code, out, err = run("scan", *words)
        assert (code, out, err.count("\n")) == (1, "", 1), words
    (tmp_path / "hub").mkdir()
    (tmp_path / "ollama" / "manifests").mkdir(parents=True)
    (tmp_path / "ollama" / "blobs").mkdir()
    code, out, err = run("scan")
    assert (code, out, "nothing was scanned" in err) == (1, "", True)


def test_what_a_policy_refuses_is_not_accepted_by_scanning_again(run: Run, hub: Hub) -> None:
    hub.revision("acme/base", "a" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"{}"})
    assert run("scan", "--fail-on-new")[0] == 3
    assert run("scan", "--fail-on-new")[0] == 3
    assert run("scan")[0] == 0  # accepted
    assert run("scan", "--fail-on-new")[0] == 0
    assert run("scan", "--add", "--fail-on-new")[0] == 2
    # A policy that was not asked for before is asked about every model.
    hub.revision("acme/gpl", "b" * 40, {"model.safetensors": save(arrays_of(1)), "config.json": b"{}",
                                        "README.md": CARD.encode()})  # fmt: skip
    answer = scanned(run, "--add")
    assert counts(answer) == (2, 1, 0, 0)
    code, out, err = run("scan", "--deny-license", "gpl-3.0", "--allow-untested", "--json")
    answer = json.loads(out)
    assert (code, counts(answer)) == (3, (2, 0, 0, 0))
    assert "hf:acme/gpl@bbbbbbb: " in err
    assert {m["name"]: m["refused"] for m in answer["models"]} == {
        "hf:acme/base@aaaaaaa": False, "hf:acme/gpl@bbbbbbb": True
    }  # fmt: skip
    assert run("scan", "--deny-license", "gpl-3.0", "--allow-untested")[0] == 3
    # Descent from a model that is refused, found for a model that comes later.
    hub.revision("acme/child", "c" * 40, {"model.safetensors": save(child_of(arrays_of(1), 5)), "config.json": b"{}"})
    assert run("scan", "--fail-on-descendant-of", "hf:acme/gpl@bbbbbbb")[0] == 3
    assert run("scan", "--fail-on-descendant-of", "typo")[0] == 1


def test_a_damaged_file_does_not_stop_the_others_and_stays_open(run: Run, hub: Hub) -> None:
    hub.revision("acme/bad", "a" * 40, {"model.safetensors": b"\xff" * 50, "config.json": b"{}"})
    hub.revision("acme/good", "b" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"{}"})
    for new in (1, 0):
        answer = scanned(run, code=1)
        assert counts(answer) == (1, new, 0, 0)
        assert [(t["what"], t["model"]) for t in answer["not_tested"]] == [("unreadable-file", "hf:acme/bad@aaaaaaa")]


def test_an_interrupted_scan_remembers_what_it_did(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, revision in enumerate("abc"):
        hub.revision(
            f"acme/m{number}", revision * 40, {"model.safetensors": save(arrays_of(number)), "config.json": b"{}"}
        )
    from stemma.workspace.workspace import Workspace

    trace, calls = Workspace.trace, []

    def interrupted(self: Workspace, model: Any, *rest: Any, **options: Any) -> Any:
        calls.append(model.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trace(self, model, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "trace", interrupted)
        assert run("scan")[0] != 0
    record = Registry().last_scan(Store("hf", hub.root).place)
    assert record is not None
    assert [c.names[0] for c in record.checkpoints] == ["hf:acme/m0@aaaaaaa", "hf:acme/m1@bbbbbbb"]
    assert counts(scanned(run)) == (3, 1, 0, 0)


def test_a_name_that_another_model_has_is_not_taken_from_it(run: Run, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        save_file(arrays_of(number), tmp_path / name / "model.safetensors")
    run("add", tmp_path / "one" / "model.safetensors")
    answer = scanned(run, tmp_path / "two", "--add")
    assert [(m["name"], m["enrolled_as"]) for m in answer["models"]] == [("model", "two/model")]
    assert {m["name"] for m in json.loads(run("list", "--json")[1])["models"]} == {"model", "two/model"}
    save_file(arrays_of(5), tmp_path / "two" / "model.safetensors")
    answer = scanned(run, tmp_path / "two", "--add")
    assert [(m["enrolled_as"], m["enrolled"]) for m in answer["models"]] == [("two/model", "replaced")]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes there alone")
def test_a_name_that_is_no_text_is_listed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(arrays_of(0), folder / "good.safetensors")
    try:
        shutil.copy(folder / "good.safetensors", os.fsencode(folder) + b"/bad\xff.safetensors")
    except OSError:
        pytest.skip("this file system takes no such name")
    answer = scanned(run, folder, code=1)
    assert [m["names"] for m in answer["models"]] == [["good"]]
    assert [t["what"] for t in answer["not_tested"]] == ["unsupported-file"]
    assert "\\udcff" in run("scan", folder)[1]


def test_the_cache_of_these_tests_is_one_that_its_own_library_reads(hub: Hub) -> None:
    library = pytest.importorskip("huggingface_hub")
    hub.revision("acme/base", "a" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"{}"})
    hub.revision("acme/base", "b" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"[]"})
    hub.revision("gpt2", "c" * 40, {"model.safetensors": save(arrays_of(1)), "config.json": b"{}"})
    found = library.scan_cache_dir(hub.root)
    revisions = {f"hf:{repo.repo_id}@{r.commit_hash[:7]}" for repo in found.repos for r in repo.revisions}
    models, omitted = Store("hf", hub.root).read()
    assert {name for m in models for name in m.names} == revisions
    assert omitted == []
    assert not found.warnings


def test_what_a_registry_remembers_of_a_scan_is_checked(run: Run, hub: Hub) -> None:
    hub.revision("acme/base", "a" * 40, {"model.safetensors": save(arrays_of(0)), "config.json": b"{}"})
    scanned(run)
    assert run("check")[0] == 0
    with sqlite3.connect(os.environ["STEMMA_REGISTRY"]) as connection:
        connection.execute("UPDATE scan SET record = replace(record, 'acme/base', 'acme/lies')")
    code, out, _ = run("check", "--json")
    assert (code, [f["subject"] for f in json.loads(out)["findings"]]) == (1, ["scan 1"])


def test_an_empty_path_is_misuse(run: Run) -> None:
    assert run("scan", "")[0] == 2
