"""Reformatted: the same numbers up to rounding, in another form."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, Explained
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.models.model import Model
from stemma.types import RelationKind


@dataclass(frozen=True)
class Reformatted(AbstractOperation):
    """Every matrix agrees up to the rounding of its number format; names, layout and float width may differ."""

    name: ClassVar[str] = "reformatted"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: applies only where nothing else was done."""
        covered = {layer.a for layer in pair.layers} >= set(matrices(pair.parent))
        covered &= {layer.b for layer in pair.layers} >= set(matrices(pair.child))
        if pair.taken or not pair.matrices or not covered or pair.kept or any(not m.settled for m in pair.matrices):
            return None
        if any(not layer.settled for layer in pair.open) and not _folded(pair):
            return None
        formats = [_formats(model) for model in (pair.parent, pair.child)]
        renamed = set(pair.parent.tensors) != set(pair.child.tensors)
        grown = {layer.b: layer.grown for layer in pair.layers if layer.grown}
        what = [
            *([f"{'/'.join(formats[0])} stored as {'/'.join(formats[1])}"] if formats[0] != formats[1] else []),
            *(["other names"] if renamed else []),
            *([f"{max(grown.values())} more tokens"] if grown else []),
        ]
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            "all weights agree up to the rounding of their number formats" + (f" ({', '.join(what)})" if what else ""),
            {"dtypes": formats, "names_changed": renamed, **({"vocabulary_grown": grown} if grown else {})},
        )
        settled = {layer.b: layer.explained("") for layer in pair.open}
        return Explained(step, pair.with_layers(settled, self.name))


def _folded(pair: Pair) -> bool:
    """Whether only vectors differ because tensors of a normalisation are gone."""
    return len(pair.child.tensors) < len(pair.parent.tensors)


def _formats(model: Model) -> list[str]:
    return sorted({t.dtype for t in model.tensors.values() if t.is_float})
