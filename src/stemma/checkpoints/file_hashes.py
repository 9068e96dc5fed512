"""Digests of a checkpoint's files as they lie on disk: what anybody can check with `sha256sum`."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stemma.errors import UnreadableModelError

MAX_FILES = 10_000
"""Files of a checkpoint folder that are hashed at most."""

SIGNATURES = (".sig", ".dsse.json")
"""Endings of files that sign others: they are no part of what is signed."""

SKIPPED = frozenset({".git", ".gitattributes", ".github", ".gitignore", ".cache"})
"""What tools that move models leave in their folders; no reader opens it."""


@dataclass(frozen=True, slots=True)
class FileHash:
    """One file.

    Attributes:
        name: Path relative to the checkpoint, with slashes; the name of a single file. What is not UTF-8 in it is
            written as an escape.
        sha256: Digest of its bytes, hexadecimal.
        size: Its bytes.
    """

    name: str
    sha256: str
    size: int


def hash_files(source: str | Path, progress: Callable[[str], None] = lambda name: None) -> tuple[FileHash, ...]:
    """The digests of all files of a checkpoint, sorted by name.

    Args:
        source: The file, or the folder with everything below it; signatures and what tools leave there are left out.
        progress: Told the name of each file before it is read.

    Returns:
        Empty where there is no such file or folder.

    Raises:
        UnreadableModelError: If a file changes while it is read, or there are too many.
    """
    root = Path(source)
    if root.is_file():
        return (_hashed(root, _text(root.name)),)
    found: list[FileHash] = []
    for path, name in files_of(root) if root.is_dir() else ():
        progress(name)
        found.append(_hashed(path, name))
    return tuple(sorted(found, key=lambda f: f.name))


def files_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files below a folder that a signature is about; links to files are followed, as in Hugging Face's cache.

    Args:
        folder: The folder.

    Yields:
        Path and relative name of each file, in no particular order.

    Raises:
        UnreadableModelError: If there are too many, or there is a link to a folder: nobody could say what is in it.
    """
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED)
        if link := next((f for f in folders if Path(parent, f).is_symlink()), None):
            raise UnreadableModelError(f"{Path(parent, link)} is a link to a folder: put the files themselves there")
        for name in sorted(names):
            path = Path(parent, name)
            if name in SKIPPED or name.endswith(SIGNATURES) or not path.is_file():
                continue
            count += 1
            if count > MAX_FILES:
                raise UnreadableModelError(f"{folder} holds more than {MAX_FILES:,} files: give a checkpoint folder")
            yield path, _text(path.relative_to(folder).as_posix())


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _hashed(path: Path, name: str) -> FileHash:
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableModelError(f"{path} changed while it was read: try again when nothing writes to it")
    return FileHash(name, digest, after.st_size)
