"""Prints what a policy refuses and what could not be tested, and leaves with exit code 3."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from stemma.application.policies import Ruling

SHOWN = 12
"""Sentences of one kind that are printed before the rest is counted."""


def enforce(ruling: "Ruling") -> None:
    """Say what closes the gate, and leave.

    Args:
        ruling: What the policy says.

    Raises:
        Exit: With code 3, if the gate is closed.
    """
    from stemma.cli.output import warn

    _warn_of("warning", ruling.notes)
    _warn_of("policy", ruling.violations)
    _warn_of("warning: not tested, but allowed" if ruling.allow_untested else "not tested", ruling.untested)
    if ruling.closed and not ruling.violations:
        warn("closed: what could not be tested may violate the policy. To accept this, add --allow-untested")
    if ruling.closed:
        raise typer.Exit(3)


def leave_untested(sentences: tuple[str, ...]) -> None:
    """Say what a strict question leaves without an answer, and leave; nothing happens where it leaves nothing.

    Args:
        sentences: What was not tested or not decided.

    Raises:
        Exit: With code 3, if there is anything.
    """
    if sentences:
        _warn_of("not tested", sentences)
        raise typer.Exit(3)


def _warn_of(label: str, sentences: tuple[str, ...]) -> None:
    from stemma.cli.output import warn

    for sentence in sentences[:SHOWN]:
        warn(f"{label}: {sentence}")
    if len(sentences) > SHOWN:
        warn(f"{label}: and {len(sentences) - SHOWN:,} more, all of them with --json")
