"""What batch norm remembers of the inputs that a network learnt from: for where there are none, or the wrong ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from stemma.edits.dependency_graph.groups import Reader
from stemma.edits.fidelity.batch_norm import norms
from stemma.edits.fidelity.statistics import LayerStatistics, Statistics
from stemma.edits.layer_inputs import matrix

STRANGE = 3.0
"""Factor between what samples of one class and batch norm say of variances, above which batch norm is not believed: its
statistics are of other data. Balanced classes that it learnt from have 1 on average."""

RIDGE = 0.01
"""Share by which the variances of a layer's outputs are raised before their covariance is inverted."""

UNLIKE = 0.02
"""Divergence from what batch norm remembers, above which inputs are not taken for the model's own kind. It lies between
images of the network's own data and digits put to networks of clothes, on networks that no figure is quoted from."""

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares that the class may have had of what a network learnt from; the one that fits best is taken."""


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


def unlike(rest: Statistics, mine: Statistics, module: torch.nn.Module, remembered: Mapping[str, Any]) -> float:
    """How far inputs, with samples of the class they lack, are from what a network learnt from, as batch norm tells.

    Args:
        rest: Of the layers, on those inputs, at level `full`.
        mine: The same on the samples.
        module: Holds the layers.
        remembered: As `following` gives them.

    Returns:
        Divergence of normal distributions with the means and variances of each channel, mean over channels and layers,
        at the share of samples where it is least; 0 without batch norm.
    """
    found = torch.zeros(len(SHARES), dtype=torch.float64)
    for name, norm in remembered.items():
        weights, mean, variance = _known(module, name, norm, rest.layers[name])
        parts = []
        for seen in (rest.layers[name], mine.layers[name]):
            middle = weights @ (seen.total / seen.count) - mean
            spread = (weights @ seen.moment(centred=True) * weights).sum(1)
            parts.append((middle, spread + middle.square()))
        for i, share in enumerate(SHARES):
            middle, second = (p + share * (q - p) for p, q in zip(*parts, strict=True))
            now = ((second - middle.square()) / variance).clamp_min(1e-9)
            found[i] += float((middle.square() / variance + now - 1 - now.log()).mean()) / 2 / len(remembered)
    return max(0.0, float(found.min()) - 1 / max(1, rest.inputs))  # few inputs differ by chance


def strange(statistics: Statistics, module: torch.nn.Module, remembered: Mapping[str, Any]) -> float:
    """By what factor samples of one class are off what batch norm remembers of all.

    Args:
        statistics: Of the layers, on the samples, at level `full`.
        module: Holds the layers.
        remembered: As `following` gives them.

    Returns:
        The mean square deviation from the remembered mean as a share of the remembered variance, or its inverse,
        whichever is above 1; the mean over channels and layers. Over balanced classes the share is 1 on average.
    """
    found = []
    for name, norm in remembered.items():
        seen = statistics.layers[name]
        weights, mean, variance = _known(module, name, norm, seen)
        spread = (weights @ seen.moment(centred=True) * weights).sum(1)
        away = (weights @ (seen.total / seen.count) - mean).square()
        found.append(float(((spread + away) / variance).mean()))
    share = sum(found) / max(1, len(found))
    return max(share, 1 / max(share, 1e-30)) if found else 1.0


def supposed(mine: Statistics, module: torch.nn.Module, remembered: Mapping[str, Any], share: float) -> Statistics:
    """Second moments of the inputs that a network learnt from but those of one class, supposed from samples of that.

    The samples' own deviations, half of the correlations taken out, are moved and stretched as little as makes the
    layer's outputs have the means and variances that batch norm remembers (normal distributions, conditioned), the
    class's share in these taken out.

    Args:
        mine: Of the samples, at level `full`.
        module: Holds the layers.
        remembered: As `following` gives them; other layers are left out.
        share: Of the class in what the network learnt from.

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
        mean, variance = _without(mean, variance, weights @ middle, (weights @ own * weights).sum(1), share)
        spread = weights @ own @ weights.T
        spread = spread + torch.diag(RIDGE * spread.diagonal().clamp_min(1e-30))
        gain = torch.linalg.solve(spread, weights @ own)
        middle = middle + gain.T @ (mean - weights @ middle)
        scale = (variance / spread.diagonal()).sqrt()
        own = own + gain.T @ (scale[:, None] * spread * scale - spread) @ gain
        second = own + torch.outer(middle, middle)
        layers[name] = LayerStatistics(1, middle, seen.blocks, None, second)
    return replace(mine, layers=layers, inputs=0, probes=None)


def _without(
    mean: torch.Tensor, variance: torch.Tensor, own: torch.Tensor, spread: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of the rest of a mixture; no variance falls below a tenth of what it was."""
    rest = (mean - share * own) / (1 - share)
    second = (variance + mean.square() - share * (spread + own.square())) / (1 - share)
    return rest, torch.maximum(second - rest.square(), variance / 10)


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
