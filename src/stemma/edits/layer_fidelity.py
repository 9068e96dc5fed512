"""How few units of each group reproduce what the layers that read them compute: (k, eta)-HiFi sets, layer by layer.

A set of k units is a (k, eta)-HiFi set of a layer if the layer's outputs, recomputed from these units alone with
refitted weights, keep the fraction eta of their mean square (Kashyap et al., "ModHiFi", NeurIPS 2025, section 3). The
smallest such set is hard to find; two are given here: by backward elimination, and the paper's NAIVE one, the units
with the largest singleton fidelity. For a convolution whole kernels are refitted, where the paper fits one factor for
each; for a layer with one weight per input the two are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph.dependency_groups import DependencyGroup
from stemma.edits.fidelity.importance import importance_scores, reader_matrices
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve, OptimalBrainSurgeon
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.fidelity.subset_fidelity import contributions, singleton_fidelity
from stemma.edits.pruning.planner import PruningPlanner
from stemma.edits.pruning.settings import Progress, PruningSettings
from stemma.errors import MisuseError
from stemma.fingerprints.evaluation import checked_network
from stemma.probes import Probes
from stemma.types.edits import GroupEffect, LayerFidelity

LEVELS = (0.8, 0.9, 0.99)
"""Fidelities for which sets are sought where none are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """HiFi sets of all layers.

    Attributes:
        levels: Fidelities that sets were sought for, ascending.
        layers: One entry for each layer and group that it reads, in causal order.
        effects: One entry for each group.
        refused: Groups that cannot be cut, with the reason.
    """

    levels: tuple[float, ...]
    layers: tuple[LayerFidelity, ...]
    effects: tuple[GroupEffect, ...]
    refused: dict[str, str]

    def __str__(self) -> str:
        """The layers that need the smallest share of their units, in a few lines."""
        first = sorted(self.layers, key=lambda x: x.sizes[0] / x.units)[:4]
        rows = [f"  {x.layer}: {x.sizes[0]} of {x.units} units" for x in first]
        more = [f"  … and {len(self.layers) - 4} more layers"] if len(self.layers) > 4 else []
        return "\n".join([f"fidelity {self.levels[0]:g} is reached with", *rows, *more])


def layer_fidelity(
    model: Model, probes: Probes, levels: Sequence[float] = LEVELS, progress: Progress | None = None
) -> Fidelity:
    """Find HiFi sets of every layer of a network that reads units which could be removed.

    Cost: one pass over the probes, one matrix inversion for each layer, and for each group one pass over at most 256
    probes through the network without the rest of its units.

    Args:
        model: The model; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        levels: Fidelities between 0 and 1.
        progress: Called with what happens, how much is done and of how much.

    Returns:
        The sets of every layer, and what they do to the network's outputs.

    Raises:
        MisuseError: If a level is not between 0 and 1, or no unit of the model could be removed.
    """
    asked = tuple(sorted(set(levels)))
    if not asked or not all(0 < level < 1 for level in asked):
        raise MisuseError(f"a fidelity lies between 0 and 1, not {', '.join(map(str, levels)) or 'nothing'}")
    checked_network(model, probes)
    method = PruningSettings(heads=True, sequential=False, recalibrate=False)
    planner = PruningPlanner.for_model(method, model, probes, progress)
    statistics = planner.collect_statistics()
    layers, effects = list[LayerFidelity](), list[GroupEffect]()
    for done, group in enumerate(planner.groups):
        if progress is not None:
            progress("finding sets of high fidelity", done, len(planner.groups))
        layers += _of_group(planner, group, statistics, asked)
        effects.append(_effect(planner, group, statistics, asked[0]))
    return Fidelity(
        levels=asked, layers=tuple(layers), effects=tuple(effects), refused=planner.graph.telling_refusals()
    )


def _of_group(
    planner: PruningPlanner, group: DependencyGroup, statistics: Statistics, levels: Sequence[float]
) -> list[LayerFidelity]:
    module, out = planner.editable.module, []
    surgeon = OptimalBrainSurgeon(steps=group.size, damping=planner.method.damping)
    for matrices in reader_matrices(group, module, statistics):
        singletons = singleton_fidelity(*contributions(matrices.weights, matrices.moment, matrices.index)).mean(0)
        alone = replace(group, readers=(matrices.reader,))
        naive = importance_scores(alone, module, statistics, "fidelity").cpu().numpy()
        found = surgeon([matrices], group.size)
        by_score = surgeon([matrices], group.size, np.argsort(naive, kind="stable"))
        out.append(
            LayerFidelity(
                layer=matrices.reader.layer,
                group=group.name,
                units=group.size,
                best_singleton=float(singletons.max()),
                sizes=tuple(_smallest(found, group.size, level) for level in levels),
                naive_sizes=tuple(_smallest(by_score, group.size, level) for level in levels),
            )
        )
    return out


def _smallest(curve: ErrorCurve, units: int, level: float) -> int:
    """The fewest units at which the error is at most what the level leaves."""
    return int(units - curve.removed[curve.errors <= 1 - level].max())


def _effect(planner: PruningPlanner, group: DependencyGroup, statistics: Statistics, level: float) -> GroupEffect:
    readers = [r for r in reader_matrices(group, planner.editable.module, statistics) if r.energy > 0]
    surgeon = OptimalBrainSurgeon(steps=group.size, damping=planner.method.damping)
    order = surgeon(readers, group.size).order
    curves = [surgeon([r], group.size, order) for r in readers]
    kept = max((_smallest(c, group.size, level) for c in curves), default=1)
    local = max((float(c.at(group.size - kept)) for c in curves), default=0.0)
    output = planner.output_error({group.name: np.sort(order[group.size - kept :])}, statistics)
    return GroupEffect(group=group.name, kept=kept, local_error=local, output_error=output)
