"""Writes pages where the options say."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.types import Comparison


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


def compared(
    models: "tuple[Model, Model]",
    probes: "Probes",
    comparison: "Comparison",
    progress: Callable[..., None] | None,
) -> bytes:
    """The page about a pair whose comparison is known: where the two differ, by the method of the verdict.

    Returns:
        HTML.
    """
    from dataclasses import replace

    from stemma.export.difference import Difference, difference_page
    from stemma.kinship.function.combined import METHODS

    details = {} if comparison.function is None else comparison.function.details
    used = {(entry["fingerprint"], entry["measure"]) for entry in details.get("measures", ())}
    fitting = ((f, m) for f, m in METHODS if (f.name, m.name) in used and m.probewise)
    told = Difference.of(*models, probes, *next(fitting, METHODS[0]))
    return difference_page(replace(told, comparison=comparison), progress)
