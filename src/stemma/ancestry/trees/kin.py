"""The descendants and the ancestors of a model in a lineage, with the paths that lead to them and their probability."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from stemma.ancestry.trees.forms import chance_of, forms_of, missing_names
from stemma.ancestry.trees.reachability import Reached, order_of, reach
from stemma.ancestry.trees.unresolved import Unresolved
from stemma.types import Edge, Lineage

MAX_PATHS = 8
"""Paths to one model that are listed, the most probable first."""

Direction = Literal["descendants", "ancestors"]


@dataclass(frozen=True, slots=True)
class Path:
    """One way from a model to another along the edges of a lineage.

    Attributes:
        edges: Edges from the older model to the younger one, in their order; an edge between two forms of one network
            may run either way.
        probability: Product of the edges' probabilities; None where one of them has none.
        share: Share of the weights that the merges on the path pass on; None where there is no merge with shares.
    """

    edges: tuple[Edge, ...]
    probability: float | None
    share: float | None

    def names_from(self, start: str) -> tuple[str, ...]:
        """The models on the path, from its older end on."""
        out = [start]
        for e in self.edges:
            out.append(e.child if e.parent == out[-1] else e.parent)
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Kin:
    """A model that descends from another one, or that another one descends from.

    Attributes:
        name: Name of the model, or of a missing ancestor.
        missing: Whether it is a missing ancestor.
        same: Whether it is the model in question itself in another form.
        reached: Probability that the one descends from the other.
        paths: The most probable ways, at most `MAX_PATHS`.
        n_paths: Number of all ways.
        share: Share of the older model's weights that merges pass on, over all ways; None without such merges.
    """

    name: str
    missing: bool
    same: bool
    reached: Reached
    paths: tuple[Path, ...]
    n_paths: int
    share: float | None


@dataclass(frozen=True, slots=True)
class KinOf:
    """All descendants, or all ancestors, of one model.

    Attributes:
        of: Name of the model.
        direction: Which of the two was asked.
        models: Those that edges lead to, the most probable first.
        undecided: Models for which it is not decided whether they are among them, with why; the name is empty where
            something could not be read at all.
    """

    of: str
    direction: Direction
    models: tuple[Kin, ...]
    undecided: tuple[tuple[str, str], ...]

    @property
    def established(self) -> tuple[Kin, ...]:
        """Models (not missing ancestors) for which the edges give a probability above zero."""
        return tuple(k for k in self.models if k.reached.at_least > 0 and not k.missing)

    @property
    def possible(self) -> tuple[str, ...]:
        """Names of the models that may be among them: not decided, or only on ways without a probability."""
        unknown = [k.name for k in self.models if not k.reached.at_least > 0 and not k.missing]
        return tuple(sorted({*unknown, *(name for name, _ in self.undecided if name)}))


def kin_of(lineage: Lineage, name: str, direction: Direction) -> KinOf:
    """The descendants or ancestors of a model.

    Other forms of one network (copies, other layouts, other coordinates) count as one model: what was made from the
    one was made from all. Edges are taken to be independent; an edge without a confidence is certain, unless one end
    is a missing ancestor.

    Args:
        lineage: The lineage.
        name: A model, or a missing ancestor, of the lineage.
        direction: What is wanted.

    Returns:
        What edges lead to, and what is not decided.
    """
    return _Search(lineage, name, direction).result()


class _Search:
    """The graph of networks (each with all its forms) below, or above, one model."""

    def __init__(self, lineage: Lineage, name: str, direction: Direction) -> None:
        self.lineage, self.name, self.direction = lineage, name, direction
        self.forms = forms_of(lineage)
        self.missing = missing_names(lineage)
        self.before: dict[int, list[tuple[int, Edge]]] = {i: [] for i in range(len(self.forms.groups))}
        for e in lineage.edges:
            a, b = (self.forms.number[end] for end in self.ends(e))
            if a != b:
                self.before[b].append((a, e))

    def ends(self, edge: Edge) -> tuple[str, str]:
        """The end of an edge that is nearer to the model in question, and the other one."""
        return (edge.parent, edge.child) if self.direction == "descendants" else (edge.child, edge.parent)

    def result(self) -> KinOf:
        """The answer."""
        source = self.forms.number[self.name]
        reached = reach(source, {v: [(a, self.chance((e,))) for a, e in into] for v, into in self.before.items()})
        inside = {v: [(a, e) for a, e in self.before[v] if a in reached and v != source] for v in reached}
        order = order_of({v: [(a, None) for a, _ in into] for v, into in inside.items()}) or [source]
        ways: dict[int, list[tuple[float, tuple[Edge, ...]]]] = {source: [(1.0, ())]}
        counts, shares = {source: 1}, {source: (1.0, False)}
        for v in (v for v in order if v != source):
            longer: list[tuple[float, tuple[Edge, ...]]] = [
                (chance * (self.chance((e,)) or 0.0), (*way, e)) for a, e in inside[v] for chance, way in ways[a]
            ]
            if len(longer) > 1:
                longer.sort(key=lambda way: (-way[0], len(way[1]), [self.ends(e) for e in way[1]]))
            ways[v] = longer[:MAX_PATHS]
            counts[v] = sum(counts[a] for a, _ in inside[v])
            shares[v] = _joined([(*shares[a], e.share) for a, e in inside[v]])
        found = [
            Kin(
                name,
                name in self.missing,
                v == source,
                reached[v],
                tuple(self.path(way, name) for _, way in ways.get(v, ())),
                counts.get(v, 0),
                _clipped(shares[v][0]) if v in shares and shares[v][1] else None,
            )
            for v in reached
            for name in self.forms.groups[v]
            if name != self.name
        ]
        found.sort(key=lambda k: (not k.same, -k.reached.at_most, -k.reached.at_least, k.name))
        unresolved, listed = Unresolved(self.lineage, self.forms), {self.name, *(k.name for k in found)}
        why = unresolved.descendants(self.name) if self.direction == "descendants" else unresolved.ancestors(self.name)
        undecided = [(name, reason) for name, reason in sorted(why.items()) if name and name not in listed]
        undecided += [("", t["why"]) for t in self.lineage.not_tested if not t["model"]]
        return KinOf(self.name, self.direction, tuple(found), tuple(undecided))

    def chance(self, way: Sequence[Edge]) -> float | None:
        """The product of the probabilities of edges; None where one has none."""
        chances = [chance_of(e, self.missing) for e in way]
        return None if None in chances else prod(c for c in chances if c is not None)

    def path(self, way: Sequence[Edge], name: str) -> Path:
        """A way from the older model to the younger one, with the steps between forms of one network."""
        steps, at = list[Edge](), self.name
        for edge in way:
            near, far = self.ends(edge)
            steps += [*self.forms.steps(at, near), edge]
            at = far
        steps += self.forms.steps(at, name)
        if self.direction == "ancestors":
            steps.reverse()
        shares = [e.share for e in steps if e.share is not None]
        return Path(tuple(steps), self.chance(way), _clipped(prod(shares)) if shares else None)


def _clipped(share: float) -> float:
    return round(min(max(share, 0.0), 1.0), 6)


def _joined(parts: Sequence[tuple[float, bool, float | None]]) -> tuple[float, bool]:
    """The share over all ways to a network, and whether a merge with shares is on one of them.

    Each part is an edge: the share of the network before it, whether a merge is on a way there, and its own share.

    Returns:
        The share, 1 where no merge is on a way, and whether one is.
    """
    has_share = any(known or own is not None for _, known, own in parts)
    total = sum(share * (1.0 if own is None else own) for share, _, own in parts)
    return (total if has_share else 1.0), has_share
