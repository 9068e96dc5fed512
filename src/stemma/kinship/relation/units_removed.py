"""Units removed: hidden units of the parent that the narrower child does not have."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import AbstractOperation, Explained, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class UnitsRemoved(AbstractOperation):
    """Groups of hidden units are narrower in the child, and what it has matches some of the parent's units.

    Attributes:
        cosine: Least mean cosine of a group's matched units.
    """

    cosine: float = 0.5

    name: ClassVar[str] = "units removed"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: the difference on the units that were kept is left open."""
        kept = {g: k for g, k in pair.kept.items() if k.cosine >= self.cosine}
        if not kept or self.name in pair.taken or len(kept) < len(pair.kept):
            return None
        before = sum(k.size for k in kept.values())
        after = sum(len(k.kept) for k in kept.values())
        step = Step(
            self.name,
            RelationKind.PRUNED,
            f"{before - after} of {before} units of {len(kept)} groups were taken out",
            {
                "ratio": 1 - after / before,
                "units": {g: [len(k.kept), k.size] for g, k in kept.items()},
                "kept": {g: [int(i) for i in k.kept] for g, k in kept.items()},
            },
            bits=sum(choice_bits(k.size, len(k.kept)) for k in kept.values()),
            place=0.0,
        )
        touched = {
            layer.b: layer.explained("units taken out", layer.left)
            for layer in pair.layers
            if layer.measured is not None and layer.b in pair.child.weights
            and pair.child.weights[layer.b].size < pair.parent.weights[layer.a].size
        }  # fmt: skip
        return Explained(step, pair.with_layers(touched, self.name))
