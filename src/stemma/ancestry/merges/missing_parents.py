"""Detects a merge of which only one parent is among the candidates: its weight is the same in every direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from stemma.ancestry.merges.evidence import FULL_WHITENING, matrix_moves
from stemma.ancestry.merges.task_vectors import TaskVectors

MIN_CANDIDATES = 6
"""Other candidates needed for a null."""

MAX_NULL_CANDIDATES = 12
"""Other candidates that a null is made of at most."""

MIN_NULL_SPREAD = 0.05
"""Lower bound on the standard deviation of the null's logarithms: a few candidates may agree by chance."""

MIXTURE_SHARE = 1e-4
"""Share of a candidate's squares that others leave of it, below which it is a mixture of them."""

MAX_SQUARED_DEVIATION = 25.0
"""Squared deviations of one direction are clipped at this value."""


@dataclass(frozen=True)
class SingleParent:
    """The weight of one candidate in a child, and what it leaves.

    Attributes:
        weight: Of its task vector in the child, given all other candidates.
        unevenness: Standard deviations by which the weight varies more from direction to direction than in merges with
            a missing parent, the larger of rows and columns.
        residual_size: Norm of what is left over the median norm of the candidates' task vectors.
    """

    weight: float
    unevenness: float
    residual_size: float


def single_parent_evidence(vectors: TaskVectors, parent: int, weight: float) -> SingleParent | None:
    """Compare how evenly a child contains one candidate with simulated merges that lack a parent.

    A merge has the same weight of a parent everywhere. An earlier checkpoint of the parent's run, or a sibling that
    learned the parent's task, has more of it in the directions that are learned first. The expected variation is taken
    from merges of the parent with each other candidate, made here, with as much left over as the child has. A merge
    leaves the weighted task vector of the missing parent, which is smaller than a fine-tuning; further training leaves
    a whole one.

    Cost: one whitening of all matrices and one regression for each of `MAX_NULL_CANDIDATES` candidates.

    Args:
        vectors: The task vectors, of a known base.
        parent: Position of the candidate.
        weight: Of its task vector in the child.

    Returns:
        The evidence; None where there are too few candidates or no whole matrices.
    """
    others = [i for i in range(vectors.n) if i != parent]
    if len(others) < MIN_CANDIDATES or not vectors.has_base or not vectors.matrices:
        return None
    observed = _residuals(vectors, parent)
    if observed is None:
        return None
    observed_weight = float(observed.parent @ observed.child / (observed.parent @ observed.parent))
    ratio = np.square(observed.child - observed_weight * observed.parent).sum() / (observed.parent @ observed.parent)
    null = []
    for j in others[:MAX_NULL_CANDIDATES]:
        kept = [i for i in range(vectors.n) if i != j]
        simulated = _residuals(replace(vectors.subset(kept), child=vectors.moves[j]), kept.index(parent))
        if simulated is None:
            continue
        parent_squares = simulated.parent @ simulated.parent
        missing = simulated.child - (simulated.parent @ simulated.child) / parent_squares * simulated.parent
        if (missing_squares := missing @ missing) > MIXTURE_SHARE * parent_squares:
            merge = observed_weight * simulated.parent + np.sqrt(ratio * parent_squares / missing_squares) * missing
            null.append(_spread(simulated.parent, merge, simulated.shapes))
    if len(null) < MIN_CANDIDATES - 1:
        return None
    logs, log = np.log(null), np.log(_spread(observed.parent, observed.child, observed.shapes))
    deviation = (log - logs.mean(0)) / np.maximum(logs.std(0, ddof=1), MIN_NULL_SPREAD)
    moves = vectors.moves / vectors.scale
    residual = vectors.child / vectors.scale - weight * moves[parent]
    residual_size = np.sqrt(float(residual @ residual) / float(np.median(np.square(moves).sum(1))))
    return SingleParent(weight, float(deviation.max()), float(residual_size))


class _Residuals(NamedTuple):
    """A candidate and a child, whitened, without what the other candidates explain; and the shapes of the matrices."""

    parent: np.ndarray
    child: np.ndarray
    shapes: list[tuple[int, ...]]


def _residuals(vectors: TaskVectors, parent: int) -> _Residuals | None:
    matrices = [d.whitened(FULL_WHITENING) for d in matrix_moves(vectors, range(vectors.n))]
    if not matrices:
        return None
    white = np.concatenate([m.reshape(len(m), -1) for m in matrices], axis=1).astype(np.float64)
    others = np.delete(white[:-1], parent, axis=0)
    inverse = np.linalg.pinv(others @ others.T, rcond=1e-10, hermitian=True)
    one, child = (row - (inverse @ (others @ row)) @ others for row in (white[parent], white[-1]))
    if one @ one <= MIXTURE_SHARE * (white[parent] @ white[parent]):
        return None
    return _Residuals(one, child, [m.shape[1:] for m in matrices])


def _spread(x: np.ndarray, y: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """Mean squared deviation of the weight of x in y over rows, and columns, in units of its variance: 1 if even."""
    found, start = [], 0
    for shape in shapes:
        count = int(np.prod(shape))
        a, b = (v[start : start + count].reshape(shape) for v in (x, y))
        start += count
        weight, row = (a * b).sum() / max(float((a * a).sum()), 1e-300), []
        for axis in (1, 0):
            missing_squares = np.maximum((a * a).sum(axis), 1e-300)
            each = (a * b).sum(axis) / missing_squares
            residual = np.square(b - np.expand_dims(each, axis) * a).sum(axis) / max(shape[axis] - 1, 1)
            deviation = np.square(each - weight) * missing_squares / np.maximum(residual, 1e-300)
            row.append(np.minimum(deviation, MAX_SQUARED_DEVIATION).mean())
        found.append(row)
    rows, columns = np.mean(found, axis=0)
    return max(float(rows), 1e-300), max(float(columns), 1e-300)
