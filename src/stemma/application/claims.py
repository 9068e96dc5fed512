"""Sets what a model's files say of it against what a trace found: agrees, contradicted or not checked.

A claim is never evidence, and silence is no claim. A claim is contradicted only by what was tested and found: a parent
that was not searched, or a relation whose direction is unknown, leaves it `not checked`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.application.claimed_licences import licence_line
from stemma.checkpoints import cards
from stemma.types import ClaimLine, RelationKind, plain
from stemma.types.claims import SURE

SHOWN = 3
"""Names that a sentence lists before it counts the rest."""

UNCHANGED = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations of one network in two forms: nothing was trained, merged or quantised in between."""

MADE_BY = {
    "finetune": frozenset({RelationKind.FINETUNED, RelationKind.LORA, RelationKind.HEAD_REPLACED,
                           RelationKind.PART_INHERITED, RelationKind.UNLEARNED, RelationKind.PRUNED}),
    "adapter": frozenset({RelationKind.LORA}),
    "merge": frozenset({RelationKind.MERGED}),
    "quantized": frozenset({RelationKind.QUANTIZED}),
}  # fmt: skip
"""By word of a card (`base_model_relation`): the relations that it can mean."""

DENIALS = frozenset({"", "0", "false", "no"})
"""Values with which a file says that its model was not trained from scratch."""

Finding = Mapping[str, Any]


def check_claims(
    claims: Mapping[str, str], trace: Mapping[str, Any], stated_licence: str | None = None
) -> tuple[ClaimLine, ...]:
    """Set claims against a trace.

    Args:
        claims: What the model's files say: `Model.claims`, or `claims` of a record.
        trace: The document of `stemma trace`, or its fields of the same names.
        stated_licence: Licence that a person stated when the model was enrolled; it goes before that of the files.

    Returns:
        One line for each claim, and for what a found parent makes the silence of the files worth saying. Empty where
        the files claim nothing and no parent was found.
    """
    lines = (
        *_origin(claims, trace),
        *_bases(claims, trace),
        *_relation(claims, trace),
        *_licence(claims, trace, stated_licence),
    )
    return tuple(lines)


def established_parents(trace: Mapping[str, Any]) -> tuple[Finding, ...]:
    """The parents of a trace whose weights the model was shown to be made from: direction known, not by outputs only.

    Args:
        trace: The document of `stemma trace`.

    Returns:
        Their rows, in the order of the trace.
    """
    return tuple(p for p in trace["parents"] if p["direction"] == "parent" and _is_by_weights(p, trace))


def _is_by_weights(finding: Finding, trace: Mapping[str, Any]) -> bool:
    """Whether the weights show the relation, and not only what the two compute."""
    found = [c for c in trace["candidates"] if (c["name"], c["digest"]) == (finding["name"], finding["digest"])]
    tested = not found or any(c["weights"]["verdict"] != "independent" for c in found)
    return tested and finding["relation"] != RelationKind.DISTILLED


def _is_sure(finding: Finding, trace: Mapping[str, Any]) -> bool:
    return _is_by_weights(finding, trace) and (finding["confidence"] is None or finding["confidence"] >= SURE)


def evidence_words(finding: Finding) -> str:
    """Relation and p-value of a parent or relative, in brackets: `(finetuned, p < 1e-300)`; empty where it has none."""
    relation = finding.get("relation")
    words = [] if relation in (None, RelationKind.RELATED) else [str(relation)]
    chance = p_words(finding.get("p_value"), finding.get("log10_p"))
    return f" ({', '.join(w for w in (*words, chance) if w)})" if words or chance else ""


def p_words(p: float | None, log10_p: float | None) -> str:
    """A p-value as a person reads it; empty where nothing was tested."""
    if p is None:
        return ""
    return "p < 1e-300" if log10_p is not None and log10_p < -300 else f"p = {p:.2g}"


def listed(names: Sequence[str]) -> str:
    """Names from files in a sentence: harmless to a terminal, cut where long, the first few of many."""
    shown = [_short(name) for name in names[:SHOWN]]
    rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(shown) if rest or len(shown) < 2 else f"{', '.join(shown[:-1])} and {shown[-1]}") + rest


def _short(text: str) -> str:
    from stemma.types.text import short_name

    return short_name(" ".join(str(text).split()))


def _origin(claims: Mapping[str, str], trace: Mapping[str, Any]) -> Iterator[ClaimLine]:
    stated = claims.get(cards.FROM_SCRATCH, "")
    if stated.strip().casefold() in DENIALS:
        return
    said = "Its files say that the model was trained from scratch"
    if parents := established_parents(trace):
        names = tuple(str(p["name"]) for p in parents)
        found = f"{said}; its weights were made from those of {listed(names)}{evidence_words(parents[0])}"
        yield ClaimLine("origin", stated, "contradicted", f"{found}: claim contradicted.", names)
        return
    related = (*trace["copies"], *trace["parents"], *trace["relatives"])
    names = tuple(str(r["name"]) for r in related)
    if trace["copies"]:
        why = (
            f"the same weights are known as {listed(names[: len(trace['copies'])])}, and which came first is not shown"
        )
    elif related:
        why = f"it is related to {listed(names)}, and no parent is established"
    elif trace["verdict"] == "no-known-parent":
        searched = f"{trace['n_searched']:,} model{'' if trace['n_searched'] == 1 else 's'} searched"
        why = f"no parent is among the {searched}, and one that was not searched cannot be found"
    else:
        why = "not everything could be tested"
    yield ClaimLine("origin", stated, "not checked", f"{said}; {why}: not checked.", names)


def _bases(claims: Mapping[str, str], trace: Mapping[str, Any]) -> Iterator[ClaimLine]:
    named = claimed_bases(claims, trace["model"]["digest"])
    yield from (_base(name, trace) for name in named)
    parents = [p for p in established_parents(trace) if not any(means(n, p) for n in named)]
    if parents and not any(means(n, c) for n in named for c in trace["copies"]):
        names = tuple(str(p["name"]) for p in parents)
        silent = "Its files name no base model" if not named else "Its files do not name every base model"
        found = f"{silent}; its weights were made from those of {listed(names)}{evidence_words(parents[0])}."
        yield ClaimLine("base model", "", "not checked", found, names)


def claimed_bases(claims: Mapping[str, str], digest: str) -> tuple[str, ...]:
    """The base models that files name; a receipt counts for the weights that it is about.

    Args:
        claims: What the files say.
        digest: Of the model's weights.

    Returns:
        Names and digests, each once.
    """
    about_others = claims.get("edited_to", digest) != digest
    keys = [k for k in cards.BASE_CLAIMS if not (k == "edited_from" and about_others)]
    names = (name.strip() for k in keys for name in claims.get(k, "").split(","))
    return tuple(dict.fromkeys(n for n in names if n and n != digest))


def means(claimed: str, finding: Finding) -> bool:
    """Whether a name of a card can mean a model of a trace: its digest, its name, or one name ends in the other."""
    if _is_exactly(claimed, finding):
        return True
    one, other = f"/{claimed.strip('/').casefold()}", f"/{str(finding['name']).casefold()}"
    return not claimed.startswith("sha256:") and (one.endswith(other) or other.endswith(one))


def _is_exactly(claimed: str, finding: Finding) -> bool:
    if claimed.startswith("sha256:"):
        return claimed == finding["digest"]
    return claimed.strip("/").casefold() == str(finding["name"]).casefold()


def _base(claimed: str, trace: Mapping[str, Any]) -> ClaimLine:
    said = f"Its files name {_short(claimed)} as base model"

    def line(verdict: Any, why: str, *found: Finding) -> ClaimLine:
        models = tuple(str(f["name"]) for f in found)
        ending = (
            ": claim contradicted." if verdict == "contradicted" else "." if verdict == "agrees" else ": not checked."
        )
        return ClaimLine("base model", claimed, verdict, f"{said}; {why}{ending}", models)

    if parent := _first(claimed, established_parents(trace)):
        return line("agrees", f"its weights were made from those of that model{evidence_words(parent)}", parent)
    if copy := _first(claimed, trace["copies"]):
        return line("agrees", "its weights are those of that model", copy)
    if related := _first(claimed, (*trace["parents"], *trace["relatives"])):
        if related["role"] == "child" and _is_exactly(claimed, related) and _is_sure(related, trace):
            return line("contradicted", f"that model was made from this one{evidence_words(related)}", related)
        why = f"the two are related{evidence_words(related)}, and that it is the parent is not established"
        return line("not checked", why, related)
    if tested := _first(claimed, trace["candidates"]):
        if tested["weights"]["verdict"] != "independent" or tested["verdict"] != "independent":
            return line("not checked", "whether the two are related could not be decided", tested)
        if not _is_exactly(claimed, tested):
            why = f"{_short(str(tested['name']))} was compared and is independent, and may be another model"
            return line("not checked", why, tested)
        return line("contradicted", "that model was compared and its weights are independent", tested)
    return line("not checked", "no model of that name was compared")


def _first(claimed: str, findings: Sequence[Finding]) -> Finding | None:
    exact = [f for f in findings if _is_exactly(claimed, f)]
    return next(iter((*exact, *(f for f in findings if means(claimed, f)))), None)


def _relation(claims: Mapping[str, str], trace: Mapping[str, Any]) -> Iterator[ClaimLine]:
    stated = claims.get("base_model_relation", "").strip().casefold()
    if not stated:
        return
    named = claimed_bases(claims, trace["model"]["digest"])
    known = (*trace["copies"], *established_parents(trace))
    found = next((f for name in named if (f := _first(name, known))), None)
    said = f"Its files say that it is a {_short(stated)} of its base model"
    if found is None:
        yield ClaimLine("relation", stated, "not checked", f"{said}; that base model is not established: not checked.")
        return
    steps = {found["relation"], *found.get("steps", ())}
    names, shown = (str(found["name"]),), f"the weights show {found['relation']}"
    if steps & MADE_BY.get(stated, frozenset()):
        yield ClaimLine("relation", stated, "agrees", f"{said}; {shown}.", names)
    elif stated in MADE_BY and steps <= UNCHANGED and any(_is_exactly(name, found) for name in named):
        why = f"{said}; {shown}, which changes nothing: claim contradicted."
        yield ClaimLine("relation", stated, "contradicted", why, names)
    else:
        why = f"{said}; {shown}, which does not decide it: not checked."
        yield ClaimLine("relation", stated, "not checked", why, names)


def _licence(claims: Mapping[str, str], trace: Mapping[str, Any], stated_licence: str | None) -> Iterator[ClaimLine]:
    own = (stated_licence or cards.licence(claims) or "").strip()
    same = [p for p in trace["parents"] if p.get("role") == "same" and p["direction"] != "parent"]
    sources = {(f["name"], f["digest"]): f for f in (*trace["copies"], *established_parents(trace), *same)}
    if not sources:
        if own:
            said = f"Its licence is stated as {_short(own)}"
            yield ClaimLine("licence", own, "not checked", f"{said}; no parent is established: not checked.")
        return
    for finding in sources.values():
        made = "copies" if finding in trace["copies"] else "same" if finding in same else "parents"
        yield licence_line(own, finding, made, plain(evidence_words(finding)))
