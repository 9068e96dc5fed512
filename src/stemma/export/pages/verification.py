"""What the pages of a verification show: of an edit, and of unlearning."""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.export.edit_answers import (
    verify_edit_answer,
    verify_edit_closing,
    verify_unlearning_answer,
    verify_unlearning_closing,
)
from stemma.export.figures import count, number, odds, p_value, percent
from stemma.export.pages.trace import sentence

Document = Mapping[str, Any]

OUTCOMES = {True: "as recorded", False: "NOT as recorded", None: "not checked"}
"""What a check of an edit says."""

CHECKS = {
    "plan": "the plan is the one that the receipt names",
    "receipt": "the receipt fits the plan",
    "weights": "the weights are those of the receipt",
    "program": "the exported program computes the same",
    "parent": "the model before is the one of the receipt",
    "slices": "every tensor is what the plan leaves of the model before",
    "undo": "the original weights are not in the folder",
    "choice": "the method chooses the same again",
    "replay": "repeating the edit gives these weights",
    "measured": "the figures are reproduced",
}
"""By check: what it asks."""


def verify_edit_view(document: Document) -> dict[str, Any]:
    """Values of the template for the checks of an edit.

    Args:
        document: What `stemma verify edit --json` prints.

    Returns:
        The answer, every check, certainty and doubts.
    """
    meaning, following = verify_edit_closing(document)
    checks = document["checks"]
    done = [check for check in checks if check["good"] is not None]
    return {
        "title": f"Edit in {document['folder']}",
        "question": "Was the model edited as its plan and receipt say?",
        "answer": verify_edit_answer(document),
        "tone": {True: "clear", False: "refuted", None: "inconclusive"}[document["good"]],
        "meaning": meaning,
        "next": following,
        "checks": [{"name": c["check"], "asks": CHECKS.get(c["check"], ""), "outcome": OUTCOMES[c["good"]],
                    "tone": {True: "agrees", False: "contradicted", None: "inconclusive"}[c["good"]],
                    "reason": c["reason"]} for c in checks],
        "findings": [],
        "sure": [("checks", f"{len(done)} of {count(len(checks), 'check')} could be made"),
                 ("as recorded", count(sum(c["good"] is True for c in checks), "check")),
                 ("not as recorded", count(sum(c["good"] is False for c in checks), "check"))],
        "not_tested": [{"what": c["check"], "model": "", "why": c["reason"]} for c in checks if c["good"] is None],
        "doubts": [
            "A record that agrees with the weights says what was done; it does not say that doing it was enough.",
            "Whoever holds the model can write another model with a record of its own: compare the digests with those "
            "that you were given.",
        ],
        "cannot_see": ["whether a class is removed or only hidden", "seconds and software versions"],
    }  # fmt: skip


def verify_unlearning_view(document: Document) -> dict[str, Any]:
    """Values of the template for a test of unlearning.

    Args:
        document: What `stemma verify unlearning --json` prints.

    Returns:
        The answer, every view, accuracies, certainty and doubts.
    """
    meaning, following = verify_unlearning_closing(document)
    details = document["details"]
    runs, left_out = len(document["unlearned"]), details.get("left_out", {})
    return {
        "title": f"Unlearning of {', '.join(model['name'] for model in document['unlearned'][:3])}",
        "question": "Does the model behave as if it had never seen the forget set?",
        "answer": verify_unlearning_answer(document),
        "tone": {"supported": "clear", "refuted": "refuted"}.get(document["verdict"], "inconclusive"),
        "meaning": meaning,
        "next": following,
        "views": [_view(name, figures) for name, figures in details.get("views", {}).items()],
        "accuracies": list(_accuracies(details)),
        "findings": [sentence(document["reason"])],
        "sure": list(_certainty(document)),
        "not_tested": [{"what": "left-out", "model": name, "why": why} for name, why in
                       (*left_out.items(), *(details.get("samples") or {}).get("left_out", {}).items())],
        "doubts": list(_doubts(document)),
        "cannot_see": ["inputs unlike these probes", "models that were trained to pass this test",
                       *(["how much repeated runs differ"] if runs == 1 else [])],
    }  # fmt: skip


def _view(name: str, figures: Mapping[str, Any]) -> dict[str, str]:
    excess = figures.get("excess")
    limits = (
        ""
        if figures.get("excess_high") is None
        else (f"from {percent(max(figures['excess_low'], 0))} to {percent(figures['excess_high'])}")
    )
    return {
        "name": name,
        "excess": "no retrained models to compare with" if excess is None else f"{100 * excess:.0f} %",
        "limits": limits,
        "to_original": number(figures["to_original"]),
        "to_retrained": number(figures.get("to_retrained")),
        "between": number(figures.get("between_retrained")),
        "sees": "" if "sees_the_original" not in figures else "yes" if figures["sees_the_original"] else "no",
    }


def _accuracies(details: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for key, label in (("forget_accuracy", "inputs to forget"), ("retained_accuracy", "inputs to keep")):
        if key in details:
            yield {"name": label} | {
                kind: percent(details[key].get(kind)) for kind in ("original", "unlearned", "retrained")
            }


def _certainty(document: Document) -> Iterator[tuple[str, str]]:
    details = document["details"]
    gold = len(details.get("retrained", ()))
    yield "compared", f"{count(len(document['unlearned']), 'unlearned model')} with {count(gold, 'retrained model')}"
    yield "test", ", ".join(x for x in (p_value(document), odds(document).replace("independent", "retrained")) if x)
    if gold > 1:
        yield "smallest attainable p-value", number(document["null"]["floor"])
    if "control_p_value" in details:
        control = {"p_value": details["control_p_value"], "log10_p": None}
        yield "control", f"the original model in the same test: {p_value(control)}"
    for form, found in (details.get("samples") or {}).get("forms", {}).items():
        shown = (
            "the original is refuted too" if found["shown_to_have_power"] else "no power: the original is not refuted"
        )
        yield f"samples, {form}", f"{p_value({'p_value': found['p_value'], 'log10_p': None})}; {shown}"
    if details.get("missing"):
        yield "missing", f"{count(details['missing'], 'further retrained model')} would let the test decide"


def _doubts(document: Document) -> Iterator[str]:
    if document["verdict"] == "supported":
        yield "Not being told apart is not proof: a stronger test, or other inputs, may tell the two apart."
        yield "A model can be trained to pass this very test."
    for found in (document["details"].get("samples") or {}).get("forms", {}).values():
        yield found["assumption"]
        if not found["sound"]:
            yield f"The same test refutes {found['control']}, which it must not: it concludes nothing here."
    if document["verdict"] == "refuted":
        yield "Retrained models that were trained in another way than the original would be told apart as well."
    if document["verdict"] == "inconclusive":
        yield "Neither unlearning nor its absence is shown. This answer clears nothing."
