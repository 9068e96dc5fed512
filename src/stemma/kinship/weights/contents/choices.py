"""What somebody who holds two models can choose so that their units agree, and how many possibilities that makes.

- The order of each set of units: permutations.
- The basis of a residual stream that may be rotated, and of each attention head: queries and keys, values and outputs
  can be multiplied by any invertible matrix and its inverse. The best of all rotations of an n-dimensional space brings
  a square matrix of Gaussian numbers onto an orthogonal one with a cosine of 8 / (3 pi), and onto another Gaussian one
  with one of 3 / 4; what the larger is worth over the degrees of freedom of a rotation is what each of them costs.
- A head as wide as its input can be turned into anything by its basis: what such a matrix contains counts nothing.
- Signs, where the map uses them.

Where the sets of units are not known for sure, every axis of every tensor could have an order of its own.
Source: the mean singular value of a square Gaussian matrix, from the quarter circle law (Marchenko & Pastur, 1967).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, log1p, pi

import numpy as np

from stemma.architectures.structure import FIXED, Structure
from stemma.kinship.weights.maps.axis_map import PairedAxis, PartMap
from stemma.kinship.weights.maps.layout import RIGID
from stemma.kinship.weights.reordering_bound import orders

FREEDOM = -log1p(-((8 / (3 * pi)) ** 2))
"""Nats that a degree of freedom of a rotation is worth at most: the n² numbers of a square matrix agree with a cosine
of 8 / (3 pi), each worth half of this, at the choice of n² / 2 angles."""

ROOM = 0.8
"""Rows of a head over numbers of a row up to which the best basis is worth less than it costs: -½ log(1 - x) is below
`FREEDOM` times x up to .9."""

GUESSED = frozenset({"pixel", "position"})
"""Roles that are not believed where the structure is a guess."""


@dataclass(frozen=True)
class Choice:
    """What could have been chosen of one set of units.

    Attributes:
        units: Units (or rows of heads) of the reference that were looked at.
        of: How many the target has: units that each could have been given, none twice; dimensions of the space that
            could be rotated; rows of one head; 2 for a sign.
        kind: `order`, `rotation`, `basis`, `anything` or `sign`.
    """

    units: frozenset[int]
    of: int
    kind: str = "order"

    @property
    def cost(self) -> float:
        """Logarithm of the number of possibilities, in nats."""
        n = len(self.units)
        match self.kind:
            case "order":
                return orders(n, self.of)
            case "rotation":
                return FREEDOM * n * (self.of - n / 2)
            case "basis":
                return FREEDOM * n * self.of
            case "anything":
                return inf
        return n * log(2)

    def joined(self, other: "Choice | None") -> "Choice":
        """The same set of units, seen in two tensors.

        Args:
            other: The other view; None for none.

        Returns:
            All units that were looked at.
        """
        return self if other is None else Choice(self.units | other.units, max(self.of, other.of), self.kind)


def choices_of(name: str, p: PartMap, seen: Mapping[int, np.ndarray], known: Structure) -> dict[str, Choice]:
    """What could have been chosen to make one part agree.

    Args:
        name: The part.
        p: Its axes and their maps.
        seen: Rows of the reference that were read, by position of the axis.
        known: The structure of the reference.

    Returns:
        Choices by set of units.
    """
    out: dict[str, Choice] = {}
    for k, rows in seen.items():
        axis = p.part.axes[k]
        width = p.part.entries // max(1, min(axis.a, axis.b))
        found = _known(name, k, axis, rows, known, width) if sure(known) else _unknown(name, k, axis, rows)
        out |= {key: choice.joined(out.get(key)) for key, choice in found.items()}
        if p.maps[k].signs is not None:
            out[f"signs of {name}[{k}]"] = Choice(frozenset(rows.tolist()), 2, "sign")
    return out


def turned_at_will(known: Structure, name: str, shape: Sequence[int]) -> bool:
    """Whether a basis of its own head can give a matrix any contents: one head, or few, as wide as the input.

    Args:
        known: A structure.
        name: The tensor.
        shape: Its shape.

    Returns:
        True where what it contains says nothing.
    """
    sizes = {g.name: g.size for g in known.groups}
    total = int(np.prod(shape))
    for k, label in enumerate(known.axes[name]):
        segment = label.segments[0] if label.group else None
        if segment is None or segment.kind != "head" or not sizes.get(label.group):
            continue
        rows = shape[k] // len(label.segments) // sizes[label.group]
        if rows > ROOM * (total / shape[k]):
            return True
    return False


def sure(known: Structure) -> bool:
    """Whether the sets of units are known for certain: not read off shapes, none of which could be two or one.

    Args:
        known: A structure.

    Returns:
        True where axes of one group surely carry the same units.
    """
    return known.certain and known.source != "inferred:shapes" and bool(known.groups)


def together(found: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """All choices, each set of units once.

    Args:
        found: Choices of several parts.

    Returns:
        By set of units.
    """
    out: dict[str, Choice] = {}
    for choices in found:
        for key, choice in choices.items():
            out[key] = choice.joined(out.get(key))
    return out


def _unknown(name: str, k: int, axis: PairedAxis, rows: np.ndarray) -> dict[str, Choice]:
    if not axis.free and axis.label.role in RIGID - GUESSED:
        return {}
    return {f"{name}[{k}]": Choice(frozenset(rows.tolist()), axis.b)}


def _known(
    name: str, k: int, axis: PairedAxis, rows: np.ndarray, known: Structure, width: int
) -> dict[str, Choice]:  # fmt: skip
    label, segment = axis.label, axis.label.segments[0]
    if label.kind == FIXED or not label.group:
        return {f"{name}[{k}]": Choice(frozenset(rows.tolist()), axis.b)} if axis.key else {}
    unit, index = np.empty(axis.a, int), axis.units()
    unit[index] = np.arange(len(index))[:, None]
    units, group = frozenset(unit[rows].tolist()), axis.key
    out = {group: Choice(units, len(axis.units_of_target()) or len(index))}
    if any(g.name == group and g.rotatable for g in known.groups):  # whoever rotates needs no order
        out[f"rotation of {group}"] = Choice(units, axis.b, "rotation")
    if segment.kind == "head" and index.shape[1] > 1:
        kind = "basis" if index.shape[1] <= ROOM * width else "anything"
        out[f"basis of {group} in {name}"] = Choice(frozenset(rows.tolist()), index.shape[1], kind)
    return out
