"""Maps between two models: for each axis of a pair of tensors, which unit corresponds to which."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from stemma.architectures.structure import AxisLabel
from stemma.kinship.weights.correspondence import Pairing


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Which units of the target stand for which of the reference.

    Attributes:
        rows: Units of the reference that have a counterpart, ascending.
        columns: The target's unit for each of them.
        of: Number of units on either side, reference first.
        signs: 1 or -1 for each of them where signs were turned, else None.
        rotation: Linear map `[reference, target]` instead of a permutation, orthogonal for a stream; then `rows` and
            `columns` are as many as the narrower side has.
    """

    rows: np.ndarray
    columns: np.ndarray
    of: tuple[int, int]
    signs: np.ndarray | None = None
    rotation: np.ndarray | None = None

    @classmethod
    def identity(cls, units: int, target: int | None = None) -> "AxisMap":
        """The identity, for as many units as both sides have."""
        other = units if target is None else target
        common = np.arange(min(units, other))
        return cls(common, common, (units, other))

    @property
    def in_place(self) -> bool:
        """Whether every unit keeps its place, without rotation or sign changes."""
        return self.rotation is None and self.signs is None and np.array_equal(self.rows, self.columns)

    @property
    def whole(self) -> bool:
        """Whether every unit of both sides has a counterpart."""
        return len(self.rows) == self.of[0] == self.of[1]

    def sign_of(self, units: np.ndarray) -> np.ndarray:
        """The signs (1 or -1) of some of the reference's units."""
        out = np.ones(self.of[0], np.float32)
        if self.signs is not None:
            out[self.rows] = self.signs
        return out[units]


@dataclass(frozen=True, eq=False)
class PairedAxis:
    """One axis of a pair of tensors.

    Attributes:
        a: Rows in the reference.
        b: Rows in the target.
        label: What the axis carries, as far as it is known.
        key: Axes that are taken to carry the same units have the same key; "" where rows stand in a fixed order.
        free: Whether rows may stand in any order: units, or rows about which nothing is known.
        start: First row of the part of the tensor's axis that is meant, in both models.
        block: Rows per unit where it is not as the label says: single heads of which several share keys; else 0.
    """

    a: int
    b: int
    label: AxisLabel
    key: str
    free: bool
    start: int = 0
    block: int = 0

    def units(self) -> np.ndarray:
        """Rows of the reference by unit, `[units, rows per unit]`."""
        if self.block:
            return np.arange(self.a).reshape(-1, self.block)
        named = self.key and self.key == self.label.group
        return np.concatenate([s.index() for s in self.label.segments], axis=1) if named else _rows(self.a)

    def units_of_target(self) -> np.ndarray:
        """Rows of the target by unit; empty where its size does not fit the reference's blocks."""
        if self.a == self.b:
            return self.units()
        only = self.label.segments[0]
        rows = self.block or (only.block if self.key == self.label.group else 1)
        whole = len(self.label.segments) == 1 and only.stride == 1 and not only.offset and self.b % rows == 0
        return np.arange(self.b).reshape(-1, rows) if whole else np.zeros((0, 1), int)


def _rows(count: int) -> np.ndarray:
    return np.arange(count)[:, None]


@dataclass(frozen=True, eq=False)
class Part:
    """Two paired tensors, or stretches of them that carry one set of units, with their axes longer than 1."""

    pairing: Pairing
    axes: tuple[PairedAxis, ...]

    @property
    def entries(self) -> int:
        """Entries of the smaller side."""
        size = 1
        for axis in self.axes:
            size *= min(axis.a, axis.b)
        return size


@dataclass(frozen=True, eq=False)
class PartMap:
    """A part with a map of rows for each of its axes."""

    part: Part
    maps: tuple[AxisMap, ...]


@dataclass(frozen=True, eq=False)
class UnitMap:
    """The whole map.

    Attributes:
        parts: By name of the part: the tensor in the reference, with a number where it has several.
        units: By key of axes, the map of units (one unit may have several rows).
        unmapped_in_reference: Matrices of the reference without a counterpart or without a map.
        unmapped_in_target: Matrices of the target that nothing was mapped to.
        fitted: Parts that a linear map was fitted to: they are no evidence.
    """

    parts: Mapping[str, PartMap]
    units: Mapping[str, AxisMap] = field(default_factory=dict)
    unmapped_in_reference: tuple[str, ...] = ()
    unmapped_in_target: tuple[str, ...] = ()
    fitted: frozenset[str] = frozenset()

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done to units, in words."""
        maps = [m for p in self.parts.values() for m in p.maps]
        found = {
            "stream rotated": any(m.rotation is not None for m in self.units.values()),
            "units permuted": any(not np.array_equal(m.rows, m.columns) for m in maps),
            "signs turned": any(m.signs is not None and bool((m.signs < 0).any()) for m in maps),
            "heads in another basis": any(
                m.rotation is not None and (axis.key not in self.units or self.units[axis.key].rotation is None)
                for p in self.parts.values() for m, axis in zip(p.maps, p.part.axes, strict=True)
            ),
        }  # fmt: skip
        return tuple(word for word, there in found.items() if there)
