"""Which units of which groups stay: curves of every group, weighed against each other, within a budget."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits import measured_effect
from stemma.edits.dependency_graph import configurations, slicing
from stemma.edits.dependency_graph.groups import Group, Network, couplings
from stemma.edits.editable_network import Asked, head_weights, own_network, removable
from stemma.edits.fidelity.batch_norm import by_batch
from stemma.edits.fidelity.compensation import cut_readers
from stemma.edits.fidelity.importance import reads, scored
from stemma.edits.fidelity.optimal_brain_surgeon import Curve, Eliminating
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.layer_inputs import batch_of
from stemma.edits.pruning.allocation import RULES, Budget, Bundle, allocate, cost_of
from stemma.edits.pruning.settings import PruningSettings
from stemma.errors import MisuseError
from stemma.probes import Probes

Kept = dict[str, np.ndarray]
Curves = Mapping[str, Curve]

WEIGHED, NOTICED = 256, 0.05
"""Inputs with which groups are weighed, and the local error at which that is done."""


LEAST_PROBES = 8
"""Inputs without which nothing is chosen."""


@dataclass(frozen=True, eq=False)
class Choosing:
    """A model and its groups, while it is decided what goes.

    Attributes:
        method: The pruning.
        model: The model.
        probes: Its inputs.
        asked: A copy of its network.
        net: What can be removed.
        groups: What may be.
        progress: Told how far it is.
    """

    method: PruningSettings
    model: Model
    probes: Probes
    asked: Asked
    net: Network
    groups: Sequence[Group]
    progress: Callable[[str, int, int | None], None] | None = None

    @classmethod
    def of(cls, method: PruningSettings, model: Model, probes: Probes, progress: Any = None) -> "Choosing":
        """Find the groups of a model.

        Args:
            method: The pruning.
            model: The model.
            probes: Its inputs.
            progress: Told how far it is.

        Returns:
            A decision to be taken.

        Raises:
            MisuseError: If there are too few inputs.
        """
        if len(probes) < LEAST_PROBES:
            raise MisuseError(f"{len(probes)} inputs say too little of what can go: give {LEAST_PROBES} or more, "
                              "better some hundreds")  # fmt: skip
        asked = own_network(model)
        net = removable(model, probes.inputs, asked)
        return cls(method, model, probes, asked, net, allowed(method, net, model), progress)

    def collected(self) -> Statistics:
        """Second moments of all layers that read these groups."""
        readers = list({r.weight: r for g in self.groups for r in g.readers}.values())
        a, x = self.asked, self.probes.inputs
        return self.method.collecting(a.module, a.forward, x, readers, a.like, self.progress)

    def curves(self, statistics: Statistics) -> dict[str, Curve]:
        """In which order units of each group go and what that costs, comparable between groups.

        Args:
            statistics: At level `full`.

        Returns:
            One curve per group.
        """
        found = {g.name: self._curve(g, statistics) for g in self.groups}
        if not self.method.weigh or self.method.allocation == "uniform" or len(found) < 2:
            return found
        return {g.name: self._weighed(g, found[g.name], statistics) for g in self.groups}

    def chosen(self, share: float, statistics: Statistics | None, curves: Curves | None) -> tuple[Kept, Curves]:
        """Units that stay in each group, over all rounds.

        Args:
            share: Of the budget.
            statistics: Of the whole network, collected if None.
            curves: Of the first round, worked out if None.

        Returns:
            Units that stay, and the curves of the first round.
        """
        kept: Kept = {g.name: np.arange(g.size) for g in self.groups}
        first: Curves = {}
        now = self
        for turn in range(1, self.method.rounds + 1):
            if turn > 1:
                now, statistics, curves = self._after(kept), None, None
            if curves is None:
                statistics = statistics or now.collected()
                curves = now.curves(statistics)
            first = first or curves
            stay = now._best(self.net, curves, share ** (turn / self.method.rounds), statistics)
            kept |= {g: kept[g][rows] for g, rows in stay.items()}
        return kept, first

    def _best(self, whole: Network, curves: Curves, goal: float, statistics: Statistics | None) -> Kept:
        """Which of the present units stay, by one rule, or by the one that changes the answers least."""
        how, first = self.method.allocation, self.net is whole
        single = self.method.budget == "units" or not first
        rules = [how] if how in RULES else ["dynamic"] if single else list(RULES)
        found = []
        for rule in rules:
            sizes = self._sizes(whole, curves, goal, rule)
            stay = {g: np.sort(curves[g].order[len(curves[g].order) - n :]) for g, n in sizes.items()}
            found.append((self._answered(stay, statistics) if len(rules) > 1 else 0.0, len(found), stay))
        return min(found, key=lambda f: f[:2])[2]

    def to_latency(self, statistics: Statistics | None, curves: Curves | None) -> tuple[Kept, Curves]:
        """The largest share of operations whose network runs in the wanted share of the time, as measured.

        Args:
            statistics: Of the whole network, collected if None.
            curves: Worked out if None.

        Returns:
            Units that stay, and the curves.

        Raises:
            MisuseError: If no network that may be cut out is quick enough.
        """
        found = curves if curves is not None else self.curves(statistics or self.collected())
        by_macs = replace(self, method=replace(self.method, budget="macs", rounds=1))
        whole = measured_effect.latency(self.asked, self.probes.inputs)
        low, high, best = 0.02, 1.0, None
        for _ in range(6):
            middle = (low + high) / 2
            try:
                kept, _ = by_macs.chosen(middle, statistics, found)
            except MisuseError:
                low = middle
                continue
            smaller = own_network(self.model)
            slicing.cut(smaller.module, slicing.slices(self.net, kept), head_weights(self.net))
            if measured_effect.latency(smaller, self.probes.inputs) <= self.method.share * whole:
                low, best = middle, kept
            else:
                high = middle
        if best is None:
            raise MisuseError(
                f"no network that may be cut out of {self.model.name} runs in {self.method.share:.2g} of its time"
            )
        return best, found

    def _curve(self, group: Group, statistics: Statistics) -> Curve:
        """In which order units of a group go, and the error of the layers that read them."""
        method, module = self.method, self.asked.module
        read = reads(group, module, statistics)
        order = None
        if method.score != "elimination":
            values = scored(group, module, statistics, method.score, method.seed)
            order = np.argsort(values.cpu().numpy(), kind="stable")
        return Eliminating(damping=method.damping)(read, group.size, order)

    def _weighed(self, group: Group, curve: Curve, statistics: Statistics) -> Curve:
        """The same curve in errors of the network's answers, measured by cutting and refitting this group alone."""
        noticed = np.flatnonzero(curve.errors >= NOTICED)
        at = int(curve.removed[noticed[0]]) if len(noticed) else int(curve.removed[-1])
        local = float(curve.at(at))
        if at < 1 or local <= 0:
            return curve
        seen = self._answered({group.name: np.sort(curve.order[at:])}, statistics)
        return replace(curve, errors=curve.errors * seen / local)

    def _answered(self, kept: Kept, statistics: Statistics | None) -> float:
        """Squared error of the answers where these units stay."""
        inputs = self.probes.inputs[:WEIGHED]
        smaller = self._cut(kept, statistics)
        with by_batch(smaller.module if self.method.recalibrate else torch.nn.Module()):
            answers = smaller.answers(inputs)
        return measured_effect.agreement(self.asked.answers(inputs), answers)["error"]

    def _cut(self, kept: Kept, statistics: Statistics | None) -> Asked:
        """The network with some units cut and what is left refitted."""
        smaller = own_network(self.model)
        rows = slicing.slices(self.net, kept)
        slicing.cut(smaller.module, rows, head_weights(self.net))
        cuts = cut_readers(self.net, self.asked.module, rows)
        settings = self.method.compensating
        compensating = replace(settings, recalibrate=bool(self.method.recalibrate),
                               sequential=settings.sequential and statistics is None)  # fmt: skip
        compensating(self.asked, smaller, cuts, self.probes.inputs, statistics)
        return smaller

    def _after(self, kept: Kept) -> "Choosing":
        """The decision to be taken after the earlier rounds."""
        whole, smaller = own_network(self.model), own_network(self.model)
        rows = slicing.slices(self.net, kept)
        slicing.cut(smaller.module, rows, head_weights(self.net))
        cuts = cut_readers(self.net, whole.module, rows)
        self.method.refit(whole, smaller, cuts, self.probes)
        net = couplings(smaller.module, smaller.forward, batch_of(self.probes.inputs[:2], smaller.like))
        net = net.without([g.name for g in net.groups if g.name not in self.net.sizes], "it stays whole")
        groups = [net.group(g.name) for g in self.groups if g.name in net.sizes]  # one unit alone goes no more
        method = replace(self.method, weigh=False)  # the model of this round has no description of its own to cut
        return replace(self, method=method, asked=smaller, net=net, groups=groups)

    def _sizes(self, whole: Network, curves: Curves, goal: float, how: str) -> dict[str, int]:
        """How many units of each group stay."""
        method, names, bundles = self.method, {g.name for g in self.groups}, []
        for together in configurations.alike(self.model.config, self.net):
            mine = tuple(n for n in together if n in names)
            if mine:
                size = self.net.sizes[mine[0]]
                step = min(method.multiple, size)
                least = max(1, round(method.least * whole.sizes[mine[0]]))
                least = min(size, -(-least // step) * step)
                bundles.append(Bundle(mine, size, least, step, tuple(curves[n] for n in mine)))
        if method.budget == "units":
            return _by_ratio(bundles, whole, goal)
        cost, full = cost_of(self.net, method.budget), cost_of(whole, method.budget)
        budget = Budget(cost, goal * full({}) / cost({}), method.budget)
        return allocate(bundles, budget, how)


def allowed(method: PruningSettings, net: Network, model: Model) -> list[Group]:
    """The groups that may be cut.

    Args:
        method: The pruning.
        net: What can be removed.
        model: The model.

    Returns:
        Groups, in causal order.

    Raises:
        MisuseError: If there are none.
    """
    sized = configurations.describable(model.config, net)
    out = []
    for g in net.groups:
        named = not method.only or any(re.search(p, g.name) for p in method.only)
        spared = any(re.search(p, g.name) for p in method.ignore)
        writers = sum(len(net.shapes[r.tensor]) > 1 and r.axis == 0 and r.tensor in net.readers for r in g.rows)
        stream = writers > 1 and len(g.readers) > 1 and g.name not in net.heads
        fits = (method.heads or g.name not in net.heads) and (method.streams or not stream)
        if named and not spared and fits and (not sized or g.name in sized):
            out.append(g)
    if not out:
        known = ", ".join(g.name for g in net.groups[:5])
        raise MisuseError(f"no group of {model.name} is left to cut. There are: {known} (heads only with heads=True)")
    return out


def _by_ratio(bundles: Sequence[Bundle], whole: Network, goal: float) -> dict[str, int]:
    """The same share of every group."""
    out = {}
    if all(round(goal * whole.sizes[b.groups[0]]) < b.least for b in bundles):
        raise MisuseError(f"a share of {goal:.3g} cannot be kept: of every group more has to stay (least)")
    for b in bundles:
        wanted = goal * whole.sizes[b.groups[0]]
        size = min(b.options, key=lambda n: (abs(n - wanted), n))
        out.update(dict.fromkeys(b.groups, size))
    if all(out[b.groups[0]] == b.size for b in bundles):
        raise MisuseError(f"at a share of {goal:.3g} no unit would go: the groups are too small, or least is too large")
    return out
