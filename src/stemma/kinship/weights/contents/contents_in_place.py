"""The contents test for units in place, that is under the identity map."""

from collections.abc import Sequence

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.contents.choices import is_certain
from stemma.kinship.weights.contents.units_alike import UnitsAlike
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import AxisMap, Part, PartMap
from stemma.kinship.weights.maps.blocks import MappedPair, TensorReader
from stemma.kinship.weights.maps.paired_parts import paired_parts
from stemma.types import Evidence

FEW = 1 << 16
"""Largest tensor, in entries, that is read whole; of larger ones only the compared rows."""


OF_SAMPLES = 1 << 15
"""Units that are compared where a sample was read: its rows are at hand, and more of them outweigh more choices."""


def contents_in_place(a: Model, b: Model, pairings: Sequence[Pairing], alpha: float, *, tried: int = 1) -> Evidence:
    """Whether units in the same places are closer than the best order of independent units."""
    turned = reference_is_second(a, b)
    one, two = (b, a) if turned else (a, b)
    known = structure(one)
    method = UnitsAlike(in_all=OF_SAMPLES) if a.is_partial or b.is_partial else UnitsAlike()
    parts = identity_maps(one, two, [p.swapped() for p in pairings] if turned else pairings, known)
    shown = method.compare(MappedPair(TensorReader(one, FEW), TensorReader(two, FEW)), parts, known)
    return method.evidence(a, b, shown, alpha, {"structure": known.source}, tried)


def identity_maps(reference: Model, target: Model, pairings: Sequence[Pairing], known: Structure) -> dict[str, PartMap]:
    """The identity map of every part that keeps the length of some axis."""
    return {
        name: PartMap(part, tuple(_identity(reference, target, part, k) for k in range(len(part.axes))))
        for name, part in paired_parts(reference, target, pairings, known).items()
        if any(x.a == x.b for x in part.axes)
    }


def _identity(reference: Model, target: Model, part: Part, k: int) -> AxisMap:
    """The identity of one axis, for the rows that were read of both tensors."""
    axis, whole = part.axes[k], AxisMap.identity(part.axes[k].a, part.axes[k].b)
    p, read = part.pairing, len(whole.rows)
    for i, tensor in ((p.axes_a[k], reference.weights[p.a]), (p.axes_b[k], target.weights[p.b])):
        read = min(read, max(0, tensor.readable - axis.start)) if i == 0 else read
    return AxisMap(whole.rows[:read], whole.columns[:read], whole.of)


def reference_is_second(a: Model, b: Model) -> bool:
    """Whether the second model serves as reference: the one whose structure is known better."""
    one, two = structure(a), structure(b)
    return (is_certain(two), len(two.groups), b.digest) > (is_certain(one), len(one.groups), a.digest)
