"""Tracer: runs a network on a few inputs and records, per operation, which rows of its weights belong to one unit.

The network's code runs as it is, whatever its control flow; the tensor operations that it consists of are traced. The
units that reach an operation without a rule are fixed, so that none is removed by mistake.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stemma.edits.dependency_graph.operation_rules import rule_of
from stemma.edits.dependency_graph.tracing_mode import MatrixProduct, TracingMode, WeightUse, tensors_in

OUTPUT = "it is an output of the network"
"""Why units of the output cannot be removed."""

COMPUTED = (
    "its weight is computed from others, as by weight norm or spectral norm: make it a plain weight first "
    "(torch.nn.utils.parametrize.remove_parametrizations)"
)
"""Why units cannot be removed from a layer with a parametrization."""


@dataclass(frozen=True, eq=False)
class TraceResult:
    """The result of one traced run.

    Attributes:
        axes: Unit of every row of every axis, by weight.
        why: Why a unit cannot be removed.
        uses: How weights are used.
        matrix_products: Matrix products, in order.
        units: Unit by number, to look up labels.
        shapes: Shape by weight.
        parameter_names: Names of the parameters; the other weights are buffers.
        uncounted: Weights whose multiplications are not counted, with the reason.
    """

    axes: Mapping[str, tuple[Any, ...]]
    why: Mapping[int, str]
    uses: Mapping[str, WeightUse]
    matrix_products: tuple[MatrixProduct, ...]
    units: Any = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]
    parameter_names: frozenset[str]
    uncounted: Mapping[str, str]


def trace(module: torch.nn.Module, forward: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> TraceResult:
    """Run a network once on two or more inputs `[n, …]` and record which rows belong to one unit."""
    batch_norms = torch.nn.modules.batchnorm._BatchNorm
    kept = {n for n, m in module.named_modules() if isinstance(m, batch_norms)}
    # Buffers of other modules are constants of the code.
    buffers = {n: t for n, t in module.named_buffers() if n.rpartition(".")[0] in kept}
    weights = dict(module.named_parameters()) | buffers
    weights = {n: t for n, t in weights.items() if t.ndim and t.is_floating_point()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    recurrent = _recurrent_weights(module)
    plain_kernels = torch.backends.mkldnn.flags(enabled=not recurrent)  # a fused kernel hides the gates
    try:
        with plain_kernels, torch.no_grad(), TracingMode(weights, len(inputs), rule_of) as tracing:
            answer = forward(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for name in _computed_weights(module):
        inside = [n for n in tracing.uncounted if n.startswith(f"{name}.")]
        tracing.uncounted = {n: why for n, why in tracing.uncounted.items() if n not in inside}
        tracing.uncounted[f"{name}.weight"] = COMPUTED
    labels = tracing.labels
    for tensor in output_tensors(answer):
        labels.fix(tracing.label(tensor), OUTPUT)
    _join_recurrent_layers(tracing, recurrent)
    for name in tracing.uses.keys() - {n for n, u in tracing.uses.items() if u.times == 1 or n in recurrent}:
        for rows in tracing.axes.get(name, ()):
            labels.fix(rows, f"{name} is used more than once")
    unit, why = labels.connected_units()
    axes = {n: tuple(unit[r.numpy()] for r in rows) for n, rows in tracing.axes.items()}
    shapes = {n: tuple(t.shape) for n, t in weights.items()}
    parameter_names = frozenset(n for n, _ in module.named_parameters())
    return TraceResult(
        axes, why, tracing.uses, tuple(tracing.matrix_products), unit, shapes, parameter_names, tracing.uncounted
    )


def _computed_weights(module: torch.nn.Module) -> list[str]:
    """Layers whose weight is no parameter but computed anew from others."""
    plain = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    return [n for n, part in module.named_modules() if isinstance(part, plain) and "weight" not in part._parameters]


def _recurrent_weights(module: torch.nn.Module) -> dict[str, tuple[str, bool]]:
    """By weight of a recurrent layer: the layer, and whether it multiplies the inner state."""
    out = {}
    for layer, part in module.named_modules():
        if isinstance(part, torch.nn.RNNBase):
            for name in (n for n in dict(part.named_parameters(recurse=False)) if n.startswith("weight")):
                inner = not name.startswith("weight_ih_l0")
                out[f"{layer}.{name}" if layer else name] = layer, inner
    return out


def _join_recurrent_layers(tracing: TracingMode, recurrent: Mapping[str, tuple[str, bool]]) -> None:
    """All layers and directions of a recurrent module have one width: their states lose the same units."""
    states: dict[str, torch.Tensor] = {}
    for name, (layer, inner) in recurrent.items():
        if name in tracing.uses and inner:
            tracing.uses[name].kind = "recurrent"
        if name in tracing.axes and "weight_hh" in name:
            own = tracing.axes[name][1]
            tracing.labels.join(states.setdefault(layer, own), own)
        if "weight_hr" in name:
            tracing.labels.fix(states.get(layer), "the state of its layer is projected")


def output_tensors(answer: Any) -> list[torch.Tensor]:
    """Every tensor in the output of a network: a tensor, a collection, an output of transformers, any object."""
    if hasattr(answer, "to_tuple"):
        answer = answer.to_tuple()
    elif not isinstance(answer, torch.Tensor | Mapping | tuple | list):
        slots = [getattr(answer, n, None) for n in getattr(type(answer), "__slots__", ())]
        answer = [*getattr(answer, "__dict__", {}).values(), *slots]
    return tensors_in(answer)
