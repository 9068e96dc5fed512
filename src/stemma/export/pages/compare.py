"""What the page of a comparison shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from stemma.export.answers import compare_answer, compare_closing
from stemma.export.figures import EXACT, number, odds, p_value, percent, strength
from stemma.export.pages.pictures.axes import axes
from stemma.export.pages.trace import sentence

Document = Mapping[str, Any]

MEASURED = {"bits": "bits", "ratio": "ratio", "rank": "rank", "relative_change": "relative change",
            "zeroed": "set to zero", "tokens": "tokens", "strength": "strength", "scale": "scale"}  # fmt: skip
"""Parameters of a relation that are shown; all of them are in the document."""

DECIDED = {"supported": "yes", "refuted": "no", "inconclusive": "undecided"}
"""What a test says of its own claim."""


def compare_view(document: Document) -> dict[str, Any]:
    """Values of the template for a comparison.

    Args:
        document: What `stemma compare --json` prints.

    Returns:
        The answer, the picture of the two axes, findings, evidence, certainty and doubts.
    """
    meaning, following = compare_closing(document)
    untested = {entry["why"] for entry in document["not_tested"]}
    return {
        "title": f"{document['a']['name']} and {document['b']['name']}",
        "question": "What is one model to the other?",
        "answer": compare_answer(document),
        "tone": document["verdict"],
        "meaning": meaning,
        "next": following,
        "axes": Markup(axes(document)),  # nothing in it comes from outside
        "findings": list(_findings(document)),
        "sure": list(_certainty(document)),
        "tests": list(_tests(document)),
        "doubts": list(_doubts(document)),
        "cannot_see": [entry for entry in document["cannot_see"] if entry not in untested],
    }


def _findings(document: Document) -> Iterator[str]:
    yield sentence(f"weights: {document['weights']['reason']}")
    function = document["function"]
    if function is None:
        yield "Function: not looked at, because no probe inputs were given."
    else:
        yield sentence(f"function: {function['reason']}")
    if document["relation_reason"] and document["relation_reason"] != document["weights"]["reason"]:
        yield sentence(f"relation: {document['relation_reason']}")
    if len(document["steps"]) > 1:
        yield f"Steps, in their order: {', '.join(document['steps'])}."
    shown = {MEASURED[k]: v for k, v in document["relation_parameters"].items() if k in MEASURED}
    figures = [
        f"{k} {number(v) if isinstance(v, float) else v}" for k, v in shown.items() if isinstance(v, int | float | str)
    ]
    if figures:
        yield f"Measured: {', '.join(figures)}."


def _certainty(document: Document) -> Iterator[tuple[str, str]]:
    weights = {**document["weights"], "relation": document["relation"]}
    yield "weights", ", ".join(x for x in (strength(weights), odds(weights)) if x)
    function = document["function"]
    if function is not None:
        yield "function", ", ".join(x for x in (p_value(function), odds(function)) if x)
        null = function["null"]
        controls = f"{null['n'] or 0:,} ({null['source']}); smallest attainable p-value {number(null['floor'])}"
        yield "control models", controls
        both = function["details"].get("p_values") or {}
        if both.get("normal_law") is not None:
            values = f"{number(both['exact'])} by rank, {number(both['normal_law'])} by a normal law"
            yield "p-values", f"{values}; the {both['decides']} one decides, assuming that {both['assumes']}"
        agreement = function["details"].get("agreement")
        if agreement is not None:
            yield "same class", f"for {percent(agreement)} of the probe inputs"
    names = {"a->b": document["a"]["name"], "b->a": document["b"]["name"]}
    if document["direction"] in names:
        sure = document["direction_confidence"]
        shown = "shown by the change itself" if sure is None else f"probability that it is so: {percent(sure)}"
        yield "which came first", f"{names[document['direction']]}; {shown}"
    elif document["verdict"] == "related":
        yield "which came first", "not known"


def _tests(document: Document) -> Iterator[dict[str, Any]]:
    """Every test, the deciding one of each axis first."""
    deciding = {document["weights"]["reason"], (document["function"] or {}).get("reason")}
    marked: set[str] = set()
    for test in document["evidence"]:
        decides = test["reason"] in deciding and test["axis"] not in marked
        marked |= {test["axis"]} if decides else set()
        differ = test["statistic"] == "digest" and test["verdict"] == "inconclusive"
        exact = test["verdict"] == "supported" and document["relation"] in EXACT
        yield {
            "claim": test["claim"],
            "axis": test["axis"],
            "outcome": "no" if differ else DECIDED[test["verdict"]],
            "strength": "digests differ"
            if differ
            else strength({**test, "relation": document["relation"] if exact else None}),
            "reason": test["reason"],
            "against": test["null"]["source"],
            "decides": decides,
        }


def _doubts(document: Document) -> Iterator[str]:
    verdict, function = document["verdict"], document["function"]
    if verdict == "related":
        if document["direction"] != "unknown":
            yield "Other models may stand between the two."
        else:
            yield "Both may come from a third model: shared weights do not say that one was made from the other."
            yield "Which of the two came first is not known; do not read the order of the names as a direction."
        if document["weights"]["verdict"] != "related":
            yield (
                "Models of the same task and data can agree in function without any copying; control models are to "
                "rule that out."
            )
    if verdict == "independent" and function is None:
        yield "One may have been trained from the outputs of the other (distillation): that leaves no trace in weights."
    if verdict == "independent" and function is not None:
        yield "A model can be trained to hide what it learned from another: other probe inputs may show more."
    if verdict == "inconclusive":
        yield "The two may be related or not. This answer clears nothing."
    if document["relation"] in ("related", None) and verdict == "related":
        yield "What was done between the two could not be named."
    if document["direction_confidence"] is not None and document["direction_confidence"] < 1:
        yield f"The direction may be the other way round: probability {percent(1 - document['direction_confidence'])}."
