"""Algorithm 1 of ModHiFi (ModHiFi-P): structured pruning without labels, gradients or training, with its extensions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.deprecation import accept_old_names
from stemma.edits.artefacts import measured_effect
from stemma.edits.artefacts.result import Edited, finish_edit
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.configurations import resizable_groups
from stemma.edits.dependency_graph.dependency_groups import DependencyGraph
from stemma.edits.editable_network import (
    checked_dependency_graph,
    cutting_equals_masking,
    editable_copy,
    head_weights,
    trial_inputs,
)
from stemma.edits.fidelity.batch_norm_recalibration import batch_norms
from stemma.edits.fidelity.compensation import pruned_layers
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.pruning.planner import PruningPlanner
from stemma.edits.pruning.settings import Progress, PruningSettings
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import checked_network
from stemma.probes import Probes
from stemma.types import Plan


@accept_old_names(share="keep_ratio", least="min_keep", multiple="round_to")
@final
@dataclass(frozen=True)
class Pruning(PruningSettings):
    """Structured pruning with a plan before and a receipt after; `PruningSettings` lists the parameters.

    Source: Kashyap et al., "ModHiFi", NeurIPS 2025, algorithm 1 and appendix D; `Pruning.official` has these. The
    defaults differ: units are removed in optimal-brain-surgeon order (Hassibi and Stork 1993; for structures, ZipLM,
    Kurtic et al. 2023), whole kernels are refitted by least squares (He et al. 2017; ThiNet, Luo et al. 2017), and a
    dynamic programme over layers divides the budget (SPDY, Frantar and Alistarh 2022).
    """

    @classmethod
    @accept_old_names(share="keep_ratio")
    def official(cls, keep_ratio: float = 0.7, budget: str = "macs") -> "Pruning":
        """The published method: union rule, factors per output, batch norm recalibrated, five rounds.

        In every round a unit goes if it is below one percentile, the same for all layers, in every output of every
        layer that reads it. The paper leaves the percentile and the number of rounds to the user; here each round takes
        the lowest percentile that meets its part of the budget.

        Args:
            keep_ratio: Fraction of the budget that is kept.
            budget: What is limited.

        Returns:
            The method.
        """
        return cls(budget, keep_ratio, "union-alignment", "union", "scalar", sequential=False, recalibrate=True,
                   rounds=5)  # fmt: skip

    def plan(
        self,
        model: Model,
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
        curves: Mapping[str, ErrorCurve] | None = None,
    ) -> Plan:
        """Choose the units to remove.

        Cost: one pass over the probes for statistics (unless given) and one matrix inversion per layer; every further
        round costs the same again.

        Args:
            model: The model.
            probes: Unlabelled inputs, real or synthetic; labels are not used.
            statistics: As `collect` gives them for the same probes.
            progress: Called with what happens, how much is done and of how much.
            curves: As `curves` gives them; then a plan costs next to nothing.

        Returns:
            The plan.

        Raises:
            MisuseError: If no unit can be removed or the budget cannot be met.
        """
        checked_network(model, probes)
        planner = PruningPlanner.for_model(self, model, probes, progress)
        if self.budget == "latency":
            kept, known = planner.choose_for_latency(statistics, curves)
        else:
            kept, known = planner.choose_units(self.keep_ratio, statistics, curves)
        return self.plan_of(model, probes, planner.graph, kept, known)

    def curves(self, model: Model, probes: Probes, statistics: Statistics) -> dict[str, ErrorCurve]:
        """The removal order and the error at every size of each group: the same for all budgets.

        Args:
            model: The model.
            probes: The probes that the statistics were collected with.
            statistics: As `collect` gives them.

        Returns:
            One curve per group.
        """
        return PruningPlanner.for_model(self, model, probes).curves(statistics)

    def apply(
        self,
        model: Model,
        plan: Plan,
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
    ) -> Edited:
        """Carry out a plan.

        Cost: with `sequential`, one pass of both networks for every layer that loses inputs.

        Args:
            model: The model that the plan is for; it is not changed.
            plan: As `plan` made it.
            probes: The same inputs.
            statistics: Of the unpruned network, used where layers are not fitted sequentially.
            progress: Called with what happens, how much is done and of how much.

        Returns:
            The smaller model with its receipt.

        Raises:
            MisuseError: If the plan is for another model.
            StemmaError: If removing these units does not give the outputs of masking them.
        """
        if plan.parent != model.digest:
            raise MisuseError(f"the plan is for the model {plan.parent}, but {model.name} is {model.digest}")
        original, smaller = editable_copy(model), editable_copy(model)
        graph = checked_dependency_graph(model, probes.inputs, original)
        rows = {t: {int(a): np.array(r) for a, r in axes.items()} for t, axes in plan.slices.items()}
        kept = {g: np.array(k, int) for g, k in plan.kept.items()}
        if not _same_rows(rows, slicing.kept_rows(graph, kept)):
            raise MisuseError("the plan is inconsistent: the rows that it keeps are not those of the units that it "
                              "keeps. Make a new plan")  # fmt: skip
        if not cutting_equals_masking(model, graph, kept, trial_inputs(probes.inputs), original):
            raise StemmaError(
                f"removing these units from {model.name} does not give the outputs of masking them: its code depends "
                "on unit positions. Exclude groups (ignore) or choose another keep_ratio"
            )
        heads = head_weights(graph)
        slicing.slice_units(smaller.module, rows, heads)
        layers = pruned_layers(graph, original.module, rows)
        both = self.recalibrate is None and bool(batch_norms(original.module)) and self.compensation != "none"
        old_norms = editable_copy(model) if both else None
        self.refit(original, smaller, layers, probes, statistics, progress)
        if old_norms is not None:
            slicing.slice_units(old_norms.module, rows, heads)
            replace(self, recalibrate=False).refit(original, old_norms, layers, probes, statistics, progress)
            inputs = probes.inputs[: measured_effect.MAX_INPUTS]
            outputs = original.outputs(inputs)
            errors = [measured_effect.output_agreement(outputs, a.outputs(inputs))["error"]
                      for a in (old_norms, smaller)]  # fmt: skip
            smaller = old_norms if errors[0] <= errors[1] else smaller
        measured = measured_effect.measure_changes(original, smaller, graph, plan, probes)
        return finish_edit(model, smaller, plan, probes, measured)

    def __call__(self, model: Model, probes: Probes, progress: Progress | None = None) -> Edited:
        """Plan and apply.

        Args:
            model: The model; it is not changed.
            probes: Unlabelled inputs.
            progress: Called with what happens, how much is done and of how much.

        Returns:
            The smaller model with its receipt.
        """
        return self.apply(model, self.plan(model, probes, progress=progress), probes, progress=progress)

    def collect(self, model: Model, probes: Probes, progress: Progress | None = None) -> Statistics:
        """The statistics that plans rest on; they serve any budget and ratio.

        Args:
            model: The model.
            probes: Unlabelled inputs.
            progress: Called with what happens, how much is done and of how much.

        Returns:
            Second moments of the inputs of every layer that reads prunable units.
        """
        checked_network(model, probes)
        found = PruningPlanner.for_model(self, model, probes, progress).collect_statistics()
        return replace(found, model=model.digest, probes=probes.digest)

    def _not_resizable(self, model: Model, graph: DependencyGraph) -> dict[str, str]:
        """Groups that the settings include but the configuration has no entry for."""
        resizable = resizable_groups(model.config, graph)
        wanted = [g.name for g in graph.groups if self.heads or g.name not in graph.heads]
        return {g: "the configuration has no entry for its size" for g in wanted if resizable and g not in resizable}

    def plan_of(
        self, model: Model, probes: Probes, graph: DependencyGraph, kept: Mapping[str, np.ndarray],
        curves: Mapping[str, ErrorCurve],
    ) -> Plan:  # fmt: skip
        """The plan that keeps these units of the groups of a graph.

        Args:
            model: The model.
            probes: What the choice rests on.
            graph: Its dependency graph.
            kept: The units that stay, by group.
            curves: Error curves of the same groups.

        Returns:
            The plan.
        """
        rows = slicing.kept_rows(graph, kept)
        counts = {g: len(k) for g, k in kept.items()}
        expected = {
            "macs": [graph.macs(), graph.macs(counts)],
            "parameters": [graph.parameters(), graph.parameters(counts)],
            "groups": {g: {"kept": len(k), "of": graph.sizes[g], "error": float(curves[g].at(graph.sizes[g] - len(k)))}
                       for g, k in kept.items()},
            "refitted": [n for w, r in graph.readers.items() if r.input_axis in rows.get(w, {}) for n in (w, r.bias)],
            "refused": {**graph.telling_refusals(), **self._not_resizable(model, graph)},
        }  # fmt: skip
        if heads := sorted(head_weights(graph) & rows.keys()):
            expected["heads"] = heads
        return Plan(
            operation="prune", parent=model.digest, spec=self.spec, probes=probes.digest,
            kept={g: tuple(int(i) for i in k) for g, k in kept.items()},
            slices={t: {str(a): tuple(int(i) for i in r) for a, r in axes.items()} for t, axes in rows.items()},
            expected=expected,
        )  # fmt: skip


def _same_rows(a: Mapping[str, Mapping[int, np.ndarray]], b: Mapping[str, Mapping[int, np.ndarray]]) -> bool:
    flat_a, flat_b = ({(t, x): r for t, axes in rows.items() for x, r in axes.items()} for rows in (a, b))
    return flat_a.keys() == flat_b.keys() and all(np.array_equal(r, flat_b[k]) for k, r in flat_a.items())
