"""The family tree of many models: who comes from whom, who is missing, and what is not believed.

Pure: distances, directions, relations and merges come as values and functions; nothing is read or stored here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from stemma.lineage.additive_tree import AdditiveTree, RecursiveGrouping
from stemma.lineage.arborescence import minimum_forest
from stemma.lineage.distances import SAME, ByNorm, Distances
from stemma.types import Edge, Lineage, ModelRef, RelationKind, Spec

NEVER = 40.0
"""Log-odds of what a rule excludes."""


class Direction(Protocol):
    """Says which of two adjacent models came first."""

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """Log-odds that b was made from a, and that a was made from b; both below zero for siblings."""
        ...


@dataclass(frozen=True)
class Named:
    """What one model is to another, by a test of the pair.

    Attributes:
        relation: Its name.
        related: Whether the test found them related.
        p_value: Of that test.
        log10_p: Its decimal logarithm.
        reason: One sentence.
    """

    relation: str = RelationKind.RELATED.value
    related: bool = True
    p_value: float | None = None
    log10_p: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Parents:
    """The parents of a merge.

    Attributes:
        shares: Coefficient of each parent, by its position in the family.
        reason: How it was merged, in one sentence.
    """

    shares: Mapping[int, float]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """What is known about models that are related.

    Attributes:
        models: The models.
        distances: How far they lie from one another and from the origin.
        direction: Says which of two came first; the rule of norms unless given.
        relation: Tests and names a pair (parent, child); called for the edges of the tree only.
        leaves: Positions of models that have no children by rule: quantised, rounded, copied.
        merges: Parents of those models that are merges.
    """

    models: tuple[ModelRef, ...]
    distances: Distances
    direction: Direction | None = None
    relation: Callable[[int, int], Named] = lambda a, b: Named()
    leaves: frozenset[int] = frozenset()
    merges: Mapping[int, Parents] = field(default_factory=dict)


@dataclass(frozen=True)
class Forest:
    """Families become trees: an additive tree, directed as a whole, with merges joined to all their parents.

    Within a family, models that are the same up to rounding count once. Merges, and what descends from them, are set
    aside first, for no tree holds them. The rest gets an undirected tree from squared distances, with missing nodes;
    it is directed by the minimum-cost forest on that tree's edges, both ways, where an edge costs its log-odds and a
    root costs `refusal`. Every edge between two models is then tested as a pair.
    Cost: O(n²) per family for the tree, nothing between families; one test of a pair per edge.

    Attributes:
        tree: Makes the undirected tree.
        refusal: Cost of a root, in log-odds: higher, and edges of unclear direction are given one. Chosen on the
            selection families of benchmarks/forest.py.

    Source: MoTHer (arXiv:2405.18432) directs a distance graph by a minimum arborescence; the additive tree, missing
        ancestors and refusal are this project's.
    """

    tree: RecursiveGrouping = field(default_factory=RecursiveGrouping)
    refusal: float = 3.0

    name = "forest"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, {**asdict(self), "tree": asdict(self.tree.spec)})

    def __call__(self, families: Iterable[Family], alone: Sequence[ModelRef] = ()) -> Lineage:
        """Draw the family tree.

        Args:
            families: Models that are related, family by family.
            alone: Models that are related to none.

        Returns:
            The lineage.
        """
        drawn = [_Drawing(self, family) for family in families]
        offset = 0
        for d in drawn:
            offset = d.draw(offset)
        models = sorted([m for d in drawn for m in d.family.models] + list(alone), key=lambda m: m.name)
        roots = sorted([m.name for m in alone] + [r for d in drawn for r in d.roots])
        members = sorted((sorted(m.name for m in d.family.models) for d in drawn), key=lambda f: (-len(f), f))
        return Lineage(
            tuple(models),
            tuple(sorted((e for d in drawn for e in d.edges), key=lambda e: (e.child, e.parent))),
            tuple(roots),
            (*map(tuple, members), *((m.name,) for m in sorted(alone, key=lambda m: m.name))),
            tuple(m for d in drawn for m in d.missing),
            tuple(r for d in drawn for r in d.refused),
            tuple(d.evidence for d in drawn),
        )


class _Drawing:
    """One family being drawn."""

    def __init__(self, method: Forest, family: Family) -> None:
        self.method, self.family, self.g = method, family, family.distances
        self.direction = family.direction or ByNorm(self.g)
        self.edges: list[Edge] = []
        self.roots: list[str] = []
        self.missing: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.evidence: dict[str, Any] = {}

    def draw(self, numbered: int) -> int:
        """Fill edges, roots, missing and refused.

        Returns:
            How many missing ancestors have got a number so far.
        """
        alike = self.same()
        kept = sorted(set(alike.values()))
        self.evidence = {"family": sorted(m.name for m in self.family.models), "noise": []}
        for copy, original in alike.items():
            if copy != original:
                self.pair(original, copy, None)
        for part in _apart(self.g.squared, kept, self.family.merges):
            numbered = self.part(part, numbered)
        for child, parents in self.family.merges.items():
            for p, share in sorted(parents.shares.items()):
                self.edges.append(Edge(self.label(p), self.label(child), RelationKind.MERGED.value, share=share,
                                       reason=parents.reason))  # fmt: skip
        merged = {self.label(m) for m in self.family.merges}
        self.roots = [r for r in self.roots if r not in merged]
        return numbered

    def label(self, node: int) -> str:
        return self.family.models[node].name

    def same(self) -> dict[int, int]:
        """The model that stands for each: of those that are one up to rounding, one that may have children.

        Returns:
            Its position, for every position.
        """
        n, near = len(self.g), self.g.squared <= SAME * np.maximum(self.g.norms, self.g.norms.T)
        order = sorted(range(n), key=lambda i: (i in self.family.leaves, self.family.models[i].name))
        out: dict[int, int] = {}
        for i in order:
            out[i] = next((j for j in order if out.get(j) == j and near[i, j]), i)
        return out

    def part(self, rows: list[int], numbered: int) -> int:
        """Draw models among which there are no merges but perhaps the first ancestor of all.

        Returns:
            How many missing ancestors have got a number so far.
        """
        if len(rows) == 1:
            self.roots.append(self.label(rows[0]))
            return numbered
        tree = self.method.tree(self.g.of(rows).squared)
        self.evidence["noise"].append(round(tree.noise, 4))
        parents, sure = directed(tree, self.odds(tree, rows), self.method.refusal)
        lost = {h: f"(missing {numbered + i + 1})" for i, h in enumerate(tree.missing)}
        names = {**{i: self.label(r) for i, r in enumerate(rows)}, **lost}
        cut = self.edges_of(tree, rows, parents, sure, names)
        self.roots += [names[v] for v, p in parents.items() if p is None and v not in lost]
        self.roots += [names[v] for v in cut]
        for h, called in lost.items():
            below = sorted(names[v] for v, p in parents.items() if p == h)
            above = parents[h]
            self.missing.append({"name": called, "children": below, "parent": None if above is None else names[above]})
        return numbered + len(lost)

    def edges_of(
        self, tree: AdditiveTree, rows: list[int], parents: Mapping[int, int | None], sure: Mapping[int, float],
        names: Mapping[int, str],
    ) -> list[int]:  # fmt: skip
        """Edges of a directed tree, each between two models tested; what is not believed goes to `refused`.

        Returns:
            Nodes whose edge was not believed.
        """
        cut = []
        for v, p in sorted(parents.items()):
            if p is None:
                self.refuse(tree, parents, v, names)
            elif max(v, p) < tree.observed:
                if not self.pair(rows[p], rows[v], sure[v]):
                    cut.append(v)
            else:
                self.edges.append(Edge(names[p], names[v], RelationKind.RELATED.value, confidence=round(sure[v], 4),
                                       reason="distances call for an ancestor that is not here"))  # fmt: skip
        return cut

    def refuse(self, tree: AdditiveTree, parents: Mapping[int, int | None], v: int, names: Mapping[int, str]) -> None:
        """A node that was made a root although it has neighbours: the edges that were given up."""
        for w in tree.neighbours().get(v, ()):
            if parents[w] != v and (parents[w] is not None or w < v):
                reason = "adjacent, but neither looks like the parent of the other"
                self.refused.append({"models": sorted([names[v], names[w]]), "reason": reason})

    def pair(self, parent: int, child: int, confidence: float | None) -> bool:
        """Test an edge between two models.

        Returns:
            Whether it is believed.
        """
        found = self.family.relation(parent, child)
        a, b = self.label(parent), self.label(child)
        if not found.related:
            self.refused.append({"models": sorted([a, b]), "reason": found.reason or "not related as a pair"})
            return False
        size = max(self.g.norms[parent, child], self.g.norms[child, parent])
        length = float(self.g.squared[parent, child] / size) if size > 0 else 0.0
        sure = None if confidence is None else round(confidence, 4)
        self.edges.append(Edge(a, b, found.relation, found.p_value, found.log10_p, sure, None, round(length, 6),
                               found.reason))  # fmt: skip
        return True

    def odds(self, tree: AdditiveTree, rows: list[int]) -> dict[tuple[int, int], float]:
        """Log-odds of both directions of every edge; rules outweigh them.

        Returns:
            By (parent, child).
        """
        norm = _norms(tree, self.g.of(rows))
        rule = self.direction if isinstance(self.direction, ByNorm) else ByNorm(self.g)
        out = {}
        for (i, j), length in tree.edges.items():
            if max(i, j) < tree.observed:
                out[i, j], out[j, i] = self.direction(rows[i], rows[j])
            else:
                out[i, j], out[j, i] = rule.odds(norm[i], norm[j], length)
            for a, b in ((i, j), (j, i)):
                leaf = a < tree.observed and rows[a] in self.family.leaves
                first = b < tree.observed and rows[b] in self.family.merges
                out[a, b] = -NEVER if leaf or first else float(np.clip(out[a, b], -NEVER / 4, NEVER / 4))
        return out


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
    pairs = sorted(odds)
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
                weight[w] = weight[v] - odds[v, w] + odds[w, v]  # the root moves across this edge
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


def _apart(distances: np.ndarray, rows: list[int], merges: Mapping[int, Parents]) -> list[list[int]]:
    """Models that form one tree: all without a merge above them, and each merge with what descends from it.

    A model descends from a merge if it is nearer to it, or to another descendant of it, than to any model of another
    tree; of the merge's own parents only the distance to others counts.

    Returns:
        Positions, each merge first in its own list.
    """
    own = {m: m for m in rows if m in merges}
    rest = [r for r in rows if r not in own]
    if not own:
        return [rows]
    barred = {(p, m) for m in own for p in merges[m].shares}
    whose: dict[int, int | None] = {r: None for r in rest}
    for _ in range(len(rows)):
        moved = False
        for r in rest:
            near = min((c for c in rows if c != r and (r, c) not in barred), key=lambda c: distances[r, c], default=r)
            goes = own.get(near, whose.get(near))
            if goes is not None and whose[r] is None and not _above(r, goes, merges):
                whose[r], moved = goes, True
        if not moved:
            break
    out = [[m, *(r for r in rest if whose[r] == m)] for m in own]
    main = [r for r in rest if whose[r] is None]
    return [*([main] if main else []), *out]


def _above(node: int, merge: int, merges: Mapping[int, Parents]) -> bool:
    """Whether a model is a parent of a merge, or of a merge that is a parent of it, and so on."""
    todo, seen = [merge], set()
    while todo:
        m = todo.pop()
        if node in merges[m].shares:
            return True
        seen.add(m)
        todo += [p for p in merges[m].shares if p in merges and p not in seen]
    return False
