"""How probable it is that one model is reached from another along edges, each of which may be wrong.

Edges are taken to be independent of one another. Everything here works on an acyclic graph of numbered nodes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

MAX_STATES = 1024
"""Sets of reached nodes that the exact sum keeps at once; beyond, an interval is given instead."""

Parents = Mapping[int, Sequence[tuple[int, float | None]]]
"""By node, the nodes before it, each with the probability of the edge; None where an edge has no probability."""

Edges = Mapping[int, Sequence[tuple[int, float]]]
"""The same, with a probability of every edge."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The probability that a node is reached.

    Attributes:
        probability: Exact value if the edges are independent; None where it is not known.
        at_least: A bound that holds in any case.
        at_most: A bound that holds in any case.
    """

    probability: float | None
    at_least: float
    at_most: float


def order_of(parents: Parents) -> list[int] | None:
    """The nodes in an order in which every node comes after those before it; None if there is a cycle."""
    sorter = TopologicalSorter[int]()
    for node in sorted(parents):
        sorter.add(node, *sorted({before for before, _ in parents[node]}))
    try:
        return list(sorter.static_order())
    except CycleError:
        return None


def reach(source: int, parents: Parents) -> dict[int, Reached]:
    """The probability that each node is reached from a source.

    All paths to a node meet at its dominator, the last node before it that none of them avoids. The probability is that
    of the dominator times that of what lies between the two, which is summed exactly over sets of reached nodes if no
    more than `MAX_STATES` of them are kept at once. Otherwise there are two bounds: the best single path from below,
    and from above the product over the edges into each node, which can only be too large, because reached nodes are
    positively associated. An edge without a probability is left out for the lower bound and certain for the upper one.

    Args:
        source: A node, which is reached with certainty.
        parents: The edges, by the node that they lead to.

    Returns:
        Every node that some path reaches, the source included. In a graph with a cycle nothing but that is known.

    Source: Harris 1960 (positive association of increasing events); Valiant 1979 (the exact value is hard in general).
    """
    below = _reachable(source, parents)
    inside = {v: [(u, p) for u, p in parents.get(v, ()) if u in below and v != source] for v in below}
    order = order_of(inside)
    if order is None:
        return {v: Reached(1.0, 1.0, 1.0) if v == source else Reached(None, 0.0, 1.0) for v in below}
    rank = {v: i for i, v in enumerate(order)}
    dominators, low, high = {source: source}, {source: 1.0}, {source: 1.0}
    for v in (v for v in order if v != source):
        dominators[v] = d = _common({u for u, _ in inside[v]}, dominators, rank)
        least, most = _between(d, v, inside, rank)
        low[v], high[v] = low[d] * least, high[d] * most
    return {v: Reached(low[v] if low[v] == high[v] else None, low[v], high[v]) for v in order}


def _common(nodes: set[int], dominators: Mapping[int, int], rank: Mapping[int, int]) -> int:
    """The last node that is one of each node's dominators, or the node itself."""
    left = set(nodes)
    while len(left) > 1:
        latest = max(left, key=rank.__getitem__)
        left.remove(latest)
        left.add(dominators[latest])
    return left.pop()


def _between(start: int, end: int, inside: Parents, rank: Mapping[int, int]) -> tuple[float, float]:
    """Bounds of the probability that `end` is reached from its dominator: equal where it is known."""
    needed, todo = {start, end}, [end]
    while todo:
        new = {u for u, _ in inside[todo.pop()]} - needed
        needed |= new
        todo += new
    nodes = sorted(needed, key=rank.__getitem__)
    known = all(p is not None for v in nodes[1:] for _, p in inside[v])
    edges = [{v: [(u, unknown if p is None else p) for u, p in inside[v]] for v in nodes[1:]} for unknown in (0.0, 1.0)]
    least = _exact(nodes, edges[0])
    most = least if known else _exact(nodes, edges[1])
    return (_best_path(nodes, edges[0]) if least is None else least), (
        _at_most(nodes, edges[1]) if most is None else most
    )


def _best_path(nodes: Sequence[int], edges: Edges) -> float:
    """The probability of the best path from the first node to the last one: a lower bound."""
    best = {nodes[0]: 1.0}
    for v in nodes[1:]:
        best[v] = max(best[u] * p for u, p in edges[v])
    return best[nodes[-1]]


def _at_most(nodes: Sequence[int], edges: Edges) -> float:
    """An upper bound of the probability that the last node is reached."""
    bound = {nodes[0]: 1.0}
    for v in nodes[1:]:
        bound[v] = _any_of(bound[u] * p for u, p in edges[v])
    return bound[nodes[-1]]


def _any_of(chances: Iterable[float]) -> float:
    """The probability that one of several independent events happens."""
    return 1.0 - math.prod(1.0 - chance for chance in chances)


def _reachable(source: int, parents: Parents) -> set[int]:
    after: dict[int, list[int]] = {}
    for v, into in parents.items():
        for u, _ in into:
            after.setdefault(u, []).append(v)
    seen, todo = {source}, [source]
    while todo:
        new = [v for v in after.get(todo.pop(), ()) if v not in seen]
        seen.update(new)
        todo += new
    return seen


def _exact(nodes: Sequence[int], edges: Edges) -> float | None:
    """The probability that the last node is reached from the first one; None where it takes too many terms.

    Nodes are taken in order. Whether one is reached depends on nothing but those before it, so that what is kept of
    the past is the set of reached nodes that have later nodes after them.

    Returns:
        The probability, or None.
    """
    last = {u: i for i, v in enumerate(nodes[1:], 1) for u, _ in edges[v]}
    states = {frozenset({nodes[0]}): 1.0}
    for i, v in enumerate(nodes[1:], 1):
        following: dict[frozenset[int], float] = {}
        for reached, weight in states.items():
            chance = _any_of(p for u, p in edges[v] if u in reached)
            kept = frozenset(u for u in reached if last.get(u, -1) > i)
            for state, share in ((kept | {v}, chance), (kept, 1.0 - chance)):
                if share > 0.0:
                    following[state] = following.get(state, 0.0) + weight * share
        if len(following) > MAX_STATES:
            return None
        states = following
    return min(sum(weight for reached, weight in states.items() if nodes[-1] in reached), 1.0)
