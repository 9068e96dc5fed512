"""Regression of a child on task vectors: partial shares, confidence intervals and p-values of possible parents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.ancestry.merges.task_vectors import TaskVectors

NO_WHITENING, FULL_WHITENING = 0.0, 0.5
"""Powers of whitening that are compared; 0.5 makes rows and columns of the typical change uncorrelated."""

SMALL_WEIGHT = 0.2
"""Weight below which a candidate counts for less."""

MIN_LARGEST_SHARE = 0.05
"""Lower bound on the largest share: the child of other models has next to no share of any candidate."""

SINGLE_PARENT_SHARE = 0.02
"""Share from which a candidate of weight 1 is taken to be the only parent."""

MAX_SIDE = 512
"""Rows and columns of a matrix that are used at most."""

RIDGE = 1e-2
"""Added to second moments before they are inverted, relative to their mean."""


@dataclass(frozen=True, eq=False)
class PartialShares:
    """Regression of a child on all candidates at once; nothing is selected, so that nothing is held out.

    Attributes:
        weights: `float64 [n]`, least squares on whitened task vectors, of any sign.
        shares: `float64 [n]`, share of squares that each candidate explains of what the others leave of the child;
            zero for negative weights.
        relative_shares: `float64 [n]`, the largest such share between the candidate and another one: typical of
            relatives.
        stability: `float64 [n]`, weight after full whitening over weight without any. It is 1 for a parent, which has
            the same weight in every direction, and lower for a relative, which shares only the directions that the task
            prescribes. 1 where there are no whole matrices to whiten.
        has_matrices: Whether there were whole matrices to whiten.
        explained: Share of the child's squares explained by all.
    """

    weights: np.ndarray
    shares: np.ndarray
    relative_shares: np.ndarray
    stability: np.ndarray
    has_matrices: bool
    explained: float

    def evidence(self, floor: float) -> np.ndarray:
        """How far each candidate's share exceeds that of relatives, as one number per candidate.

        A relative of the parent has a share that follows from the parent's (so it is divided by the root of the largest
        share) and from what relatives share (`relative_shares`), a weight that decreases under whitening (`stability`),
        and a small one. None of these has to pass alone: fine-tuning on a task that a parent knows reduces that
        parent's stability a little, and with a large share it still is a parent. The powers were chosen by the
        detection rate at 1 % false positives, on families that no result is quoted from.

        Args:
            floor: Lower bound on `relative_shares`.

        Returns:
            `float64 [n]`.
        """
        weight = np.clip(self.weights / SMALL_WEIGHT, 0.0, 1.0)
        fading = np.clip(self.stability, 0.0, 1.0)
        largest = max(float(self.shares.max(initial=0.0)), MIN_LARGEST_SHARE)
        relative_level = np.sqrt(largest) * np.maximum(floor, self.relative_shares) ** 0.25
        return self.shares * fading**4 * weight**2 / relative_level

    def has_single_parent(self, tolerance: float) -> bool:
        """Whether some candidate has weight 1 within the tolerance, as in a child of that candidate alone."""
        return bool(((self.shares > SINGLE_PARENT_SHARE) & (np.abs(self.weights - 1) < tolerance)).any())


def partial_shares(vectors: TaskVectors, pool: Sequence[int]) -> PartialShares:
    """Partial shares of the candidates in `pool`, from one inverse Gram matrix of whitened task vectors.

    With K the inverse, weight i is (K X y)_i and its share is w_i^2 / K_ii over itself plus the residual squares. The
    same matrix gives the candidates' partial correlations with one another: what one candidate shares with another
    without being its child, given all others. That is the null for a child of the same family.

    Returns:
        The regression.
    """
    (plain, target), (x, y) = whitened(vectors, pool, (NO_WHITENING, FULL_WHITENING))
    inverse = np.linalg.pinv(x @ x.T, rcond=1e-10, hermitian=True)
    w = inverse @ (x @ y)
    residual = float(np.square(y - w @ x).sum())
    diagonal = np.maximum(np.diag(inverse), 1e-300)
    squares = np.where(w > 0, w * w / diagonal, 0.0)
    shares = np.divide(squares, squares + residual, out=np.zeros(len(w)), where=squares + residual > 0)
    partial = -inverse / np.sqrt(np.outer(diagonal, diagonal))
    np.fill_diagonal(partial, 0.0)
    relative_shares = np.square(np.maximum(partial, 0.0)).max(0, initial=0.0)
    unwhitened = np.linalg.pinv(plain @ plain.T, rcond=1e-10, hermitian=True) @ (plain @ target)
    stability = np.maximum(w, 1e-3) / np.maximum(unwhitened, 1e-3)
    total_squares, out = float(y @ y), [np.zeros(vectors.n) for _ in range(4)]
    for array, values in zip(out, (w, shares, relative_shares, stability), strict=True):
        array[list(pool)] = values
    explained = 1 - residual / total_squares if total_squares > 0 else 0.0
    return PartialShares(out[0], out[1], out[2], out[3], has_matrices=bool(vectors.matrices), explained=explained)


@dataclass(frozen=True, eq=False)
class MatrixMoves:
    """Changes of one matrix, in the eigenvectors of its typical change: rows and columns separately.

    Attributes:
        moves: `float32 [candidates + 1, r, c]`, the child last.
        rows: `float [r]`, second moment of the candidates' changes along each row direction.
        columns: `float [c]`, along each column direction.
    """

    moves: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def whitened(self, power: float) -> np.ndarray:
        """Changes over a power of the moments (0.5: full), candidates of mean square 1, `[n + 1, r, c]`."""
        white = self.moves * _inverse_power(self.rows, power)[:, None] * _inverse_power(self.columns, power)
        return white / np.sqrt(np.square(white[:-1]).mean())


def matrix_moves(vectors: TaskVectors, pool: Sequence[int]) -> list[MatrixMoves]:
    """The whole matrices in which a candidate of the pool changed, in the eigenvectors of its candidates' changes."""
    everyone, found = np.vstack([vectors.of(pool), vectors.child]), []
    for start, stop, rows in vectors.matrices:
        moves = everyone[:, start:stop].reshape(len(everyone), rows, -1)[:, :MAX_SIDE, :MAX_SIDE]
        moves = np.ascontiguousarray(moves, np.float32)
        norms = np.sqrt(np.square(moves[:-1]).sum((1, 2), keepdims=True))
        unit = np.divide(moves[:-1], norms, out=np.zeros_like(moves[:-1]), where=norms > 0)
        if not unit.any():
            continue
        left, rows_of = np.linalg.eigh(np.tensordot(unit, unit, axes=([0, 2], [0, 2])))
        right, columns_of = np.linalg.eigh(np.tensordot(unit, unit, axes=([0, 1], [0, 1])))
        found.append(MatrixMoves(rows_of.T @ moves @ columns_of, left, right))
    return found


def whitened(vectors: TaskVectors, pool: Sequence[int], powers: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Task vectors with rows and columns of each matrix multiplied by inverse powers of their second moments.

    Fine-tunes of one base change most along directions that base and data prescribe. Whitening removes this similarity
    of relatives, while a parent's weight in a merge stays what it is.

    Args:
        vectors: The task vectors.
        pool: Candidates to use, also for the moments.
        powers: Of the second moments, 0 for none.

    Returns:
        For each power candidates `float64 [pool, k']` and child `float64 [k']`; whole matrices where there are any, all
        entries otherwise.

    Source: the two-sided preconditioner of Gupta et al., ICML 2018 (arXiv:1802.09568), for another purpose.
    """
    found, out = matrix_moves(vectors, pool), []
    for power in powers:
        if found:
            parts = [d.whitened(power).reshape(len(pool) + 1, -1) for d in found]
            white = np.concatenate(parts, axis=1).astype(np.float64)
        else:
            white = np.vstack([vectors.of(pool), vectors.child]) / vectors.scale
        out.append((white[:-1], white[-1]))
    return out


def _inverse_power(values: np.ndarray, power: float) -> np.ndarray:
    return (np.maximum(values, 0) + RIDGE * values.mean()) ** -power


def permuted_log10_p(vectors: TaskVectors, parents: Sequence[int], coefficients: Sequence[float]) -> list[float]:
    """One-sided log10 p-values of each parent, with its entries permuted within each tensor as the null.

    The permutations' mean and variance are known exactly; with thousands of entries the distribution is normal.

    Returns:
        One per parent.
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
    """95 % intervals of weights: the larger of the sandwich estimate over entries and the jackknife over tensors."""
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
