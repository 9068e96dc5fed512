"""What the reader left out of a model's files, changed or took for granted."""

from typing import TYPE_CHECKING

from stemma.application.parts import ModelNote

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model


def notes_on(*models: "Model") -> tuple[ModelNote, ...]:
    """The notes on some models, every one once."""
    return tuple(ModelNote(*pair) for pair in dict.fromkeys((m.name, n) for m in models for n in m.notes))
