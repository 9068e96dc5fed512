"""The family tree of many models: who comes from whom, who is missing, and what is not believed.

Pure: distances, directions, relations and merges come as values and functions; nothing is read or stored here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from stemma.lineage.additive_tree import AdditiveTree, Angles, RecursiveGrouping
from stemma.lineage.distances import SAME, ByNorm, Distances
from stemma.lineage.known_parents import Parents, apart
from stemma.lineage.rooting import NEVER, Direction, ancestry, directed, odds_of
from stemma.types import Edge, Lineage, ModelRef, RelationKind, Spec


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


@dataclass(frozen=True, eq=False)
class Family:
    """What is known about models that are related.

    Attributes:
        models: The models.
        distances: How far they lie from one another and from the origin.
        direction: Says which of two came first; the rule of norms unless given.
        relation: Tests and names a pair (parent, child); called for the edges of the tree only.
        angles: At a model between others, where more is known of them than distances tell.
        leaves: Positions of models that have no children by rule: quantised, rounded, copied.
        known: Parents of those models whose parents are known without a tree.
    """

    models: tuple[ModelRef, ...]
    distances: Distances
    direction: Direction | None = None
    relation: Callable[[int, int], Named] = lambda a, b: Named()
    angles: Angles = lambda a, others: None
    leaves: frozenset[int] = frozenset()
    known: Mapping[int, Parents] = field(default_factory=dict)


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
        refusal: Cost of a root, in log-odds: higher, and edges of unclear direction are given one. Taken after a
            look at published siblings; the selection families of benchmarks/forest.py hardly depend on it.
        of_two: The same for two models alone, where an edge costs how much less likely it is than its reverse:
            no third one shows that nothing lies between them, so what is undecided is refused.

    Source: MoTHer (arXiv:2405.18432) directs a distance graph by a minimum arborescence; the additive tree, missing
        ancestors and refusal are this project's.
    """

    tree: RecursiveGrouping = field(default_factory=RecursiveGrouping)
    refusal: float = 4.0
    of_two: float = -1.0

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
        for part in apart(self.g.squared, kept, self.family.known, self.direction):
            numbered = self.part(part, numbered)
        for child, parents in self.family.known.items():
            for p, share in sorted(parents.shares.items()):
                self.edges.append(Edge(self.label(p), self.label(child), parents.relation, share=share,
                                       reason=parents.reason))  # fmt: skip
        merged = {self.label(m) for m in self.family.known}
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
        odds_of_ancestry = partial(ancestry, self.direction)
        angles = self.family.angles
        tree = self.method.tree(
            self.g.of(rows).squared, lambda a, b: odds_of_ancestry(rows[a], rows[b]),
            lambda a, others: angles(rows[a], [rows[v] for v in others]),
        )  # fmt: skip
        self.evidence["noise"].append(round(tree.noise, 4))
        alone = len(rows) == 2 and not set(rows) & set(self.family.known)
        odds = odds_of(tree, rows, self.g, self.direction, self.family.leaves, self.family.known)
        if alone:
            odds = {(a, b): (o - odds[b, a]) / 2 if abs(o) < NEVER else o for (a, b), o in odds.items()}
        parents, sure = directed(tree, odds, self.method.of_two if alone else self.method.refusal)
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
