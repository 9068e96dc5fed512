"""The axes of paired tensors: which carry units, which share them, and which rows have a fixed order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stemma.architectures.structure import FIXED, AxisLabel, Structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import PairedAxis, Part

KERNEL = 11
"""Longest axis that may be the window of a kernel where nothing is known, and never a set of units."""

RIGID = frozenset({"kernel", "one", "dimension", "colour", "pixel", "position"})
"""Roles whose rows stand in one order in every network."""


ORDERED = frozenset({"token", "class", "expert"})
"""Roles whose rows stand in one order as long as all are there."""


def paired_parts(
    reference: Model, target: Model, pairings: Sequence[Pairing], known: Structure, *, loose: bool = False
) -> dict[str, Part]:
    """Paired tensors with their axes, cut where one axis carries several sets of units; by reference name."""
    out: dict[str, Part] = {}
    heads = _heads(known)
    for p in pairings:
        x, y, labels = reference.weights[p.a].shape, target.weights[p.b].shape, known.axes[p.a]
        sizes = [x[i] for i in p.axes_a]
        axes = tuple(
            _axis(p.a, i, x[i], y[j], labels[i], sizes, heads, loose=loose)
            for i, j in zip(p.axes_a, p.axes_b, strict=True)
        )
        cut = next((k for k, axis in enumerate(axes) if len(axis.label.segments) > 1 and axis.a == axis.b), None)
        if cut is None:
            out[p.a] = Part(p, axes)
            continue
        for number, segment in enumerate(axes[cut].label.segments):
            label = AxisLabel((replace(segment, offset=0),))
            own = _axis(f"{p.a}#{number}", p.axes_a[cut], segment.rows, segment.rows, label, sizes, heads, loose=loose)
            stretch = replace(own, start=segment.offset)
            out[f"{p.a}#{number}"] = Part(p, (*axes[:cut], stretch, *axes[cut + 1 :]))
    return out


def _heads(known: Structure) -> dict[str, int]:
    """Rows of one head for groups whose heads share keys: the fewest rows that any tensor gives a unit."""
    out: dict[str, int] = {}
    for labels in known.axes.values():
        for segment in (s for label in labels for s in label.segments if s.kind == "head"):
            out[segment.group] = min(segment.block, out.get(segment.group, segment.block))
    return {group: rows for group, rows in out.items() if rows > 1}


def _axis(
    name: str, axis: int, a: int, b: int, label: AxisLabel, sizes: Sequence[int], heads: Mapping[str, int], *,
    loose: bool,
) -> PairedAxis:  # fmt: skip
    own = f"{name}[{axis}]"
    size = heads.get(label.group, 0)
    if size and label.segments[0].block > size and a % size == 0 and b % size == 0:
        return PairedAxis(a, b, label, f"{label.group}/heads", True, block=size)
    if label.hidden and label.group:
        return PairedAxis(a, b, label, label.group, True)
    if label.kind != FIXED:  # units that have no name
        return PairedAxis(a, b, label, own, True)
    if label.role in RIGID:
        return PairedAxis(a, b, label, "", False)
    if label.role in ORDERED:
        moved = loose and a != b
        return PairedAxis(a, b, label, own if moved else "", moved)
    window = len(sizes) > 2 and a <= KERNEL and sum(s > a for s in sizes) >= 2
    return PairedAxis(a, b, label, "" if window else own, not window)
