"""A plan beside a pruned model helps to find its parent only where the weights bear it out."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from framed_plans import most_alike
from plain_networks import cnn
from stemma.checkpoints.model import Model
from stemma.kinship import claimed_units
from stemma.kinship.claimed_units import claimed_rows, cut_as_claimed
from stemma.kinship.compare import compare
from stemma.kinship.explain import explain
from stemma.networks.load import load
from stemma.registry import Registry
from stemma.workspace import Workspace

WIDTHS = (16, 40, 56)
Slices = dict[str, dict[str, list[int]]]


def plan_of(kept: list[np.ndarray]) -> Slices:
    """The rows that a plan lists, of the networks of `plain_networks.cnn`."""
    out: Slices = {}
    for i, rows in enumerate(kept):
        for name in ("weight", "bias", "running_mean", "running_var"):
            out[f"features.{3 * i + 1}.{name}"] = {"0": rows.tolist()}
        out.setdefault(f"features.{3 * i}.weight", {})["0"] = rows.tolist()
        after = f"features.{3 * i + 3}.weight" if i + 1 < len(kept) else "classifier.weight"
        out.setdefault(after, {})["1"] = rows.tolist()
    return out


def chosen(seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [np.sort(draw.permutation(n)[: round(0.6 * n)]) for n in WIDTHS]


def cut(arrays: dict[str, np.ndarray], slices: Slices) -> dict[str, np.ndarray]:
    out = dict(arrays)
    for name, axes in slices.items():
        for axis, rows in axes.items():
            out[name] = out[name].take(rows, int(axis))
    return out


def written(folder: Path, arrays: dict[str, np.ndarray], slices: object = None, parent: str = "") -> Model:
    folder.mkdir()
    save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, folder / "model.safetensors")
    if slices is not None:
        (folder / "plan.json").write_text(json.dumps({"slices": slices}))
        receipt = {"operation": "prune", "parent": parent, "child": "sha256:0"}
        (folder / "receipt.json").write_text(json.dumps(receipt))
    return load(folder / "model.safetensors")


def trained(arrays: dict[str, np.ndarray], noise: float, refitted: float, seed: int) -> dict[str, np.ndarray]:
    """Noise everywhere; the layers that lost inputs are mixed besides, as by a refit."""
    draw = np.random.default_rng(seed)
    out = {}
    for name, x in arrays.items():
        size = float(x.std()) + 1e-3
        out[name] = x + noise * size * draw.normal(size=x.shape)
        if x.ndim > 1 and name != "features.0.weight":
            out[name] = out[name] + refitted * size * draw.normal(size=x.shape)
        out[name] = out[name].astype("f4")
    return out


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])  # without its plan, the last one is found by nothing
def test_a_plan_that_the_weights_bear_out_names_the_edit(tmp_path: Path, noise: float) -> None:
    arrays, slices = cnn(1)[0], plan_of(chosen(1))
    parent = written(tmp_path / "parent", arrays)
    child = written(tmp_path / "child", trained(cut(arrays, slices), noise, 0.7, 2), slices, parent.digest)
    for pair in ((parent, child), (child, parent)):
        found = compare(*pair)
        assert found.verdict == "related"
        assert str(found.relation.kind) == "pruned"
        assert "units removed" in found.relation.steps
    made_from = compare(parent, child).relation.parameters.get("made_from")
    assert made_from == (None if noise else "a")  # where everything changed, it may as well be a cousin
    assert explain(parent, child).steps[0].name == "units removed"


def test_a_false_plan_changes_nothing_for_strangers(tmp_path: Path) -> None:
    """A framer picks, for every layer, the rows of the stranger that look most like those of the child."""
    own = plan_of(chosen(1))
    child = cut(cnn(1)[0], own)
    for seed in range(2, 8):
        stranger = cnn(seed)[0]
        kept = list[np.ndarray]()
        for i in range(len(WIDTHS)):
            x = stranger[f"features.{3 * i}.weight"]
            kept.append(most_alike(child[f"features.{3 * i}.weight"], x.take(kept[-1], 1) if kept else x))
        parent = written(tmp_path / f"stranger-{seed}", stranger)
        framed = written(tmp_path / f"framed-{seed}", child, plan_of(kept), parent.digest)
        assert cut_as_claimed(parent, framed) is not None
        assert compare(parent, framed).verdict != "related"


@pytest.mark.parametrize(
    "slices",
    [
        5, [], {"features.0.weight": {"0": [3, 1]}}, {"features.0.weight": {"0": [-1, 2]}}, {"x": {"0": [1]}},
        {"features.0.weight": {"9": [1]}}, {"features.0.weight": {"0": [10**30]}}, {"features.0.weight": {"0": ["a"]}},
        {"features.0.weight": {"0": [[1], [2]]}}, {"features.0.weight": {"0": [0, 999]}}, {"<script>": {"\x1b": [0]}},
    ],
)  # fmt: skip
def test_hostile_plans_are_no_plan(tmp_path: Path, slices: object) -> None:
    arrays = cnn(1)[0]
    parent = written(tmp_path / "parent", arrays)
    child = written(tmp_path / "child", cut(arrays, plan_of(chosen(1))), slices)
    assert cut_as_claimed(parent, child) is None
    assert not claimed_rows(parent)


def test_a_parent_too_large_to_be_cut_is_not_acquitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = plan_of(chosen(1))
    parent = written(tmp_path / "parent", cnn(2)[0])
    child = written(tmp_path / "child", cut(cnn(1)[0], own), own)
    assert compare(parent, child).verdict == "independent"
    monkeypatch.setattr(claimed_units, "LARGEST_MODEL", 1000)
    for pair in ((parent, child), (child, parent)):
        found = compare(*pair)
        assert found.verdict == "inconclusive"
        assert [gap["what"] for gap in found.not_tested] == ["plan"]


def test_an_answer_that_was_kept_without_a_plan_is_not_given_again_with_one(tmp_path: Path) -> None:
    arrays, slices = cnn(1)[0], plan_of(chosen(1))
    written(tmp_path / "parent", arrays)
    pruned = trained(cut(arrays, slices), 1.0, 0.7, 2)
    bare, planned = written(tmp_path / "bare", pruned), written(tmp_path / "planned", pruned, slices)
    workspace = Workspace(Registry(tmp_path / "registry.db"))
    workspace.add([tmp_path / "parent"])
    assert bare.digest == planned.digest
    kinds = [[str(p["relation"]) for p in (*found.parents, *found.relatives)]
             for found in map(workspace.trace, (bare, planned, bare))]  # fmt: skip
    assert kinds == [[], ["pruned"], []]
