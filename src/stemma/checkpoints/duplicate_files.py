"""Other weight files beside the one that is read: said, and looked into where they should hold the same weights."""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np

from stemma.checkpoints.assemble import read_file
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import strip_prefix
from stemma.errors import StemmaError

LOOKED_AT = 256
"""Entries of a tensor that are compared …"""
TENSORS = 16
"""… of so many tensors at most."""
SAME = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Customary names: two of them in a folder are the same weights in two formats."""

_LOG = logging.getLogger("stemma")


TOLD: set[str] = set()
"""What was told in this process."""


@lru_cache(maxsize=4096)
def warn(text: str) -> None:
    """Tell a person something about a checkpoint, once.

    Args:
        text: One sentence.
    """
    TOLD.add(text)
    _LOG.warning("warning: %s", text)


def beside(chosen: Path, others: list[Path]) -> tuple[str, ...]:
    """What is said of the weight files that are not read because another one is.

    Args:
        chosen: The file that is read.
        others: Weight files of the same folder.

    Returns:
        Notes; what may mislead is told as a warning too.
    """
    notes = []
    for other in others:
        if chosen.name in SAME and other.name in SAME and differ(chosen, other):
            text = f"{other} holds other weights than {chosen.name} beside it, which is the one that is read"
            warn(text)
            notes.append(text)
        elif other.suffix == chosen.suffix:
            notes.append(f"{other.name} beside it was not read: give the file to read it")
    return tuple(notes)


def differ(a: Path, b: Path) -> bool:
    """Whether two files of one network hold other weights, by the first entries of some tensors.

    Cost: both headers, and a few kilobytes.

    Args:
        a: A file.
        b: Another one.

    Returns:
        True if so; False where they agree in what was looked at, or one cannot be read.
    """
    try:
        one, two = _tensors(a), _tensors(b)
        shared = sorted(n for n in one.keys() & two.keys() if one[n].is_float and two[n].is_float)
        if not shared:
            return bool(one and two)
        if any(one[n].shape != two[n].shape for n in shared):
            return True
        large = sorted(shared, key=lambda n: -one[n].size)[:TENSORS]
        return any(not _alike(one[n], two[n]) for n in large)
    except StemmaError:
        return False


def _tensors(path: Path) -> dict[str, Tensor]:
    found = read_file(path).parts.get("", ())
    names = strip_prefix([t.name for t in found])
    return {names[t.name]: t for t in found}


def _alike(a: Tensor, b: Tensor) -> bool:
    n = min(LOOKED_AT, a.size)
    x, y = (Tensor(t.name, t.dtype, (t.size,), t.storage).rows(0, n).astype(np.float64) for t in (a, b))
    return bool(np.allclose(x, y, rtol=1e-2, atol=1e-3 * float(np.abs(x).max(initial=0)), equal_nan=True))
