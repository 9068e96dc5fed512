"""Cache of trained networks by the digest of their recipe, outside the repository.

Networks that were trained together are in one file, so that thousands of them are a few hundred files.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.formats import safetensors
from stemma.errors import StemmaError
from stemma.types import Digest, Spec
from stemma.zoo.memory import model_of

VERSION = 1
"""Raised whenever a recipe would make other weights than before; it is part of every recipe's digest."""

_INDEX = "stacks.jsonl"
"""Which recipes each stacked file holds: one line per file, only appended to."""


def folder() -> Path:
    """The cache folder, which may not exist yet: `STEMMA_CACHE`, else the user's."""
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given) / "zoo"
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma")) / "zoo"


def has(digest: Digest) -> bool:
    """Whether something is cached under this digest, as a file of its own."""
    return _path(digest).exists()


def recall(
    digest: Digest, make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]], *, keep: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Named arrays and a configuration from the cache, or computed by `make` and cached.

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
    path = _path(digest)
    if (found := _read(path)) is not None:
        return found
    arrays, config = make()
    _write(path, arrays, config)
    return dict(arrays), dict(config)


def find(digests: Collection[Digest]) -> dict[Digest, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Configuration and arrays of the cached recipes among these, trained alone or in a stack."""
    out = {}
    stacks: dict[str, list[tuple[Digest, int]]] = {}
    index = _index() if digests else {}
    for digest in digests:
        if digest in index:
            name, row = index[digest]
            stacks.setdefault(name, []).append((digest, row))
        elif (alone := _read(_path(digest))) is not None:
            out[digest] = alone[1], alone[0]
    for name, rows in stacks.items():
        if (found := _read(folder() / name)) is not None:
            arrays, config = found
            out |= {digest: (dict(config), {n: np.array(a[row]) for n, a in arrays.items()}) for digest, row in rows}
    return out


def put(digests: Sequence[Digest], each: Sequence[Mapping[str, np.ndarray]], config: Mapping[str, Any]) -> None:
    """Cache networks of one configuration that were trained together; skipped where the cache cannot be written."""
    if len(digests) == 1:
        _write(_path(digests[0]), each[0], config)
        return
    together = Spec("stack", VERSION, {"recipes": list(digests)}).digest
    path = _path(together)
    if _write(path, {n: np.stack([arrays[n] for arrays in each]) for n in each[0]}, config):
        line = json.dumps({"file": path.name, "recipes": list(digests)}) + "\n"
        with (folder() / _INDEX).open("a") as f:
            f.write(line)


def _path(digest: Digest) -> Path:
    return folder() / f"{digest.split(':')[-1]}.safetensors"


def _index() -> dict[Digest, tuple[str, int]]:
    """File and row by recipe; of a recipe that was made twice, the later."""
    path = folder() / _INDEX
    return _rows(str(path), path.stat().st_size) if path.exists() else {}


@lru_cache(maxsize=4)
def _rows(path: str, size: int) -> dict[Digest, tuple[str, int]]:
    out: dict[Digest, tuple[str, int]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            entry = json.loads(line)
            out |= {digest: (entry["file"], row) for row, digest in enumerate(entry["recipes"])}
        except (ValueError, KeyError, TypeError):
            continue
    return out


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and configuration in a file of the cache; one that cannot be read is removed."""
    if not path.exists():
        return None
    try:
        tensors, metadata = safetensors.read(path)
        return {t.name: np.array(t.array()) for t in tensors}, json.loads(metadata["config"])
    except (StemmaError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = model_of("cached", arrays, None)
        safetensors.write(path, list(stored.tensors.values()), {"config": json.dumps(config)})
    except OSError:
        return False
    return True
