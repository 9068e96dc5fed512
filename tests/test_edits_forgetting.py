"""A class goes, the others stay, and what was done is on record; refusals are one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edited_networks import LOST, held_out, prepared, probes, stemma
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.edits.artefacts.measured_effect import accuracy
from stemma.edits.artefacts.save import write
from stemma.edits.editable_network import editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.forget_samples import shuffled_blocks
from stemma.edits.unlearning.unlearning import Unlearning, restored_weights
from stemma.errors import MisuseError, StemmaError
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.registry import Registry
from stemma.types import RelationKind
from stemma.verification.edit import EditReplay, read

home = pytest.fixture(scope="module")(prepared)


def figures(model: Model, edited: Model) -> tuple[float, float]:
    """Share of the lost class still answered, and what is lost of the others."""
    asked = held_out()
    assert asked.labels is not None
    mine = asked.labels == LOST
    a, b = (editable_copy(m).outputs(asked.inputs).argmax(1).numpy() for m in (model, edited))
    return float((b[mine] == LOST).mean()), float((a == asked.labels)[~mine].mean() - (b == asked.labels)[~mine].mean())


@pytest.mark.parametrize("kind", ["mlp", "cnn", "vit"])
@pytest.mark.first(1)
def test_a_class_goes_and_the_others_stay_where_other_inputs_are_given(home: Path, kind: str) -> None:
    model = load(home / kind)
    edited = Unlearning()(model, probes(home, "lost"), Probes.of(probes(home, "rest").inputs))
    forget, drop = figures(model, edited.model)
    assert forget < 0.08
    assert drop < (0.3 if kind == "vit" else 0.08)
    assert figures(model, model)[0] > 0.7  # the control
    back = restored_weights(edited.model, edited.undo)
    original = {n: t.array() for n, t in model.tensors.items()}
    assert all(np.array_equal(back[n], original[n]) for n in original)


def test_samples_alone_spare_the_others_in_a_network_with_batch_norm(home: Path) -> None:
    model, mine = load(home / "cnn"), probes(home, "lost")
    edited = Unlearning()(model, mine)
    kept = held_out()
    assert kept.labels is not None
    kept = kept.take(kept.labels != LOST)
    before, after = (accuracy(editable_copy(m), kept) for m in (model, edited.model))
    assert before is not None
    assert after is not None
    assert after > before - 0.08
    assert edited.receipt.measured["forget"][1] <= 0.01


def test_the_published_method_forgets_and_its_entries_are_listed(home: Path) -> None:
    model = load(home / "cnn")
    edited = Unlearning.official("zero")(model, probes(home, "lost"))
    forget, _ = figures(model, edited.model)
    assert forget < 0.08
    child, parent = ({n: t.array() for n, t in m.tensors.items()} for m in (edited.model, model))
    for name in parent:
        changed = {tuple(map(int, c[:2])) for c in np.argwhere(child[name] != parent[name])}
        listed = set(edited.plan.entries.get(name, ()))
        assert changed <= listed
        assert all(not child[name][c].any() for c in listed)
    few = Unlearning.official("zero")
    random = np.random.default_rng(0)
    arrays = dict(parent)
    for name, entries in edited.plan.entries.items():  # the control: as many entries at random change little
        flat = random.permutation(arrays[name].shape[0] * arrays[name].shape[1])[: len(entries)]
        arrays[name] = arrays[name].copy()
        arrays[name][np.divmod(flat, arrays[name].shape[1])] = 0
    from stemma.networks.load import from_arrays

    control = from_arrays(arrays, "random", model.config)
    assert figures(model, control)[0] > 0.5
    assert few.spec.params["contrast"] is False


def test_unlearned_on_the_command_line_verified_and_traced(home: Path) -> None:
    out = home / "forgot"
    done = stemma(
        "unlearn", home / "cnn", "--forget", home / "lost.npz", "--retain", home / "rest.npz", "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["receipt"]["measured"]["forget"][1] <= 0.01
    assert {p.name for p in out.iterdir()} >= {"plan.json", "receipt.json", "model.safetensors"}
    checked = stemma("verify", "edit", out, "--probes", home / "lost.npz", "--retain", home / "rest.npz", "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["good"] is True
    assert all(c["good"] for c in json.loads(checked.stdout)["checks"])
    partly = [stemma("verify", "edit", out, *strict) for strict in ((), ("--strict",))]
    assert [done.returncode for done in partly] == [0, 3]
    assert "not tested: " in partly[1].stderr
    traced = stemma("trace", out, "--against", home / "cnn", home / "mlp", "--probes", home / "probes.npz", "--json")
    parents = json.loads(traced.stdout)["parents"]
    assert [(p["name"], p["relation"]) for p in parents] == [("cnn", RelationKind.UNLEARNED)]


@pytest.mark.slow
def test_what_was_changed_after_the_edit_is_found(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert stemma("prune", home / "mlp", "--ratio", ".3", "--probes", home / "probes.npz", "--out", out).returncode == 0
    parent = load(home / "mlp")
    assert all(f.good is not False for f in EditReplay()(out, parent))
    plan = json.loads((out / "plan.json").read_text())
    plan["kept"]["layers.0"] = plan["kept"]["layers.0"][1:]
    (out / "plan.json").write_text(json.dumps(plan))
    assert [f.check for f in EditReplay()(out, parent) if f.good is False] == ["plan"]
    shutil.copytree(out, tmp_path / "q")
    model = load(out)
    arrays = {n: t.array().copy() for n, t in model.tensors.items()}
    arrays["layers.0.weight"][0, 0] += 0.5
    from stemma.networks.load import from_arrays

    save(from_arrays(arrays, "q", model.config), tmp_path / "q", replace=True)
    for name in ("plan.json", "receipt.json"):
        shutil.copy(out / name, tmp_path / "q" / name)
    done = stemma("verify", "edit", tmp_path / "q", "--parent", home / "mlp", "--json")
    assert done.returncode == 1
    assert {c["check"] for c in json.loads(done.stdout)["checks"] if c["good"] is False} >= {"weights", "slices"}
    other = EditReplay()(out, parent, Probes.of(probes(home).inputs[:30]))
    assert "inputs or labels differ" in other[-1].reason
    plan["slices"]["layers.0.weight"]["0"][0] = 10**6
    (out / "plan.json").write_text(json.dumps(plan))
    assert any("cannot be carried out" in f.reason for f in EditReplay()(out, parent) if f.good is False)
    (out / "receipt.json").write_text("{")
    with pytest.raises(StemmaError, match="cannot be read"):
        read(out)


def test_refusals_are_one_sentence(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    asked = home / "probes.npz"
    cases = [
        (["prune", home / "cnn", "--probes", asked, "--out", out], 2, "give either how much to remove"),
        (["prune", home / "cnn", "--ratio", ".3", "--probes", asked], 2, "no folder is given"),
        (["prune", home / "cnn", "--budget", "macs=2", "--probes", asked, "--out", out], 2, "macs=0.5"),
        (["prune", home / "cnn", "--budget", "luck=.5", "--probes", asked, "--out", out], 2, "no budget 'luck'"),
        (["prune", home / "cnn", "--budget", "macs=.01", "--probes", asked, "--out", out], 2, "cannot be met"),
        (["prune", home / "cnn", "--ratio", ".3", "--probes", home / "text.npz", "--out", out], 2, "image inputs"),
        (["prune", home / "cnn", "--ratio", ".3", "--probes", asked, "--out", home / "mlp"], 2, "exists"),
        (["prune", home / "cnn", "--ratio", ".3", "--probes", asked, "--out", out, "-P", "luck=1"], 2, "not a param"),
        (["unlearn", home / "lm", "--forget", home / "text.npz", "--out", out], 2, "one score per class"),
        (["unlearn", home / "cnn", "--forget", home / "rest.npz", "--out", out], 2, "one class that it recognises"),
        (["unlearn", home / "cnn", "--forget", home / "lost.npz", "--out", out, "-P", "max_fraction=.001",
          "-P", "action=zero"], 1, "still predicted"),
        (["unlearn", home / "mlp", "--forget", home / "lost.npz", "--out", out, "-P", "action=refit"], 2, "made=True"),
        (["verify", "edit", home / "cnn"], 1, "cannot be read"),
    ]  # fmt: skip
    for words, code, said in cases:
        done = stemma(*words)
        assert done.returncode == code, (words, done.stderr)
        assert said in " ".join(done.stderr.split()), (words, done.stderr)
        assert done.stderr.count("error:") == 1
    assert not out.exists()
    noise = Probes.of(np.random.default_rng(0).random((50, 1, 8, 8)).astype(np.float32), labels=np.arange(50) % 10)
    with pytest.raises(MisuseError, match="one class that it recognises"):
        Unlearning()(load(home / "cnn"), noise)


def test_made_inputs_are_the_same_pixels_in_other_places() -> None:
    x = np.random.default_rng(0).random((30, 1, 8, 8)).astype(np.float32)
    made = shuffled_blocks(Probes.of(x), 1).inputs
    flipped = x.max() + x.min() - made
    same = np.isin(np.round(made, 5), np.round(x, 5)) | np.isin(np.round(flipped, 5), np.round(x, 5))
    assert same.mean() > 0.99
    assert not np.array_equal(made, x)
    with pytest.raises(MisuseError, match="images and vectors only"):
        shuffled_blocks(Probes.of(np.zeros((4, 7), np.int64)))


def test_receipts_make_edges_of_the_registry_only_with_their_own_weights(home: Path, tmp_path: Path) -> None:
    from stemma.registry.receipts import edges_from_receipts

    model, asked = load(home / "mlp"), probes(home)
    for name, share in (("half", 0.5), ("less", 0.3)):
        write(Pruning(keep_ratio=share)(model, asked), tmp_path / name, asked)
    shutil.copytree(tmp_path / "half", tmp_path / "moved")
    for file in ("model.safetensors", "config.json"):  # another model beside a receipt that is not its own
        shutil.copy(tmp_path / "less" / file, tmp_path / "moved" / file)
    (tmp_path / "odd").mkdir()
    shutil.copy(home / "cnn" / "model.safetensors", tmp_path / "odd")
    shutil.copy(home / "cnn" / "config.json", tmp_path / "odd")
    (tmp_path / "odd" / "receipt.json").write_text('{"parent": 3, "child": [], "operation": null}')
    registry = f"--registry={tmp_path / 'r.db'}"
    added = stemma("add", home / "mlp", tmp_path / "half", tmp_path / "moved", tmp_path / "odd", registry)
    assert added.returncode == 0, added.stderr
    records = Registry(tmp_path / "r.db").models()
    edges = edges_from_receipts(records)
    assert [(e.parent.name, e.child.name, e.operation) for e in edges] == [("mlp", "half", "prune")]
    assert "edited_from" not in next(r for r in records if r.name == "odd").claims
    drawn = stemma("lineage", registry, "--json")
    [told] = json.loads(drawn.stdout)["receipts"]
    assert told == {"parent": "mlp", "child": "half", "operation": "prune", "drawn": "same"}
    shown = stemma("lineage", home / "mlp", tmp_path / "half")
    assert "half: prune of mlp" in shown.stdout
    assert "as in the tree" in shown.stdout
