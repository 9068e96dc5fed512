"""One block pruned: units chosen by statistics of the whole network, weights refitted on the pruned one's states."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.edits.artefacts.measured_effect import MAX_INPUTS
from stemma.edits.dependency_graph import slicing
from stemma.edits.editable_network import EditableNetwork, head_weights
from stemma.edits.fidelity.compensation import PrunedLayer, pruned_layers
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve
from stemma.edits.layer_inputs import at_least_float32
from stemma.edits.pruning.planner import PruningPlanner
from stemma.edits.streaming.hidden_states import PRUNED, WHOLE, HiddenStates
from stemma.edits.streaming.template import Template
from stemma.errors import StemmaError

LARGEST = {"F16": 65504.0}
"""Largest number of a type that overflows easily."""


@dataclass(frozen=True, eq=False)
class PrunedBlock:
    """A block after the edit.

    Attributes:
        kept: Units that stay, by group as the one-block network names it.
        curves: The error curves of these groups.
        original: The network of this block.
        smaller: The same, cut and refitted.
        layers: The layers that lost inputs.
        changed: Names of the weights that are no longer those of the parent.
    """

    kept: Mapping[str, np.ndarray]
    curves: Mapping[str, ErrorCurve]
    original: EditableNetwork
    smaller: EditableNetwork
    layers: tuple[PrunedLayer, ...]
    changed: frozenset[str]


def prune_block(
    planner: PruningPlanner, template: Template, sizes: Mapping[str, int], states: HiddenStates
) -> PrunedBlock:
    """Choose the units of the block that a template is filled with, cut it, and refit what is left."""
    method, graph = planner.method, planner.graph
    groups = [g for g in planner.groups if sizes.get(g.name, g.size) < g.size]
    original = _reading(template, template.editable, WHOLE)
    readers = list({r.weight: r for g in groups for r in g.readers}.values())
    statistics = method.collector(original.module, original.forward, states.array, readers, original.like)
    planner = replace(planner, editable=original)
    curves = {g.name: planner.curve(g, statistics, sizes[g.name]) for g in groups}
    kept = {g.name: np.sort(curves[g.name].order[g.size - sizes[g.name] :]) for g in groups}
    smaller = template.copy()
    rows = slicing.kept_rows(graph, kept)
    slicing.slice_units(smaller.module, rows, head_weights(graph))
    layers = pruned_layers(graph, original.module, rows)
    if method.sequential:
        statistics = None
    smaller = _reading(template, smaller, PRUNED)
    method.layer_refit(original, smaller, layers, states.array, statistics)
    refitted = {n for x in layers for n in (x.reader.weight, x.reader.bias)}
    return PrunedBlock(kept, curves, original, smaller, tuple(layers), frozenset(rows) | refitted)


def _reading(template: Template, editable: EditableNetwork, which: int) -> EditableNetwork:
    """A copy of the one-block network that runs its block on one of the two networks' states."""
    run = template.block_of(editable)
    return replace(editable, forward=lambda x: run(x[:, which].clone()))


def advance(block: PrunedBlock, before: HiddenStates, after: HiddenStates, batch: int) -> tuple[dict[str, float], Any]:
    """Run a block of both networks; returns the errors of its pruned layers' outputs, and the seconds of each."""
    sums = {x.reader.layer: np.zeros(3) for x in block.layers}
    means: dict[str, Any] = {}
    seconds, n = [0.0, 0.0], len(before.array)
    for start in range(0, n, batch):
        x = torch.from_numpy(np.array(before.array[start : start + batch]))
        outputs: list[dict[str, torch.Tensor]] = []
        for which, editable in ((WHOLE, block.original), (PRUNED, block.smaller)):
            began = time.perf_counter()
            seen, states = _run(editable, x, block.layers if start < MAX_INPUTS else ())
            seconds[which] += time.perf_counter() - began
            if not bool(torch.isfinite(states).all()):
                raise StemmaError("the network returns NaN or infinite values on these inputs: check the model and the "
                                  "inputs")  # fmt: skip
            after.put(start, which, states)
            outputs.append(seen)
        for pruned in block.layers if start < MAX_INPUTS else ():
            name = pruned.reader.layer
            a, b = (o[name][: MAX_INPUTS - start] for o in outputs)
            _add(sums[name], means, name, a, b, pruned)
    spread = {n: s[1] - float(means[n].square().sum()) / s[0] for n, s in sums.items()}
    return {n: float(s[2] / spread[n]) if spread[n] > 0 else 0.0 for n, s in sums.items()}, seconds


def _run(
    editable: EditableNetwork, x: torch.Tensor, layers: tuple[PrunedLayer, ...]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _, given, out: seen.update({name: out})

    with torch.no_grad(), ExitStack() as stack:
        for pruned in layers:
            layer = editable.module.get_submodule(pruned.reader.layer)
            stack.callback(layer.register_forward_hook(hook(pruned.reader.layer)).remove)
        return seen, editable.forward(x)


def _add(
    sums: np.ndarray, means: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor, pruned: PrunedLayer
) -> None:
    """Add to the number of rows, the squares of the whole network's outputs and those of the differences."""
    if a.shape[-1] != b.shape[-1]:
        a = a.index_select(-1, pruned.outputs)
    a, b = (at_least_float32(y).reshape(-1, y.shape[-1]) for y in (a, b))
    total = a.sum(0, dtype=torch.float64)
    means[name] = means[name] + total if name in means else total
    sums += (len(a), float(a.double().square().sum()), float((a - b).double().square().sum()))


def stored_block(block: PrunedBlock, template: Template, number: int) -> list[Tensor]:
    """The tensors of a pruned block as they are to be written; what the edit leaves alone is copied byte by byte."""
    prefix = f"{template.layout.block(0)}."
    state = block.smaller.module.state_dict()
    out = []
    for name, tensor in template.layout.blocks[number].items():
        own = prefix + name
        out.append(_rounded(tensor, state[own].detach().numpy()) if own in block.changed and own in state else tensor)
    return out


def _rounded(tensor: Tensor, values: np.ndarray) -> Tensor:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST.get(tensor.dtype, np.inf):
        raise StemmaError(f"the refitted weights of {tensor.name} cannot be stored as {tensor.dtype}: give more "
                          "inputs, or raise the damping (-P damping=0.01)")  # fmt: skip
    return Tensor(
        tensor.name, tensor.dtype, values.shape, RowStorage(lambda a, b: values[a:b], values.shape, tensor.dtype)
    )
