"""No model descends from itself: circles among the edges of a lineage, and who descends from whom."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from stemma.types import Edge


def without_circles(edges: Sequence[Edge]) -> tuple[list[Edge], list[Edge]]:
    """Edges by which no model descends from itself, however parts of a tree were joined.

    Args:
        edges: Of a lineage.

    Returns:
        Those that are kept, and those that were left out: of every circle the least sure edge, those without a
        confidence last.
    """
    kept, dropped = list(edges), list[Edge]()
    while True:
        order = TopologicalSorter[str]()
        for e in kept:
            order.add(e.child, e.parent)
        try:
            order.prepare()
        except CycleError as found:
            circle = found.args[1]
            steps = set(pairwise(circle))
            inside = [e for e in kept if (e.parent, e.child) in steps or (e.child, e.parent) in steps]
            weakest = min(inside, key=lambda e: 2.0 if e.confidence is None else e.confidence)
            kept.remove(weakest)
            dropped.append(weakest)
        else:
            return kept, dropped


def leads(edges: Sequence[Edge], ancestor: str, model: str) -> bool:
    """Whether a model descends from another.

    Args:
        edges: Of a lineage.
        ancestor: The other.
        model: The model.

    Returns:
        True also for a model and itself.
    """
    above: dict[str, list[str]] = {}
    for e in edges:
        above.setdefault(e.child, []).append(e.parent)
    todo, seen = [model], set()
    while todo:
        v = todo.pop()
        if v == ancestor:
            return True
        seen.add(v)
        todo += [p for p in above.get(v, ()) if p not in seen]
    return False
