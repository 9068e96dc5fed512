"""The files of an exported model, where they hold the weights that the findings are about."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stemma.application.document import Progress
from stemma.errors import StemmaError
from stemma.types import Digest

if TYPE_CHECKING:
    from stemma.checkpoints.file_hashes import FileHash


def files_with_weights(
    source: str, digest: Digest | str, out: str | None, progress: Progress | None
) -> "tuple[tuple[FileHash, ...], str]":
    """The digests of a model's files, if they hold the weights that were examined.

    A registry may know the weights of files that have been exchanged since then. Findings about the one are none about
    the other.

    Args:
        source: The file or folder.
        digest: Of the weights that were examined.
        out: File that is about to be written, which is left out; None for none.
        progress: Told which file is read.

    Returns:
        The files, and why there are none, in a sentence; empty where there are some, or nothing lies there.
    """
    from stemma.checkpoints.file_hashes import hash_files

    def tell(name: str) -> None:
        if progress is not None:
            progress(f"hashing {name}", 0, None)

    own = Path(out or "").resolve()
    inside = own.relative_to(source).as_posix() if own.is_relative_to(source) else ""
    before = _states(source)
    files = tuple(f for f in hash_files(source, tell) if f.name != inside)
    if not files:
        return (), ""
    if digest in _digests(source) and _states(source) == before:
        return files, ""
    return (), f"the files at {source} do not hold the weights that were examined, and are left out"


def _states(source: str) -> list[tuple[str, int, int, int]]:
    """What changes when somebody writes to a file, for each file; the last one cannot be set back."""
    root = Path(source)
    paths = [root] if root.is_file() else sorted(Path(at, n) for at, _, names in os.walk(root) for n in names)
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found]


def _digests(source: str) -> set[str]:
    from stemma.networks.load import open_models

    try:
        return {str(model.digest) for model in open_models(source)}
    except (StemmaError, OSError):
        return set()
