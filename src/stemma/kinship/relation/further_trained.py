"""Operation: further training, which may have changed every entry; `geometry` decides which relation it makes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.axes import ALL_LAYERS
from stemma.kinship.relation import geometry
from stemma.kinship.relation.base import AbstractOperation, FittedOperation, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

NAMES = {
    RelationKind.FINETUNED: "finetuned", RelationKind.SIBLINGS: "siblings", RelationKind.SAME_INIT: "same-init",
    RelationKind.RELATED: "changed",
}  # fmt: skip

LATER_ONLY = frozenset(
    {
        "quantized",
        "weights pruned",
        "units removed",
        "layers removed",
        "vocabulary grown",
        "vocabulary trimmed",
        "replaced",
    }
)
"""Operations that only the later of two models shows."""

LOW_COSINE = 0.3
"""Cosine below which tensors paired by contents rather than names may not correspond."""


@dataclass(frozen=True)
class FurtherTrained(AbstractOperation):
    """Dense differences, described entry by entry: fine-tuned, or two trainings from one origin."""

    name: ClassVar[str] = "trained"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: always explains everything, at the cost of one number per entry."""
        changed = pair.unexplained
        if not changed or any(layer.measured is None for layer in changed):
            return None
        # After an operation that loses information the direction is known: only other pairs need their geometry.
        # Beside an adapter, the remaining differences are parts that were fully trained.
        found = (
            geometry.KNOWN_LATER if (LATER_ONLY | {"lora", "dora"}) & set(pair.operations) else geometry.classify(pair)
        )
        if any(m.a != m.b and m.sums.cosine < LOW_COSINE for m in changed if m.matrix):
            found = geometry.UNDETERMINED
        frozen = [m.b for m in pair.matrices if m.is_explained and not m.marks]
        where = _where(pair, changed)
        relative = _relative(changed)
        kind = found.kind
        step = Step(
            NAMES[kind],
            kind,
            _sentence(kind, relative, where, len(frozen), len(pair.matrices)) + _confidence(found),
            {
                "relative_change": relative,
                "where": where,
                "frozen": frozen,
                "probability": found.probability,
                "position": found.position,
                "left": sum(layer.residual for layer in changed),
            },
            bits=sum(entry_bits(layer, layer.residual) for layer in changed),
        )
        done = {layer.b: layer.explained(_layer_mark(layer)) for layer in changed}
        return FittedOperation(step, pair.with_layers(done, self.name))


def _layer_mark(layer: Layer) -> str:
    """What the training did to a layer, where other operations changed it too."""
    if not layer.marks or layer.sums.norm_a == 0:
        return "changed"
    return f"further trained by {np.sqrt(layer.residual / layer.sums.norm_a):.2g}"


def _confidence(found: geometry.Classification) -> str:
    confidence = "" if found.probability is None else f"; classifier probability {found.probability:.2f}"
    return f"{confidence}; {found.reason}" if found.reason else confidence


def _relative(changed: tuple[Layer, ...]) -> float:
    return float(np.sqrt(sum(c.residual for c in changed) / max(1e-60, sum(c.sums.norm_a for c in changed))))


def _where(pair: Pair, changed: tuple[Layer, ...]) -> str:
    """Which tensors changed: all layers, some layers, or only biases, norms or the head."""
    if not any(layer.matrix for layer in changed):
        names = [layer.b.lower() for layer in changed]
        if all(n.endswith("bias") for n in names):
            return "biases only"
        return "norms only" if all("norm" in n or "bn" in n or "ln" in n for n in names) else "vectors only"
    from stemma.kinship.relation.replaced import is_head

    if all(is_head(pair, m) for m in changed if m.matrix) and len(pair.matrices) > sum(m.matrix for m in changed):
        return "head only"
    return ALL_LAYERS if all(m in changed for m in pair.matrices) else "some layers"


def _sentence(kind: RelationKind, relative: float, where: str, frozen: int, matrices: int) -> str:
    unchanged = f", {frozen} of {matrices} matrices unchanged" if frozen else ""
    change = f"relative change {relative:.2g} ({where}{unchanged})"
    if kind is RelationKind.SIBLINGS:
        return f"both were further trained from a common ancestor: {change}"
    if kind is RelationKind.SAME_INIT:
        return f"both were trained from the same random initialisation: {change}"
    return f"further trained: {change}" if kind is RelationKind.FINETUNED else f"dense change: {change}"
