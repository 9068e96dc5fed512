"""The search for a map: from axes whose order all networks share, through the tensors, to every set of units.

A set of units is matched as soon as some tensor shows it beside axes that are mapped already: pixels, colours and
tokens first, then the units behind them, and so on. Where no such chain starts, or it breaks (a new first layer, an
unknown architecture), tensors are matched by themselves: see `free`. Only what is *clear* is kept, that is, what no
order of units explains; so independent networks are left early.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.kinship.weights.maps.axis_map import AxisMap, PairedAxis, Part, PartMap
from stemma.kinship.weights.maps.blocks import Block, Sides
from stemma.kinship.weights.maps.match import NEARLY, Match, judged, match, matched_best, polished

SURE = 20.0
"""Nats by which a match must exceed what any order of units could give, before others are built on it."""

MANY = 1024
"""Units from which half the coordinates are looked at first."""

MISSES = 8
"""Sets of units, or tensors, spread over the model, that match nothing before no others are tried."""

VIEWS = 8
"""Tensors that show one set of units to a match; further ones tell it little."""


@dataclass(eq=False)
class Chart:
    """What is known of a map while it is searched. Mutable; alive inside one search only.

    Attributes:
        sides: Both models.
        parts: What is put side by side, by name in the reference.
        units: By key, what was found.
        signs: By part and axis, the signs of units that were turned.
        turned_units: By key, the signs that some tensor shows: what a tensor has that was not looked at yet.
        turned: By part and axis, a linear map of its rows: heads in another basis.
        fitted: Parts to which a rotation or a basis was fitted: no evidence.
        cosines: By key, the mean cosine of the match; zero where some units told nothing.
        tried: How well rotations fitted that were tried before, here or in another search of the same models.
        coordinates: Coordinates of a unit that are looked at in one tensor; of very many units half of them suffice.
        seed: Of what falls at random.
    """

    sides: Sides
    parts: dict[str, Part]
    coordinates: int = 256
    seed: int = 0
    units: dict[str, AxisMap] = field(default_factory=dict)
    signs: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    turned_units: dict[str, np.ndarray] = field(default_factory=dict)
    turned: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    fitted: set[str] = field(default_factory=set)
    cosines: dict[str, float] = field(default_factory=dict)
    tried: dict[Hashable, float] = field(default_factory=dict)
    _places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def sets(self) -> list[str]:
        """All sets of units, in the order of their tensors."""
        return list(dict.fromkeys(axis.key for p in self.parts.values() for axis in p.axes if axis.key))

    def showing(self, key: str) -> Iterator[tuple[str, int]]:
        """The tensors and axes that carry a set of units.

        Yields:
            Name in the reference and position of the axis.
        """
        if key not in self._places:
            self._places = {}
            for name, part in self.parts.items():
                for k, axis in enumerate(part.axes):
                    self._places.setdefault(axis.key, []).append((name, k))
        for name, k in self._places.get(key, ()):
            if self.parts[name].axes[k].key == key:
                yield name, k

    def rows(self, name: str, k: int) -> AxisMap | None:
        """The map of the rows of one axis.

        Args:
            name: The tensor.
            k: Position of the axis.

        Returns:
            The map; None where it is not known yet.
        """
        axis = self.parts[name].axes[k]
        if not axis.key:
            return AxisMap.identity(axis.a, axis.b)
        if (name, k) in self.turned:
            every = np.arange(axis.a)
            return AxisMap(every, every, (axis.a, axis.b), rotation=self.turned[name, k])
        if axis.key in self.units:
            signs = self.signs.get((name, k), self.turned_units.get(axis.key))
            return _expanded(self.units[axis.key], axis, signs)
        return None

    def block(self, name: str, k: int, coordinates: int | None = None) -> Block | None:
        """The units of one axis, as one tensor shows them through the maps of its other axes.

        Args:
            name: The tensor.
            k: Position of the axis.
            coordinates: How many of a unit's coordinates; the chart's own number unless given.

        Returns:
            The block; None where another axis has no map.
        """
        part = self.parts[name]
        maps = [None if i == k else self.rows(name, i) for i in range(len(part.axes))]
        return self.sides.block(part, maps, k, coordinates or self.coordinates)

    def blocks(self, key: str, coordinates: int = 0) -> list[tuple[str, int, Block]]:
        """All that shows a set of units now, at most `VIEWS` tensors.

        Args:
            key: The set.
            coordinates: Coordinates of a unit; the chart's own number unless given.

        Returns:
            Tensor, axis and block of each.
        """
        open_, places = [], list(self.showing(key))
        for name, k in places:
            axes = self.parts[name].axes
            others = [i for i in range(len(axes)) if i != k]
            if all(axes[i].key != key and self.rows(name, i) is not None for i in others):
                open_.append((name, k))
        step = max(1, -(-len(open_) // VIEWS))
        found = ((name, k, self.block(name, k, coordinates or self._enough(name, k))) for name, k in open_[::step])
        blocks = [(name, k, b) for name, k, b in found if b is not None and min(len(b.a), len(b.b)) >= 2]
        sizes = [(len(b.a), len(b.b)) for _, _, b in blocks]  # a tensor paired wrongly may show another number
        return [x for x, size in zip(blocks, sizes, strict=True) if size == max(sizes, key=sizes.count)]

    def _enough(self, name: str, k: int) -> int:
        return self.coordinates // 2 if self.parts[name].axes[k].a > MANY else self.coordinates

    def accept(self, key: str, match: Match, blocks: Sequence[tuple[str, int, Block]], *, signed: bool) -> None:
        """Keep a match; where signs may be turned, keep them for each tensor that shows it.

        Args:
            key: The set of units.
            match: What was found.
            blocks: What showed it.
            signed: Whether signs count.
        """
        before = self.units.get(key)
        if before is None or not np.array_equal(before.rows, match.units.rows):
            self.forget_signs(key)
        self.units[key], self.cosines[key] = match.units, 0.0 if match.silent else match.cosine
        self.turned_units.pop(key, None)
        for name, k, b in blocks if signed else ():
            u, v = b.vectors(rescaled=True, signed=True)
            cosines = (u[match.units.rows] * v[match.units.columns]).sum(axis=1)
            self.signs[name, k] = np.where(cosines < 0, -1.0, 1.0).astype(np.float32)
            if (cosines < 0).any():
                self.turned_units[key] = self.signs[name, k]

    def forget_signs(self, key: str) -> None:
        """Drop the signs of a set of units: they belong to the units of one match.

        Args:
            key: The set.
        """
        self.turned_units.pop(key, None)
        for place in list(self.showing(key)):
            self.signs.pop(place, None)

    def mapped(self) -> dict[str, PartMap]:
        """The parts of which every axis is mapped."""
        out = {}
        for name, part in self.parts.items():
            maps = [self.rows(name, k) for k in range(len(part.axes))]
            if all(m is not None and len(m.rows) for m in maps):
                out[name] = PartMap(part, tuple(m for m in maps if m is not None))
        return out


def _expanded(m: AxisMap, axis: PairedAxis, signs: np.ndarray | None) -> AxisMap | None:
    """The rows of the units that go together; None where the axis has another number of units."""
    own, other = axis.units(), axis.units_of_target()
    if m.rotation is not None:
        return m if (axis.a, axis.b) == m.of else None
    if (len(own), len(other)) != m.of or own.shape[1] != other.shape[1]:
        return None
    if own.shape[1] == 1 and len(own) == axis.a and np.array_equal(own[:, 0], np.arange(axis.a)):
        return AxisMap(m.rows, m.columns, (axis.a, axis.b), signs)
    rows, columns = own[m.rows].reshape(-1), other[m.columns].reshape(-1)
    order = np.argsort(rows)
    turned = None if signs is None else np.repeat(signs, own.shape[1])[order]
    return AxisMap(rows[order], columns[order], (axis.a, axis.b), turned)


def propagate(chart: Chart) -> None:
    """Match every set of units that some tensor shows, until nothing new is clear.

    Args:
        chart: Is filled.
    """
    tried: dict[str, int] = {}
    progress, misses = True, 0
    while progress:
        progress = False
        for key in spread(chart.sets()):
            if key in chart.units:
                continue
            if misses >= MISSES:
                return
            blocks = chart.blocks(key)
            if not blocks or tried.get(key) == len(blocks):
                continue
            tried[key] = len(blocks)
            found, signed = matched_best(blocks, chart.seed)
            if max(len(b.a) for _, _, b in blocks) > MANY and (found is None or found.clear <= SURE):
                blocks = chart.blocks(key, 4 * chart.coordinates)
                found, signed = matched_best(blocks, chart.seed)
            if found is not None and found.clear > SURE:
                chart.accept(key, found, blocks, signed=signed)
                progress, misses = True, -len(chart.parts)
            else:
                misses += 1


def spread(names: Sequence[str]) -> list[str]:
    """A few from everywhere first, then the rest as they come.

    Args:
        names: Sets of units, or tensors.

    Returns:
        All of them.
    """
    first = names[:: max(1, len(names) // MISSES)]
    return [*first, *(n for n in names if n not in first)]


def refine(chart: Chart) -> None:
    """Match once more what was not matched well, now that more tensors show it.

    Args:
        chart: Is improved.
    """
    for key in chart.sets():
        if key not in chart.units or chart.units[key].rotation is not None or chart.cosines.get(key, 0.0) > NEARLY:
            continue
        blocks = chart.blocks(key)
        if any((len(b.a), len(b.b)) != chart.units[key].of for _, _, b in blocks):
            continue
        signed = any((name, k) in chart.signs for name, k, _ in blocks)
        before = None if signed or not blocks else judged(blocks, chart.units[key], signed=False)
        if before is None:
            continue
        if before.least <= NEARLY:
            found = match(blocks, signed=False, seed=chart.seed)
            if found is not None and (found.clear, found.cosine) > (before.clear, before.cosine):
                chart.units[key] = found.units
        chart.units[key] = polished([b for _, _, b in blocks], chart.units[key])
