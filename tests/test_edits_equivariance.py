"""What is planned does not depend on the order or the scale in which a network happens to keep its units."""

from typing import Any

import numpy as np
import pytest
import torch

from stemma import networks
from stemma.checkpoints.model import Model
from stemma.edits.artefacts.result import Edited
from stemma.edits.editable_network import checked_dependency_graph, editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.zoo.symmetries import permute_units, scale_units, unit_groups

IMAGES = {"input_shape": [1, 8, 8], "classes": 5}
CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {"model_type": "stemma-mlp", **IMAGES, "hidden": [20, 16]},
    "cnn": {"model_type": "stemma-cnn", **IMAGES, "stem": 8, "widths": [10, 12], "strides": [2, 1]},
    "gated": {
        "model_type": "llama", "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
}  # fmt: skip
"""A perceptron, a residual network with batch norm, gated feed-forward layers."""

Arrays = dict[str, np.ndarray]


def network(kind: str, seed: int) -> Arrays:
    """Random weights of unequal size, and batch norm that has seen something."""
    torch.manual_seed(seed)
    state = {n: t.detach().numpy().copy() for n, t in networks.build(CONFIGS[kind]).state_dict().items()}
    draw = np.random.default_rng(seed)
    for name, array in state.items():
        if name.endswith("running_mean"):
            array -= draw.uniform(0.5, 1.5, array.shape).astype(array.dtype)  # no unit is idle: idle ones tie
        elif array.dtype.kind == "f":
            array *= draw.uniform(0.5, 1.5, array.shape).astype(array.dtype)
    return state


def asked(kind: str, seed: int) -> Probes:
    draw = np.random.default_rng(seed)
    if kind == "gated":
        return Probes.of(draw.integers(0, 31, (48, 16)))
    return Probes.of(draw.random((96, 1, 8, 8), np.float32))


def changed(kind: str, before: Arrays, how: str, seed: int) -> tuple[Arrays, dict[tuple[str, int], np.ndarray]]:
    """The same function in other coordinates, and by tensor and axis the old row at every new place.

    Without a norm the scale of a unit is also that of an output of the layer before, whose errors count by it: of a
    perceptron only the first units are scaled.
    """
    draw = np.random.default_rng([seed, 5])
    after, rows = dict(before), {}
    for g in unit_groups(CONFIGS[kind], before)[: 1 if (kind, how) == ("mlp", "scale") else None]:
        if how == "order" and "attn" not in g.name:
            order = draw.permutation(g.size)
            after = permute_units(after, g, order)
            rows.update({(p.tensor, p.axis): order for p in g.places if p.block == 1 and p.offset == 0})
        elif how == "scale" and g.scales:
            after = scale_units(after, g, 2.0 ** draw.integers(-2, 3, g.size))
    return after, rows


def model(kind: str, arrays: Arrays) -> Model:
    return from_arrays(arrays, kind, CONFIGS[kind])


def same_answers(a: Edited, b: Edited, x: np.ndarray) -> bool:
    first, second = a.editable.outputs(x), b.editable.outputs(x)
    return float((first - second).abs().max()) < 2e-3 * float(first.abs().max())


@pytest.mark.parametrize("how", ["order", "scale"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.first(1)
def test_the_same_units_go_in_any_order_and_at_any_scale(kind: str, seed: int, how: str) -> None:
    before = network(kind, seed)
    after, rows = changed(kind, before, how, seed)
    x = asked(kind, seed)
    first, second = model(kind, before), model(kind, after)
    seen = [Pruning().collect(m, x) for m in (first, second)]
    for score in ("alignment", "fidelity", "wanda", "elimination"):
        method = Pruning(keep_ratio=0.6, score=score, allocation="uniform")
        plans = [method.plan(m, x, s) for m, s in zip((first, second), seen, strict=True)]
        assert plans[0].kept.keys() == plans[1].kept.keys()
        for g in checked_dependency_graph(first, x.inputs).groups:
            kept, now = (set(p.kept[g.name]) for p in plans) if g.name in plans[0].kept else (set(), set())
            order = next((rows[r.tensor, r.axis] for r in g.rows if (r.tensor, r.axis) in rows), np.arange(g.size))
            assert {int(order[k]) for k in now} == kept, (score, g.name)
    edited = [method.apply(m, p, x) for m, p in zip((first, second), plans, strict=True)]
    assert same_answers(*edited, x.inputs)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_budgets_are_shared_out_alike_in_any_order_and_at_any_scale(kind: str) -> None:
    before, x = network(kind, 7), asked(kind, 7)
    method = Pruning(budget="macs", keep_ratio=0.5)
    plans = [method.plan(model(kind, a), x) for a in
             (before, changed(kind, before, "order", 7)[0], changed(kind, before, "scale", 7)[0])]  # fmt: skip
    sizes = [{g: len(k) for g, k in p.kept.items()} for p in plans]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("how", ["order", "scale"])
@pytest.mark.parametrize("action", ["zero", "negate", "refit"])
@pytest.mark.first(1)
def test_forgetting_does_the_same_in_any_order_and_at_any_scale(action: str, how: str) -> None:
    before, x = network("cnn", 3), asked("cnn", 3).inputs
    before["head.bias"] -= editable_copy(model("cnn", before)).outputs(x).mean(0).numpy()
    after, _ = changed("cnn", before, how, 3)
    answers = editable_copy(model("cnn", before)).outputs(x).argmax(1).numpy()
    most = np.bincount(answers).argmax()
    mine, rest = Probes.of(x[answers == most]), Probes.of(x[answers != most])
    edited = [Unlearning(action=action, target=0.1)(model("cnn", a), mine, rest) for a in (before, after)]
    assert same_answers(*edited, x)
    assert edited[0].plan.expected["strength"] == pytest.approx(edited[1].plan.expected["strength"])
