"""What a forger who has two models can choose so that their units agree, and the number of possibilities.

- The order of each set of units: permutations.
- The basis of a residual stream that may be rotated, and of each attention head: queries and keys, values and outputs
  can be multiplied by any invertible matrix and its inverse. The best of all rotations of an n-dimensional space brings
  a square matrix of Gaussian numbers onto an orthogonal one with a cosine of 8 / (3 pi), and onto another Gaussian one
  with one of 3 / 4; what the larger is worth over the degrees of freedom of a rotation is what each of them costs.
- A head as wide as its input can be given any contents by its basis: such a matrix is no evidence.
- Signs, where the map uses them.

Where the sets of units are not known for certain, every axis of every tensor could have an order of its own.
Source: the mean singular value of a square Gaussian matrix, from the quarter circle law (Marchenko & Pastur, 1967).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, log1p, pi

import numpy as np

from stemma.architectures.structure import FIXED, Structure
from stemma.kinship.weights.maps.axis_map import PairedAxis, PartMap
from stemma.kinship.weights.maps.paired_parts import RIGID
from stemma.kinship.weights.reordering_bound import log_orders

FREEDOM = -log1p(-((8 / (3 * pi)) ** 2))
"""Largest worth of a degree of freedom of a rotation in nats: the n² numbers of a square matrix agree with a cosine
of 8 / (3 pi), each worth half of this, at the choice of n² / 2 angles."""

ROOM = 0.8
"""Rows of a head over numbers of a row up to which the best basis is worth less than it costs: -½ log(1 - x) is below
`FREEDOM` times x up to .9."""

GUESSED = frozenset({"pixel", "position"})
"""Roles that are not used where the structure is inferred."""


@dataclass(frozen=True)
class Choice:
    """What could have been chosen for one set of units.

    Attributes:
        units: Units (or rows of heads) of the reference that were compared.
        of: The target's number of units to choose from; dimensions of the space that could be rotated; rows of one
            head; 2 for a sign.
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
                return log_orders(n, self.of)
            case "rotation":
                return FREEDOM * n * (self.of - n / 2)
            case "basis":
                return FREEDOM * n * self.of
            case "anything":
                return inf
        return n * log(2)

    def merged(self, other: "Choice | None") -> "Choice":
        """The choice for the units of both views of one set."""
        return self if other is None else Choice(self.units | other.units, max(self.of, other.of), self.kind)


def choices_of(name: str, p: PartMap, seen: Mapping[int, np.ndarray], known: Structure) -> dict[str, Choice]:
    """Choices that could make one part agree, by set of units."""
    out: dict[str, Choice] = {}
    for k, rows in seen.items():
        axis = p.part.axes[k]
        width = p.part.entries // max(1, min(axis.a, axis.b))
        found = _known(name, k, axis, rows, known, width) if is_certain(known) else _unknown(name, k, axis, rows)
        out |= {key: choice.merged(out.get(key)) for key, choice in found.items()}
        if p.maps[k].signs is not None:
            out[f"signs of {name}[{k}]"] = Choice(frozenset(rows.tolist()), 2, "sign")
    return out


def has_arbitrary_basis(known: Structure, name: str, shape: Sequence[int]) -> bool:
    """Whether the basis of its own head can give a matrix any contents (head as wide as its input)."""
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


def is_certain(known: Structure) -> bool:
    """Whether the sets of units are known for certain, not inferred from shapes."""
    return known.certain and known.source != "inferred:shapes" and bool(known.groups)


def union_of_choices(found: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """The choices of several parts, each set of units once."""
    out: dict[str, Choice] = {}
    for choices in found:
        for key, choice in choices.items():
            out[key] = choice.merged(out.get(key))
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
