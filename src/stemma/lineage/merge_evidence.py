"""What held-out entries say about the parents of a merge: shares, intervals, a null, and what is left over."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.lineage.task_vectors import TaskVectors

ROUGH = 200_000
"""Entries that regressions with held-out entries use at most."""


@dataclass(frozen=True, eq=False)
class Held:
    """A regression of the child on all candidates, judged on entries that chose nothing.

    Attributes:
        weights: `float64 [n]`, least squares, of any sign.
        shares: `float64 [n]`, of what the others leave of the child, the share of squares that each candidate explains;
            zero for negative weights.
        family: `float64 [n]`, the largest such share that another candidate holds of it: what is common in the family.
        explained: Share of the child's squares explained by all.
    """

    weights: np.ndarray
    shares: np.ndarray
    family: np.ndarray
    explained: float


def halves(vectors: TaskVectors, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint random sets of the entries that some candidate moved.

    Args:
        vectors: The task vectors.
        seed: Of the split.

    Returns:
        Positions of entries, to choose on and to test on.
    """
    told = np.flatnonzero(np.abs(vectors.moves).max(0, initial=0.0) > 0)
    order = np.random.default_rng(seed).permutation(told)[: 2 * ROUGH]
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def held(vectors: TaskVectors, rows: np.ndarray, pool: Sequence[int]) -> Held:
    """Partial shares of candidates, from one inverse Gram matrix.

    With K the inverse, weight i is (K X y)_i and its share is w_i^2 / K_ii over itself plus the residual squares. The
    same matrix holds the candidates' partial correlations with one another: how much of candidate i another candidate
    holds, given the rest, without being its child. That is the null for a child of the same family.

    Args:
        vectors: The task vectors.
        rows: Entries to use.
        pool: Candidates to use; the others get zeros.

    Returns:
        The regression.
    """
    x, y = vectors.of(pool)[:, rows] / vectors.scale[rows], vectors.child[rows] / vectors.scale[rows]
    gram = x @ x.T
    inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    w = inverse @ (x @ y)
    left = float(np.square(y - w @ x).sum())
    diagonal = np.maximum(np.diag(inverse), 1e-300)
    squares = np.where(w > 0, w * w / diagonal, 0.0)
    shares = np.divide(squares, squares + left, out=np.zeros(len(w)), where=squares + left > 0)
    partial = -inverse / np.sqrt(np.outer(diagonal, diagonal))
    np.fill_diagonal(partial, 0.0)
    family = np.square(np.maximum(partial, 0.0)).max(0, initial=0.0)
    total = float(y @ y)
    out = [np.zeros(vectors.n) for _ in range(3)]
    for full, some in zip(out, (w, shares, family), strict=True):
        full[list(pool)] = some
    return Held(*out, explained=1 - left / total if total > 0 else 0.0)


def permuted_log10_p(vectors: TaskVectors, parents: Sequence[int], coefficients: Sequence[float]) -> list[float]:
    """How unlikely each parent's product with what the others leave is, its entries permuted within each tensor.

    The permutations' mean and variance are known exactly; with thousands of entries the law is normal.

    Args:
        vectors: The task vectors.
        parents: Positions of the candidates.
        coefficients: Their weights.

    Returns:
        Decimal logarithms of one-sided p-values.
    """
    from scipy.stats import norm

    x, w = vectors.of(parents) / vectors.scale, np.asarray(coefficients)
    y, count = vectors.child / vectors.scale, np.maximum(np.bincount(vectors.tensor), 1)
    out = []
    for i in range(len(w)):
        rest = y - np.delete(w, i) @ np.delete(x, i, axis=0)
        sums = [np.bincount(vectors.tensor, v) for v in (rest, x[i], rest * rest, x[i] * x[i], rest * x[i])]
        mean = sums[0] * sums[1] / count
        variance = (sums[2] - sums[0] ** 2 / count) * (sums[3] - sums[1] ** 2 / count) / np.maximum(count - 1, 1)
        spread = float(np.sqrt(max(variance.sum(), 1e-300)))
        z = float((sums[4] - mean).sum()) / spread
        out.append(float(norm.logsf(z) / np.log(10)))
    return out


def intervals(vectors: TaskVectors, parents: Sequence[int], coefficients: Sequence[float]) -> list[tuple[float, float]]:
    """95 % intervals of weights: the larger of the sandwich over entries and the jackknife over tensors.

    Args:
        vectors: The task vectors.
        parents: Positions of the candidates.
        coefficients: Their weights.

    Returns:
        Low and high ends.
    """
    x, w = vectors.of(parents) / vectors.scale, np.asarray(coefficients)
    y = vectors.child / vectors.scale
    gram = x @ x.T
    inverse = np.linalg.pinv(gram, hermitian=True)
    ordinary = inverse @ (x @ y)
    left = y - ordinary @ x
    variance = np.diag(inverse @ ((x * left**2) @ x.T) @ inverse)
    tensors = np.unique(vectors.tensor)
    if len(tensors) > 2:
        without = []
        for tensor in tensors:
            here = vectors.tensor == tensor
            part = x[:, here]
            without.append(np.linalg.pinv(gram - part @ part.T, hermitian=True) @ (x @ y - part @ y[here]))
        spread = np.array(without) - np.mean(without, axis=0)
        variance = np.maximum(variance, (len(tensors) - 1) / len(tensors) * np.square(spread).sum(0))
    half = 1.96 * np.sqrt(np.maximum(variance, 0.0))
    return [(float(c - h), float(c + h)) for c, h in zip(w, half, strict=True)]
