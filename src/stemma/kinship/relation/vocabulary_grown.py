"""Operation: tokens were added to the vocabulary."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class VocabularyGrown(AbstractOperation):
    """Rows of tokens were added; what the parent had is compared row by row.

    In the opposite direction the vocabulary is trimmed: sizes do not show which model came first, so the new rows do
    not add to the description length.
    """

    name: ClassVar[str] = "vocabulary grown"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: the difference on the parent's own tokens stays unexplained."""
        with_added = {layer.b: layer for layer in pair.layers if layer.added_tokens > 0}
        if not with_added or self.name in pair.operations:
            return None
        added = max(layer.added_tokens for layer in with_added.values())
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            f"{added} tokens were added to one model, or removed from the other",
            {"added": added, "tensors": sorted(with_added)},
            bits=float(BITS_PER_NUMBER),
            place=0.0,
        )
        marked = {b: g.explained(f"{g.added_tokens} more tokens", g.residual) for b, g in with_added.items()}
        return FittedOperation(step, pair.with_layers(marked, self.name))
