"""What batch norm remembers of the inputs that a network learnt from: for where there are none, or the wrong ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from stemma.edits.coupling import Reader
from stemma.edits.normalisation import norms
from stemma.edits.statistics import LayerStatistics, Statistics, matrix

RIDGE = 0.01
"""Share by which the variances of a layer's outputs are raised before their covariance is inverted."""

UNLIKE = 0.03
"""Divergence from what batch norm remembers, above which inputs are not taken for the model's own kind. Other images
of what the test networks learnt stay below .01, blocks of one class's images lie at .08, digits for clothes at .14."""


def following(
    module: torch.nn.Module, forward: Callable[[torch.Tensor], Any], few: torch.Tensor, readers: Sequence[Reader]
) -> dict[str, Any]:
    """The batch norm that takes each layer's outputs, where one does.

    Args:
        module: Holds the layers.
        forward: Runs it.
        few: Some inputs.
        readers: The layers.

    Returns:
        Batch norms by name of the weight.
    """
    outputs: dict[int, str] = {}
    alive: list[Any] = []
    found: dict[str, Any] = {}

    def given(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, out: Any) -> None:
            outputs[id(out)] = name
            alive.append(out)

        return hook

    def taken(norm: Any, inputs: Any) -> None:
        name = outputs.get(id(inputs[0])) if inputs else None
        if name is not None:
            found[name] = norm

    handles = [module.get_submodule(r.layer).register_forward_hook(given(r.weight)) for r in readers if r.normed]
    handles += [n.register_forward_pre_hook(taken) for n in norms(module)]
    try:
        with torch.no_grad():
            forward(few)
    finally:
        for handle in handles:
            handle.remove()
    return found


def unlike(statistics: Statistics, module: torch.nn.Module, remembered: Mapping[str, Any]) -> float:
    """How far inputs are from those that a network learnt from, as far as batch norm tells.

    Args:
        statistics: Of the layers, on those inputs, at level `full`.
        module: Holds the layers.
        remembered: As `following` gives them.

    Returns:
        Divergence of normal distributions with the means and variances of each channel, mean over channels and layers;
        0 without batch norm.
    """
    found = []
    for name, norm in remembered.items():
        seen = statistics.layers[name]
        weights, mean, variance = _known(module, name, norm, seen)
        now = (weights @ seen.moment(centred=True) * weights).sum(1) / variance
        away = (weights @ (seen.total / seen.count) - mean).square() / variance
        found.append(float((away + now - 1 - now.clamp_min(1e-9).log()).mean()) / 2)
    return sum(found) / len(found) if found else 0.0


def supposed(mine: Statistics, module: torch.nn.Module, remembered: Mapping[str, Any]) -> Statistics:
    """Second moments of the inputs that a network learnt from, supposed from those of some samples.

    The samples' own deviations, half of the correlations taken out, are moved and stretched as little as makes the
    layer's outputs have the means and variances that batch norm remembers (normal distributions, conditioned).

    Args:
        mine: Of the samples, at level `full`.
        module: Holds the layers.
        remembered: As `following` gives them; other layers are left out.

    Returns:
        Statistics as if they had been collected.
    """
    layers = {}
    for name, norm in remembered.items():
        seen = mine.layers[name]
        weights, mean, variance = _known(module, name, norm, seen)
        own = seen.moment(centred=True)
        own = (own + torch.diag(own.diagonal())) / 2
        middle = seen.total / seen.count
        spread = weights @ own @ weights.T
        spread = spread + torch.diag(RIDGE * spread.diagonal().clamp_min(1e-30))
        gain = torch.linalg.solve(spread, weights @ own)
        middle = middle + gain.T @ (mean - weights @ middle)
        scale = (variance / spread.diagonal()).sqrt()
        own = own + gain.T @ (scale[:, None] * spread * scale - spread) @ gain
        second = own + torch.outer(middle, middle)
        layers[name] = LayerStatistics(1, middle, seen.blocks, None, second)
    return replace(mine, layers=layers, inputs=0, probes=None)


def _known(
    module: torch.nn.Module, name: str, norm: Any, seen: LayerStatistics
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, and the means and variances of their products with the inputs that batch norm remembers."""
    layer: Any = module.get_submodule(name.rpartition(".")[0])
    like = seen.total
    weights, mean, variance = (
        t.detach().to(like.device, torch.float64) for t in (matrix(layer), norm.running_mean, norm.running_var)
    )
    if layer.bias is not None:
        mean = mean - layer.bias.detach().to(mean)
    return weights, mean, variance.clamp_min(1e-12)
