"""Operation: damage, entries that are NaN or infinite."""

from dataclasses import dataclass, replace
from typing import ClassVar

from stemma.kinship.relation.base import AbstractOperation, FittedOperation, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Damaged(AbstractOperation):
    """NaN or infinite entries; they are not compared, so that they do not count as zeros or as training."""

    name: ClassVar[str] = "damaged"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: comes first, and leaves the finite entries unexplained."""
        not_finite = {layer.b: layer for layer in pair.layers if any(layer.not_finite)}
        if pair.operations or not not_finite:
            return None
        counts = [sum(layer.not_finite[i] for layer in not_finite.values()) for i in (0, 1)]
        counts_by_model = [f"{n:,} of the {who}" for n, who in zip(counts, ("parent", "child"), strict=True) if n]
        step = Step(
            self.name,
            RelationKind.RELATED,
            f"NaN or infinite entries: {' and '.join(counts_by_model)}, in {len(not_finite)} tensors",
            {"not_finite": {b: list(layer.not_finite) for b, layer in not_finite.items()}},
            bits=sum(choice_bits(layer.size, min(layer.size, max(layer.not_finite))) for layer in not_finite.values()),
            place=4.0,
        )
        marked = {
            b: replace(layer, marks=(*layer.marks, f"{max(layer.not_finite):,} NaN or infinite"))
            for b, layer in not_finite.items()
        }
        return FittedOperation(step, pair.with_layers(marked, self.name))
