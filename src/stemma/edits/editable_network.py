"""Networks that can be changed: a copy of their own, run and cut without touching the one they came from."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.groups import Network, couplings
from stemma.edits.dependency_graph.tracer import shown
from stemma.edits.layer_inputs import batch_of, scorable, watching
from stemma.errors import MisuseError, StemmaError
from stemma.types import network as models_network

TRIED = 2
"""Inputs that a network is traced with, and as many again, drawn from their range, on which cutting is tried."""

DRAWS = 2
"""Random choices of units, of another size in every group, on which cutting is tried; and all but the outermost."""

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


CODES = ("I8", "U8", "I4", "U4")
"""Types in which weights are stored as integer codes."""


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
    coded = [n for n, t in model.tensors.items() if len(t.shape) > 1 and t.dtype in CODES]
    if coded and not model.black_box:
        kind = model.tensors[coded[0]].dtype
        raise MisuseError(f"{coded[0]} is stored as integer codes ({kind}): edit the model before it is quantised")
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

    Cost: a few forward passes of four inputs.

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
    few = few_of(inputs)
    tried = batch_of(few, asked.like)
    net = couplings(asked.module, asked.forward, tried[:TRIED])
    net = _watchable(net, asked, tried)
    names = [g.name for g in net.groups]
    failed = _failing(model, net, asked, few, names) if names else []
    if failed:
        net = net.without(failed, "its code assumes this size")
        names = [n for n in names if n not in failed]
        if names and not _all_agree(model, net, asked, few, names):
            net = net.without(names, "its code assumes this size together with others")
    if not net.groups:
        why = "; ".join(f"{n}: {why}" for n, why in list(net.refused.items())[:3])
        raise MisuseError(f"nothing can be removed from {model.name} ({why or 'no layer reads hidden units'})")
    return net


def few_of(inputs: np.ndarray) -> np.ndarray:
    """Inputs from all over the probes, and noise in their range where they are continuous: no unit is silent on that.

    Returns:
        Two or four raw inputs.
    """
    given = inputs[np.linspace(0, len(inputs) - 1, TRIED).round().astype(int)]
    if given.dtype.kind != "f":
        return given
    low, high = float(given.min()), float(given.max())
    noise = np.random.default_rng(0).uniform(low, high if high > low else low + 1, given.shape)
    return np.concatenate([given, noise.astype(given.dtype)])


def _watchable(net: Network, asked: Asked, few: torch.Tensor) -> Network:
    """Without groups that a layer reads whose inputs cannot be collected."""
    layers = {r.layer: r for g in net.groups for r in g.readers}
    plain = [n for n in layers if scorable(asked.module.get_submodule(n))]
    run = set[str]()
    with torch.no_grad(), watching(asked.module, plain, lambda name, layer, x: run.add(name)):
        asked.forward(few)
    for group in net.groups:
        for layer in [r.layer for r in group.readers if r.layer not in run]:
            kind = type(asked.module.get_submodule(layer)).__name__
            weight = layers[layer].weight
            why = f"{layer} reads it, a {kind}" if layer not in plain else f"code outside its layer uses {weight}"
            net = net.without([group.name], f"{why}: what it is given cannot be watched")
    return net


def _failing(model: Model, net: Network, asked: Asked, few: np.ndarray, names: Sequence[str]) -> list[str]:
    """The groups that fail, found by halving."""
    if _all_agree(model, net, asked, few, names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return [n for part in (names[:half], names[half:]) for n in _failing(model, net, asked, few, part)]


def _all_agree(model: Model, net: Network, asked: Asked, few: np.ndarray, names: Sequence[str]) -> bool:
    """Whether random choices of units cut out give the outputs of the same units silenced."""
    draw = np.random.default_rng(len(names))
    choices: list[dict[str, np.ndarray]] = [{n: np.arange(net.sizes[n])[1:-1] for n in names if net.sizes[n] > 2}]
    for _ in range(DRAWS):
        choices.append({})
        for n in names:
            size = net.sizes[n]
            count = min(max(1, size - 1), max(1, round(size * draw.uniform(0.35, 0.85))))
            choices[-1][n] = np.sort(draw.permutation(size)[:count])
    return all(agrees(model, net, kept, few, asked) for kept in choices)


def agrees(model: Model, net: Network, kept: Mapping[str, np.ndarray], inputs: np.ndarray, asked: Asked) -> bool:
    """Whether cutting units out of a network gives the outputs that silencing them gives.

    Args:
        model: The model.
        net: What can be removed from it.
        kept: Units that stay, by group.
        inputs: Raw inputs.
        asked: Its network with the weights that count.

    Returns:
        False where they differ, or the smaller network does not run.
    """
    state = asked.module.state_dict()
    smaller, silent = own_network(model), own_network(model)
    for a in (smaller, silent):
        a.module.load_state_dict(state)
    few = batch_of(inputs, asked.like)
    try:
        slicing.cut(smaller.module, slicing.slices(net, kept), head_weights(net))
        slicing.silence(silent.module, net, kept)
        with torch.no_grad():
            pairs = [shown(a.forward(few)) for a in (smaller, silent)]
    except (StemmaError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return len(pairs[0]) == len(pairs[1]) and all(_equal(a, b) for a, b in zip(*pairs, strict=True))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether outputs agree, every column (of maps also every channel) by its own size."""
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return a.shape == b.shape
    for axis in {1, a.ndim - 1} if a.ndim > 1 else {0}:
        x, y = (t.double().movedim(axis, -1).reshape(-1, t.shape[axis]) for t in (a, b))
        size = y.abs().amax(0)
        close = (CLOSE * size).clamp_min(CLOSE**2 * float(size.max())).clamp_min(1e-30)
        if not bool(((x - y).abs().amax(0) <= close).all()):
            return False
    return True


def head_weights(net: Network) -> frozenset[str]:
    """Weights whose units are attention heads."""
    return frozenset(r.tensor for g in net.groups if g.name in net.heads for r in g.rows)


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns of names, one or several.

    Args:
        given: Regular expressions.

    Returns:
        All of them.

    Raises:
        MisuseError: If one cannot be read.
    """
    found = (given,) if isinstance(given, str) else tuple(given)
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise MisuseError(f"{pattern!r} is no pattern of names ({error})") from error
    return found
