"""How strongly each modality's gradient is scaled: the published rule, its variants, and what it remembers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError
from stemma.types import Spec

if TYPE_CHECKING:
    import torch

REFERENCES = ("running", "average", "parity")
"""What the lead of a modality is compared with: its mean so far, a moving average, or no lead at all."""

HIGHEST = -math.log(1e-8)
"""Largest score of a label, so that its probability counts as 1e-8 at least."""

IGNORED = -100
"""Label that counts for nothing, as in torch's cross-entropy."""

HIGHEST_CAP = 80.0
"""Beyond, e to the exponent is no number of 32 bits any more."""

Score = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Modulation:
    """The rule: kappa_m = exp(alpha * (tau_m - r_m)), with r_m how far a modality is ahead now, tau_m how far usually.

    Attributes:
        alpha: Strength; 0 is joint training. The published runs use 1.5 to 4.
        reference: Where tau comes from: `running` (the mean of all steps so far, as published), `average` (a moving
            average), or `parity` (tau = 1: any lead is damped).
        decay: Of the moving average, per step.
        cap: Largest absolute exponent `alpha * (tau - r)`. The published code caps `tau - r` itself, at 7 or 10, and in
            three of five experiments not at all.
        warm_up: First steps in which leads are measured but nothing is scaled.
        window: First step at which anything is done, and the first at which nothing is any more (None: never).

    Source: Li et al., ICCV 2023; the coefficients as in its released code. `average`, `parity` and warm-up are ours.
    """

    alpha: float = 1.0
    reference: str = "running"
    decay: float = 0.99
    cap: float = 5.0
    warm_up: int = 0
    window: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise MisuseError(f"alpha is a finite number, for example 1.0, not {self.alpha}")
        if self.reference not in REFERENCES:
            raise MisuseError(f"no reference is called {self.reference!r}. There are: {', '.join(REFERENCES)}")
        if not 0 <= self.decay < 1:
            raise MisuseError(f"the decay of a moving average lies from 0 to below 1, but it is {self.decay}")
        if not 0 < self.cap <= HIGHEST_CAP:
            raise MisuseError(
                f"the cap is the largest exponent, above 0 and at most {HIGHEST_CAP:g} (as good as none: e to it is "
                f"close to the largest float), but it is {self.cap}"
            )
        start, stop = self.window
        if start < 0 or (stop is not None and stop < start) or self.warm_up < 0:
            raise MisuseError(
                f"the window is (first step, first step after it or None), in order and from 0 on, as is the warm-up, "
                f"but they are {self.window} and {self.warm_up}"
            )

    @property
    def spec(self) -> Spec:
        """Identity of the rule with its parameters."""
        return Spec("adaptive-gradient-modulation", 1, asdict(self))

    def measures(self, step: int) -> bool:
        """Whether responses are looked at in this step."""
        start, stop = self.window
        return step >= start and (stop is None or step < stop)

    def scales(self, step: int) -> bool:
        """Whether gradients are scaled in this step."""
        return self.measures(step) and step >= self.window[0] + self.warm_up

    def coefficients(self, now: Sequence[float], usual: Sequence[float]) -> "tuple[Numbers, Numbers, Numbers]":
        """What the responses of one batch are scaled by.

        Args:
            now: By modality, mean score of its response, lower is better; NaN for a modality that is not in the batch.
            usual: The same on average so far, NaN where there is nothing yet.

        Returns:
            kappa, r and tau of each modality. kappa is 1 for a modality that is missing, and for all of them where a
            score is infinite; tau is 1 where nothing is known yet, as published.
        """
        ahead = lead(now)
        before = (math.nan,) * len(ahead) if self.reference == "parity" else lead(usual)
        before = tuple(1.0 if math.isnan(tau) else tau for tau in before)
        if any(map(math.isinf, now)):
            return (1.0,) * len(ahead), ahead, before
        exponents = (self.alpha * (tau - r) for tau, r in zip(before, ahead, strict=True))
        kappa = (1.0 if math.isnan(e) else math.exp(min(max(e, -self.cap), self.cap)) for e in exponents)
        return tuple(kappa), ahead, before


Numbers = tuple[float, ...]
"""One per modality."""

FARTHEST = 700.0
"""Largest difference of scores, so that exp of it is finite."""


def lead(scores: Sequence[float]) -> Numbers:
    """How far each modality is ahead: exp(mean score of the others - own score), above 1 if it is better than they are.

    Args:
        scores: By modality, lower is better; NaN for what is not there.

    Returns:
        By modality, NaN where it or all others are not there.
    """
    there = [score for score in scores if not math.isnan(score)]
    if len(there) < 2:
        return (math.nan,) * len(scores)
    total, others = sum(there), len(there) - 1
    return tuple(_exp((total - score) / others - score) for score in scores)


def _exp(x: float) -> float:
    return math.nan if math.isnan(x) else math.exp(min(x, FARTHEST))


@dataclass(frozen=True)
class History:
    """What the rule remembers of the steps so far.

    Attributes:
        step: Steps taken, measured or not.
        weight: By modality, samples (or, of a moving average, the sum of its weights) behind each mean.
        total: By modality, weighted sum of scores.
        capped: By modality, steps at which the exponent was cut off.
        skipped: Steps at which a score or an output was not finite, so that nothing was scaled.
    """

    step: int
    weight: Numbers
    total: Numbers
    capped: Numbers
    skipped: int = 0

    @classmethod
    def empty(cls, modalities: int) -> "History":
        """No steps yet."""
        zeros = (0.0,) * modalities
        return cls(0, zeros, zeros, zeros)

    @property
    def usual(self) -> Numbers:
        """By modality, the mean so far; NaN where there is nothing yet."""
        return means(self.total, self.weight)

    def idle(self) -> "History":
        """One more step in which nothing was measured."""
        return replace(self, step=self.step + 1)

    def after(
        self, rule: Modulation, sums: Sequence[float], counts: Sequence[float], kappa: Sequence[float] | None = None
    ) -> "History":
        """One more step.

        Args:
            rule: Whether the mean is one of all steps or a moving one.
            sums: By modality, scores summed over samples.
            counts: By modality, samples.
            kappa: By modality, what gradients were scaled by; None if nothing was.

        Returns:
            The history with this step in it; what is not finite is left out.
        """
        weight, total = list(self.weight), list(self.total)
        keep = rule.decay if rule.reference == "average" else 1.0
        for m, (found, many) in enumerate(zip(sums, counts, strict=True)):
            if many > 0 and math.isfinite(found):
                more = many if keep == 1.0 else 1 - keep
                weight[m] = keep * weight[m] + more
                total[m] = keep * total[m] + more * (found / many)
        edge = rule.cap * (1 - 1e-6)
        cut = () if kappa is None else (abs(math.log(k)) >= edge for k in kappa)
        capped = tuple(map(sum, zip(self.capped, cut, strict=True))) if kappa is not None else self.capped
        skipped = self.skipped + any(not math.isfinite(found) for found in sums)
        return History(self.step + 1, tuple(weight), tuple(total), capped, skipped)


def means(sums: Sequence[float], counts: Sequence[float]) -> Numbers:
    """Sums over counts, NaN where nothing was counted."""
    return tuple(s / n if n else math.nan for s, n in zip(sums, counts, strict=True))


def cross_entropy_score(response: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """-log softmax(response) at the label, per label.

    Args:
        response: `[n, classes, …]`.
        target: `[n, …]` classes, of which -100 is ignored; or probabilities like `response`.

    Returns:
        `[n, …]`, at most 18.42; 0 where the label is ignored.
    """
    return _of_labels(response[None], target)[0]


def _of_labels(responses: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """The same for `[modalities, n, classes, …]` at once, `[modalities, n, …]`."""
    from torch.nn.functional import cross_entropy

    many = len(responses)
    if target.is_floating_point():
        wide = (responses.flatten(0, 1), target.repeat(many, *[1] * (target.ndim - 1)))
        return cross_entropy(*wide, reduction="none").unflatten(0, (many, -1)).clamp(max=HIGHEST)
    # With samples along an inner axis, the softmax over few classes is several times faster.
    aim = target.expand(many, *target.shape)
    return cross_entropy(responses.transpose(1, 2), aim, reduction="none").clamp(max=HIGHEST)


def scored(
    responses: "torch.Tensor",
    target: "torch.Tensor",
    present: "torch.Tensor | None",
    score: Score,
    ignored: int = IGNORED,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Sums and numbers of the scores of each response.

    Args:
        responses: `[modalities, n, …]`.
        target: `[n, …]`.
        present: `[n, modalities]`; None if nothing is missing.
        score: From a response and the target to one number per sample or position, or to one number, the mean.
        ignored: Label that counts for nothing.

    Returns:
        Sums and counts, each `[modalities]` in float64 (float32 where the device has none). Ignored labels do not
        count; a modality without samples has the count 0.
    """
    import torch

    kind = torch.float32 if responses.device.type == "mps" else torch.float64
    responses = responses.detach()
    if ignored != IGNORED and isinstance(target, torch.Tensor):
        target = target.where(target != ignored, IGNORED)
    if present is None and score is cross_entropy_score:  # in one call: small networks would feel more of them
        found = _of_labels(responses, target)
        return found.flatten(1).sum(1, dtype=kind), _counted(found[0], target, kind).expand(len(found))
    each = []
    for m, response in enumerate(responses):
        part, aim = response, target
        if present is not None:
            rows = present[:, m].to(response.device)
            part, aim = response[rows], target[rows]
        found = score(part, aim).detach() if len(part) else part.new_zeros(0)
        if found.ndim == 0:
            many = torch.as_tensor(len(part), dtype=kind, device=response.device)
            each.append((found.to(kind) * many, many))
        else:
            shown = torch.where(aim != IGNORED, found, 0) if _labelled(found, aim) else found
            each.append((shown.sum(dtype=kind), _counted(found, aim, kind)))
    sums, counts = (torch.stack(column) for column in zip(*each, strict=True))
    return sums, counts


def _labelled(found: "torch.Tensor", target: Any) -> bool:
    import torch

    return isinstance(target, torch.Tensor) and found.shape == target.shape and not target.is_floating_point()


def _counted(found: "torch.Tensor", target: "torch.Tensor", kind: "torch.dtype") -> "torch.Tensor":
    import torch

    if _labelled(found, target):
        return (target != IGNORED).sum(dtype=kind)
    return torch.as_tensor(found.numel(), dtype=kind, device=found.device)
