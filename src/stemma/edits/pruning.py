"""Structured pruning without labels, gradients or training: ModHiFi-P, and what improves on it at the same cost."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import final

import numpy as np
import torch

from stemma.edits import configurations, measuring, slicing
from stemma.edits.allocation import ALLOCATIONS, Budget, Bundle, allocate, cost_of
from stemma.edits.asking import Asked, head_weights, own_network, removable
from stemma.edits.compensation import Compensating, cut_readers
from stemma.edits.coupling import Group, Network
from stemma.edits.edited import Edited, finished
from stemma.edits.elimination import Curve, Eliminating
from stemma.edits.fidelity import DAMPING
from stemma.edits.normalisation import recalibrate
from stemma.edits.scores import SCORES, reads, scored
from stemma.edits.statistics import Collecting, Statistics
from stemma.errors import MisuseError
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
        allocation: One of `ALLOCATIONS`: how much of each group goes. A budget in units is always uniform.
        compensation: One of `compensation.KINDS`.
        sequential: Fit each layer to what the layers before it give now.
        recalibrate: Estimate the statistics of batch norm anew.
        rounds: In how many steps units are chosen; statistics are collected anew, on the smaller network, for each.
        heads: Remove attention heads too.
        streams: Remove channels that several layers write and read (residual streams with batch norm).
        only: Patterns of the groups that may be cut; all if empty.
        ignore: Patterns of groups that stay whole.
        least: Share of every group that stays.
        multiple: Units are kept in multiples of this.
        damping: Share of the mean diagonal that is added to second moments before they are inverted.
        batch: Inputs at once.
        positions: Most positions of a convolution that are looked at for one input; 0 for all.
        seed: Of whatever is drawn.

    Source: Kashyap et al., NeurIPS 2025, algorithm 1 and appendix D. The defaults are not the paper's: elimination with
    refitted kernels instead of the union rule with factors per output, and a share of each group by dynamic programming
    instead of one percentile (`Pruning.official` has the paper's).
    """

    budget: str = "units"
    share: float = 0.7
    score: str = "elimination"
    allocation: str = "dynamic"
    compensation: str = "kernel"
    sequential: bool = True
    recalibrate: bool = True
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

    name = "modhifi-p"
    version = 1

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
        self._compensating()

    @classmethod
    def official(cls, share: float = 0.7, budget: str = "macs") -> "Pruning":
        """The published method, as far as the paper says.

        Args:
            share: Of the budget that is left.
            budget: What is limited.

        Returns:
            Union rule, factors per output, batch norm recalibrated, five rounds.
        """
        return cls(budget, share, "union-alignment", "uniform", "scalar", sequential=False, rounds=5)

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
        asked = own_network(model)
        net = removable(model, probes.inputs, asked)
        chosen = self._allowed(net, model)
        if self.budget == "latency":
            return self._to_latency(model, probes, asked, net, chosen, statistics, progress)
        given = statistics, curves
        kept, known = self._chosen(model, asked, net, chosen, probes, self.share, given, progress)
        return self._planned(model, probes, net, kept, known)

    def curves(self, model: Model, probes: Probes, statistics: Statistics) -> dict[str, Curve]:
        """In which order units of every group go, and the error at every size: the same for all budgets.

        Args:
            model: The model.
            probes: What the statistics were collected with.
            statistics: At level `full`.

        Returns:
            One curve per group.
        """
        asked = own_network(model)
        net = removable(model, probes.inputs, asked)
        return {g.name: self._curve(g, asked.module, statistics) for g in self._allowed(net, model)}

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
        """
        if plan.parent != model.digest:
            raise MisuseError(f"the plan is for the model {plan.parent}, but {model.name} is {model.digest}")
        whole, smaller = own_network(model), own_network(model)
        net = removable(model, probes.inputs, whole)
        rows = {t: {int(a): np.array(r) for a, r in axes.items()} for t, axes in plan.slices.items()}
        heads = head_weights(net)
        slicing.cut(smaller.module, rows, heads)
        compensating = self._compensating()
        compensating(whole, smaller, cut_readers(net, whole.module, rows), probes.inputs, statistics, progress)
        if self.recalibrate:
            recalibrate(smaller.module, smaller.forward, probes.inputs, smaller.like, self.batch)
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
        asked = own_network(model)
        chosen = self._allowed(removable(model, probes.inputs, asked), model)
        found = self._collected(asked, chosen, probes, progress)
        return replace(found, model=model.digest, probes=probes.digest)

    def _compensating(self) -> Compensating:
        return Compensating(self.compensation, self.sequential, self.damping, self.recalibrate, self._collecting())

    def _collecting(self) -> Collecting:
        return Collecting("full", self.batch, self.positions, self.seed)

    def _allowed(self, net: Network, model: Model) -> list[Group]:
        """The groups that may be cut."""
        sized = configurations.describable(model.config, net)
        out = []
        for g in net.groups:
            named = not self.only or any(re.search(p, g.name) for p in self.only)
            spared = any(re.search(p, g.name) for p in self.ignore)
            stream = sum(len(net.shapes[r.tensor]) > 1 and r.axis == 0 and r.tensor in net.readers for r in g.rows) > 1
            tied = stream and g.name not in net.heads and len(g.readers) > 1
            fits = (self.heads or g.name not in net.heads) and (self.streams or not tied)
            if named and not spared and fits and (not sized or g.name in sized):
                out.append(g)
        if not out:
            known = ", ".join(g.name for g in net.groups[:5])
            raise MisuseError(
                f"no group of {model.name} is left to cut. There are: {known} (heads only with heads=True)"
            )
        return out

    def _collected(self, asked: Asked, groups: list[Group], probes: Probes, progress: Progress | None) -> Statistics:
        readers = list({r.weight: r for g in groups for r in g.readers}.values())
        collecting = self._collecting()
        return collecting(asked.module, asked.forward, probes.inputs, readers, asked.like, progress)

    def _chosen(
        self, model: Model, asked: Asked, net: Network, groups: list[Group], probes: Probes, share: float,
        given: tuple[Statistics | None, Mapping[str, Curve] | None], progress: Progress | None,
    ) -> tuple[dict[str, np.ndarray], Mapping[str, Curve]]:  # fmt: skip
        """Units that stay in each group, over all rounds."""
        kept = {g.name: np.arange(g.size) for g in groups}
        first: Mapping[str, Curve] = {}
        statistics, curves = given
        for turn in range(1, self.rounds + 1):
            goal = share ** (turn / self.rounds)
            now, part = net, groups
            if turn > 1:
                asked = self._cut_so_far(model, net, kept, probes)
                now = removable_again(asked, probes, net)
                part = [now.group(g.name) for g in groups]
                statistics = curves = None
            if curves is None:
                seen = statistics or self._collected(asked, part, probes, progress)
                curves = {g.name: self._curve(g, asked.module, seen) for g in part}
            found = curves
            first = first or found
            sizes = self._sizes(model, net, now, part, found, goal)
            for g in part:
                order = found[g.name].order
                stay = np.sort(order[len(order) - sizes[g.name] :])
                kept[g.name] = kept[g.name][stay]
        return kept, first

    def _curve(self, group: Group, module: torch.nn.Module, statistics: Statistics) -> Curve:
        """In which order units of a group go, and what that costs."""
        read = reads(group, module, statistics)
        order = None
        if self.score != "elimination":
            order = np.argsort(scored(group, module, statistics, self.score, self.seed).cpu().numpy(), kind="stable")
        return Eliminating(damping=self.damping)(read, group.size, order)

    def _sizes(
        self, model: Model, whole: Network, now: Network, groups: list[Group], curves: Mapping[str, Curve], goal: float
    ) -> dict[str, int]:
        """How many units of each group stay."""
        names = {g.name for g in groups}
        bundles = []
        for together in configurations.alike(model.config, now):
            mine = tuple(n for n in together if n in names)
            if mine:
                size = now.sizes[mine[0]]
                least = max(1, round(self.least * whole.sizes[mine[0]]))
                step = min(self.multiple, size)
                least = min(size, -(-least // step) * step)
                bundles.append(Bundle(mine, size, least, step, tuple(curves[n] for n in mine)))
        if self.budget == "units":
            return self._by_ratio(bundles, whole, goal)
        cost, full = cost_of(now, self.budget), cost_of(whole, self.budget)
        budget = Budget(cost, goal * full({}) / cost({}), self.budget)
        return allocate(bundles, budget, self.allocation)

    def _by_ratio(self, bundles: list[Bundle], whole: Network, goal: float) -> dict[str, int]:
        """The same share of every group."""
        out = {}
        for b in bundles:
            wanted = goal * whole.sizes[b.groups[0]]
            size = min(b.options, key=lambda n: (abs(n - wanted), n))
            out.update(dict.fromkeys(b.groups, size))
        if all(out[b.groups[0]] == b.size for b in bundles):
            raise MisuseError(
                f"at a share of {goal:.3g} no unit would go: the groups are too small, or least is too large"
            )
        return out

    def _cut_so_far(self, model: Model, net: Network, kept: Mapping[str, np.ndarray], probes: Probes) -> Asked:
        """The network as the earlier rounds leave it: cut, refitted from its own statistics, recalibrated."""
        whole, smaller = own_network(model), own_network(model)
        rows = slicing.slices(net, kept)
        slicing.cut(smaller.module, rows, head_weights(net))
        self._compensating()(whole, smaller, cut_readers(net, whole.module, rows), probes.inputs)
        if self.recalibrate:
            recalibrate(smaller.module, smaller.forward, probes.inputs, smaller.like, self.batch)
        return smaller

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
            "refused": dict(net.refused),
        }  # fmt: skip
        return Plan(
            "prune", model.digest, self.spec, probes.digest,
            kept={g: tuple(int(i) for i in k) for g, k in kept.items()},
            slices={t: {str(a): tuple(int(i) for i in r) for a, r in axes.items()} for t, axes in rows.items()},
            expected=expected,
        )  # fmt: skip

    def _to_latency(
        self, model: Model, probes: Probes, asked: Asked, net: Network, groups: list[Group],
        statistics: Statistics | None, progress: Progress | None,
    ) -> Plan:  # fmt: skip
        """The largest share of operations whose network runs in the wanted share of the time, as measured."""
        by_macs = replace(self, budget="macs", rounds=1)
        seen = statistics or self._collected(asked, groups, probes, progress)
        found = {g.name: self._curve(g, asked.module, seen) for g in groups}
        whole = measuring.latency(asked, probes.inputs)
        low, high, best = 0.02, 1.0, None
        for _ in range(6):
            middle = (low + high) / 2
            try:
                trial = replace(by_macs, share=middle)
                kept, curves = trial._chosen(model, asked, net, groups, probes, middle, (seen, found), None)
            except MisuseError:
                low = middle
                continue
            smaller = own_network(model)
            slicing.cut(smaller.module, slicing.slices(net, kept), head_weights(net))
            if measuring.latency(smaller, probes.inputs) <= self.share * whole:
                low, best = middle, (kept, curves)
            else:
                high = middle
        if best is None:
            raise MisuseError(f"no network that may be cut out of {model.name} runs in {self.share:.2g} of its time")
        return self._planned(model, probes, net, *best)


def removable_again(asked: Asked, probes: Probes, net: Network) -> Network:
    """The groups of a network that was cut already, under the names that they had."""
    from stemma.edits.coupling import couplings
    from stemma.edits.statistics import batch_of

    found = couplings(asked.module, asked.forward, batch_of(probes.inputs[:2], asked.like))
    return found.without([g.name for g in found.groups if g.name not in net.sizes], "it stays whole")
