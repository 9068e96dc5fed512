"""Tensors that were joined or split: queries, keys and values in one matrix are put side by side with three."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.models.arrays import from_arrays
from stemma.models.model import Model, RowStorage, Tensor

PARTS = 4
"""Most tensors that are looked for in one."""

NEAR = 8
"""Most tensors of one block without a counterpart among which the parts are looked for."""

ALIKE = 0.6
"""Cosine from which a stretch of rows is taken for a tensor of the other model."""


def unfused(parent: Model, child: Model) -> tuple[Model, Mapping[str, tuple[str, ...]]]:
    """The child with its joined tensors split as the parent's are.

    Cost: nothing is read where every matrix has a counterpart of its name.

    Args:
        parent: The model whose tensors are apart.
        child: The model that may hold several of them in one, row after row.

    Returns:
        The child as it is where nothing was joined, else a view of it with the parent's names, and which tensors of
        the parent each joined one holds.
    """
    found: dict[str, tuple[str, ...]] = {}
    gone = {n: t for n, t in matrices(parent).items() if n not in child.weights}
    for name, tensor in matrices(child).items():
        if name not in parent.weights and gone:
            near = _beside(name, gone)
            parts = _parts(tensor, {n: t for n, t in near.items() if t.shape[1:] == tensor.shape[1:]})
            if parts:
                found[name] = parts
                gone = {n: t for n, t in gone.items() if n not in parts}
    if not found:
        return child, {}
    tensors: dict[str, Tensor] = {n: t for n, t in child.weights.items() if n not in found}
    for name, parts in found.items():
        tensors |= _split(child.weights[name], parent, parts)
        joined, ending = _stem(name) + ".bias", ".bias"
        stems = [_stem(p) + ending for p in parts]
        if joined in tensors and all(s in parent.weights for s in stems):
            tensors |= _split(tensors.pop(joined), parent, stems)
    return from_arrays(tensors, child.name, dict(child.config) if child.config else None), found


def _split(tensor: Tensor, parent: Model, parts: Sequence[str]) -> dict[str, Tensor]:
    out, start = {}, 0
    for name in parts:
        rows = parent.weights[name].shape[0]
        shape = (rows, *tensor.shape[1:])
        code = tensor.dtype if tensor.dtype in ("F64", "F32", "F16", "BF16") else "F32"
        out[name] = Tensor(name, code, shape, RowStorage(partial(_rows, tensor, start), shape, code))
        start += rows
    return out


def _rows(tensor: Tensor, offset: int, start: int, stop: int) -> np.ndarray:
    return tensor.rows(offset + start, offset + stop)


def _beside(name: str, gone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share the longest beginning of their names with a joined one: those of the same block, if few."""
    shared = {n: len(_common(n, name)) for n in gone}
    most = max(shared.values(), default=0)
    near = {n: t for n, t in gone.items() if shared[n] == most}
    return near if most and len(near) <= NEAR else {}


def _common(a: str, b: str) -> str:
    pairs = itertools.takewhile(lambda xy: xy[0] == xy[1], zip(a.split("."), b.split("."), strict=False))
    return ".".join(x for x, _ in pairs)


def _parts(tensor: Tensor, candidates: Mapping[str, Tensor]) -> tuple[str, ...]:
    """In which order some of the candidates fill a tensor, row after row; empty where they do not."""
    for count in range(2, min(PARTS, len(candidates)) + 1):
        for order in itertools.permutations(candidates, count):
            if sum(candidates[n].shape[0] for n in order) == tensor.shape[0] and _fits(tensor, candidates, order):
                return order
    return ()


def _fits(tensor: Tensor, candidates: Mapping[str, Tensor], order: Sequence[str]) -> bool:
    start = 0
    for name in order:
        part = candidates[name]
        rows = min(part.shape[0], max(1, (1 << 16) // max(1, part.size // part.shape[0])))
        x = part.rows(0, rows).astype(np.float64).reshape(-1)
        y = tensor.rows(start, start + rows).astype(np.float64).reshape(-1)
        norm = np.linalg.norm(x) * np.linalg.norm(y)
        if not norm or not x @ y >= ALIKE * norm:
            return False
        start += part.shape[0]
    return True


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0] if "." in name else name
