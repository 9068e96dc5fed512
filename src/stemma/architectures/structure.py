"""Labels of tensor axes (which rows belong to which hidden units), and the unit groups that they form."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from stemma.types import UnitGroup, UnitMember

FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of a tensor axis that carries the units of one group, or nothing exchangeable.

    Row `j` of unit `u` is at `offset + u * block + j` (contiguous blocks, `stride` 1), or at `offset + u + j * stride`
    (interleaved units, as after flattening channels-last maps).

    Attributes:
        kind: "unit", "stream", "head" or "fixed".
        group: Name of the group; "" for fixed rows, and for hidden units whose group is unknown.
        role: What fixed rows are: "token", "class", "position", "colour", "pixel", "kernel", "expert", "dimension"
            (inside a head), "one" (an axis of length 1) or "unknown". "" for units.
        offset: First row.
        rows: Number of rows.
        block: Rows per unit.
        stride: Distance between consecutive rows of one unit.

    """

    kind: str
    group: str
    role: str
    offset: int
    rows: int
    block: int = 1
    stride: int = 1

    @property
    def units(self) -> int:
        """Number of units on this stretch (0 where nothing is exchangeable)."""
        return 0 if self.kind == FIXED else self.rows // self.block

    def index(self) -> np.ndarray:
        """Rows of each unit on the axis, `[units, block]`."""
        step = self.block if self.stride == 1 else 1
        unit = np.arange(self.units)[:, None] * step
        return self.offset + unit + np.arange(self.block)[None, :] * self.stride


@dataclass(frozen=True, slots=True)
class AxisLabel:
    """The label of one tensor axis: ordered segments that cover it (one, except for fused tensors)."""

    segments: tuple[Segment, ...]

    @property
    def kind(self) -> str:
        """The kind of all segments, or "mixed"."""
        kinds = {s.kind for s in self.segments}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def group(self) -> str:
        """The one group on this axis, "" if there is none or more than one."""
        groups = {s.group for s in self.segments}
        return groups.pop() if len(groups) == 1 else ""

    @property
    def role(self) -> str:
        """The role of a fixed axis, "" for an axis of units."""
        return self.segments[0].role if len(self.segments) == 1 else ""

    @property
    def hidden(self) -> bool:
        """Whether every row of the axis belongs to hidden units."""
        return all(s.kind != FIXED for s in self.segments)


@dataclass(frozen=True, slots=True)
class Structure:
    """The hidden units of a model.

    Attributes:
        source: "family:llama", several joined by "+", "inferred:names" or "inferred:shapes".
        certain: Whether distinct groups are certainly disjoint sets of units. If False, groups of one size may be one
            stream, and statistics must not treat them as independent.
        axes: One label per axis, for every tensor of `model.weights`.
        groups: The groups in causal order; empty if only single axes are known.
    """

    source: str
    certain: bool
    axes: Mapping[str, tuple[AxisLabel, ...]]
    groups: tuple[UnitGroup, ...]

    def group(self, name: str) -> UnitGroup:
        """The group of that name; raises KeyError if there is none."""
        for g in self.groups:
            if g.name == name:
                return g
        raise KeyError(name)


class MisfitError(ValueError):
    """A draft contradicts the shapes of the tensors; another family or method is tried instead."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of an axis before sizes are known.

    Attributes:
        name: Group, or role if `fixed`.
        fixed: Whether the rows are not units.
        weight: Share of the axis, relative to the other parts.
        interleaved: Whether units are interleaved instead of in blocks.
        rows: Exact number of rows where known; overrides `weight`.

    """

    name: str
    fixed: bool = False
    weight: int = 1
    interleaved: bool = False
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class GroupRule:
    """A family's rule for a kind of group: the flags of `UnitGroup`, and its position in causal order.

    Attributes:
        kind: "unit", "stream" or "head".
        position: Sort key of causal order.
        exchangeable: See `UnitGroup`.
        prunable: See `UnitGroup`.
        rotatable: See `UnitGroup`.
        sign_free: See `UnitGroup`.
    """

    kind: str = "unit"
    position: tuple[int, ...] = ()
    exchangeable: bool = True
    prunable: bool = True
    rotatable: bool = False
    sign_free: bool = False


Draft = Mapping[str, Sequence[Sequence[Part]]]
"""Per tensor and axis, its expected parts."""


def part_rows(length: int, parts: Sequence[Part]) -> list[int]:
    """Rows of each part of an axis of `length` rows."""
    if all(p.rows is not None for p in parts):
        rows = [int(p.rows or 0) for p in parts]
    else:
        shares = sum(p.weight for p in parts)
        if length % shares:
            raise MisfitError(f"{length} rows cannot be split into {shares} equal shares")
        rows = [length // shares * p.weight for p in parts]
    if sum(rows) != length:
        raise MisfitError(f"{rows} do not add up to {length}")
    return rows


def group_sizes(shapes: Mapping[str, Sequence[int]], draft: Draft, known: Mapping[str, int]) -> dict[str, int]:
    """Number of units of each group: as known (heads), else the fewest rows of any axis."""
    sizes: dict[str, int] = {}
    for name, labels in draft.items():
        for length, parts in zip(shapes[name], labels, strict=True):
            for part, rows in zip(parts, part_rows(length, parts), strict=True):
                if not part.fixed:
                    sizes[part.name] = min(rows, sizes.get(part.name, rows))
    return sizes | {g: n for g, n in known.items() if g in sizes}


def assemble(
    shapes: Mapping[str, Sequence[int]], draft: Draft, rules: Mapping[str, GroupRule], known: Mapping[str, int]
) -> tuple[dict[str, tuple[AxisLabel, ...]], tuple[UnitGroup, ...]]:
    """Labels by tensor and groups in causal order from drafted parts; tensors without a draft are fixed."""
    sizes = group_sizes(shapes, draft, known)
    axes: dict[str, tuple[AxisLabel, ...]] = {}
    for name, shape in shapes.items():
        if name not in draft:
            axes[name] = unknown_axes(shape)
            continue
        labels = []
        for length, parts in zip(shape, draft[name], strict=True):
            offset, segments = 0, []
            for part, rows in zip(parts, part_rows(length, parts), strict=True):
                segment = _segment(part, offset, rows, rules, sizes)
                blocks = segment.kind in {"unit", "stream"} and segment.block > 1
                if blocks and len(shape) != 2 and not (part.interleaved and len(shape) == 1):
                    raise MisfitError(f"{name} has {segment.block} rows per unit of {part.name}")
                segments.append(segment)
                offset += rows
            labels.append(AxisLabel(tuple(segments)))
        axes[name] = tuple(labels)
    return axes, collect_groups(axes, rules)


def _segment(part: Part, offset: int, rows: int, rules: Mapping[str, GroupRule], sizes: Mapping[str, int]) -> Segment:
    if part.fixed:
        return Segment(FIXED, "", part.name, offset, rows)
    size = sizes[part.name]
    if size < 1 or rows % size:
        raise MisfitError(f"{rows} rows cannot hold {size} units of {part.name}")
    stride = size if part.interleaved and rows > size else 1
    return Segment(rules[part.name].kind, part.name, "", offset, rows, rows // size, stride)


def unknown_axes(shape: Iterable[int]) -> tuple[AxisLabel, ...]:
    """Labels of a tensor about which nothing is known: all axes fixed."""
    return _unknown_axes(tuple(shape))


@lru_cache(maxsize=4096)
def _unknown_axes(shape: tuple[int, ...]) -> tuple[AxisLabel, ...]:
    return tuple(AxisLabel((Segment(FIXED, "", "one" if n == 1 else "unknown", 0, n),)) for n in shape)


def collect_groups(axes: Mapping[str, tuple[AxisLabel, ...]], rules: Mapping[str, GroupRule]) -> tuple[UnitGroup, ...]:
    """The groups in causal order; matrix and kernel members with units on axis 0 come first."""
    members: dict[str, list[UnitMember]] = {}
    sizes: dict[str, int] = {}
    for tensor, labels in axes.items():
        for axis, label in enumerate(labels):
            for s in label.segments:
                if s.group:
                    sizes[s.group] = s.units
                    members.setdefault(s.group, []).append(UnitMember(tensor, axis, s.offset, s.stride, s.block))

    def rank(m: UnitMember) -> tuple[bool, bool]:
        return len(axes[m.tensor]) < 2, m.axis != 0

    names = sorted(members, key=lambda g: (rules[g].position, g))
    groups = []
    for order, name in enumerate(names):
        r = rules[name]
        groups.append(
            UnitGroup(
                name, sizes[name], tuple(sorted(members[name], key=rank)), order,
                exchangeable=r.exchangeable, prunable=r.prunable, rotatable=r.rotatable, sign_free=r.sign_free,
            )
        )  # fmt: skip
    return tuple(groups)


def with_position_prefix(rule: GroupRule, place: int) -> GroupRule:
    """The same rule, ordered after all earlier parts of a composed model."""
    return replace(rule, position=(place, *rule.position))
