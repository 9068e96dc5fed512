"""Adaptive gradient modulation in any training loop: a loss whose gradient is rescaled per modality."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stemma.errors import MisuseError
from stemma.multimodal import masked_passes
from stemma.multimodal.distributed import group_of, in_one_call, refuse_sharded, summed
from stemma.multimodal.late_fusion_passes import LateFast
from stemma.multimodal.mask_check import MaskCheck, checked
from stemma.multimodal.masked_passes import AbstractPlan, Forward, Questions, evaluating, logits
from stemma.multimodal.masks import AbstractMask, Batch, masks_of
from stemma.multimodal.modulation_rule import IGNORED, History, Modulation, cross_entropy_score, means, scored
from stemma.multimodal.responses import as_present, checked_names, combined, mixed, split_of, without_missing
from stemma.types import jsonable

Loss = Callable[[torch.Tensor, Any], torch.Tensor]

KEPT = ("weight", "total", "capped")
"""What a state holds of the history beside its step."""


@dataclass(frozen=True, eq=False)
class Modulated:
    """What one step gives.

    Attributes:
        logits: The network's output, bit for bit (to rounding with `late-fast`); its gradient is the modulated one
            while training, so any loss of it is modulated too.
        loss: Of the logits, and with `alone` those of modalities alone; None without a target.
        responses: By modality `[n, …]`, without gradient; they sum to the logits. Empty where nothing was measured.
        scores: By modality, mean -log probability of the label under its response (or the score given).
        ratio: By modality, r: how far it is ahead of the others, above 1 if it is.
        usual: By modality, tau: the ratio of the reference.
        kappa: By modality, what the gradient through its response is multiplied by.
        answer: What the network gave, as it gave it: auxiliary outputs are in there.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None
    responses: Mapping[str, torch.Tensor]
    scores: Mapping[str, float]
    ratio: Mapping[str, float]
    usual: Mapping[str, float]
    kappa: Mapping[str, float]
    answer: Any


class AdaptiveGradientModulation:
    """Scales the gradient of each modality's response by how far it is ahead of its own history.

    The fused logits split into responses phi_m that sum to them; the loss is that of
    `f.detach() + sum_m kappa_m (phi_m - phi_m.detach())`, which has the value of the fused loss and the gradient
    `sum_m kappa_m (d phi_m / d theta)^T dL/df` for every parameter. There are no hooks on the backward pass, the
    network is not changed, and its state dict is its own.

    Cost: while training and inside the window `2^M - 1` passes instead of one, see the plans; none otherwise.

    Attributes:
        model: The network, as given.
        modalities: Their names.
        rule: How strongly, compared with what, and when.
        history: What the rule remembers; `state_dict` keeps it.
        alone: Weight of the losses of modalities alone.

    Source: Li et al., ICCV 2023, and its released code. Departures: the exponent is capped (the code caps tau - r, or
    nothing); the mean so far is weighted by samples; after the window kappa is 1 (the code keeps the last ones).
    """

    def __init__(
        self,
        model: nn.Module,
        modalities: Sequence[str],
        *,
        mask: str | AbstractMask | Mapping[str, str | AbstractMask] = "zero",
        plan: str | AbstractPlan = "exact",
        encoders: Mapping[str, str] | None = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        score: Loss | None = None,
        permutations: int | None = None,
        seed: int = 0,
        group: Any = None,
        alone: float = 0.0,
        **rule: Any,
    ) -> None:
        """Bring a network and a rule together.

        Args:
            model: Any module, also one inside `DistributedDataParallel`; called as `model(**batch)`.
            modalities: Names in the batch, two or more.
            mask: How a modality is hidden: a name, a mask, or one each.
            plan: `exact`, `batched`, `late-fast`, or a plan.
            encoders: For `late-fast`: by modality, the name of the submodule that sees it.
            forward: How the network is asked, `forward(model, batch)`, where that is not `model(**batch)`.
            loss: From logits and target to a number; mean cross-entropy unless given.
            score: From a response and the target to one number per sample, or their mean, lower is better. Unless given
                it is the loss, which then has to be a mean, and for cross-entropy -log of the label's probability.
                Differences of scores enter an exponential: they have to be of the order of 1.
            permutations: Orders drawn per step where not every coalition is asked (always beyond four modalities).
            seed: Of these orders.
            group: Processes that agree on every kappa, where something outside the network joins their gradients
                (Lightning: `torch.distributed.group.WORLD`). Those of `DistributedDataParallel` unless given.
            alone: Weight of losses that are added: of what the network answers to each modality alone, which the masked
                passes have computed already. It keeps every modality learning when the fused loss has nothing left to
                teach. 0 is the published method.
            rule: Fields of `Modulation`: `alpha`, `reference`, `decay`, `cap`, `warm_up`, `window`.

        Raises:
            MisuseError: If something of it makes no sense.
        """
        refuse_sharded(model)
        if permutations is not None and permutations < 1:
            raise MisuseError(f"orders to draw are 1 or more, not {permutations}")
        self.model = model
        self.modalities = tuple(checked_names(modalities, dict.fromkeys(modalities)))  # ty: ignore[invalid-argument-type]
        self.rule = _rule(rule)
        self.masks = masks_of(mask, self.modalities)
        self.plan = _plan(plan, encoders)
        self._forward = forward or (lambda module, batch: module(**batch))
        self._loss = loss or cross_entropy
        of_loss, self._ignored = _of_loss(loss)
        self._score = score or of_loss
        self._permutations, self._seed, self._group = permutations, seed, group
        if not 0 <= alone < math.inf:
            raise MisuseError(f"the weight of the losses of modalities alone is 0 or more, not {alone}")
        self.alone = alone
        self.history: History | None = None

    def __call__(self, batch: Batch, target: Any = None, present: torch.Tensor | None = None) -> Modulated:
        """One step: outputs, and a loss to call `backward` on.

        Args:
            batch: Tensors by name, samples along the first axis; what is no modality is passed on.
            target: What the loss compares with; classes `[n, …]` for the default.
            present: `[n, modalities]` booleans, which modalities each sample has; all if None.

        Returns:
            Logits, responses, kappas and the loss.

        Raises:
            MisuseError: If the batch lacks a modality, there is no target while training, or the passes with hidden
                modalities carry no gradient.
        """
        checked_names(self.modalities, batch)
        given = without_missing(batch, self.modalities, self.masks, present)
        step = 0 if self.history is None else self.history.step
        learning = self.training and torch.is_grad_enabled()
        if not learning or not self.rule.measures(step):
            return self._plain(given, target, learning)
        if target is None:
            raise MisuseError("while training, responses are judged by the target: give it, or call .eval() first")
        return self._measured(given, target, present, step)

    @property
    def training(self) -> bool:
        """Whether the network is in training mode; in evaluation mode, or without gradients, nothing is modulated."""
        return self.model.training

    def _plain(self, batch: Batch, target: Any, counts: bool) -> Modulated:
        answer = self._forward(self.model, batch)
        out = logits(answer)
        if counts:
            self.history = self._remembered.idle()
        loss = None if target is None else self._loss(out, target)
        return Modulated(out, loss, {}, {}, {}, {}, dict.fromkeys(self.modalities, 1.0), answer)

    def _measured(self, batch: Batch, target: Any, present: torch.Tensor | None, step: int) -> Modulated:
        split = split_of(len(self.modalities), self._permutations, self._seed + step)
        scales = self.rule.scales(step)
        asked = Questions(self._forward, batch, self.modalities, self.masks, split)
        found = in_one_call(self.model, lambda module: self.plan(module, asked))
        full, judged = found.outputs[0], found.scored
        wide = as_present(found.outputs, split, present)
        own = judged is found.outputs
        seen = mixed(wide.detach(), split.weights) if own else combined(judged.detach(), split, present)
        still = wide - wide.detach()  # 0, with the gradient of the outputs; NaN where they are not finite
        sums, counts = scored(seen, target, present, self._score, self._ignored)
        numbers = torch.cat([sums + still.detach().sum(dtype=sums.dtype), counts])
        numbers = summed(numbers, group_of(self.model, self._group))
        sums, counts = numbers[: len(seen)], numbers[len(seen) :]
        mean = means(sums, counts)
        history, sound = self._remembered, math.inf not in sums
        kappa, ratio, usual = self.rule.coefficients(mean, history.usual)
        if not scales or not sound:
            kappa, scales = (1.0,) * len(kappa), False
        moved = mixed(still, np.array([kappa]) @ split.weights).reshape(full.shape) if scales else None
        out = full if moved is None else full.detach() + moved.to(full.dtype)
        self.history = history.after(self.rule, sums, counts, kappa if scales else None)
        responses = dict(zip(self.modalities, seen.unbind(), strict=True))
        numbers = map(self._named, (mean, ratio, usual, kappa))
        loss = self._loss(out, target)
        if self.alone:
            loss = loss + self.alone * self._alone(found.outputs, split.coalitions, target, present)
        return Modulated(out, loss, responses, *numbers, found.answer)

    def _alone(
        self,
        outputs: torch.Tensor,
        coalitions: Sequence[tuple[int, ...]],
        target: Any,
        present: torch.Tensor | None,
    ) -> torch.Tensor:
        """Sum of the losses of modalities alone, each over the samples that have it."""
        total = outputs.new_zeros(())
        for found, members in zip(outputs, coalitions, strict=True):
            if len(members) == 1:
                rows = None if present is None else present[:, members[0]].to(found.device)
                if rows is None:
                    total = total + self._loss(found, target)
                elif rows.any():
                    total = total + self._loss(found[rows], target[rows])
        return total

    def _named(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.modalities, numbers, strict=True))

    @property
    def _remembered(self) -> History:
        return self.history or History.empty(len(self.modalities))

    def train(self, mode: bool = True) -> "AdaptiveGradientModulation":
        """Modulate from now on, and put the network in training mode.

        Args:
            mode: False for the opposite.

        Returns:
            This.
        """
        self.model.train(mode)
        return self

    def eval(self) -> "AdaptiveGradientModulation":
        """From now on this is the bare network in evaluation mode, at its own cost.

        Returns:
            This.
        """
        return self.train(False)

    @torch.no_grad()
    def check(self, batch: Batch, target: torch.Tensor) -> MaskCheck:
        """Whether the network, shown nothing, answers near the class frequencies; see `prior.checked`.

        Args:
            batch: Tensors by name.
            target: Classes `[n]`.

        Returns:
            What it answers, and how far that is off.
        """
        everything = Questions(self._forward, batch, self.modalities, self.masks, split_of(len(self.modalities)))
        with evaluating(self.model):
            out = everything.output(self.model, everything.without(()))
        return checked(out, target, [self.masks[m].name for m in self.modalities])

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on exactly: the history, and what it belongs to.

        Returns:
            Plain values and tensors.
        """
        history = self._remembered
        return {
            "spec": jsonable(self.rule.spec),
            "modalities": list(self.modalities),
            "step": history.step,
            "skipped": history.skipped,
            **{k: torch.tensor(getattr(history, k), dtype=torch.float64) for k in KEPT},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped.

        Args:
            state: Of `state_dict`.

        Raises:
            MisuseError: If it is of other modalities, or another kind of history.
        """
        lacking = [key for key in ("spec", "modalities", "step", "skipped", *KEPT) if key not in state]
        if lacking:
            raise MisuseError(f"this is no state of modulation: it has no {lacking[0]!r}")
        theirs = list(state["modalities"])
        if theirs != list(self.modalities):
            raise MisuseError(f"the state is of the modalities {theirs}, not of {list(self.modalities)}")
        before, now = state["spec"]["params"]["reference"], self.rule.reference
        if (before == "average") != (now == "average"):
            raise MisuseError(f"the state holds the history of the reference {before!r}, which {now!r} cannot continue")
        self.history = History(int(state["step"]), *(tuple(state[k].tolist()) for k in KEPT), int(state["skipped"]))

    def record(self) -> dict[str, Any]:
        """How the network was balanced, for the file beside its weights.

        Returns:
            Plain JSON values: the rule, plan and masks, steps, those at which something was not finite so that nothing
            was scaled, and by modality the mean score so far and the steps at which the exponent was cut off: where
            these are many, alpha is too large.
        """
        history = self._remembered
        mean = [None if not w else float(t / w) for t, w in zip(history.total, history.weight, strict=True)]
        return jsonable(
            {
                "balanced": self.rule.spec,
                "modalities": self.modalities,
                "plan": self.plan.name,
                "alone": self.alone,
                "masks": {m: k.name for m, k in self.masks.items()},
                "steps": history.step,
                "mean_scores": dict(zip(self.modalities, mean, strict=True)),
                "skipped_steps": history.skipped,
                "capped_steps": dict(zip(self.modalities, map(int, history.capped), strict=True)),
            }
        )


def _of_loss(loss: Loss | None) -> tuple[Loss, int]:
    """What judges a response where only the loss was given, and the label that counts for nothing.

    Returns:
        Of cross-entropy: without smoothing or weights, as published. Of another loss of torch: its mean.
    """
    if loss is None or isinstance(loss, nn.CrossEntropyLoss):
        return cross_entropy_score, IGNORED if loss is None else loss.ignore_index
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "mean") != "mean":
        loss = copy.copy(loss)
        vars(loss)["reduction"] = "mean"
    return loss, IGNORED


def _rule(given: Mapping[str, Any]) -> Modulation:
    known = Modulation.__dataclass_fields__
    unknown = [name for name in given if name not in known]
    if unknown:
        raise MisuseError(f"modulation takes no {unknown[0]!r}. It takes: {', '.join(known)}")
    return Modulation(**given)


def _plan(plan: str | AbstractPlan, encoders: Mapping[str, str] | None) -> AbstractPlan:
    if isinstance(plan, AbstractPlan):
        return plan
    if plan == LateFast.name:
        if encoders is None:
            raise MisuseError("late-fast has to know the encoders: encoders={modality: name of the submodule}")
        return LateFast(encoders)
    ready = {kind.name: kind for kind in masked_passes.ALL}
    if plan not in ready:
        raise MisuseError(f"no plan is called {plan!r}. There are: {', '.join([*ready, LateFast.name])}")
    return ready[plan]()
