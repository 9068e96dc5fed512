"""Notes and warnings about unread weight files in a folder."""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np

from stemma.checkpoints.assemble import read_file
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import strip_prefix
from stemma.errors import StemmaError

SAMPLED_ENTRIES = 256
"""Entries compared per tensor."""
SAMPLED_TENSORS = 16
"""Tensors compared at most."""
STANDARD_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
"""Standard names: two of them in one folder should hold the same weights."""

_LOG = logging.getLogger("stemma")


WARNED: set[str] = set()
"""Warnings already logged in this process."""


@lru_cache(maxsize=4096)
def warn(text: str) -> None:
    """Log a warning about a checkpoint, once per process."""
    WARNED.add(text)
    _LOG.warning("warning: %s", text)


def notes_on_others(chosen: Path, others: list[Path]) -> tuple[str, ...]:
    """Notes on the weight files of a folder that were not read because another one was."""
    notes = []
    for other in others:
        if chosen.name in STANDARD_NAMES and other.name in STANDARD_NAMES and weights_differ(chosen, other):
            text = f"{other} and {chosen.name} in the same folder hold different weights; {chosen.name} was read"
            warn(text)
            notes.append(text)
        elif other.suffix == chosen.suffix:
            notes.append(f"{other.name} in the same folder was not read; to read it, name that file")
    return tuple(notes)


def weights_differ(a: Path, b: Path) -> bool:
    """Whether two files of one network hold different weights, judged by the first entries of some tensors."""
    try:
        one, two = _tensors(a), _tensors(b)
        shared = sorted(n for n in one.keys() & two.keys() if one[n].is_float and two[n].is_float)
        if not shared:
            return bool(one and two)
        if any(one[n].shape != two[n].shape for n in shared):
            return True
        large = sorted(shared, key=lambda n: -one[n].size)[:SAMPLED_TENSORS]
        return any(not _close(one[n], two[n]) for n in large)
    except StemmaError:
        return False


def _tensors(path: Path) -> dict[str, Tensor]:
    found = read_file(path).parts.get("", ())
    names = strip_prefix([t.name for t in found])
    return {names[t.name]: t for t in found}


def _close(a: Tensor, b: Tensor) -> bool:
    n = min(SAMPLED_ENTRIES, a.size)
    x, y = (Tensor(t.name, t.dtype, (t.size,), t.storage).rows(0, n).astype(np.float64) for t in (a, b))
    return bool(np.allclose(x, y, rtol=1e-2, atol=1e-3 * float(np.abs(x).max(initial=0)), equal_nan=True))
