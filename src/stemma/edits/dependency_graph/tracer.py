"""Runs a network on a few inputs and notes, operation by operation, which rows of its weights belong together.

The code of the network is run as it is, whatever its control flow: what is watched are the tensor operations that it
comes down to. An operation that is not known fixes the units that reach it, so that nothing is removed by mistake.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stemma.edits.dependency_graph.operation_rules import rule_of
from stemma.edits.dependency_graph.tracing_mode import Product, Tracing, Use, flat

OUTPUT = "it is an output of the network"
"""Why units of the output stay."""


@dataclass(frozen=True, eq=False)
class Traced:
    """What one run showed.

    Attributes:
        axes: Unit of every row of every axis, by weight.
        why: Why a unit cannot be removed.
        uses: How weights are used.
        products: Matrix products, in order.
        units: Unit by number, to look up labels.
        shapes: Shape by weight.
        learned: Names of the parameters; the other weights are buffers.
        uncounted: Weights whose multiplications are not counted, with the reason.
    """

    axes: Mapping[str, tuple[Any, ...]]
    why: Mapping[int, str]
    uses: Mapping[str, Use]
    products: tuple[Product, ...]
    units: Any = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]
    learned: frozenset[str]
    uncounted: Mapping[str, str]


def trace(module: torch.nn.Module, forward: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> Traced:
    """Run a network once and note which rows belong together.

    Cost: one forward pass, every intermediate kept.

    Args:
        module: Holds the weights.
        forward: Runs it, from raw inputs.
        inputs: A few inputs `[n, …]`, two or more.

    Returns:
        What was seen.
    """
    norms = torch.nn.modules.batchnorm._BatchNorm
    kept = {n for n, m in module.named_modules() if isinstance(m, norms)}  # other buffers are constants of the code
    buffers = {n: t for n, t in module.named_buffers() if n.rpartition(".")[0] in kept}
    weights = dict(module.named_parameters()) | buffers
    weights = {n: t for n, t in weights.items() if t.ndim and t.is_floating_point()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Tracing(weights, len(inputs), rule_of) as seen:
            answer = forward(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    known = seen.known
    for tensor in shown(answer):
        known.fix(seen.label(tensor), OUTPUT)
    for name in seen.uses.keys() - {n for n, u in seen.uses.items() if u.times == 1}:
        for rows in seen.axes.get(name, ()):
            known.fix(rows, f"{name} is used more than once")
    unit, why = known.components()
    axes = {n: tuple(unit[r.numpy()] for r in rows) for n, rows in seen.axes.items()}
    shapes = {n: tuple(t.shape) for n, t in weights.items()}
    learned = frozenset(n for n, _ in module.named_parameters())
    return Traced(axes, why, seen.uses, tuple(seen.products), unit, shapes, learned, seen.uncounted)


def shown(answer: Any) -> list[torch.Tensor]:
    """Every tensor of what a network returns: of an object of its own, everything that it holds.

    Args:
        answer: A tensor, a collection, an output of transformers, any object.

    Returns:
        The tensors.
    """
    if hasattr(answer, "to_tuple"):
        answer = answer.to_tuple()
    elif not isinstance(answer, torch.Tensor | Mapping | tuple | list):
        slots = [getattr(answer, n, None) for n in getattr(type(answer), "__slots__", ())]
        answer = [*getattr(answer, "__dict__", {}).values(), *slots]
    return flat(answer)
