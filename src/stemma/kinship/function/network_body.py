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
from stemma.fingerprints.evaluation import as_tensor, checked_network, why_no_gradient
from stemma.fingerprints.layers import capture, find_head, find_layer, is_linear_or_convolution, module_of
from stemma.probes import Probes
from stemma.types.network import Network

Parameters = dict[str, torch.Tensor]

SAMPLE_PROBES = 2
"""Number of probes used to find which parameters reach the features."""


class _NetworkModule(nn.Module):
    """A network around its module, so that parameters can be exchanged by name while it runs."""

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
        other_state: All other parameters and buffers, by name.
    """

    network: Network
    layer: str
    cut: nn.Module
    entering: bool
    parameters: Parameters
    other_state: Parameters

    def inputs(self, probes: Probes, start: int, count: int) -> torch.Tensor:
        """Probes as this network takes them, in the float type of its parameters."""
        given = as_tensor(self.network, probes.inputs[start : start + count])
        return given.to(_float_type(given)) if given.is_floating_point() else given

    def features(self, inputs: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Features `[n, d]` of inputs, differentiable in the parameters; costs one forward pass."""
        module = self.network.module
        assert module is not None  # checked when the body was made
        state = {**self.other_state, **self.parameters, **(parameters or {})}
        called = {f"inside.{name}": t for name, t in state.items()}
        # Fused attention has no forward derivative; the plain one computes the same.
        with capture(self.cut, entering=self.entering) as seen, sdpa_kernel(SDPBackend.MATH):
            functional_call(_NetworkModule(self.network, module), called, (inputs,), tie_weights=True)
        if not seen or len(seen[-1]) != len(inputs) or seen[-1].ndim < 2 or not seen[-1].is_floating_point():
            raise MisuseError(
                f"the layer '{self.layer}' of {self.network.name} is not run, or gives no row of numbers per "
                "probe: choose another layer"
            )
        return seen[-1].flatten(1)

    def features_of_all(self, probes: Probes, batch: int) -> torch.Tensor:
        """Features of all probes `[n, d]`, float64, without a graph; raises `StemmaError` if not finite."""
        with torch.no_grad():
            parts = [self.features(self.inputs(probes, i, batch)) for i in range(0, len(probes), batch)]
        found = torch.cat(parts).cpu().double()
        if not torch.isfinite(found).all():
            raise StemmaError(
                f"{self.network.name} has NaN or infinite features, so no score can be computed: repair the model, "
                "or omit the probes that cause it"
            )
        return found


def body_up_to(model: Model, probes: Probes, layer: str = "") -> Body:
    """The network up to a layer; without a name, up to what enters the last linear or convolution module."""
    network = checked_network(model, probes)
    module = module_of(network, "fine-tuning approximation")
    few = as_tensor(network, probes.inputs[:SAMPLE_PROBES])
    cut = find_layer(network, module, layer) if layer else find_head(network, module, few)
    return _with_reaching_parameters(Body(network, layer, cut, not layer, *_state(module)), probes)


def bodies_of_all_layers(model: Model, probes: Probes) -> tuple[Body, ...]:
    """The network cut before each linear or convolution module that runs, in the order of running."""
    network = checked_network(model, probes)
    module = module_of(network, "fine-tuning approximation")
    ran: list[tuple[str, nn.Module]] = []
    given: list[Any] = []

    def record(name: str, part: nn.Module, entered: tuple[Any, ...]) -> None:
        if entered and not any(entered[0] is other for other in given):
            ran.append((name, part))
        given.extend(entered[:1])

    handles = [
        part.register_forward_pre_hook(partial(lambda name, part, entered: record(name, part, entered), name))
        for name, part in module.named_modules()
        if is_linear_or_convolution(part)
    ]
    try:
        with torch.no_grad():
            network(as_tensor(network, probes.inputs[:SAMPLE_PROBES]))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, part in ran:
        try:
            found.append(_with_reaching_parameters(Body(network, name, part, True, *_state(module)), probes))
        except MisuseError:
            continue  # it sees the inputs themselves
    if not found:
        raise MisuseError(f"{network.name} has no layer between its inputs and its head: compare outputs instead")
    return tuple(found)


def difference(parent: Body, child: Body) -> Parameters:
    """Child minus parent parameters, paired by name; raises `MisuseError` if names or shapes differ."""
    p, c = ({short: side.parameters[n] for n, short in _names_without_prefix(side).items()} for side in (parent, child))
    odd = sorted(p.keys() ^ c.keys()) or sorted(n for n in p if p[n].shape != c[n].shape)
    if odd:
        name = odd[0]
        has = [f"{list(side[name].shape)}" if name in side else "no such parameter" for side in (p, c)]
        raise MisuseError(
            f"the bodies of {parent.network.name} and {child.network.name} differ: '{name}' is {has[0]} in the first "
            f"and {has[1]} in the second; only heads may differ. If heads have several layers, choose a layer before "
            "them"
        )
    return {name: c[short].to(p[short]) - p[short] for name, short in _names_without_prefix(parent).items()}


def _names_without_prefix(side: Body) -> dict[str, str]:
    return strip_prefix(list(side.parameters))


def _with_reaching_parameters(found: Body, probes: Probes) -> Body:
    """The same body with only those parameters that its features depend on."""
    leaves = {n: t.detach().requires_grad_() for n, t in found.parameters.items()}
    with torch.enable_grad():
        out = found.features(found.inputs(probes, 0, SAMPLE_PROBES), leaves)
    gradients: Sequence[torch.Tensor | None] = [None]
    if out.requires_grad:
        gradients = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
    inside = {n: found.parameters[n] for n, slope in zip(leaves, gradients, strict=False) if slope is not None}
    if not inside and out.is_inference():
        raise StemmaError(f"{found.network.name} has no gradients: {why_no_gradient(out)}")
    if not inside:
        where = repr(found.layer) if found.layer else "head"
        raise MisuseError(
            f"no parameter of {found.network.name} reaches the features at its {where}: choose a later layer"
        )
    outside = {n: t for n, t in found.parameters.items() if n not in inside}
    return replace(found, parameters=inside, other_state={**found.other_state, **outside})


def _state(module: nn.Module) -> tuple[Parameters, Parameters]:
    """Parameters, and buffers with whatever cannot be differentiated; floats at least in float32."""
    both = [*module.named_parameters(), *module.named_buffers()]
    all_of_them = {n: t.detach().to(_float_type(t)) if t.is_floating_point() else t for n, t in both}
    all_of_them = {n: t.clone() if t.is_inference() else t for n, t in all_of_them.items()}
    smooth = {n for n, p in module.named_parameters() if p.is_floating_point()}
    return {n: t for n, t in all_of_them.items() if n in smooth}, {
        n: t for n, t in all_of_them.items() if n not in smooth
    }


def _float_type(t: torch.Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def feature_tangents(parent: Body, added: Sequence[Parameters], probes: Probes, batch: int) -> torch.Tensor:
    """Forward derivatives of the parent's features along c changes of its parameters, `[c, n, d]` float64."""
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
            try:  # some operations have no forward derivative
                parts.append(_by_double_reverse(parent, inputs, added))
            except (StemmaError, RuntimeError):
                raise StemmaError(
                    f"{parent.network.name} cannot be differentiated forward ({' '.join(str(e).split())[:200]}): use "
                    "form='taylor', which needs a backward pass only"
                ) from e
    return torch.cat(parts, 1).cpu().double()


def _by_double_reverse(parent: Body, inputs: torch.Tensor, added: Sequence[Parameters]) -> torch.Tensor:
    """Tangents of one batch in reverse mode: what is pulled back by u is linear in u, with derivative J."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in parent.parameters.items()}
    with torch.enable_grad():
        out = parent.features(inputs, leaves)
        u = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(
            out, list(leaves.values()), u, create_graph=True, allow_unused=True, materialize_grads=True
        )
    changes = [[change[n].to(t) for n, t in leaves.items()] for change in added]
    return torch.stack([torch.autograd.grad(pulled, u, change, retain_graph=True)[0] for change in changes]).detach()


def directional_derivatives(
    parent: Body, added: Sequence[Parameters], weights: torch.Tensor, probes: Probes, batch: int
) -> torch.Tensor:
    """Derivatives `[c]` of weighted sums (`weights` `[c, n, d]`) of features along parameter changes."""
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
