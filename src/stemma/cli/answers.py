"""The answer to each question in one line, what it means, and what to do next."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from stemma.cli.layout import plain, verdict_text

if TYPE_CHECKING:
    from stemma.application.compare import CompareAnswer
    from stemma.application.explain import ExplainAnswer
    from stemma.application.trace import TraceAnswer
    from stemma.types import Comparison, Trace

UNNAMED = frozenset({"related", "unrelated"})
"""Relations that say no more than the verdict."""

_SHARED = {
    "copy": "the two have the same weights",
    "reformatted": "both are forms of the same network; either may be the older one",
    "permuted": "both are forms of the same network; either may be the older one",
    "same-init": "both were trained from the same starting weights",
    "same-run": "both are checkpoints of one training run",
    "siblings": "both were made from a common ancestor",
}
"""What shared weights mean where the direction is unknown, by relation."""


def typed_as(name: object) -> str:
    """A name as it is typed on a command line."""
    import shlex

    return shlex.quote(plain(name))


def path_of(name: object, searched: Sequence[str] | None) -> str:
    """What is typed for a model: the file it was found at where files were searched, else its name."""
    from stemma.checkpoints.folders import default_name

    for given in map(Path, searched or ()):
        inside = [given / str(name), *given.glob(f"{glob.escape(str(name))}.*")] if given.is_dir() else []
        if default_name(given) == name and given.exists():
            return typed_as(given)
        found = next((path for path in inside if path.exists()), None)
        if found is not None:
            return typed_as(found)
    return typed_as(name)


def trace_answer(result: "Trace") -> Text:
    """Where the model comes from, in one line."""
    model, closest = plain(result.model.name), closest_finding(result)
    if result.verdict == "copy" and closest is not None:
        same = "is a " if closest["relation"] == "copy" else "has the same weights as "
        word = "copy" if closest["relation"] == "copy" else ""
        rest = f" of {closest['name']}" if word else f"{closest['name']} under other names"
        return Text(f"{model} {same}").append_text(verdict_text(word or "", rest))
    if result.verdict == "descends" and closest is not None:
        names = [parent["name"] for parent in result.parents if parent["direction"] == "parent"]
        merged = closest["relation"] == "merged" and len(names) > 1
        of = f"{', '.join(map(str, names[:-1]))} and {names[-1]}" if merged else closest["name"]
        return Text(f"{model} ").append_text(verdict_text("descends", f" from {of}{in_brackets(closest['relation'])}"))
    if result.verdict == "related" and closest is not None:
        rest = f" to {closest['name']}{in_brackets(closest['relation'])}; which of the two came first is not known"
        if by_function_only(result, closest):
            rest = f" to {closest['name']} in function only{in_brackets(closest['relation'])}"
        same = closest.get("role") == "same"
        rest = (
            f" to {closest['name']}{in_brackets(closest['relation'])}: the same network in another form"
            if same
            else rest
        )
        return Text(f"{model} is ").append_text(verdict_text("related", rest))
    searched = _searched(result.n_searched)
    if result.verdict == "no-known-parent":
        return Text(f"{model} has ").append_text(verdict_text("no known parent", f" among the {searched} searched"))
    rest = f": no relative of {model} was found, and not everything could be tested"
    return verdict_text("inconclusive", rest)


def trace_closing(answer: "TraceAnswer") -> tuple[str, str]:
    """What a trace means, and what to do next."""
    result, closest = answer.result, closest_finding(answer.result)
    model = typed_as(answer.request.model)
    parent = "PARENT" if closest is None else path_of(closest["name"], answer.request.against)
    if result.verdict == "copy":
        return ("the weights are those of a known model, whose licence applies to them",
                "stemma trace with --deny-license L checks the licences, for example in CI")  # fmt: skip
    if result.verdict == "descends" and closest is not None:
        return ("its weights were made from those of its parent, whose licence may apply",
                f"stemma explain {parent} {model} shows what was changed in each layer")  # fmt: skip
    if result.verdict == "related" and closest is not None:
        if closest.get("role") == "same":
            return ("both are forms of the same network; either may be the older one",
                    f"stemma explain {parent} {model} shows how the two differ")  # fmt: skip
        if by_function_only(result, closest):
            return ("the two behave more alike than control models do, but share no weights",
                    "more control models (--null) make the smallest attainable p-value smaller")  # fmt: skip
        return ("they share weights: either may be the parent, or both come from a third model",
                "add further models of this family (stemma add PATH) and trace again")  # fmt: skip
    if result.verdict == "no-known-parent":
        return ("every model searched was tested and excluded; a parent that is not enrolled cannot be found",
                "stemma add enrols further models to search")  # fmt: skip
    if result.n_searched == 0:
        return "nothing was searched, so this says nothing about the model", "stemma add PATH enrols models to search"
    return ("a relative may be among the models that could not be tested; this is not a clearance",
            "see 'not tested' above; --probes compares what the models compute as well")  # fmt: skip


def closest_finding(result: "Trace") -> Mapping[str, Any] | None:
    """The finding that the answer names: a copy, else a parent, else another relative."""
    copies = sorted(result.copies, key=lambda copy: copy["relation"] != "copy")
    return next(iter((*copies, *result.parents, *result.relatives)), None)


def by_function_only(result: "Trace", finding: Mapping[str, Any]) -> bool:
    """Whether a finding rests on what the models compute, and its weights show no relation."""
    compared = (c for c in result.candidates if (c["name"], c["digest"]) == (finding["name"], finding["digest"]))
    return any((c["function"] or {}).get("verdict") == "related" != c["weights"]["verdict"] for c in compared)


def in_brackets(relation: object) -> str:
    """A relation, unless it says no more than the verdict."""
    return f" ({relation})" if relation and relation not in UNNAMED else ""


def compare_answer(result: "Comparison") -> Text:
    """What the two models are to each other, in one line."""
    a, b = plain(result.a.name), plain(result.b.name)
    if a == b:
        a, b = f"{a} (first)", f"{b} (second)"
    kind = result.relation.kind.value
    if result.verdict == "related":
        if result.weights.verdict != "supported":
            return Text(f"{a} and {b} are ").append_text(
                verdict_text("related", f" in function only{in_brackets(kind)}")
            )
        first = {"a->b": f"; {b} was made from {a}", "b->a": f"; {a} was made from {b}"}.get(result.direction, "")
        return Text(f"{a} and {b} are ").append_text(verdict_text("related", f"{in_brackets(kind)}{first}"))
    if result.verdict == "independent":
        what = "no shared weights found" if result.function is None else "no relation found"
        where = "" if result.function is None else ", neither in weights nor in function"
        return verdict_text(what, f" between {a} and {b}{where}")
    return verdict_text("inconclusive", f": whether {a} and {b} are related could not be decided")


def compare_closing(answer: "CompareAnswer") -> tuple[str, str]:
    """What a comparison means, and what to do next."""
    result, request = answer.result, answer.request
    pair = (typed_as(request.a), typed_as(request.b))
    if result.verdict == "related":
        if answer.result.weights.verdict != "supported":
            return ("the two compute more alike than independent models do, but share no weights",
                    "more control models (--null) make the smallest attainable p-value smaller")  # fmt: skip
        parent, child = pair if result.direction != "b->a" else (pair[1], pair[0])
        kind = result.relation.kind.value
        return (_SHARED.get(kind, "the two share weights: one was made from the other, or both from a third model")
                if result.direction == "unknown" else "the weights of one were made from those of the other",
                f"stemma explain {parent} {child} shows what was changed, layer by layer")  # fmt: skip
    if result.verdict == "independent":
        return ("as far as the weights show, the two were trained from different starting weights"
                if result.function is None else "neither weights nor outputs show that one comes from the other",
                "stemma compare with --probes P looks for distillation as well" if result.function is None else
                "stemma distance measures how far apart their outputs are")  # fmt: skip
    if result.function is not None and result.function.verdict == "inconclusive":
        return ("neither a relation nor independence could be shown; this is not a clearance",
                "give more control models: --null PATH..., or --null-recipe NAME to train them")  # fmt: skip
    return ("neither a relation nor independence could be shown; this is not a clearance",
            "see 'not tested' above" if result.open_questions or result.function is not None else
            "stemma compare with --probes P compares what the models compute as well")  # fmt: skip


def explain_answer(answer: "ExplainAnswer") -> Text:
    """What was done to the parent, in one line."""
    found = answer.result.explanation
    parent, child = plain(found.parent.name), plain(found.child.name)
    if answer.result.undetermined:
        return verdict_text("undetermined", f": whether {child} comes from {parent} could not be decided")
    kind = found.kind.value
    if kind == "unrelated":
        return verdict_text("no shared weights found", f" between {parent} and {child}, so nothing is explained")
    steps = ", then ".join(step.name for step in found.steps) or kind
    rest = "" if steps == kind else f" ({steps})"
    return Text(f"from {parent} to {child}: ").append_text(verdict_text(kind, rest))


def explain_closing(answer: "ExplainAnswer") -> tuple[str, str]:
    """What an explanation means, and what to do next."""
    found = answer.result.explanation
    pair = f"{typed_as(answer.request.parent)} {typed_as(answer.request.child)}"
    if answer.result.undetermined:
        return "layers that are not identical could not be explained", "see 'not tested' above"
    if found.kind.value == "unrelated":
        return "as far as the weights show, the two do not share weights", f"stemma compare {pair} gives the evidence"
    return ("this is the simplest explanation of the difference that was found, not the only possible one",
            f"stemma compare {pair} gives the evidence that the two are related")  # fmt: skip


def _searched(n: int) -> str:
    return "one model" if n == 1 else f"{n:,} models"
