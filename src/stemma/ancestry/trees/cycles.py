"""Cycles among the edges of a lineage, which are removed, and ancestry along edges."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from stemma.types import Edge


def remove_cycles(edges: Sequence[Edge]) -> tuple[list[Edge], list[Edge]]:
    """Edges without cycles, and the removed ones: of every cycle the edge with the least confidence."""
    kept, dropped = list(edges), list[Edge]()
    while True:
        order = TopologicalSorter[str]()
        for e in kept:
            order.add(e.child, e.parent)
        try:
            order.prepare()
        except CycleError as error:
            cycle = error.args[1]
            steps = set(pairwise(cycle))
            cycle_edges = [e for e in kept if (e.parent, e.child) in steps or (e.child, e.parent) in steps]
            weakest = min(cycle_edges, key=lambda e: 2.0 if e.confidence is None else e.confidence)
            kept.remove(weakest)
            dropped.append(weakest)
        else:
            return kept, dropped


def is_ancestor(edges: Sequence[Edge], ancestor: str, model: str) -> bool:
    """Whether a model descends from `ancestor` along the edges; True for a model and itself."""
    parents: dict[str, list[str]] = {}
    for e in edges:
        parents.setdefault(e.child, []).append(e.parent)
    pending, seen = [model], set()
    while pending:
        current = pending.pop()
        if current == ancestor:
            return True
        seen.add(current)
        pending += [p for p in parents.get(current, ()) if p not in seen]
    return False
