"""Dependency groups: units that can be removed from a network, each with all rows of weights that belong to it.

Prior art of the dependency graph: DepGraph (Fang et al., CVPR 2023; the tool Torch-Pruning), which derives it from the
autograd graph and rules for kinds of layers; here it follows from labels of rows that meet while the network runs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from stemma.edits.dependency_graph.tracer import TraceResult


UNREAD = "no layer with a weight of its own reads it"
"""Why units cannot be removed that enter a computation whose weights could not be refitted."""


@dataclass(frozen=True, eq=False)
class WeightRows:
    """The rows of a group's units on one axis of one weight.

    Attributes:
        tensor: The weight.
        axis: Its axis.
        index: Rows of each unit, `[units, rows]`.
    """

    tensor: str
    axis: int
    index: np.ndarray


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units of a group: its weight multiplies them.

    Attributes:
        weight: Name of its weight.
        input_axis: Axis of the weight that is summed over.
        kind: `linear`, `convolution`, or `recurrent` where the inputs are the state inside a recurrent layer, which
            cannot be collected: units are cut there without a refit.
        normed: Whether batch norm follows directly.
    """

    weight: str
    input_axis: int
    kind: str
    normed: bool

    @property
    def layer(self) -> str:
        """Name of the module that holds the weight."""
        return self.weight.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """Name of the weight in that module: `weight`, or that of one gate matrix of a recurrent layer."""
        return self.weight.rpartition(".")[2]

    @property
    def bias_attribute(self) -> str:
        """Name of the bias in that module."""
        return self.attribute.replace("weight", "bias", 1)

    @property
    def bias(self) -> str:
        """Name of its bias, if there is one."""
        return f"{self.layer}.{self.bias_attribute}" if self.layer else self.bias_attribute


@dataclass(frozen=True, eq=False)
class DependencyGroup:
    """Hidden units that can be removed one by one, with all weights that they occupy.

    Attributes:
        name: The layer that writes them.
        size: Number of units.
        rows: Their rows, in causal order.
        readers: Layers that read them.
    """

    name: str
    size: int
    rows: tuple[WeightRows, ...]
    readers: tuple[Reader, ...]


@dataclass(frozen=True, eq=False)
class DependencyGraph:
    """The dependency groups of a network and the cost of running it.

    Attributes:
        groups: Groups that can be pruned, in causal order.
        refused: Layers whose units cannot be removed, with the reason.
        shapes: Shape by weight.
        parameter_names: Names of the parameters; the other weights are buffers.
        readers: Every layer whose weight multiplies activations, by weight, in order of use.
        matrix_products: Multiplications by weight: `(weight, positions)`.
        attention: Multiplications between activations: `(number, shares)`, shares by group of the units it runs over.
    """

    groups: tuple[DependencyGroup, ...]
    refused: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    parameter_names: frozenset[str]
    readers: Mapping[str, Reader]
    matrix_products: tuple[tuple[str, float], ...]
    attention: tuple[tuple[float, Mapping[str, float]], ...] = ()

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Units by group."""
        return {g.name: g.size for g in self.groups}

    @cached_property
    def groups_on_axis(self) -> Mapping[str, Mapping[int, tuple[tuple[str, int], ...]]]:
        """By weight and axis: the groups on it and how many rows each of their units has."""
        out: dict[str, dict[int, tuple[tuple[str, int], ...]]] = {}
        for g in self.groups:
            for r in g.rows:
                here = out.setdefault(r.tensor, {})
                here[r.axis] = (*here.get(r.axis, ()), (g.name, r.index.shape[1]))
        return out

    @cached_property
    def heads(self) -> frozenset[str]:
        """Groups whose units are attention heads."""
        return frozenset(g for _, shares in self.attention for g in shares)

    def without(self, names: Collection[str], why: str) -> "DependencyGraph":
        """The same graph with some groups moved to `refused`."""
        kept = tuple(g for g in self.groups if g.name not in names)
        return replace(self, groups=kept, refused={**self.refused, **dict.fromkeys(names, why)})

    def with_groups(self, groups: Sequence[DependencyGroup], instead_of: Collection[str]) -> "DependencyGraph":
        """The same graph with some groups in place of others, and no longer refused."""
        others = [g for g in self.groups if g.name not in instead_of]
        order = {name: i for i, name in enumerate(self.readers)}
        both = sorted([*others, *groups], key=lambda g: min(order[r.weight] for r in g.readers))
        refused = {n: why for n, why in self.refused.items() if n not in instead_of}
        return replace(self, groups=tuple(both), refused=refused)

    def telling_refusals(self) -> dict[str, str]:
        """The refused layers with their reasons: first what can be changed, last what every network has."""
        from stemma.edits.dependency_graph.operation_rules import STATISTIC
        from stemma.edits.dependency_graph.tracer import COMPUTED, OUTPUT

        order = {COMPUTED: 0, STATISTIC: 2, OUTPUT: 2}
        return dict(sorted(self.refused.items(), key=lambda item: order.get(item[1], 1)))

    def why_refused(self) -> str:
        """Up to three reasons why layers are not cut, each with a layer."""
        layers: dict[str, list[str]] = {}
        for name, why in self.telling_refusals().items():
            layers.setdefault(why, []).append(name)
        more = {why: f" and {len(names) - 1} more" if len(names) > 1 else "" for why, names in layers.items()}
        return "; ".join(f"{names[0]}{more[why]}: {why}" for why, names in list(layers.items())[:3])

    def group(self, name: str) -> DependencyGroup:
        """The group of that name."""
        return {g.name: g for g in self.groups}[name]

    def size(self, weight: str, kept: Mapping[str, int]) -> int:
        """Entries of a weight where so many units of each group are kept (all of groups not named)."""
        out = 1
        for axis, length in enumerate(self.shapes[weight]):
            removed = sum(
                (self.sizes[g] - kept.get(g, self.sizes[g])) * n
                for g, n in self.groups_on_axis.get(weight, {}).get(axis, ())
            )
            out *= length - removed
        return out

    def macs(self, kept: Mapping[str, int] | None = None) -> float:
        """Multiply-accumulate operations per input: products with weights and attention, no biases or norms."""
        kept = kept or {}
        own = sum(self.size(weight, kept) * positions for weight, positions in self.matrix_products)
        return own + sum(n * _share(self, shares, kept) for n, shares in self.attention)

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
        """Entries of all parameters, without buffers."""
        return sum(self.size(weight, kept or {}) for weight in self.parameter_names)


def _share(graph: DependencyGraph, shares: Mapping[str, float], kept: Mapping[str, int]) -> float:
    removed = sum(s * (1 - kept.get(g, graph.sizes[g]) / graph.sizes[g]) for g, s in shares.items() if g in graph.sizes)
    return 1 - removed


def tied_within(group: DependencyGroup, parts: int) -> DependencyGroup | None:
    """The group with its units tied across equal parts, as code that splits or shuffles channels needs it."""
    # Unit k then is the k-th unit of every part.
    if group.size % parts or group.size // parts < 2:
        return None
    size = group.size // parts
    rows = tuple(
        replace(r, index=r.index.reshape(parts, size, -1).transpose(1, 0, 2).reshape(size, -1)) for r in group.rows
    )
    return replace(group, size=size, rows=rows)


def tied_together(groups: Sequence[DependencyGroup]) -> DependencyGroup:
    """One group of several of equal size: the k-th units of all of them go together."""
    index: dict[tuple[str, int], list[np.ndarray]] = {}
    for r in (r for g in groups for r in g.rows):
        index.setdefault((r.tensor, r.axis), []).append(r.index)
    rows = tuple(WeightRows(t, a, np.concatenate(found, 1)) for (t, a), found in index.items())
    readers = tuple({r.weight: r for g in groups for r in g.readers}.values())
    return DependencyGroup(groups[0].name, groups[0].size, rows, readers)


def graph_of_trace(traced: "TraceResult") -> DependencyGraph:
    """The dependency graph of a traced run: units with the same rows form a group, in the order of their readers."""
    places = _places(traced)
    order = {name: i for i, name in enumerate(dict.fromkeys(p.weight for p in traced.matrix_products if p.weight))}
    uses = {name: traced.uses[name] for name in order if traced.uses[name].kind != "grouped"}
    readers = {n: Reader(n, u.input_axis, u.kind, u.normed and not u.used_elsewhere) for n, u in uses.items()}
    units_by_rows: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    refused: dict[str, str] = {}
    for unit, where in places.items():
        made = [t for t, a in where if t in readers and a == uses[t].output_axis]
        if unit in traced.why:
            refused.update({t.rpartition(".")[0]: traced.why[unit] for t in made})
            continue
        read = [t for t, a in where if t in readers and a == uses[t].input_axis]
        if made and not read:
            refused.update({t.rpartition(".")[0]: UNREAD for t in made})
        if made and read:
            units_by_rows.setdefault(tuple((t, a, len(rows)) for (t, a), rows in where.items()), []).append(unit)
    pairs = [(_group(rows, units, places, readers, order), units) for rows, units in units_by_rows.items()]
    pairs.sort(key=lambda pair: min(order[r.weight] for r in pair[0].readers))
    groups = _distinct([group for group, _ in pairs])
    unit_of = {u: g.name for g, (_, units) in zip(groups, pairs, strict=True) for u in units}
    matrix_products = tuple((p.weight, p.positions) for p in traced.matrix_products if p.weight)
    attention = tuple((p.positions, _shares(traced, p.label, unit_of)) for p in traced.matrix_products if not p.weight)
    refused |= {n.rpartition(".")[0] or n: why for n, why in traced.uncounted.items()}
    return DependencyGraph(
        tuple(groups), refused, traced.shapes, traced.parameter_names, readers, matrix_products, attention
    )


def _places(traced: "TraceResult") -> dict[int, dict[tuple[str, int], np.ndarray]]:
    """Rows of every unit, by weight and axis."""
    out: dict[int, dict[tuple[str, int], np.ndarray]] = {}
    for name, axes in traced.axes.items():
        for axis, units in enumerate(axes):
            if len(units) < 2:
                continue
            order = np.argsort(units, kind="stable")
            values, starts = np.unique(units[order], return_index=True)
            for unit, rows in zip(values, np.split(order, starts[1:]), strict=True):
                out.setdefault(int(unit), {})[name, axis] = rows
    return out


def _group(
    signature: tuple[tuple[str, int, int], ...], units: list[int],
    places: Mapping[int, Mapping[tuple[str, int], np.ndarray]], readers: Mapping[str, Reader], order: Mapping[str, int],
) -> DependencyGroup:  # fmt: skip
    made = [t for t, a, _ in signature if t in readers and a != readers[t].input_axis]
    read = [t for t, a, _ in signature if t in readers and a == readers[t].input_axis]
    first = min(made, key=lambda t: order[t])
    axis = next(a for t, a, _ in signature if t == first and a != readers[t].input_axis)
    units.sort(key=lambda u: int(places[u][first, axis][0]))
    rows = tuple(WeightRows(t, a, np.stack([places[u][t, a] for u in units])) for t, a, _ in signature)
    chosen = tuple(readers[t] for t in sorted(read, key=lambda t: order[t]))
    return DependencyGroup(first.rpartition(".")[0] or first, len(units), rows, chosen)


def _distinct(groups: Sequence[DependencyGroup]) -> list[DependencyGroup]:
    """Groups with distinct names: several may start in one layer."""
    out, seen = [], dict[str, int]()
    for g in groups:
        seen[g.name] = seen.get(g.name, 0) + 1
        name = g.name if seen[g.name] == 1 else f"{g.name}#{seen[g.name]}"
        out.append(DependencyGroup(name, g.size, g.rows, g.readers))
    return out


def _shares(traced: "TraceResult", label: Any, unit_of: Mapping[int, str]) -> dict[str, float]:
    """By group, the fraction of a product of activations that runs over its units."""
    if label is None:
        return {}
    numbers = label.numpy().reshape(-1)
    names = [unit_of.get(int(traced.units[n]), "") if n >= 0 else "" for n in numbers]
    return {g: names.count(g) / len(names) for g in set(names) if g}


def build_dependency_graph(
    module: "torch.nn.Module", forward: Callable[["torch.Tensor"], Any], inputs: "torch.Tensor"
) -> DependencyGraph:
    """Run a network on two or three raw inputs `[n, …]` and build its dependency graph."""
    # Cost: one forward pass of these inputs, with every intermediate kept.
    from stemma.edits.dependency_graph.tracer import trace

    return graph_of_trace(trace(module, forward, inputs))
