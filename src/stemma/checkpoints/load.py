"""Checkpoints to models: the one way in.

`discover` finds checkpoints, `survey` says what it passes over too, `open_models` opens one (a file or a folder),
`load` gives its main model and `from_arrays` makes a model from memory. Nothing in a file is ever executed, and no
weight is read here.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

from stemma.checkpoints import folders
from stemma.checkpoints.arrays import from_arrays
from stemma.checkpoints.folders import Checkpoint, Skipped, discover, nothing_in, survey
from stemma.checkpoints.model import Model
from stemma.errors import NotAModelError

__all__ = ["Checkpoint", "Skipped", "discover", "from_arrays", "load", "nothing_in", "open_models", "survey"]


def open_models(path: Path | str, name: str | None = None) -> tuple[Model, ...]:
    """Open one checkpoint file or checkpoint folder.

    Args:
        path: The file or folder.
        name: What to call the model; a file's stem or a folder's name by default.

    Returns:
        The model; after it `name#ema` where averaged weights lie in the same file; or, for a folder of several
        components (a diffusion pipeline), one model `name/part` per component.

    Raises:
        NotAModelError: If there is no checkpoint at the path, or of a kind that Stemma does not read.
    """
    path = Path(path)
    name = folders.default_name(path) if name is None else name
    if path.is_dir():
        return folders.open_folder(path, name)
    if not path.exists():
        raise NotAModelError(f"there is nothing at {path}. Is the path right?")
    if not path.is_file():
        raise NotAModelError(f"{path} is neither a file nor a folder")
    return folders.open_file(path, name)


def load(path: Path | str, name: str | None = None) -> Model:
    """The main model of one checkpoint file or folder.

    Args:
        path: The file or folder.
        name: What to call the model.

    Returns:
        The first of `open_models`.

    Raises:
        UnreadableModelError: If the file is truncated, inconsistent, hostile or of a kind that is refused.
        NotAModelError: If there is no checkpoint at the path, or a folder holds several: none is more meant.
    """
    found = [str(c.path) for c in islice(discover(Path(path)), 2)] if Path(path).is_dir() else []
    if len(found) > 1:
        raise NotAModelError(f"{path} holds several checkpoints, among them {' and '.join(found)}: give one of them")
    first, *others = open_models(path, name)
    if not others:
        return first
    names = ", ".join(m.name for m in others[:4]) + (", …" if len(others) > 4 else "")
    note = f"{names} beside it was not read: `stemma add` enrols every part under its name"
    return replace(first, notes=(*first.notes, note))
