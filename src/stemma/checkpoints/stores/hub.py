"""The cache of the Hugging Face hub: a folder per repository, with a snapshot per revision.

Snapshots hold links to blobs, or the files themselves where the system has no links.

Source: huggingface_hub, Understand caching (manage-cache guide).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from stemma.checkpoints.stores.folder import read_folder
from stemma.checkpoints.stores.stored_model import (
    INCOMPLETE,
    NO_WEIGHTS,
    OUTSIDE,
    UNFINISHED,
    Omitted,
    StoredModel,
    is_inside,
    safe_name,
)

PREFIX = "models--"

SHORTEST = 7
"""Digits of a revision in a name, unless two revisions of a repository begin with the same ones."""


def default_place() -> Path:
    """Where the cache lies: `HF_HUB_CACHE`, else `HF_HOME/hub`, else below the user's own folder of caches."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches).expanduser() if caches else Path.home() / ".cache") / "huggingface" / "hub"


def is_hub(root: Path) -> bool:
    """Whether a folder is such a cache."""
    return any((p / "snapshots").is_dir() for p in root.glob(f"{PREFIX}*"))


def read_hub(root: Path) -> Iterator[StoredModel | Omitted]:
    """The models of a cache, each revision by itself: `hf:ORG/NAME@REVISION`; and what is not read."""
    for folder in sorted(root.glob(f"{PREFIX}*")):
        owner, _, rest = folder.name.removeprefix(PREFIX).partition("--")
        name = f"hf:{owner}/{rest}" if rest else f"hf:{owner}"
        if not is_inside(folder, root):
            yield Omitted(OUTSIDE, safe_name(name), f"{folder} is a link that leaves {root}; it was not followed")
        elif folder.is_dir():
            yield from _repository(folder, root, name)


def _repository(folder: Path, root: Path, name: str) -> Iterator[StoredModel | Omitted]:
    blobs = folder / "blobs"
    unfinished = sorted(blobs.glob("*.incomplete")) if blobs.is_dir() and is_inside(blobs, root) else []
    for path in unfinished:
        yield Omitted(UNFINISHED, safe_name(f"{name}/{path.name}"), f"{path} is an unfinished download", is_model=False)
    snapshots = folder / "snapshots"
    if not is_inside(snapshots, root):
        yield Omitted(OUTSIDE, safe_name(name), f"{snapshots} is a link that leaves {root}; it was not followed")
        return
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir()) if snapshots.is_dir() else []
    found_any = False
    for revision in revisions:
        label = safe_name(f"{name}@{_shortened(revision.name, [p.name for p in revisions])}")
        if not is_inside(revision, root):
            yield Omitted(OUTSIDE, label, f"{revision} is a link that leaves {root}; it was not followed")
            found_any = True
            continue
        found = list(read_folder(revision, root, label))
        found_any |= any(isinstance(item, StoredModel) or item.is_model for item in found)
        yield from found
    if not found_any:
        yield _without_weights(folder, safe_name(name), bool(unfinished))


def _without_weights(folder: Path, name: str, unfinished: bool) -> Omitted:
    if unfinished:
        return Omitted(INCOMPLETE, name, f"{folder} holds no weights yet: its download is not finished")
    return Omitted(NO_WEIGHTS, name, f"{folder} holds no weights, only other files", is_model=False)


def _shortened(revision: str, others: list[str]) -> str:
    for length in range(SHORTEST, len(revision)):
        if sum(other.startswith(revision[:length]) for other in others) == 1:
            return revision[:length]
    return revision
