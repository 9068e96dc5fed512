"""How a gate is told: what is refused, what was not tested, and the exit code 3."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from stemma.workspace.policies import Ruling

SHOWN = 12
"""Sentences of one kind that are printed before the rest is counted."""


def with_policy(document: dict[str, Any], ruling: "Ruling", *, given: bool) -> dict[str, Any]:
    """The document of an answer with what the policy says to it.

    Args:
        document: As `--json` prints it.
        ruling: The ruling.
        given: Whether there is a policy.

    Returns:
        The document, with the field `policy` where there is one.
    """
    return {**document, "policy": ruling.to_dict()} if given else document


def enforce(ruling: "Ruling") -> None:
    """Say what closes the gate, and leave.

    Args:
        ruling: What the policy says.

    Raises:
        Exit: With code 3, if the gate is closed.
    """
    from stemma.cli.output import warn

    _told("warning", ruling.notes)
    _told("policy", ruling.violations)
    _told("warning: not tested, but allowed" if ruling.allow_untested else "not tested", ruling.untested)
    if ruling.closed and not ruling.violations:
        warn("closed: what was not tested is not known to be harmless. To let it pass, say --allow-untested")
    if ruling.closed:
        raise typer.Exit(3)


def _told(label: str, sentences: tuple[str, ...]) -> None:
    from stemma.cli.output import warn

    for sentence in sentences[:SHOWN]:
        warn(f"{label}: {sentence}")
    if len(sentences) > SHOWN:
        warn(f"{label}: and {len(sentences) - SHOWN:,} more, all of them with --json")
