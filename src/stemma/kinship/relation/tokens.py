"""Which tokens two models of different vocabulary size share: the first ones, or any."""

from collections.abc import Mapping, Sequence

import numpy as np

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.assignment import assign_units
from stemma.kinship.weights.maps.blocks import TensorReader, directions

SAMPLE, COORDINATES = 256, 256
"""Tokens that are checked for being in place, and entries of a token that are compared."""

SAME = 0.9
"""Mean cosine of tokens from which they are in place."""

WIDEST = 20_000
"""Largest number of tokens that are matched one by one where their rows are not identical."""

SharedTokens = Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]]
"""By vocabulary sizes of parent and child: the common tokens' rows in either model."""


def shared_tokens(parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure) -> SharedTokens:
    """Common tokens of tensors whose vocabulary sizes differ, by both sizes; the first ones if none match."""
    out: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    readers = TensorReader(parent), TensorReader(child)
    for p in pairings:
        for k, (i, j) in enumerate(zip(p.axes_a, p.axes_b, strict=True)):
            sizes = parent.weights[p.a].shape[i], child.weights[p.b].shape[j]
            if known.axes[p.a][i].role != "token" or sizes[0] == sizes[1] or sizes in out:
                continue
            out[sizes] = _common(readers, p, k, sizes)
    return out


def _common(
    readers: tuple[TensorReader, TensorReader], p: Pairing, k: int, sizes: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    fewer = min(sizes)
    first = np.arange(fewer)
    some = np.unique(np.linspace(0, fewer - 1, min(SAMPLE, fewer)).round().astype(int))
    x, y = (_rows(r, n, axes, k, some) for r, n, axes in zip(readers, (p.a, p.b), (p.axes_a, p.axes_b), strict=True))
    if x.shape[1] != y.shape[1] or float((directions(x) * directions(y)).sum(axis=1).mean()) >= SAME:
        return first, first
    every = (np.arange(sizes[0]), np.arange(sizes[1]))
    x, y = (
        _rows(r, n, axes, k, rows)
        for r, n, axes, rows in zip(readers, (p.a, p.b), (p.axes_a, p.axes_b), every, strict=True)
    )
    rows, columns = _equal(x, y)
    if len(rows) < fewer / 2 and max(sizes) <= WIDEST:
        u, v = directions(x), directions(y)
        rows, columns = assign_units([(u, v)], signed=False, seed=0)
        alike = (u[rows] * v[columns]).sum(axis=1) > SAME / 2
        rows, columns = rows[alike], columns[alike]
    return (rows, columns) if len(rows) >= fewer / 2 else (first, first)


def _rows(reader: TensorReader, name: str, axes: Sequence[int], k: int, tokens: np.ndarray) -> np.ndarray:
    """Some numbers of each token, as rows."""
    shape = reader.model.weights[name].shape
    picks = {axes[k]: tokens}
    for i in axes:
        if i != axes[k]:
            picks[i] = np.unique(np.linspace(0, shape[i] - 1, min(COORDINATES, shape[i])).round().astype(int))
    x = np.moveaxis(reader.take(name, axes, picks), k, 0)
    return x.reshape(len(x), -1)


def _equal(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are identical in both, each once."""
    place = {row.tobytes(): i for i, row in reversed(list(enumerate(np.ascontiguousarray(x)))) if row.any()}
    found = [(place[row.tobytes()], j) for j, row in enumerate(np.ascontiguousarray(y)) if row.tobytes() in place]
    first = {i: j for i, j in reversed(found)}
    rows = np.array(sorted(first), int)
    return rows, np.array([first[i] for i in rows], int)
