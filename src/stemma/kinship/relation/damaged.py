"""Damaged: entries that are no numbers, which nothing that was done on purpose leaves."""

from dataclasses import dataclass, replace
from typing import ClassVar

from stemma.kinship.relation.base import AbstractOperation, Explained, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Damaged(AbstractOperation):
    """NaN or infinite entries; they are compared with nothing, so that they are not taken for zeros or for training."""

    name: ClassVar[str] = "damaged"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: comes first, and leaves the entries that are numbers."""
        holes = {layer.b: layer for layer in pair.layers if any(layer.holes)}
        if pair.taken or not holes:
            return None
        counts = [sum(layer.holes[i] for layer in holes.values()) for i in (0, 1)]
        told = [f"{n:,} of the {who}" for n, who in zip(counts, ("parent", "child"), strict=True) if n]
        step = Step(
            self.name,
            RelationKind.RELATED,
            f"entries that are no numbers (NaN or infinite): {' and '.join(told)}, in {len(holes)} tensors",
            {"not_finite": {b: list(layer.holes) for b, layer in holes.items()}},
            bits=sum(choice_bits(layer.size, min(layer.size, max(layer.holes))) for layer in holes.values()),
            place=4.0,
        )
        marked = {
            b: replace(layer, marks=(*layer.marks, f"{max(layer.holes):,} are no numbers"))
            for b, layer in holes.items()
        }
        return Explained(step, pair.with_layers(marked, self.name))
