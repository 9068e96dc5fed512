"""Which units of each dependency group are kept: error curves per group, allocated within a budget."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.artefacts import measured_effect
from stemma.edits.dependency_graph import configurations, slicing
from stemma.edits.dependency_graph.dependency_groups import DependencyGraph, DependencyGroup, build_dependency_graph
from stemma.edits.editable_network import EditableNetwork, checked_dependency_graph, editable_copy, head_weights
from stemma.edits.fidelity import modhifi_p
from stemma.edits.fidelity.batch_norm_recalibration import batch_statistics
from stemma.edits.fidelity.compensation import pruned_layers
from stemma.edits.fidelity.importance import importance_scores, reader_matrices
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve, OptimalBrainSurgeon
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.layer_inputs import as_tensor
from stemma.edits.pruning.allocation import COMPARED, RULES, Budget, TiedGroups, allocate, budget_cost
from stemma.edits.pruning.settings import PruningSettings
from stemma.errors import MisuseError
from stemma.probes import Probes

Kept = dict[str, np.ndarray]
Curves = Mapping[str, ErrorCurve]

CALIBRATION_INPUTS, CALIBRATION_ERROR = 256, 0.05
"""Inputs on which a group's error curve is rescaled to output error, and the local error at which that is done."""

MIN_PROBES = 8
"""Fewest inputs from which units are chosen."""


@dataclass(frozen=True, eq=False)
class PruningPlanner:
    """One model while its pruning is planned.

    Attributes:
        method: The pruning parameters.
        model: The model.
        probes: Its inputs.
        editable: A copy of its network.
        graph: Its dependency graph.
        groups: The groups that may be pruned.
        progress: Called with what happens, how much is done and of how much.
    """

    method: PruningSettings
    model: Model
    probes: Probes
    editable: EditableNetwork
    graph: DependencyGraph
    groups: Sequence[DependencyGroup]
    progress: Callable[[str, int, int | None], None] | None = None

    @classmethod
    def for_model(cls, method: PruningSettings, model: Model, probes: Probes, progress: Any = None) -> "PruningPlanner":
        """Build the dependency graph of a model and select the groups that may be pruned."""
        if len(probes) < MIN_PROBES:
            raise MisuseError(f"{len(probes)} inputs are too few to choose units: give {MIN_PROBES} or more, "
                              "better some hundreds")  # fmt: skip
        editable = editable_copy(model)
        graph = checked_dependency_graph(model, probes.inputs, editable)
        return cls(method, model, probes, editable, graph, prunable_groups(method, graph, model), progress)

    def collect_statistics(self) -> Statistics:
        """Second moments of the inputs of all layers that read these groups."""
        readers = list({r.weight: r for g in self.groups for r in g.readers}.values())
        a, x = self.editable, self.probes.inputs
        return self.method.collector(a.module, a.forward, x, readers, a.like, self.progress)

    def curves(self, statistics: Statistics) -> dict[str, ErrorCurve]:
        """Removal order and error at every size, by group; errors are comparable between groups."""
        found = {g.name: self.curve(g, statistics) for g in self.groups}
        if not self.method.weigh or self.method.allocation in ("uniform", "union") or len(found) < 2:
            return found
        return {g.name: self._calibrated(g, found[g.name], statistics) for g in self.groups}

    def choose_units(self, ratio: float, statistics: Statistics | None, curves: Curves | None) -> tuple[Kept, Curves]:
        """The units that each group keeps after all rounds, and the error curves of the first round."""
        kept: Kept = {g.name: np.arange(g.size) for g in self.groups}
        first_curves: Curves = {}
        planner = self
        for turn in range(1, self.method.rounds + 1):
            if turn > 1:
                planner, statistics, curves = self._next_round(kept), None, None
            if curves is None:
                statistics = statistics or planner.collect_statistics()
                curves = planner.curves(statistics)
            first_curves = first_curves or curves
            chosen = planner._best(self.graph, curves, ratio ** (turn / self.method.rounds), statistics)
            kept |= {g: kept[g][rows] for g, rows in chosen.items()}
        return kept, first_curves

    def _best(self, original: DependencyGraph, curves: Curves, ratio: float, statistics: Statistics | None) -> Kept:
        """The units kept by the chosen allocation rule, or by the one with the smallest output error."""
        allocation, first_round = self.method.allocation, self.graph is original
        single = self.method.budget == "units" or not first_round
        rules = [allocation] if allocation in RULES else ["dynamic"] if single else list(COMPARED)
        found = []
        for rule in rules:
            sizes = self.sizes(original, curves, ratio, rule)
            kept = {g: np.sort(curves[g].order[len(curves[g].order) - n :]) for g, n in sizes.items()}
            found.append((self.output_error(kept, statistics) if len(rules) > 1 else 0.0, len(found), kept))
        return min(found, key=lambda f: f[:2])[2]

    def choose_for_latency(self, statistics: Statistics | None, curves: Curves | None) -> tuple[Kept, Curves]:
        """The units kept at the largest fraction of MACs whose measured latency is within the budget."""
        found = curves if curves is not None else self.curves(statistics or self.collect_statistics())
        by_macs = replace(self, method=replace(self.method, budget="macs", rounds=1))
        original = measured_effect.latency(self.editable, self.probes.inputs)
        low, high, best = 0.02, 1.0, None
        for _ in range(6):
            middle = (low + high) / 2
            try:
                kept, _ = by_macs.choose_units(middle, statistics, found)
            except MisuseError:
                low = middle
                continue
            smaller = editable_copy(self.model)
            slicing.slice_units(smaller.module, slicing.kept_rows(self.graph, kept), head_weights(self.graph))
            if measured_effect.latency(smaller, self.probes.inputs) <= self.method.keep_ratio * original:
                low, best = middle, kept
            else:
                high = middle
        if best is None:
            raise MisuseError(
                f"no pruned version of {self.model.name} runs in {self.method.keep_ratio:.2g} of its latency. Raise "
                "the budget or lower min_keep"
            )
        return best, found

    def curve(self, group: DependencyGroup, statistics: Statistics, until: int = 1) -> ErrorCurve:
        """Removal order of one group and its error at every size, down to the size given."""
        method, module = self.method, self.editable.module
        order = percentiles = None
        if method.score != "elimination":
            values = importance_scores(group, module, statistics, method.score, method.seed).cpu().numpy()
            if method.allocation == "union":
                energy = importance_scores(group, module, statistics, "energy").cpu().numpy()
                values = percentiles = modhifi_p.percentiles(values, energy)
            order = np.argsort(values, kind="stable")
        readers = reader_matrices(group, module, statistics)
        curve = OptimalBrainSurgeon(damping=method.damping)(readers, group.size, order, until)
        return replace(curve, percentiles=percentiles)

    def _calibrated(self, group: DependencyGroup, curve: ErrorCurve, statistics: Statistics) -> ErrorCurve:
        """The curve rescaled to errors of the network's outputs, measured by pruning and refitting this group alone."""
        above = np.flatnonzero(curve.errors >= CALIBRATION_ERROR)
        at = int(curve.removed[above[0]]) if len(above) else int(curve.removed[-1])
        local = float(curve.at(at))
        if at < 1 or local <= 0:
            return curve
        measured = self.output_error({group.name: np.sort(curve.order[at:])}, statistics)
        return replace(curve, errors=curve.errors * measured / local)

    def output_error(self, kept: Kept, statistics: Statistics | None) -> float:
        """Squared error of the outputs of the network that keeps these units."""
        inputs = self.probes.inputs[:CALIBRATION_INPUTS]
        smaller = self._pruned(kept, statistics)
        with batch_statistics(smaller.module if self.method.recalibrate else torch.nn.Module()):
            outputs = smaller.outputs(inputs)
        return measured_effect.output_agreement(self.editable.outputs(inputs), outputs)["error"]

    def _pruned(self, kept: Kept, statistics: Statistics | None) -> EditableNetwork:
        """The network that keeps these units, refitted."""
        smaller = editable_copy(self.model)
        rows = slicing.kept_rows(self.graph, kept)
        slicing.slice_units(smaller.module, rows, head_weights(self.graph))
        layers = pruned_layers(self.graph, self.editable.module, rows)
        settings = self.method.layer_refit
        refit = replace(settings, recalibrate=bool(self.method.recalibrate),
                        sequential=settings.sequential and statistics is None)  # fmt: skip
        refit(self.editable, smaller, layers, self.probes.inputs, statistics)
        return smaller

    def _next_round(self, kept: Kept) -> "PruningPlanner":
        """The planner of the next round, on the network that keeps these units."""
        original, smaller = editable_copy(self.model), editable_copy(self.model)
        rows = slicing.kept_rows(self.graph, kept)
        slicing.slice_units(smaller.module, rows, head_weights(self.graph))
        self.method.refit(original, smaller, pruned_layers(self.graph, original.module, rows), self.probes)
        graph = build_dependency_graph(smaller.module, smaller.forward, as_tensor(self.probes.inputs[:2], smaller.like))
        graph = graph.without([g.name for g in graph.groups if g.name not in self.graph.sizes], "it is not pruned")
        groups = [graph.group(g.name) for g in self.groups if g.name in graph.sizes]  # a group of one unit is left out
        method = replace(self.method, weigh=False)  # the model of this round has no description of its own to prune
        return replace(self, method=method, editable=smaller, graph=graph, groups=groups)

    def sizes(self, original: DependencyGraph, curves: Curves, ratio: float, rule: str) -> dict[str, int]:
        """The number of units that each group keeps."""
        method, names, tied = self.method, {g.name for g in self.groups}, []
        for together in configurations.tied_groups(self.model.config, self.graph):
            groups = tuple(n for n in together if n in names)
            if groups:
                size = self.graph.sizes[groups[0]]
                round_to = min(method.round_to, size)
                fewest = max(1, round(method.min_keep * original.sizes[groups[0]]))
                fewest = min(size, -(-fewest // round_to) * round_to)
                tied.append(TiedGroups(groups, size, fewest, round_to, tuple(curves[n] for n in groups)))
        if method.budget == "units" and rule != "union":
            return _same_ratio(tied, original, ratio)
        cost, full = budget_cost(self.graph, method.budget), budget_cost(original, method.budget)
        heads = (
            ", or cut attention heads too (heads=True)" if (self.graph.heads & self.graph.sizes.keys()) - names else ""
        )
        refused = f". Not cut: {self.graph.why_refused()}" if self.graph.refused else ""
        return allocate(tied, Budget(cost, ratio * full({}) / cost({}), method.budget, heads + refused), rule)


def prunable_groups(method: PruningSettings, graph: DependencyGraph, model: Model) -> list[DependencyGroup]:
    """The groups that the method's settings and the model's configuration allow to be pruned, in causal order."""
    resizable = configurations.resizable_groups(model.config, graph)
    out = []
    for g in graph.groups:
        named = not method.only or any(re.search(p, g.name) for p in method.only)
        ignored = any(re.search(p, g.name) for p in method.ignore)
        writers = sum(len(graph.shapes[r.tensor]) > 1 and r.axis == 0 and r.tensor in graph.readers for r in g.rows)
        stream = writers > 1 and len(g.readers) > 1 and g.name not in graph.heads
        fits = (method.heads or g.name not in graph.heads) and (method.streams or not stream)
        if named and not ignored and fits and (not resizable or g.name in resizable):
            out.append(g)
    if not out:
        known = ", ".join(g.name for g in graph.groups[:5])
        more = f". No other can be cut ({graph.why_refused()})" if graph.refused else ""
        raise MisuseError(f"no group of {model.name} may be pruned with these settings. Its groups are {known}; "
                          f"attention heads need heads=True{more}")  # fmt: skip
    return out


def _same_ratio(tied: Sequence[TiedGroups], original: DependencyGraph, ratio: float) -> dict[str, int]:
    """The same fraction of every group."""
    out = {}
    if all(round(ratio * original.sizes[t.groups[0]]) < t.min_units for t in tied):
        raise MisuseError(f"a keep_ratio of {ratio:.3g} is below min_keep in every group: raise one or lower the other")
    for t in tied:
        wanted = ratio * original.sizes[t.groups[0]]
        size = min(t.options, key=lambda n: (abs(n - wanted), n))
        out.update(dict.fromkeys(t.groups, size))
    if all(out[t.groups[0]] == t.size for t in tied):
        raise MisuseError(f"at a keep_ratio of {ratio:.3g} no unit would be removed: the groups are too small, or "
                          "min_keep is too large")  # fmt: skip
    return out
