"""Operation: tokens were removed from the vocabulary."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class VocabularyTrimmed(AbstractOperation):
    """Rows of tokens were removed; what is left is compared row by row, wherever it stands.

    In the opposite direction the vocabulary has grown: sizes do not show which model came first.
    """

    name: ClassVar[str] = "vocabulary trimmed"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: the difference on the remaining tokens stays unexplained."""
        fewer = {layer.b: layer for layer in pair.layers if layer.added_tokens < 0}
        if not fewer or self.name in pair.operations:
            return None
        removed = max(-layer.added_tokens for layer in fewer.values())
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            f"{removed} tokens were removed from one model, or added to the other",
            {"removed_tokens": removed, "tensors": sorted(fewer)},
            bits=float(BITS_PER_NUMBER),
            place=0.0,
        )
        marked = {b: g.explained(f"{-g.added_tokens} fewer tokens", g.residual) for b, g in fewer.items()}
        return FittedOperation(step, pair.with_layers(marked, self.name))
