"""The answer to each question in one line, what it means, and what to do next, for terminals and pages alike.

All of it is said from documents: what `--json` prints, and what a result's `to_dict` gives.
"""

import glob
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.types import WEIGHTS_GONE, KnownFrom
from stemma.types.text import plain

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """An answer in one line, of which the verdict is stressed; unprintable characters are shown as escapes.

    Attributes:
        before: What stands before the verdict.
        verdict: The word or words that decide.
        after: What follows.
    """

    before: str
    verdict: str
    after: str

    def __post_init__(self) -> None:
        for name in ("before", "verdict", "after"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.before}{self.verdict}{self.after}"


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


def command_of(name: str, asked: Mapping[str, Any]) -> str:
    """A command of Stemma as it is typed, with the registry that was asked where it is not the default one."""
    from stemma.registry.database import without_password

    registry = None if asked.get("paths") or asked.get("against") else asked.get("registry")
    registry = None if registry == without_password(os.environ.get("STEMMA_REGISTRY", "")) else registry
    return f"stemma {name} --registry {typed_as(registry)}" if registry else f"stemma {name}"


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


def told(row: Mapping[str, Any]) -> str:
    """Who tells of a model: `known from registry …`; empty where it was read here."""
    found = row.get("known_from")
    if not found:
        return ""
    return (found if isinstance(found, KnownFrom) else KnownFrom(**found)).sentence


def _as_told(row: Mapping[str, Any]) -> str:
    return f", {told(row)}" if told(row) else ""


def trace_answer(document: Document) -> AnswerLine:
    """Where the model comes from, in one line."""
    model, closest, verdict = document["model"]["name"], closest_finding(document), document["verdict"]
    if verdict == "copy" and closest is not None:
        if closest["relation"] == "copy":
            return AnswerLine(f"{model} is a ", "copy", f" of {closest['name']}{_as_told(closest)}")
        same = f"{closest['name']} under other names{_as_told(closest)}"
        return AnswerLine(f"{model} has the same weights as ", "", same)
    if verdict == "descends" and closest is not None:
        names = [str(parent["name"]) for parent in document["parents"] if parent["direction"] == "parent"]
        merged = closest["relation"] == "merged" and len(names) > 1
        of = f"{', '.join(names[:-1])} and {names[-1]}" if merged else closest["name"]
        return AnswerLine(f"{model} ", "descends", f" from {of}{in_brackets(closest['relation'])}")
    if verdict == "related" and closest is not None:
        kin = f" to {closest['name']}{in_brackets(closest['relation'])}{_as_told(closest)}"
        rest = f"{kin}; which of the two came first is not known"
        if by_function_only(document, closest):
            only = " only" if _independent(_weights_of(document, closest)) else ""
            rest = f" to {closest['name']} in function{only}{in_brackets(closest['relation'])}"
        elif closest.get("role") == "same":
            rest = f"{kin}: the same network in another form"
        return AnswerLine(f"{model} is ", "related", rest)
    if verdict == "no-known-parent":
        return AnswerLine(
            f"{model} has ", "no known parent", f" among the {_searched(document['n_searched'])} searched"
        )
    if (near := _nearest_told(document)) is not None:
        said = f": by its sketch alone {model} is like {near}, whose weights are not here"
        return AnswerLine("", "inconclusive", said)
    return AnswerLine("", "inconclusive", f": no relative of {model} was found, and not everything could be tested")


def trace_closing(document: Document) -> tuple[str, str]:
    """What a trace means, and what to do next."""
    verdict, closest, asked = document["verdict"], closest_finding(document), document["asked"]
    model = typed_as(asked["model"])
    parent = "PARENT" if closest is None else path_of(closest["name"], asked["against"])
    if closest is not None and told(closest):
        name = typed_as(closest["name"])
        return ("this rests on the word of another registry: nothing of that model was read here",
                f"{command_of('show', asked)} {name} shows what the registry tells of it")  # fmt: skip
    if verdict == "copy":
        return ("the weights are those of a known model, whose licence applies to them",
                "stemma trace with --deny-license L checks the licences, for example in CI")  # fmt: skip
    if verdict == "descends" and closest is not None:
        return ("its weights were made from those of its parent, whose licence may apply",
                f"{command_of('explain', asked)} {parent} {model} shows what was changed in each layer")  # fmt: skip
    if verdict == "related" and closest is not None:
        if closest.get("role") == "same":
            return ("both are forms of the same network; either may be the older one",
                    f"{command_of('explain', asked)} {parent} {model} shows how the two differ")  # fmt: skip
        if by_function_only(document, closest):
            weights = _weights_said(_weights_of(document, closest))
            return (f"the two behave more alike than control models do, {weights}",
                    "more control models (--null) make the smallest attainable p-value smaller")  # fmt: skip
        more = "trace again with further models of this family in --against"
        if asked["against"] is None:
            more = f"add further models of this family ({command_of('add', asked)} PATH) and trace again"
        return "they share weights: either may be the parent, or both come from a third model", more
    if verdict == "no-known-parent":
        further = (f"{command_of('add', asked)} PATH enrols further models to search" if asked["against"] is None else
                   "--against with further models searches them as well")  # fmt: skip
        return "every model searched was tested and excluded; a parent that was not searched cannot be found", further
    if document["n_searched"] == 0:
        return (
            "nothing was searched, so this says nothing about the model",
            f"{command_of('add', asked)} PATH enrols models to search",
        )
    if (near := _nearest_told(document)) is not None:
        return ("a sketch of a large model decides nothing; this is not a clearance",
                f"{command_of('show', asked)} {typed_as(near)} tells its source, to compare with")  # fmt: skip
    more = "--probes compares what the models compute as well"
    if asked.get("probes"):
        more = "more control models (--null) make the smallest attainable p-value smaller"
    return ("a relative may be among the models that could not be tested; this is not a clearance",
            f"see 'not tested' above; {more}")  # fmt: skip


ALIKE = 0.2
"""Cosine of sketched units from which an open comparison with a model that is only told of is worth a word."""


def _nearest_told(document: Document) -> str | None:
    """The model that another registry tells of whose sketch is most alike, where nothing could be decided."""
    near = max((c for c in document["candidates"] if c.get("known_from") and c["verdict"] == "inconclusive"),
               key=lambda c: c["weights"]["effect"], default=None)  # fmt: skip
    return None if near is None or near["weights"]["effect"] < ALIKE else str(near["name"])


def closest_finding(document: Document) -> Mapping[str, Any] | None:
    """The finding that the answer names: a copy, else a parent, else another relative."""
    copies = sorted(document["copies"], key=lambda copy: copy["relation"] != "copy")
    return next(iter((*copies, *document["parents"], *document["relatives"])), None)


def by_function_only(document: Document, finding: Mapping[str, Any]) -> bool:
    """Whether a finding rests on what the models compute, and its weights show no relation."""
    compared = (c for c in document["candidates"] if (c["name"], c["digest"]) == (finding["name"], finding["digest"]))
    return any((c["function"] or {}).get("verdict") == "related" != c["weights"]["verdict"] for c in compared)


def _weights_of(document: Document, finding: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The weights axis of the candidate that a finding is about."""
    compared = (c for c in document["candidates"] if (c["name"], c["digest"]) == (finding["name"], finding["digest"]))
    return next((c["weights"] for c in compared), None)


def in_brackets(relation: object) -> str:
    """A relation, unless it says no more than the verdict."""
    return f" ({relation})" if relation and relation not in UNNAMED else ""


def compare_answer(document: Document) -> AnswerLine:
    """What the two models are to each other, in one line."""
    a, b = str(document["a"]["name"]), str(document["b"]["name"])
    if a == b:
        a, b = f"{a} (first)", f"{b} (second)"
    kind = document["relation"]
    if document["verdict"] == "related":
        if document["weights"]["verdict"] != "related":
            only = " only" if _independent(document["weights"]) else ""
            return AnswerLine(f"{a} and {b} are ", "related", f" in function{only}{in_brackets(kind)}")
        first = {"a->b": f"; {b} was made from {a}", "b->a": f"; {a} was made from {b}"}.get(document["direction"], "")
        return AnswerLine(f"{a} and {b} are ", "related", f"{in_brackets(kind)}{first}")
    if document["verdict"] == "independent":
        what = "no shared weights found" if document["function"] is None else "no relation found"
        where = "" if document["function"] is None else ", neither in weights nor in function"
        return AnswerLine("", what, f" between {a} and {b}{where}")
    return AnswerLine("", "inconclusive", f": whether {a} and {b} are related could not be decided")


def _weights_said(weights: Mapping[str, Any] | None) -> str:
    """What the weights add to a relation in function."""
    return "but share no weights" if _independent(weights) else "and whether they share weights is not known"


def _independent(weights: Mapping[str, Any] | None) -> bool:
    return weights is not None and weights["verdict"] == "independent"


def compare_closing(document: Document) -> tuple[str, str]:
    """What a comparison means, and what to do next."""
    verdict, function, asked = document["verdict"], document["function"], document["asked"]
    pair = (typed_as(asked["a"]), typed_as(asked["b"]))
    if verdict == "related":
        if document["weights"]["verdict"] != "related":
            return (f"the two compute more alike than independent models do, {_weights_said(document['weights'])}",
                    "more control models (--null) make the smallest attainable p-value smaller")  # fmt: skip
        parent, child = pair if document["direction"] != "b->a" else (pair[1], pair[0])
        either = "the two share weights: one was made from the other, or both from a third model"
        if any(t["what"] == WEIGHTS_GONE for t in document["not_tested"]):
            return either, "see 'not tested' above: what was changed shows only where the weights of both can be read"
        return (_SHARED.get(document["relation"], either)
                if document["direction"] == "unknown" else "the weights of one were made from those of the other",
                f"{command_of('explain', asked)} {parent} {child} shows what was changed, layer by layer")  # fmt: skip
    if verdict == "independent":
        return ("as far as the weights show, the two were trained from different starting weights"
                if function is None else "neither weights nor outputs show that one comes from the other",
                "stemma compare with --probes P looks for distillation as well" if function is None else
                "stemma distance measures how far apart their outputs are")  # fmt: skip
    if function is not None and function["verdict"] == "inconclusive":
        return ("neither a relation nor independence could be shown; this is not a clearance",
                "give more control models: --null PATH..., or --null-recipe NAME to train them")  # fmt: skip
    return ("neither a relation nor independence could be shown; this is not a clearance",
            "see 'not tested' above" if document["not_tested"] or function is not None else
            "stemma compare with --probes P compares what the models compute as well")  # fmt: skip


def explain_answer(document: Document) -> AnswerLine:
    """What was done to the parent, in one line."""
    parent, child, kind = document["parent"]["name"], document["child"]["name"], document["kind"]
    if kind is None:
        return AnswerLine("", "undetermined", f": whether {child} comes from {parent} could not be decided")
    if kind == "unrelated":
        rest = f" between {parent} and {child}, so nothing is explained"
        return AnswerLine("", "no shared weights found", rest)
    steps = ", then ".join(step["name"] for step in document["steps"]) or kind
    return AnswerLine(f"from {parent} to {child}: ", kind, "" if steps == kind else f" ({steps})")


def explain_closing(document: Document) -> tuple[str, str]:
    """What an explanation means, and what to do next."""
    pair = f"{typed_as(document['asked']['parent'])} {typed_as(document['asked']['child'])}"
    compare = command_of("compare", document["asked"])
    if document["kind"] is None:
        return "layers that are not identical could not be explained", "see 'not tested' above"
    if document["kind"] == "unrelated":
        return "as far as the weights show, the two do not share weights", f"{compare} {pair} gives the evidence"
    return ("this is the simplest explanation of the difference that was found, not the only possible one",
            f"{compare} {pair} gives the evidence that the two are related")  # fmt: skip


def lineage_answer(document: Document) -> AnswerLine:
    """How many families there are, in one line."""
    related = sum(len(family) > 1 for family in document["families"])
    edges = _count(len(document["edges"]), "edge")
    found = _count(related, "family", "families")
    return AnswerLine(f"{_count(len(document['models']), 'model')}: ", found, f", {edges}")


def lineage_closing(document: Document) -> tuple[str, str]:
    """What the family trees mean, and what to do next."""
    if document["edges"]:
        edge = document["edges"][0]
        ends = [path_of(edge[end], document["asked"]["paths"]) for end in ("parent", "child")]
        shown = "A B" if "(missing" in edge["parent"] + edge["child"] else " ".join(ends)
        return ("each child is listed below its parent, with the relation between them",
                f"{command_of('explain', document['asked'])} {shown} shows what was changed along an edge")  # fmt: skip
    if any(len(family) > 1 for family in document["families"]):
        return ("some models share weights, but none is established as the parent of another",
                "stemma compare A B shows the evidence for a pair")  # fmt: skip
    return ("no model here is established as a relative of another",
            "stemma lineage with further models can show common ancestors")  # fmt: skip


def distance_answer(document: Document) -> AnswerLine:
    """How far apart two models are, in one line."""
    names = " and ".join(str(document[side]["name"]) for side in ("a", "b"))
    return AnswerLine(f"distance between {names}: ", between(document["value"], document["interval"]), "")


def distance_closing(document: Document) -> tuple[str, str]:
    """What a distance means, and what to do next."""
    asked = document["asked"]
    pair = f"{typed_as(asked['a'])} {typed_as(asked['b'])}"
    following = f"stemma compare {pair} --probes {typed_as(asked['probes'])} tests whether this is unusually close"
    return distance_scale(document["measure"]), following


def distance_scale(measure: str) -> str:
    """What the values of a measure mean, in one sentence."""
    from stemma.measures import ALL
    from stemma.measures.base import Law

    if measure == "field-cosine":
        return "0 is the same, 1 uncorrelated gradient attributions, 2 opposite ones"
    known = next((kind for kind in ALL if kind.name == measure), None)
    if known is not None and Law.BOUNDED in known.laws:
        return f"0 is the same, {known.top:g} the largest distance there is"
    return "0 is the same"


def competition_answer(document: Document) -> AnswerLine:
    """Which modality the model relies on most, in one line."""
    shares = {name: found["share"]["value"] for name, found in document["modalities"].items()}
    top = max(shares, key=lambda name: shares[name])
    return AnswerLine(f"{document['model']['name']} relies most on ", top,
                      f": {shares[top]:.0%} of the variance of its output")  # fmt: skip


def competition_closing(document: Document) -> tuple[str, str]:
    """What the shares mean, and what to do next."""
    return ("a modality with a small share hardly changes the output",
            "--concept and --fit-probes measure the competition strength" if document["missing"] else
            "stemma.AGM in the training loop balances the modalities")  # fmt: skip


NEGLIGIBLE = 1e-12
"""Below this, a distance is zero but for rounding."""


def between(value: float, interval: Sequence[float] | None) -> str:
    """A figure with its interval: `.31 [.28, .34]`.

    Args:
        value: The figure.
        interval: Its ends, if known.

    Returns:
        As many digits as tell the ends of the interval apart, at least two; what is zero but for rounding is `0`.
    """
    if interval is None or max(map(abs, (value, *interval))) < NEGLIGIBLE:
        return short(value if abs(value) >= NEGLIGIBLE else 0)
    width = interval[1] - interval[0]
    digits = 2 if width <= 0 else min(max(1 - math.floor(math.log10(width)), 2), 6)
    shown = [f"{x:.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.{digits}f}" for x in (value, *interval)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def short(value: float) -> str:
    """Two significant digits without a leading zero: `.97`, `.04`, `1`.

    Args:
        value: The number.

    Returns:
        The number as people write it.
    """
    text = f"{value:.2g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _searched(n: int) -> str:
    return "one model" if n == 1 else f"{n:,} models"


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
