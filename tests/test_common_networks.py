"""Networks as people write them are cut without a configuration, exactly, and what is left is fitted rightly."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.dependency_groups import DependencyGraph, DependencyGroup
from stemma.edits.editable_network import checked_dependency_graph, editable_copy, head_weights
from stemma.edits.fidelity.compensation import layer_input, pruned_layers
from stemma.edits.pruning.pruning import Pruning
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec
from testbeds.common_networks import NETWORKS

SIZES: dict[str, dict[str, int]] = {
    "residual": {"stem.0": 12, "inner.0.0.0": 10, "inner.1.0.0": 14, "projection.0": 20},
    "vgg": {"0.0": 12, "1.0": 14, "3.0": 16, "6": 32},
    "mobile": {"0.0": 12, "1.body.0.0": 24, "1.body.2.reduce": 6, "2.body.0.0": 24, "2.body.2.reduce": 6, "3.0": 20},
    "dense": {"stem": 10, "layers.0": 8, "layers.1": 8, "layers.2": 8, "transition.2": 17},
    "unet": {"down.0.0": 10, "down.1.0": 14, "down.2.0": 18, "up.0": 12, "mix.0.0": 12, "up.1": 9, "mix.1.0": 10},
    "vit": {f"blocks.{i}.{n}": k for i in (0, 1) for n, k in (("attention.mixer_in", 4), ("fc1", 40))},
    "swin": {f"{b}.{n}": k for b, m in (("blocks.0", 28), ("blocks.1", 28), ("last", 40))
             for n, k in (("attention.mixer_in", 4), ("fc1", m))},
    "llama": {f"layers.{i}.{n}": k for i in (0, 1) for n, k in (("wq", 3), ("w1", 40))},
    "bert": {"encoder.layers.0.linear1": 40, "encoder.layers.1.linear1": 40, "pooler": 18},
    "grouped": {"0.0": 6, "2.0": 16, "4.0": 16}, "prelu": {"0": 12, "2": 14, "5": 16},
    "lengths": {"a": 16, "b": 20, "up": 14}, "volumes": {"a": 10, "b": 14, "up": 12},
    "pixel_shuffle": {"a.0": 10, "b": 14, "up": 8}, "lstm": {"read": 14, "cells": 16, "between": 12},
    "gru": {"read": 14, "cells": 16, "between": 12}, "rnn_stack": {"read": 14, "cells": 16, "between": 12},
    "gated": {"both": 20, "gate": 24, "down": 16}, "norms": {"0": 8, "3": 14, "6": 12, "10": 16},
    "convnext": {"fc1": 40}, "shuffle": {"stem.0": 8, "unit.0.0": 8, "last.0": 18},
    "attention_pooling": {"conv.0.0": 12, "pool.out_proj": 24, "fc1": 20}, "weight_norm": {"5": 16},
}  # fmt: skip
"""Units that can be removed, by layer; all other layers are refused with a reason."""


def made(kind: str) -> tuple[Model, np.ndarray]:
    torch.manual_seed(1)
    module = NETWORKS[kind]().double().eval()
    for part in module.modules():
        for name in ("running_mean", "running_var"):
            if isinstance(getattr(part, name, None), torch.Tensor):
                nn.init.uniform_(getattr(part, name), 0.2, 0.8)
                nn.init.uniform_(part.bias, 0.2, 0.8)  # type: ignore[arg-type]  # so that no unit is always zero
        if isinstance(part, nn.PReLU | nn.GroupNorm | nn.InstanceNorm2d) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.1, 0.9)
    inputs = np.random.default_rng(2).random((12, 1, 8, 8))
    return from_module(module, kind, InputSpec("tensor", (1, 8, 8), 0.0, 1.0)), inputs


def silenced(module: nn.Module, group: DependencyGroup, gone: np.ndarray) -> None:
    """Set units to zero where layers read them, while the whole network runs; of recurrent layers, where they begin."""
    for reader in group.readers:
        layer = module.get_submodule(reader.layer)
        index = next(r.index for r in group.rows if r.tensor == reader.weight and r.axis == reader.input_axis)
        if isinstance(layer, nn.RNNBase) and reader.kind == "recurrent":
            for r in (r for r in group.rows if r.tensor.startswith(f"{reader.layer}.") and r.axis == 0):
                with torch.no_grad():
                    module.get_parameter(r.tensor)[r.index[gone].reshape(-1)] = 0
            continue
        axis = 1 if reader.kind == "convolution" else -1
        layer.register_forward_pre_hook(partial(zeroed, axis, torch.from_numpy(index[gone].reshape(-1))))


def zeroed(axis: int, at: torch.Tensor, layer: nn.Module, given: tuple) -> tuple:
    return (given[0].index_fill(axis, at, 0.0), *given[1:])


def some(graph: DependencyGraph, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    sizes = {n: int(draw.integers(1, k)) for n, k in graph.sizes.items()}
    return {n: np.sort(draw.permutation(graph.sizes[n])[:k]) for n, k in sizes.items()}


FAST = ("unet", "grouped", "prelu", "gru")
"""Networks that are tried every time; the others take longer."""


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in NETWORKS])
def test_a_pruned_network_is_the_whole_one_with_units_silenced(kind: str) -> None:
    model, inputs = made(kind)
    graph = checked_dependency_graph(model, inputs)
    assert graph.sizes == SIZES[kind]
    assert all(0 < len(why) < 200 for why in graph.refused.values())
    for seed in range(3):
        kept = some(graph, seed)
        smaller, twin = editable_copy(model), editable_copy(model)
        slicing.slice_units(smaller.module, slicing.kept_rows(graph, kept), head_weights(graph))
        for g in graph.groups:
            silenced(twin.module, g, np.setdiff1d(np.arange(g.size), kept[g.name]))
        found, wanted = smaller.outputs(inputs), twin.outputs(inputs)
        assert float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
        counts = {n: len(k) for n, k in kept.items()}
        assert graph.parameters(counts) == sum(p.numel() for p in smaller.module.parameters())


@pytest.mark.parametrize(
    "kind", ["lengths", *(pytest.param(k, marks=pytest.mark.slow) for k in ("unet", "volumes", "pixel_shuffle", "gru"))]
)
def test_every_layer_that_lost_inputs_is_the_least_squares_fit(kind: str) -> None:
    model, inputs = made(kind)
    graph = checked_dependency_graph(model, inputs)
    method = Pruning(recalibrate=False, positions=0, damping=1e-12)
    for group in graph.groups:
        kept = {group.name: np.arange(group.size // 2 + 1)}
        old, new = editable_copy(model), editable_copy(model)
        rows = slicing.kept_rows(graph, kept)
        slicing.slice_units(new.module, rows, head_weights(graph))
        layers = pruned_layers(graph, old.module, rows)
        method.refit(old, new, layers, Probes.of(inputs))
        for pruned in (p for p in layers if p.reader.attribute == "weight" and p.reader.layer != ""):
            reader, x = pruned.reader, torch.from_numpy(inputs)
            before, after = (a.module.get_submodule(reader.layer) for a in (old, new))
            with torch.no_grad():
                wanted = before(layer_input(old, reader.layer, x))
            loss = (after(layer_input(new, reader.layer, x)) - wanted).square().sum()
            gradient = torch.autograd.grad(loss, after.weight)[0]  # zero where no other weights are closer
            scale = float(wanted.square().sum() * after.weight.detach().square().sum()) ** 0.5
            assert float(gradient.abs().max()) <= 1e-6 * max(scale, 1e-3), (group.name, reader.layer)
