"""Name of the relation, from the simplest explanation of the pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.checkpoints.model import Model
from stemma.kinship.axes import ALL_LAYERS, NARROWER
from stemma.kinship.relation.base import AbstractOperation
from stemma.kinship.relation.explanation import Explanation, LayerChange, Step
from stemma.kinship.relation.operation_search import CandidateExplanation, candidate_explanations, plain_bits
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.weights.residual import rounding
from stemma.types import Relation, RelationKind

CANNOT_SEE = (
    "training data",
    "the order of two dense changes",
    "unlearning and merging (needs probes, or the other parents)",
)
"""What the weights of two models cannot show."""

DENSE_STEPS = ("finetuned", "siblings", "same-init", "changed", "head replaced", "part inherited")
"""Steps described entry by entry: what they explain is not fitted."""


def simplest_explanation(pair: Pair, operations: Sequence[AbstractOperation]) -> Explanation | None:
    """The simplest explanation of a pair with the change of every tensor; None where none fits."""
    found = candidate_explanations(pair, tuple(operations))
    if not found:
        return None
    best, entries = found[0], max(1, sum(layer.size for layer in pair.layers))
    sums = [layer.sums for layer in pair.layers if layer.measured is not None and not layer.statistic]
    norm, difference = sum(s.norm_a for s in sums), sum(s.difference for s in sums)
    return Explanation(
        pair.parent.ref,
        pair.child.ref,
        _kind(best.steps),
        best.steps,
        "; then ".join(s.sentence for s in best.steps),
        relative=_root(difference, norm) if sums else None,
        residual=_root(sum(layer.residual for layer in best.pair.layers if not layer.statistic), norm),
        floor=max((layer.floor for layer in pair.layers), default=0.0),
        fitted=_fitted(pair, best),
        bits=best.bits / entries,
        plain_bits=plain_bits(pair) / entries,
        layers=layer_changes(best.pair),
        others=tuple((tuple(s.name for s in a.steps), a.bits / entries) for a in found[1:4]),
        cannot_see=CANNOT_SEE,
    )


def _kind(steps: Sequence[Step]) -> RelationKind:
    """The relation that steps make: the first that changed the function, if any."""
    form = (RelationKind.REFORMATTED, RelationKind.PERMUTED)
    return next((s.kind for s in steps if s.kind not in form), steps[0].kind)


def _root(part: float, whole: float) -> float:
    return float((part / max(whole, 1e-60)) ** 0.5) if part != float("inf") else 1e9


def _fitted(pair: Pair, best: CandidateExplanation) -> float:
    """Share of the squared difference explained by steps with fewer parameters than entries."""
    before = {layer.b: layer for layer in pair.layers if not layer.statistic and layer.measured is not None}
    total = sum(layer.sums.difference for layer in before.values())
    dense = sum(s.parameters.get("left", 0.0) for s in best.steps if s.name in DENSE_STEPS)
    return 1.0 if total == 0 else max(0.0, 1 - dense / total)


def layer_changes(pair: Pair) -> tuple[LayerChange, ...]:
    """Change of every tensor of an explained pair: common tensors, then new and removed ones."""
    common = [
        LayerChange(x.b, x.a, _status(x), x.size, x.relative, tuple(m for m in x.marks if m)) for x in pair.layers
    ]
    new = [LayerChange(n, "", "new", pair.child.weights[n].size, None) for n in pair.new]
    gone = [LayerChange(n, n, "removed", pair.parent.weights[n].size, None) for n in pair.removed]
    return (*common, *new, *gone)


def _status(layer: Layer) -> str:
    if layer.measured is None or "replaced" in layer.marks:
        return "replaced"
    if layer.sums.equal == layer.sums.read and not layer.added_tokens:
        return "inherited"
    if layer.sums.difference <= layer.tolerance**2 * layer.sums.norm_a:
        return "rounded"
    if layer.statistic:
        return "gathered"
    return "rescaled" if layer.marks[-1:] == ("rescaled",) else "changed"


def relation_of(found: Explanation, figures: Mapping[str, Any]) -> Relation:
    """The relation of an explanation, named after the first step that changed the function; with all steps."""
    parameters: dict[str, Any] = {**figures, "relative_change": found.relative, "explained": found.fitted}
    for step in reversed(found.steps):
        parameters.update({k: v for k, v in step.parameters.items() if k not in ("relative_change", "left")})
    return Relation(found.kind, parameters, tuple(s.name for s in found.steps), found.sentence)


def simpler(one: Explanation | None, other: Explanation | None) -> Explanation | None:
    """The simpler of two explanations in opposite directions; the first, unless the second is clearly simpler."""
    # Removed units or layers look like new parts in the opposite direction.
    if one is None or other is None:
        return one or other
    new = any(s.name == "part inherited" for s in one.steps)
    if new and other.steps[0].name in REMOVALS and other.bits < one.bits:
        return other
    return other if other.bits < 0.9 * one.bits - 0.01 else one


REMOVALS = frozenset({"units removed", "layers removed"})
"""Steps that look like new parts in the opposite direction."""

LOSSY = frozenset({RelationKind.QUANTIZED, RelationKind.PRUNED})
"""Operations that lose information: the model that shows them was made from the other."""


def older_model(found: Explanation, a: Model, b: Model) -> str:
    """`a` or `b`, whichever the other was made from by operations that lose information; empty if unknown."""
    turned = found.child.digest == a.digest
    parent, child = (b, a) if turned else (a, b)
    first, second = ("b", "a") if turned else ("a", "b")
    lossy = [s for s in found.steps if s.kind is not RelationKind.PERMUTED]  # a permutation has no direction
    if any(s.parameters.get("idle") for s in lossy):
        return ""  # such units may have been removed or added
    if lossy and all(s.kind in LOSSY for s in lossy):
        return first
    if any(s.name == NARROWER for s in lossy):
        # where every layer changed too, the wider model may just as well be a relative of the one that was cut
        return "" if any(s.parameters.get("where") == ALL_LAYERS for s in lossy) else first
    if found.kind is not RelationKind.REFORMATTED or len(found.steps) != 1:
        return ""
    if found.steps[0].parameters.get("vocabulary_grown"):
        return ""  # tokens were added, or removed from the other
    if found.steps[0].name == "normalisation folded":
        return first if len(parent.tensors) > len(child.tensors) else second
    widths = [max((rounding(m, n) for n, t in m.tensors.items() if t.is_float), default=0.0) for m in (parent, child)]
    if found.relative and widths[0] != widths[1]:  # equal numbers in two widths may have been widened or narrowed
        return first if widths[0] < widths[1] else second
    return ""


def both_transformed(one: Sequence[Step], other: Sequence[Step]) -> bool:
    """Whether each model was quantised or pruned on its own, so that neither was made from the other."""
    leaf = {RelationKind.QUANTIZED, RelationKind.PRUNED}
    return any(s.kind in leaf for s in one) and any(s.kind in leaf for s in other)
