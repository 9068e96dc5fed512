"""Units alike where they stand: the contents test under the map that moves nothing."""

from collections.abc import Sequence

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.contents.alike import UnitsAlike
from stemma.kinship.weights.contents.choices import sure
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import AxisMap, PartMap
from stemma.kinship.weights.maps.blocks import Reader, Sides
from stemma.kinship.weights.maps.layout import parts_of
from stemma.types import Evidence

FEW = 1 << 16
"""Entries up to which a tensor is read whole: of larger ones only the rows that are looked at."""


def in_place(a: Model, b: Model, pairings: Sequence[Pairing], alpha: float, *, tried: int = 1) -> Evidence:
    """Ask whether units are nearer to those in the same places than the best order of independent ones comes.

    Args:
        a: One model.
        b: The other; the side whose structure is known better serves as reference.
        pairings: Which tensor of a is which of b.
        alpha: Level of the decision.
        tried: Correspondences that were looked at; paid for.

    Returns:
        The evidence.
    """
    turned = reference_is_second(a, b)
    one, two = (b, a) if turned else (a, b)
    known, method = structure(one), UnitsAlike()
    parts = still(one, two, [p.turned() for p in pairings] if turned else pairings, known)
    shown = method.look(Sides(Reader(one, FEW), Reader(two, FEW)), parts, known)
    return method.evidence(a, b, shown, alpha, {"structure": known.source}, tried)


def still(reference: Model, target: Model, pairings: Sequence[Pairing], known: Structure) -> dict[str, PartMap]:
    """The map that moves nothing.

    Args:
        reference: The one model.
        target: The other.
        pairings: Which tensor is which.
        known: The structure of the reference.

    Returns:
        By part, every row in its place as far as both sides reach; a part that keeps the length of no axis is none.
    """
    return {
        name: PartMap(part, tuple(AxisMap.identity(x.a, x.b) for x in part.axes))
        for name, part in parts_of(reference, target, pairings, known).items()
        if any(x.a == x.b for x in part.axes)
    }


def reference_is_second(a: Model, b: Model) -> bool:
    """Which of two models serves as reference: the one whose structure is known better, the same for both orders.

    Args:
        a: The first model.
        b: The second.

    Returns:
        True where it is the second.
    """
    one, two = structure(a), structure(b)
    return (sure(two), len(two.groups), b.digest) > (sure(one), len(one.groups), a.digest)
