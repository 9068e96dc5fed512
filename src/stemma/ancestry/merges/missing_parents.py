"""One parent of a merge is there and the others are not: its weight is then the same in every direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from stemma.ancestry.merges.evidence import FULL, directions
from stemma.ancestry.merges.task_vectors import TaskVectors

FEWEST = 6
"""Other candidates from which a null can be made."""

MOST = 12
"""Other candidates that a null is made of at most."""

NARROW = 0.05
"""Least spread of the logarithm of a null's figures: a few candidates may agree by chance."""

SAME = 1e-4
"""Share of a candidate's squares that others leave of it, below which it is a mixture of them."""

EXTREME = 25.0
"""Largest squared deviation of one direction that is counted."""


@dataclass(frozen=True)
class Lone:
    """How one candidate is held by a child whose other parents, if it has any, are not there.

    Attributes:
        weight: Of its task vector in the child, given all other candidates.
        unevenness: Standard deviations by which the weight differs more from direction to direction than that of a
            merge with a missing parent would, the larger of rows and columns.
        size: Norm of what is left over the median norm of the candidates' task vectors.
    """

    weight: float
    unevenness: float
    size: float


def lone(vectors: TaskVectors, parent: int, weight: float) -> Lone | None:
    """Look at what one candidate explains and at what it leaves.

    A merge has the same weight of a parent everywhere. An earlier checkpoint of the parent's run, or a sibling that
    learnt the parent's task, has more of it in the directions that are learnt first. What spread to expect where the
    other parent is missing is seen on merges of the parent with each other candidate in turn, made here, with as much
    left over as the child has. A merge leaves the weighted task vector of the missing parent, which is smaller than a
    fine-tuning; training on leaves a whole one.

    Cost: one whitening of all matrices and one regression for each of `MOST` candidates.

    Args:
        vectors: The task vectors, of a known base.
        parent: Position of the candidate.
        weight: Of its task vector in the child.

    Returns:
        The account; None where there are too few candidates or no whole matrices.
    """
    others = [i for i in range(vectors.n) if i != parent]
    if len(others) < FEWEST or not vectors.known or not vectors.matrices:
        return None
    seen = _against(vectors, parent)
    if seen is None:
        return None
    held = float(seen.parent @ seen.child / (seen.parent @ seen.parent))
    ratio = np.square(seen.child - held * seen.parent).sum() / (seen.parent @ seen.parent)
    null = []
    for j in others[:MOST]:
        kept = [i for i in range(vectors.n) if i != j]
        like = _against(replace(vectors.only(kept), child=vectors.moves[j]), kept.index(parent))
        if like is None:
            continue
        own = like.parent @ like.parent
        missing = like.child - (like.parent @ like.child) / own * like.parent
        if (squares := missing @ missing) > SAME * own:
            merge = held * like.parent + np.sqrt(ratio * own / squares) * missing
            null.append(_spread(like.parent, merge, like.shapes))
    if len(null) < FEWEST - 1:
        return None
    logs, log = np.log(null), np.log(_spread(seen.parent, seen.child, seen.shapes))
    apart = (log - logs.mean(0)) / np.maximum(logs.std(0, ddof=1), NARROW)
    moves = vectors.moves / vectors.scale
    left = vectors.child / vectors.scale - weight * moves[parent]
    size = np.sqrt(float(left @ left) / float(np.median(np.square(moves).sum(1))))
    return Lone(weight, float(apart.max()), float(size))


class _Pair(NamedTuple):
    """A candidate and a child, whitened, without what the other candidates explain; and the shapes of the matrices."""

    parent: np.ndarray
    child: np.ndarray
    shapes: list[tuple[int, ...]]


def _against(vectors: TaskVectors, parent: int) -> _Pair | None:
    matrices = [d.whitened(FULL) for d in directions(vectors, range(vectors.n))]
    if not matrices:
        return None
    white = np.concatenate([m.reshape(len(m), -1) for m in matrices], axis=1).astype(np.float64)
    others = np.delete(white[:-1], parent, axis=0)
    inverse = np.linalg.pinv(others @ others.T, rcond=1e-10, hermitian=True)
    one, child = (row - (inverse @ (others @ row)) @ others for row in (white[parent], white[-1]))
    if one @ one <= SAME * (white[parent] @ white[parent]):
        return None
    return _Pair(one, child, [m.shape[1:] for m in matrices])


def _spread(x: np.ndarray, y: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """How much more the weight of x in y differs between rows, and between columns, than residuals alone would make it.

    Returns:
        Mean squared deviation from the matrix's weight in units of its own variance, 1 for one weight everywhere.
    """
    found, start = [], 0
    for shape in shapes:
        count = int(np.prod(shape))
        a, b = (v[start : start + count].reshape(shape) for v in (x, y))
        start += count
        weight, row = (a * b).sum() / max(float((a * a).sum()), 1e-300), []
        for axis in (1, 0):
            squares = np.maximum((a * a).sum(axis), 1e-300)
            each = (a * b).sum(axis) / squares
            left = np.square(b - np.expand_dims(each, axis) * a).sum(axis) / max(shape[axis] - 1, 1)
            deviation = np.square(each - weight) * squares / np.maximum(left, 1e-300)
            row.append(np.minimum(deviation, EXTREME).mean())
        found.append(row)
    rows, columns = np.mean(found, axis=0)
    return max(float(rows), 1e-300), max(float(columns), 1e-300)
