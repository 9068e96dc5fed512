"""What held-out entries say about the parents of a merge: shares, intervals, a null, and what is left over."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.ancestry.merges.task_vectors import TaskVectors

NONE, FULL = 0.0, 0.5
"""Powers of whitening that are compared; 0.5 makes rows and columns of the typical move uncorrelated."""

SLIGHT = 0.2
"""Weight below which a candidate counts for less."""

LEAST = 0.05
"""What the largest share is taken for, at least: strangers hold next to nothing of any candidate."""

ONLY = 0.02
"""Share from which a candidate of weight 1 is taken for the only parent."""

WIDEST = 512
"""Rows and columns of a matrix that are used at most."""

RIDGE = 1e-2
"""Added to second moments before they are inverted, relative to their mean."""


@dataclass(frozen=True, eq=False)
class Held:
    """What a child holds of each candidate, given all others.

    Nothing is chosen here, so nothing is held out: all candidates enter the regression at once.

    Attributes:
        weights: `float64 [n]`, least squares on whitened task vectors, of any sign.
        shares: `float64 [n]`, of what the others leave of the child, the share of squares that each candidate explains;
            zero for negative weights.
        family: `float64 [n]`, the largest such share that another candidate holds of it: what relatives hold.
        steady: `float64 [n]`, weight after full whitening over weight without any. It is 1 for a parent,
            whose every direction is in the child with the same weight, and lower for a relative, which shares the
            directions that the task prescribes and not the rest. 1 where there are no whole matrices to whiten.
        whole: Whether there were whole matrices to whiten.
        explained: Share of the child's squares explained by all.
    """

    weights: np.ndarray
    shares: np.ndarray
    family: np.ndarray
    steady: np.ndarray
    whole: bool
    explained: float

    def evidence(self, floor: float) -> np.ndarray:
        """How far each candidate's share is beyond what relatives hold, in one figure.

        A relative of the parent has a share that follows from the parent's (so it is taken over the root of the largest
        share) and from what relatives hold of each other (`family`), a weight that fades (`steady`), and a small one.
        None of these has to pass by itself: training on a task that a parent knows makes that parent's weight fade a
        little, and where its share is large it is a parent all the same. The powers were chosen by the merges that are
        told at one false call in a hundred, on families that no result is quoted from.

        Args:
            floor: Least value of `family`.

        Returns:
            `float64 [n]`.
        """
        weight = np.clip(self.weights / SLIGHT, 0.0, 1.0)
        fading = np.clip(self.steady, 0.0, 1.0)
        largest = max(float(self.shares.max(initial=0.0)), LEAST)
        beyond = np.sqrt(largest) * np.maximum(floor, self.family) ** 0.25
        return self.shares * fading**4 * weight**2 / beyond

    def one_parent(self, within: float) -> bool:
        """Whether some candidate is in the child with weight 1, as in a child of that one candidate.

        Args:
            within: Largest distance of the weight from 1.

        Returns:
            True where one is.
        """
        return bool(((self.shares > ONLY) & (np.abs(self.weights - 1) < within)).any())


def held(vectors: TaskVectors, pool: Sequence[int]) -> Held:
    """Partial shares of candidates, from one inverse Gram matrix of whitened task vectors.

    With K the inverse, weight i is (K X y)_i and its share is w_i^2 / K_ii over itself plus the residual squares. The
    same matrix holds the candidates' partial correlations with one another: how much of candidate i another candidate
    holds, given the rest, without being its child. That is the null for a child of the same family.

    Args:
        vectors: The task vectors.
        pool: Candidates to use; the others get zeros.

    Returns:
        The regression.
    """
    (plain, target), (x, y) = whitened(vectors, pool, (NONE, FULL))
    inverse = np.linalg.pinv(x @ x.T, rcond=1e-10, hermitian=True)
    w = inverse @ (x @ y)
    left = float(np.square(y - w @ x).sum())
    diagonal = np.maximum(np.diag(inverse), 1e-300)
    squares = np.where(w > 0, w * w / diagonal, 0.0)
    shares = np.divide(squares, squares + left, out=np.zeros(len(w)), where=squares + left > 0)
    partial = -inverse / np.sqrt(np.outer(diagonal, diagonal))
    np.fill_diagonal(partial, 0.0)
    family = np.square(np.maximum(partial, 0.0)).max(0, initial=0.0)
    before = np.linalg.pinv(plain @ plain.T, rcond=1e-10, hermitian=True) @ (plain @ target)
    steady = np.maximum(w, 1e-3) / np.maximum(before, 1e-3)
    total, out = float(y @ y), [np.zeros(vectors.n) for _ in range(4)]
    for full, some in zip(out, (w, shares, family, steady), strict=True):
        full[list(pool)] = some
    explained = 1 - left / total if total > 0 else 0.0
    return Held(out[0], out[1], out[2], out[3], whole=bool(vectors.matrices), explained=explained)


@dataclass(frozen=True, eq=False)
class Directions:
    """The moves of one matrix, in the directions that its typical move has: rows and columns, each by itself.

    Attributes:
        moves: `float32 [candidates + 1, r, c]`, the child last.
        rows: `float [r]`, second moment of the candidates' moves along each row direction.
        columns: `float [c]`, along each column direction.
    """

    moves: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def whitened(self, power: float) -> np.ndarray:
        """Moves with every direction divided by a power of its moment, all candidates of mean square 1.

        Args:
            power: 0 for none, 0.5 for moments of one size in all directions.

        Returns:
            `float [candidates + 1, r, c]`.
        """
        white = self.moves * _damping(self.rows, power)[:, None] * _damping(self.columns, power)
        return white / np.sqrt(np.square(white[:-1]).mean())


def directions(vectors: TaskVectors, pool: Sequence[int]) -> list[Directions]:
    """Whole matrices in the directions of their candidates' moves.

    Args:
        vectors: The task vectors.
        pool: Candidates to use; the moments are theirs.

    Returns:
        One per whole matrix in which a candidate moved.
    """
    everyone, found = np.vstack([vectors.of(pool), vectors.child]), []
    for start, stop, rows in vectors.matrices:
        moves = everyone[:, start:stop].reshape(len(everyone), rows, -1)[:, :WIDEST, :WIDEST]
        moves = np.ascontiguousarray(moves, np.float32)
        norms = np.sqrt(np.square(moves[:-1]).sum((1, 2), keepdims=True))
        unit = np.divide(moves[:-1], norms, out=np.zeros_like(moves[:-1]), where=norms > 0)
        if not unit.any():
            continue
        left, rows_of = np.linalg.eigh(np.tensordot(unit, unit, axes=([0, 2], [0, 2])))
        right, columns_of = np.linalg.eigh(np.tensordot(unit, unit, axes=([0, 1], [0, 1])))
        found.append(Directions(rows_of.T @ moves @ columns_of, left, right))
    return found


def whitened(vectors: TaskVectors, pool: Sequence[int], powers: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Task vectors with rows and columns of each matrix multiplied by inverse powers of their second moments.

    Fine-tunes of one base move most along directions that the base and the data prescribe, whatever the run. Turned
    down, these no longer make relatives alike, while a parent's weight in a merge stays what it is.

    Args:
        vectors: The task vectors.
        pool: Candidates to use; the moments are theirs.
        powers: Of the second moments, 0 for none.

    Returns:
        For each power candidates `float64 [pool, k']` and child `float64 [k']`; whole matrices where there are any, all
        entries otherwise.

    Source: the two-sided preconditioner of Gupta et al., ICML 2018 (arXiv:1802.09568), put to another use.
    """
    found, out = directions(vectors, pool), []
    for power in powers:
        if found:
            parts = [d.whitened(power).reshape(len(pool) + 1, -1) for d in found]
            white = np.concatenate(parts, axis=1).astype(np.float64)
        else:
            white = np.vstack([vectors.of(pool), vectors.child]) / vectors.scale
        out.append((white[:-1], white[-1]))
    return out


def _damping(values: np.ndarray, power: float) -> np.ndarray:
    return (np.maximum(values, 0) + RIDGE * values.mean()) ** -power


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
