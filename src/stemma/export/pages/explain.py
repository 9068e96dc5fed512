"""What the page of an explanation shows."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from stemma.export.answers import AnswerLine, explain_answer, explain_closing
from stemma.export.figures import count, number, percent
from stemma.export.layer_blocks import LONG, rows
from stemma.export.pages.pictures.heat_map import heat_map, legend

Document = Mapping[str, Any]

PLACES = {0.0: "before training", 1.0: "training", 2.0: "after training"}
"""When a step was taken."""

FEW = 6
"""Fitted figures that a step shows."""

EXPLAINED = 0.005
"""Share of the change that is explained from which it is worth a figure."""


def explain_view(document: Document) -> dict[str, Any]:
    """Values of the template for an explanation.

    Args:
        document: What `stemma explain --json` prints.

    Returns:
        The answer, the steps with their figures, the heat map with its legend and table, certainty and doubts.
    """
    meaning, following = explain_closing(document)
    layers = document["layers"]
    return {
        "title": f"{document['parent']['name']} to {document['child']['name']}",
        "question": "What was done to the parent to get the child?",
        "answer": _headline(document),
        "tone": {None: "inconclusive", "unrelated": "independent"}.get(document["kind"], "related"),
        "meaning": meaning,
        "next": following,
        "steps": [_step(step) for step in document["steps"]],
        "heat_map": Markup(heat_map(layers)),  # names in it are escaped
        "legend": legend(layers),
        "by_block": len(layers) > LONG,
        "rows": list(rows(layers, number, by_block=len(layers) > LONG)),
        "findings": [] if document["steps"] else [document["sentence"]],
        "sure": list(_certainty(document)),
        "others": [(" → ".join(other["steps"]), number(other["bits"])) for other in document["others"]],
        "doubts": list(_doubts(document)),
        "counts": list(_counts(document)),
    }


def _headline(document: Document) -> AnswerLine:
    """The answer, with a capital letter."""
    answer = explain_answer(document)
    return replace(answer, before=f"{answer.before[:1].upper()}{answer.before[1:]}")


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    figures = [(k.replace("_", " "), _figure(v)) for k, v in step["parameters"].items() if _is_figure(v)]
    return {"name": step["name"], "kind": step["kind"], "sentence": step["sentence"], "figures": figures[:FEW],
            "place": PLACES.get(float(step["place"]), "")}  # fmt: skip


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""


def _figure(value: Any) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _counts(document: Document) -> Iterator[str]:
    """How many tensors became what."""
    found: dict[str, list[int]] = {}
    for layer in document["layers"]:
        found.setdefault(layer["status"], []).append(layer["size"])
    for status, sizes in found.items():
        yield f"{count(len(sizes), 'tensor')} {status} ({count(sum(sizes), 'number')})"


def _certainty(document: Document) -> Iterator[tuple[str, str]]:
    if document["relative"] is not None:
        rounding = f"rounding alone would leave {number(document['floor'])}"
        yield "size of the change", f"{number(document['relative'])} of the parent's norm; {rounding}"
    if document["steps"] and document["relative"]:
        if document["fitted"] < EXPLAINED:
            yield "explained", "entry by entry: no operation with few parameters fits the change"
        else:
            yield "explained", (f"{percent(document['fitted'])} of the change by fitted parameters; left over: "
                                f"{number(document['residual'])} of the parent's norm")  # fmt: skip
    if document["bits"] or document["plain_bits"]:
        yield "description length", (f"{number(document['bits'])} bits per entry; without any explanation "
                                     f"{number(document['plain_bits'])}")  # fmt: skip


def _doubts(document: Document) -> Iterator[str]:
    if document["kind"] is None:
        yield "Whether the two are related is not decided, so nothing here says what was done."
    elif document["kind"] == "unrelated":
        yield "The tensors listed agree in name and shape only; they do not share weights."
    else:
        yield "The explanation is the shortest that was found. Other operations can leave the same weights."
        yield "The order of steps shows only as far as one leaves traces that another would have removed."
        yield "That the child was made from the parent was given, not tested: the opposite direction may fit as well."
