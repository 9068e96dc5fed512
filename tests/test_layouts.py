"""One network in the layouts of the field's tools is the same network: nothing is new, nothing trained."""

import numpy as np
import pytest

from layouts import BERT, CNN, EXPERTS, LLAMA, RNN, Writer, experts, recurrent
from plain_networks import Arrays, bert, cnn, llama, made, perturbed
from stemma import compare

SAME = {"copy", "reformatted", "quantized"}


def _one_network(arrays: Arrays, config: object, written: Arrays) -> None:
    a, b = made(arrays, config, "a"), made(written, None, "b")  # type: ignore[arg-type]
    for found in (compare(a, b), compare(b, a)):
        told = (found.relation.kind.value, found.relation.steps, found.relation.reason)
        assert found.verdict == "related", told
        assert found.relation.kind.value in SAME, told
        assert found.weights.effect > 0.98, told


@pytest.mark.parametrize("tool", sorted(LLAMA))
def test_a_language_model(tool: str) -> None:
    arrays, config = llama(3)
    _one_network(arrays, config, LLAMA[tool](arrays))


@pytest.mark.parametrize("tool", sorted(BERT))
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


LAYOUTS: dict[str, Writer] = LLAMA


@pytest.mark.parametrize("tool", ["llama.cpp GGUF", "Megatron-core", "vLLM", "Flax", "MaxText, scanned"])
def test_trained_on_in_another_layout_is_no_new_network(tool: str) -> None:
    arrays, config = llama(3)
    child = LLAMA[tool](perturbed(arrays, 0.02))
    found = compare(made(arrays, config, "a"), made(child, None, "b"))
    assert found.verdict == "related"
    assert found.weights.effect > 0.95
    assert not any("inherited" in s or "permuted" in s for s in found.relation.steps), found.relation.steps


@pytest.mark.parametrize("tool", sorted(LLAMA))
def test_a_stranger_in_another_layout_stays_one(tool: str) -> None:
    arrays, config = llama(3)
    other, _ = llama(4)
    assert compare(made(arrays, config, "a"), made(LLAMA[tool](other), None, "b")).verdict != "related"


def test_numbers_survive_the_layout_bit_for_bit() -> None:
    arrays, _ = llama(3)
    for write in LLAMA.values():
        assert all(np.isfinite(x).all() for x in write(arrays).values())
