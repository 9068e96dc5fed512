"""PaddlePaddle: the pickled state_dict of `paddle.save`, read by an interpreter that runs nothing."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints.formats import pickle_records, pickled_tensors, pickles
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.tensor import AbstractStorage
from stemma.errors import UnreadableModelError

MAX_FILE = 8 << 30
"""Largest file in bytes: its arrays are in the pickle, so all are in memory while the model is."""


class Paddle(AbstractFormat):
    """A `.pdparams` file; linear kernels are `[in, out]` there, as they are stored."""

    name: ClassVar[str] = "PaddlePaddle"
    suffixes: ClassVar[tuple[str, ...]] = (".pdparams",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return False

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        if path.stat().st_size > MAX_FILE:
            raise UnreadableModelError(
                f"{path} has {path.stat().st_size} bytes, which is too large for one pickle. Save it in shards"
            )
        foreign: set[str] = set()
        with path.open("rb") as f:
            tree = pickles.read(f, path, partial(_storage, path), foreign)
        if isinstance(tree, dict):
            tree = {name: _array(value) for name, value in tree.items()}
        return pickled_tensors.contents(path, tree, partial(_opened, path), swapped=False, foreign=foreign)


def _array(value: Any) -> Any:
    # paddle writes a tensor as a pair of internal name and array
    paired = isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str)
    return value[1] if paired and isinstance(value[1], pickle_records.NumpyArray) else value


def _storage(path: Path, _identifier: Any) -> Any:
    raise UnreadableModelError(f"{path} is not a PaddlePaddle file: it refers to a storage outside its pickle")


def _opened(path: Path, _stored: pickle_records.StorageRef) -> tuple[AbstractStorage, int]:
    raise UnreadableModelError(f"{path} is not a PaddlePaddle file: it refers to a storage outside its pickle")
