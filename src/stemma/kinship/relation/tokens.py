"""Which tokens two models share where one knows more of them: the first ones, or any."""

from collections.abc import Mapping, Sequence

import numpy as np

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.assignment import matched
from stemma.kinship.weights.maps.blocks import Reader, directions

SAMPLE, COORDINATES = 256, 256
"""Tokens that show whether they are in place, and numbers of a token that are compared."""

SAME = 0.9
"""Mean cosine of tokens from which they are in place."""

WIDEST = 20_000
"""Tokens up to which they are matched one by one where their rows are not bit for bit the same."""

Shared = Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]]
"""By number of tokens of the parent and of the child: the tokens that both have, on either side."""


def shared_tokens(parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure) -> Shared:
    """Find the common tokens of tensors whose numbers of tokens differ.

    Cost: nothing where the numbers are the same; else the first such pair of each size is read.

    Args:
        parent: The one model.
        child: The other.
        pairings: Which tensor is which.
        known: The structure of the parent.

    Returns:
        Common tokens by sizes; the first ones where nothing else is seen.
    """
    out: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    readers = Reader(parent), Reader(child)
    for p in pairings:
        for k, (i, j) in enumerate(zip(p.axes_a, p.axes_b, strict=True)):
            sizes = parent.weights[p.a].shape[i], child.weights[p.b].shape[j]
            if known.axes[p.a][i].role != "token" or sizes[0] == sizes[1] or sizes in out:
                continue
            out[sizes] = _common(readers, p, k, sizes)
    return out


def _common(
    readers: tuple[Reader, Reader], p: Pairing, k: int, sizes: tuple[int, int]
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
        rows, columns = matched([(u, v)], signed=False, seed=0)
        alike = (u[rows] * v[columns]).sum(axis=1) > SAME / 2
        rows, columns = rows[alike], columns[alike]
    return (rows, columns) if len(rows) >= fewer / 2 else (first, first)


def _rows(reader: Reader, name: str, axes: Sequence[int], k: int, tokens: np.ndarray) -> np.ndarray:
    """Tokens as rows, with some of their numbers."""
    shape = reader.model.weights[name].shape
    picks = {axes[k]: tokens}
    for i in axes:
        if i != axes[k]:
            picks[i] = np.unique(np.linspace(0, shape[i] - 1, min(COORDINATES, shape[i])).round().astype(int))
    x = np.moveaxis(reader.take(name, axes, picks), k, 0)
    return x.reshape(len(x), -1)


def _equal(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are bit for bit the same, each once."""
    place = {row.tobytes(): i for i, row in reversed(list(enumerate(np.ascontiguousarray(x)))) if row.any()}
    found = [(place[row.tobytes()], j) for j, row in enumerate(np.ascontiguousarray(y)) if row.tobytes() in place]
    first = {i: j for i, j in reversed(found)}
    rows = np.array(sorted(first), int)
    return rows, np.array([first[i] for i in rows], int)
