"""What makes a command exit with 3: a relation or a licence that the caller refuses."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from stemma.workspace import Workspace

KINSHIP = frozenset({"copy", "descends", "related"})
"""Verdicts that say the model is related to another: `--fail-on related` refuses all of them."""

VERDICTS = KINSHIP | {"independent", "no-known-parent", "inconclusive"}


def wanted_relations(words: Sequence[str] | None) -> frozenset[str]:
    """Check the words of `--fail-on`.

    Args:
        words: Relations and verdicts; commas separate too.

    Returns:
        The words.

    Raises:
        MisuseError: If one is neither a relation nor a verdict.
    """
    from stemma.errors import MisuseError
    from stemma.types import RelationKind

    known = {kind.value for kind in RelationKind} | VERDICTS
    given = _split(words)
    for word in sorted(given - known):
        raise MisuseError(f"--fail-on knows no relation '{word}'. Use one of: {', '.join(sorted(known))}")
    return frozenset(given)


def _split(words: Sequence[str] | None) -> set[str]:
    return {part.strip().lower() for word in words or () for part in word.split(",") if part.strip()}


def refused_relations(refused: frozenset[str], verdict: str, findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which findings the caller refuses.

    Args:
        refused: Relations and verdicts.
        verdict: Of the whole answer.
        findings: Each with `name` and, where known, `relation`.

    Yields:
        One sentence per violation.
    """
    if verdict in refused or ("related" in refused and verdict in KINSHIP):
        yield f"the verdict is {verdict}"
    for finding in findings:
        if finding.get("relation") in refused:
            yield f"the relation to {finding['name']} is {finding['relation']}"


def denied_licenses(
    denied: Sequence[str] | None, findings: Sequence[Mapping[str, Any]], workspace: "Workspace"
) -> Iterator[str]:
    """Which findings stand under a licence that the caller refuses; licences that nobody recorded are warned of.

    Args:
        denied: Licences, compared without case.
        findings: Each with `name` and, where known, `licence`.
        workspace: Knows the licences of enrolled models.

    Yields:
        One sentence per violation.
    """
    from stemma.cli.output import warn

    refused = _split(denied)
    for finding in findings if refused else ():
        license = finding.get("licence") or _recorded(finding["name"], workspace)
        if license is None:
            warn(f"warning: the licence of {finding['name']} is not recorded. State it: stemma add PATH --license L")
        elif license.lower() in refused:
            yield f"{finding['name']} is under {license}"


def _recorded(name: str, workspace: "Workspace") -> str | None:
    from stemma.errors import StemmaError

    try:
        record = workspace.show(name)
    except StemmaError:
        return None
    return record.license or record.claims.get("license")


def enforce(violations: Sequence[str]) -> None:
    """Say what was violated and leave.

    Args:
        violations: One sentence each.

    Raises:
        Exit: With code 3, if there are any.
    """
    from stemma.cli.output import warn

    for violation in violations:
        warn(f"policy: {violation}")
    if violations:
        raise typer.Exit(3)
