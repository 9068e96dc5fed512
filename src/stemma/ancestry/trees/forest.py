"""Draws the family tree of many models: edges, missing ancestors, and edges that were refused.

Pure: distances, directions, relations and merges come as values and functions; nothing is read or stored here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from stemma.ancestry.trees.additive_tree import AdditiveTree, Angles, RecursiveGrouping
from stemma.ancestry.trees.distances import Distances, OddsFromNorms
from stemma.ancestry.trees.known_parents import KnownParents, split_at_merges
from stemma.ancestry.trees.rooting import (
    AncestryOdds,
    ParentProbabilities,
    ProbabilitiesFromDistances,
    ancestry_log_odds,
    most_likely_forest,
)
from stemma.types import Edge, Lineage, ModelRef, RelationKind, Spec


@dataclass(frozen=True)
class PairResult:
    """Result of the comparison of one pair.

    Attributes:
        relation: Its name.
        related: Whether the test found them related.
        p_value: Of that test.
        log10_p: Its decimal logarithm.
        reason: One sentence.
        child_first: Whether the first was certainly made from the second.
        parent_certain: Whether the second was certainly made from the first.
        no_descent: Whether neither was made from the other.
        finetuned_relation: Name of the relation if the second was made from the first; `relation` unless given.
    """

    relation: str = RelationKind.RELATED.value
    related: bool = True
    p_value: float | None = None
    log10_p: float | None = None
    reason: str = ""
    child_first: bool = False
    parent_certain: bool = False
    no_descent: bool = False
    finetuned_relation: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """What is known about models that are related.

    Attributes:
        models: The models.
        distances: Between them and from the origin.
        direction: Log-odds of which of two came first; the rule of norms unless given.
        parent_probabilities: Probability of each model to be made from each other one; from distances and direction
            unless given.
        relation: Tests and names a pair (parent, child); called for the edges of the tree only.
        angles: At a model between others, where more than distances is known.
        childless: Positions of models that have no children by rule: quantised, rounded, copied.
        sampled: Positions of models of which only a sample was read: equal samples may be of different models.
        known_parents: Parents of those models whose parents are known without a tree.
        originality: Of models that are one up to rounding the one with the highest tuple stands for all. Equal unless
            given.
        edge_confidence: Share of right edges among those drawn with a probability; that probability unless given.
        pair_threshold: Probability from which an edge between two models alone is drawn: no third one shows where they
            branch off.
    """

    models: tuple[ModelRef, ...]
    distances: Distances
    direction: AncestryOdds | None = None
    parent_probabilities: ParentProbabilities | None = None
    relation: Callable[[int, int], PairResult] = lambda a, b: PairResult()
    angles: Angles = lambda a, others: None
    childless: frozenset[int] = frozenset()
    sampled: frozenset[int] = frozenset()
    known_parents: Mapping[int, KnownParents] = field(default_factory=dict)
    originality: Sequence[tuple[int, ...]] = ()
    edge_confidence: Callable[[float], float] = float
    pair_threshold: float = 0.5


@dataclass(frozen=True)
class Forest:
    """Draws a tree for each family: the most likely one, refined by missing ancestors and joined to merges.

    Within a family, models that are the same up to rounding count once. Merges, and their descendants, are set aside
    first, for no tree holds them. Of the others the most likely forest is drawn, given the probability of each model to
    be made from each other one. Around each node an additive tree on squared distances shows which neighbours have a
    common ancestor that is missing; so do several models none of which was made from another one here. Every edge
    between two models is then tested as a pair, and merges are joined to all their parents.
    Cost: O(n²) per family for the tree, nothing between families; one test of a pair per edge.

    Attributes:
        tree: Finds missing ancestors.
        orphan: Probability from which a model's ancestors are taken to be missing; below it no statement is made.

    Source: maximum spanning arborescences under independent choices of parents: McDonald et al. 2005, as in dependency
        parsing; MoTHer (arXiv:2405.18432) directs a distance graph by one. Recursive grouping: Choi et al. 2011.
        Missing ancestors and refused edges are this project's.
    """

    tree: RecursiveGrouping = field(default_factory=RecursiveGrouping)
    orphan: float = 0.5

    name = "forest"
    version = 2

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, {**asdict(self), "tree": asdict(self.tree.spec)})

    def __call__(self, families: Iterable[Family], singletons: Sequence[ModelRef] = ()) -> Lineage:
        """The lineage of some families, and of models (`singletons`) that are related to none."""
        drawn = [_Drawing(self, family) for family in families]
        offset = 0
        for d in drawn:
            offset = d.draw(offset)
        models = sorted([m for d in drawn for m in d.family.models] + list(singletons), key=lambda m: m.name)
        roots = sorted([m.name for m in singletons] + [r for d in drawn for r in d.roots])
        members = sorted((sorted(m.name for m in d.family.models) for d in drawn), key=lambda f: (-len(f), f))
        return Lineage(
            models=tuple(models),
            edges=tuple(sorted((e for d in drawn for e in d.edges), key=lambda e: (e.child, e.parent))),
            roots=tuple(roots),
            families=(*map(tuple, members), *((m.name,) for m in sorted(singletons, key=lambda m: m.name))),
            missing_ancestors=tuple(m for d in drawn for m in d.missing),
            refused=tuple(r for d in drawn for r in d.refused),
            evidence=tuple(d.evidence for d in drawn),
        )


class _Drawing:
    """One family while its tree is drawn."""

    def __init__(self, method: Forest, family: Family) -> None:
        self.method, self.family, self.distances = method, family, family.distances
        self.direction = family.direction or OddsFromNorms(self.distances)
        self.edges: list[Edge] = []
        self.roots: list[str] = []
        self.missing: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.evidence: dict[str, Any] = {}

    def draw(self, missing_count: int) -> int:
        """Fill edges, roots, missing and refused; returns how many missing ancestors have a number so far."""
        representative = self.representatives()
        kept = sorted(set(representative.values()))
        self.evidence = {"family": sorted(m.name for m in self.family.models), "noise": []}
        for copy, original in representative.items():
            if copy == original:
                continue
            if {copy, original} & self.family.sampled:
                self.refused.append({"models": sorted(map(self.name_of, (copy, original))), "reason": EQUAL_SAMPLES})
                self.roots.append(self.name_of(copy))
            elif not self.add_tested_edge(original, copy, None):
                self.roots.append(self.name_of(copy))
        for draw_tree in split_at_merges(self.distances.squared, kept, self.family.known_parents, self.direction):
            missing_count = self.draw_tree(draw_tree, missing_count)
        for child, parents in self.family.known_parents.items():
            for p, share in sorted((representative.get(p, p), share) for p, share in parents.shares.items()):
                self.edges.append(
                    Edge(
                        parent=self.name_of(p),
                        child=self.name_of(child),
                        relation=parents.relation,
                        share=share,
                        reason=parents.reason,
                    )
                )
        merged = {self.name_of(m) for m in self.family.known_parents}
        self.roots = [r for r in self.roots if r not in merged]
        return missing_count

    def name_of(self, node: int) -> str:
        return self.family.models[node].name

    def representatives(self) -> dict[int, int]:
        """By position, the model that stands for each: of those equal up to rounding, one that may have children."""
        n, near = len(self.distances), self.distances.same
        originality = self.family.originality or [()] * n
        order = sorted(
            range(n),
            key=lambda i: (
                i in self.family.childless, i in self.family.sampled, *(-r for r in originality[i]), self.name_of(i)
            ),
        )  # fmt: skip
        out: dict[int, int] = {}
        for i in order:
            out[i] = next((j for j in order if out.get(j) == j and near[i, j]), i)
        return out

    def draw_tree(self, rows: list[int], missing_count: int) -> int:
        """Draw models without merges, except as first ancestor; returns how many missing ancestors have a number."""
        if len(rows) == 1:
            self.roots.append(self.name_of(rows[0]))
            return missing_count
        parent_probabilities, parents = self.consistent_parents(rows)
        certain = {v: p for v, p in parents.items() if p is not None and parent_probabilities[p, v] == 1}
        odds_of_ancestry, angles = partial(ancestry_log_odds, self.direction), self.family.angles
        tree = self.method.tree(
            self.distances.subset(rows).squared, lambda a, b: odds_of_ancestry(rows[a], rows[b]),
            lambda a, others: angles(rows[a], [rows[v] for v in others]),
            [(min(v, p), max(v, p)) for v, p in parents.items() if p is not None and v not in certain],
        )  # fmt: skip
        self.evidence["noise"].append(round(tree.noise, 4))
        roots = [v for v, p in parents.items() if p is None]
        above = _parents_from_roots(tree, [*roots, *certain]) | certain
        missing_names = {h: f"(missing {missing_count + i + 1})" for i, h in enumerate(tree.missing)}
        orphans = [
            v
            for v in roots
            if parent_probabilities[-1, v] >= self.method.orphan and rows[v] not in self.family.known_parents
        ]
        top = max([tree.observed - 1, *tree.missing]) + 1
        for h, parent in self.missing_ancestors_of_roots(rows, orphans, top, above).items():
            missing_names[h] = f"(missing {missing_count + len(missing_names) + 1})"
            above[h] = parent
        names = {**{i: self.name_of(r) for i, r in enumerate(rows)}, **missing_names}
        self.add_edges(rows, above, parent_probabilities, names)
        self.roots += [names[v] for v, p in above.items() if p is None and v not in missing_names]
        for h, missing_name in missing_names.items():
            below = sorted(names[v] for v, p in above.items() if p == h)
            self.missing.append({"name": missing_name, "children": below, "parent": names.get(above[h])})
        return missing_count + len(missing_names)

    def missing_ancestors_of_roots(
        self, rows: list[int], orphans: list[int], first: int, above: dict[int, int | None]
    ) -> dict[int, int | None]:
        """Parents of missing ancestors above roots (`orphans`), numbered from `first`; extends `above`."""
        if len(orphans) < 3:  # two models always lie on a line
            return {}
        at = [rows[v] for v in orphans]
        angles, odds = self.family.angles, partial(ancestry_log_odds, self.direction)
        tree = self.method.tree(
            self.distances.subset(at).squared,
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

    def consistent_parents(self, rows: list[int]) -> tuple[np.ndarray, dict[int, int | None]]:
        """Probabilities and parents of the most likely forest that no test of a pair contradicts."""
        estimate = self.family.parent_probabilities or ProbabilitiesFromDistances(self.distances, self.direction)
        parent_probabilities = estimate(rows).copy()
        for v, r in enumerate(rows):
            if r in self.family.childless:
                parent_probabilities[v] = 0.0
            if r in self.family.known_parents:
                parent_probabilities[:, v] = 0.0
                parent_probabilities[-1, v] = 1.0
        parent_probabilities /= np.maximum(parent_probabilities.sum(axis=0), 1e-300)
        while True:
            parents = most_likely_forest(parent_probabilities, self.method.orphan)
            results = {v: self.family.relation(rows[p], rows[v]) for v, p in parents.items() if p is not None}
            contradicted = [v for v, result in results.items() if result.child_first or result.no_descent]
            for v, result in results.items():
                if result.parent_certain:
                    parent_probabilities[:, v] = 0.0
                    parent_probabilities[parents[v], v] = 1.0
            for v in contradicted:
                removed, parent_probabilities[parents[v], v] = parent_probabilities[parents[v], v], 0.0
                if results[v].no_descent:
                    parent_probabilities[-1, v] += removed
                parent_probabilities[:, v] /= max(float(parent_probabilities[:, v].sum()), 1e-300)
            if not contradicted:
                return parent_probabilities, parents

    def add_edges(
        self,
        rows: list[int],
        parents: dict[int, int | None],
        parent_probabilities: np.ndarray,
        names: Mapping[int, str],
    ) -> None:
        """Add the edges of a tree, each between two models tested; rejected and undecided ones go to `refused`."""
        is_pair = len(rows) == 2 and not set(rows) & set(self.family.known_parents)
        for v, p in sorted(parents.items()):
            if p is None and v < len(rows):
                self.refuse_root(v, parent_probabilities, parents, names)
            elif p is not None and max(v, p) < len(rows):
                if parent_probabilities[p, v] <= parent_probabilities[-1, v] or (
                    is_pair and parent_probabilities[p, v] < self.family.pair_threshold
                ):
                    parents[v] = None
                    self.refuse_root(v, parent_probabilities, parents, names)
                elif not self.add_tested_edge(rows[p], rows[v], float(parent_probabilities[p, v])):
                    parents[v] = None
            elif p is not None:
                self.edges.append(Edge(parent=names[p], child=names[v], relation=RelationKind.RELATED.value,
                                       reason="distances show a common ancestor that is missing here"))  # fmt: skip

    def refuse_root(
        self, v: int, parent_probabilities: np.ndarray, parents: Mapping[int, int | None], names: Mapping[int, str]
    ) -> None:
        """Report the most likely parent of a root as refused, where the direction is undecided."""
        is_child = np.array([parents.get(w) == v for w in range(parent_probabilities.shape[1])])
        best_parent = int(np.where(is_child, -1.0, parent_probabilities[:-1, v]).argmax())
        is_undecided = parent_probabilities[-1, v] < self.method.orphan or not is_child.any()
        if is_undecided and best_parent != v and not _descends_from(parents, v, best_parent):
            refusal = {"models": sorted([names[v], names[best_parent]]), "reason": NO_DIRECTION}
            self.refused += [refusal] if refusal not in self.refused else []

    def add_tested_edge(self, parent: int, child: int, probability: float | None) -> bool:
        """Add an edge between two models if their comparison supports it; returns whether it does."""
        result = self.family.relation(parent, child)
        a, b = self.name_of(parent), self.name_of(child)
        if not result.related:
            self.refused.append(
                {"models": sorted([a, b]), "reason": result.reason or "the pairwise comparison finds no relation"}
            )
            return False
        size = max(self.distances.norms[parent, child], self.distances.norms[child, parent])
        length = float(self.distances.squared[parent, child] / size) if size > 0 else 0.0
        confidence = (
            None if probability is None or result.parent_certain else round(self.family.edge_confidence(probability), 4)
        )
        relation = (
            result.finetuned_relation
            if result.finetuned_relation and confidence is not None and confidence >= FINETUNED_FROM
            else result.relation
        )
        self.edges.append(
            Edge(
                parent=a,
                child=b,
                relation=relation,
                p_value=result.p_value,
                log10_p=result.log10_p,
                confidence=confidence,
                share=None,
                length=round(length, 6),
                reason=result.reason,
            )
        )
        return True


FINETUNED_FROM = 0.5
"""Confidence from which a change along an edge is called fine-tuning."""

EQUAL_SAMPLES = "what was read of both agrees, and of one only a sample was read: neither is shown to be a copy"

NO_DIRECTION = "related, but neither is shown to be the parent of the other"


def _descends_from(parents: Mapping[int, int | None], ancestor: int, node: int | None) -> bool:
    while node is not None and node != ancestor:
        node = parents.get(node)
    return node is not None


def _parents_from_roots(tree: AdditiveTree, roots: Sequence[int]) -> dict[int, int | None]:
    """The parent of every node of undirected trees, directed away from their roots."""
    around = tree.neighbours()
    out: dict[int, int | None] = dict.fromkeys(roots)
    todo = list(roots)
    while todo:
        v = todo.pop()
        new = [w for w in around.get(v, ()) if w not in out]
        out |= dict.fromkeys(new, v)
        todo += new
    return out
