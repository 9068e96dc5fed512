"""Networks that can be changed: a copy of their own, run and cut without touching the one they came from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.edits import slicing
from stemma.edits.coupling import Network, couplings
from stemma.edits.statistics import batch_of
from stemma.errors import MisuseError, StemmaError
from stemma.models import network as models_network
from stemma.models.model import Model

TRIED = 2
"""Inputs that a network is traced with."""

CLOSE = 1e-3
"""Largest difference of outputs, as a share of the largest output, between cutting units and silencing them."""

QUANTISED = ("quantized", "QuantizedLinear", "Linear8bitLt", "Linear4bit", "QuantLinear")
"""What modules are called that hold integer codes."""


@dataclass(frozen=True, eq=False)
class Asked:
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
    network: "models_network.Network"

    def answers(self, inputs: np.ndarray, batch: int = 256) -> torch.Tensor:
        """Outputs for raw inputs, without gradients.

        Returns:
            `[n, …]` on the processor.

        Raises:
            StemmaError: If an answer is not finite.
        """
        out = []
        with torch.no_grad():
            for start in range(0, len(inputs), batch):
                out.append(self.network(batch_of(inputs[start : start + batch], self.like)).cpu())
        found = torch.cat(out)
        if not bool(torch.isfinite(found).all()):
            raise StemmaError(f"{self.network.name} answers NaN or infinite values: it cannot be edited by its answers")
        return found


def own_network(model: Model) -> Asked:
    """A network that shares nothing with the model's.

    Cost: its weights in memory once more.

    Args:
        model: Any model whose network can be built.

    Returns:
        The network, in evaluation mode.

    Raises:
        MisuseError: If it is a black box, is quantised, or runs in a way that cannot be copied.
    """
    made = replace(model).network
    if made.module is None:
        raise MisuseError(f"{model.name} is known by its answers only: an edit needs its weights")
    for name, part in made.module.named_modules():
        where = f"{type(part).__module__}.{type(part).__name__}"
        if any(word in where for word in QUANTISED):
            raise MisuseError(f"{name or model.name} is a quantised module ({type(part).__name__}): edit the model "
                              "before it is quantised")  # fmt: skip
    known = model.__dict__.get("network")
    if model.source.startswith("python:") or (known is not None and known.module is made.module):
        if made.forward is not made.module:
            raise MisuseError(f"{model.name} runs through a function around its module, which cannot be copied: give "
                              "the module itself")  # fmt: skip
        module = copy.deepcopy(made.module)
        made = replace(made, module=module, forward=module)
    module = made.module
    assert module is not None
    for part in module.modules():
        part.training = False  # as eval() does, which programs refuse
    if made.parameter is None:
        raise MisuseError(f"{model.name} has no parameters: there is nothing to edit")
    return Asked(module, made.forward, made.parameter, made)


def removable(model: Model, inputs: np.ndarray, asked: Asked | None = None) -> Network:
    """What can be removed from a model's network, checked: cutting units must give what silencing them gives.

    Cost: a few forward passes of two inputs.

    Args:
        model: The model.
        inputs: Raw inputs, of which the first few are used.
        asked: A copy of its network, where one is at hand; it is not changed.

    Returns:
        The groups that passed.

    Raises:
        MisuseError: If nothing can be removed.
    """
    found = model.__dict__.setdefault("_removable", {})  # as lasting as the weights that it is derived from
    key = tuple(inputs.shape[1:])
    if key not in found:
        found[key] = _removable(model, inputs, asked or own_network(model))
    return found[key]


def _removable(model: Model, inputs: np.ndarray, asked: Asked) -> Network:
    few = batch_of(inputs[:TRIED] if len(inputs) > 1 else np.repeat(inputs[:1], TRIED, 0), asked.like)
    net = couplings(asked.module, asked.forward, few)
    state = {n: t.detach().clone() for n, t in asked.module.state_dict().items()}
    if net.groups and not _agrees(model, net, state, few, [g.name for g in net.groups]):
        failed = [g.name for g in net.groups if not _agrees(model, net, state, few, [g.name])]
        net = net.without(failed, "its code assumes this size")
    if not net.groups:
        shown = "; ".join(f"{n}: {why}" for n, why in list(net.refused.items())[:3])
        raise MisuseError(f"nothing can be removed from {model.name} ({shown or 'no layer reads hidden units'})")
    return net


def _agrees(model: Model, net: Network, state: Mapping[str, Any], few: torch.Tensor, names: list[str]) -> bool:
    """Whether half of the units cut out give the outputs of half of the units silenced."""
    kept = {n: np.arange(net.sizes[n])[:: 2 if net.sizes[n] > 1 else 1] for n in names}
    smaller, silent = own_network(model), own_network(model)
    for a in (smaller, silent):
        a.module.load_state_dict(state)
    try:
        slicing.cut(smaller.module, slicing.slices(net, kept), head_weights(net))
        slicing.silence(silent.module, net, kept)
        with torch.no_grad():
            a, b = smaller.network(few), silent.network(few)
    except (StemmaError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return a.shape == b.shape and float((a - b).abs().max()) <= CLOSE * float(b.abs().max().clamp_min(1e-30))


def head_weights(net: Network) -> frozenset[str]:
    """Weights whose units are attention heads."""
    return frozenset(r.tensor for g in net.groups if g.name in net.heads for r in g.rows)
