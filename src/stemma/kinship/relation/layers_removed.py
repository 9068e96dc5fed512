"""Operation: layers were removed; tensors of the parent have no counterpart in the child."""

import re
from dataclasses import dataclass
from typing import ClassVar

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, FittedOperation, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.kinship.weights.layouts.rearranged_rows import LEFT_SUFFIX
from stemma.types import RelationKind


@dataclass(frozen=True)
class LayersRemoved(AbstractOperation):
    """Every matrix of the child has a counterpart, and the parent has more.

    If layers of the same kind are left, layers were removed. If whole kinds are missing (a head, a tower), the child is
    a part of the parent, and the parent may have been built around it: no direction follows.
    """

    name: ClassVar[str] = "layers removed"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: the common tensors are left as they are."""
        own, other = matrices(pair.parent), matrices(pair.child)
        gone = [n for n in pair.removed if n in own]
        if not gone or self.name in pair.operations or any(n in other for n in pair.new):
            return None
        kept = {_pattern(layer.a) for layer in pair.matrices}
        part = sorted(n for n in gone if _pattern(n) not in kept)
        said = f"{len(own) - len(gone)} of {len(own)} matrices are present, without {part[0]}" if part else ""
        step = Step(
            "part of it" if part else self.name,
            RelationKind.PART_INHERITED if part else RelationKind.PRUNED,
            said + (f" and {len(part) - 1} other kinds of layers" if len(part) > 1 else "")
            if part
            else f"{len(gone)} of {len(own)} matrices {'was' if len(gone) == 1 else 'were'} removed",
            {"removed": sorted(gone), "removed_vectors": sorted(set(pair.removed) - set(gone))},
            bits=choice_bits(len(own), len(gone)) + 1,
            place=0.0,
        )
        return FittedOperation(step, pair.with_layers({}, self.name))


def _pattern(name: str) -> str:
    """A tensor's name with every number replaced by `#`, the same for layers of one kind."""
    return re.sub(r"\d+", "#", name.removesuffix(LEFT_SUFFIX))
