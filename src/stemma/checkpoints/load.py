"""Entry points for reading checkpoints: `discover`, `survey`, `open_models`, `load` and `from_arrays`.

Nothing in a file is ever executed, and no weights are read here.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stemma.checkpoints import budget, folders
from stemma.checkpoints.arrays import from_arrays
from stemma.checkpoints.folders import Checkpoint, Unread, explain_no_checkpoint
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import is_remote, parse
from stemma.checkpoints.remote_models import open_remote
from stemma.errors import NotAModelError

__all__ = ["Checkpoint", "Unread", "discover", "explain_no_checkpoint", "from_arrays", "load", "open_models", "survey"]


def discover(root: Path | str, all_formats: bool = False) -> Iterator[Checkpoint]:
    """As `folders.discover`; the address of a model on a server is one checkpoint.

    Args:
        root: A folder, a single checkpoint file, or an address.
        all_formats: Include NumPy and ONNX files, which are more often data than models.

    Yields:
        The checkpoints.
    """
    yield from (c for c in survey(root, all_formats) if isinstance(c, Checkpoint))


def survey(
    root: Path | str, all_formats: bool = False, leaving: frozenset[Path] = frozenset()
) -> Iterator[Checkpoint | Unread]:
    """As `folders.survey`; the address of a model on a server is one checkpoint, and nothing is asked for yet.

    Args:
        root: A folder, a single checkpoint file, or an address.
        all_formats: As for `discover`.
        leaving: Links that are not followed.

    Yields:
        Checkpoints, and what looks like a model and is not read.
    """
    if isinstance(root, str) and is_remote(root):
        yield Checkpoint(parse(root).label, root)
    else:
        yield from folders.survey(root, all_formats, leaving)


def open_models(path: Path | str, name: str | None = None) -> tuple[Model, ...]:
    """Open one checkpoint file or checkpoint folder.

    Args:
        path: The file or folder, or the address of a model on a server.
        name: Name of the model; by default a file's stem or a folder's name.

    Returns:
        The model; then `name#ema` if the file has averaged weights; or, for a folder of several components (a diffusion
        pipeline), one model `name/part` per component.

    Raises:
        NotAModelError: If there is no checkpoint at the path, or its format is not supported.
        OverBudgetError: If its files are small and would cost far more time or memory than their size allows.
    """
    if isinstance(path, str) and is_remote(path):
        return open_remote(path, name)
    path = Path(path)
    name = folders.default_name(path) if name is None else name
    with budget.reading(path):
        if path.is_dir():
            return folders.open_folder(path, name)
        if not path.exists():
            raise NotAModelError(f"{path} does not exist. Check the path")
        if not path.is_file():
            raise NotAModelError(f"{path} is neither a file nor a folder. Use the path of a checkpoint")
        return folders.open_file(path, name)


def load(path: Path | str, name: str | None = None) -> Model:
    """The main model of one checkpoint file or folder.

    Args:
        path: The file or folder.
        name: Name of the model.

    Returns:
        The first of `open_models`.

    Raises:
        UnreadableModelError: If the file is truncated, inconsistent, hostile or not supported.
        NotAModelError: If there is no checkpoint at the path, or a folder holds several.
    """
    local = not (isinstance(path, str) and is_remote(path)) and Path(path).is_dir()
    found = [str(c.path) for c in islice(discover(Path(path)), 2)] if local else []
    if len(found) > 1:
        raise NotAModelError(
            f"{path} holds several checkpoints (such as {' and '.join(found)}). Use the path of one of them"
        )
    first, *others = open_models(path, name)
    if not others:
        return first
    names = ", ".join(m.name for m in others[:4]) + (", …" if len(others) > 4 else "")
    note = f"{names} in the same checkpoint was not read; `stemma add` adds every part under its own name"
    return replace(first, notes=(*first.notes, note))
