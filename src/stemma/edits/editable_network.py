"""Editable copies of a model's network, and the check that pruning its dependency groups is safe."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.dependency_groups import (
    DependencyGraph,
    build_dependency_graph,
    tied_together,
    tied_within,
)
from stemma.edits.dependency_graph.tracer import output_tensors
from stemma.edits.layer_inputs import as_tensor, has_collectable_inputs, watch_inputs
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import with_module
from stemma.networks.hugging_face import is_token_module
from stemma.types.network import Network

TRIAL_INPUTS = 2
"""Inputs that a network is traced with, and as many again, drawn from their range, on which slicing is tried."""

RANDOM_CHOICES = 2
"""Random choices of units, of another size in every group, on which slicing is tried; and all but the outermost."""

SPLITS = (2, 3, 4)
"""Numbers of equal parts into which code may split or shuffle the channels of a layer."""

OUTPUT_TOLERANCE = 1e-3
"""Largest difference of outputs, relative to the largest output, between slicing units and masking them."""

PROGRAM_LAYERS = (
    "the network was read from an exported program, which has no layers: load it into its own class first "
    "(stemma.edits.load), and edit that"
)
"""Why a program is not edited: what its layers read cannot be collected."""

INNER_STATE = "only a recurrent layer reads it, whose inner state cannot be collected"
"""Why units inside a recurrent layer cannot be removed."""

QUANTIZED_MODULES = ("quantized", "QuantizedLinear", "Linear8bitLt", "Linear4bit", "QuantLinear")
"""Parts of the names of modules that hold integer codes."""

INTEGER_DTYPES = ("I8", "U8", "I4", "U4")
"""Types in which weights are stored as integer codes."""


@dataclass(frozen=True, eq=False)
class EditableNetwork:
    """A network that may be changed.

    Attributes:
        module: Holds the weights.
        forward: Runs it, from raw inputs.
        like: A parameter, for precision and device.
        network: As the model describes it.
    """

    module: torch.nn.Module
    forward: Callable[[torch.Tensor], Any]
    like: torch.Tensor
    network: Network

    def outputs(self, inputs: np.ndarray, batch: int = 256) -> torch.Tensor:
        """Outputs `[n, …]` for raw inputs, without gradients, on the CPU; `StemmaError` if one is not finite."""
        out = []
        with torch.no_grad():
            for start in range(0, len(inputs), batch):
                out.append(self.network(as_tensor(inputs[start : start + batch], self.like)).cpu())
        found = torch.cat(out)
        if not bool(torch.isfinite(found).all()):
            raise StemmaError(f"{self.network.name} returns NaN or infinite values on these inputs, so an edit cannot "
                              "be measured. Check the model and the inputs")  # fmt: skip
        return found


def editable_copy(model: Model) -> EditableNetwork:
    """A copy of a model's network, in evaluation mode, that shares nothing with the model.

    Cost: its weights in memory once more.

    Args:
        model: Any model whose network can be built.

    Returns:
        The copy.

    Raises:
        MisuseError: If it is a black box, is quantised, or runs in a way that cannot be copied.
    """
    coded = [n for n, t in model.tensors.items() if len(t.shape) > 1 and t.dtype in INTEGER_DTYPES]
    if coded and not model.black_box:
        kind = model.tensors[coded[0]].dtype
        raise MisuseError(f"{coded[0]} is stored as integer codes ({kind}): edit the model before it is quantised")
    made = replace(model).network
    if made.module is None:
        raise MisuseError(f"{model.name} is a black box: an edit needs its weights")
    for name, part in made.module.named_modules():
        where = f"{type(part).__module__}.{type(part).__name__}"
        if any(word in where for word in QUANTIZED_MODULES):
            raise MisuseError(f"{name or model.name} is a quantised module ({type(part).__name__}): edit the model "
                              "before it is quantised")  # fmt: skip
    known = model.__dict__.get("network")
    if model.source.startswith("python:") or (known is not None and known.module is made.module):
        module = copy.deepcopy(made.module)
        if made.forward is made.module:
            made = replace(made, module=module, forward=module)
        elif is_token_module(module):
            made = with_module(model, module, None).network
        else:
            raise MisuseError(f"{model.name} runs through a function around its module, which cannot be copied: give "
                              "the module itself")  # fmt: skip
    module = made.module
    assert module is not None
    for part in module.modules():
        part.training = False  # as eval() does, which programs refuse
    if made.parameter is None:
        raise MisuseError(f"{model.name} has no parameters: there is nothing to edit")
    return EditableNetwork(module, made.forward, made.parameter, made)


def checked_dependency_graph(
    model: Model, inputs: np.ndarray, editable: EditableNetwork | None = None
) -> DependencyGraph:
    """The dependency graph of a model, with the groups for which slicing units equals masking them."""
    # Cost: a few forward passes of four inputs; the graph is kept with the model. `MisuseError` if no unit can be
    # removed.
    found = model.__dict__.setdefault("_dependency_graphs", {})  # lives as long as the weights it is derived from
    key = tuple(inputs.shape[1:])
    if key not in found:
        found[key] = _checked_graph(model, inputs, editable or editable_copy(model))
    return found[key]


def _checked_graph(model: Model, inputs: np.ndarray, editable: EditableNetwork) -> DependencyGraph:
    few = trial_inputs(inputs)
    tensor = as_tensor(few, editable.like)
    graph = build_dependency_graph(editable.module, editable.forward, tensor[:TRIAL_INPUTS])
    graph = _with_statistics(graph, editable, tensor)
    names = [g.name for g in graph.groups]
    failed = _failing(model, graph, editable, few, names) if names else []
    if failed and not _all_equal(model, graph, editable, few, [n for n in names if n not in failed]):
        failed = [n for n in names if n in failed or not _all_equal(model, graph, editable, few, [n])]
    if failed:
        graph = _tied(model, graph, editable, few, failed)
        names = [g.name for g in graph.groups]
        if names and not _all_equal(model, graph, editable, few, names):
            graph = graph.without(names, "its code assumes this size together with others")
    if not graph.groups:
        why = graph.why_refused() or "no layer reads hidden units"
        raise MisuseError(f"no unit of {model.name} can be removed ({why})")
    return graph


def trial_inputs(inputs: np.ndarray) -> np.ndarray:
    """Two inputs, and two of noise in their range where they are continuous, so that no unit is constantly zero."""
    given = inputs[np.linspace(0, len(inputs) - 1, TRIAL_INPUTS).round().astype(int)]
    if given.dtype.kind != "f":
        return given
    low, high = float(given.min()), float(given.max())
    noise = np.random.default_rng(0).uniform(low, high if high > low else low + 1, given.shape)
    return np.concatenate([given, noise.astype(given.dtype)])


def _with_statistics(graph: DependencyGraph, editable: EditableNetwork, few: torch.Tensor) -> DependencyGraph:
    """Without groups that are read by a layer whose inputs cannot be collected."""
    layers = {r.layer: r for g in graph.groups for r in g.readers if r.kind != "recurrent"}
    module = editable.module
    plain = [n for n, r in layers.items() if has_collectable_inputs(module.get_submodule(n), r.attribute)]
    run = set[str]()
    with torch.no_grad(), watch_inputs(editable.module, plain, lambda name, layer, x: run.add(name)):
        editable.forward(few)
    for group in graph.groups:
        if all(r.kind == "recurrent" for r in group.readers):
            graph = graph.without([group.name], INNER_STATE)
        for layer in [r.layer for r in group.readers if r.layer not in run and r.kind != "recurrent"]:
            kind = type(editable.module.get_submodule(layer)).__name__
            weight = layers[layer].weight
            why = f"{layer} reads it, a {kind}" if layer not in plain else f"code outside its layer uses {weight}"
            why = PROGRAM_LAYERS if kind == "Module" else f"{why}: its inputs cannot be collected"
            graph = graph.without([group.name], why)
    return graph


def _tied(
    model: Model, graph: DependencyGraph, editable: EditableNetwork, few: np.ndarray, failed: Sequence[str]
) -> DependencyGraph:
    """The graph without the groups that failed, but with those that can be cut once their units are tied."""
    # Code that splits channels into equal parts, or shuffles them, can lose the same unit of every part.
    whole, left = {n: graph.group(n) for n in failed}, list(failed)
    graph = graph.without(failed, "its code assumes this size")
    sure = graph
    for size in dict.fromkeys(whole[n].size for n in failed):
        alike = [n for n in failed if whole[n].size == size]
        if len(alike) > 1 and size > 1:
            tried = graph.with_groups([tied_together([whole[n] for n in alike])], alike)
            if _all_equal(model, tried, editable, few, alike[:1]):
                graph, left = tried, [n for n in left if n not in alike]
    for name in left:
        for tied in (tied_within(whole[name], parts) for parts in SPLITS):
            tried = None if tied is None else graph.with_groups([tied], [name])
            if tried is not None and _all_equal(model, tried, editable, few, [name]):
                graph = tried
                break
    return graph if _all_equal(model, graph, editable, few, [g.name for g in graph.groups]) else sure


def _failing(
    model: Model, graph: DependencyGraph, editable: EditableNetwork, few: np.ndarray, names: Sequence[str]
) -> list[str]:
    """The groups that fail, found by halving."""
    if _all_equal(model, graph, editable, few, names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return [n for part in (names[:half], names[half:]) for n in _failing(model, graph, editable, few, part)]


def _all_equal(
    model: Model, graph: DependencyGraph, editable: EditableNetwork, few: np.ndarray, names: Sequence[str]
) -> bool:
    """Whether slicing random choices of units gives the outputs of masking them."""
    draw = np.random.default_rng(len(names))
    choices: list[dict[str, np.ndarray]] = [{n: np.arange(graph.sizes[n])[1:-1] for n in names if graph.sizes[n] > 2}]
    for _ in range(RANDOM_CHOICES):
        choices.append({})
        for n in names:
            size = graph.sizes[n]
            count = min(max(1, size - 1), max(1, round(size * draw.uniform(0.35, 0.85))))
            choices[-1][n] = np.sort(draw.permutation(size)[:count])
    return all(cutting_equals_masking(model, graph, kept, few, editable) for kept in choices)


def cutting_equals_masking(
    model: Model, graph: DependencyGraph, kept: Mapping[str, np.ndarray], inputs: np.ndarray, editable: EditableNetwork
) -> bool:
    """Whether the network that keeps only these units, by group, has the outputs of one that masks the others."""
    state = editable.module.state_dict()
    smaller, masked = editable_copy(model), editable_copy(model)
    for a in (smaller, masked):
        a.module.load_state_dict(state)
    few = as_tensor(inputs, editable.like)
    try:
        slicing.slice_units(smaller.module, slicing.kept_rows(graph, kept), head_weights(graph))
        slicing.mask_units(masked.module, graph, kept)
        with torch.no_grad():
            pairs = [output_tensors(a.forward(few)) for a in (smaller, masked)]
    except (StemmaError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return len(pairs[0]) == len(pairs[1]) and all(_equal(a, b) for a, b in zip(*pairs, strict=True))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether outputs agree, every column (of maps also every channel) relative to its own size."""
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return a.shape == b.shape
    for axis in {1, a.ndim - 1} if a.ndim > 1 else {0}:
        x, y = (t.double().movedim(axis, -1).reshape(-1, t.shape[axis]) for t in (a, b))
        size = y.abs().amax(0)
        close = (OUTPUT_TOLERANCE * size).clamp_min(OUTPUT_TOLERANCE**2 * float(size.max())).clamp_min(1e-30)
        if not bool(((x - y).abs().amax(0) <= close).all()):
            return False
    return True


def head_weights(graph: DependencyGraph) -> frozenset[str]:
    """Weights whose units are attention heads."""
    return frozenset(r.tensor for g in graph.groups if g.name in graph.heads for r in g.rows)


def name_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Regular expressions of names, one or several; `MisuseError` if one is invalid."""
    found = (given,) if isinstance(given, str) else tuple(given)
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise MisuseError(f"{pattern!r} is not a valid regular expression ({error})") from error
    return found
