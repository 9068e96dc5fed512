"""Where the models of a family tree are drawn: roots on the left, families one below the other.

Every model of a family has a place on a grid of columns (generations) and rows. A tree of first parents is laid out
with a row for each leaf, and a parent in the row of its middle child, so that no two models share a place. Further
parents of a merge are connected through the gaps between rows and columns, where there are no boxes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

MOST = 300
"""Models that a picture shows; more are not readable in one picture."""


@dataclass(frozen=True, slots=True)
class Place:
    """One model on the grid.

    Attributes:
        name: Name of the model.
        column: Generation, 0 for roots.
        row: Row, from the top of the picture.
        missing: Whether it is an ancestor that is not among the models.
        alone: Whether it has no relative here.
    """

    name: str
    column: int
    row: int
    missing: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One family of the picture.

    Attributes:
        places: Its models; for the last family, all models without a relative.
        edges: Its edges, in the order of children.
        first: Indices of the edges from first parents.
        rows: The first row, and the one behind the last.
        undirected: Groups of roots that are related to one another while none is shown to be the parent of another.
        alone: Whether these are the models without a relative.
    """

    places: tuple[Place, ...]
    edges: tuple[Mapping[str, Any], ...]
    first: frozenset[int]
    rows: tuple[int, int]
    undirected: tuple[tuple[str, ...], ...] = ()
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """All families of the picture.

    Attributes:
        families: One below the other.
        left_out: Number of models that are not shown.
    """

    families: tuple[Family, ...]
    left_out: int


ABREAST = 4
"""Models without a relative that stand beside one another."""


def layout(document: Document, most: int = MOST) -> Layout:
    """Where every model is drawn.

    Args:
        document: What `stemma lineage --json` prints, or `Lineage.to_dict` gives.
        most: Models that are shown, the largest families first.

    Returns:
        Families with their places; whole generations are left out of a family that is too large.
    """
    groups, alone = _groups(document)
    out: list[Family] = []
    row, left, left_out = 0, most, 0
    for names, edges in groups:
        family = _family(names[:left], edges, document, row) if left else None
        left_out += len(names) - (len(family.places) if family else 0)
        if family is not None:
            out.append(family)
            row, left = family.rows[1], left - len(family.places)
    if alone:
        shown = alone[:left]
        left_out += len(alone) - len(shown)
        places = tuple(Place(n, i % ABREAST, row + i // ABREAST, alone=True) for i, n in enumerate(shown))
        if places:
            out.append(Family(places, (), frozenset(), (row, places[-1].row + 1), alone=True))
    return Layout(tuple(out), left_out)


def _groups(document: Document) -> tuple[list[tuple[list[str], list[Mapping[str, Any]]]], list[str]]:
    """Names and edges of every family, ancestors before children, and the models without a relative."""
    edges = list(document["edges"])
    above: dict[str, list[str]] = {}
    for edge in edges:
        above.setdefault(edge["child"], []).append(edge["parent"])
        above.setdefault(edge["parent"], [])
    home: dict[str, int] = {}
    members: dict[int, list[str]] = {}
    for i, family in enumerate(document["families"]):
        home |= dict.fromkeys(family, i)
        members[i] = list(family)
    for name in above:  # missing ancestors, and whatever else has an edge
        if name not in home:
            relative = next((home[n] for n in _connected(name, edges) if n in home), len(members))
            home[name] = relative
            members.setdefault(relative, []).append(name)
    for model in document["models"]:
        if model["name"] not in home:
            members[len(members)] = [model["name"]]
    own_edges: dict[int, list[Mapping[str, Any]]] = {}
    for edge in edges:
        own_edges.setdefault(home[edge["child"]], []).append(edge)
    groups, alone = [], []
    for i, names in members.items():
        own = own_edges.get(i, [])
        if len(names) == 1 and not own:
            alone += names
        else:
            groups.append((_sorted(names, above), own))
    return groups, alone


def _connected(name: str, edges: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything that is connected with a model by edges, the nearest first."""
    near: dict[str, list[str]] = {}
    for edge in edges:
        near.setdefault(edge["parent"], []).append(edge["child"])
        near.setdefault(edge["child"], []).append(edge["parent"])
    found = {name: None}
    for one in (waiting := [name]):
        new = [other for other in near.get(one, ()) if other not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return list(found)


def _sorted(names: Sequence[str], above: Mapping[str, Sequence[str]]) -> list[str]:
    """Ancestors before children, as far as there is no circle; otherwise by name."""
    depth = _depths(names, above)
    return sorted(names, key=lambda name: (depth[name], name))


def _depths(names: Sequence[str], above: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Length of the longest path to each model from a root; an edge that would close a circle counts for nothing."""
    depth: dict[str, int] = {}
    inside = set(names)
    for start in sorted(names):
        stack, open_ = [start], set()
        while stack:
            name = stack[-1]
            if name in depth:
                stack.pop()
                continue
            open_.add(name)
            parents = [p for p in above.get(name, ()) if p in inside]
            waiting = [p for p in parents if p not in depth and p not in open_]
            if waiting:
                stack += waiting[:1]
                continue
            depth[name] = 1 + max((depth[p] for p in parents if p in depth), default=-1)
            open_.discard(name)
            stack.pop()
    return depth


def _family(names: Sequence[str], edges: Sequence[Mapping[str, Any]], document: Document, row: int) -> Family:
    """One family, from its first row on."""
    inside = set(names)
    kept = [edge for edge in edges if edge["parent"] in inside and edge["child"] in inside]
    above: dict[str, list[str]] = {}
    for edge in kept:
        above.setdefault(edge["child"], []).append(edge["parent"])
    depth = _depths(names, above)
    first: dict[str, int] = {}
    for i, edge in enumerate(kept):
        if depth[edge["parent"]] < depth[edge["child"]]:
            best = first.get(edge["child"])
            if best is None or _share(edge) > _share(kept[best]):
                first[edge["child"]] = i
    below: dict[str, list[str]] = {}
    for child, i in sorted(first.items()):
        below.setdefault(kept[i]["parent"], []).append(child)
    tops = sorted((n for n in names if n not in first), key=lambda name: (-_size(name, below), name))
    rows, end = _rows(tops, below, row)
    missing = {str(one["name"]) for one in document["missing_ancestors"]}
    places = tuple(Place(n, depth[n], rows[n], n in missing) for n in sorted(names, key=lambda n: (rows[n], depth[n])))
    loose = _undirected(document, {place.name for place in places if place.column == 0})
    return Family(places, tuple(kept), frozenset(first.values()), (row, end), loose)


def _undirected(document: Document, tops: set[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of roots between which a relation was found and no direction."""
    from stemma.ancestry.trees.forest import NO_DIRECTION

    pairs = [one["models"] for one in document["refused"] if one["reason"] == NO_DIRECTION]
    links = [{"parent": a, "child": b} for a, b, *_ in (p for p in pairs if len(p) == 2) if {a, b} <= tops]
    groups = {tuple(sorted(_connected(link["parent"], links))) for link in links}
    return tuple(sorted(groups))


def _share(edge: Mapping[str, Any]) -> float:
    return edge["share"] if edge.get("share") is not None else 0.0


def _size(name: str, below: Mapping[str, Sequence[str]]) -> int:
    return sum(1 for _ in _walk(name, below))


def _walk(name: str, below: Mapping[str, Sequence[str]]) -> Iterator[str]:
    waiting = [name]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += below.get(one, ())


def _rows(tops: Sequence[str], below: Mapping[str, Sequence[str]], row: int) -> tuple[dict[str, int], int]:
    """A row for every leaf in the order of the tree; a parent stands in the row of its middle child."""
    rows: dict[str, int] = {}
    for top in tops:
        order = list(_walk(top, {name: list(reversed(children)) for name, children in below.items()}))
        for name in order:
            if not below.get(name):
                rows[name] = row
                row += 1
        for name in reversed(order):
            if children := below.get(name):
                rows[name] = rows[children[(len(children) - 1) // 2]]
    return rows, row
