"""The name of a relation, from the shortest account of the pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.checkpoints.model import Model
from stemma.kinship.axes import NARROWER
from stemma.kinship.relation.base import AbstractOperation
from stemma.kinship.relation.explanation import Explanation, LayerChange, Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.relation.search import Account, accounts, plain_bits
from stemma.kinship.weights.residual import rounding
from stemma.types import Relation, RelationKind

UNSEEN = (
    "training data",
    "which of two dense changes was the later one",
    "whether a model was unlearned or merged: that takes probes, or the other parents",
)
"""What no account of two sets of weights can tell."""

FEWER = ("finetuned", "siblings", "same-init", "changed", "head replaced", "part inherited")
"""Steps that are told number by number: what they explain is not fitted."""


def shortest(pair: Pair, operations: Sequence[AbstractOperation]) -> Explanation | None:
    """The shortest account of a pair, with what became of every tensor.

    Args:
        pair: Parent and child.
        operations: What may have been done.

    Returns:
        The explanation; None where no account fits (sizes differ in ways that no operation explains).
    """
    found = accounts(pair, tuple(operations))
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
        residual=_root(sum(layer.left for layer in best.pair.layers if not layer.statistic), norm),
        floor=max((layer.floor for layer in pair.layers), default=0.0),
        fitted=_fitted(pair, best),
        bits=best.bits / entries,
        plain_bits=plain_bits(pair) / entries,
        layers=layer_changes(best.pair),
        others=tuple((tuple(s.name for s in a.steps), a.bits / entries) for a in found[1:4]),
        cannot_see=UNSEEN,
    )


def _kind(steps: Sequence[Step]) -> RelationKind:
    """The relation that steps make: the first that changed the function, where any did."""
    form = (RelationKind.REFORMATTED, RelationKind.PERMUTED)
    return next((s.kind for s in steps if s.kind not in form), steps[0].kind)


def _root(part: float, whole: float) -> float:
    return float((part / max(whole, 1e-60)) ** 0.5) if part != float("inf") else 1e9


def _fitted(pair: Pair, best: Account) -> float:
    """Share of the squared difference that steps with fewer parameters than entries account for."""
    before = {layer.b: layer for layer in pair.layers if not layer.statistic and layer.measured is not None}
    total = sum(layer.sums.difference for layer in before.values())
    dense = sum(s.parameters.get("left", 0.0) for s in best.steps if s.name in FEWER)
    return 1.0 if total == 0 else max(0.0, 1 - dense / total)


def layer_changes(pair: Pair) -> tuple[LayerChange, ...]:
    """What became of every tensor.

    Args:
        pair: A pair after its account.

    Returns:
        Common tensors in the order of the pair, then new and removed ones.
    """
    common = [
        LayerChange(x.b, x.a, _status(x), x.size, x.relative, tuple(m for m in x.marks if m)) for x in pair.layers
    ]
    new = [LayerChange(n, "", "new", pair.child.weights[n].size, None) for n in pair.new]
    gone = [LayerChange(n, n, "removed", pair.parent.weights[n].size, None) for n in pair.removed]
    return (*common, *new, *gone)


def _status(layer: Layer) -> str:
    if layer.measured is None or "replaced" in layer.marks:
        return "replaced"
    if layer.sums.equal == layer.sums.read and not layer.grown:
        return "inherited"
    if layer.sums.difference <= layer.tolerance**2 * layer.sums.norm_a:
        return "rounded"
    if layer.statistic:
        return "gathered"
    return "rescaled" if layer.marks[-1:] == ("rescaled",) else "changed"


def relation_of(found: Explanation, figures: Mapping[str, Any]) -> Relation:
    """The relation that an explanation makes.

    Args:
        found: The explanation.
        figures: Further figures that go with it.

    Returns:
        The relation, named after the first step that changed the function; all steps in order.
    """
    parameters: dict[str, Any] = {**figures, "relative_change": found.relative, "explained": found.fitted}
    for step in reversed(found.steps):
        parameters.update({k: v for k, v in step.parameters.items() if k not in ("relative_change", "left")})
    return Relation(found.kind, parameters, tuple(s.name for s in found.steps), found.sentence)


def shorter(one: Explanation | None, other: Explanation | None) -> Explanation | None:
    """Of two explanations, with the roles of parent and child exchanged, the shorter one.

    Args:
        one: The explanation in the order asked for; it is kept unless the other is clearly shorter, or begins with
            units or layers that were taken out, where this one has new parts instead.
        other: The explanation the other way round.

    Returns:
        One of them.
    """
    if one is None or other is None:
        return one or other
    new = any(s.name == "part inherited" for s in one.steps)
    if new and other.steps[0].name in TAKEN_OUT and other.bits < one.bits:
        return other
    return other if other.bits < 0.9 * one.bits - 0.01 else one


TAKEN_OUT = frozenset({"units removed", "layers removed"})
"""Steps after which the model that lacks something looks like the parent of one with new parts."""

MARKS = frozenset({RelationKind.QUANTIZED, RelationKind.PRUNED})
"""Operations that lose something: whichever model bears their mark was made from the other."""


def made_from(found: Explanation, a: Model, b: Model) -> str:
    """Which of two models the other was made from, where an operation lost something and did nothing else.

    Args:
        found: The account of the pair, whichever of the two it takes for the parent.
        a: One model.
        b: The other one.

    Returns:
        `a`, `b`, or nothing where both orders are possible.
    """
    turned = found.child.digest == a.digest
    parent, child = (b, a) if turned else (a, b)
    first, second = ("b", "a") if turned else ("a", "b")
    lossy = [s for s in found.steps if s.kind is not RelationKind.PERMUTED]  # units are put in order either way
    if any(s.parameters.get("idle") for s in lossy):
        return ""  # such units may have been taken out, or put in
    if (lossy and all(s.kind in MARKS for s in lossy)) or any(s.name == NARROWER for s in lossy):
        return first
    if found.kind is not RelationKind.REFORMATTED or len(found.steps) != 1:
        return ""
    if found.steps[0].parameters.get("vocabulary_grown"):
        return ""  # tokens were added, or taken away from the other
    if found.steps[0].name == "normalisation folded":
        return first if len(parent.tensors) > len(child.tensors) else second
    widths = [max((rounding(m, n) for n, t in m.tensors.items() if t.is_float), default=0.0) for m in (parent, child)]
    if found.relative and widths[0] != widths[1]:  # equal numbers in two widths may have been widened or narrowed
        return first if widths[0] < widths[1] else second
    return ""


def two_marks(one: Sequence[Step], other: Sequence[Step]) -> bool:
    """Whether each side bears the mark of an operation of its own, so that neither was made from the other.

    Args:
        one: Steps from A to B.
        other: Steps from B to A.

    Returns:
        True where both were quantised, or pruned, in different ways.
    """
    leaf = {RelationKind.QUANTIZED, RelationKind.PRUNED}
    return any(s.kind in leaf for s in one) and any(s.kind in leaf for s in other)
