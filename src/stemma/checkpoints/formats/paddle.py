"""PaddlePaddle: the pickled state_dict of `paddle.save`, its arrays read by the interpreter that runs nothing."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints.formats import pickled_tensors, pickles, stand_ins
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.tensor import AbstractStorage
from stemma.errors import UnreadableModelError

MAX_FILE = 8 << 30
"""Bytes of a file: a pickle holds its arrays inside, so all of them are in memory while the model is."""


class Paddle(AbstractFormat):
    """A `.pdparams` file; linear kernels are `[in, out]` there, as they are stored."""

    name: ClassVar[str] = "PaddlePaddle"
    suffixes: ClassVar[tuple[str, ...]] = (".pdparams",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`.

        Returns:
            False: a pickle like many others, known by its ending.
        """
        return False

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`.

        Returns:
            The contents.

        Raises:
            UnreadableModelError: If the file is damaged, too large, or would run code.
        """
        if path.stat().st_size > MAX_FILE:
            raise UnreadableModelError(f"{path} has {path.stat().st_size} bytes, too many for one pickle. Save shards")
        foreign: set[str] = set()
        with path.open("rb") as f:
            tree = pickles.read(f, path, partial(_storage, path), foreign)
        if isinstance(tree, dict):
            tree = {name: _array(value) for name, value in tree.items()}
        return pickled_tensors.contents(path, tree, partial(_opened, path), swapped=False, foreign=foreign)


def _array(value: Any) -> Any:
    # paddle writes a tensor as the pair of its inner name and its array
    paired = isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str)
    return value[1] if paired and isinstance(value[1], stand_ins.Array) else value


def _storage(path: Path, _identifier: Any) -> Any:
    raise UnreadableModelError(f"{path} refers to a storage outside its pickle, as no PaddlePaddle file does")


def _opened(path: Path, _stored: stand_ins.Stored) -> tuple[AbstractStorage, int]:
    raise UnreadableModelError(f"{path} refers to a storage outside its pickle, as no PaddlePaddle file does")
