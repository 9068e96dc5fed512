"""Probe files of a folder: their order, and classes from subfolder names."""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from stemma.errors import UnreadableProbesError

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    "audio": (".wav",),
    "tokens": (".txt",),
}
"""File extensions by kind of probe, in order of preference for folders with several kinds."""


@dataclass(frozen=True)
class ProbeFiles:
    """The files of one folder, or one file.

    Attributes:
        kind: `image`, `audio` or `tokens`.
        paths: Sorted by their POSIX names relative to the folder.
        names: These names.
        labels: Class of each file, if every file is in exactly one level of subfolders.
        classes: Names of the classes, for display; empty without labels.

    """

    kind: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: str = ""


def find_files(path: Path, kind: str | None = None) -> ProbeFiles:
    """The probe files in a folder (searched recursively, without hidden files or linked folders), or one file.

    Args:
        path: The file or folder.
        kind: Kind of input that the model takes; without it, images are preferred to sounds, and sounds to texts.

    Returns:
        The files in an order that does not depend on the file system.

    Raises:
        UnreadableProbesError: If there are none.

    """
    if not path.is_dir():
        return ProbeFiles(next(k for k, s in SUFFIXES.items() if path.suffix.lower() in s), (path,), (path.name,))
    every = sorted(_walk(path), key=_sort_key)
    for wanted in [kind] if kind in SUFFIXES else SUFFIXES:
        names = [name for name in every if PurePosixPath(name).suffix.lower() in SUFFIXES[wanted]]
        if names:
            labels, classes = _classes(names)
            return ProbeFiles(wanted, tuple(path / name for name in names), tuple(names), labels, classes)
    what = {"image": "images", "audio": "sounds", "tokens": "texts"}.get(kind or "", "images, sounds or texts")
    endings = SUFFIXES[kind] if kind in SUFFIXES else sum(SUFFIXES.values(), ())
    content = f"only {len(every)} other files, for example {every[0]}" if every else "it is empty"
    raise UnreadableProbesError(f"the folder {path} contains no {what} ({', '.join(endings)}), {content}")


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file; raises if it cannot be read or is larger than `limit`."""
    try:
        if not path.is_file():
            raise UnreadableProbesError(f"{path} is not a readable file")
        if path.stat().st_size > limit:
            raise UnreadableProbesError(f"{path} has {path.stat().st_size} bytes; the limit for probes is {limit}")
        return path.read_bytes()
    except OSError as e:
        raise UnreadableProbesError(f"{path} cannot be read: {e.strerror or e}") from e


def _walk(folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UnreadableProbesError(f"{error.filename} cannot be listed: {error.strerror}") from error

    out = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        out += [(Path(where) / f).relative_to(folder).as_posix() for f in files if not f.startswith(".")]
    return out


def _sort_key(name: str) -> tuple[str, str]:
    # some file systems store accents decomposed: composed names are compared
    return unicodedata.normalize("NFC", name), name


def _classes(names: Sequence[str]) -> tuple[np.ndarray | None, str]:
    if any(name.count("/") != 1 for name in names):
        return None, ""
    folders = [name.split("/")[0] for name in names]
    known = sorted(set(folders), key=_sort_key)
    numbers = all(re.fullmatch(r"0|[1-9][0-9]{0,8}", folder) for folder in known)
    index = {folder: int(folder) if numbers else i for i, folder in enumerate(known)}
    examples = ", ".join(f"{index[f]} = {f}" for f in known[:3]) + (", …" if len(known) > 3 else "")
    classes = f"{len(known)} class{'es' if len(known) > 1 else ''} by folder" + ("" if numbers else f": {examples}")
    return np.array([index[folder] for folder in folders], np.int64), classes
