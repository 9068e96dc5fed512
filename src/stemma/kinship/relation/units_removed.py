"""Operation: hidden units of the parent were removed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.relation.base import AbstractOperation, FittedOperation, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.kept_units import KeptUnits
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind

FAINT = 1e-3
"""Norm, relative to other units, below which the weights that read a unit count as zero."""

REPEATED = 0.999
"""Cosine from which a unit duplicates another one."""

LARGEST = 1 << 24
"""Largest size of a tensor, in entries, that is checked for that."""


@dataclass(frozen=True)
class UnitsRemoved(AbstractOperation):
    """Groups of hidden units are narrower in the child, and what it has matches some of the parent's units.

    If all units that the child lacks have no effect (nothing reads them, or they duplicate others), they may as well
    have been added to the parent: then `idle` is set, and no direction follows.

    Attributes:
        cosine: Least mean cosine of a group's matched units.
    """

    cosine: float = 0.5

    name: ClassVar[str] = "units removed"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: the difference on the units that were kept stays unexplained."""
        kept = {g: k for g, k in pair.kept.items() if k.cosine >= self.cosine}
        if not kept or self.name in pair.operations or len(kept) < len(pair.kept):
            return None
        before = sum(k.size for k in kept.values())
        after = sum(len(k.kept) for k in kept.values())
        step = Step(
            self.name,
            RelationKind.PRUNED,
            f"{before - after} of {before} units of {len(kept)} groups were removed",
            {
                "ratio": 1 - after / before,
                "units": {g: [len(k.kept), k.size] for g, k in kept.items()},
                "kept": {g: [int(i) for i in k.kept] for g, k in kept.items()},
                **({"idle": True} if all(_have_no_effect(pair, k) for k in kept.values()) else {}),
            },
            bits=sum(choice_bits(k.size, len(k.kept)) for k in kept.values()),
            place=0.0,
        )
        touched = {
            layer.b: layer.explained("units removed", layer.residual)
            for layer in pair.layers
            if layer.measured is not None and layer.b in pair.child.weights
            and pair.child.weights[layer.b].size < pair.parent.weights[layer.a].size
        }  # fmt: skip
        return FittedOperation(step, pair.with_layers(touched, self.name))


def _have_no_effect(pair: Pair, kept: KeptUnits) -> bool:
    """Whether the units of a group that the child lacks have no effect in the parent."""
    gone = np.setdiff1d(np.arange(kept.size), kept.kept)
    unread = np.zeros(len(gone), bool)
    repeated: np.ndarray | None = None
    for layer in pair.matrices:
        tensor = pair.parent.weights[layer.a]
        for axis, label in enumerate(pair.structure_of_parent.axes[layer.a]):
            only = label.segments[0]
            if label.group != kept.group or len(label.segments) != 1 or tensor.size > LARGEST:
                continue
            rows = np.moveaxis(np.asarray(tensor.array(), np.float32), axis, 0)[only.index()].reshape(kept.size, -1)
            norm = np.linalg.norm(rows, axis=1)
            unread |= norm[gone] <= FAINT * float(np.median(norm[kept.kept]))
            unit = rows / np.where(norm > 0, norm, 1)[:, None]
            same = (unit[gone] @ unit[kept.kept].T).max(axis=1, initial=-1.0) >= REPEATED
            repeated = same if repeated is None else repeated & same
    return bool((unread | (repeated if repeated is not None else False)).all())
