"""The search for a map: from axes whose order all networks share, through the tensors, to every set of units.

A set of units is matched as soon as some tensor shows it beside axes that are mapped already: pixels, colours and
tokens first, then the units behind them, and so on. Where no such chain starts, or it breaks (a new first layer, an
unknown architecture), tensors are matched by themselves: see `free`. Only what is *clear* is kept, that is, what no
order of units explains; so independent networks are left early.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import log

import numpy as np

from stemma.kinship.weights.contents.bound import freedom, gains, orders, surplus
from stemma.kinship.weights.maps.assignment import matched
from stemma.kinship.weights.maps.axis_map import AxisMap, PairedAxis, Part, PartMap
from stemma.kinship.weights.maps.blocks import FAINT, Block, Sides

SURE = 20.0
"""Nats by which a match must exceed what any order of units could give, before others are built on it."""

MANY = 1024
"""Units from which half the coordinates are looked at first."""

SAMPLE = 128
"""Matched units that decide whether a match is clear."""

PLAIN = (False,)
"""Units as they stand."""

VIEWS = 8
"""Tensors that show one set of units to a match; further ones tell it little."""

SAME = 0.999
"""Mean cosine from which factors of units need not be divided out."""

TIE = 1e-3
"""What the length of a unit counts beside its direction."""

FEW = 32
"""Units below which their rows are compared one by one: a few heads have no others to be told from."""

TELLING = 2.0
"""Nats per unit that a tensor must say to be counted: independent units say one."""

NEARLY = 0.95
"""Mean cosine from which a match is not looked at again."""


@dataclass(frozen=True, eq=False)
class Match:
    """Units that go together.

    Attributes:
        units: Which.
        clear: Nats beyond what any order of units gives; negative where an order alone would do.
        cosine: Mean cosine of the matched units.
    """

    units: AxisMap
    clear: float
    cosine: float


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
        cosines: By key, the mean cosine of the match.
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

    def sets(self) -> list[str]:
        """All sets of units, in the order of their tensors."""
        return list(dict.fromkeys(axis.key for p in self.parts.values() for axis in p.axes if axis.key))

    def showing(self, key: str) -> Iterator[tuple[str, int]]:
        """The tensors and axes that carry a set of units.

        Yields:
            Name in the reference and position of the axis.
        """
        for name, part in self.parts.items():
            for k, axis in enumerate(part.axes):
                if axis.key == key:
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
        return [(name, k, b) for name, k, b in found if b is not None and min(len(b.a), len(b.b)) >= 2]

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
        self.units[key], self.cosines[key] = match.units, match.cosine
        self.turned_units.pop(key, None)
        for name, k, b in blocks if signed else ():
            u, v = b.vectors(rescaled=True)
            cosines = (u[match.units.rows] * v[match.units.columns]).sum(axis=1)
            self.signs[name, k] = np.where(cosines < 0, -1.0, 1.0).astype(np.float32)
            if (cosines < 0).any():
                self.turned_units[key] = self.signs[name, k]

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
        return m
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
    progress = True
    while progress:
        progress = False
        for key in chart.sets():
            if key in chart.units:
                continue
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
                progress = True


def refine(chart: Chart) -> None:
    """Match once more what was not matched well, now that more tensors show it.

    Args:
        chart: Is improved.
    """
    for key in chart.sets():
        if key not in chart.units or chart.units[key].rotation is not None or chart.cosines.get(key, 0.0) > NEARLY:
            continue
        blocks = chart.blocks(key)
        signed = any((name, k) in chart.signs for name, k, _ in blocks)
        before = None if signed or not blocks else judged(blocks, chart.units[key], signed=False)
        if before is None or before.cosine > NEARLY:
            continue
        found = match(blocks, signed=False, seed=chart.seed)
        if found is not None and found.clear > before.clear:
            chart.units[key] = found.units


def matched_best(blocks: Sequence[tuple[str, int, Block]], seed: int) -> tuple[Match | None, bool]:
    """Match units as they are, and where that does not bring all of them together, with their signs free.

    Args:
        blocks: Tensor, axis and what it shows.
        seed: Of what falls at random.

    Returns:
        The clearer match, and whether signs were free.
    """
    plain = match(blocks, signed=False, seed=seed, views=PLAIN)
    if plain is not None and plain.cosine > NEARLY:
        return plain, False
    other = match(blocks, signed=False, seed=seed)
    plain = max((m for m in (plain, other) if m is not None), key=lambda m: m.clear, default=None)
    if plain is not None and plain.cosine > NEARLY:
        return plain, False
    free = match(blocks, signed=True, seed=seed)
    if free is None or (plain is not None and plain.clear >= free.clear):
        return plain, False
    return free, True


def match(
    blocks: Sequence[tuple[str, int, Block]], *, signed: bool, seed: int, views: tuple[bool, ...] = (True, False)
) -> Match | None:  # fmt: skip
    """Match units by all tensors that show them.

    Args:
        blocks: Tensor, axis and what it shows.
        signed: Whether the opposite of a unit counts like the same.
        seed: Of what falls at random.
        views: Units with their factors divided out, as they stand, or both.

    Returns:
        The match; None where fewer than two units carry information.
    """
    shown = [pair for _, _, b in blocks for pair in _weighted(b, views)]
    of = len(shown[0][0]), len(shown[0][1])
    rows, columns = matched([*shown, *(_lengths(b) for _, _, b in blocks)], signed=signed, seed=seed)
    alive = np.zeros(len(rows), bool)
    for u, v in shown:
        alive |= u[rows].any(axis=1) & v[columns].any(axis=1)
    if alive.sum() < 2:
        return None
    found = judged(blocks, AxisMap(rows[alive], columns[alive], of), signed=signed)
    return replace(found, units=_completed(rows[alive], columns[alive], of))


def _completed(rows: np.ndarray, columns: np.ndarray, of: tuple[int, int]) -> AxisMap:
    """Give units without a counterpart those that are left, in order, where they are as many.

    Dead units say nothing about which is which, and it does not matter.

    Returns:
        The map.
    """
    left = np.setdiff1d(np.arange(of[0]), rows), np.setdiff1d(np.arange(of[1]), columns)
    if len(left[0]) != len(left[1]):
        return AxisMap(rows, columns, of)
    rows, columns = np.concatenate([rows, left[0]]), np.concatenate([columns, left[1]])
    order = np.argsort(rows)
    return AxisMap(rows[order], columns[order], of)


def _weighted(block: Block, views: tuple[bool, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Units with factors divided out, or as they stand; what scatters less between strangers counts more."""
    out = []
    for rescaled in views:
        u, v = block.vectors(rescaled=rescaled)
        step = max(1, len(u) // SAMPLE), max(1, len(v) // SAMPLE)
        scatter = float(np.mean((u[:: step[0]] @ v[:: step[1]].T) ** 2))
        out.append((u / np.float32(max(scatter, 1e-6)), v))
    return out


def _lengths(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose product is minus the squared difference of the logarithms of two lengths, times a small number.

    Lengths of units say little, factors being free, but they tell units apart that point the same way.

    Returns:
        A view, as directions are.
    """
    x, y = (np.log(np.linalg.norm(side.reshape(len(side), -1), axis=1) + 1e-30) for side in (block.a, block.b))
    x, y = (np.clip(z - np.median(z), -5, 5)[:, None] for z in (x, y))
    one = np.ones_like(x), np.ones_like(y)
    return TIE * np.hstack([2 * x, -x * x, -one[0]]).astype(np.float32), np.hstack([y, one[1], y * y]).astype(
        np.float32
    )


def judged(blocks: Sequence[tuple[str, int, Block]], units: AxisMap, *, signed: bool) -> Match:
    """How clear a match is: what its units gain beyond what the best order of units gives.

    Args:
        blocks: Tensors that show the units.
        units: Which go together.
        signed: Whether signs were free.

    Returns:
        The match with its figures.
    """
    pairs, total, told, cosines, seen = 0, 0.0, 0, [], set()
    for _, _, b in blocks:
        alive = np.flatnonzero(_alive(b.a)[units.rows] & _alive(b.b)[units.columns])
        if not len(alive):
            continue
        chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).round().astype(int))]
        rows, columns = units.rows[chosen], units.columns[chosen]
        part = _row_by_row(b, rows, columns) if len(rows) < FEW and b.a.shape[1] > 1 else b.of(rows, columns)
        gain, cosine, counted = _gain(*part.vectors(rescaled=False), signed=signed)
        if cosine < SAME:
            gain, cosine, counted = max((gain, cosine, counted), _gain(*part.vectors(rescaled=True), signed=signed))
        cosines.append(cosine)
        if gain > TELLING * counted:
            total, pairs, told = total + gain, pairs + counted, told + 1
            seen |= set(chosen.tolist())
    paid = orders(len(seen), units.of[1]) + told * log(2) * (1 + signed * len(seen))
    return Match(units, surplus(pairs, total) - paid, float(np.mean(cosines)) if cosines else 0.0)


_NO = (0.0, 0.0, 0)


def _alive(units: np.ndarray) -> np.ndarray:
    """Which units carry information: a length of their own, and a direction beside the common one."""
    flat = units.reshape(len(units), -1)
    norm = np.linalg.norm(flat, axis=1)
    alive = norm > FAINT * max(float(norm.max(initial=0.0)), 1e-30)
    if alive.sum() < 2:
        return alive
    unit = flat / np.where(alive, norm, 1)[:, None]
    return alive & (np.abs(unit - unit[alive].mean(axis=0)).max(axis=1) > 1e-6)


def _gain(u: np.ndarray, v: np.ndarray, *, signed: bool) -> tuple[float, float, int]:
    """Gain, mean cosine and number of rows that carry information."""
    alive = u.any(axis=1) & v.any(axis=1)
    similarity = u[alive] @ v[alive].T
    if not similarity.size:
        return _NO
    own = np.abs(similarity.diagonal()) if signed else similarity.diagonal()
    return float(gains(own, freedom(similarity, np.arange(len(own)))).sum()), float(own.mean()), len(own)


def _row_by_row(block: Block, rows: np.ndarray, columns: np.ndarray) -> Block:
    """Matched units as so many single rows."""
    a, b = block.a[rows], block.b[columns]
    return replace(block, a=a.reshape(-1, 1, *a.shape[2:]), b=b.reshape(-1, 1, *b.shape[2:]))
