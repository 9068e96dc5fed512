"""The AGM rule (adaptive gradient modulation): the coefficient kappa of each modality's gradient, and its history.

kappa_m = exp(alpha * (tau_m - r_m)), from the discrepancy ratio r and the reference ratio tau.

Source: Li et al., "Boosting multi-modal model performance with adaptive gradient modulation", ICCV 2023, and its
released code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError
from stemma.types import Spec

if TYPE_CHECKING:
    import torch

REFERENCES = ("running", "average", "parity")
"""What a discrepancy ratio is compared with: that of the mean so far, of a moving average, or 1."""

MAX_SCORE = -math.log(1e-8)
"""Largest score of a label: that of a probability of 1e-8."""

IGNORED_LABEL = -100
"""Label that is ignored, as in torch's cross-entropy."""

MAX_CAP = 80.0
"""Largest exponent whose exponential is a 32-bit float."""

Score = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Modulation:
    """The rule: kappa_m = exp(alpha * (tau_m - r_m)), with discrepancy ratio r_m and reference ratio tau_m.

    Attributes:
        alpha: Strength; 0 is joint training. The published runs use 1.5 to 4.
        reference: Where tau comes from: `running` (the mean scores of all steps so far, as published), `average` (a
            moving average), or `parity` (tau = 1: any advantage is damped).
        decay: Of the moving average, per step.
        cap: Largest absolute exponent `alpha * (tau - r)`. The published code caps `tau - r` itself, at 7 or 10, and in
            three of five experiments not at all.
        warm_up: First steps in which ratios are measured but gradients are not scaled.
        window: First step of modulation, and the first step after it (None: never).

    Source: Li et al., ICCV 2023; the coefficients as in its released code. `average`, `parity` and warm-up are
        Stemma's.
    """

    alpha: float = 1.0
    reference: str = "running"
    decay: float = 0.99
    cap: float = 5.0
    warm_up: int = 0
    window: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise MisuseError(f"alpha has to be finite, for example 1.0, but is {self.alpha}")
        if self.reference not in REFERENCES:
            raise MisuseError(f"no reference is called {self.reference!r}. Choose one of {', '.join(REFERENCES)}")
        if not 0 <= self.decay < 1:
            raise MisuseError(f"decay has to lie from 0 to below 1, but is {self.decay}")
        if not 0 < self.cap <= MAX_CAP:
            raise MisuseError(f"cap has to be above 0 and at most {MAX_CAP:g}, but is {self.cap}")
        start, stop = self.window
        if start < 0 or (stop is not None and stop < start) or self.warm_up < 0:
            raise MisuseError(
                f"window has to be (first step, first step after it or None) from 0 on, and warm_up 0 or more, but "
                f"they are {self.window} and {self.warm_up}"
            )

    @property
    def spec(self) -> Spec:
        """Identity of the rule with its parameters."""
        return Spec("adaptive-gradient-modulation", 1, asdict(self))

    def measures(self, step: int) -> bool:
        """Whether responses are measured in this step."""
        start, stop = self.window
        return step >= start and (stop is None or step < stop)

    def scales(self, step: int) -> bool:
        """Whether gradients are scaled in this step."""
        return self.measures(step) and step >= self.window[0] + self.warm_up

    def coefficients(self, scores: Sequence[float], mean_scores: Sequence[float]) -> "tuple[Numbers, Numbers, Numbers]":
        """kappa, r and tau of each modality, from its mean score in a batch (lower is better) and the mean so far."""
        # NaN stands for a modality that is not in the batch, or has no history. kappa is 1 for a missing modality,
        # and for all of them where a score is infinite; tau is 1 where there is no history yet, as published.
        ratios = discrepancy_ratios(scores)
        reference = (math.nan,) * len(ratios) if self.reference == "parity" else discrepancy_ratios(mean_scores)
        reference = tuple(1.0 if math.isnan(tau) else tau for tau in reference)
        if any(map(math.isinf, scores)):
            return (1.0,) * len(ratios), ratios, reference
        exponents = (self.alpha * (tau - r) for tau, r in zip(reference, ratios, strict=True))
        kappa = (1.0 if math.isnan(e) else math.exp(min(max(e, -self.cap), self.cap)) for e in exponents)
        return tuple(kappa), ratios, reference


Numbers = tuple[float, ...]
"""One per modality."""

MAX_SCORE_DIFFERENCE = 700.0
"""Largest difference of scores, so that exp of it is finite."""


def discrepancy_ratios(scores: Sequence[float]) -> Numbers:
    """By modality, exp(mean score of the others - own score): above 1 if it is better; NaN where unknown."""
    present_scores = [score for score in scores if not math.isnan(score)]
    if len(present_scores) < 2:
        return (math.nan,) * len(scores)
    total, others = sum(present_scores), len(present_scores) - 1
    return tuple(_exp((total - score) / others - score) for score in scores)


def _exp(x: float) -> float:
    return math.nan if math.isnan(x) else math.exp(min(x, MAX_SCORE_DIFFERENCE))


@dataclass(frozen=True)
class History:
    """State of the rule after the steps so far.

    Attributes:
        step: Steps taken, measured or not.
        weight: By modality, samples (of a moving average the sum of its weights) behind each mean.
        total: By modality, weighted sum of scores.
        capped: By modality, steps at which the exponent was capped.
        skipped: Steps at which a score or an output was not finite, so that no gradient was scaled.
    """

    step: int
    weight: Numbers
    total: Numbers
    capped: Numbers
    skipped: int = 0

    @classmethod
    def empty(cls, modalities: int) -> "History":
        """The state before the first step."""
        zeros = (0.0,) * modalities
        return cls(0, zeros, zeros, zeros)

    @property
    def mean_scores(self) -> Numbers:
        """By modality, the mean so far; NaN where there is none yet."""
        return means(self.total, self.weight)

    def idle(self) -> "History":
        """The state after one more step without measurement."""
        return replace(self, step=self.step + 1)

    def after(
        self, rule: Modulation, sums: Sequence[float], counts: Sequence[float], kappa: Sequence[float] | None = None
    ) -> "History":
        """The state after one step with scores summed over samples, and kappa if gradients were scaled."""
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
    """Sums over counts, NaN where the count is 0."""
    return tuple(s / n if n else math.nan for s, n in zip(sums, counts, strict=True))


def cross_entropy_score(response: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """-log softmax(response) at the label, `[n, …]`, at most 18.42; 0 where the label is ignored."""
    # `response [n, classes, …]`, `target [n, …]` classes or probabilities like `response`.
    return _of_labels(response[None], target)[0]


def _of_labels(responses: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """The same for `[modalities, n, classes, …]` at once: `[modalities, n, …]`."""
    from torch.nn.functional import cross_entropy

    many = len(responses)
    if target.is_floating_point():
        wide = (responses.flatten(0, 1), target.repeat(many, *[1] * (target.ndim - 1)))
        return cross_entropy(*wide, reduction="none").unflatten(0, (many, -1)).clamp(max=MAX_SCORE)
    # With samples along an inner axis, the softmax over few classes is several times faster.
    aim = target.expand(many, *target.shape)
    return cross_entropy(responses.transpose(1, 2), aim, reduction="none").clamp(max=MAX_SCORE)


def score_sums(
    responses: "torch.Tensor",
    target: "torch.Tensor",
    present: "torch.Tensor | None",
    score: Score,
    ignored: int = IGNORED_LABEL,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Sums and counts of the scores of responses `[modalities, n, …]`, each `[modalities]` in float64."""
    # Ignored labels and missing samples (`present [n, modalities]`) do not count. Where the device has no float64,
    # float32.
    import torch

    kind = torch.float32 if responses.device.type == "mps" else torch.float64
    responses = responses.detach()
    if ignored != IGNORED_LABEL and isinstance(target, torch.Tensor):
        target = target.where(target != ignored, IGNORED_LABEL)
    if present is None and score is cross_entropy_score:  # one call, because small networks would notice more
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
            shown = torch.where(aim != IGNORED_LABEL, found, 0) if _labelled(found, aim) else found
            each.append((shown.sum(dtype=kind), _counted(found, aim, kind)))
    sums, counts = (torch.stack(column) for column in zip(*each, strict=True))
    return sums, counts


def _labelled(found: "torch.Tensor", target: Any) -> bool:
    import torch

    return isinstance(target, torch.Tensor) and found.shape == target.shape and not target.is_floating_point()


def _counted(found: "torch.Tensor", target: "torch.Tensor", kind: "torch.dtype") -> "torch.Tensor":
    import torch

    if _labelled(found, target):
        return (target != IGNORED_LABEL).sum(dtype=kind)
    return torch.as_tensor(found.numel(), dtype=kind, device=found.device)
