"""Where the models of a whole registry are drawn, so that nothing jumps when a model is added."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.export.trees.outline import CELL_RATIO, Place, outline, square_columns
from stemma.types import Edge, Lineage

SLACK = 1.2
"""Height that is kept free for a family to grow, as a multiple of what it needs."""


@dataclass(frozen=True, slots=True)
class Area:
    """The cells that are kept for one family: left column, top row, columns and rows."""

    x: int
    y: int
    width: int
    height: int

    def holds(self, place: Place) -> bool:
        """Whether a place lies in it."""
        return self.x <= place[0] < self.x + self.width and self.y <= place[1] < self.y + self.height


@dataclass(frozen=True, slots=True)
class Drawing:
    """Places of models: families from row 0 downwards, models without relatives from row -2 upwards.

    Attributes:
        places: Column and row by key: the name of a model, or what stands for a missing ancestor (`key_of`).
        areas: Cells that are kept for each family.
        columns: Columns that the drawing is wide.
        shelf: Column and row of the next free area, and the height of the row of areas that it stands in.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    areas: tuple[Area, ...] = ()
    columns: int = 0
    shelf: tuple[int, int, int] = (0, 0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = sorted(self.places)
        return {
            "names": names,
            "x": [self.places[n][0] for n in names],
            "y": [self.places[n][1] for n in names],
            "areas": [[a.x, a.y, a.width, a.height] for a in self.areas],
            "columns": self.columns,
            "shelf": list(self.shelf),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Drawing":
        """The drawing in what `to_dict` gave."""
        places = dict(zip(content["names"], zip(content["x"], content["y"], strict=True), strict=True))
        areas = tuple(Area(*a) for a in content["areas"])
        x, y, height = content["shelf"]
        return cls(places, areas, content["columns"], (x, y, height))


def draw(lineage: Lineage, before: Drawing | None = None) -> Drawing:
    """Place every model of a lineage.

    Models that were placed before stay where they were. A new one takes the free cell nearest to its parent; a family
    that outgrows its area moves to a new one as a whole, and so does one that another family joined.

    Args:
        lineage: The family trees.
        before: The drawing so far.

    Returns:
        The drawing; no two models share a cell, and no two families an area.
    """
    return _Draughtsman(lineage, before or Drawing()).draw()


def key_of(name: str, missing: Mapping[str, Sequence[str]]) -> str:
    """The key of a model: its name; of a missing ancestor, that of its first child, for ancestors are renumbered."""
    key, steps = name, 0
    while missing.get(key):
        key, steps = min(missing[key]), steps + 1
    return f"{key}\0{steps}" if steps else name


def primary_parents(edges: Iterable[Edge]) -> dict[str, str]:
    """By child: the parent below which it is drawn, the one with the largest share of a merge."""
    chosen: dict[str, Edge] = {}
    for edge in edges:
        known = chosen.get(edge.child)
        if known is None or (edge.share or 0.0) > (known.share or 0.0):
            chosen[edge.child] = edge
    return {child: edge.parent for child, edge in chosen.items()}


class _Draughtsman:
    """State of one drawing."""

    def __init__(self, lineage: Lineage, before: Drawing) -> None:
        missing = {str(m["name"]): [str(c) for c in m["children"]] for m in lineage.missing_ancestors}
        self.before = before
        parents = primary_parents(lineage.edges)
        for name, below in missing.items():  # an ancestor stands with its children, whatever edges say
            for child in below:
                parents.setdefault(child, name)
        self.key = {name: key_of(name, missing) for name in [*(m.name for m in lineage.models), *missing]}
        self.parent = {self.key[c]: self.key[p] for c, p in parents.items() if c in self.key and p in self.key}
        self.families = self._families(lineage, missing)
        self.places: dict[str, Place] = {}
        self.areas: list[Area] = []
        self.columns = before.columns
        self.shelf = before.shelf

    def draw(self) -> Drawing:
        several = [f for f in self.families if len(f) > 1]
        taken: set[Area] = set()
        fresh = []
        for family in sorted(several, key=lambda f: (-len(f), f)):
            if not self._keep(family, taken):
                fresh.append(family)
        drawn = [(family, *self._outline(family)) for family in fresh]
        if not self.columns:
            self.columns = self._columns([(w, h) for _, _, w, h in drawn])
        for _, places, width, height in sorted(drawn, key=lambda d: (-d[3], -d[2], d[0])):
            area = self._new_area(width, height)
            self.places |= {k: (area.x + x, area.y + y) for k, (x, y) in places.items()}
            self.areas.append(area)
        self._place_alone([f[0] for f in self.families if len(f) == 1])
        return Drawing(self.places, tuple(self.areas), self.columns, self.shelf)

    def _families(self, lineage: Lineage, missing: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """Keys of the models of each family, with the missing ancestors."""
        group = {self.key[name]: i for i, f in enumerate(lineage.families) for name in f if name in self.key}
        out = [[self.key[name] for name in f if name in self.key] for f in lineage.families]
        for name in missing:
            below = list(missing[name])
            while below and below[0] in missing:
                below = list(missing[below[0]])
            if below and self.key.get(below[0]) in group:
                out[group[self.key[below[0]]]].append(self.key[name])
        placed = {k for f in out for k in f}
        out += [[k] for k in self.key.values() if k not in placed]
        return [sorted(f) for f in out if f]

    def _keep(self, family: Sequence[str], taken: set[Area]) -> bool:
        """Keep a family in its area, new models in free cells; False where it has none, or no room in it."""
        old = {k: self.before.places[k] for k in family if k in self.before.places}
        area = next((a for a in self.before.areas for k in family[:1] if k in old and a.holds(old[k])), None)
        area = area or next((a for a in self.before.areas if any(a.holds(p) for p in old.values())), None)
        if area is None or area in taken or not all(area.holds(p) for p in old.values()):
            return False
        free = {(x, y) for x in range(area.x, area.x + area.width) for y in range(area.y, area.y + area.height)}
        free -= set(old.values())
        new = [k for k in family if k not in old]
        if len(new) > len(free):
            return False
        for k in sorted(new, key=self._depth):
            x, y = old.get(self.parent.get(k, ""), (area.x - 1, area.y))
            right = [p for p in free if p[0] > x]
            if not right:
                return False
            old[k] = min(right, key=lambda p: (CELL_RATIO * abs(p[0] - x - 1) + abs(p[1] - y - 1), p))
            free.discard(old[k])
        self.places |= old
        self.areas.append(area)
        taken.add(area)
        return True

    def _depth(self, key: str) -> tuple[int, str]:
        steps, at, seen = 0, key, {key}
        while (at := self.parent.get(at, "")) and at not in seen:
            steps += 1
            seen.add(at)
        return steps, key

    def _outline(self, family: Sequence[str]) -> tuple[dict[str, Place], int, int]:
        inside = set(family)
        children: dict[str, list[str]] = {}
        roots = []
        for key in family:
            parent = self.parent.get(key)
            if parent in inside:
                children.setdefault(str(parent), []).append(key)
            else:
                roots.append(key)
        return outline(roots, children)

    def _columns(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Columns of the whole drawing, so that it looks like a page in landscape."""
        alone = sum(len(f) == 1 for f in self.families)
        cells = alone + sum((w + 1) * _roomy(h) for w, h in sizes)
        return square_columns(1.5 * cells, max([4, *(w + 1 for w, _ in sizes)]))

    def _new_area(self, width: int, height: int) -> Area:
        x, y, tall = self.shelf
        wide, high = width + 1, _roomy(height)
        if x and x + wide > self.columns:
            x, y, tall = 0, y + tall, 0
        self.shelf = x + wide, y, max(tall, high)
        return Area(x, y, width + 1, high)

    def _place_alone(self, keys: Iterable[str]) -> None:
        """Models without relatives fill rows upwards from row -2."""
        wanted = sorted(keys)
        kept = {k: p for k in wanted if (p := self.before.places.get(k)) is not None and p[1] < 0}
        used = set(kept.values())
        self.places |= kept
        position = 0
        for k in wanted:
            if k in kept:
                continue
            while (place := (position % self.columns, -2 - position // self.columns)) in used:
                position += 1
            self.places[k] = place
            used.add(place)


def _roomy(height: int) -> int:
    return math.ceil(height * SLACK) + 1
