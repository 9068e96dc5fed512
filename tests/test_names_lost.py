"""What is said of a pair does not hang on names of tensors, nor on names that mean something else in the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import plain_networks
from plain_networks import Arrays, bert, cnn, made, perturbed, renamed
from stemma.kinship.compare import compare
from stemma.kinship.explain import explain
from stemma.kinship.weights.name_clashes import with_distinct_names
from stemma.types import Comparison


def llama(seed: int) -> tuple[Arrays, dict[str, Any] | None]:
    return plain_networks.llama(seed, d=32, inner=56, layers=2, tokens=120)


def vit(seed: int) -> tuple[Arrays, dict[str, Any] | None]:
    return plain_networks.vit(seed, layers=2)


def _compared(one: Arrays, other: Arrays, *, both: bool) -> Comparison:
    """Both under the same numbers, handed out in another order, or the second alone."""
    return compare(made(renamed(one, 1) if both else one, None, "a"), made(renamed(other, 2), None, "b"))


@pytest.mark.parametrize("network", [bert, cnn, llama, vit])
def test_numbered_tensors_are_one_network_under_other_numbers(network) -> None:
    arrays, _ = network(3)
    same = _compared(arrays, arrays, both=True)
    assert (same.relation.kind.value, same.relation.steps) == ("reformatted", ("renamed",))
    half = _compared(arrays, {n: x.astype("f2") for n, x in arrays.items()}, both=True)
    assert half.relation.kind.value == "reformatted", half.relation
    assert half.a.name == "a"
    assert half.b.digest == made(renamed({n: x.astype("f2") for n, x in arrays.items()}, 2), None, "b").digest
    stranger = _compared(arrays, network(4)[0], both=True)
    assert stranger.verdict != "related"


def test_names_that_fit_sizes_are_kept() -> None:
    arrays, config = llama(3)
    one = made(arrays, config, "a")
    narrower = dict(arrays)
    for i in range(2):
        p = f"model.layers.{i}.mlp."
        narrower |= {f"{p}{k}_proj.weight": arrays[f"{p}{k}_proj.weight"][:40] for k in ("gate", "up")}
        narrower[f"{p}down_proj.weight"] = arrays[f"{p}down_proj.weight"][:, :40]
    for other in (made(perturbed(arrays, 0.1, 1), config, "b"), made(narrower, None, "b")):
        assert with_distinct_names(one, other) is other


def _low_rank(arrays: Arrays) -> Arrays:
    rng = np.random.default_rng(5)

    def added(x: np.ndarray) -> np.ndarray:
        u, v = rng.normal(size=(len(x), 2)), rng.normal(size=(2, x[0].size))
        return (x + 0.3 * x.std() * (u @ v).reshape(x.shape)).astype("f4")

    return {n: added(x) if x.ndim > 1 and min(len(x), x[0].size) > 16 else x for n, x in arrays.items()}


@pytest.mark.parametrize("network", [bert, llama])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.first(1)
def test_an_adapter_is_named_whatever_tensors_are_called(network, both: bool) -> None:
    arrays, _ = network(3)
    found = _compared(arrays, _low_rank(arrays), both=both)
    assert (found.relation.kind.value, found.relation.parameters.get("rank")) == ("lora", 2), found.relation


def _rows(name: str) -> bool:
    return any(w in name for w in ("embed_tokens", "word_embeddings", "lm_head"))


TOKENS: dict[str, Callable[[int], np.ndarray]] = {
    "fewer": lambda n: np.flatnonzero(np.arange(n) % 4),
    "the first": lambda n: np.arange(n * 3 // 4),
    "reordered": lambda n: np.random.default_rng(1).permutation(n),
}  # fmt: skip


@pytest.mark.parametrize("network", [bert, llama])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.first(1)
def test_tokens_are_found_by_sizes_alone(network, tokens: Callable[[int], np.ndarray], both: bool) -> None:
    arrays, _ = network(3)
    found = _compared(arrays, {n: x[tokens(len(x))] if _rows(n) else x for n, x in arrays.items()}, both=both)
    assert found.relation.kind.value == "reformatted", found.relation


def test_the_account_of_numbered_tensors_is_that_of_named_ones() -> None:
    arrays, config = llama(3)
    child = _low_rank(arrays)
    plain = explain(made(arrays, config, "a"), made(child, config, "b"))
    other = made(renamed(child, 2), None, "b")
    lost = explain(made(renamed(arrays, 1), None, "a"), other)
    assert [s.name for s in lost.steps] == [s.name for s in plain.steps] == ["lora"]
    assert lost.child == other.ref


@pytest.mark.parametrize("network", [bert, llama])
@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("names", [lambda x: x, renamed], ids=["named", "names lost"])
@pytest.mark.first(2)
def test_tokens_that_were_reordered_and_trained_on_need_no_map(
    network, noise: float, names: Callable[[Arrays], Arrays]
) -> None:
    arrays, config = network(3)
    child = {n: x[TOKENS["reordered"](len(x))] if _rows(n) else x for n, x in arrays.items()}
    found = compare(made(arrays, config, "a"), made(names(perturbed(child, noise, 1)), None, "b"))
    assert found.relation.steps[0] == "rows reordered", found.relation
    assert not any("permuted" in s for s in found.relation.steps)
