"""Adaptive gradient modulation in any training loop: a loss whose gradient is rescaled per modality."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from stemma.errors import MisuseError
from stemma.multimodal import plans
from stemma.multimodal.late_fast import LateFast
from stemma.multimodal.masks import AbstractMask, Batch, masks_of
from stemma.multimodal.plans import AbstractPlan, Forward, Questions, evaluating, logits
from stemma.multimodal.prior import MaskCheck, checked
from stemma.multimodal.responses import checked_names, combined, split_of, without_missing
from stemma.multimodal.rule import History, Modulation, cross_entropy_score, scored
from stemma.types import jsonable

Loss = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Modulated:
    """What one step gives.

    Attributes:
        logits: The network's output, bit for bit; its gradient is the modulated one while training, so any loss of it
            is modulated too.
        loss: Of the logits; None without a target.
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
    scores: Mapping[str, torch.Tensor]
    ratio: Mapping[str, torch.Tensor]
    usual: Mapping[str, torch.Tensor]
    kappa: Mapping[str, torch.Tensor]
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
                it is the loss, and for the default loss -log of the label's probability.
            permutations: Orders drawn per step where not every coalition is asked (always beyond four modalities).
            seed: Of these orders.
            rule: Fields of `Modulation`: `alpha`, `reference`, `decay`, `cap`, `warm_up`, `window`.

        Raises:
            MisuseError: If something of it makes no sense.
        """
        self.model = model
        self.modalities = tuple(checked_names(modalities, dict.fromkeys(modalities)))  # ty: ignore[invalid-argument-type]
        self.rule = _rule(rule)
        self.masks = masks_of(mask, self.modalities)
        self.plan = _plan(plan, encoders)
        self._forward = forward or (lambda module, batch: module(**batch))
        self._loss = loss or cross_entropy
        self._score = score or loss or cross_entropy_score
        self._permutations, self._seed = permutations, seed
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
            self.history = (self.history or History.empty(len(self.modalities), out.device)).idle()
        loss = None if target is None else self._loss(out, target)
        ones = torch.ones(len(self.modalities), device=out.device)
        return Modulated(out, loss, {}, {}, {}, {}, self._named(ones), answer)

    def _measured(self, batch: Batch, target: Any, present: torch.Tensor | None, step: int) -> Modulated:
        split = split_of(len(self.modalities), self._permutations, self._seed + step)
        scales = self.rule.scales(step)
        asked = Questions(self._forward, batch, self.modalities, self.masks, split)
        answer, outputs, judged = self._passes(asked)
        full = outputs[0]
        phi = combined(outputs, split, present)
        seen = phi if judged is outputs else combined(judged, split, present)
        sums, counts = _over_ranks(*scored(seen, target, present, self._score))
        history = self.history or History.empty(len(self.modalities), full.device)
        kappa, ratio, usual = self.rule.coefficients(sums / counts, history.usual)
        scales = scales and bool(torch.isfinite(outputs).all())
        if not scales:
            kappa = torch.ones_like(kappa)
        shares = kappa.to(phi.dtype).reshape(-1, *[1] * (phi.ndim - 1))
        moved = (shares * (phi - phi.detach())).sum(0)
        out = full.detach() + moved.to(full.dtype) if scales else full
        self.history = history.after(self.rule, sums, counts, kappa if scales else None)
        return Modulated(
            out,
            self._loss(out, target),
            self._named(seen.detach()),
            self._named(sums / counts),
            self._named(ratio),
            self._named(usual),
            self._named(kappa),
            answer,
        )

    def _passes(self, asked: Questions) -> tuple[Any, torch.Tensor, torch.Tensor]:
        def run(module: nn.Module) -> tuple[Any, torch.Tensor, torch.Tensor]:
            found = self.plan(module, asked)
            return found.answer, found.outputs, found.scored

        if not isinstance(self.model, DistributedDataParallel):
            return run(self.model)
        with _around(self.model, _Passes(self.model.module)):
            return self.model(run)

    def _named(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.modalities, values.unbind(), strict=True))

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
        history = self.history or History.empty(len(self.modalities))
        return {
            "spec": jsonable(self.rule.spec),
            "modalities": list(self.modalities),
            "step": history.step,
            "weight": history.weight.cpu().clone(),
            "total": history.total.cpu().clone(),
            "capped": history.capped.cpu().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped.

        Args:
            state: Of `state_dict`.

        Raises:
            MisuseError: If it is of other modalities, or another kind of history.
        """
        theirs = list(state.get("modalities", ()))
        if theirs != list(self.modalities):
            raise MisuseError(f"the state is of the modalities {theirs}, not of {list(self.modalities)}")
        before, now = state["spec"]["params"]["reference"], self.rule.reference
        if (before == "average") != (now == "average"):
            raise MisuseError(f"the state holds the history of the reference {before!r}, which {now!r} cannot continue")
        parameter = next(self.model.parameters(), None)
        place = None if parameter is None else parameter.device
        kind = History.empty(1, place).total.dtype
        self.history = History(int(state["step"]), *(state[k].to(place, kind) for k in ("weight", "total", "capped")))

    def record(self) -> dict[str, Any]:
        """How the network was balanced, for the file beside its weights.

        Returns:
            Plain JSON values: the rule, plan and masks, steps, and by modality the mean score so far and the steps at
            which the exponent was cut off: where these are many, alpha is too large.
        """
        history = self.history or History.empty(len(self.modalities))
        mean = [None if not w else float(t / w) for t, w in zip(history.total, history.weight, strict=True)]
        return jsonable(
            {
                "balanced": self.rule.spec,
                "modalities": self.modalities,
                "plan": self.plan.name,
                "masks": {m: k.name for m, k in self.masks.items()},
                "steps": history.step,
                "mean_scores": dict(zip(self.modalities, mean, strict=True)),
                "capped_steps": dict(zip(self.modalities, history.capped.int().tolist(), strict=True)),
            }
        )


class _Passes(nn.Module):
    """All passes of a step as one forward call, so that gradients of several processes are joined once."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, run: Callable[[nn.Module], Any]) -> Any:
        return run(self.inside)


@contextlib.contextmanager
def _around(parallel: DistributedDataParallel, passes: _Passes) -> Generator[None]:
    parallel._modules["module"] = passes
    try:
        yield
    finally:
        parallel._modules["module"] = passes.inside


def _over_ranks(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums over all processes, so that they agree on every kappa."""
    import torch.distributed as processes

    if not processes.is_available() or not processes.is_initialized() or processes.get_world_size() == 1:
        return values
    joined = torch.stack(values)
    processes.all_reduce(joined)
    return joined.unbind()


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
    ready = {kind.name: kind for kind in plans.ALL}
    if plan not in ready:
        raise MisuseError(f"no plan is called {plan!r}. There are: {', '.join([*ready, LateFast.name])}")
    return ready[plan]()
