"""Family trees of histories: parts of a family drawn with what other kinds taught, and how much of them is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.ancestry.geometry import Geometry
from stemma.ancestry.parent_model import ParentModel
from stemma.ancestry.trees.additive_tree import spanning_tree
from stemma.ancestry.trees.distances import OddsFromNorms, RowAngles, squared_distances
from stemma.ancestry.trees.forest import Family as Drawn
from stemma.ancestry.trees.forest import Forest
from stemma.ancestry.trees.known_parents import find_known_parents
from stemma.ancestry.trees.rooting import OddsFromWeights
from stemma.training.histories import Family

ROOTLESS, OF = (3, 6), 8
"""Draws in which the first ancestor is not there, of so many."""

LEAST = 0.6
"""Share of the other members that are there at least."""

NEAREST = 1.3
"""How much nearer than any sibling a parent has to be for an edge to count as clear."""


@dataclass(frozen=True)
class Part:
    """Some members of a family, with what is true of them.

    Attributes:
        names: Of the members.
        geometry: Theirs.
        ancestors: Of each, the nearest first, whether they are there or not.
    """

    names: Sequence[str]
    geometry: Geometry
    ancestors: Mapping[str, Sequence[str]]

    def parent(self, name: str) -> str | None:
        """The nearest ancestor that is there."""
        return next((a for a in self.ancestors[name] if a in self.names), None)

    def clear(self, name: str) -> bool:
        """Whether a member's parent is there and clearly nearer than all that do not descend from the member."""
        parent = self.parent(name)
        if parent is None:
            return False
        at = {n: i for i, n in enumerate(self.names)}
        far = {o: self.geometry.squared_distance(at[name], i) ** 0.5 for o, i in at.items()
               if o != name and name not in self.ancestors[o]}  # fmt: skip
        others = [d for o, d in far.items() if o != parent]
        return not others or min(others) >= NEAREST * far[parent]


def part(family: Family, geometry: Geometry, draw: int, left_out: Sequence[str] = ()) -> Part:
    """Some members at random."""
    rng = np.random.default_rng([draw, family.number, *map(ord, family.kind)])
    members = [m for m in family.members if m.name not in left_out]
    first = next(m.name for m in family.members if m.name == "root")
    share, rootless = rng.uniform(LEAST, 1), draw % OF in ROOTLESS
    kept = [m.name for m in members if (m.name != first and rng.random() < share) or (m.name == first and not rootless)]
    at = {m.name: i for i, m in enumerate(family.members)}
    some = Geometry(geometry.entries.of([at[n] for n in kept]))
    for i, a in enumerate(kept):
        for j, b in enumerate(kept):
            if (at[a], at[b]) in geometry._pairs:  # measured once for all draws
                some._pairs[i, j] = geometry._pairs[at[a], at[b]]
    return Part(kept, some, {m.name: m.ancestors for m in family.members if m.name in kept})


@dataclass(frozen=True)
class Line:
    """One edge between two members, drawn or true.

    Attributes:
        said: The raw probability it was drawn with, None where it has none.
        right: Whether the parent is the nearest ancestor that is there.
        reversed: Whether the child is an ancestor of the parent.
    """

    said: float | None
    right: bool
    reversed: bool


@dataclass(frozen=True)
class Scored:
    """One drawing.

    Attributes:
        lines: Of the edges between two members.
        true: How many edges there are.
        clear: How many of them are clear, and how many of these were drawn.
        baseline: Right ones among those of a minimum spanning tree from the model of the smallest norm, and how many.
    """

    lines: Sequence[Line]
    true: int
    clear: tuple[int, int]
    baseline: tuple[int, int]


def drawn(some: Part, model: ParentModel) -> Scored:
    """Draw a part and score it; what probabilities mean is calibrated later."""
    values, geometry = some.geometry.entries, some.geometry
    distances = squared_distances(values)
    refs = [replace(r, name=n) for n, r in zip(some.names, values.models, strict=True)]
    shared = [(sum(int(geometry.shared_tensors(i, j).sum()) for j in range(len(refs))),) for i in range(len(refs))]
    family = Drawn(
        tuple(refs), distances, OddsFromWeights(model.direction, geometry, OddsFromNorms(distances)),
        lambda rows: model.parent_probabilities(geometry, rows), angles=RowAngles(values),
        known_parents=find_known_parents(values, distances), originality=shared,
    )  # fmt: skip
    edges = [e for e in Forest()([family]).edges if {e.parent, e.child} <= set(some.names)]
    lines = [Line(e.confidence, some.parent(e.child) == e.parent, e.child in some.ancestors[e.parent]) for e in edges]
    told = {(e.parent, e.child) for e in edges}
    true = {(p, n) for n in some.names if (p := some.parent(n)) is not None}
    clear = {(p, n) for p, n in true if some.clear(n)}
    plain = spanned(some, distances.squared, np.diag(distances.norms))
    return Scored(lines, len(true), (len(clear), len(clear & told)), (len(plain & true), len(plain)))


def spanned(some: Part, squared: np.ndarray, norms: np.ndarray) -> set[tuple[str, str]]:
    """Edges of a minimum spanning tree, away from the model of the smallest norm."""
    around: dict[int, list[int]] = {i: [] for i in range(len(norms))}
    for a, b in spanning_tree(squared):
        around[a].append(b)
        around[b].append(a)
    todo, out = [(int(np.argmin(norms)), -1)], set()
    while todo:
        v, before = todo.pop()
        for w in around[v]:
            if w != before:
                out.add((some.names[v], some.names[w]))
                todo.append((w, v))
    return out
