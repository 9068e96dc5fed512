"""Files from strangers name other files, such as the base of an adapter: which of these may be opened."""

from pathlib import Path

_confined: list[Path] = []


def confine(folder: Path) -> None:
    """From now on in this process, files below a folder lead to no file outside it; other files are not affected.

    Args:
        folder: Folder with what a stranger sent.
    """
    _confined.append(folder.resolve())


def may_lead(start: Path, end: Path) -> bool:
    """Whether a file may be opened because another one names it.

    Args:
        start: The file or folder that names it.
        end: The file or folder that is named.

    Returns:
        False if only the first lies in a folder that is confined.
    """
    return all(end.resolve().is_relative_to(c) or not start.resolve().is_relative_to(c) for c in _confined)
