"""Units that can be removed from a network, each with all the rows of weights that go with it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.types import UnitGroup, UnitMember

if TYPE_CHECKING:
    import torch

    from stemma.edits.dependency_graph.tracer import Traced


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the units of a group lie on one axis of one weight.

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
    """A layer that reads the units of a group: its weight meets them.

    Attributes:
        weight: Name of its weight.
        reads: Axis of the weight that meets the units.
        kind: `linear` or `convolution`.
        normed: Whether batch norm follows directly.
    """

    weight: str
    reads: int
    kind: str
    normed: bool

    @property
    def layer(self) -> str:
        """Name of the module that holds the weight."""
        return self.weight.rpartition(".")[0]

    @property
    def bias(self) -> str:
        """Name that its bias has, if there is one."""
        return f"{self.layer}.bias" if self.layer else "bias"


@dataclass(frozen=True, eq=False)
class Group:
    """Hidden units that can be removed one by one, with everything that carries them.

    Attributes:
        name: The layer that makes them.
        size: Number of units.
        rows: Where they lie, in causal order.
        readers: Layers that read them.
    """

    name: str
    size: int
    rows: tuple[Rows, ...]
    readers: tuple[Reader, ...]

    def unit_group(self, order: int = 0) -> UnitGroup:
        """The same as the noun that kinship uses.

        Args:
            order: Causal position.

        Returns:
            The group; rows that are no regular pattern are given one member per row.
        """
        members = [m for r in self.rows for m in _members(r)]
        return UnitGroup(self.name, self.size, tuple(members), order)


@dataclass(frozen=True, eq=False)
class Network:
    """What can be removed from a network and what it costs to run.

    Attributes:
        groups: Groups that can be cut, in causal order.
        refused: Layers whose units cannot be removed, with the reason.
        shapes: Shape by weight.
        learned: Names of the parameters; the other weights are buffers.
        readers: Every layer with a weight that meets activations, by weight, in order of use.
        products: Multiplications by weight: `(weight, positions)`.
        attention: Multiplications between activations: `(number, shares)`, shares by group of the units it runs over.
    """

    groups: tuple[Group, ...]
    refused: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    learned: frozenset[str]
    readers: Mapping[str, Reader]
    products: tuple[tuple[str, float], ...]
    attention: tuple[tuple[float, Mapping[str, float]], ...] = ()

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Units by group."""
        return {g.name: g.size for g in self.groups}

    @cached_property
    def places(self) -> Mapping[str, Mapping[int, tuple[tuple[str, int], ...]]]:
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

    def without(self, names: Collection[str], why: str) -> "Network":
        """The same network with some groups that cannot be removed after all.

        Args:
            names: The groups.
            why: The reason.

        Returns:
            A new description.
        """
        kept = tuple(g for g in self.groups if g.name not in names)
        return replace(self, groups=kept, refused={**self.refused, **dict.fromkeys(names, why)})

    def group(self, name: str) -> Group:
        """The group of that name.

        Returns:
            The group.

        Raises:
            KeyError: If there is none.
        """
        return {g.name: g for g in self.groups}[name]

    def size(self, weight: str, kept: Mapping[str, int]) -> int:
        """Entries of a weight where so many units of each group are kept (all of those not named)."""
        out = 1
        for axis, length in enumerate(self.shapes[weight]):
            gone = sum(
                (self.sizes[g] - kept.get(g, self.sizes[g])) * n for g, n in self.places.get(weight, {}).get(axis, ())
            )
            out *= length - gone
        return out

    def macs(self, kept: Mapping[str, int] | None = None) -> float:
        """Multiply-accumulate operations for one input.

        Args:
            kept: Units that are kept, by group; all of those not named.

        Returns:
            The count: products with weights and attention, no biases, norms or activations.
        """
        kept = kept or {}
        own = sum(self.size(weight, kept) * positions for weight, positions in self.products)
        return own + sum(n * _share(self, shares, kept) for n, shares in self.attention)

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
        """Entries of all weights.

        Args:
            kept: As for `macs`.

        Returns:
            The count, without buffers.
        """
        return sum(self.size(weight, kept or {}) for weight in self.learned)


def _share(net: Network, shares: Mapping[str, float], kept: Mapping[str, int]) -> float:
    gone = sum(s * (1 - kept.get(g, net.sizes[g]) / net.sizes[g]) for g, s in shares.items() if g in net.sizes)
    return 1 - gone


def couple(traced: "Traced") -> Network:
    """Bring units with the same places together in groups.

    Args:
        traced: What a run showed.

    Returns:
        The groups, in the order in which their readers run.
    """
    places = _places(traced)
    order = {name: i for i, name in enumerate(dict.fromkeys(p.weight for p in traced.products if p.weight))}
    readers = {
        name: Reader(
            name,
            traced.uses[name].reads,
            traced.uses[name].kind,
            traced.uses[name].normed and not traced.uses[name].taken,
        )
        for name in order
        if traced.uses[name].kind != "depthwise"
    }
    found: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    refused: dict[str, str] = {}
    for unit, where in places.items():
        made = [t for t, a in where if t in readers and a == traced.uses[t].writes]
        if unit in traced.why:
            refused.update({t.rpartition(".")[0]: traced.why[unit] for t in made})
            continue
        read = [t for t, a in where if t in readers and a == traced.uses[t].reads]
        if made and read:
            found.setdefault(tuple((t, a, len(rows)) for (t, a), rows in where.items()), []).append(unit)
    groups = [_group(signature, units, places, readers, order) for signature, units in found.items()]
    groups.sort(key=lambda g: min(order[r.weight] for r in g.readers))
    named = _distinct(groups)
    products = tuple((p.weight, p.positions) for p in traced.products if p.weight)
    unit_of = {
        u: g.name for g, us in zip(named, _units(groups, found, places, readers, order), strict=True) for u in us
    }
    attention = tuple((p.positions, _shares(traced, p.label, unit_of)) for p in traced.products if not p.weight)
    refused |= {n.rpartition(".")[0] or n: why for n, why in traced.uncounted.items()}
    return Network(tuple(named), refused, traced.shapes, traced.learned, readers, products, attention)


def _places(traced: "Traced") -> dict[int, dict[tuple[str, int], np.ndarray]]:
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
) -> Group:  # fmt: skip
    made = [t for t, a, _ in signature if t in readers and a != readers[t].reads]
    read = [t for t, a, _ in signature if t in readers and a == readers[t].reads]
    first = min(made, key=lambda t: order[t])
    axis = next(a for t, a, _ in signature if t == first and a != readers[t].reads)
    units.sort(key=lambda u: int(places[u][first, axis][0]))
    rows = tuple(Rows(t, a, np.stack([places[u][t, a] for u in units])) for t, a, _ in signature)
    chosen = tuple(readers[t] for t in sorted(read, key=lambda t: order[t]))
    return Group(first.rpartition(".")[0] or first, len(units), rows, chosen)


def _units(
    groups: Sequence[Group], found: Mapping[Any, list[int]], places: Any, readers: Any, order: Any
) -> list[list[int]]:
    """The unit numbers of each group, in the groups' order."""
    by_place = {}
    for signature, units in found.items():
        tensor, axis, _ = signature[0]
        by_place[tensor, axis, int(places[units[0]][tensor, axis][0])] = units
    return [by_place[g.rows[0].tensor, g.rows[0].axis, int(g.rows[0].index[0, 0])] for g in groups]


def _distinct(groups: Sequence[Group]) -> list[Group]:
    """Groups with names of their own: several may start in one layer."""
    out, seen = [], dict[str, int]()
    for g in groups:
        seen[g.name] = seen.get(g.name, 0) + 1
        name = g.name if seen[g.name] == 1 else f"{g.name}#{seen[g.name]}"
        out.append(Group(name, g.size, g.rows, g.readers))
    return out


def _shares(traced: "Traced", label: Any, unit_of: Mapping[int, str]) -> dict[str, float]:
    """Which share of a product of activations runs over units of which group."""
    if label is None:
        return {}
    numbers = label.numpy().reshape(-1)
    names = [unit_of.get(int(traced.units[n]), "") if n >= 0 else "" for n in numbers]
    return {g: names.count(g) / len(names) for g in set(names) if g}


def _members(rows: Rows) -> list[UnitMember]:
    """A table of rows as regular patterns: blocks, or units next to one another."""
    index, out, start = rows.index, [], 0
    units = np.arange(len(index))
    while start < index.shape[1]:
        stop = start + 1
        while stop < index.shape[1] and bool((index[:, stop] == index[:, start] + stop - start).all()):
            stop += 1
        block, first = stop - start, int(index[0, start])
        if not np.array_equal(index[:, start], first + units * block):
            block, stop = 1, start + 1
        out.append(UnitMember(rows.tensor, rows.axis, first, 1, block))
        start = stop
    return out


def couplings(module: "torch.nn.Module", forward: Callable[["torch.Tensor"], Any], inputs: "torch.Tensor") -> Network:
    """What can be removed from a network, found by running it on a few inputs.

    Cost: one forward pass of these inputs, every intermediate kept.

    Args:
        module: Holds the weights.
        forward: Runs it.
        inputs: Two or three raw inputs `[n, …]`.

    Returns:
        The groups, and what cannot be removed and why.
    """
    from stemma.edits.dependency_graph.tracer import trace

    return couple(trace(module, forward, inputs))
