"""`stemma trace`: where does this model come from?"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import Against, Alpha, FailOn, Jobs, Json, RegistryUrl

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import Trace

SHOWN = 8
"""Names that a line lists before it counts the rest."""


def trace(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    against: Against = None,
    alpha: Alpha = None,
    fail_on: FailOn = None,
    deny_license: Annotated[
        list[str] | None,
        typer.Option(
            "--deny-license",
            metavar="L...",
            show_default=False,
            help="Exit with 3 if a copy, parent or relative has this licence; may be given several times.",
        ),
    ] = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Say where a model comes from.

    Which enrolled models it copies, descends from or is related to, with the evidence for each.
    """
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.policy import denied_licenses, enforce, refused_relations, wanted_relations

    wanted = wanted_relations(fail_on)
    options: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    if against:
        options["against"] = against
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, jobs=jobs, progress=report)
        subject = workspace.resolve(model)
        result = workspace.trace(subject, **options)
    document = result.to_dict()
    if as_json:
        show_json(document)
    else:
        from stemma.cli.output import grid, identity

        show(identity(subject), "", grid(lines(result)))
    violations = [
        *refused_relations(wanted, result.verdict, related(document)),
        *denied_licenses(deny_license, related(document), workspace),
    ]
    enforce(violations)


def related(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every finding of kinship in a trace's document: copies, parents and relatives.

    Returns:
        The findings, best first.
    """
    return [*document["copies"], *document["parents"], *document["relatives"]]


def lines(result: "Trace") -> Iterator[tuple[str, "str | Text", "str | Text"]]:
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        result: The answer.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import number, p_value, verdict_text

    corrected = f"corrected for {result.n_searched:,} models searched" if result.n_searched else "no models searched"
    first = next(iter((*result.parents, *result.relatives)), None)
    named = first if first is not None else next(iter(result.copies), None)
    if result.verdict == "copy" and result.copies:
        named = result.copies[0]
    yield "verdict", verdict_text(result.verdict, _of(result.verdict, named)), operation(named)
    for copy in result.copies:
        yield "copy", str(copy.get("name", "")), str(copy.get("how") or copy.get("relation") or "same weights")
    closest = _candidate(result, first)
    if closest is not None and closest.get("weights"):
        weights = closest["weights"]
        strength = f"{p_value(weights.get('p_value'), weights.get('log10_p'))} · effect {number(weights['effect'])}"
        whose = "" if first is not None else f"closest, {closest['name']}: "
        yield "weights", f"{whose}{weights.get('reason', '')}", f"{strength} · {corrected}"
    else:
        yield "weights", "no candidate was compared" if not result.copies else "identical", corrected
    function = (closest or {}).get("function")
    if function:
        yield "function", f"distance {number(function['distance'])}", p_value(function.get("p_value"), None)
    yield from _family(result)
    yield "level", f"alpha {number(result.alpha)}", "the chance of naming any false relative, over the whole search"
    yield "cannot see", " · ".join(result.cannot_see) or "nothing known to be missing", ""


def _of(verdict: str, named: Mapping[str, Any] | None) -> str:
    if named is None or verdict in {"no-known-parent", "inconclusive"}:
        return ""
    preposition = {"copy": "of", "descends": "from"}.get(verdict, "to")
    return f" {preposition} {named['name']}"


def operation(finding: Mapping[str, Any] | None) -> str:
    """What was done to the one to get the other, as far as it is known.

    Returns:
        The relation, its steps and its share, or nothing.
    """
    from stemma.cli.output import number

    if finding is None or not finding.get("relation"):
        return ""
    parts = [str(finding["relation"])]
    steps = [str(step) for step in finding.get("steps") or ()]
    parts += [", ".join(steps)] if steps and steps != parts else []
    if finding.get("share") is not None and finding["share"] < 1:
        parts.append(f"share {number(finding['share'])}")
    return " · ".join(parts)


def _candidate(result: "Trace", first: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if first is None:
        return result.candidates[0] if result.candidates else None
    same = (c for c in result.candidates if c["digest"] == first["digest"] and c["name"] == first["name"])
    return next(same, None)


def _family(result: "Trace") -> Iterator[tuple[str, str, str]]:
    from stemma.cli.output import p_value

    for parent in result.parents:
        sure = parent.get("confidence")
        known = f"{parent['name']} → {result.model.name}" if parent.get("direction") == "parent" else "unknown"
        yield "direction", known, "not calibrated" if sure is None else f"{sure:.2f}"
    others = result.relatives[1:] if not result.parents else result.relatives
    for relative in others[:SHOWN]:
        strength = p_value(relative.get("p_value"), relative.get("log10_p")) if "p_value" in relative else ""
        yield "relative", str(relative["name"]), " · ".join(x for x in (operation(relative), strength) if x)
    if len(others) > SHOWN:
        yield "", f"and {len(others) - SHOWN:,} more relatives", "all of them with --json"
