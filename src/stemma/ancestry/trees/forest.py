"""The family tree of many models: who comes from whom, who is missing, and what is not believed.

Pure: distances, directions, relations and merges come as values and functions; nothing is read or stored here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from stemma.ancestry.trees.additive_tree import AdditiveTree, Angles, RecursiveGrouping
from stemma.ancestry.trees.distances import ByNorm, Distances
from stemma.ancestry.trees.known_parents import Parents, apart
from stemma.ancestry.trees.rooting import ByDistance, Chances, Direction, ancestry, likeliest
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
        backwards: Whether it shows for certain that the first was made from the second.
        certain: Whether it shows for certain that the second was made from the first.
        neither: Whether it shows that neither was made from the other.
        trained: What the relation is called if the second was made from the first; as it is unless given.
    """

    relation: str = RelationKind.RELATED.value
    related: bool = True
    p_value: float | None = None
    log10_p: float | None = None
    reason: str = ""
    backwards: bool = False
    certain: bool = False
    neither: bool = False
    trained: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """What is known about models that are related.

    Attributes:
        models: The models.
        distances: How far they lie from one another and from the origin.
        direction: Says which of two came first; the rule of norms unless given.
        chances: Says how likely each model was made from each other one; by distances and direction unless given.
        relation: Tests and names a pair (parent, child); called for the edges of the tree only.
        angles: At a model between others, where more is known of them than distances tell.
        leaves: Positions of models that have no children by rule: quantised, rounded, copied.
        known: Parents of those models whose parents are known without a tree.
        ranks: Of models that are one up to rounding the highest stands for all. Equal unless given.
        confidence: How often an edge is right that is drawn with a probability; as often as that says unless given.
        alone: Probability from which an edge between two models alone is drawn: no third one shows who branches off.
    """

    models: tuple[ModelRef, ...]
    distances: Distances
    direction: Direction | None = None
    chances: Chances | None = None
    relation: Callable[[int, int], Named] = lambda a, b: Named()
    angles: Angles = lambda a, others: None
    leaves: frozenset[int] = frozenset()
    known: Mapping[int, Parents] = field(default_factory=dict)
    ranks: Sequence[tuple[int, ...]] = ()
    confidence: Callable[[float], float] = float
    alone: float = 0.5


@dataclass(frozen=True)
class Forest:
    """Families become trees: the likeliest one, refined by missing ancestors, with merges joined to all their parents.

    Within a family, models that are the same up to rounding count once. Merges, and what descends from them, are set
    aside first, for no tree holds them. Of the rest the likeliest forest is drawn, given how likely each model was made
    from each other one: no model descends from itself, and what is said of an edge is what is said of that pair in a
    trace. Around each node an additive tree on squared distances tells which neighbours have an ancestor in common that
    is not here; so have several models none of which was made from another one here. Every edge between two models is
    then tested as a pair.
    Cost: O(n²) per family for the tree, nothing between families; one test of a pair per edge.

    Attributes:
        tree: Finds missing ancestors.
        orphan: Probability from which a model's ancestors are taken not to be here; below it they are not told.

    Source: maximum spanning arborescences for the likeliest tree under independent choices of parents: McDonald et al.
        2005, as in dependency parsing; MoTHer (arXiv:2405.18432) directs a distance graph by one. Recursive grouping:
        Choi et al. 2011. Missing ancestors and refusal are this project's.
    """

    tree: RecursiveGrouping = field(default_factory=RecursiveGrouping)
    orphan: float = 0.5

    name = "forest"
    version = 2

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
            models=tuple(models),
            edges=tuple(sorted((e for d in drawn for e in d.edges), key=lambda e: (e.child, e.parent))),
            roots=tuple(roots),
            families=(*map(tuple, members), *((m.name,) for m in sorted(alone, key=lambda m: m.name))),
            missing_ancestors=tuple(m for d in drawn for m in d.missing),
            refused=tuple(r for d in drawn for r in d.refused),
            evidence=tuple(d.evidence for d in drawn),
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
            if copy != original and not self.pair(original, copy, None):
                self.roots.append(self.label(copy))
        for part in apart(self.g.squared, kept, self.family.known, self.direction):
            numbered = self.part(part, numbered)
        for child, parents in self.family.known.items():
            for p, share in sorted((alike.get(p, p), share) for p, share in parents.shares.items()):
                self.edges.append(Edge(parent=self.label(p), child=self.label(child), relation=parents.relation,
                                       share=share, reason=parents.reason))  # fmt: skip
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
        n, near = len(self.g), self.g.same
        ranks = self.family.ranks or [()] * n
        order = sorted(range(n), key=lambda i: (i in self.family.leaves, *(-r for r in ranks[i]), self.label(i)))
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
        chances, parents = self.likeliest(rows)
        shown = {v: p for v, p in parents.items() if p is not None and chances[p, v] == 1}
        odds_of_ancestry, angles = partial(ancestry, self.direction), self.family.angles
        tree = self.method.tree(
            self.g.of(rows).squared, lambda a, b: odds_of_ancestry(rows[a], rows[b]),
            lambda a, others: angles(rows[a], [rows[v] for v in others]),
            [(min(v, p), max(v, p)) for v, p in parents.items() if p is not None and v not in shown],
        )  # fmt: skip
        self.evidence["noise"].append(round(tree.noise, 4))
        roots = [v for v, p in parents.items() if p is None]
        above = _downwards(tree, [*roots, *shown]) | shown
        lost = {h: f"(missing {numbered + i + 1})" for i, h in enumerate(tree.missing)}
        orphans = [v for v in roots if chances[-1, v] >= self.method.orphan and rows[v] not in self.family.known]
        top = max([tree.observed - 1, *tree.missing]) + 1
        for h, parent in self.above_all(rows, orphans, top, above).items():
            lost[h] = f"(missing {numbered + len(lost) + 1})"
            above[h] = parent
        names = {**{i: self.label(r) for i, r in enumerate(rows)}, **lost}
        self.edges_of(rows, above, chances, names)
        self.roots += [names[v] for v, p in above.items() if p is None and v not in lost]
        for h, called in lost.items():
            below = sorted(names[v] for v, p in above.items() if p == h)
            self.missing.append({"name": called, "children": below, "parent": names.get(above[h])})
        return numbered + len(lost)

    def above_all(
        self, rows: list[int], orphans: list[int], first: int, above: dict[int, int | None]
    ) -> dict[int, int | None]:
        """Missing ancestors above models whose own are not here: where distances call for one, as they do elsewhere.

        Args:
            rows: Positions of the models of the tree.
            orphans: Which of them.
            first: Number of the first missing ancestor.
            above: Gets the ancestors of the orphans.

        Returns:
            The parent of each missing ancestor.
        """
        if len(orphans) < 3:  # two models always lie on a line
            return {}
        at = [rows[v] for v in orphans]
        angles, odds = self.family.angles, partial(ancestry, self.direction)
        tree = self.method.tree(
            self.g.of(at).squared,
            lambda a, b: odds(at[a], at[b]),
            lambda a, others: angles(at[a], [at[v] for v in others]),
        )
        around, number = tree.neighbours(), {h: first + k for k, h in enumerate(tree.missing)}
        out: dict[int, int | None] = {}
        for h in sorted(tree.missing, key=lambda h: -len(around[h])):
            out.setdefault(number[h], None)
            for v in around[h]:
                if v < tree.observed:
                    above[orphans[v]] = number[h] if above[orphans[v]] is None else above[orphans[v]]
                elif number[v] not in out:
                    out[number[v]] = number[h]
        return out

    def likeliest(self, rows: list[int]) -> tuple[np.ndarray, dict[int, int | None]]:
        """The likeliest forest that no test of a pair contradicts.

        Returns:
            How likely each was made from each other one, as `Chances`, and the parents, by position in `rows`.
        """
        given = self.family.chances or ByDistance(self.g, self.direction)
        chances = given(rows).copy()
        for v, r in enumerate(rows):
            if r in self.family.leaves:
                chances[v] = 0.0
            if r in self.family.known:
                chances[:, v] = 0.0
                chances[-1, v] = 1.0
        chances /= np.maximum(chances.sum(axis=0), 1e-300)
        while True:
            parents = likeliest(chances, self.method.orphan)
            told = {v: self.family.relation(rows[p], rows[v]) for v, p in parents.items() if p is not None}
            wrong = [v for v, found in told.items() if found.backwards or found.neither]
            for v, found in told.items():
                if found.certain:
                    chances[:, v] = 0.0
                    chances[parents[v], v] = 1.0
            for v in wrong:
                without, chances[parents[v], v] = chances[parents[v], v], 0.0
                if told[v].neither:
                    chances[-1, v] += without
                chances[:, v] /= max(float(chances[:, v].sum()), 1e-300)
            if not wrong:
                return chances, parents

    def edges_of(
        self, rows: list[int], parents: dict[int, int | None], chances: np.ndarray, names: Mapping[int, str]
    ) -> None:
        """Edges of a tree, each between two models tested; what is not believed or not told goes to `refused`."""
        alone = len(rows) == 2 and not set(rows) & set(self.family.known)
        for v, p in sorted(parents.items()):
            if p is None and v < len(rows):
                self.refuse(v, chances, parents, names)
            elif p is not None and max(v, p) < len(rows):
                if chances[p, v] <= chances[-1, v] or (alone and chances[p, v] < self.family.alone):
                    parents[v] = None
                    self.refuse(v, chances, parents, names)
                elif not self.pair(rows[p], rows[v], float(chances[p, v])):
                    parents[v] = None
            elif p is not None:
                self.edges.append(Edge(parent=names[p], child=names[v], relation=RelationKind.RELATED.value,
                                       reason="distances call for an ancestor that is not here"))  # fmt: skip

    def refuse(self, v: int, chances: np.ndarray, parents: Mapping[int, int | None], names: Mapping[int, str]) -> None:
        """A root whose parent is not told: the likeliest of those that were given up."""
        below = np.array([parents.get(w) == v for w in range(chances.shape[1])])
        near = int(np.where(below, -1.0, chances[:-1, v]).argmax())
        open_ = chances[-1, v] < self.method.orphan or not below.any()
        if open_ and near != v and not _above(parents, v, near):
            told = {"models": sorted([names[v], names[near]]), "reason": NEITHER}
            self.refused += [told] if told not in self.refused else []

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
        sure = None if confidence is None or found.certain else round(self.family.confidence(confidence), 4)
        told = found.trained if found.trained and sure is not None and sure >= TOLD else found.relation
        self.edges.append(
            Edge(
                parent=a,
                child=b,
                relation=told,
                p_value=found.p_value,
                log10_p=found.log10_p,
                confidence=sure,
                share=None,
                length=round(length, 6),
                reason=found.reason,
            )
        )
        return True


TOLD = 0.5
"""Confidence from which a change along an edge is called a training of the one into the other."""

NEITHER = "related, but neither looks like the parent of the other"


def _above(parents: Mapping[int, int | None], ancestor: int, node: int | None) -> bool:
    """Whether a node of a tree descends from another."""
    while node is not None and node != ancestor:
        node = parents.get(node)
    return node is not None


def _downwards(tree: AdditiveTree, roots: Sequence[int]) -> dict[int, int | None]:
    """The parent of every node of undirected trees, seen from their roots."""
    around = tree.neighbours()
    out: dict[int, int | None] = dict.fromkeys(roots)
    todo = list(roots)
    while todo:
        v = todo.pop()
        new = [w for w in around.get(v, ()) if w not in out]
        out |= dict.fromkeys(new, v)
        todo += new
    return out
