"""`stemma trace`: where does this model come from?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import (
    Against,
    AllowCode,
    AllowUntested,
    Alpha,
    Cluster,
    Coverage,
    Data,
    DenyLicense,
    Device,
    Download,
    Factory,
    FailOn,
    FailOnDescendantOf,
    Html,
    Jobs,
    Json,
    MaxQueries,
    NullPaths,
    NullRecipe,
    Outputs,
    Probes,
    RegistryUrl,
    Seed,
    model_or_outputs,
    word,
    words,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import ClaimLine, Trace

SHOWN = 8
"""Names that a line lists before it counts the rest."""


def trace(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", show_default=False, help="A path, name, digest prefix, hf:ORG/NAME or endpoint:URL."
        ),
    ] = None,
    registry: RegistryUrl = None,
    against: Against = None,
    outputs: Outputs = None,
    probes: Probes = None,
    download: Download = False,
    max_queries: MaxQueries = None,
    null: NullPaths = None,
    null_recipe: NullRecipe = None,
    alpha: Alpha = None,
    coverage: Coverage = None,
    fail_on: FailOn = None,
    deny_license: DenyLicense = None,
    fail_on_descendant_of: FailOnDescendantOf = None,
    allow_untested: AllowUntested = False,
    jobs: Jobs = 1,
    cluster: Cluster = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Identify a model's provenance.

    Lists the enrolled models that it copies, descends from or is related to, with the evidence for each.
    """
    from stemma.application import trace as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.notes import warn_of_notes
    from stemma.cli.output import progress, report, show_json, tell, warn
    from stemma.cli.pages import writable, written
    from stemma.cli.policy import enforce
    from stemma.export.answers import trace_answer, trace_closing

    writable("--html", html)
    request = application.TraceRequest(
        model=model_or_outputs(model, outputs, "MODEL"),
        max_queries=max_queries,
        against=words(against),
        probes=probes,
        null=words(null),
        null_recipe=null_recipe,
        registry=registry,
        alpha=alpha,
        coverage=coverage,
        fail_on=words(fail_on),
        deny_license=words(deny_license),
        fail_on_descendant_of=words(fail_on_descendant_of),
        allow_untested=allow_untested,
        jobs=jobs,
        cluster=cluster,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
        download=download,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.trace(request, on_progress, tell)
    if html is not None:
        written(html, page_of(answer))
    warn_of_notes(answer.model)
    for warning in answer.warnings:
        warn(f"warning: {warning}")
    if as_json:
        show_json(answer.document())
    else:
        document = answer.document()
        found = answer_text(trace_answer(document))
        *before, last = lines(answer.result)
        rows = [*before, *claim_lines(answer.claims), last, *([("page", str(html), "")] if html else [])]
        report(found, [answer.model], rows, *trace_closing(document))
    enforce(answer.ruling)


def claim_lines(claims: "Sequence[ClaimLine]") -> Iterator[tuple[str, str, str]]:
    """What files claim and findings contradict or confirm; what was not checked is in the document and on the page."""
    for line in sorted(claims, key=lambda line: line.verdict != "contradicted"):
        if line.verdict != "not checked":
            yield "claim", line.sentence, ""


def lines(result: "Trace") -> "Iterator[tuple[str, str | Text, str]]":
    """The findings of a trace: label, finding, evidence; the last is what was not examined."""
    from stemma.cli.function_lines import function_lines
    from stemma.cli.output import not_tested, number
    from stemma.export.answers import closest_finding

    first = next(iter((*result.parents, *result.relatives)), None)
    closest = _candidate(result, first)
    operation = described(closest_finding(result.to_dict()), closest)
    if operation:
        yield "relation", operation, ""
    copies = sorted(result.copies, key=lambda copy: copy["relation"] != "copy")
    for copy in copies[:SHOWN]:
        yield "copy", str(copy["name"]), str(copy.get("reason", "the same weights"))
    if len(result.copies) > SHOWN:
        yield "", f"and {len(result.copies) - SHOWN:,} more copies", "all of them with --json"
    yield _weights(result, first, closest)
    function = (closest or {}).get("function")
    if function and closest:
        yield from function_lines(function, (str(closest["name"]), result.model.name))
    several = "parent" if result.verdict == "descends" else "identical"
    yield from _relative_lines(several, result.parents[1:])
    yield from _direction(result)
    yield from _possible(result)
    yield from _relative_lines("relative", result.relatives if result.parents else result.relatives[1:])
    yield from _licences(result)
    searched = f"{result.n_searched:,} model{'' if result.n_searched == 1 else 's'} searched"
    yield "significance", f"level {number(result.alpha)}, corrected for {searched}", ""
    yield from not_tested(result.not_tested)
    yield "cannot see", " · ".join(result.cannot_see) or "nothing known to be missing", ""


def _licences(result: "Trace") -> Iterator[tuple[str, str, str]]:
    """The licences of the kin, as read; what is no name of a licence is said to be none."""
    from stemma.application.policies import why_unclear

    by = {"stated": "as stated when it was enrolled", "card": "by its own card"}
    found = [f for f in (*result.copies, *result.parents, *result.relatives) if f["licence"]]
    for finding in found[:SHOWN]:
        why = why_unclear(finding["licence"])
        if finding.get("known_from"):
            yield "licence", str(finding["name"]), f"{finding['licence']} · as told: {finding['known_from'].sentence}"
            continue
        words = (finding["licence"], by[finding["licence_source"]], f"not clear: {why}" if why else "")
        yield "licence", str(finding["name"]), " · ".join(w for w in words if w)
    if len(found) > SHOWN:
        yield "", f"and {len(found) - SHOWN:,} more licences", "all of them with --json"


def described(finding: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None) -> str:
    """The relation of a copy, parent or relative, its steps where there are several, and the evidence for it.

    Args:
        finding: A copy, parent or relative of a trace.
        candidate: What the trace says about the same model in detail.

    Returns:
        Words; empty where the verdict says it all.
    """
    if finding is None or not finding.get("relation"):
        return ""
    relation = str(finding["relation"])
    steps = [str(step) for step in finding.get("steps") or ()]
    words = relation if not steps or steps == [relation] else f"{relation} ({', '.join(steps)})"
    words = "" if words == "related" else words
    if candidate is None or candidate["name"] != finding["name"]:
        return words
    shown = relation == candidate["relation"]  # else the family shows more than the pair
    reason = (candidate.get("relation_reason") if shown else finding["reason"]) or ""
    return ": ".join(x for x in (words, "" if reason == candidate["weights"]["reason"] else reason) if x)


def _candidate(result: "Trace", first: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if first is None:
        tested = (c for c in result.candidates if c["weights"]["p_value"] is not None)
        return next(tested, next(iter(result.candidates), None))
    same = (c for c in result.candidates if c["digest"] == first["digest"] and c["name"] == first["name"])
    return next(same, None)


def _weights(
    result: "Trace", first: Mapping[str, Any] | None, closest: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    from stemma.cli.output import strength

    if closest is None or not closest.get("weights"):
        return "weights", "nothing else was compared" if result.copies else "nothing was compared", ""
    weights = closest["weights"]
    whose = f"{closest['name']}: " if first is None or result.copies else ""
    chance = strength({**weights, "relation": closest["relation"]})
    return "weights", f"{whose}{weights['reason']}", chance


def _direction(result: "Trace") -> Iterator[tuple[str, str, str]]:
    from stemma.cli.layout import plain

    known = [parent for parent in result.parents if parent["direction"] == "parent"]
    apart = {(parent["relation"], parent["confidence"]): parent for parent in reversed(known)}
    for parent in known if "merged" in {p["relation"] for p in known} else reversed(apart.values()):
        sure = parent["confidence"]
        shown = f"probability {sure:.2f}" if sure is not None else "shown by the change itself"
        yield "direction", f"{plain(parent['name'])} → {plain(result.model.name)}", shown
    if not known and any(parent.get("role") == "same" for parent in result.parents):
        yield "direction", "unknown: the two are forms of one network, and either may be the older one", ""
    elif not known and (result.parents or result.relatives):
        yield (
            "direction",
            "unknown: no relative is established as the parent; all may come from a model that was not searched",
            "",
        )


def _possible(result: "Trace") -> Iterator[tuple[str, str, str]]:
    """The parent set, unless the direction says the same: one parent that is named."""
    if len(result.parent_set) == 1 and result.verdict in {"copy", "descends"}:
        return
    why = f" · such a set contains the parent in {result.coverage:.0%} of cases" if result.coverage else ""
    label = "parent set"
    for member in result.parent_set[:SHOWN]:
        same = f", or {', '.join(member['or'][:2])}{', …' if len(member['or']) > 2 else ''}" if member["or"] else ""
        yield label, f"{member['name']}{same}", f"probability {member['probability']:.2f}{why}"
        label, why = "", ""


def _relative_lines(label: str, findings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    from stemma.cli.output import strength

    for finding in findings[:SHOWN]:
        role = finding.get("role") if label == "relative" and finding.get("role") in ("child", "same") else ""
        told = finding["known_from"].sentence if finding.get("known_from") else ""
        words = (role, described(finding, None), strength(finding), told)
        yield label, str(finding["name"]), " · ".join(x for x in words if x)
    if len(findings) > SHOWN:
        yield "", f"and {len(findings) - SHOWN:,} more", "all of them with --json"
