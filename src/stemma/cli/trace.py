"""`stemma trace`: where does this model come from?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import (
    Against,
    AllowCode,
    AllowUntested,
    Alpha,
    Coverage,
    Data,
    DenyLicense,
    Device,
    Factory,
    FailOn,
    Jobs,
    Json,
    NullPaths,
    NullRecipe,
    Probes,
    RegistryUrl,
    Seed,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.registry.records import ModelRecord
    from stemma.types import Trace

SHOWN = 8
"""Names that a line lists before it counts the rest."""


def trace(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    against: Against = None,
    probes: Probes = None,
    null: NullPaths = None,
    null_recipe: NullRecipe = None,
    alpha: Alpha = None,
    coverage: Coverage = None,
    fail_on: FailOn = None,
    deny_license: DenyLicense = None,
    allow_untested: AllowUntested = False,
    jobs: Jobs = 1,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say where a model comes from.

    Which enrolled models it copies, descends from or is related to, with the evidence for each.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.modalities import SideBySide, joint_of
    from stemma.cli.notes import notes_of, tell
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.policy import enforce, with_policy
    from stemma.workspace.policies import Policy, on_trace

    policy = Policy.of(fail_on, deny_license, allow_untested=allow_untested)
    options: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    if coverage is not None:
        options["coverage"] = coverage
    if against:
        options["against"] = against
    asking = Asking(network, allow_code, device, data)
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, jobs=jobs, progress=report, prepare=asking.able)
        subject = workspace.resolve(model)
        options |= asking.function(probes, null, null_recipe, subject, seed)
        (subject,), options = joint_of([subject], options)
        prepare = SideBySide(asking.able, options.get("probes"))
        workspace = open_workspace(registry, jobs=jobs, progress=report, prepare=prepare)
        result = workspace.trace(subject, **options)
    tell(subject)
    _searched_something(result, against, told=not policy.given)
    ruling = on_trace(policy, result, subject, workspace)
    if as_json:
        show_json(with_policy({**result.to_dict(), "notes": notes_of(subject)}, ruling, given=policy.given))
    else:
        from stemma.cli.output import findings, identity

        show(identity(subject), "", findings(lines(result)))
    if policy.given and not against:
        _left_out(workspace.own_records(subject))
    enforce(ruling)


def _left_out(own: "Sequence[ModelRecord]") -> None:
    """A policy must not pass in silence because the suspect is enrolled itself."""
    from stemma.cli.output import warn

    for record in own:
        warn(f"warning: this is '{record.name}' itself, which was left out of its own search")


def _searched_something(result: "Trace", against: Sequence[Path] | None, *, told: bool) -> None:
    """A search of nothing must not read like a clean answer."""
    from stemma.cli.output import warn
    from stemma.errors import NotAModelError

    if result.n_searched == 0 and against:
        raise NotAModelError(f"there is no other checkpoint in {', '.join(map(str, against))} to search")
    why = next((t["why"] for t in result.not_tested if t["what"] == "nothing-searched"), "")
    if why and told:
        warn(f"warning: {why}. Enrol some models with: stemma add PATH")


def lines(result: "Trace") -> Iterator[tuple[str, "str | Text", str]]:
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        result: The answer.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.behaviour import behaviour
    from stemma.cli.output import not_tested, number, verdict_text

    first = next(iter((*result.parents, *result.relatives)), None)
    closest = _candidate(result, first)
    copies = sorted(result.copies, key=lambda copy: copy["relation"] != "copy")
    named = copies[0] if copies else first
    yield "verdict", verdict_text(result.verdict, _of(result.verdict, named)), operation(named, closest)
    for copy in copies[:SHOWN]:
        yield "copy", str(copy["name"]), str(copy.get("reason", "the same weights"))
    if len(result.copies) > SHOWN:
        yield "", f"and {len(result.copies) - SHOWN:,} more copies", "all of them with --json"
    yield _weights(result, first, closest)
    function = (closest or {}).get("function")
    if function and closest:
        yield from behaviour(function, (str(closest["name"]), result.model.name))
    several = "parent" if result.verdict == "descends" else "tied"
    yield from _kin(several, result.parents[1:])
    yield from _direction(result)
    yield from _possible(result)
    yield from _kin("relative", result.relatives if result.parents else result.relatives[1:])
    yield from _licences(result)
    searched = f"{result.n_searched:,} model{'' if result.n_searched == 1 else 's'} searched"
    yield "level", f"alpha {number(result.alpha)}, corrected for {searched}", ""
    yield from not_tested(result.not_tested)
    yield "cannot see", " · ".join(result.cannot_see) or "nothing known to be missing", ""


def _licences(result: "Trace") -> Iterator[tuple[str, str, str]]:
    """The licences of the kin, as read; what is no name of a licence is said to be none."""
    from stemma.workspace.policies import unknown

    by = {"stated": "as stated when it was enrolled", "card": "by its own card"}
    found = [f for f in (*result.copies, *result.parents, *result.relatives) if f["licence"]]
    for finding in found[:SHOWN]:
        why = unknown(finding["licence"])
        words = (finding["licence"], by[finding["licence_source"]], f"not clear: {why}" if why else "")
        yield "licence", str(finding["name"]), " · ".join(w for w in words if w)
    if len(found) > SHOWN:
        yield "", f"and {len(found) - SHOWN:,} more licences", "all of them with --json"


def _of(verdict: str, named: Mapping[str, Any] | None) -> str:
    if named is None or verdict in {"no-known-parent", "inconclusive"}:
        return ""
    preposition = {"copy": "of", "descends": "from"}.get(verdict, "to")
    return f" {preposition} {named['name']}"


def operation(finding: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None = None) -> str:
    """What was done to the one to get the other, as far as it is known.

    Args:
        finding: A copy, parent or relative of a trace.
        candidate: What the trace says about the same model in detail.

    Returns:
        The relation, its steps where there were several, and why it is called so; or nothing.
    """
    if finding is None or not finding.get("relation"):
        return ""
    relation = str(finding["relation"])
    steps = [str(step) for step in finding.get("steps") or ()]
    words = relation if not steps or steps == [relation] else f"{relation} ({', '.join(steps)})"
    words = "" if words == "related" else words
    if candidate is None or candidate["name"] != finding["name"]:
        return words
    if relation != candidate["relation"]:  # the family shows more than the pair
        return f"{words}: {finding['reason']}"
    reason = candidate.get("relation_reason") or ""
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
    from stemma.cli.output import plain

    known = [parent for parent in result.parents if parent["direction"] == "parent"]
    apart = {(parent["relation"], parent["confidence"]): parent for parent in reversed(known)}
    for parent in known if "merged" in {p["relation"] for p in known} else reversed(apart.values()):
        sure = parent["confidence"]
        shown = f"{sure:.2f}" if sure is not None else "shown by the change itself"
        yield "direction", f"{plain(parent['name'])} → {plain(result.model.name)}", shown
    if not known and any(parent.get("role") == "same" for parent in result.parents):
        yield "direction", "unknown: one network in two forms, and either may be the older one", ""
    elif not known and (result.parents or result.relatives):
        yield "direction", "unknown: no relative is sure to be the parent; all may come from a model not searched", ""


def _possible(result: "Trace") -> Iterator[tuple[str, str, str]]:
    """The parent set, unless the direction says the same: one parent that is named."""
    if len(result.parent_set) == 1 and result.verdict in {"copy", "descends"}:
        return
    words = "one of these" if len(result.parent_set) > 1 else "so"
    label, why = "parent is", f"{words} in {result.coverage:.0%} of cases" if result.coverage else ""
    for member in result.parent_set[:SHOWN]:
        same = f", or {', '.join(member['or'][:2])}{', …' if len(member['or']) > 2 else ''}" if member["or"] else ""
        yield label, f"{member['name']}{same}", f"{member['probability']:.2f}{f' · {why}' if why else ''}"
        label, why = "", ""


def _kin(label: str, findings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    from stemma.cli.output import strength

    for finding in findings[:SHOWN]:
        role = finding.get("role") if label == "relative" and finding.get("role") in ("child", "same") else ""
        words = (role, operation(finding), strength(finding))
        yield label, str(finding["name"]), " · ".join(x for x in words if x)
    if len(findings) > SHOWN:
        yield "", f"and {len(findings) - SHOWN:,} more", "all of them with --json"
