"""Structured pruning without labels, gradients or training: ModHiFi-P, and what improves on it at the same cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import final

import numpy as np

from stemma.edits import measuring, slicing
from stemma.edits.allocation import ALLOCATIONS
from stemma.edits.asking import Asked, agrees, few_of, head_weights, own_network, patterns, removable
from stemma.edits.choosing import Choosing
from stemma.edits.compensation import Compensating, Cut, cut_readers
from stemma.edits.configurations import describable
from stemma.edits.coupling import Network
from stemma.edits.edited import Edited, finished
from stemma.edits.elimination import Curve
from stemma.edits.fidelity import DAMPING
from stemma.edits.normalisation import norms, recalibrate
from stemma.edits.scores import SCORES
from stemma.edits.statistics import Collecting, Statistics
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.questioning import questioned
from stemma.models.model import Model
from stemma.probes import Probes
from stemma.types import Plan, Spec

Progress = Callable[[str, int, int | None], None]

BUDGETS = ("units", "macs", "parameters", "latency")
"""What a budget may limit."""


@final
@dataclass(frozen=True)
class Pruning:
    """Which units are removed, and what is done with what is left.

    Attributes:
        budget: What is limited, one of `BUDGETS`.
        share: Share of it that is left.
        score: One of `scores.SCORES`: what decides which units of a group go first.
        allocation: One of `allocation.ALLOCATIONS`: how much of each group goes. A budget in units is always uniform;
            of several rounds only the first is measured.
        compensation: One of `compensation.KINDS`.
        sequential: Fit each layer to what the layers before it give now.
        recalibrate: Estimate the statistics of batch norm anew. None tries both and takes what changes the answers to
            the probes less: after a refit of whole kernels the old statistics are often the better ones.
        rounds: In how many steps units are chosen; statistics are collected anew, on the smaller network, for each.
        heads: Remove attention heads too.
        streams: Remove channels that several layers write and read (residual streams with batch norm).
        only: Patterns of the groups that may be cut; all if empty.
        ignore: Patterns of groups that stay whole.
        least: Share of every group that stays.
        multiple: Units are kept in multiples of this.
        damping: Share by which the diagonal of second moments is raised before they are inverted.
        batch: Inputs at once.
        positions: Most positions of a convolution that are looked at for one input; 0 for all.
        seed: Of whatever is drawn.
        weigh: Before groups are weighed against each other, multiply the error of each by what it does to the answers,
            measured by cutting that group alone.

    Source: Kashyap et al., NeurIPS 2025, algorithm 1 and appendix D. The defaults are not the paper's: elimination with
    refitted kernels instead of the union rule with factors per output, and a share of each group by dynamic programming
    instead of one percentile (`Pruning.official` has the paper's).
    """

    budget: str = "units"
    share: float = 0.7
    score: str = "elimination"
    allocation: str = "measured"
    compensation: str = "kernel"
    sequential: bool = True
    recalibrate: bool | None = None
    rounds: int = 1
    heads: bool = False
    streams: bool = True
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    least: float = 0.1
    multiple: int = 1
    damping: float = DAMPING
    batch: int = 128
    positions: int = 64
    seed: int = 0
    weigh: bool = True

    name = "modhifi-p"
    version = 2

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise MisuseError(f"a budget is given in {', '.join(BUDGETS)}, not in {self.budget!r}")
        if not 0 < self.share < 1:
            raise MisuseError(f"a share of {self.share:g} cannot be kept: give a number between 0 and 1")
        if self.score not in SCORES:
            raise MisuseError(f"no score is called {self.score!r}. There are: {', '.join(SCORES)}")
        if self.allocation not in ALLOCATIONS:
            raise MisuseError(f"units are allocated {' or '.join(ALLOCATIONS)}, not {self.allocation!r}")
        if self.rounds < 1 or self.multiple < 1 or not 0 <= self.least < 1:
            raise MisuseError("rounds and multiple are 1 or more, and the least share lies from 0 to below 1")
        if not 0 <= self.damping < 1 or self.seed < 0:
            raise MisuseError("damping lies from 0 to below 1, and the seed is 0 or more")
        for name in ("only", "ignore"):
            object.__setattr__(self, name, patterns(getattr(self, name)))
        _ = self.compensating

    @classmethod
    def official(cls, share: float = 0.7, budget: str = "macs") -> "Pruning":
        """The published method, as far as the paper says.

        Args:
            share: Of the budget that is left.
            budget: What is limited.

        Returns:
            Union rule, factors per output, batch norm recalibrated, five rounds.
        """
        return cls(budget, share, "union-alignment", "uniform", "scalar", sequential=False, recalibrate=True, rounds=5)

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def plan(
        self,
        model: Model,
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
        curves: Mapping[str, Curve] | None = None,
    ) -> Plan:
        """Choose what is removed.

        Cost: one pass over the probes for statistics (unless given), one inversion per layer; per further round the
        same again.

        Args:
            model: The model.
            probes: Unlabelled inputs, real or synthetic; labels are not looked at.
            statistics: Collected before with the same probes, at level `full`.
            progress: Told how far it is.
            curves: Worked out before, as `curves` gives them: then a plan costs next to nothing.

        Returns:
            The plan.

        Raises:
            MisuseError: If nothing can be removed or the budget cannot be met.
        """
        questioned(model, probes)
        choosing = Choosing.of(self, model, probes, progress)
        if self.budget == "latency":
            kept, known = choosing.to_latency(statistics, curves)
        else:
            kept, known = choosing.chosen(self.share, statistics, curves)
        return self._planned(model, probes, choosing.net, kept, known)

    def curves(self, model: Model, probes: Probes, statistics: Statistics) -> dict[str, Curve]:
        """In which order units of every group go, and the error at every size: the same for all budgets.

        Args:
            model: The model.
            probes: What the statistics were collected with.
            statistics: At level `full`.

        Returns:
            One curve per group.
        """
        return Choosing.of(self, model, probes).curves(statistics)

    def apply(
        self,
        model: Model,
        plan: Plan,
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
    ) -> Edited:
        """Carry a plan out.

        Cost: with `sequential`, one pass of both networks for every layer that loses inputs.

        Args:
            model: The model that the plan is for; it is not changed.
            plan: As `plan` made it.
            probes: The same inputs.
            statistics: Of the whole network, used where layers are not fitted sequentially.
            progress: Told how far it is.

        Returns:
            The smaller model with its receipt.

        Raises:
            MisuseError: If the plan is for another model.
            StemmaError: If cutting is not silencing for these units.
        """
        if plan.parent != model.digest:
            raise MisuseError(f"the plan is for the model {plan.parent}, but {model.name} is {model.digest}")
        whole, smaller = own_network(model), own_network(model)
        net = removable(model, probes.inputs, whole)
        rows = {t: {int(a): np.array(r) for a, r in axes.items()} for t, axes in plan.slices.items()}
        kept = {g: np.array(k, int) for g, k in plan.kept.items()}
        if not _same_rows(rows, slicing.slices(net, kept)):
            raise MisuseError("the rows that the plan keeps are not those of the units that it keeps")
        if not agrees(model, net, kept, few_of(probes.inputs), whole):
            raise StemmaError(
                f"cutting these units out of {model.name} does not give what silencing them gives: its code depends on "
                "where units stand. Leave groups out (ignore), or choose other shares"
            )
        heads = head_weights(net)
        slicing.cut(smaller.module, rows, heads)
        cuts = cut_readers(net, whole.module, rows)
        both = self.recalibrate is None and bool(norms(whole.module)) and self.compensation != "none"
        other = own_network(model) if both else None
        self.refit(whole, smaller, cuts, probes, statistics, progress)
        if other is not None:
            slicing.cut(other.module, rows, heads)
            replace(self, recalibrate=False).refit(whole, other, cuts, probes, statistics, progress)
            inputs = probes.inputs[: measuring.MOST]
            aim = whole.answers(inputs)
            lost = [measuring.agreement(aim, a.answers(inputs))["error"] for a in (other, smaller)]
            smaller = other if lost[0] <= lost[1] else smaller
        measured = measuring.changes(whole, smaller, net, plan, probes)
        return finished(model, smaller, plan, probes, measured)

    def __call__(self, model: Model, probes: Probes, progress: Progress | None = None) -> Edited:
        """Plan and apply.

        Args:
            model: The model; it is not changed.
            probes: Unlabelled inputs.
            progress: Told how far it is.

        Returns:
            The smaller model with its receipt.
        """
        return self.apply(model, self.plan(model, probes, progress=progress), probes, progress=progress)

    def collect(self, model: Model, probes: Probes, progress: Progress | None = None) -> Statistics:
        """The statistics that plans rest on; they serve any number of ratios.

        Args:
            model: The model.
            probes: Unlabelled inputs.
            progress: Told how far it is.

        Returns:
            Second moments of every layer that reads units which may be removed.
        """
        questioned(model, probes)
        found = Choosing.of(self, model, probes, progress).collected()
        return replace(found, model=model.digest, probes=probes.digest)

    @property
    def renews(self) -> bool:
        """Whether batch norm is recalibrated where it is not tried both ways."""
        return self.recalibrate is not False

    def refit(
        self,
        whole: Asked,
        smaller: Asked,
        cuts: Sequence[Cut],
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Refit what is left of a network that was cut, in place, and recalibrate its batch norms where that is wanted.

        Args:
            whole: The network before.
            smaller: The network after it was cut.
            cuts: Layers that lost inputs.
            probes: Inputs.
            statistics: Of the whole network, used where layers are not fitted sequentially.
            progress: Told how far it is.
        """
        self.compensating(whole, smaller, cuts, probes.inputs, statistics, progress)
        if self.renews:
            recalibrate(smaller.module, smaller.forward, probes.inputs, smaller.like, self.batch)

    def _unsized(self, model: Model, net: Network) -> dict[str, str]:
        """Groups that were asked for and stay, because the configuration has no entry for their size."""
        sized = describable(model.config, net)
        asked = [g.name for g in net.groups if self.heads or g.name not in net.heads]
        return {g: "the configuration has no entry for its size" for g in asked if sized and g not in sized}

    @property
    def compensating(self) -> Compensating:
        """How layers that lose inputs are refitted."""
        return Compensating(self.compensation, self.sequential, self.damping, self.renews, self.collecting)

    @property
    def collecting(self) -> Collecting:
        """How statistics are collected."""
        return Collecting("full", self.batch, self.positions, self.seed)

    def _planned(
        self, model: Model, probes: Probes, net: Network, kept: Mapping[str, np.ndarray], curves: Mapping[str, Curve]
    ) -> Plan:
        rows = slicing.slices(net, kept)
        counts = {g: len(k) for g, k in kept.items()}
        expected = {
            "macs": [net.macs(), net.macs(counts)],
            "parameters": [net.parameters(), net.parameters(counts)],
            "groups": {g: {"kept": len(k), "of": net.sizes[g], "error": float(curves[g].at(net.sizes[g] - len(k)))}
                       for g, k in kept.items()},
            "refitted": [n for w, r in net.readers.items() if r.reads in rows.get(w, {}) for n in (w, r.bias)],
            "refused": {**net.refused, **self._unsized(model, net)},
        }  # fmt: skip
        return Plan(
            "prune", model.digest, self.spec, probes.digest,
            kept={g: tuple(int(i) for i in k) for g, k in kept.items()},
            slices={t: {str(a): tuple(int(i) for i in r) for a, r in axes.items()} for t, axes in rows.items()},
            expected=expected,
        )  # fmt: skip


def _same_rows(a: Mapping[str, Mapping[int, np.ndarray]], b: Mapping[str, Mapping[int, np.ndarray]]) -> bool:
    flat_a, flat_b = ({(t, x): r for t, axes in rows.items() for x, r in axes.items()} for rows in (a, b))
    return flat_a.keys() == flat_b.keys() and all(np.array_equal(r, flat_b[k]) for k, r in flat_a.items())
