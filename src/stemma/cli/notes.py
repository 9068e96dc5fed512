"""Warnings on what the reader left out of a model's files, changed or took for granted."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model

SHOWN = 8
"""Notes on one model that are printed before the rest is counted."""


def warn_of_notes(*models: "Model") -> None:
    """Print the notes on some models as warnings; what was warned of when the file was read is not repeated."""
    from stemma.application.notes import notes_on
    from stemma.checkpoints.duplicate_files import WARNED
    from stemma.cli.output import warn

    for model in dict.fromkeys(m.name for m in models):
        notes = [n.note for n in notes_on(*models) if n.model == model and n.note not in WARNED]
        for note in notes[:SHOWN]:
            warn(f"warning: {model}: {note}")
        if len(notes) > SHOWN:
            warn(f"warning: {model}: and {len(notes) - SHOWN} more, all of them with --json")
