"""Batch-norm statistics as a prior on the training inputs: used where retain inputs are missing or out of distribution.

The running means and variances say how a layer's outputs are distributed over the training set, as in data-free
distillation; second moments of its inputs, and an out-of-distribution score of given inputs, follow from them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from stemma.edits.dependency_graph.dependency_groups import Reader
from stemma.edits.fidelity.batch_norm_recalibration import batch_norms
from stemma.edits.fidelity.statistics import LayerStatistics, Statistics
from stemma.edits.layer_inputs import weight_matrix

MAX_PRIOR_MISMATCH = 3.0
"""Largest ratio between the variances of samples of one class and those of batch norm at which the prior is used; above
it, the statistics are of other data. Over balanced classes that the network learnt the ratio is 1 on average."""

RIDGE = 0.01
"""Fraction by which the variances of a layer's outputs are raised before their covariance is inverted."""

MAX_OOD_SCORE = 0.02
"""Largest out-of-distribution score at which inputs are used. It lies between images of the network's own data and
digits given to networks of clothes, on networks that no figure is quoted from."""

CLASS_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Fractions of the training data that the class may have had; the one that fits best is taken."""

NormByWeight = Mapping[str, Any]
"""The batch norm that takes a layer's outputs, by name of the layer's weight."""


def following_batch_norms(
    module: torch.nn.Module, forward: Callable[[torch.Tensor], Any], inputs: torch.Tensor, readers: Sequence[Reader]
) -> dict[str, Any]:
    """The batch norm that takes each layer's outputs, where one does, found by running the network on a few inputs."""
    outputs: dict[int, str] = {}
    alive: list[Any] = []  # ids identify tensors only while they live
    found: dict[str, Any] = {}

    def record_output(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, out: Any) -> None:
            outputs[id(out)] = name
            alive.append(out)

        return hook

    def match_input(norm: Any, inputs: Any) -> None:
        name = outputs.get(id(inputs[0])) if inputs else None
        if name is not None:
            found[name] = norm

    readers = [r for r in readers if r.normed]
    handles = [module.get_submodule(r.layer).register_forward_hook(record_output(r.weight)) for r in readers]
    handles += [n.register_forward_pre_hook(match_input) for n in batch_norms(module)]
    try:
        with torch.no_grad():
            forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def ood_score(retain: Statistics, forget: Statistics, module: torch.nn.Module, norms: NormByWeight) -> float:
    """Out-of-distribution score of retain inputs: divergence from the batch-norm statistics; 0 without batch norm."""
    # It is the divergence of normal distributions with the means and variances of each channel, mean over channels
    # and layers, at the mixture with forget samples for which it is smallest.
    found = torch.zeros(len(CLASS_SHARES), dtype=torch.float64)
    for name, norm in norms.items():
        weights, mean, variance = _running_statistics(module, name, norm, retain.layers[name])
        parts = []
        for layer in (retain.layers[name], forget.layers[name]):
            offset = weights @ (layer.total / layer.count) - mean
            spread = (weights @ layer.moment(centred=True) * weights).sum(1)
            parts.append((offset, spread + offset.square()))
        for i, share in enumerate(CLASS_SHARES):
            offset, second = (p + share * (q - p) for p, q in zip(*parts, strict=True))
            ratio = ((second - offset.square()) / variance).clamp_min(1e-9)
            found[i] += float((offset.square() / variance + ratio - 1 - ratio.log()).mean()) / 2 / len(norms)
    return max(0.0, float(found.min()) - 1 / max(1, retain.inputs))  # few inputs differ by chance


def prior_mismatch(statistics: Statistics, module: torch.nn.Module, norms: NormByWeight) -> float:
    """The factor, 1 or more, between deviations of samples of one class and the variances of batch norm."""
    # The mean square deviation from the running mean as a fraction of the running variance, mean over channels and
    # layers, or its inverse; over balanced classes the fraction is 1 on average.
    found = []
    for name, norm in norms.items():
        layer = statistics.layers[name]
        weights, mean, variance = _running_statistics(module, name, norm, layer)
        spread = (weights @ layer.moment(centred=True) * weights).sum(1)
        offset = (weights @ (layer.total / layer.count) - mean).square()
        found.append(float(((spread + offset) / variance).mean()))
    share = sum(found) / max(1, len(found))
    return max(share, 1 / max(share, 1e-30)) if found else 1.0


def prior_statistics(forget: Statistics, module: torch.nn.Module, norms: NormByWeight, share: float) -> Statistics:
    """Estimated statistics of the training inputs without one class, which had this share of them."""
    # The samples' own deviations, half of the correlations taken out, are moved and stretched as little as makes the
    # layer's outputs have the running means and variances of batch norm (normal distributions, conditioned), with the
    # class's share in these taken out. Layers without a batch norm are left out.
    layers = {}
    for name, norm in norms.items():
        layer = forget.layers[name]
        weights, mean, variance = _running_statistics(module, name, norm, layer)
        own = layer.moment(centred=True)
        own = (own + torch.diag(own.diagonal())) / 2
        middle = layer.total / layer.count
        mean, variance = _without_class(mean, variance, weights @ middle, (weights @ own * weights).sum(1), share)
        spread = weights @ own @ weights.T
        spread = spread + torch.diag(RIDGE * spread.diagonal().clamp_min(1e-30))
        gain = torch.linalg.solve(spread, weights @ own)
        middle = middle + gain.T @ (mean - weights @ middle)
        scale = (variance / spread.diagonal()).sqrt()
        own = own + gain.T @ (scale[:, None] * spread * scale - spread) @ gain
        layers[name] = LayerStatistics(1, middle, own + torch.outer(middle, middle))
    return replace(forget, layers=layers, inputs=0, probes=None)


def _without_class(
    mean: torch.Tensor, variance: torch.Tensor, own: torch.Tensor, spread: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of the rest of a mixture; no variance falls below a tenth of what it was."""
    others = (mean - share * own) / (1 - share)
    second = (variance + mean.square() - share * (spread + own.square())) / (1 - share)
    return others, torch.maximum(second - others.square(), variance / 10)


def _running_statistics(
    module: torch.nn.Module, name: str, norm: Any, statistics: LayerStatistics
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's weights, and the running means and variances of their products with its inputs."""
    layer: Any = module.get_submodule(name.rpartition(".")[0])
    like = statistics.total
    weights, mean, variance = (
        t.detach().to(like.device, torch.float64) for t in (weight_matrix(layer), norm.running_mean, norm.running_var)
    )
    if layer.bias is not None:
        mean = mean - layer.bias.detach().to(mean)
    return weights, mean, variance.clamp_min(1e-12)
