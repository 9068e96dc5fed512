"""A network without its head: the features at one layer as a function of the parameters that reach them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor_names import strip_prefix
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import as_tensor, checked_network
from stemma.fingerprints.layers import capture, find_head, find_layer, is_linear_or_convolution, module_of
from stemma.probes import Probes
from stemma.types.network import Network

Parameters = dict[str, torch.Tensor]

FEW = 2
"""Probes on which it is seen which parameters reach the features."""


class _Called(nn.Module):
    """A network around its module, so that parameters can be exchanged by name while the network is asked."""

    def __init__(self, network: Network, module: nn.Module) -> None:
        super().__init__()
        self.inside = module
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)


@dataclass(frozen=True, eq=False)
class Body:
    """A network up to a layer.

    Attributes:
        network: The whole network.
        layer: Name of the module where features are taken, empty for the head.
        cut: That module.
        entering: Whether features are what enters it, else what leaves it.
        parameters: Those that reach the features, by name; float64 where the network computes so, else float32. The
            head's are not among them, and buffers are no parameters.
        rest: All other parameters and buffers, by name.
    """

    network: Network
    layer: str
    cut: nn.Module
    entering: bool
    parameters: Parameters
    rest: Parameters

    def inputs(self, probes: Probes, start: int, count: int) -> torch.Tensor:
        """Some probes as this network takes them, in the float type of its parameters.

        Returns:
            `[at most count, …]`.
        """
        given = as_tensor(self.network, probes.inputs[start : start + count])
        return given.to(_wide(given)) if given.is_floating_point() else given

    def features(self, inputs: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Features for some inputs, differentiable in the parameters.

        Cost: one forward pass of the whole network.

        Args:
            inputs: `[n, …]`.
            parameters: Used in place of the network's own where given.

        Returns:
            `[n, d]`, flattened per input.

        Raises:
            MisuseError: If the layer is not run, or does not give one row per input.
        """
        module = self.network.module
        assert module is not None  # seen when the body was made
        state = {**self.rest, **self.parameters, **(parameters or {})}
        called = {f"inside.{name}": t for name, t in state.items()}
        # Fused attention has no forward derivative; the plain one computes the same.
        with capture(self.cut, entering=self.entering) as seen, sdpa_kernel(SDPBackend.MATH):
            functional_call(_Called(self.network, module), called, (inputs,), tie_weights=True)
        if not seen or len(seen[-1]) != len(inputs) or seen[-1].ndim < 2 or not seen[-1].is_floating_point():
            raise MisuseError(
                f"the layer '{self.layer}' of {self.network.name} is not run, or not with one row of numbers per "
                "probe: name another one"
            )
        return seen[-1].flatten(1)

    def collected(self, probes: Probes, batch: int) -> torch.Tensor:
        """Features of all probes.

        Args:
            probes: What is asked.
            batch: Probes at once.

        Returns:
            `[n, d]` in float64, without a graph.

        Raises:
            StemmaError: If one is NaN or infinite.
        """
        with torch.no_grad():
            parts = [self.features(self.inputs(probes, i, batch)) for i in range(0, len(probes), batch)]
        found = torch.cat(parts).cpu().double()
        if not torch.isfinite(found).all():
            raise StemmaError(
                f"{self.network.name} has NaN or infinite features: no score can be computed. Repair the model, or "
                "leave out the probes that cause it"
            )
        return found


def body(model: Model, probes: Probes, layer: str = "") -> Body:
    """A model's network up to a layer.

    Cost: three evaluations of a few probes, and one backward pass.

    Args:
        model: The model, with a network that can be opened.
        probes: What it will be asked.
        layer: Name of a module whose output is taken; empty for what enters the last linear or convolution module that
            is run, which is taken for the head.

    Returns:
        The body.

    Raises:
        MisuseError: If the layer is not there, or no parameter reaches it.
        StemmaError: If the network cannot be asked.
    """
    network = checked_network(model, probes)
    module = module_of(network, "fine-tuning approximation")
    few = as_tensor(network, probes.inputs[:FEW])
    cut = find_layer(network, module, layer) if layer else find_head(network, module, few)
    return _reached(Body(network, layer, cut, not layer, *_state(module)), probes)


def bodies(model: Model, probes: Probes) -> tuple[Body, ...]:
    """A model's network up to every layer: cut before each linear or convolution module that is run.

    Modules that are given the same tensor are one cut, and the first ones, which see the inputs themselves, are none.

    Args:
        model: The model.
        probes: What it will be asked.

    Returns:
        Bodies in the order in which the modules are run; the last one ends at the head.

    Raises:
        MisuseError: If there is no such module behind the first.
    """
    network = checked_network(model, probes)
    module = module_of(network, "fine-tuning approximation")
    ran: list[tuple[str, nn.Module]] = []
    given: list[Any] = []

    def see(name: str, part: nn.Module, entered: tuple[Any, ...]) -> None:
        if entered and not any(entered[0] is other for other in given):
            ran.append((name, part))
        given.extend(entered[:1])

    handles = [
        part.register_forward_pre_hook(partial(lambda name, part, entered: see(name, part, entered), name))
        for name, part in module.named_modules()
        if is_linear_or_convolution(part)
    ]
    try:
        with torch.no_grad():
            network(as_tensor(network, probes.inputs[:FEW]))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, part in ran:
        try:
            found.append(_reached(Body(network, name, part, True, *_state(module)), probes))
        except MisuseError:
            continue  # it sees the inputs themselves
    if not found:
        raise MisuseError(f"{network.name} has no layer between its inputs and its head: compare outputs instead")
    return tuple(found)


def difference(parent: Body, child: Body) -> Parameters:
    """What was added to the parent's parameters to give the child's, paired by name (without a framework's prefix).

    Args:
        parent: A body.
        child: A body of the same architecture, with its units in the same order.

    Returns:
        By name, in the parent's float type.

    Raises:
        MisuseError: If the bodies do not have the same parameters of the same shapes.
    """
    p, c = ({short: side.parameters[n] for n, short in _short(side).items()} for side in (parent, child))
    odd = sorted(p.keys() ^ c.keys()) or sorted(n for n in p if p[n].shape != c[n].shape)
    if odd:
        name = odd[0]
        has = [f"{list(side[name].shape)}" if name in side else "no such parameter" for side in (p, c)]
        raise MisuseError(
            f"the bodies of {parent.network.name} and {child.network.name} differ: '{name}' is {has[0]} in the first "
            f"and {has[1]} in the second. Parent and child must have one architecture, the same names and order "
            "of units; only heads may differ. Where heads have several layers, name a layer before them"
        )
    return {name: c[short].to(p[short]) - p[short] for name, short in _short(parent).items()}


def _short(side: Body) -> dict[str, str]:
    return strip_prefix(list(side.parameters))


def _reached(found: Body, probes: Probes) -> Body:
    """The same body with only those parameters that its features depend on."""
    leaves = {n: t.detach().requires_grad_() for n, t in found.parameters.items()}
    with torch.enable_grad():
        out = found.features(found.inputs(probes, 0, FEW), leaves)
    slopes: Sequence[torch.Tensor | None] = [None]
    if out.requires_grad:
        slopes = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
    inside = {n: found.parameters[n] for n, slope in zip(leaves, slopes, strict=False) if slope is not None}
    if not inside:
        where = repr(found.layer) if found.layer else "head"
        raise MisuseError(
            f"no parameter of {found.network.name} reaches the features at its {where}: take a later layer"
        )
    outside = {n: t for n, t in found.parameters.items() if n not in inside}
    return replace(found, parameters=inside, rest={**found.rest, **outside})


def _state(module: nn.Module) -> tuple[Parameters, Parameters]:
    """Parameters, and buffers with whatever cannot be differentiated; floats at least in float32."""
    both = [*module.named_parameters(), *module.named_buffers()]
    all_of_them = {n: t.detach().to(_wide(t)) if t.is_floating_point() else t for n, t in both}
    smooth = {n for n, p in module.named_parameters() if p.is_floating_point()}
    return {n: t for n, t in all_of_them.items() if n in smooth}, {
        n: t for n, t in all_of_them.items() if n not in smooth
    }


def _wide(t: torch.Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def tangents(parent: Body, added: Sequence[Parameters], probes: Probes, batch: int) -> torch.Tensor:
    """How the parent's features change, to first order, along each of several changes of its parameters.

    Cost: one forward pass with `len(added)` forward derivatives on it; memory as many times that of a pass.

    Args:
        parent: The body.
        added: Changes of its parameters, c of them.
        probes: What is asked.
        batch: Probes at once.

    Returns:
        `[c, n, d]`, float64.

    Raises:
        MisuseError: If the layer gives no features.
        StemmaError: If the network holds an operation without a forward derivative.
    """
    stacked = {name: torch.stack([a[name] for a in added]) for name in parent.parameters}
    parts = []
    for start in range(0, len(probes), batch):
        inputs = parent.inputs(probes, start, batch)

        def along(change: Parameters, inputs: torch.Tensor = inputs) -> torch.Tensor:
            return jvp(lambda p: parent.features(inputs, p), (parent.parameters,), (change,))[1]

        try:
            with torch.no_grad():
                parts.append(vmap(along)(stacked))
        except MisuseError:
            raise
        except (StemmaError, RuntimeError) as e:
            raise StemmaError(
                f"{parent.network.name} cannot be differentiated forward ({' '.join(str(e).split())[:200]}): take "
                "form='taylor', which needs a backward pass only"
            ) from e
    return torch.cat(parts, 1).cpu().double()


def slopes(
    parent: Body, added: Sequence[Parameters], weights: torch.Tensor, probes: Probes, batch: int
) -> torch.Tensor:
    """How weighted sums of the parent's features change, to first order, along changes of its parameters.

    Cost: one forward pass, and one backward pass per change on it.

    Args:
        parent: The body.
        added: Changes of its parameters, c of them.
        weights: Of every feature, `[c, n, d]`.
        probes: What is asked.
        batch: Probes at once.

    Returns:
        `[c]`, float64.
    """
    leaves = {n: t.requires_grad_() for n, t in ((n, t.detach()) for n, t in parent.parameters.items())}
    total = torch.zeros(len(added), dtype=torch.float64)
    for start in range(0, len(probes), batch):
        with torch.enable_grad():
            features = parent.features(parent.inputs(probes, start, batch), leaves)
        for i, (change, weight) in enumerate(zip(added, weights, strict=True)):
            pulled = weight[start : start + batch].to(features)
            found = torch.autograd.grad(features, list(leaves.values()), pulled, retain_graph=True)
            total[i] += sum(
                torch.vdot(g.flatten(), change[n].flatten()).double() for n, g in zip(leaves, found, strict=True)
            )
    return total
