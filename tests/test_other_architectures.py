"""Architectures that no table names: related pairs are related, with and without names, and strangers are not."""

from collections.abc import Callable

import numpy as np
import pytest

from plain_networks import Arrays, llama, made, perturbed, renamed
from stemma.kinship.compare import compare


class _Draw:
    """Random weights under names."""

    def __init__(self, seed: int) -> None:
        self.rng, self.out = np.random.default_rng([77, seed]), Arrays()

    def matrix(self, name: str, *shape: int) -> None:
        self.out[name] = (self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("f4")

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.matrix(f"{name}.weight", rows, columns)
        self.vector(f"{name}.bias", rows)

    def vector(self, name: str, n: int, around: float = 0.0) -> None:
        self.out[name] = (around + 0.1 * self.rng.normal(size=n)).astype("f4")

    def norm(self, name: str, n: int) -> None:
        self.vector(f"{name}.weight", n, 1.0)
        self.vector(f"{name}.bias", n)


def one_layer_encoder(seed: int, d: int = 48) -> Arrays:
    """`torch.nn.TransformerEncoderLayer` by itself."""
    w = _Draw(seed)
    w.matrix("self_attn.in_proj_weight", 3 * d, d)
    w.vector("self_attn.in_proj_bias", 3 * d)
    w.linear("self_attn.out_proj", d, d)
    w.linear("linear1", 2 * d, d)
    w.linear("linear2", d, 2 * d)
    w.norm("norm1", d)
    w.norm("norm2", d)
    return w.out


def mamba(seed: int, layers: int = 2, d: int = 48, inner: int = 96, states: int = 16) -> Arrays:
    w = _Draw(seed)
    w.matrix("backbone.embeddings.weight", 150, d)
    for i in range(layers):
        p = f"backbone.layers.{i}."
        w.matrix(f"{p}mixer.A_log", inner, states)
        w.vector(f"{p}mixer.D", inner, 1.0)
        w.matrix(f"{p}mixer.conv1d.weight", inner, 1, 4)
        w.matrix(f"{p}mixer.in_proj.weight", 2 * inner, d)
        w.matrix(f"{p}mixer.x_proj.weight", 4 + 2 * states, inner)
        w.linear(f"{p}mixer.dt_proj", inner, 4)
        w.matrix(f"{p}mixer.out_proj.weight", d, inner)
        w.vector(f"{p}norm.weight", d, 1.0)
    return w.out


def albert(seed: int, d: int = 48, e: int = 32) -> Arrays:
    w = _Draw(seed)
    w.matrix("albert.embeddings.word_embeddings.weight", 150, e)
    w.linear("albert.encoder.embedding_hidden_mapping_in", d, e)
    p = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    for k in ("query", "key", "value", "dense"):
        w.linear(f"{p}attention.{k}", d, d)
    w.linear(f"{p}ffn", 2 * d, d)
    w.linear(f"{p}ffn_output", d, 2 * d)
    w.norm(f"{p}full_layer_layer_norm", d)
    return w.out


def clip(seed: int, d: int = 48, layers: int = 1) -> Arrays:
    w = _Draw(seed)
    w.matrix("text_model.embeddings.token_embedding.weight", 150, d)
    w.matrix("vision_model.embeddings.patch_embedding.weight", d, 3, 4, 4)
    for tower in ("text", "vision"):
        for i in range(layers):
            p = f"{tower}_model.encoder.layers.{i}."
            for k in ("q_proj", "k_proj", "v_proj", "out_proj"):
                w.linear(f"{p}self_attn.{k}", d, d)
            w.linear(f"{p}mlp.fc1", 2 * d, d)
            w.linear(f"{p}mlp.fc2", d, 2 * d)
    w.matrix("text_projection.weight", 40, d)
    w.matrix("visual_projection.weight", 40, d)
    return w.out


@pytest.mark.parametrize("network", [one_layer_encoder, mamba, albert, clip])
@pytest.mark.parametrize("names", [lambda x: x, renamed], ids=["named", "names lost"])
def test_kin_is_found_and_strangers_are_not(
    network: Callable[[int], Arrays], names: Callable[[Arrays], Arrays]
) -> None:
    one = made(network(0), None, "a")
    for noise in (0.02, 0.3):
        kin = compare(one, made(names(perturbed(network(0), noise, 1)), None, "b"))
        assert kin.verdict == "related", kin.weights
    assert compare(one, made(names(network(1)), None, "b")).verdict != "related"


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.first(1)
def test_units_that_were_cut_from_a_model_and_trained_on_are_pruned_whichever_is_given_first(noise: float) -> None:
    arrays, config = llama(1)
    rng, cut = np.random.default_rng(1), dict(arrays)
    for i in range(3):
        kept, p = np.sort(rng.permutation(112)[:72]), f"model.layers.{i}.mlp."
        cut |= {f"{p}{k}_proj.weight": arrays[f"{p}{k}_proj.weight"][kept] for k in ("gate", "up")}
        cut[f"{p}down_proj.weight"] = arrays[f"{p}down_proj.weight"][:, kept]
    whole, part = made(arrays, config, "whole"), made(perturbed(cut, noise, 1), None, "part")
    for found in (compare(whole, part), compare(part, whole)):
        assert found.relation.kind.value == "pruned", found.relation
        assert found.relation.steps == ("units removed", "finetuned")
