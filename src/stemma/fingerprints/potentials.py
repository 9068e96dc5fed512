"""From outputs to one number per input: what a gradient field is the gradient of.

A potential may depend on the probe (its class, where a map is largest). That choice is made once, at the probe itself,
and frozen along the path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.errors import MisuseError

if TYPE_CHECKING:
    import torch

MASKED = 1e300
"""Minus this is the score of a class that is left out; no infinity, so that gradients stay numbers."""

Value = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Potential:
    """One number per input.

    Attributes:
        freeze: From the outputs at the probes `[k, …]` and their labels (tokens for `next-tokens`) to what stays
            fixed along each path, `[k, …]`.
        value: From outputs `[p, …]` and what was frozen for each of them to `[p]`.
        shift_free: Adding one number to all outputs of an input leaves its gradient as it is.
        paired: `freeze` gets the outputs less those at another probe.
    """

    freeze: Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
    value: Value
    shift_free: bool = False
    paired: bool = False


def _nothing(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.new_zeros(len(out), 1)


def _own(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return _scores(out).argmax(1, keepdim=True)


def _labels(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    classes = _scores(out).shape[1]
    if labels is None:
        raise MisuseError("the potential 'label' needs labels: give probes with labels, or another potential")
    if int(labels.max()) >= classes:
        raise MisuseError(
            f"the probes have labels up to {int(labels.max())}, but the network has {classes} outputs (0 to "
            f"{classes - 1}): give probes whose labels it knows, or leave the labels out"
        )
    return labels[:, None]


def _scores(out: "torch.Tensor") -> "torch.Tensor":
    if out.ndim != 2:
        raise MisuseError(
            f"this potential takes one score per class, but the network answers with maps {list(out.shape[1:])}: "
            "choose difference, channel-max, position-max, unit-max or sum"
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


def _itself(out: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
    return out.flatten(1)


def _along(out: "torch.Tensor", direction: "torch.Tensor") -> "torch.Tensor":
    return (out.flatten(1) * direction).sum(1)


def _log_probability(out: "torch.Tensor", chosen: "torch.Tensor") -> "torch.Tensor":
    """Log-probability of the chosen class by its lead over the others."""
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
        raise MisuseError("the potential 'next-tokens' takes token probes")
    return labels


def _next_tokens(out: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Mean log-probability of each sequence's own next tokens."""
    real = out if out.element_size() > 2 else out.float()
    return real[:, :-1].log_softmax(2).gather(2, tokens[:, 1:, None]).mean((1, 2))


POTENTIALS: Mapping[str, Potential] = {
    "own-argmax": Potential(_own, _gather),
    "label": Potential(_labels, _gather),
    "sum": Potential(_nothing, lambda out, _: out.flatten(1).sum(1)),
    "channel-max": Potential(_per_channel, _at_positions),
    "position-max": Potential(_per_position, _at_channels),
    "unit-max": Potential(_largest, lambda out, chosen: _gather(out.flatten(1), chosen)),
    "difference": Potential(_itself, _along, paired=True),
    "log-softmax": Potential(_labels, _log_probability, shift_free=True),
    "all-log-softmax": Potential(_nothing, _all_classes, shift_free=True),
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


def choose(name: str, out: "torch.Tensor", *, labelled: bool, tokens: bool, vocabulary: int = 0) -> str:
    """Which potential is meant, now that the form of the output is known.

    Args:
        name: As asked for; `auto` is `next-tokens` for language models, `log-softmax` for scores and
            `difference` for maps, also for the hidden states of an encoder without a head.
        out: Some outputs.
        labelled: Whether the probes have labels.
        tokens: Whether the probes are tokens.
        vocabulary: How many tokens there are: fewer numbers per position are no scores of tokens, but hidden states.

    Returns:
        One of `POTENTIALS`.

    Raises:
        MisuseError: If the name is unknown.
    """
    sequence = tokens and out.ndim == 3 and out.shape[-1] >= vocabulary
    if name == "auto":
        name = "next-tokens" if sequence else "log-softmax" if out.ndim == 2 else "difference"
    if name == "log-softmax" and sequence:
        return "next-tokens"
    if name == "log-softmax" and not labelled:
        return "all-log-softmax"
    if name not in POTENTIALS:
        raise MisuseError(f"no potential is called '{name}'. There are: auto, {', '.join(POTENTIALS)}")
    if name == "next-tokens" and not sequence:
        raise MisuseError(
            "the potential 'next-tokens' takes token probes and next-token scores per position; of an encoder without "
            "a head choose difference, which compares hidden states"
        )
    return name
