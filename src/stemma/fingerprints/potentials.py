"""Potentials: scalar functions of the output whose gradients form a gradient field.

A potential may depend on the probe (its class, the position of a maximum). That choice is made once, at the probe, and
frozen along the path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.errors import MisuseError

if TYPE_CHECKING:
    import torch

MASKED = 1e300
"""Minus this is the score of an excluded class; finite, so that gradients stay finite."""

Value = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Potential:
    """A scalar function of the output.

    Attributes:
        freeze: From outputs at the probes `[k, …]` and labels (tokens for `next-tokens`) to choices fixed along each
            path, `[k, …]`.
        value: From outputs `[p, …]` and the frozen choices for each to `[p]`.
        shift_free: Whether a common shift of all outputs leaves the gradient unchanged.
        paired: Whether `freeze` gets the difference of outputs from those at another probe.

    """

    freeze: Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
    value: Value
    shift_free: bool = False
    paired: bool = False


def _no_choice(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.new_zeros(len(out), 1)


def _predicted_class(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return _scores(out).argmax(1, keepdim=True)


def _labels(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    classes = _scores(out).shape[1]
    if labels is None:
        raise MisuseError("the potential 'label' needs labels. Use probes with labels, or another potential")
    if int(labels.max()) >= classes:
        raise MisuseError(
            f"the probes have labels up to {int(labels.max())}, but the network has {classes} outputs (0 to "
            f"{classes - 1}). Use probes with its labels, or without labels"
        )
    return labels[:, None]


def _scores(out: "torch.Tensor") -> "torch.Tensor":
    if out.ndim != 2:
        raise MisuseError(
            f"this potential needs one score per class, but the network returns maps {list(out.shape[1:])}. Use "
            "difference, channel-max, position-max, unit-max or sum"
        )
    return out


def _gather(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    return out.gather(1, chosen).sum(1)


def _per_channel(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.flatten(2).argmax(2, keepdim=True) if out.ndim > 2 else out.new_zeros(*out.shape, 1).long()


def _at_positions(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    flat = out.flatten(2) if out.ndim > 2 else out[:, :, None]
    return flat.gather(2, chosen).flatten(1).sum(1)


def _per_position(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.argmax(1, keepdim=True)


def _at_channels(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    return out.gather(1, chosen).flatten(1).sum(1)


def _largest(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.flatten(1).argmax(1, keepdim=True)


def _flat_output(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.flatten(1)


def _projection(out: "torch.Tensor", direction: "torch.Tensor") -> "torch.Tensor":
    return (out.flatten(1) * direction).sum(1)


def _log_probability(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    """Log-probability of the chosen class, from its margin over the others."""
    # The derivative of log-softmax at the chosen score is 1 - p, which rounds to 0 for a network that is sure, while
    # those of the other scores, of the same size together, do not. Here both are exact, however sure it is.
    from torch.nn.functional import logsigmoid

    out = _scores(out).double()
    others = out.scatter(1, chosen, -MASKED).logsumexp(1)
    return logsigmoid(_gather(out, chosen) - others)


def _all_classes(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    return _scores(out).double().log_softmax(1).mean(1)


def _tokens(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    if labels is None or labels.ndim != 2:
        raise MisuseError("the potential 'next-tokens' needs token probes")
    return labels


def _next_tokens(out: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Mean log-probability of each sequence's own next tokens."""
    real = out if out.element_size() > 2 else out.float()
    return real[:, :-1].log_softmax(2).gather(2, tokens[:, 1:, None]).mean((1, 2))


POTENTIALS: Mapping[str, Potential] = {
    "own-argmax": Potential(_predicted_class, _gather),
    "label": Potential(_labels, _gather),
    "sum": Potential(_no_choice, lambda out, _: out.flatten(1).sum(1)),
    "channel-max": Potential(_per_channel, _at_positions),
    "position-max": Potential(_per_position, _at_channels),
    "unit-max": Potential(_largest, lambda out, chosen: _gather(out.flatten(1), chosen)),
    "difference": Potential(_flat_output, _projection, paired=True),
    "log-softmax": Potential(_labels, _log_probability, shift_free=True),
    "all-log-softmax": Potential(_no_choice, _all_classes, shift_free=True),
    "next-tokens": Potential(_tokens, _next_tokens, shift_free=True),
}
"""The potentials by name.

`own-argmax`: the score of the class that the network itself chooses. `label`: the score of the probe's label. `sum`: of
all outputs. `channel-max`: sum over channels of a map's value where it is largest (for scores, which are maps of one
position, the sum). `position-max`: sum over positions of the value of the strongest channel. `unit-max`: the largest
entry of the whole output. `difference`: the output's component along the difference between the outputs at this probe
and at another; no basis of the outputs is preferred, and no constant counts. `log-softmax`: log-probability of the
probe's label, of all classes on average where the probes have none. `all-log-softmax`: always that average.
`next-tokens`: mean log-probability of a token sequence's own next tokens.
"""


def resolve_potential(
    name: str, out: "torch.Tensor", *, labelled: bool, tokens: bool, vocabulary: int = 0, scores: bool = True
) -> str:
    """Resolve the name of a potential for the shape of the output: scores, tokens, maps or (not `scores`) features."""
    sequence = scores and tokens and out.ndim == 3 and out.shape[-1] >= vocabulary
    if name == "auto":
        name = "next-tokens" if sequence else "log-softmax" if scores and out.ndim == 2 else "difference"
    if name == "log-softmax" and sequence:
        return "next-tokens"
    if name == "log-softmax" and not labelled:
        return "all-log-softmax"
    if name not in POTENTIALS:
        raise MisuseError(f"unknown potential '{name}'. Potentials: auto, {', '.join(POTENTIALS)}")
    if name == "next-tokens" and not sequence:
        raise MisuseError(
            "the potential 'next-tokens' needs token probes and next-token scores per position. For an encoder "
            "without a head use difference, which compares hidden states"
        )
    return name
