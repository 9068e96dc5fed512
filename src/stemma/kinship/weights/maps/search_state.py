"""State of the search for a map: from axes of fixed order, through the tensors, to every set of units.

A set of units is matched as soon as some tensor shows it beside mapped axes: pixels, colours and tokens first, then the
units behind them, and so on. Where no such chain starts, or it breaks (a new first layer, an unknown architecture),
tensors are matched individually: see `single_tensor`. Only matches with a large margin over any order of independent
units are kept, so the search ends early for independent networks.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.kinship.weights.maps.axis_map import AxisMap, PairedAxis, Part, PartMap
from stemma.kinship.weights.maps.blocks import MappedPair, UnitBlock
from stemma.kinship.weights.maps.match_units import (
    NEARLY_EQUAL,
    UnitMatch,
    match_units,
    match_with_optional_signs,
    refine_near_duplicates,
    score_match,
)

MIN_MARGIN = 20.0
"""Least margin of a match, in nats, for others to be built on it."""

MANY_UNITS = 1024
"""Units from which half the coordinates are compared first."""

MAX_MISSES = 8
"""Sets of units or tensors, spread over the model, that fail to match before the search stops."""

MAX_TENSORS = 8
"""Most tensors used to match one set of units; further ones add little."""


@dataclass(eq=False)
class SearchState:
    """The map found so far. Mutable; used within one search.

    Attributes:
        sides: Readers of both models.
        parts: Paired parts of tensors, by name in the reference.
        units: Map of units by key.
        signs: Signs of units by part and axis.
        unit_signs: Signs of units by key, for tensors that were not compared yet.
        head_bases: Linear map of the rows by part and axis: heads in another basis.
        fitted: Parts to which a rotation or a basis was fitted, which are no evidence.
        cosines: Mean cosine of the match by key; zero if some units were uninformative.
        tried: Fits of rotations that were tried before, here or in another search of the same models.
        coordinates: Entries of a unit that are compared in one tensor; half of them for very many units.
        seed: Seed of random choices.
    """

    sides: MappedPair
    parts: dict[str, Part]
    coordinates: int = 256
    seed: int = 0
    units: dict[str, AxisMap] = field(default_factory=dict)
    signs: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    unit_signs: dict[str, np.ndarray] = field(default_factory=dict)
    head_bases: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    fitted: set[str] = field(default_factory=set)
    cosines: dict[str, float] = field(default_factory=dict)
    tried: dict[Hashable, float] = field(default_factory=dict)
    _places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def sets(self) -> list[str]:
        """All sets of units, in the order of their tensors."""
        return list(dict.fromkeys(axis.key for p in self.parts.values() for axis in p.axes if axis.key))

    def showing(self, key: str) -> Iterator[tuple[str, int]]:
        """The tensors (names in the reference) and axis positions that carry a set of units."""
        if key not in self._places:
            self._places = {}
            for name, part in self.parts.items():
                for k, axis in enumerate(part.axes):
                    self._places.setdefault(axis.key, []).append((name, k))
        for name, k in self._places.get(key, ()):
            if self.parts[name].axes[k].key == key:
                yield name, k

    def rows(self, name: str, k: int) -> AxisMap | None:
        """The map of the rows of one axis; None where it is not known yet."""
        axis = self.parts[name].axes[k]
        if not axis.key:
            return AxisMap.identity(axis.a, axis.b)
        if (name, k) in self.head_bases:
            every = np.arange(axis.a)
            return AxisMap(every, every, (axis.a, axis.b), rotation=self.head_bases[name, k])
        if axis.key in self.units:
            signs = self.signs.get((name, k), self.unit_signs.get(axis.key))
            return _expanded(self.units[axis.key], axis, signs)
        return None

    def block(self, name: str, k: int, coordinates: int | None = None) -> UnitBlock | None:
        """The units of one axis as one tensor shows them; None where another axis has no map."""
        part = self.parts[name]
        maps = [None if i == k else self.rows(name, i) for i in range(len(part.axes))]
        return self.sides.block(part, maps, k, coordinates or self.coordinates)

    def blocks(self, key: str, coordinates: int = 0) -> list[tuple[str, int, UnitBlock]]:
        """All blocks that show a set of units so far, from at most `MAX_TENSORS` tensors."""
        open_, places = [], list(self.showing(key))
        for name, k in places:
            axes = self.parts[name].axes
            others = [i for i in range(len(axes)) if i != k]
            if all(axes[i].key != key and self.rows(name, i) is not None for i in others):
                open_.append((name, k))
        step = max(1, -(-len(open_) // MAX_TENSORS))
        found = ((name, k, self.block(name, k, coordinates or self._enough(name, k))) for name, k in open_[::step])
        blocks = [(name, k, b) for name, k, b in found if b is not None and min(len(b.a), len(b.b)) >= 2]
        sizes = [(len(b.a), len(b.b)) for _, _, b in blocks]  # a tensor paired wrongly may show another number
        return [x for x, size in zip(blocks, sizes, strict=True) if size == max(sizes, key=sizes.count)]

    def _enough(self, name: str, k: int) -> int:
        return self.coordinates // 2 if self.parts[name].axes[k].a > MANY_UNITS else self.coordinates

    def accept(self, key: str, found: UnitMatch, blocks: Sequence[tuple[str, int, UnitBlock]], *, signed: bool) -> None:
        """Keep a match, and where signs are free the signs for each tensor that shows it."""
        before = self.units.get(key)
        if before is None or not np.array_equal(before.rows, found.units.rows):
            self.forget_signs(key)
        self.units[key], self.cosines[key] = found.units, 0.0 if found.silent else found.cosine
        self.unit_signs.pop(key, None)
        for name, k, b in blocks if signed else ():
            u, v = b.vectors(rescaled=True, signed=True)
            cosines = (u[found.units.rows] * v[found.units.columns]).sum(axis=1)
            self.signs[name, k] = np.where(cosines < 0, -1.0, 1.0).astype(np.float32)
            if (cosines < 0).any():
                self.unit_signs[key] = self.signs[name, k]

    def forget_signs(self, key: str) -> None:
        """Drop the signs of a set of units, which belong to one match."""
        self.unit_signs.pop(key, None)
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
    """The map of a unit's rows; None where the axis has another number of units."""
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


def propagate(state: SearchState) -> None:
    """Match every set of units that a tensor with mapped axes shows, until no match is clear."""
    tried: dict[str, int] = {}
    progress, misses = True, 0
    while progress:
        progress = False
        for key in spread_first(state.sets()):
            if key in state.units:
                continue
            if misses >= MAX_MISSES:
                return
            blocks = state.blocks(key)
            if not blocks or tried.get(key) == len(blocks):
                continue
            tried[key] = len(blocks)
            found, signed = match_with_optional_signs(blocks, state.seed)
            if max(len(b.a) for _, _, b in blocks) > MANY_UNITS and (found is None or found.margin <= MIN_MARGIN):
                blocks = state.blocks(key, 4 * state.coordinates)
                found, signed = match_with_optional_signs(blocks, state.seed)
            if found is not None and found.margin > MIN_MARGIN:
                state.accept(key, found, blocks, signed=signed)
                progress, misses = True, -len(state.parts)
            else:
                misses += 1


def spread_first(names: Sequence[str]) -> list[str]:
    """The names, a few from everywhere first."""
    first = names[:: max(1, len(names) // MAX_MISSES)]
    return [*first, *(n for n in names if n not in first)]


def refine(state: SearchState) -> None:
    """Match again what was not matched well, now that more tensors show it."""
    for key in state.sets():
        if (
            key not in state.units
            or state.units[key].rotation is not None
            or state.cosines.get(key, 0.0) > NEARLY_EQUAL
        ):
            continue
        blocks = state.blocks(key)
        if any((len(b.a), len(b.b)) != state.units[key].of for _, _, b in blocks):
            continue
        signed = any((name, k) in state.signs for name, k, _ in blocks)
        before = None if signed or not blocks else score_match(blocks, state.units[key], signed=False)
        if before is None:
            continue
        if before.least <= NEARLY_EQUAL:
            found = match_units(blocks, signed=False, seed=state.seed)
            if found is not None and (found.margin, found.cosine) > (before.margin, before.cosine):
                state.units[key] = found.units
        state.units[key] = refine_near_duplicates([b for _, _, b in blocks], state.units[key])
