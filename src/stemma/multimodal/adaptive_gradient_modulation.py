"""Adaptive gradient modulation (AGM) in any training loop: a loss whose gradient is scaled by modality.

The rule for the coefficients is in `modulation_rule`, the split of the output in `responses`.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stemma.deprecation import accept_old_names
from stemma.errors import MisuseError
from stemma.multimodal import masked_passes
from stemma.multimodal.distributed import group_of, in_one_call, refuse_sharded, summed
from stemma.multimodal.late_fusion_passes import LateFast
from stemma.multimodal.mask_check import MaskCheck, check_hidden_output
from stemma.multimodal.masked_passes import AbstractPlan, CoalitionRequest, Forward, evaluation_mode, logits
from stemma.multimodal.masks import AbstractMask, Batch, masks_of
from stemma.multimodal.modulation_rule import IGNORED_LABEL, History, Modulation, cross_entropy_score, means, score_sums
from stemma.multimodal.responses import (
    check_names,
    choose_split,
    masked_by_presence,
    responses_of_outputs,
    weighted_sum,
    without_missing,
)
from stemma.types import jsonable

Loss = Callable[[torch.Tensor, Any], torch.Tensor]

HISTORY_FIELDS = ("weight", "total", "capped")
"""Fields of the history that a state holds beside its step."""


@accept_old_names(ratio="discrepancy_ratio", usual="reference_ratio")
@dataclass(frozen=True, eq=False)
class Modulated:
    """The result of one step.

    Attributes:
        logits: The network's output, bit for bit (to rounding with `late-fast`); its gradient is the modulated one
            while training, so any loss of it is modulated too.
        loss: Of the logits, plus the weighted unimodal losses; None without a target.
        responses: By modality `[n, …]`, without gradient; they sum to the logits. Empty where nothing was measured.
        scores: By modality, mean -log probability of the label under its response (or the score given).
        discrepancy_ratio: By modality, r: above 1 if its score is better than that of the others.
        reference_ratio: By modality, tau: the ratio that r is compared with.
        kappa: By modality, the factor on the gradient through its response.
        answer: The network's return value, with any auxiliary outputs.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None
    responses: Mapping[str, torch.Tensor]
    scores: Mapping[str, float]
    discrepancy_ratio: Mapping[str, float]
    reference_ratio: Mapping[str, float]
    kappa: Mapping[str, float]
    answer: Any


@accept_old_names(alone="unimodal_loss_weight")
class AdaptiveGradientModulation:
    """Scales the gradient of each modality's response by its discrepancy ratio relative to the past.

    The fused logits split into responses phi_m that sum to them; the loss is that of
    `f.detach() + sum_m kappa_m (phi_m - phi_m.detach())`, which has the value of the fused loss and the gradient
    `sum_m kappa_m (d phi_m / d theta)^T dL/df` for every parameter. There are no hooks on the backward pass, and
    neither the network nor its state dict changes.

    Cost: while training and inside the window `2^M - 1` passes instead of one, see the plans; none otherwise.

    Attributes:
        model: The network, as given.
        modalities: Their names.
        rule: The modulation rule.
        history: State of the rule; `state_dict` saves it.
        unimodal_loss_weight: Weight of the added losses of single modalities.

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
        unimodal_loss_weight: float = 0.0,
        **rule: Any,
    ) -> None:
        """Wrap a network.

        Args:
            model: Any module, also one inside `DistributedDataParallel`; called as `model(**batch)`.
            modalities: Names in the batch, two or more.
            mask: How a modality is hidden: a name, a mask, or one each.
            plan: `exact`, `batched`, `late-fast`, or a plan.
            encoders: For `late-fast`: by modality, the name of the submodule that encodes it.
            forward: How the network is called, `forward(model, batch)`, where that is not `model(**batch)`.
            loss: From logits and target to a number; mean cross-entropy by default.
            score: From a response and the target to one number per sample, or their mean, lower is better. By default
                the loss, which then has to be a mean, and for cross-entropy -log of the label's probability.
                Differences of scores enter an exponential: they have to be of the order of 1.
            permutations: Orders sampled per step instead of every coalition (always beyond four modalities).
            seed: Of these orders.
            group: Processes that agree on every kappa, where something outside the network reduces their gradients
                (Lightning: `torch.distributed.group.WORLD`). Those of `DistributedDataParallel` by default.
            unimodal_loss_weight: Weight of added losses on the outputs for each modality alone, which the masked passes
                compute anyway. They keep every modality learning once the fused loss is low. 0 is the published method.
            rule: Fields of `Modulation`: `alpha`, `reference`, `decay`, `cap`, `warm_up`, `window`.

        Raises:
            MisuseError: If an argument is invalid.
        """
        refuse_sharded(model)
        if permutations is not None and permutations < 1:
            raise MisuseError(f"permutations has to be 1 or more, but is {permutations}")
        self.model = model
        self.modalities = tuple(check_names(modalities, dict.fromkeys(modalities)))  # ty: ignore[invalid-argument-type]
        self.rule = _rule(rule)
        self.masks = masks_of(mask, self.modalities)
        self.plan = _plan(plan, encoders)
        self._forward = forward or (lambda module, batch: module(**batch))
        self._loss = loss or cross_entropy
        of_loss, self._ignored = _score_of_loss(loss)
        self._score = score or of_loss
        self._permutations, self._seed, self._group = permutations, seed, group
        if not 0 <= unimodal_loss_weight < math.inf:
            raise MisuseError(f"unimodal_loss_weight has to be 0 or more, but is {unimodal_loss_weight}")
        self.unimodal_loss_weight = unimodal_loss_weight
        self.history: History | None = None

    def __call__(self, batch: Batch, target: Any = None, present: torch.Tensor | None = None) -> Modulated:
        """One step: outputs, and a loss to call `backward` on.

        Args:
            batch: Tensors by name, samples along the first axis; entries that are no modality are passed on.
            target: What the loss compares with; classes `[n, …]` for the default.
            present: `[n, modalities]` booleans, which modalities each sample has; all if None.

        Returns:
            Logits, responses, kappas and the loss.

        Raises:
            MisuseError: If the batch lacks a modality, there is no target while training, or the masked passes carry no
                gradient.
        """
        check_names(self.modalities, batch)
        given = without_missing(batch, self.modalities, self.masks, present)
        step = 0 if self.history is None else self.history.step
        learning = self.training and torch.is_grad_enabled()
        if not learning or not self.rule.measures(step):
            return self._plain_step(given, target, learning)
        if target is None:
            raise MisuseError("training needs a target to score the responses: give it, or call .eval() first")
        return self._modulated_step(given, target, present, step)

    @property
    def training(self) -> bool:
        """Whether the network is in training mode; otherwise nothing is modulated."""
        return self.model.training

    def _plain_step(self, batch: Batch, target: Any, counts: bool) -> Modulated:
        answer = self._forward(self.model, batch)
        out = logits(answer)
        if counts:
            self.history = self._history_so_far.idle()
        loss = None if target is None else self._loss(out, target)
        return Modulated(out, loss, {}, {}, {}, {}, dict.fromkeys(self.modalities, 1.0), answer)

    def _modulated_step(self, batch: Batch, target: Any, present: torch.Tensor | None, step: int) -> Modulated:
        split = choose_split(len(self.modalities), self._permutations, self._seed + step)
        scales = self.rule.scales(step)
        request = CoalitionRequest(self._forward, batch, self.modalities, self.masks, split)
        found = in_one_call(self.model, lambda module: self.plan(module, request))
        full, scored_outputs = found.outputs[0], found.scored
        outputs32 = masked_by_presence(found.outputs, split, present)
        if scored_outputs is found.outputs:
            responses = weighted_sum(outputs32.detach(), split.weights)
        else:
            responses = responses_of_outputs(scored_outputs.detach(), split, present)
        zero_with_gradient = outputs32 - outputs32.detach()  # NaN where outputs are not finite
        sums, counts = score_sums(responses, target, present, self._score, self._ignored)
        numbers = torch.cat([sums + zero_with_gradient.detach().sum(dtype=sums.dtype), counts])
        numbers = summed(numbers, group_of(self.model, self._group))
        sums, counts = numbers[: len(responses)], numbers[len(responses) :]
        mean = means(sums, counts)
        history, finite = self._history_so_far, math.inf not in sums
        kappa, discrepancy_ratio, reference_ratio = self.rule.coefficients(mean, history.mean_scores)
        if not scales or not finite:
            kappa, scales = (1.0,) * len(kappa), False
        out = full
        if scales:
            rescaled = weighted_sum(zero_with_gradient, np.array([kappa]) @ split.weights).reshape(full.shape)
            out = full.detach() + rescaled.to(full.dtype)
        self.history = history.after(self.rule, sums, counts, kappa if scales else None)
        numbers = map(self._named, (mean, discrepancy_ratio, reference_ratio, kappa))
        loss = self._loss(out, target)
        if self.unimodal_loss_weight:
            added = self._unimodal_loss(found.outputs, split.coalitions, target, present)
            loss = loss + self.unimodal_loss_weight * added
        return Modulated(out, loss, dict(zip(self.modalities, responses.unbind(), strict=True)), *numbers, found.answer)

    def _unimodal_loss(
        self, outputs: torch.Tensor, coalitions: Sequence[tuple[int, ...]], target: Any, present: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of the losses of single modalities, each over the samples that have it."""
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
    def _history_so_far(self) -> History:
        return self.history or History.empty(len(self.modalities))

    def train(self, mode: bool = True) -> "AdaptiveGradientModulation":
        """Put the network in training mode, where gradients are modulated.

        Args:
            mode: False for evaluation mode.

        Returns:
            This object.
        """
        self.model.train(mode)
        return self

    def eval(self) -> "AdaptiveGradientModulation":
        """Put the network in evaluation mode, where it runs unchanged at its own cost; returns this object."""
        return self.train(False)

    @torch.no_grad()
    def check(self, batch: Batch, target: torch.Tensor) -> MaskCheck:
        """Whether the network's output is near the class frequencies when every modality is hidden; see `mask_check`.

        Args:
            batch: Tensors by name.
            target: Classes `[n]`.

        Returns:
            The output distribution, and its distance from the class frequencies.
        """
        everything = CoalitionRequest(
            self._forward, batch, self.modalities, self.masks, choose_split(len(self.modalities))
        )
        with evaluation_mode(self.model):
            out = everything.output(self.model, everything.without(()))
        return check_hidden_output(out, target, [self.masks[m].name for m in self.modalities])

    def state_dict(self) -> dict[str, Any]:
        """The state needed to resume exactly: plain values and tensors."""
        history = self._history_so_far
        return {
            "spec": jsonable(self.rule.spec),
            "modalities": list(self.modalities),
            "step": history.step,
            "skipped": history.skipped,
            **{k: torch.tensor(getattr(history, k), dtype=torch.float64) for k in HISTORY_FIELDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state.

        Args:
            state: Of `state_dict`.

        Raises:
            MisuseError: If it is of other modalities, or of another kind of history.
        """
        absent_keys = [key for key in ("spec", "modalities", "step", "skipped", *HISTORY_FIELDS) if key not in state]
        if absent_keys:
            raise MisuseError(f"not a state of AdaptiveGradientModulation: it has no {absent_keys[0]!r}")
        recorded = list(state["modalities"])
        if recorded != list(self.modalities):
            raise MisuseError(f"the state is for the modalities {recorded}, not for {list(self.modalities)}")
        recorded_reference, own_reference = state["spec"]["params"]["reference"], self.rule.reference
        if (recorded_reference == "average") != (own_reference == "average"):
            raise MisuseError(
                f"the state has reference {recorded_reference!r}, which cannot be resumed as {own_reference!r}"
            )
        self.history = History(
            int(state["step"]), *(tuple(state[k].tolist()) for k in HISTORY_FIELDS), int(state["skipped"])
        )

    def record(self) -> dict[str, Any]:
        """How the network was balanced, for the file beside its weights.

        Returns:
            Plain JSON values: the rule, plan and masks, steps, those skipped because something was not finite, and by
            modality the mean score so far and the steps at which the exponent was capped: where these are many, alpha
            is too large.
        """
        history = self._history_so_far
        mean = [None if not w else float(t / w) for t, w in zip(history.total, history.weight, strict=True)]
        return jsonable(
            {
                "balanced": self.rule.spec,
                "modalities": self.modalities,
                "plan": self.plan.name,
                "alone": self.unimodal_loss_weight,
                "masks": {m: k.name for m, k in self.masks.items()},
                "steps": history.step,
                "mean_scores": dict(zip(self.modalities, mean, strict=True)),
                "skipped_steps": history.skipped,
                "capped_steps": dict(zip(self.modalities, map(int, history.capped), strict=True)),
            }
        )


def _score_of_loss(loss: Loss | None) -> tuple[Loss, int]:
    """The score that follows from a loss, and the label to ignore."""
    if loss is None or isinstance(loss, nn.CrossEntropyLoss):
        return cross_entropy_score, IGNORED_LABEL if loss is None else loss.ignore_index
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "mean") != "mean":
        loss = copy.copy(loss)
        vars(loss)["reduction"] = "mean"
    return loss, IGNORED_LABEL


def _rule(given: Mapping[str, Any]) -> Modulation:
    known = Modulation.__dataclass_fields__
    unknown = [name for name in given if name not in known]
    if unknown:
        raise MisuseError(f"modulation has no parameter {unknown[0]!r}. Its parameters are {', '.join(known)}")
    return Modulation(**given)


def _plan(plan: str | AbstractPlan, encoders: Mapping[str, str] | None) -> AbstractPlan:
    if isinstance(plan, AbstractPlan):
        return plan
    if plan == LateFast.name:
        if encoders is None:
            raise MisuseError("late-fast needs encoders={modality: name of the submodule}")
        return LateFast(encoders)
    ready = {kind.name: kind for kind in masked_passes.ALL}
    if plan not in ready:
        raise MisuseError(f"no plan is called {plan!r}. Choose one of {', '.join([*ready, LateFast.name])}")
    return ready[plan]()
