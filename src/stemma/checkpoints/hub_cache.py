"""Hugging Face cache folders: one per repository, with a snapshot of links per revision.

Source: huggingface_hub, Understand caching (manage-cache guide).
"""

from collections.abc import Mapping
from pathlib import Path

from stemma.errors import NotAModelError


def is_cache(folder: Path) -> bool:
    """Whether a folder is the Hugging Face cache of one repository."""
    return (folder / "snapshots").is_dir() and ((folder / "blobs").is_dir() or (folder / "refs").is_dir())


def snapshots(folder: Path) -> Mapping[str, Path]:
    """Revisions in a cache: `''` for `main` or the only one, others by the first eight digits of their commit."""
    found = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    main = folder / "refs" / "main"
    current = ""
    if main.is_file():
        with main.open(errors="replace") as f:
            current = f.read(100).strip()[:64]
    if current not in {p.name for p in found}:
        current = found[0].name if len(found) == 1 else ""
    return {"" if p.name == current else p.name[:8]: p for p in found}


def snapshot(folder: Path) -> Path:
    """The folder of `main` or of the only revision; raises if there is none or the choice is ambiguous."""
    found = snapshots(folder)
    if "" in found:
        return found[""]
    what = f"holds {len(found)} revisions ({', '.join(found)}). Use one of its snapshots" if found else "holds none"
    raise NotAModelError(f"{folder} is a Hugging Face cache folder that {what}")
