"""One network in the layouts of the field's tools is the same network: nothing is new, nothing trained."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from layouts import BERT, CNN, EXPERTS, LLAMA, RNN, experts, recurrent
from plain_networks import Arrays, bert, cnn, llama, made, perturbed
from stemma import compare
from stemma.ancestry.merges.regression import find_merge
from stemma.kinship.explain import explain

SAME = {"copy", "reformatted", "quantized"}


def _some_fast(tools: Iterable[str]) -> list[Any]:
    """One layout of three runs in every test run, the others with the slow tests."""
    return [tool if i % 3 == 0 else pytest.param(tool, marks=pytest.mark.slow) for i, tool in enumerate(sorted(tools))]


def _one_network(arrays: Arrays, config: object, written: Arrays) -> None:
    a, b = made(arrays, config, "a"), made(written, None, "b")  # type: ignore[arg-type]
    for found in (compare(a, b), compare(b, a)):
        told = (found.relation.kind.value, found.relation.steps, found.relation.reason)
        assert found.verdict == "related", told
        assert found.relation.kind.value in SAME, told
        assert found.weights.effect > 0.98, told


@pytest.mark.parametrize("tool", _some_fast(LLAMA))
@pytest.mark.first(2)
def test_a_language_model(tool: str) -> None:
    arrays, config = llama(3)
    _one_network(arrays, config, LLAMA[tool](arrays))


@pytest.mark.parametrize("tool", sorted(BERT))
@pytest.mark.first(1)
def test_an_encoder(tool: str) -> None:
    arrays, config = bert(3)
    _one_network(arrays, config, BERT[tool](arrays))


@pytest.mark.parametrize("tool", sorted(RNN))
def test_a_recurrent_network(tool: str) -> None:
    count, write = RNN[tool]
    arrays = recurrent(3, count)
    _one_network(arrays, None, write(arrays))


@pytest.mark.parametrize("tool", sorted(EXPERTS))
def test_a_mixture_of_experts(tool: str) -> None:
    arrays = experts(3)
    _one_network(arrays, None, EXPERTS[tool](arrays))


@pytest.mark.parametrize("tool", sorted(CNN))
def test_a_convolutional_network(tool: str) -> None:
    arrays, config = cnn(3)
    _one_network(arrays, config, CNN[tool](arrays))


@pytest.mark.parametrize("tool", ["llama.cpp GGUF", "Megatron-core", "vLLM", "Flax", "MaxText, scanned"])
def test_trained_on_in_another_layout_is_no_new_network(tool: str) -> None:
    arrays, config = llama(3)
    child = LLAMA[tool](perturbed(arrays, 0.02))
    found = compare(made(arrays, config, "a"), made(child, None, "b"))
    assert found.verdict == "related"
    assert found.weights.effect > 0.95
    assert not any("inherited" in s or "permuted" in s for s in found.relation.steps), found.relation.steps


FAST = ("llama.cpp GGUF", "Megatron-core", "MaxText, scanned", "token ids reordered")


@pytest.mark.parametrize("tool", [pytest.param(t, marks=() if t in FAST else pytest.mark.slow) for t in sorted(LLAMA)])
@pytest.mark.first(1)
def test_a_stranger_in_another_layout_stays_one(tool: str) -> None:
    arrays, config = llama(3)
    other, _ = llama(4)
    assert compare(made(arrays, config, "a"), made(LLAMA[tool](other), None, "b")).verdict != "related"


def test_numbers_survive_the_layout_bit_for_bit() -> None:
    arrays, _ = llama(3)
    for write in LLAMA.values():
        assert all(np.isfinite(x).all() for x in write(arrays).values())


# Tensors that are used several times, in another order, or no more


def _stacked(order: list[tuple[Arrays, int]]) -> Arrays:
    """A network of layers of others, in this order; the rest is the first one's."""
    out = {n: x for n, x in order[0][0].items() if ".layers." not in n}
    for k, (source, i) in enumerate(order):
        mark = f"model.layers.{i}."
        out |= {n.replace(mark, f"model.layers.{k}."): x for n, x in source.items() if n.startswith(mark)}
    return out


@pytest.mark.slow
def test_layers_that_are_repeated_are_said_and_come_from_the_smaller_model() -> None:
    arrays, config = llama(3, layers=4)
    deep = _stacked([(arrays, i) for i in (0, 1, 2, 1, 2, 3)])
    for pair, way in (((arrays, deep), "a->b"), ((deep, arrays), "b->a")):
        found = compare(made(pair[0], config, "a"), made(pair[1], config, "b"))
        assert found.relation.steps[0] == "layers repeated", found.relation
        assert not any("inherited" in s or "tuned" in s for s in found.relation.steps)
        assert found.direction == way
    told = explain(made(arrays, config, "a"), made(deep, config, "b"))
    assert not [c.name for c in told.layers if c.status == "new"]


def test_layers_of_two_models_in_one_stack_are_a_merge_with_their_shares() -> None:
    (arrays, config), (other, _) = llama(3, layers=4), llama(3, layers=4)
    one, two = perturbed(arrays, 0.05, 1), perturbed(other, 0.05, 2)
    stack = _stacked([(one, 0), (one, 1), (two, 1), (two, 2), (two, 3)])
    found = find_merge(made(stack, config, "s"), [made(one, config, "one"), made(two, config, "two")])
    assert found is not None
    assert found.certain
    shares = {p.name: p.coefficient for p in found.parents}
    assert shares.keys() == {"one", "two"}
    assert shares["two"] == pytest.approx(0.6, abs=0.1)


def test_layers_in_another_order_are_not_called_the_same_network() -> None:
    arrays, config = llama(3, layers=4)
    found = compare(made(arrays, config, "a"), made(_stacked([(arrays, i) for i in (0, 2, 1, 3)]), config, "b"))
    assert found.verdict == "related"
    assert found.relation.kind.value not in SAME, found.relation
    assert "layers reordered" in found.relation.steps


@pytest.mark.parametrize("kept", [(0, 1, 3), (0, 1, 2), (1, 2, 3)])
def test_layers_that_were_dropped_leave_the_rest_as_it_was(kept: tuple[int, ...]) -> None:
    arrays, config = llama(3, layers=4)
    found = compare(made(arrays, config, "a"), made(_stacked([(arrays, i) for i in kept]), config, "b"))
    assert (found.relation.kind.value, found.relation.steps, found.direction) == ("pruned", ("layers removed",), "a->b")


def test_experts_made_of_one_dense_layer_are_inherited() -> None:
    arrays, config = llama(3, layers=2)
    out = {n: x for n, x in arrays.items() if ".mlp." not in n}
    for i in range(2):
        p = f"model.layers.{i}."
        out[p + "block_sparse_moe.gate.weight"] = np.random.default_rng(i).normal(size=(2, 64)).astype("f4")
        for e in range(2):
            for old, new in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                out[f"{p}block_sparse_moe.experts.{e}.{new}.weight"] = arrays[f"{p}mlp.{old}_proj.weight"]
    found = compare(made(arrays, config, "a"), made(out, None, "b"))
    new = found.relation.parameters.get("new", [])
    assert "layers repeated" in found.relation.steps, found.relation
    assert all("gate.weight" in n for n in new), new


@pytest.mark.parametrize("kept", [np.arange(200) % 4 > 0, np.arange(200) < 140, np.arange(200) % 3 == 1])
def test_tokens_that_were_taken_out_are_said_whichever_model_is_given_first(kept: np.ndarray) -> None:
    arrays, config = llama(3)
    fewer = {n: x[kept] if "embed_tokens" in n or "lm_head" in n else x for n, x in arrays.items()}
    there = compare(made(arrays, config, "a"), made(fewer, {**config, "vocab_size": int(kept.sum())}, "b"))
    back = compare(made(fewer, {**config, "vocab_size": int(kept.sum())}, "a"), made(arrays, config, "b"))
    for found, words in ((there, ("tokens removed", "fewer tokens")), (back, ("tokens added", "more tokens"))):
        assert found.relation.kind.value == "reformatted", found.relation
        assert any(w in f"{found.relation.steps} {found.relation.reason}" for w in words), found.relation
    assert there.direction in ("a->b", "unknown")
    assert back.direction in ("b->a", "unknown")
