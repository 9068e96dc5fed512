"""Which rows of which tensor axis belong to which hidden units: the labels, and the groups that they add up to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.types import UnitGroup, UnitMember

FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a tensor axis that carries the units of one group, or nothing exchangeable.

    Row `j` of unit `u` lies at `offset + u * block + j` (units in contiguous blocks, `stride` 1), or at
    `offset + u + j * stride` (units next to one another, as after flattening channels-last maps).

    Attributes:
        kind: "unit", "stream", "head" or "fixed".
        group: Name of the group; "" for fixed rows, and for hidden units whose group is unknown.
        role: What fixed rows stand for: "token", "class", "position", "colour", "pixel", "kernel", "expert",
            "dimension" (inside a head), "one" (an axis of length 1) or "unknown". "" for units.
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
        """Where each unit's rows lie on the axis.

        Returns:
            Integers `[units, block]`.
        """
        step = self.block if self.stride == 1 else 1
        unit = np.arange(self.units)[:, None] * step
        return self.offset + unit + np.arange(self.block)[None, :] * self.stride


@dataclass(frozen=True, slots=True)
class AxisLabel:
    """What one tensor axis carries.

    Attributes:
        segments: The stretches, in order, covering the axis; one for all but fused tensors.
    """

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
    """What is known about a model's hidden units.

    Attributes:
        source: "family:llama", several joined by "+", "inferred:names" or "inferred:shapes".
        certain: Whether distinct groups are surely disjoint sets of units. Where False, groups of one size may be one
            stream: a statistic must not treat them as independent (`from_names.coarse` merges them).
        axes: One label per axis, for every tensor of `model.weights`.
        groups: The groups in causal order; empty where only single axes are known.
    """

    source: str
    certain: bool
    axes: Mapping[str, tuple[AxisLabel, ...]]
    groups: tuple[UnitGroup, ...]

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Args:
            name: As in `groups`.

        Returns:
            The group.

        Raises:
            KeyError: If there is none.
        """
        for g in self.groups:
            if g.name == name:
                return g
        raise KeyError(name)


class MisfitError(ValueError):
    """A draft contradicts the tensors' shapes; another family or inference is tried instead."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an axis before sizes are known.

    Attributes:
        name: Group, or role where `fixed`.
        fixed: Whether the rows are no units.
        weight: Share of the axis, relative to the axis' other parts.
        interleaved: Units lie next to one another instead of in blocks.
        rows: Exact number of rows where it is known; overrides `weight`.
    """

    name: str
    fixed: bool = False
    weight: int = 1
    interleaved: bool = False
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class GroupRule:
    """What a family says about a kind of group: the flags of `UnitGroup`, and its place in causal order.

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
"""Per tensor and axis, the parts that it should consist of."""


def split(length: int, parts: Sequence[Part]) -> list[int]:
    """Rows of each part of an axis.

    Args:
        length: Rows of the axis.
        parts: The parts in order.

    Returns:
        Rows per part, adding up to `length`.

    Raises:
        MisfitError: If they do not add up.
    """
    if all(p.rows is not None for p in parts):
        rows = [int(p.rows or 0) for p in parts]
    else:
        whole = sum(p.weight for p in parts)
        if length % whole:
            raise MisfitError(f"{length} rows do not split into {whole} shares")
        rows = [length // whole * p.weight for p in parts]
    if sum(rows) != length:
        raise MisfitError(f"{rows} do not add up to {length}")
    return rows


def group_sizes(shapes: Mapping[str, Sequence[int]], draft: Draft, known: Mapping[str, int]) -> dict[str, int]:
    """Number of units of each group: as known, else the fewest rows that any axis gives it.

    Args:
        shapes: Shape by tensor.
        draft: The parts by tensor.
        known: Sizes that are known otherwise (heads).

    Returns:
        Units by group.
    """
    sizes: dict[str, int] = {}
    for name, labels in draft.items():
        for length, parts in zip(shapes[name], labels, strict=True):
            for part, rows in zip(parts, split(length, parts), strict=True):
                if not part.fixed:
                    sizes[part.name] = min(rows, sizes.get(part.name, rows))
    return sizes | {g: n for g, n in known.items() if g in sizes}


def assemble(
    shapes: Mapping[str, Sequence[int]], draft: Draft, rules: Mapping[str, GroupRule], known: Mapping[str, int]
) -> tuple[dict[str, tuple[AxisLabel, ...]], tuple[UnitGroup, ...]]:
    """Turn drafted parts into labels and groups, checking every size.

    Args:
        shapes: Shape by tensor.
        draft: The parts by tensor; tensors that are missing get fixed axes of unknown role.
        rules: Flags and place by group.
        known: Sizes that are known otherwise (heads).

    Returns:
        Labels by tensor, and the groups in causal order.

    Raises:
        MisfitError: If a size contradicts another.
    """
    sizes = group_sizes(shapes, draft, known)
    axes: dict[str, tuple[AxisLabel, ...]] = {}
    for name, shape in shapes.items():
        if name not in draft:
            axes[name] = unknown(shape)
            continue
        labels = []
        for length, parts in zip(shape, draft[name], strict=True):
            offset, segments = 0, []
            for part, rows in zip(parts, split(length, parts), strict=True):
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
        raise MisfitError(f"{rows} rows do not hold {size} units of {part.name}")
    stride = size if part.interleaved and rows > size else 1
    return Segment(rules[part.name].kind, part.name, "", offset, rows, rows // size, stride)


def unknown(shape: Iterable[int]) -> tuple[AxisLabel, ...]:
    """Labels of a tensor about which nothing is known.

    Args:
        shape: Its axis lengths.

    Returns:
        Fixed labels.
    """
    return tuple(AxisLabel((Segment(FIXED, "", "one" if n == 1 else "unknown", 0, n),)) for n in shape)


def collect_groups(axes: Mapping[str, tuple[AxisLabel, ...]], rules: Mapping[str, GroupRule]) -> tuple[UnitGroup, ...]:
    """The groups that labels add up to, in causal order.

    Args:
        axes: Labels by tensor.
        rules: Flags and place by group.

    Returns:
        The groups; members with their units on axis 0 of a matrix or kernel first.
    """
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


def prefixed(rule: GroupRule, place: int) -> GroupRule:
    """The same rule, ordered after everything of earlier parts of a composed model.

    Args:
        rule: A rule of one part.
        place: The part's number.

    Returns:
        The rule with `place` in front of its position.
    """
    return replace(rule, position=(place, *rule.position))
