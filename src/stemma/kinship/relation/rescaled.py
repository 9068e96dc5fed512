"""Operation: units multiplied by positive factors that cancel, as folding a normalisation does too."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Rescaled(AbstractOperation):
    """Every matrix agrees up to one positive scale per unit: units rescaled, or a normalisation folded away."""

    name: ClassVar[str] = "rescaled"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: applies only where it explains every matrix."""
        if pair.operations or pair.kept or not pair.unexplained or not pair.matrices:
            return None
        if any(layer.added_tokens for layer in pair.layers) or not all(agrees(layer) for layer in pair.matrices):
            return None
        missing = {layer.a for layer in pair.matrices}, {layer.b for layer in pair.matrices}
        from stemma.fingerprints.tensor_content import matrices

        if not (missing[0] >= set(matrices(pair.parent)) and missing[1] >= set(matrices(pair.child))):
            return None
        folded = len(pair.parent.tensors) != len(pair.child.tensors)
        from stemma.kinship.relation.function_preserved import pair_preserves_function

        if not folded and not pair_preserves_function(pair, rescaled=True):
            return None
        if not folded and all(layer.is_explained for layer in pair.matrices):
            return None  # no unit was rescaled: whatever happened to biases and norms is something else
        units = sum(layer.sums.rows.shape[1] for layer in pair.matrices)
        residual = max(min(m.sums.residual_after_scaling, m.sums.relative) for m in pair.matrices)
        kind = RelationKind.REFORMATTED if folded else RelationKind.PERMUTED
        step = Step(
            "normalisation folded" if folded else "units rescaled",
            kind,
            f"all weights agree up to one {'' if folded else 'positive '}scale per unit"
            + ("; normalisation is folded" if folded else ""),
            {"residual": residual},
            bits=float(BITS_PER_NUMBER * units),
            place=2.0,
        )
        return FittedOperation(
            step, pair.with_layers({o.b: o.explained("rescaled") for o in pair.unexplained}, self.name)
        )


def agrees(layer: Layer) -> bool:
    """Whether a matrix is equal down to rounding, up to one scale per row or per column."""
    return (
        layer.measured is not None
        and min(layer.measured.residual_after_scaling, layer.measured.relative) <= layer.tolerance
    )
