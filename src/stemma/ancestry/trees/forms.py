"""Which models of a lineage are forms of one network, and which of its names stand for missing ancestors."""

from collections.abc import Mapping
from dataclasses import dataclass

from stemma.types import Edge, Lineage, RelationKind

SAME_NETWORK = frozenset({RelationKind.COPY.value, RelationKind.REFORMATTED.value, RelationKind.PERMUTED.value})
"""Relations in which two models hold the same weights in another form, so that neither is the younger one."""


@dataclass(frozen=True)
class Forms:
    """The networks of a lineage, each with the names of all its forms.

    Attributes:
        groups: Names of the forms of each network, sorted.
        number: By name, the position of its network in `groups`.
        edges: By name, the edges to other forms of the same network.
    """

    groups: tuple[tuple[str, ...], ...]
    number: Mapping[str, int]
    edges: Mapping[str, tuple[Edge, ...]]

    def steps(self, start: str, end: str) -> list[Edge]:
        """The edges that lead from one form of a network to another, in the order in which they are met."""
        came, todo = dict[str, tuple[str, Edge]](), [start]
        while todo and end not in (start, *came):
            here = todo.pop(0)
            for e in self.edges.get(here, ()):
                other = e.child if e.parent == here else e.parent
                if other != start and other not in came:
                    came[other] = here, e
                    todo.append(other)
        out = list[Edge]()
        while end != start:
            end, edge = came[end]
            out.insert(0, edge)
        return out


def forms_of(lineage: Lineage) -> Forms:
    """The networks of a lineage; missing ancestors are networks too."""
    names = {m.name for m in lineage.models} | missing_names(lineage)
    names |= {end for e in lineage.edges for end in (e.parent, e.child)}
    near: dict[str, list[Edge]] = {}
    for e in lineage.edges:
        if e.relation in SAME_NETWORK and e.parent != e.child:
            near.setdefault(e.parent, []).append(e)
            near.setdefault(e.child, []).append(e)
    groups, number = list[tuple[str, ...]](), dict[str, int]()
    for name in sorted(names):
        if name in number:
            continue
        found, todo = {name}, [name]
        while todo:
            new = {end for e in near.get(todo.pop(), ()) for end in (e.parent, e.child)} - found
            found |= new
            todo += new
        number |= dict.fromkeys(found, len(groups))
        groups.append(tuple(sorted(found)))
    return Forms(tuple(groups), number, {name: tuple(edges) for name, edges in near.items()})


def missing_names(lineage: Lineage) -> set[str]:
    """The names that edges call missing ancestors by."""
    return {str(m["name"]) for m in lineage.missing_ancestors} - {m.name for m in lineage.models}


def chance_of(edge: Edge, missing: set[str]) -> float | None:
    """The probability of an edge: certain where the change itself shows it, None at a missing ancestor."""
    if edge.confidence is None:
        return None if edge.parent in missing or edge.child in missing else 1.0
    return min(max(edge.confidence, 0.0), 1.0)
