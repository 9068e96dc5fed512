"""Layers removed: tensors of the parent that have no counterpart in the child."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, Explained, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class LayersRemoved(AbstractOperation):
    """Every matrix of the child has a counterpart, and the parent has more."""

    name: ClassVar[str] = "layers removed"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: the common tensors are left as they are."""
        own, other = matrices(pair.parent), matrices(pair.child)
        gone = [n for n in pair.removed if n in own]
        if not gone or self.name in pair.taken or any(n in other for n in pair.new):
            return None
        step = Step(
            self.name,
            RelationKind.PRUNED,
            f"{len(gone)} of {len(own)} matrices are gone",
            {"removed": sorted(gone), "removed_vectors": sorted(set(pair.removed) - set(gone))},
            bits=choice_bits(len(own), len(gone)) + 1,
            place=0.0,
        )
        return Explained(step, pair.with_layers({}, self.name))
