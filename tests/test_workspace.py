"""Enrolling, resolving and tracing with real files; every shortcut against the long way."""

import dataclasses
import importlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma.kinship.compare as kinship
from plain_networks import mlp, perturbed, reordered
from stemma.checkpoints.load import Checkpoint
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, NotAModelError, UnknownNameError, UnreadableModelError, UnusableRegistryError
from stemma.fingerprints.gradient_field import GradientField
from stemma.networks.load import load
from stemma.registry import Registry, comparisons, ingest
from stemma.registry.model_records import has_no_weights
from stemma.registry.search import SketchIndex
from stemma.types import Spec
from stemma.workspace import Workspace


def network(seed: int, width: int = 48) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = (20, width, width, 10)
    return {f"fc{i}.weight": rng.standard_normal((b, a)).astype(np.float32) for i, (a, b) in enumerate(pairwise(sizes))}


def tuned(weights: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    return {k: (v + 0.05 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in weights.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root, its fine-tuned child, and strangers."""
    home = tmp_path / "models"
    (home / "sub").mkdir(parents=True)
    save_file(network(1), home / "root.safetensors")
    save_file(tuned(network(1), 1), home / "sub" / "child.safetensors")
    for i in range(3):
        save_file(network(10 + i), home / f"stranger{i}.safetensors")
    return home


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Registry(tmp_path / "home" / "r.db") as registry:
        yield Workspace(registry)


NAMES = ["root", "stranger0", "stranger1", "stranger2", "sub/child"]


@pytest.mark.anywhere
def test_a_folder_is_enrolled_under_relative_names(workspace: Workspace, folder: Path) -> None:
    results = workspace.add([folder], license="mit")
    assert [(r.name, r.status, r.error) for r in results] == [(n, "added", None) for n in NAMES]
    for r in results:
        record, direct = workspace.show(r.name), load(Path(r.path))
        assert record.digest == r.digest == direct.digest
        assert record.names_free_digest == direct.names_free_digest
        assert (record.parameters, record.tensors) == (direct.parameters, len(direct.tensors))
        assert (record.license, record.format, record.source) == ("mit", "safetensors", direct.source)
        sketches = [workspace.registry.fingerprint(record.digest, m.spec) for m in ingest.fingerprinters()]
        assert [s.model for s in sketches if s] == [record.digest] * len(ingest.fingerprinters())
    assert [r.status for r in workspace.add([folder])] == ["known"] * 5
    assert workspace.check() == []


@pytest.mark.anywhere
def test_one_bad_file_never_stops_the_rest(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    (folder / "m-bad.safetensors").write_bytes(b"\xff" * 100)
    (folder / "notes.txt").write_text("no checkpoint")
    (tmp_path / "empty").mkdir()
    results = {r.name: r for r in workspace.add([folder, tmp_path / "nowhere", tmp_path / "empty"])}
    assert {n for n, r in results.items() if r.status == "failed"} == {"m-bad", "nowhere", "empty"}
    assert all(r.error and r.digest is None for r in results.values() if r.status == "failed")
    assert [r.name for r in workspace.list()] == NAMES


@pytest.mark.anywhere
def test_names_and_replacement(workspace: Workspace, folder: Path) -> None:
    (one,) = workspace.add([folder / "root.safetensors"], name="given")
    assert (one.name, one.status) == ("given", "added")
    with pytest.raises(MisuseError, match="5 checkpoints"):
        workspace.add([folder], name="given")
    (clash,) = workspace.add([folder / "stranger0.safetensors"], name="given")
    assert clash.status == "failed"
    assert "different weights" in str(clash.error)
    (new,) = workspace.add([folder / "stranger0.safetensors"], name="given", replace=True)
    assert new.status == "replaced"
    assert workspace.show("given").digest == new.digest != one.digest
    assert workspace.remove("given").digest == new.digest
    assert workspace.list() == ()


def test_enrolling_needs_no_loop_and_tells_of_each_model(workspace: Workspace, folder: Path) -> None:
    seen: list[tuple[str, bool]] = []
    workspace.add([folder], on_result=lambda r: seen.append((r.name, r.name in {m.name for m in workspace.list()})))
    assert seen == [(name, True) for name in NAMES]


@pytest.mark.slow
@pytest.mark.anywhere
def test_several_processes_enrol_what_one_does(folder: Path, tmp_path: Path) -> None:
    (folder / "m-bad.safetensors").write_bytes(b"\xff" * 100)
    outcomes = []
    for jobs in (1, 2):
        with Registry(tmp_path / f"{jobs}.db") as registry:
            results = list(Workspace(registry, jobs=jobs).add([folder]))
            listed = [dataclasses.replace(r, added_at="") for r in registry.models()]
            sketches = [
                {k: np.asarray(v).tobytes() for k, v in f.values.items()}
                for m in ingest.fingerprinters()
                for f in registry.fingerprints(m.spec)
            ]
            outcomes.append((results, listed, sketches))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 5


def test_a_program_error_in_a_reader_is_a_failure_of_its_file(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ingest.open_models

    def fragile(path: Path, name: str) -> tuple[Model, ...]:
        if name == "stranger1":
            raise RecursionError("too deep")
        return real(path, name)

    monkeypatch.setattr(ingest, "open_models", fragile)
    status = {r.name: (r.status, r.error) for r in workspace.add([folder])}
    assert status.pop("stranger1")[0] == "failed"
    assert set(status.values()) == {("added", None)}


def test_progress_is_reported(workspace: Workspace, folder: Path) -> None:
    seen: list[tuple] = []
    w = Workspace(workspace.registry, progress=lambda *said: seen.append(said))
    w.add([folder])
    w.check()
    w.trace(load(folder / "root.safetensors"))
    assert ("adding sub/child", 4, 5) in seen
    assert ("checking root", 0, 5) in seen
    assert ("comparing with sub/child", 3, 4) in seen


# Resolving


def test_a_path_goes_before_a_name_before_a_digest(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add([folder])
    root = load(folder / "root.safetensors")
    assert workspace.resolve(str(folder / "root.safetensors")).digest == root.digest
    assert workspace.resolve("sub/child").name == "sub/child"
    assert workspace.resolve(root.digest[7:17]).ref == workspace.show("root").ref
    monkeypatch.chdir(folder)
    save_file(network(99), "root")
    assert workspace.resolve("root").digest == load(Path("root")).digest != root.digest
    with pytest.raises(UnknownNameError, match="Did you mean 'stranger1'"):
        workspace.resolve("stranger1x")
    (folder / "empty").mkdir()
    with pytest.raises(NotAModelError):
        workspace.resolve(str(folder / "empty"))


@pytest.mark.anywhere
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_kept_weights_stand_in_for_a_source_that_is_not_there(workspace: Workspace, folder: Path, how: str) -> None:
    workspace.add([folder / "root.safetensors"], keep_weights=True)
    workspace.add([folder / "stranger0.safetensors"])
    for name, seed in (("root", 1), ("stranger0", 10)):
        path = folder / f"{name}.safetensors"
        if how == "gone":
            path.unlink()
        else:
            save_file(network(77), path)
        found = workspace.resolve(name)
        assert found.digest == workspace.show(name).digest
        assert has_no_weights(found) == (name == "stranger0")
        assert found.notes
        if name == "root":
            np.testing.assert_array_equal(found.tensors["fc1.weight"].array(), network(seed)["fc1.weight"])
        else:
            with pytest.raises(UnreadableModelError, match="stranger0"):
                found.tensors["fc1.weight"].array()
    assert sorted(f.kind for f in workspace.check()) == [f"source-{how}"] * 2


@pytest.mark.anywhere
def test_weights_that_change_while_they_are_kept_are_refused(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ingest.ingest

    def then_changed(checkpoint: Checkpoint, license: str | None) -> tuple | str:
        found = real(checkpoint, license)
        save_file(network(77), checkpoint.path)
        return found

    monkeypatch.setattr(ingest, "ingest", then_changed)
    (result,) = workspace.add([folder / "root.safetensors"], keep_weights=True)
    assert result.status == "failed"
    assert "changed while it was being added" in str(result.error)
    assert workspace.list() == ()
    assert workspace.check() == []


# Questions


def test_a_trace_finds_the_child_and_no_stranger(workspace: Workspace, folder: Path) -> None:
    workspace.add([folder])
    found = workspace.trace(workspace.resolve("sub/child"))
    assert found.n_searched == 4  # all but itself
    assert [c["name"] for c in found.candidates if c["verdict"] == "related"] == ["root"]
    assert found.copies == ()
    stranger = workspace.trace(workspace.resolve("stranger0"))
    assert [c["name"] for c in stranger.candidates if c["verdict"] == "related"] == []
    assert stranger.verdict == "no-known-parent"
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("strangers", [1, 6, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.first(1)
def test_a_reordered_child_is_found_in_a_registry_of_any_size(
    workspace: Workspace, tmp_path: Path, strangers: int
) -> None:
    home = tmp_path / "many"
    home.mkdir()
    arrays, _ = mlp(100)
    save_file(arrays, home / "parent.safetensors")
    for i in range(strangers):
        save_file(mlp(200 + i)[0], home / f"stranger{i:02d}.safetensors")
    workspace.add([home])
    save_file(perturbed(reordered(arrays, None), 0.1), tmp_path / "suspect.safetensors")
    found = workspace.trace(load(tmp_path / "suspect.safetensors"))
    assert [c["name"] for c in found.candidates if c["verdict"] == "related"] == ["parent"]
    assert found.verdict in ("related", "descends")
    stranger, _ = mlp(999)
    save_file(stranger, tmp_path / "stranger.safetensors")
    assert workspace.trace(load(tmp_path / "stranger.safetensors")).verdict == "no-known-parent"


@pytest.mark.anywhere
def test_undecided_candidates_are_listed_and_acquit_nobody(workspace: Workspace, tmp_path: Path) -> None:
    home = tmp_path / "some"
    home.mkdir()
    for i in range(8):
        save_file(mlp(200 + i)[0], home / f"stranger{i}.safetensors")
    coded = {n: np.arange(x.size, dtype=np.uint8).reshape(x.shape) for n, x in mlp(300)[0].items()}
    save_file(coded, home / "codes.safetensors")
    workspace.add([home])
    save_file(mlp(999)[0], tmp_path / "suspect.safetensors")
    found = workspace.trace(load(tmp_path / "suspect.safetensors"))
    assert found.verdict == "inconclusive"
    assert [t["model"] for t in found.not_tested] == ["codes"]
    assert {c["name"]: c["verdict"] for c in found.candidates}["codes"] == "inconclusive"


@pytest.mark.anywhere
def test_a_trace_against_files_is_that_against_the_registry(workspace: Workspace, folder: Path) -> None:
    workspace.add([folder])
    suspect = load(folder / "sub" / "child.safetensors")
    (folder / "m-bad.safetensors").write_bytes(b"\xff" * 100)
    enrolled, files = workspace.trace(suspect).to_dict(), workspace.trace(suspect, against=[folder]).to_dict()
    (left,) = files.pop("not_tested")
    assert (left["what"], left["model"]) == ("unreadable-file", "")
    assert "m-bad" in left["why"]
    assert enrolled.pop("not_tested") == []
    assert enrolled == files


def test_files_of_one_name_stay_apart(workspace: Workspace, folder: Path) -> None:
    save_file(network(1), folder / "sub" / "root.safetensors")
    paths = [folder / "root.safetensors", folder / "sub" / "root.safetensors", folder / "stranger0.safetensors"]
    found = workspace.trace(load(folder / "sub" / "child.safetensors"), against=paths)
    assert len({c["name"] for c in found.candidates}) == 3
    assert len([c for c in found.candidates if c["verdict"] == "related"]) == 2


def test_an_enrolled_copy_is_named_and_the_same_file_is_not(workspace: Workspace, folder: Path) -> None:
    workspace.add([folder])
    save_file({f"x.{k}": v for k, v in network(1).items()}, folder / "renamed.safetensors")
    found = workspace.trace(load(folder / "renamed.safetensors"))
    assert [(c["name"], c["relation"]) for c in found.copies] == [("root", "reformatted")]
    assert workspace.trace(load(folder / "root.safetensors")).copies == ()


@pytest.mark.anywhere
def test_what_was_worked_out_is_recalled(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add([folder])
    calls: list[tuple] = []
    real = kinship.compare

    def counted(a: Model, b: Model, **options):
        calls.append((a.name, b.name))
        return real(a, b, **options)

    monkeypatch.setattr(kinship, "compare", counted)
    suspect = workspace.resolve("sub/child")
    first = workspace.trace(suspect).to_dict()
    assert len(calls) == 4
    assert workspace.trace(suspect).to_dict() == first
    assert len(calls) == 4
    workspace.trace(suspect, alpha=0.05)  # another question
    assert len(calls) == 8


@pytest.mark.anywhere
def test_a_candidate_that_cannot_be_compared_never_stops_the_search(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add([folder])
    real = kinship.compare

    def fragile(a: Model, b: Model, **options):
        if "stranger1" in a.name:
            raise UnreadableModelError("stranger1 became shorter")
        return real(a, b, **options)

    monkeypatch.setattr(kinship, "compare", fragile)
    suspect = workspace.resolve("sub/child")
    for against in (None, [folder]):
        for jobs in (1, 3):
            found = Workspace(workspace.registry, jobs=jobs).trace(suspect, against=against)
            verdicts = {c["name"]: c["verdict"] for c in found.candidates}
            assert (verdicts["stranger1"], verdicts["root"]) == ("inconclusive", "related")
            told = {"what": "comparison-failed", "model": "stranger1", "why": "stranger1 became shorter"}
            assert found.not_tested == (told,)
    monkeypatch.setattr(kinship, "compare", real)  # what failed was not kept
    again = workspace.trace(suspect)
    assert {c["verdict"] for c in again.candidates if c["name"] == "stranger1"} == {"independent"}


def test_a_comparison_comes_back_as_it_was(folder: Path) -> None:
    a, b, c = (load(folder / f"{n}.safetensors") for n in ("root", "sub/child", "stranger0"))
    for pair in ((a, b), (a, c), (a, a)):
        found = kinship.compare(*pair)
        stored = json.loads(json.dumps(comparisons.encode(found), allow_nan=False))
        again = comparisons.decode(stored, pair[0].ref, pair[1].ref)
        assert json.loads(json.dumps(again.to_dict())) == json.loads(json.dumps(found.to_dict()))
        assert again.weights.null == found.weights.null
        assert again.weights.p_value == found.weights.p_value


def test_a_source_that_is_gone_is_answered_from_the_sketch(workspace: Workspace, folder: Path) -> None:
    workspace.add([folder])
    suspect = load(folder / "sub" / "child.safetensors")
    (folder / "root.safetensors").unlink()
    found = workspace.trace(suspect)
    (row,) = [c for c in found.candidates if c["name"] == "root"]
    assert row["verdict"] == "related"
    assert row["weights"]["statistic"] == "units-alike-sketched"
    assert row["weights"]["log10_p"] < -6
    strangers = [c for c in found.candidates if c["name"] not in ("root", "sub/child")]
    assert strangers
    assert all(c["verdict"] != "related" and c["effect"] < row["effect"] for c in strangers)
    (left,) = [t for t in found.not_tested if t["model"] == "root"]
    assert (left["what"], "are no longer at" in left["why"]) == ("weights-gone", True)
    both = workspace.compare(workspace.resolve("root"), suspect)
    assert both.verdict == "related"
    save_file(network(1), folder / "again.safetensors")
    same = workspace.compare(workspace.resolve("root"), load(folder / "again.safetensors"))
    assert (same.verdict, same.relation.kind) == ("related", "copy")
    # A suspect without weights is still recognised by its digests.
    workspace.add([folder / "again.safetensors"])
    assert [c["name"] for c in workspace.trace(workspace.resolve("root")).copies] == ["again"]


@pytest.mark.slow
@pytest.mark.anywhere
def test_a_large_registry_is_searched_by_sketch_and_shared_tensors(workspace: Workspace, folder: Path) -> None:
    for i in range(20):
        save_file(network(100 + i), folder / f"crowd{i:02}.safetensors")
    body = network(200)
    save_file({**body, "fc0.weight": network(1)["fc0.weight"]}, folder / "shares.safetensors")
    workspace.add([folder])
    suspect = workspace.resolve("sub/child")
    few, all_ = workspace.trace(suspect, limit=3), workspace.trace(suspect, limit=1000)
    assert few.n_searched == all_.n_searched == 25
    assert len(all_.candidates) == 25
    assert 3 <= len(few.candidates) <= 8
    related = [[c["name"] for c in t.candidates if c["verdict"] == "related"] for t in (few, all_)]
    assert related[0][0] == related[1][0] == "root"
    near = workspace.trace(workspace.resolve("root"), limit=3)
    assert "shares" in {c["name"] for c in near.candidates}  # by its one shared tensor


@pytest.mark.anywhere
def test_a_registry_that_cannot_be_written_still_answers(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add([folder])

    def refuse(*_: object, **__: object) -> None:
        raise UnusableRegistryError("read-only")

    monkeypatch.setattr(workspace.registry, "put_evidence", refuse)
    assert workspace.trace(workspace.resolve("sub/child")).n_searched == 4
    monkeypatch.setattr(workspace.registry, "add", refuse)
    with pytest.raises(UnusableRegistryError):
        workspace.add([folder / "root.safetensors"], name="new")


@pytest.mark.anywhere
@pytest.mark.slow
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    """The benchmark's hundred, in small, and its control: a model that is taken out is reported as lost."""
    reliability = importlib.import_module("reliability")
    writers = reliability.Writers(tmp_path)
    found = reliability.kills(tmp_path, writers, count=10, seed=7)
    assert found["kills"] == 10
    assert found["lost"] == found["half"] == found["findings"] == found["rerun_failures"] == []
    assert found["orphans"] == 0
    assert sum(found["enrolled_when_killed"]) > 0
    whole = reliability.two_at_once(tmp_path, writers, seed=8)
    assert (whole["models"], whole["failed"], whole["lost"], whole["findings"]) == (whole["expected"], 0, [], [])
    with Registry(tmp_path / "two" / "r.db") as registry:
        enrolled = {r.name: r.digest for r in registry.models()}
        registry.remove("both-000")
    assert reliability.missing(tmp_path / "two" / "r.db", enrolled)["lost"] == ["both-000"]


def test_probes_that_are_none_are_refused_in_one_sentence(workspace: Workspace, folder: Path) -> None:
    a, b = load(folder / "root.safetensors"), load(folder / "stranger0.safetensors")
    for given in ("digits.npz", np.zeros((4, 3)), Path("digits.npz")):
        with pytest.raises(MisuseError, match=f"not {type(given).__name__}: use Probes.of"):
            workspace.compare(a, b, probes=given)  # ty: ignore[invalid-argument-type]
        with pytest.raises(MisuseError, match=r"Probes\.of"):
            workspace.distance(a, b, given)  # ty: ignore[invalid-argument-type]
        with pytest.raises(MisuseError, match=r"stemma\.Probes\.of"):
            GradientField()(a, given)  # ty: ignore[invalid-argument-type]


@pytest.mark.anywhere
def test_a_large_registry_is_not_called_searched_where_it_was_not(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save_file(tuned(network(1), 20 + i), folder / f"sibling{i}.safetensors")
    workspace.add([folder])
    save_file(tuned(network(1), 9), folder.parent / "suspect.safetensors")
    save_file(network(99), folder.parent / "alone.safetensors")
    suspect, alone = (load(folder.parent / f"{n}.safetensors") for n in ("suspect", "alone"))
    within = workspace.trace(suspect, limit=2)  # all that was compared is related, and so may the rest be
    assert [t["what"] for t in within.not_tested] == ["not-looked-at"]
    past = workspace.trace(suspect, limit=7)
    assert (past.not_tested, len(past.candidates), past.n_searched) == ((), 8, 9)
    assert "1 of 9 models, which were compared by weight sketch only" in past.cannot_see
    stranger = workspace.trace(alone, limit=2)
    assert (stranger.verdict, stranger.not_tested) == ("no-known-parent", ())
    real = workspace.registry.sketch_index

    def without_one(spec: Spec) -> SketchIndex:
        index = real(spec)
        return SketchIndex(index._digests[1:], index._words[1:].view(np.uint8))

    monkeypatch.setattr(workspace.registry, "sketch_index", without_one)
    lacking = workspace.trace(alone, limit=2)
    assert (lacking.verdict, [t["what"] for t in lacking.not_tested]) == ("inconclusive", ["no-sketch"])
    assert lacking.not_tested[0]["why"].startswith("no weight sketch is kept of 1 of 9 models")


def test_nothing_to_search_is_no_answer(workspace: Workspace, folder: Path) -> None:
    suspect = load(folder / "root.safetensors")
    for against in (None, [folder / "root.safetensors"]):
        found = workspace.trace(suspect, against=against)
        assert (found.verdict, [t["what"] for t in found.not_tested]) == ("inconclusive", ["nothing-searched"])
    assert not workspace.registry.path.exists()
    assert [f.kind for f in workspace.check()] == ["missing"]
