"""Which way the edges of a tree run: the tree is directed as a whole, from what is known of single pairs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.lineage.additive_tree import AdditiveTree
from stemma.lineage.arborescence import minimum_forest
from stemma.lineage.direction import BACKWARD, FORWARD
from stemma.lineage.direction import Direction as PairModel
from stemma.lineage.distances import ByNorm, Distances
from stemma.lineage.geometry import Geometry

Odds = dict[tuple[int, int], float]
"""Log-odds that an edge runs from the first node to the second, given that the two are adjacent."""

Direction = Callable[[int, int], tuple[float, float]]
"""Of two models: log-odds that the first is an ancestor of the second, and the second of the first; both are below zero
for siblings."""


@dataclass(frozen=True, eq=False)
class ByWeights:
    """What weights show of two models, as a direction: mostly what a trained model says, and the rule of norms.

    The rule holds for architectures that the model was not trained on, too.

    Attributes:
        model: Asked about pairs.
        geometry: Of the family.
        norms: The rule.
        share: How much the rule counts. Chosen on the selection families of benchmarks/forest.py.
    """

    model: PairModel
    geometry: Geometry
    norms: ByNorm
    share: float = 0.25
    _known: Odds = field(default_factory=dict)

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """See `Direction`.

        Returns:
            Both log-odds.
        """
        if (a, b) not in self._known:
            p = self.model.probabilities(self.geometry, [(a, b)])[0]
            rule = self.norms(a, b)
            for pair, chance, norm in (((a, b), p[FORWARD], rule[0]), ((b, a), p[BACKWARD], rule[1])):
                odds = float(np.log(max(chance, TINY) / max(1 - chance, TINY)))
                self._known[pair] = (1 - self.share) * odds + self.share * norm
        return self._known[a, b], self._known[b, a]


SURE = 10.0
"""Log-odds beyond which no more is believed of what weights show."""

TINY = 1e-9

DETOUR = 4.0
"""Log-odds that an edge needs, and loses, for not being one of the tree."""

AHEAD = 2.0
"""Log-odds by which the parent of a missing ancestor looks more like an ancestor than the ancestor's children do."""

NEITHER = -1.0
"""Log-odds below which a model is not taken for an ancestor."""

NEVER = 40.0
"""Log-odds of what a rule excludes."""


def odds_of(
    tree: AdditiveTree, rows: Sequence[int], distances: Distances, direction: Direction,
    leaves: Collection[int] = (), firsts: Collection[int] = (),
) -> Odds:  # fmt: skip
    """Log-odds of both directions of every edge of a tree.

    Args:
        tree: Over the models in `rows`.
        rows: Their positions in the family.
        distances: Of the family.
        direction: Of two models, by their positions in the family.
        leaves: Positions of models that have no children.
        firsts: Positions of models that have no parent in this tree.

    Returns:
        By (parent, child), nodes of the tree.
    """
    out: Odds = {}
    around, norms = tree.neighbours(), _norms(tree, distances.of(list(rows)))
    for (i, j), length in tree.edges.items():
        if max(i, j) < tree.observed:
            out[i, j], out[j, i] = direction(rows[i], rows[j])
        elif min(i, j) < tree.observed and not isinstance(direction, ByNorm):
            up = _above_missing(around, i, j, tree.observed, lambda a, b: direction(rows[a], rows[b])[0])
            out[i, j], out[j, i] = up - AHEAD, AHEAD - up
        else:
            out[i, j], out[j, i] = ByNorm(distances).odds(norms[i], norms[j], length)
    for u, v in _detours(tree, out):
        around_it = direction(rows[u], rows[v])[0]
        if around_it > DETOUR:
            out[u, v] = around_it - DETOUR
    for a, b in out:
        leaf = a < tree.observed and rows[a] in leaves
        first = b < tree.observed and rows[b] in firsts
        out[a, b] = -NEVER if leaf or first else float(np.clip(out[a, b], -SURE, SURE))
    return out


def ancestry(direction: Direction, a: int, b: int) -> float | None:
    """Log-odds that one model is an ancestor of another; the rule of norms is too weak to say so.

    Returns:
        The odds, None where only norms are known.
    """
    return None if isinstance(direction, ByNorm) else direction(a, b)[0]


def _detours(tree: AdditiveTree, odds: Odds) -> list[tuple[int, int]]:
    """Edges past a neighbour that looks like a sibling: to the neighbour's other neighbours among the models.

    Two models that learnt much alike are nearer to each other than to their parent.

    Returns:
        Pairs (parent, child).
    """
    around, out = tree.neighbours(), []
    for (m, v), forward in sorted(odds.items()):
        if max(m, v) < tree.observed and max(forward, odds[v, m]) < NEITHER:
            out += [(u, v) for u in around[m] if u != v and u < tree.observed]
    return out


def _above_missing(
    around: Mapping[int, list[int]], model: int, missing: int, observed: int, ancestor: Callable[[int, int], float]
) -> float:
    """How much more a model looks like an ancestor of what lies beyond a missing one than its other neighbours do.

    The parent of a missing ancestor is an ancestor of all its children; the children are none of one another.

    Returns:
        Log-odds.
    """
    sides = {v: _first_model(around, missing, v, observed) for v in around[missing]}
    looks = {v: float(np.mean([ancestor(m, w) for u, w in sides.items() if u != v])) for v, m in sides.items()}
    return looks[model] - float(np.median([x for v, x in looks.items() if v != model]))


def directed(
    tree: AdditiveTree, odds: Mapping[tuple[int, int], float], refusal: float
) -> tuple[dict[int, int | None], dict[int, float]]:
    """Direct the edges of a tree as a whole.

    Args:
        tree: An undirected tree.
        odds: Log-odds by (parent, child), both ways for each edge.
        refusal: Cost of a root.

    Returns:
        The parent of each node, None for a root; and for each node that has one the probability that the edge runs
        this way, over all places where its tree could have its root.
    """
    nodes = sorted({v for e in tree.edges for v in e} | set(range(tree.observed)))
    at = {v: i for i, v in enumerate(nodes)}
    pairs = sorted(odds)  # of equal odds the lower number first
    sources, targets = (np.array([at[p[k]] for p in pairs], int) for k in (0, 1))
    chosen = minimum_forest(len(nodes), sources, targets, np.array([-odds[p] for p in pairs]), refusal)
    parents = {v: None if chosen[at[v]] < 0 else pairs[chosen[at[v]]][0] for v in nodes}
    return parents, _certainty(parents, odds)


def _certainty(parents: Mapping[int, int | None], odds: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """For each edge the share of all rootings of its tree that direct it so, each weighted by its likelihood."""
    children: dict[int | None, list[int]] = {}
    for v, p in parents.items():
        children.setdefault(p, []).append(v)
    out = {}
    for root in children.get(None, ()):
        order, weight = [root], {root: 0.0}
        for v in order:
            for w in children.get(v, ()):
                weight[w] = weight[v] - odds[v, w] + odds.get((w, v), -SURE)  # the root moves across this edge
                order.append(w)
        top = max(weight.values())
        below = {v: float(np.exp(weight[v] - top)) for v in order}
        total = sum(below.values())
        for v in reversed(order):
            parent = parents[v]
            if parent is not None:
                out[v] = 1 - below[v] / total
                below[parent] += below[v]
    return out


def _norms(tree: AdditiveTree, g: Distances) -> dict[int, float]:
    """Squared norms of all nodes: that of a missing node is the inner product of two models on different sides of it.

    Returns:
        By node.
    """
    around = tree.neighbours()
    out = {i: float(g.norms[i, i]) for i in range(tree.observed)}
    for h in tree.missing:
        sides = [_first_model(around, h, v, tree.observed) for v in around[h]]
        found = [
            (g.norms[a, b] + g.norms[b, a] - g.squared[a, b]) / 2 for i, a in enumerate(sides) for b in sides[i + 1 :]
        ]
        out[h] = max(0.0, float(np.median(found)))
    return out


def _first_model(around: Mapping[int, list[int]], before: int, node: int, observed: int) -> int:
    """A model beyond an edge of the tree."""
    while node >= observed:
        before, node = node, next(v for v in around[node] if v != before)
    return node
