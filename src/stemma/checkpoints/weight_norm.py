"""Weight normalisation: fold a direction and a norm per unit into one matrix.

Source: Salimans and Kingma, NeurIPS 2016 (arXiv:1602.07868); torch names the two `weight_g` and `weight_v`, or
`parametrizations.weight.original0` and `.original1`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from stemma.checkpoints.tensor import ArrayStorage, RowStorage, Tensor

_LENGTHS = (
    (re.compile(r"^(?P<stem>.*)_g$"), "{stem}_v", "{stem}"),
    (re.compile(r"^(?P<stem>.*?)parametrizations\.(?P<word>\w+)\.original0$"),
     "{stem}parametrizations.{word}.original1", "{stem}{word}"),
)  # fmt: skip
"""Name patterns of the norm, the direction, and the folded matrix."""

_ENDINGS = ("_g", ".original0", "_g\n", ".original0\n")
"""How the names of norms end; `$` matches before a last line break too."""


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors by name with weight-normalised pairs (length, direction) multiplied into matrices."""
    out: dict[str, Tensor] = {}
    merged: set[str] = set()
    for name, length in tensors.items():
        if not name.endswith(_ENDINGS):
            continue
        for pattern, other, whole in _LENGTHS:
            match = pattern.match(name)
            words = match.groupdict() if match else {}
            direction = tensors.get(other.format(**words)) if words else None
            called = whole.format(**words) if words else ""
            if direction is None or called in tensors or not _fits(length, direction):
                continue
            out[called] = _product(called, length, direction)
            merged |= {name, direction.name}
    return {n: out.get(n) or tensors[n] for n in sorted((tensors.keys() - merged) | out.keys())} if out else tensors


def _fits(length: Tensor, direction: Tensor) -> bool:
    """Whether there is one length for the tensor, or one for each entry of one axis."""
    if not (length.is_float and direction.is_float) or len(direction.shape) < 2:
        return False
    one = [(g, v) for g, v in zip(length.shape, direction.shape, strict=False) if g > 1]
    whole = length.size == 1
    return whole or (len(length.shape) == len(direction.shape) and len(one) == 1 and one[0][0] == one[0][1])


def _product(name: str, length: Tensor, direction: Tensor) -> Tensor:
    shape = tuple(direction.shape)
    if length.size > 1 and length.shape[0] > 1:  # a norm per row: rows are computed lazily

        def rows(start: int, stop: int) -> np.ndarray:
            v = np.asarray(direction.rows(start, stop), np.float32)
            return v * _divide(length.rows(start, stop), np.sqrt(_squares(v, tuple(range(1, v.ndim)))))

        return Tensor(name, "F32", shape, RowStorage(rows, shape))

    @lru_cache(maxsize=1)
    def everything() -> np.ndarray:
        v, g = np.asarray(direction.array(), np.float32), np.asarray(length.array(), np.float32)
        axes = tuple(i for i in range(v.ndim) if g.size == 1 or g.shape[i] == 1)
        return v * _divide(g.reshape(g.shape if g.size > 1 else (1,) * v.ndim), np.sqrt(_squares(v, axes)))

    return Tensor(name, "F32", shape, ArrayStorage(everything))


def _squares(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.square(v, dtype=np.float64).sum(axis=axes, keepdims=True)


def _divide(length: np.ndarray, norm: np.ndarray) -> np.ndarray:
    return np.divide(length, norm, out=np.zeros(norm.shape), where=norm > 0).astype(np.float32)
