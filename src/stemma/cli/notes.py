"""What the reader left out of a file, changed or took for granted: told on stderr, and in the documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model

SHOWN = 8
"""Notes on one model that are printed before the rest is counted."""


def notes_of(*models: "Model") -> list[dict[str, str]]:
    """The notes on some models.

    Args:
        models: As they were opened.

    Returns:
        For the field `notes` of a document: the model's name and one sentence each, every one once.
    """
    found = dict.fromkeys((m.name, n) for m in models for n in m.notes)
    return [{"model": name, "note": note} for name, note in found]


def with_notes(document: dict[str, Any], models: "Sequence[Model]") -> dict[str, Any]:
    """A document that has a field `notes` of sentences already, with those on its models after them.

    Args:
        document: As `--json` prints it.
        models: As they were opened.

    Returns:
        The document.
    """
    return {**document, "notes": [*document["notes"], *(f"{n['model']}: {n['note']}" for n in notes_of(*models))]}


def tell(*models: "Model") -> None:
    """Print the notes as warnings; what was warned of when the file was read is not repeated.

    Args:
        models: As they were opened.
    """
    from stemma.checkpoints.duplicate_files import WARNED
    from stemma.cli.output import warn

    for model in dict.fromkeys(m.name for m in models):
        notes = [n["note"] for n in notes_of(*models) if n["model"] == model and n["note"] not in WARNED]
        for note in notes[:SHOWN]:
            warn(f"warning: {model}: {note}")
        if len(notes) > SHOWN:
            warn(f"warning: {model}: and {len(notes) - SHOWN} more, all of them with --json")
