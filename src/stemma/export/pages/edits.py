"""What the pages of an edit show: a pruned model, and one that has unlearned a class."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from stemma.export.edit_answers import (
    forgotten,
    lost,
    prune_answer,
    prune_closing,
    relearnt,
    unlearn_answer,
    unlearn_closing,
)
from stemma.export.figures import count, number, percent
from stemma.export.pages.pictures.erasure_curve import erasure_curve

Document = Mapping[str, Any]

GROUPS = 200
"""Groups of units that the page lists."""


def prune_view(document: Document) -> dict[str, Any]:
    """Values of the template for a pruned model.

    Args:
        document: What `stemma prune --json` prints.

    Returns:
        The answer, plan against measurement, groups of units, receipt, certainty and doubts.
    """
    meaning, following = prune_closing(document)
    expected = document["plan"]["expected"]
    groups = sorted(expected["groups"].items(), key=lambda group: (group[1]["kept"] / group[1]["of"], group[0]))
    return {
        "title": f"{document['model']['name']}, pruned",
        "question": "What was removed, and what did it cost?" if document["receipt"] else "What would be removed?",
        "answer": prune_answer(document),
        "tone": "none",
        "meaning": meaning,
        "next": following,
        "effects": list(_prune_effects(document)),
        "groups": groups[:GROUPS],
        "more_groups": max(len(groups) - GROUPS, 0),
        "refused": list(expected["refused"].items())[:GROUPS],
        "errors": sorted(_measured(document).get("layers", {}).items(), key=lambda layer: -layer[1])[:12],
        "receipt": list(_receipt(document)),
        "findings": list(_prune_findings(document)),
        "sure": list(_prune_certainty(document)),
        "doubts": list(_prune_doubts(document)),
        "cannot_see": ["inputs unlike these", "what the model answers to single inputs"],
    }


def _measured(document: Document) -> Mapping[str, Any]:
    return {} if document["receipt"] is None else document["receipt"]["measured"]


def _row(name: str, before: str, planned: str, measured: str, left: str = "") -> dict[str, str]:
    return {"name": name, "before": before, "planned": planned, "measured": measured, "left": left}


def _prune_effects(document: Document) -> Iterator[dict[str, str]]:
    """Before, as planned, and as measured."""
    expected, measured = document["plan"]["expected"], _measured(document)
    groups = expected["groups"].values()
    units, kept = sum(g["of"] for g in groups), sum(g["kept"] for g in groups)
    yield _row("units", f"{units:,}", f"{kept:,}", f"{kept:,}" if measured else "–", percent(kept / units))
    for key, label in (("macs", "MACs"), ("parameters", "parameters")):
        before, after = expected[key]
        done = f"{measured[key][1]:,.0f}" if measured else "–"
        yield _row(label, f"{before:,.0f}", f"{after:,.0f}", done, percent(after / before))
    if "seconds" in measured:
        before, after = (f"{1000 * seconds:.3g} ms" for seconds in measured["seconds"])
        ratio = measured["seconds"][0] / measured["seconds"][1]
        yield _row("latency of 64 inputs", before, "–", after, f"{ratio:.2f} times as fast")
    if "accuracy" in measured:
        before, after = measured["accuracy"]
        yield _row("accuracy on these inputs", percent(before), "–", percent(after))
    if "same_top_answer" in measured:
        yield _row("same class as before", "100 %", "–", percent(measured["same_top_answer"]))
    if "error" in measured:
        yield _row("squared error of the output", "0", "–", number(measured["error"]))


def _prune_findings(document: Document) -> Iterator[str]:
    plan = document["plan"]
    by = plan["spec"]["params"].get("score", plan["spec"]["name"])
    yield f"Units were chosen by {by}, in {count(len(plan['expected']['groups']), 'group')}."
    if document["receipt"] is None:
        yield "This is a plan: nothing was written and nothing was measured."
    else:
        yield f"The smaller model is in {document['folder']}."


def _prune_certainty(document: Document) -> Iterator[tuple[str, str]]:
    receipt = document["receipt"]
    if receipt is None:
        yield "measured", "nothing: this is the plan alone"
        return
    probes = receipt["probes"]
    yield "measured on", f"{probes.get('count', '?')} probe inputs: {probes.get('source', '')}"
    yield "exact", "units, MACs and parameters are counted"
    yield "on these inputs only", "accuracy, agreement and errors are measured on the inputs that the refit has seen"


def _prune_doubts(document: Document) -> Iterator[str]:
    yield "Inputs unlike those that were given can fare worse: nothing was measured on them."
    if document["asked"]["probes"] is None:
        yield "No probe inputs were given, so noise was used; inputs like those of the real task give better results."
    yield "Latency depends on the machine, and was measured on this one only."
    yield "Rare classes and small groups can lose more than the average shows."


def unlearn_view(document: Document) -> dict[str, Any]:
    """Values of the template for a model that has unlearned a class.

    Args:
        document: What `stemma unlearn --json` prints.

    Returns:
        The answer, before and after, changed layers, receipt, certainty and doubts.
    """
    meaning, following = unlearn_closing(document)
    entries, known = document["plan"]["entries"], document["plan"]["expected"]
    return {
        "title": f"{document['model']['name']}, {forgotten(known)} unlearned",
        "question": "Is the class gone, and what else changed?",
        "answer": unlearn_answer(document),
        "tone": "none",
        "meaning": meaning,
        "next": following,
        "effects": list(_unlearn_effects(document)),
        "curve": list(_curve_rows(document)),
        "curve_picture": Markup(erasure_curve(document["curve"])) if document.get("curve") else "",
        "layers": [(layer, entries.get(f"{layer}.weight", entries.get(layer, ()))) for layer in known["layers"]],
        "receipt": list(_receipt(document)),
        "findings": list(_unlearn_findings(document)),
        "sure": list(_unlearn_certainty(document)),
        "doubts": list(_unlearn_doubts(document)),
        "cannot_see": ["whether the class is removed from the hidden layers or only hidden", "inputs unlike these"],
    }  # fmt: skip


def _unlearn_effects(document: Document) -> Iterator[dict[str, str]]:
    measured, known = document["receipt"]["measured"], document["plan"]["expected"]
    before, after = measured["forget"]
    yield _row(f"recognised as {forgotten(known)}, forget samples", percent(before), "–", percent(after))
    if "retain" in measured:
        before, after = measured["retain"]
        yield _row("accuracy on the other inputs", percent(before), "–", percent(after))
    if "same_top_answer" in measured:
        yield _row("same class as before, other inputs", "100 %", "–", percent(measured["same_top_answer"]))
    if "error" in measured:
        yield _row("squared error of the output, other inputs", "0", "–", number(measured["error"]))


def _curve_rows(document: Document) -> Iterator[dict[str, str]]:
    """Every strength of an erasure that was measured."""
    curve: Any = document.get("curve") or {"points": ()}
    for point in curve["points"]:
        yield {
            "strength": str(point["strength"]), "layers": str(point["layers"]), "directions": str(point["directions"]),
            "forget": percent(point["forget"]), "lost": percent(lost(point["kept"], curve["before"], point["same"])),
            "worst": "–" if point["worst"] is None else percent(point["worst"]),
            "relearning": relearnt(point["relearning"], curve["steps"]), "verdict": point["verdict"],
            "reason": point["reason"],
        }  # fmt: skip


def _unlearn_findings(document: Document) -> Iterator[str]:
    plan, known = document["plan"], document["plan"]["expected"]
    changed = sum(len(entries) for entries in plan["entries"].values())
    what = f"{changed:,} weights" if changed else "whole layers"
    how = "erasure" if plan["action"] == "erase" else plan["action"]
    yield f"Changed: {what}, by {how} with strength {number(known['strength'])}."
    kept = document["asked"].get("undo")
    yield f"The model is in {document['folder']}." + (f" The original weights are in {kept}." if kept else "")


def _unlearn_certainty(document: Document) -> Iterator[tuple[str, str]]:
    probes = document["receipt"]["probes"]
    yield "measured on", f"{probes.get('count', '?')} forget samples: {probes.get('source', '')}"
    if "same_top_answer" not in document["receipt"]["measured"]:
        yield "other classes", "not measured: no other inputs were given"
    if document["plan"]["expected"].get("held to") == "batch norm":
        yield "what keeps the others", "the statistics of batch norm; no other inputs were used"


def _unlearn_doubts(_: Document) -> Iterator[str]:
    yield (
        "The model no longer answers with the class; its hidden layers may still tell it apart, so that a few steps of "
        "training bring it back."
    )
    yield "Samples of the class that differ from those given may still be recognised."
    yield "That a class is not answered does not prove that its training data have no influence any more."


def _receipt(document: Document) -> Iterator[tuple[str, str]]:
    """What the record of the edit says."""
    receipt, plan = document["receipt"], document["plan"]
    yield "method", f"{plan['spec']['name']}, version {plan['spec']['version']}"
    yield "model before", plan["parent"]
    if receipt is None:
        return
    yield "model after", receipt["child"]
    yield "plan", receipt["plan"]
    yield "inputs", str(receipt["probes"].get("digest", plan["probes"]))
    yield "read from", receipt["parent_source"]
    yield "software", ", ".join(f"{name} {version}" for name, version in receipt["versions"].items())
