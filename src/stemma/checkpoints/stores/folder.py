"""The models below a folder, none of whose links is followed out of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stemma.checkpoints import cards, shards
from stemma.checkpoints.folders import Checkpoint, survey
from stemma.checkpoints.stores.stored_model import (
    INCOMPLETE,
    OUTSIDE,
    UNSUPPORTED,
    Omitted,
    StoredModel,
    files_of,
    leaving_links,
    safe_name,
)
from stemma.errors import StemmaError


def read_folder(folder: Path, root: Path, name: str = "") -> Iterator[StoredModel | Omitted]:
    """The checkpoints below a folder of a store.

    Args:
        folder: The folder, or a single file.
        root: The store: what lies outside is not touched.
        name: Name of the folder as a model; those inside it have their own names behind it. Without, they have theirs
            alone, as with `stemma add`.

    Yields:
        Checkpoints, and what is not read.
    """
    leaving = leaving_links(folder, root)
    for link in sorted(leaving):
        label = safe_name(f"{name}/{link.name}" if name else str(link.relative_to(folder)))
        yield Omitted(OUTSIDE, label, f"{link} is a link that leaves {root}; it was not followed")
    try:
        found = list(survey(folder, leaving=leaving))
    except (StemmaError, OSError) as e:
        yield Omitted(UNSUPPORTED, safe_name(name or folder.name), str(e))
        return
    for item in found:
        if not isinstance(item, Checkpoint):
            label = safe_name(f"{name}/{item.path.name}" if name else item.path.name)
            yield Omitted(UNSUPPORTED, label, f"{item.path} is {item.reason}", item.is_model)
            continue
        label = item.name if not name else name if item.path == folder else f"{name}/{item.name}"
        if not any(link.is_relative_to(item.path) for link in leaving):
            yield _stored(safe_name(label), Path(item.path), cards.front_matter(folder / "README.md") if name else {})


def _stored(name: str, path: Path, claims: Mapping[str, str]) -> StoredModel | Omitted:
    try:
        if path.is_dir() and (missing := shards.missing_parts(path)):
            return Omitted(INCOMPLETE, name, f"{path}: {missing}. Is the download finished?")
        if not path.exists():
            return Omitted(INCOMPLETE, name, f"{path} leads to a file that is not there. Is the download finished?")
        return StoredModel((name,), path, files_of(path), claims)
    except (StemmaError, OSError) as e:
        return Omitted(INCOMPLETE, name, str(e))
