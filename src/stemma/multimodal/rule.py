"""How strongly each modality's gradient is scaled: the published rule, its variants, and what it remembers."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError
from stemma.types import Spec

if TYPE_CHECKING:
    import torch

REFERENCES = ("running", "average", "parity")
"""What the lead of a modality is compared with: its mean so far, a moving average, or no lead at all."""

LOWEST = 1e-8
"""Smallest probability in a score, so that no score exceeds 18.42."""

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
        if not self.cap > 0:
            raise MisuseError(f"the cap is the largest exponent, a number above 0, but it is {self.cap}")
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

    def coefficients(self, now: "torch.Tensor", usual: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """What the responses of one batch are scaled by.

        Args:
            now: `[modalities]`, mean score of each response, lower is better; NaN for a modality that is not in the
                batch.
            usual: The same on average so far, NaN where there is nothing yet.

        Returns:
            kappa, r and tau, each `[modalities]`. kappa is 1 for a modality that is missing, and for all of them where
            a score is infinite; tau is 1 where nothing is known yet, as published.
        """
        import torch

        ahead, even = lead(now), torch.ones_like(now)
        before = even if self.reference == "parity" else lead(usual)
        before = torch.where(torch.isnan(before), even, before)
        kappa = torch.exp((self.alpha * (before - ahead)).clamp(-self.cap, self.cap))
        defined = torch.isfinite(ahead) & ~torch.isinf(now).any()
        return torch.where(defined, kappa, torch.ones_like(kappa)), ahead, before


def lead(scores: "torch.Tensor") -> "torch.Tensor":
    """How far each modality is ahead: exp(mean score of the others - own score), above 1 if it is better than they are.

    Args:
        scores: `[modalities]`, lower is better; NaN for what is not there.

    Returns:
        `[modalities]`, NaN where the modality or all others are not there.
    """
    import torch

    there = ~torch.isnan(scores)
    known = torch.where(there, scores, torch.zeros_like(scores))
    others = (known.sum() - known) / (there.sum() - there.to(known.dtype))
    return torch.exp(others - scores)


@dataclass(frozen=True, eq=False)
class History:
    """What the rule remembers of the steps so far.

    Attributes:
        step: Steps taken, measured or not.
        weight: `[modalities]`, samples (or, of a moving average, the sum of its weights) behind each mean.
        total: `[modalities]`, weighted sum of scores.
        capped: `[modalities]`, steps at which the exponent was cut off.
    """

    step: int
    weight: "torch.Tensor"
    total: "torch.Tensor"
    capped: "torch.Tensor"

    @classmethod
    def empty(cls, modalities: int, device: Any = None) -> "History":
        """No steps yet."""
        import torch

        kind = torch.float32 if getattr(device, "type", device) == "mps" else torch.float64
        zeros = torch.zeros(modalities, dtype=kind, device=device)
        return cls(0, zeros, zeros.clone(), zeros.clone())

    @property
    def usual(self) -> "torch.Tensor":
        """`[modalities]`, the mean so far; NaN where there is nothing yet."""
        return self.total / self.weight

    def idle(self) -> "History":
        """One more step in which nothing was measured."""
        return replace(self, step=self.step + 1)

    def after(
        self, rule: Modulation, sums: "torch.Tensor", counts: "torch.Tensor", kappa: "torch.Tensor | None" = None
    ) -> "History":
        """One more step.

        Args:
            rule: Whether the mean is one of all steps or a moving one.
            sums: `[modalities]`, scores summed over samples.
            counts: `[modalities]`, samples.
            kappa: `[modalities]`, what gradients were scaled by; None if nothing was.

        Returns:
            The history with this step in it; what is not finite is left out.
        """
        import torch

        fine = torch.isfinite(sums) & (counts > 0)
        if rule.reference == "average":
            share = 1 - rule.decay
            weight = torch.where(fine, rule.decay * self.weight + share, self.weight)
            mean = sums / counts.clamp(min=1)
            total = torch.where(fine, rule.decay * self.total + share * mean, self.total)
        else:
            weight = torch.where(fine, self.weight + counts, self.weight)
            total = torch.where(fine, self.total + sums, self.total)
        cut = 0 if kappa is None else (kappa.log().abs() >= rule.cap * (1 - 1e-6)).to(total.dtype)
        return History(self.step + 1, weight, total, self.capped + cut)


def cross_entropy_score(response: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """-log softmax(response) at the label, per label.

    Args:
        response: `[n, classes, …]`.
        target: `[n, …]` classes, of which -100 is ignored; or probabilities like `response`.

    Returns:
        `[n, …]`, at most 18.42; 0 where the label is ignored.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(response, target, reduction="none").clamp(max=-math.log(LOWEST))


IGNORED = -100
"""Label that counts for nothing, as in torch's cross-entropy."""


def scored(
    responses: "torch.Tensor", target: "torch.Tensor", present: "torch.Tensor | None", score: Score
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Sums and numbers of the scores of each response.

    Args:
        responses: `[modalities, n, …]`.
        target: `[n, …]`.
        present: `[n, modalities]`; None if nothing is missing.
        score: From a response and the target to one number per sample or position, or to one number, the mean.

    Returns:
        Sums and counts, each `[modalities]` in float64 (float32 where the device has none). Labels of -100 do not
        count; a modality without samples has the count 0; a sum that is not finite is infinite.
    """
    import torch

    kind = torch.float32 if responses.device.type == "mps" else torch.float64
    sums, counts = [], []
    for m, response in enumerate(responses.detach()):
        rows = slice(None) if present is None else present[:, m].to(response.device)
        part, aim = response[rows], target[rows]
        if not len(part):
            sums.append(torch.zeros((), dtype=kind, device=response.device))
            counts.append(torch.zeros((), dtype=kind, device=response.device))
            continue
        found = score(part, aim).detach()
        many = torch.as_tensor(len(part), dtype=kind, device=response.device)
        if found.ndim == 0:
            sums.append(found.to(kind) * many)
            counts.append(many)
        else:
            labelled = found.shape == aim.shape and not aim.is_floating_point()
            counted = aim != IGNORED if labelled else torch.ones_like(found, dtype=torch.bool)
            sums.append(torch.where(counted, found, 0).sum(dtype=kind))
            counts.append(counted.sum().to(kind))
    total, many = torch.stack(sums), torch.stack(counts)
    return torch.where(torch.isfinite(total), total, torch.inf), many
