"""Trained on: every entry may have changed; which story fits such a difference is told by its geometry."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.relation import geometry
from stemma.kinship.relation.base import AbstractOperation, Explained, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

NAMES = {
    RelationKind.FINETUNED: "finetuned", RelationKind.SIBLINGS: "siblings", RelationKind.SAME_INIT: "same-init",
    RelationKind.RELATED: "changed",
}  # fmt: skip

MARKS = frozenset(
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
"""Operations that only the later of two models bears."""

APART = 0.3
"""Cosine below which tensors that contents, not names, have paired may not belong together."""


@dataclass(frozen=True)
class Trained(AbstractOperation):
    """Dense differences, told number by number: fine-tuned, or two trainings from one origin."""

    name: ClassVar[str] = "trained"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: always leaves nothing, at the price of one number per entry."""
        changed = pair.open
        if not changed or any(layer.measured is None for layer in changed):
            return None
        # What bears the mark of a loss is the later one: only what does not is asked for its geometry.
        # What is left beside an adapter is a part that was trained in full.
        found = geometry.LATER if (MARKS | {"lora", "dora"}) & set(pair.taken) else geometry.story(pair)
        if any(m.a != m.b and m.sums.cosine < APART for m in changed if m.matrix):
            found = geometry.UNTOLD
        frozen = [m.b for m in pair.matrices if m.settled and not m.marks]
        where = _where(pair, changed)
        relative = _relative(changed)
        kind = found.kind
        step = Step(
            NAMES[kind],
            kind,
            _sentence(kind, relative, where, len(frozen), len(pair.matrices)) + _sureness(found),
            {
                "relative_change": relative,
                "where": where,
                "frozen": frozen,
                "probability": found.probability,
                "position": found.position,
                "left": sum(layer.left for layer in changed),
            },
            bits=sum(entry_bits(layer, layer.left) for layer in changed),
        )
        done = {layer.b: layer.explained(_mark(layer)) for layer in changed}
        return Explained(step, pair.with_layers(done, self.name))


def _mark(layer: Layer) -> str:
    """What the training did to a layer, where other operations did something to it too."""
    if not layer.marks or layer.sums.norm_a == 0:
        return "changed"
    return f"trained on by {np.sqrt(layer.left / layer.sums.norm_a):.2g}"


def _sureness(found: geometry.Story) -> str:
    sure = "" if found.probability is None else f"; probability {found.probability:.2f} by geometry"
    return f"{sure} ({found.why})" if found.why else sure


def _relative(changed: tuple[Layer, ...]) -> float:
    return float(np.sqrt(sum(c.left for c in changed) / max(1e-60, sum(c.sums.norm_a for c in changed))))


def _where(pair: Pair, changed: tuple[Layer, ...]) -> str:
    """Which kind of tensors changed: all, some layers, or only biases, norms or the head."""
    if not any(layer.matrix for layer in changed):
        names = [layer.b.lower() for layer in changed]
        if all(n.endswith("bias") for n in names):
            return "biases only"
        return "norms only" if all("norm" in n or "bn" in n or "ln" in n for n in names) else "vectors only"
    from stemma.kinship.relation.replaced import is_head

    if all(is_head(pair, m) for m in changed if m.matrix) and len(pair.matrices) > sum(m.matrix for m in changed):
        return "head only"
    return "all layers" if all(m in changed for m in pair.matrices) else "some layers"


def _sentence(kind: RelationKind, relative: float, where: str, frozen: int, matrices: int) -> str:
    still = f", {frozen} of {matrices} matrices unchanged" if frozen else ""
    change = f"relative change {relative:.2g} ({where}{still})"
    if kind is RelationKind.SIBLINGS:
        return f"both were trained on from a common ancestor: {change}"
    if kind is RelationKind.SAME_INIT:
        return f"both were trained from one random start: {change}"
    return f"trained on: {change}" if kind is RelationKind.FINETUNED else f"changed in every entry: {change}"
