"""Models with a network: implements `stemma.load` and `stemma.from_arrays`.

`stemma.checkpoints.load` reads the same files as tensors alone; here a model also gets its network builder
(`stemma.networks.open`). No network is built before `model.network` is used.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma.checkpoints import arrays as in_memory
from stemma.checkpoints import load as checkpoints
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.networks.open import open_network


def runnable(model: Model) -> Model:
    """The model with a function that builds its network from its configuration or file."""
    return model if model.network_builder is not None else replace(model, network_builder=open_network)


def load(path: Path | str, name: str | None = None) -> Model:
    """The main model of one checkpoint file or folder; no weight is read yet, and nothing in the file is executed.

    Args:
        path: The file or folder.
        name: Name of the model; by default a file's stem or a folder's name.

    Returns:
        The model. Its notes name averaged weights and further components.

    Raises:
        UnreadableModelError: If the file is truncated, inconsistent, hostile or not supported.
        NotAModelError: If there is no checkpoint at the path, or a folder holds several.
        MisuseError: If it is not a path.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise MisuseError(f"a checkpoint is loaded from a path, not from {path!r:.60}")
    return runnable(checkpoints.load(path, name))


def open_models(path: Path | str, name: str | None = None) -> tuple[Model, ...]:
    """Every model of one checkpoint file or folder: see `stemma.checkpoints.load.open_models`.

    Args:
        path: The file or folder.
        name: Name of the model.

    Returns:
        The models, the main one first.
    """
    return tuple(runnable(m) for m in checkpoints.open_models(path, name))


def from_arrays(
    arrays: Mapping[str, Any],
    name: str,
    config: Mapping[str, Any] | None = None,
    claims: Mapping[str, str] | None = None,
) -> Model:
    """A model made in memory: see `stemma.checkpoints.arrays.from_arrays`.

    Args:
        arrays: NumPy arrays or torch tensors by name.
        name: Name of the model.
        config: Architecture configuration, as in `config.json`.
        claims: Metadata to show.

    Returns:
        The model; its source is `python:NAME`.
    """
    return runnable(in_memory.from_arrays(arrays, name, config, claims))
