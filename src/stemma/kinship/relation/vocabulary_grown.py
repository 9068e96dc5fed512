"""Vocabulary grown: the child knows the parent's tokens and more."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import NUMBER, AbstractOperation, Explained
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class VocabularyGrown(AbstractOperation):
    """Rows of tokens were added; what the parent had is compared row by row.

    The same two models, taken the other way round, have a trimmed vocabulary: sizes do not tell which came first, so
    what is told of the new rows is not counted.
    """

    name: ClassVar[str] = "vocabulary grown"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: the difference on the parent's own tokens is left open."""
        grown = {layer.b: layer for layer in pair.layers if layer.grown > 0}
        if not grown or self.name in pair.taken:
            return None
        added = max(layer.grown for layer in grown.values())
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            f"{added} tokens were added, or removed from the other",
            {"added": added, "tensors": sorted(grown)},
            bits=float(NUMBER),
            place=0.0,
        )
        marked = {b: g.explained(f"{g.grown} more tokens", g.left) for b, g in grown.items()}
        return Explained(step, pair.with_layers(marked, self.name))
