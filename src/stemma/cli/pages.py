"""Writes pages where the options say."""

from pathlib import Path

from stemma.errors import MisuseError


def writable(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
        option: What it was given with.
        path: The file, if one was given.

    Raises:
        MisuseError: If its folder is not there, or it is a folder itself.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise MisuseError(f"{option} {path}: there is no folder {path.parent} to write it into. Make it first")
    if path.is_dir():
        raise MisuseError(f"{option} {path} is a folder: name a file in it")


def written(path: Path | None, page: bytes | None) -> None:
    """Write a page, if there is one and a place for it."""
    if path is not None and page is not None:
        path.write_bytes(page)
