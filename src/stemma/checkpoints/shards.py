"""Sharded checkpoints, with or without an index."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemma.checkpoints import budget, parallel_ranks
from stemma.checkpoints.assemble import read_file
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.tensor import Tensor
from stemma.errors import NotAModelError, UnreadableModelError, UnsafeFileError

INDEXES = (
    "model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json", "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
)  # fmt: skip
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<i>\d{5})-of-(?P<n>\d{5})\.(?P<ending>safetensors|bin|pt|pth|gguf)$")


def find(folder: Path) -> str | tuple[str, ...] | None:
    """The name of a shard index, the names of shards without an index, or None."""
    names = {p.name for p in folder.iterdir()}
    for index in INDEXES:
        if index in names:
            return index
    other = sorted(n for n in names if n.endswith((".safetensors.index.json", ".bin.index.json")))
    if other:
        return other[0]
    for name in sorted(names):
        match = _SHARD.match(name)
        if match and int(match["n"]) > 1:
            ending = match["ending"]
            shards = tuple(_shard(match, i) for i in range(1, min(int(match["n"]), 10_000) + 1))
            # without an index, other weight files in the folder are separate models
            return None if {x for x in names if x.endswith(f".{ending}")} - set(shards) else shards
    return None


def read(folder: Path, index: str | tuple[str, ...]) -> Contents:
    """Read a sharded checkpoint; `index` is what `find` returned."""
    if isinstance(index, tuple):
        return _join(folder, index, None)
    listed = _weight_map(folder / index)
    return _join(folder, tuple(sorted(set(listed.values()))), listed)


def missing_parts(folder: Path) -> str:
    """What a sharded checkpoint lacks, in a few words; empty if every shard is there, or it has none."""
    index = find(folder)
    if index is None:
        return ""
    names = index if isinstance(index, tuple) else tuple(sorted(set(_weight_map(folder / index).values())))
    return _missing(folder, names)


def _missing(folder: Path, names: Sequence[str]) -> str:
    missing = [n for n in names if not (folder / n).is_file()]
    return f"{len(missing)} of {len(names)} shards are missing (first {missing[0]})" if missing else ""


def error_if_part(path: Path) -> NotAModelError | None:
    """The error for a file that is one part of a checkpoint (shard, split or rank); None for a complete file."""
    match, rank = _SHARD.match(path.name), parallel_ranks.rank_of(path.name)
    if match and int(match["n"]) > 1:
        n = int(match["n"])
        present = sum((path.parent / _shard(match, i)).is_file() for i in range(1, min(n, 10_000) + 1))
        missing = "" if present == n else f" ({n - present} are missing)"
        return NotAModelError(
            f"{path} is one of {n} parts{missing}. Use a folder that contains all of them and no other checkpoint"
        )
    if rank is None:
        path, rank = path.parent, parallel_ranks.rank_of(path.parent.name)
    if rank is None:
        return None
    others = parallel_ranks.find(path.parent)
    if path.name in others:
        return NotAModelError(f"{path} is one of {len(others)} model-parallel ranks. Use the path of its folder")
    if rank[1]:
        return NotAModelError(f"{path} is model-parallel rank {rank[1]}. Use a folder that contains all ranks")
    return None


def _shard(match: re.Match[str], i: int) -> str:
    return f"{match['stem']}-{i:05d}-of-{match['n']}.{match['ending']}"


def _join(folder: Path, names: tuple[str, ...], listed: dict[str, str] | None) -> Contents:
    if len(names) > budget.LIMITS.files:
        budget.current().refuse(f"its index lists {len(names):,} shards", "Save it in larger shards")
    if missing := _missing(folder, names):
        raise UnreadableModelError(f"{folder}: {missing}. Copy all shards")
    found: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    aliases: list[tuple[str, ...]] = []
    for name in names:
        contents = read_file(folder / name)
        for tensor in contents.parts.get("", ()):
            if tensor.name in found:
                raise UnreadableModelError(f"{folder}: tensor '{tensor.name}' is in two shards")
            if listed is not None and listed.get(tensor.name, name) != name:
                raise UnreadableModelError(
                    f"{folder}: the index lists '{tensor.name}' in {listed[tensor.name]}, but it is in {name}"
                )
            found[tensor.name] = tensor
        metadata.update(contents.metadata)
        notes.extend(contents.notes)
        aliases.extend(contents.aliases)
    for name in listed or ():
        if name not in found:
            raise UnreadableModelError(f"{folder}: the index lists '{name}', but no shard contains it")
    extra = len(found) - len(listed) if listed is not None else 0
    if extra:
        notes.append(f"{extra} tensors of the shards are not in the index")
    return Contents({"": tuple(found.values())}, metadata, tuple(notes), tuple(aliases))


def _weight_map(path: Path) -> dict[str, str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise UnreadableModelError(f"{path}: a name appears twice in the index")
        return dict(pairs)

    with budget.reading(path) as costs:
        costs.text(path.stat().st_size)
    try:
        listed = budget.parse(path.read_bytes(), unique)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UnreadableModelError(f"{path} is not a shard index: it has no 'weight_map'") from e
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise UnreadableModelError(f"{path} is not a shard index: its 'weight_map' does not map names to files")
    for file in listed.values():
        if "/" in file or "\\" in file or "\0" in file or file in ("", ".", ".."):
            raise UnsafeFileError(f"{path} names the shard {file!r} outside its folder; it was not read")
        if file.endswith(".index.json"):
            raise UnreadableModelError(f"{path} names the index {file!r} as a shard")
    return listed
