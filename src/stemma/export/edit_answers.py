"""The answer to each question about an edit in one line, what it means, and what to do next.

All of it is said from documents, as in `answers`.
"""

from collections.abc import Mapping
from typing import Any

from stemma.export.answers import AnswerLine, Document, command_of, typed_as


def fidelity_answer(document: Document) -> AnswerLine:
    """How few units the layers need, in one line."""
    shares = sorted(x["sizes"][0] / x["units"] for x in document["layers"])
    level, share = document["levels"][0], shares[len(shares) // 2]
    rest = f" reach fidelity {level:g} with {share:.0%} of their units or less ({document['model']['name']})"
    return AnswerLine("", f"half of the {len(shares)} layers", rest)


def fidelity_closing(document: Document) -> tuple[str, str]:
    """What the sizes of sets mean, and what to do next."""
    asked = document["asked"]
    return ("layers that need few of their units can be pruned further; each figure is of one layer alone",
            f"{command_of('prune', asked)} {typed_as(asked['model'])} --budget macs=0.5 --probes "
            f"{typed_as(asked['probes'])}{_network(asked)} --dry-run plans a smaller network")  # fmt: skip


def _network(asked: Mapping[str, Any]) -> str:
    """What is typed so that bare weights can be run, as they were."""
    factory = (asked.get("networks") or {}).get("network")
    return f" --network {typed_as(factory)} --allow-code" if factory else ""


def prune_answer(document: Document) -> AnswerLine:
    """How many units are removed, in one line."""
    groups = document["plan"]["expected"]["groups"].values()
    units, kept = sum(x["of"] for x in groups), sum(x["kept"] for x in groups)
    before, after = document["plan"]["expected"]["macs"]
    verb = "removed" if document["receipt"] is not None else "to be removed"
    rest = f" from {document['model']['name']}: {after / before:.0%} of the MACs are left"
    return AnswerLine("", f"{units - kept:,} of {units:,} units {verb}", rest)


def prune_closing(document: Document) -> tuple[str, str]:
    """What was pruned means, and what to do next."""
    if document["receipt"] is None:
        return "nothing was written", "the same command without --dry-run writes it"
    asked = document["asked"]
    probes = f" --probes {typed_as(asked['probes'])}" if asked.get("probes") else ""
    check = f"{command_of('verify edit', asked)} {typed_as(document['folder'])}{probes}{_network(asked)}"
    return "the smaller model and the record of the edit are in the folder", f"{check} checks the edit"


def unlearn_answer(document: Document) -> AnswerLine:
    """How much of a class is still recognised, in one line."""
    before, after = document["receipt"]["measured"]["forget"]
    known = document["plan"]["expected"]
    verb = "recognised" if known.get("classes", True) else "answered as before"
    rest = f": {verb} in {before:.1%} of the forget samples before, in {after:.1%} now"
    return AnswerLine("", f"{forgotten(known)} {'erased' if 'silenced' in known else 'unlearned'}", rest)


def forgotten(expected: Mapping[str, Any]) -> str:
    """What was forgotten, in words."""
    classes = expected.get("classes", [expected["class"]])
    if not classes:
        return "a set of samples"
    return f"class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"


def lost(kept: float | None, before: float | None, same: float) -> float:
    """What the others lose: accuracy where there are labels, else unchanged answers."""
    return 1 - same if kept is None or before is None else before - kept


def relearnt(steps: int | None, most: int) -> str:
    """How long relearning takes, in words."""
    if steps is None:
        return "relearning not measured"
    return f"relearnt in {steps} steps" if steps <= most else f"not relearnt in {most} steps"


def unlearn_closing(document: Document) -> tuple[str, str]:
    """What was unlearned means, and what to do next."""
    asked = document["asked"]
    pair = f"--original {typed_as(asked['model'])} --unlearned {typed_as(document['folder'])}"
    meaning = "the model no longer predicts this class; its hidden layers may still encode it"
    if document.get("curve"):
        meaning = "each strength is measured; choose one with --strength: what is not refuted is not thereby proven"
    return (meaning,
            f"{command_of('verify unlearning', asked)} {pair} --forget {typed_as(asked['forget'])} --retrained R..."
            f"{_network(asked)} tests whether the class is removed")  # fmt: skip


def verify_edit_answer(document: Document) -> AnswerLine:
    """Whether an edit is as recorded, in one line."""
    return AnswerLine("", _EDITS[document["good"]][0], "")


def verify_edit_closing(document: Document) -> tuple[str, str]:
    """What the checks of an edit mean, and what to do next."""
    return _EDITS[document["good"]][1:]


def verify_unlearning_answer(document: Document) -> AnswerLine:
    """Whether a model has unlearned, in one line."""
    return AnswerLine("", _UNLEARNED[document["verdict"]][0], "")


def verify_unlearning_closing(document: Document) -> tuple[str, str]:
    """What the test of unlearning means, and what to do next."""
    meaning, following = _UNLEARNED[document["verdict"]][1:]
    if document["statistic"] == "samples-of-inputs" and document["verdict"] == "refuted":
        meaning = "what the model learned from the forget set is still in it, if the assumption that is named holds"
    return meaning, following


_EDITS = {
    True: ("the edit is as recorded", "plan, receipt and weights agree, and repeating the edit gives these weights",
           "stemma add with this folder records the model in the registry"),
    False: ("the edit is NOT as recorded", "the weights, the plan or the receipt were changed afterwards",
            "do not rely on this record; prune or unlearn the original model again"),
    None: ("the edit could not be checked completely", "nothing contradicts the record, but not all of it was checked",
           "add the options that are named above: --parent, --probes, --retain or --network"),
}  # fmt: skip
"""Answer, meaning and next step by outcome."""

_UNLEARNED = {
    "refuted": ("not unlearned", "the model is distinguishable from retrained models",
                "unlearn more strongly, or retrain without the forget set"),
    "supported": ("unlearned, as far as this test can see", "the model is not distinguishable from retrained models",
                  "stemma verify unlearning with --retained-probes looks inside the network as well"),
    "inconclusive": ("inconclusive", "neither unlearning nor its absence could be shown",
                     "more retrained models (--retrained, or --retrain-recipe to train them) give the test more power"),
}  # fmt: skip
"""Answer, meaning and next step by verdict."""
