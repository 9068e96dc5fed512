"""A model in a store, the identity of its files, and what a store holds that is no model that can be read."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stemma.checkpoints.folders import is_weight_file
from stemma.types.text import plain

INCOMPLETE, OUTSIDE, UNFINISHED = "incomplete-download", "link-outside", "unfinished-file"
MANIFEST, UNSUPPORTED, NO_WEIGHTS = "bad-manifest", "unsupported-file", "no-weights"

_READ_WITH_WEIGHTS = re.compile(
    r"\.index\.json$|^(config|adapter_config|model_index|quantize_config|quant_config|receipt)\.json$"
)
"""Files beside the weights on which it depends what is read."""

LONGEST_NAME = 400
"""Characters of a name that are kept."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What shows, without reading a file, that it was not changed.

    Attributes:
        path: Absolute path, links resolved.
        size: Bytes.
        modified: Time of the last change of the contents, in nanoseconds.
        touched: Time of the last change of the file or of what the system records of it; nobody sets it at will.
        inode: Number of the file in its file system.
    """

    path: str
    size: int
    modified: int
    touched: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """The identity of an existing file."""
        found = path.stat()
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint in a store.

    Attributes:
        names: Its names, the first one first; several where several revisions or tags hold the same files.
        path: The file or folder to open.
        files: The files that are read.
        claims: What the store says of it (licence, base model); no evidence.
    """

    names: tuple[str, ...]
    path: Path
    files: tuple[FileIdentity, ...]
    claims: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Omitted:
    """Something in a store that is not read.

    Attributes:
        what: Short code of the reason.
        name: Name of the model, or of the file.
        why: Reason, in one sentence.
        is_model: Whether it certainly is a model.
    """

    what: str
    name: str
    why: str
    is_model: bool = True


def safe_name(text: str) -> str:
    """A name that a registry takes: printable, of one line and not endless; names that differ stay different."""
    shown = plain(text).strip()
    if len(shown) <= LONGEST_NAME:
        return shown
    return f"{shown[:LONGEST_NAME]}…{hashlib.sha256(shown.encode()).hexdigest()[:8]}"


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, with its links resolved, lies in a folder."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return False


def leaving_links(folder: Path, root: Path) -> frozenset[Path]:
    """The links below a folder that lead out of the store; none of them is followed."""
    found = set()
    for at, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(at, name)
            if path.is_symlink() and not is_inside(path, root):
                found.add(path)
    return frozenset(found)


def files_of(path: Path) -> tuple[FileIdentity, ...]:
    """The files of a checkpoint that are read, sorted; a folder's with those of its parts."""
    if not path.is_dir():
        return (FileIdentity.of(path),)
    return tuple(sorted((FileIdentity.of(p) for p in _read_files(path)), key=lambda f: f.path))


def _read_files(folder: Path) -> Iterator[Path]:
    for at, _, files in os.walk(folder, followlinks=True):
        for name in sorted(files):
            path = Path(at, name)
            if path.is_file() and (_READ_WITH_WEIGHTS.search(name) or is_weight_file(path, all_formats=True)):
                yield path
