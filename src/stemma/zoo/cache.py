"""What was trained once is kept, by the digest of its recipe, outside the repository."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import StemmaError
from stemma.models.formats import safetensors
from stemma.types import Digest
from stemma.zoo.memory import model_of

VERSION = 1
"""Raised whenever a recipe would make other weights than before; it is part of every recipe's digest."""


def folder() -> Path:
    """Where trained zoo networks are kept: `STEMMA_CACHE`, else the user's cache folder.

    Returns:
        A folder that may not exist yet.
    """
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given) / "zoo"
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma")) / "zoo"


def recall(
    digest: Digest, make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]], *, keep: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Named arrays and a configuration from the cache, or made and kept there.

    A file that cannot be read is made again; where the cache cannot be written, nothing is kept.

    Args:
        digest: Identity of the recipe.
        make: Trains.
        keep: Whether the cache is used at all.

    Returns:
        The arrays and the configuration.
    """
    if not keep:
        arrays, config = make()
        return dict(arrays), dict(config)
    path = folder() / f"{digest.split(':')[-1]}.safetensors"
    if path.exists():
        try:
            tensors, metadata = safetensors.read(path)
            return {t.name: np.array(t.array()) for t in tensors}, json.loads(metadata["config"])
        except (StemmaError, KeyError, ValueError):
            path.unlink(missing_ok=True)
    arrays, config = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = model_of("cached", arrays, None)
        safetensors.write(path, list(stored.tensors.values()), {"config": json.dumps(config)})
    except OSError:
        pass
    return dict(arrays), dict(config)
