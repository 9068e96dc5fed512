"""How probable it is that one model is reached from another along edges, each of which may be wrong.

Edges are taken to be independent of one another. Everything here works on an acyclic graph of numbered nodes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

MAX_STATES = 4096
"""Sets of reached nodes that the exact sum keeps at once; beyond, an interval is given instead."""

Parents = Mapping[int, Sequence[tuple[int, float | None]]]
"""By node, the nodes before it, each with the probability of the edge; None where an edge has no probability."""


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

    The value is exact where a node has one path, and where the sum over the sets of reached nodes keeps no more than
    `MAX_STATES` of them. Otherwise there are two bounds: the best single path from below, and from above the product
    over the edges into each node, which can only be too large, because reached nodes are positively associated.

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
    certain = {v: [edge for edge in into if edge[1] is not None] for v, into in inside.items()}
    rank = {v: i for i, v in enumerate(order)}
    least, most, single, known = {source: 1.0}, {source: 1.0}, {source: True}, {source: True}
    out = {source: Reached(1.0, 1.0, 1.0)}
    for v in (v for v in order if v != source):
        into = inside[v]
        least[v] = max(least[u] * (0.0 if p is None else p) for u, p in into)
        most[v] = _any_of(most[u] * (1.0 if p is None else p) for u, p in into)
        single[v] = len(into) == 1 and single[into[0][0]]
        known[v] = all(p is not None and known[u] for u, p in into)
        exact = most[v] if single[v] or least[v] == 1.0 else _exact(source, v, inside, rank)
        if known[v] and exact is not None:
            out[v] = Reached(exact, exact, exact)
            continue
        floor = None if single[v] or known[v] else _exact(source, v, certain, rank)
        out[v] = Reached(None, least[v] if floor is None else floor, most[v] if exact is None else exact)
    return out


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


def _exact(source: int, target: int, inside: Parents, rank: Mapping[int, int]) -> float | None:
    """The probability that `target` is reached, by the sum over sets of reached nodes; None where they are too many.

    Nodes are taken in order. Whether one is reached depends on nothing but those before it, so that what is kept of
    the past is the set of reached nodes that have later nodes after them. An edge without a probability is certain.

    Returns:
        The probability, or None.
    """
    needed = _before(target, inside)
    if source not in needed:
        return 0.0
    nodes = sorted(needed, key=rank.__getitem__)
    last = {u: i for i, v in enumerate(nodes) for u, _ in inside[v]}
    states = {frozenset[int](): 1.0}
    for i, v in enumerate(nodes):
        following: dict[frozenset[int], float] = {}
        for reached, weight in states.items():
            into = [1.0 if p is None else p for u, p in inside[v] if u in reached]
            chance = 1.0 if v == source else _any_of(into)
            kept = frozenset(u for u in reached if last.get(u, -1) > i)
            for state, share in ((kept | {v}, chance), (kept, 1.0 - chance)):
                if share > 0.0:
                    following[state] = following.get(state, 0.0) + weight * share
        if len(following) > MAX_STATES:
            return None
        states = following
    return min(sum(weight for reached, weight in states.items() if target in reached), 1.0)


def _before(target: int, inside: Parents) -> set[int]:
    seen, todo = {target}, [target]
    while todo:
        new = [u for u, _ in inside.get(todo.pop(), ()) if u not in seen]
        seen.update(new)
        todo += new
    return seen
