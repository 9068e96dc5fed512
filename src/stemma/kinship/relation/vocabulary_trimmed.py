"""Vocabulary trimmed: the child knows fewer tokens than the parent."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import NUMBER, AbstractOperation, Explained
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class VocabularyTrimmed(AbstractOperation):
    """Rows of tokens were removed; what is left is compared row by row, wherever it stands.

    The same two models, taken the other way round, have grown a vocabulary: sizes do not tell which came first.
    """

    name: ClassVar[str] = "vocabulary trimmed"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: the difference on the tokens that are left is left open."""
        fewer = {layer.b: layer for layer in pair.layers if layer.grown < 0}
        if not fewer or self.name in pair.taken:
            return None
        removed = max(-layer.grown for layer in fewer.values())
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            f"{removed} tokens were removed, or added to the other",
            {"removed_tokens": removed, "tensors": sorted(fewer)},
            bits=float(NUMBER),
            place=0.0,
        )
        marked = {b: g.explained(f"{-g.grown} fewer tokens", g.left) for b, g in fewer.items()}
        return Explained(step, pair.with_layers(marked, self.name))
