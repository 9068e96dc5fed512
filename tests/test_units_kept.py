"""Units kept bit for bit: found after cutting and reordering, never between networks that were trained apart."""

from pathlib import Path

import numpy as np
import pytest

from stemma.architectures.unit_groups import permute, structure
from stemma.checkpoints.model import Model
from stemma.kinship.compare import compare_weights
from stemma.kinship.explain import explain
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.units_kept import UnitsKept
from stemma.networks.load import from_arrays
from stemma.registry import Registry
from stemma.types import RelationKind, Verdict
from stemma.workspace import Workspace
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build, build_all


def reordered(model: Model, seed: int) -> Model:
    known, rng = structure(model), np.random.default_rng(seed)
    orders = {g.name: rng.permutation(g.size) for g in known.groups if g.exchangeable}
    return from_arrays(permute({n: t.array() for n, t in model.tensors.items()}, known, orders), "r", model.config)


def cut_recipe(kind: str, seed: int, ratio: float = 0.4) -> Recipe:
    return Recipe(kind, "prune-units", RelationKind.PRUNED, (Recipe(kind, "train", seed=seed),), {"ratio": ratio})


def cut(kind: str, seed: int, ratio: float = 0.4) -> Model:
    return build(cut_recipe(kind, seed, ratio))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.first(1)
def test_a_cut_and_reordered_model_is_kin_and_named_pruned(kind: str) -> None:
    model = build(Recipe(kind, "train", seed=51))
    child = reordered(cut(kind, 51), 3)
    found = compare_weights(model, child)
    assert found.weights.verdict is Verdict.SUPPORTED
    assert found.relation.kind is RelationKind.PRUNED
    assert found.relation.parameters["made_from"] == "a"
    turned = compare_weights(child, model)
    assert turned.relation.kind is RelationKind.PRUNED
    assert turned.relation.parameters["made_from"] == "b"


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.slow
def test_networks_trained_apart_share_no_unit(kind: str) -> None:
    models = build_all([Recipe(kind, "train", seed=s) for s in (52, 53, 54, 55)])
    for i, a in enumerate(models):
        for b in (*models[:i], reordered(cut(kind, 56), 1)):
            assert UnitsKept().evidence(a, b, by_name(a, b)) is None
    same = UnitsKept().evidence(models[0], models[0], by_name(models[0], models[0]))  # the control
    assert same is not None
    assert same.details["units"] == same.details["of"]
    assert 0 < same.effect < 1  # the share of the model that reads the input


def test_units_that_say_little_do_not_count() -> None:
    rng = np.random.default_rng(0)
    arrays = {"layers.0.weight": np.zeros((12, 64), np.float32), "head.bias": np.zeros(5, np.float32)}
    arrays |= {"layers.0.bias": np.zeros(12, np.float32), "head.weight": rng.normal(size=(5, 12)).astype(np.float32)}
    arrays["layers.0.weight"][:, :7] = rng.normal(size=(12, 7))  # seven numbers each: one too few
    config = {"model_type": "stemma-mlp", "input_shape": [1, 8, 8], "hidden": [12], "classes": 5}
    model = from_arrays(arrays, "m", config)
    assert UnitsKept().evidence(model, model, by_name(model, model)) is None
    arrays["layers.0.weight"][:, 7] = rng.normal(size=12)
    fuller = from_arrays(arrays, "f", config)
    assert UnitsKept().evidence(fuller, fuller, by_name(fuller, fuller)) is not None


def test_a_group_that_was_cut_to_several_widths_does_not_stop_a_comparison() -> None:
    model = build(Recipe("cnn", "train", seed=51))
    config = {**(model.config or {}), "stem": 14, "widths": [16, 25, 25], "inner": [11, 16, 13]}
    assert model.config is not None
    assert model.config["stem"] == model.config["widths"][0]  # one group of units, through the shortcut
    import torch

    from stemma.networks import build as network_of

    torch.manual_seed(0)
    arrays = {n: t.numpy() for n, t in network_of(config).state_dict().items()}
    for name, t in model.tensors.items():
        part = tuple(slice(min(a, b)) for a, b in zip(t.shape, arrays[name].shape, strict=True))
        arrays[name][part] = t.array()[part]
    child = from_arrays(arrays, "cut", config)
    for a, b in ((model, child), (child, model)):
        assert compare_weights(a, b).verdict == "related"


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.slow
def test_a_wider_relative_is_no_parent_of_a_cut_model(kind: str, tmp_path: Path) -> None:
    root = Recipe(kind, "train", seed=51)
    relatives = {
        "sibling": Recipe(kind, "finetune", RelationKind.FINETUNED, (root,), {"steps": 60}, 1, "b"),
        "same-start": Recipe(kind, "train", RelationKind.SAME_INIT, (), {}, 51, "b"),
    }
    models = dict(zip(relatives, build_all(relatives), strict=True))
    child, workspace = cut(kind, 51), Workspace(Registry(tmp_path / "r.db"))
    for name, model in models.items():
        found = workspace.trace(child, against=[model])
        assert found.verdict in {"related", "no-known-parent", "inconclusive"}, name
        assert not found.parents
        assert not found.parent_set  # nothing is calibrated for models of other widths
    found = workspace.trace(child, against=[*models.values(), build(root, "root")])
    assert [p["name"] for p in found.parents] == ["root"]  # the control: rows of it, exactly
    assert found.verdict == "descends"
    tuned = build(Recipe(kind, "finetune", RelationKind.FINETUNED, (cut_recipe(kind, 51),), {"steps": 60}, 2, "b"))
    assert compare_weights(build(root), tuned).relation.parameters.get("made_from") is None


def test_an_explanation_has_the_steps_of_the_comparison() -> None:
    root = Recipe("mlp", "train", seed=51)
    tuned = {"steps": 60}
    children = [
        cut_recipe("mlp", 51),
        Recipe("mlp", "finetune", RelationKind.FINETUNED, (cut_recipe("mlp", 51),), tuned, 2, "b"),
        Recipe("mlp", "finetune", RelationKind.FINETUNED, (root,), tuned, 3, "b"),
        Recipe("mlp", "prune-weights", RelationKind.PRUNED, (root,), {"ratio": 0.5}),
        Recipe("mlp", "quantize", RelationKind.QUANTIZED, (root,), {"bits": 8}),
    ]
    parent = build(root)
    for recipe, child in zip(children, build_all(children), strict=True):
        compared, explained = compare_weights(parent, child).relation, explain(parent, child)
        assert compared.kind is explained.kind, recipe.operation
        assert compared.steps == tuple(step.name for step in explained.steps), recipe.operation


def test_a_sibling_that_shares_frozen_layers_is_no_second_parent(tmp_path: Path) -> None:
    root = build(Recipe("mlp", "train", seed=51), "root")
    arrays = {n: t.array().copy() for n, t in root.tensors.items()}
    arrays["head.weight"] = arrays["head.weight"] + np.float32(0.02) * np.sign(arrays["head.weight"])
    sibling = from_arrays(arrays, "head-tuned", root.config)
    found = Workspace(Registry(tmp_path / "r.db")).trace(cut("mlp", 51), against=[sibling, root])
    assert [p["name"] for p in found.parents] == ["root"]
    assert [r["name"] for r in found.relatives] == ["head-tuned"]
