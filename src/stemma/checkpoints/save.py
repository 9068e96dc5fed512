"""Write models as safetensors, optionally in shards, with their config."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.errors import MisuseError

MAX_SHARD_BYTES = 5_000_000_000


def save(
    model: Model | Mapping[str, Tensor],
    path: Path | str,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    replace: bool = False,
) -> Path:
    """Write a checkpoint slice by slice; it appears under its name only when it is complete.

    A path that ends in `.safetensors` becomes one file; any other path becomes a folder with `model.safetensors` (or
    shards and their index) and `config.json`.

    Args:
        model: A model, or tensors with their new names.
        path: Where to write.
        config: Written as `config.json`; the model's own by default. Needs a folder.
        metadata: Free text for the files' headers.
        max_shard_bytes: Largest file in a folder; a larger tensor is a file of its own.
        replace: Allow an existing file or checkpoint folder to be replaced.

    Returns:
        The path.

    Raises:
        MisuseError: If the path exists and `replace` is not given, or a config is given for a single file.
    """
    path = Path(path)
    tensors = sorted(_tensors(model), key=lambda t: t.name)
    if path.exists() and not replace:
        raise MisuseError(f"{path} already exists. Choose another path, or pass replace=True")
    if path.suffix == ".safetensors":
        if config is not None:
            raise MisuseError(f"{path} is a single file and cannot hold a config. Use a folder as path")
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.write(path, tensors, dict(metadata or {}))
        return path
    if path.exists() and not path.is_dir():
        raise MisuseError(f"{path} is an existing file. Use a folder, or a path that ends in .safetensors")
    config = config if config is not None else (model.config if isinstance(model, Model) else None)
    _write_folder(path, tensors, config, dict(metadata or {}), max_shard_bytes)
    return path


def _tensors(model: Model | Mapping[str, Tensor]) -> list[Tensor]:
    if isinstance(model, Model):
        return list(model.tensors.values())
    return [Tensor(n, t.dtype, t.shape, t.storage) for n, t in model.items()]


def _write_folder(
    path: Path, tensors: list[Tensor], config: Mapping[str, Any] | None, metadata: dict[str, str], limit: int
) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        groups = _shards(tensors, limit)
        if len(groups) == 1:
            safetensors.write(partial / "model.safetensors", groups[0], metadata)
        else:
            _write_shards(partial, groups, metadata)
        if config is not None:
            (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path) -> None:
    """Replace the old folder; it is deleted only after the new one is in place."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _shards(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    used = 0
    for t in tensors:
        if groups[-1] and used + t.nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(t)
        used += t.nbytes
    return groups


def _write_shards(folder: Path, groups: list[list[Tensor]], metadata: dict[str, str]) -> None:
    index: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        name = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        safetensors.write(folder / name, group, metadata)
        index.update((t.name, name) for t in group)
    total = sum(t.nbytes for g in groups for t in g)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
