"""Structured pruning without labels, gradients or training: ModHiFi-P, and what improves on it at the same cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.edits import measured_effect
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.configurations import describable
from stemma.edits.dependency_graph.groups import Network
from stemma.edits.editable_network import agrees, few_of, head_weights, own_network, removable
from stemma.edits.fidelity.batch_norm import norms
from stemma.edits.fidelity.compensation import cut_readers
from stemma.edits.fidelity.optimal_brain_surgeon import Curve
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.pruning.planner import Choosing
from stemma.edits.pruning.settings import Progress, PruningSettings
from stemma.edits.result import Edited, finished
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import checked_network
from stemma.probes import Probes
from stemma.types import Plan


@final
@dataclass(frozen=True)
class Pruning(PruningSettings):
    """Structured pruning with a plan before and a receipt after; `PruningSettings` lists the parameters.

    Source: Kashyap et al., NeurIPS 2025, algorithm 1 and appendix D. The defaults are not the paper's: elimination with
    refitted kernels instead of the union rule with factors per output, and a share of each group by dynamic programming
    instead of one percentile (`Pruning.official` has the paper's).
    """

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
        checked_network(model, probes)
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
            inputs = probes.inputs[: measured_effect.MOST]
            aim = whole.answers(inputs)
            lost = [measured_effect.agreement(aim, a.answers(inputs))["error"] for a in (other, smaller)]
            smaller = other if lost[0] <= lost[1] else smaller
        measured = measured_effect.changes(whole, smaller, net, plan, probes)
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
        checked_network(model, probes)
        found = Choosing.of(self, model, probes, progress).collected()
        return replace(found, model=model.digest, probes=probes.digest)

    def _unsized(self, model: Model, net: Network) -> dict[str, str]:
        """Groups that were asked for and stay, because the configuration has no entry for their size."""
        sized = describable(model.config, net)
        asked = [g.name for g in net.groups if self.heads or g.name not in net.heads]
        return {g: "the configuration has no entry for its size" for g in asked if sized and g not in sized}

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
