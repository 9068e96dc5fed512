"""A relation has a name when both axes are known: weights and function, put side by side."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stemma.types import Comparison, Evidence, Relation, RelationKind, Verdict

UNASKED = "function (no probes were given)"
DISTILLED = "distillation"
NARROWER = "units removed"
"""The step of weights that makes a network narrower."""

FORGOTTEN = "forgotten"
"""Under which name the function axis tells a class of probes that one of the models no longer answers."""

TRAINED = (RelationKind.FINETUNED, RelationKind.PRUNED, RelationKind.LORA, RelationKind.RELATED, RelationKind.SIBLINGS,
           RelationKind.PART_INHERITED)  # fmt: skip
"""Relations of weights that unlearning leaves; the last where a few layers were solved for anew."""

ALONE = ("frozen", "modules")
"""Parameters of a relation that say that whole tensors were left alone: those that were, or those that were not."""


def both_axes(found: Comparison, function: Evidence | str, alpha: float = 0.01) -> Comparison:
    """Put the function axis beside the weights axis and name the relation from both.

    | weights | function | name |
    |---|---|---|
    | related by a change that unlearning could leave | one class of probes is gone | `unlearned` [1] |
    | related | any | as the weights name it; the reason says what the function adds |
    | independent | closer than independent models of the task | `distilled` |
    | independent | asked, with too few independent models for any answer | none: `inconclusive` |
    | undecided | closer than independent models | `related` |
    | independent or undecided | anything else | as the weights name it |

    [1] Unless the weights speak for the model without the class having come first: then it may have been learnt.

    The two axes are two tests, each at the level alpha.

    Args:
        found: The comparison by weights.
        function: The evidence of the function axis, or why there is none.
        alpha: Level of the decision.

    Returns:
        The comparison with both axes: `related` if either is, `inconclusive` if the weights are independent and the
        function was asked in vain: both are one question, and half an answer is none.
    """
    unseen = tuple(c for c in found.cannot_see if c != UNASKED)
    if isinstance(function, str):
        return replace(found, cannot_see=(f"function ({function})", *unseen))
    close = function.verdict is Verdict.SUPPORTED
    if close:
        unseen = tuple(c for c in unseen if c != DISTILLED)
    elif DISTILLED in unseen:
        unseen = tuple(f"{DISTILLED} ({function.reason})" if c == DISTILLED else c for c in unseen)
    vain = not close and found.verdict == "independent" and _in_vain(function, alpha)
    half = f"the weights are independent, the function is open: {function.reason}"
    relation = _named(found, function, close=close) if not vain else replace(found.relation, reason=half)
    direction, sure = found.direction, found.direction_confidence
    if FORGOTTEN in relation.parameters and relation.kind is not RelationKind.UNLEARNED:
        direction, sure = "unknown", None
    elif relation.kind is RelationKind.UNLEARNED and direction == "unknown" and "made_from" in relation.parameters:
        direction = "a->b" if relation.parameters["made_from"] == "a" else "b->a"
    return replace(
        found,
        function=function,
        verdict="related" if close else "inconclusive" if vain else found.verdict,
        relation=relation,
        direction=direction,
        direction_confidence=sure,
        evidence=(*found.evidence, function),
        cannot_see=unseen,
        not_tested=(*found.not_tested, *([{"what": "function", "model": "", "why": half}] if vain else [])),
    )


def _in_vain(function: Evidence, alpha: float) -> bool:
    """Whether no p-value that the function's null can give would have decided anything."""
    return function.verdict is Verdict.INCONCLUSIVE and (function.p_value is None or function.null.floor > alpha)


def _named(found: Comparison, function: Evidence, *, close: bool) -> Relation:
    relation, weights = found.relation, found.weights.verdict
    gone = function.details.get(FORGOTTEN)
    narrower = NARROWER in relation.steps  # cutting units may cost one class most; unlearning keeps sizes
    if weights is Verdict.SUPPORTED and gone and relation.kind in TRAINED and not narrower:
        return _one_class(found, gone)
    if weights is Verdict.SUPPORTED:
        return replace(relation, reason=f"{relation.reason}; in function: {function.reason}")
    if not close:
        return relation
    shown = {"agreement": function.details.get("agreement"), "distance": function.value}
    if weights is Verdict.REFUTED:
        unsure = "" if function.details.get("same_task") else _unchecked(function)
        reason = f"the weights are independent, but in function {function.reason}{unsure}"
        return Relation(RelationKind.DISTILLED, shown, ("distilled",), reason)
    reason = f"in function {function.reason}; the weights say nothing either way ({found.weights.reason})"
    return Relation(RelationKind.RELATED, shown, (), reason)


def _one_class(found: Comparison, gone: Mapping[str, Any]) -> Relation:
    """One of two relatives does not answer a class that the other one answers: it was forgotten, or learnt later.

    What still knows the class came first, unless the weights say otherwise: training on wrong answers misleads them as
    well, so both readings are told then, and no direction. Where they say nothing, only a change that left whole
    tensors alone is taken for an edit; a training of everything may have gone either way.

    Returns:
        `unlearned`, or the weights' relation where the weights speak for the class having been learnt.
    """
    relation, knows = found.relation, "a" if gone["by"] == "b" else "b"
    shares = f"{gone['others_before']:.0%} and {gone['others_after']:.0%}"
    first = {"a->b": "a", "b->a": "b"}.get(found.direction)
    if first not in (None, knows):
        either = (
            f"class {gone['label']} of the probes is answered by {knows} alone ({gone['before']:.0%} right, the other "
            f"{gone['after']:.0%}; all others {shares}): {knows} learnt it if it is the later one, as the weights "
            "suggest, and else the other forgot it"
        )
        parameters = {**relation.parameters, FORGOTTEN: gone}
        return replace(relation, parameters=parameters, reason=f"{relation.reason}; in function {either}")
    sure = first is not None or any(relation.parameters.get(p) for p in ALONE)
    origin = {"made_from": knows} if sure else {}
    kept = {**origin, **relation.parameters, FORGOTTEN: gone, "weights": relation.kind.value}
    reason = (
        f"class {gone['label']} of the probes is gone ({gone['before']:.0%} right before, {gone['after']:.0%} after; "
        f"all others {shares}){'' if sure else ', or it was learnt, if the other model came first'}; in weights: "
        f"{relation.reason}"
    )
    return Relation(RelationKind.UNLEARNED, kept, (*relation.steps, "unlearned"), reason)


def _unchecked(function: Evidence) -> str:
    """Without true labels nobody has seen that the null models do the same task."""
    return f"; if the null models ({function.null.source}) do another task, the same task alone can explain it"
