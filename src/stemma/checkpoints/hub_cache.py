"""The cache folders of the Hugging Face hub: one folder per repository, a snapshot of links per revision.

Source: huggingface_hub, Understand caching (manage-cache guide).
"""

from collections.abc import Mapping
from pathlib import Path

from stemma.errors import NotAModelError


def is_cache(folder: Path) -> bool:
    """Whether a folder is the cache of one repository.

    Args:
        folder: The folder.

    Returns:
        True if snapshots lie beside blobs or references.
    """
    return (folder / "snapshots").is_dir() and ((folder / "blobs").is_dir() or (folder / "refs").is_dir())


def snapshots(folder: Path) -> Mapping[str, Path]:
    """The revisions in a cache.

    Args:
        folder: The cache of one repository.

    Returns:
        Folders by label: `""` for the revision that `main` points to, or the only one; the others by the first eight
        digits of their commit.
    """
    found = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    main = folder / "refs" / "main"
    current = main.read_text(errors="replace").strip()[:64] if main.is_file() else ""
    if current not in {p.name for p in found}:
        current = found[0].name if len(found) == 1 else ""
    return {"" if p.name == current else p.name[:8]: p for p in found}


def snapshot(folder: Path) -> Path:
    """The revision that is meant by a cache folder.

    Args:
        folder: The cache of one repository.

    Returns:
        The folder of `main`, or of the only revision.

    Raises:
        NotAModelError: If there is none, or none more meant than another.
    """
    found = snapshots(folder)
    if "" in found:
        return found[""]
    what = f"holds {len(found)} revisions ({', '.join(found)}): give one of its snapshots" if found else "holds none"
    raise NotAModelError(f"{folder} is a cache of the hub that {what}")
