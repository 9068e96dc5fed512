"""Unmerged low-rank adapters (PEFT folders): W + scale · B·A, computed rows at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

from stemma.models.assemble import models_of, read_file
from stemma.models.model import Model

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter.

    Returns:
        True if its config and weights are there.
    """
    return (folder / CONFIG).is_file() and any((folder / w).is_file() for w in WEIGHTS)


def open_adapter(
    folder: Path, name: str, claims: Mapping[str, str], load_base: Callable[[Path], Model]
) -> tuple[Model, ...]:
    """Open an adapter folder.

    Args:
        folder: The folder.
        name: What to call the model.
        claims: What the folder's card claims.
        load_base: Opens the base model at a path.

    Returns:
        The adapter's own tensors as a model.
    """
    weights = next(folder / w for w in WEIGHTS if (folder / w).is_file())
    return models_of(read_file(weights), name, folder, None, claims)
