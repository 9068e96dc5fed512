"""A relation has a name when both axes are known: weights and function, put side by side."""

from dataclasses import replace

from stemma.types import Comparison, Evidence, Relation, RelationKind, Verdict

UNASKED = "function (no probes were given)"
DISTILLED = "distillation"
NARROWER = "units removed"
"""The step of weights that makes a network narrower."""

FORGOTTEN = "forgotten"
"""Under which name the function axis tells a class of probes that one of the models no longer answers."""

TRAINED = (RelationKind.FINETUNED, RelationKind.PRUNED, RelationKind.LORA, RelationKind.RELATED, RelationKind.SIBLINGS)
"""Relations of weights that unlearning leaves."""


def both_axes(found: Comparison, function: Evidence | str) -> Comparison:
    """Put the function axis beside the weights axis and name the relation from both.

    | weights | function | name |
    |---|---|---|
    | related by a change that unlearning could leave | one class of probes is gone | `unlearned` |
    | related | any | as the weights name it; the reason says what the function adds |
    | independent | closer than independent models of the task | `distilled` |
    | undecided | closer than independent models | `related` |
    | independent or undecided | anything else | as the weights name it |

    The two axes are two tests, each at the level alpha.

    Args:
        found: The comparison by weights.
        function: The evidence of the function axis, or why there is none.

    Returns:
        The comparison with both axes: `related` if either is.
    """
    unseen = tuple(c for c in found.cannot_see if c != UNASKED)
    if isinstance(function, str):
        return replace(found, cannot_see=(f"function ({function})", *unseen))
    close = function.verdict is Verdict.SUPPORTED
    if close:
        unseen = tuple(c for c in unseen if c != DISTILLED)
    elif DISTILLED in unseen:
        unseen = tuple(f"{DISTILLED} ({function.reason})" if c == DISTILLED else c for c in unseen)
    return replace(
        found,
        function=function,
        verdict="related" if close else found.verdict,
        relation=_named(found, function, close=close),
        evidence=(*found.evidence, function),
        cannot_see=unseen,
    )


def _named(found: Comparison, function: Evidence, *, close: bool) -> Relation:
    relation, weights = found.relation, found.weights.verdict
    gone = function.details.get(FORGOTTEN)
    narrower = NARROWER in relation.steps  # cutting units may cost one class most; unlearning keeps sizes
    if weights is Verdict.SUPPORTED and gone and relation.kind in TRAINED and not narrower:
        reason = (
            f"class {gone['label']} of the probes is gone ({gone['before']:.0%} right before, {gone['after']:.0%} "
            f"after; all others {gone['others_before']:.0%} and {gone['others_after']:.0%}); in weights: "
            f"{relation.reason}"
        )
        origin = {"made_from": "a" if gone["by"] == "b" else "b"}  # what still knows the class was there before
        kept = {**origin, **relation.parameters, FORGOTTEN: gone, "weights": relation.kind.value}
        return Relation(RelationKind.UNLEARNED, kept, (*relation.steps, "unlearned"), reason)
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


def _unchecked(function: Evidence) -> str:
    """Without true labels nobody has seen that the null models do the same task."""
    return f"; if the null models ({function.null.source}) do another task, the same task alone can explain it"
