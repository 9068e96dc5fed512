"""The relation of two models, named from both axes: weights and function."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stemma.types import Comparison, Evidence, Relation, RelationKind, Verdict

NO_PROBES = "function (no probes were given)"
DISTILLED = "distillation"
NO_ORDER = "; which of the two learned from the other is not shown"
"""Closeness in function is the same from both sides: more accurate or larger models are not always the teachers."""

NARROWER = "units removed"
"""The step of weights that makes a network narrower."""

ALL_LAYERS = "all layers"
"""Where a dense change reaches: every matrix, so that none shows exactly what the model was made from."""

FORGOTTEN = "forgotten"
"""Key of the class of probes that one of the models no longer recognises."""

LEFT_BY_UNLEARNING = (
    RelationKind.FINETUNED, RelationKind.PRUNED, RelationKind.LORA, RelationKind.RELATED, RelationKind.SIBLINGS,
    RelationKind.PART_INHERITED,
)  # fmt: skip
"""Relations of weights that unlearning may leave; the last where a few layers were solved for anew."""

UNCHANGED_TENSORS = ("frozen", "modules")
"""Parameters of a relation that list which whole tensors are unchanged, or which are changed."""


def both_axes(found: Comparison, function: Evidence | str, alpha: float = 0.01) -> Comparison:
    """Combine the function axis with the weights axis and name the relation from both.

    | weights | function | name |
    |---|---|---|
    | related by a change that unlearning could leave | one class is no longer recognised | `unlearned` [1] |
    | related | any | as the weights name it; the reason says what the function adds |
    | independent | closer than independent models of the task | `distilled` |
    | independent | tested, with too few independent models for any answer | none: `inconclusive` |
    | undecided | closer than independent models | `related` |
    | independent or undecided | anything else | as the weights name it |

    [1] Unless the weights suggest that the model without the class came first: then it may have been learnt.

    The two axes are two tests, each at significance level alpha.

    Args:
        found: The comparison by weights.
        function: The evidence of the function axis, or why there is none.
        alpha: Significance level.

    Returns:
        The comparison with both axes: `related` if either is, `inconclusive` if the weights are independent and the
        function test could not have reached significance.
    """
    not_covered = tuple(c for c in found.cannot_see if c != NO_PROBES)
    if isinstance(function, str):
        return replace(found, cannot_see=(f"function ({function})", *not_covered))
    close = function.verdict is Verdict.SUPPORTED
    if close:
        not_covered = tuple(c for c in not_covered if c != DISTILLED)
    elif DISTILLED in not_covered:
        not_covered = tuple(f"{DISTILLED} ({function.reason})" if c == DISTILLED else c for c in not_covered)
    untestable = not close and found.verdict == "independent" and _is_untestable(function, alpha)
    reason = f"no shared weights were found, but the function is undetermined: {function.reason}"
    relation = _relation(found, function, close=close) if not untestable else replace(found.relation, reason=reason)
    direction, confidence = found.direction, found.direction_confidence
    if FORGOTTEN in relation.parameters and relation.kind is not RelationKind.UNLEARNED:
        direction, confidence = "unknown", None
    elif relation.kind is RelationKind.UNLEARNED and direction == "unknown" and "made_from" in relation.parameters:
        direction = "a->b" if relation.parameters["made_from"] == "a" else "b->a"
    return replace(
        found,
        function=function,
        verdict="related" if close else "inconclusive" if untestable else found.verdict,
        relation=relation,
        direction=direction,
        direction_confidence=confidence,
        evidence=(*found.evidence, function),
        cannot_see=not_covered,
        not_tested=(*found.not_tested, *([{"what": "function", "model": "", "why": reason}] if untestable else [])),
    )


def _is_untestable(function: Evidence, alpha: float) -> bool:
    """Whether the smallest attainable p-value exceeds alpha."""
    return function.verdict is Verdict.INCONCLUSIVE and (function.p_value is None or function.null.floor > alpha)


def _relation(found: Comparison, function: Evidence, *, close: bool) -> Relation:
    relation, weights = found.relation, found.weights.verdict
    gone = function.details.get(FORGOTTEN)
    narrower = NARROWER in relation.steps  # cutting units may cost one class most; unlearning keeps sizes
    if weights is Verdict.SUPPORTED and gone and relation.kind in LEFT_BY_UNLEARNING and not narrower:
        return _relation_of_lost_class(found, gone)
    if weights is Verdict.SUPPORTED:
        return replace(relation, reason=f"{relation.reason}; in function: {function.reason}")
    if not close:
        return relation
    shown = {"agreement": function.details.get("agreement"), "distance": function.value}
    if weights is Verdict.REFUTED:
        caveat = "" if function.details.get("same_task") else _task_caveat(function)
        reason = f"no shared weights were found, but in function {function.reason}{caveat}{NO_ORDER}"
        return Relation(RelationKind.DISTILLED, shown, ("distilled",), reason)
    reason = f"in function {function.reason}; the weights are inconclusive ({found.weights.reason})"
    return Relation(RelationKind.RELATED, shown, (), reason)


def _relation_of_lost_class(found: Comparison, gone: Mapping[str, Any]) -> Relation:
    # The model that recognises the class came first, unless the weights indicate the other direction (training on wrong
    # labels misleads them too): then both readings are reported, without a direction. Where the weights indicate none,
    # only a change that leaves whole tensors unchanged is taken for an edit.
    relation, knows = found.relation, "a" if gone["by"] == "b" else "b"
    shares = f"{gone['others_before']:.0%} and {gone['others_after']:.0%}"
    first = {"a->b": "a", "b->a": "b"}.get(found.direction)
    if first not in (None, knows):
        either = (
            f"only {knows} recognises class {gone['label']} of the probes (accuracy {gone['before']:.0%}, the other "
            f"{gone['after']:.0%}; other classes {shares}): either {knows} is the later model and learnt it, as the "
            "weights suggest, or the other model unlearned it"
        )
        parameters = {**relation.parameters, FORGOTTEN: gone}
        return replace(relation, parameters=parameters, reason=f"{relation.reason}; in function {either}")
    directed = first is not None or any(relation.parameters.get(p) for p in UNCHANGED_TENSORS)
    origin = {"made_from": knows} if directed else {}
    kept = {**origin, **relation.parameters, FORGOTTEN: gone, "weights": relation.kind.value}
    reason = (
        f"class {gone['label']} of the probes is no longer recognised (accuracy {gone['before']:.0%} before, "
        f"{gone['after']:.0%} after; other classes {shares})"
        f"{'' if directed else ', or it was learnt, if the other model came first'}; in weights: "
        f"{relation.reason}"
    )
    return Relation(RelationKind.UNLEARNED, kept, (*relation.steps, "unlearned"), reason)


def _task_caveat(function: Evidence) -> str:
    return f"; if the control models ({function.null.source}) do another task, a shared task may explain it"
