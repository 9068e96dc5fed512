"""Squared weight distances within a family, and the rule of norms for the direction between two models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of

SAME_MODEL = 1e-6
"""Squared relative change below which two models are one in another rounding, where nothing else is known."""

REWRITE_ROUNDING = 1e-6
"""Relative change that rewriting in single precision may leave; narrower formats leave their own rounding."""

REPLACED_COSINE, RELATED_COSINE = 0.3, 0.7
"""Cosine below which one of two tensors was replaced, where all others agree at least as well as the second."""


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances between the models of one family.

    Attributes:
        squared: Squared distance of every pair over the tensors that both have, as if both had all of them;
            `float64 [n, n]`.
        norms: `norms[i, j]` is the squared norm of model i over the tensors that it shares with j, scaled likewise;
            `float64 [n, n]`.
        shared: Share of the weights (by the family's mean energy) that both have; `float64 [n, n]`.
        distinct: Which pairs differ by more than the rounding of their numbers in a tensor that neither replaced, where
            that is known; `bool [n, n]`.
    """

    squared: np.ndarray
    norms: np.ndarray
    shared: np.ndarray
    distinct: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of models."""
        return len(self.squared)

    def subset(self, rows: list[int]) -> "Distances":
        """The distances of some of the models, in this order."""
        at = np.ix_(rows, rows)
        return Distances(
            self.squared[at], self.norms[at], self.shared[at], None if self.distinct is None else self.distinct[at]
        )

    @property
    def same(self) -> np.ndarray:
        """Which are one model up to the rounding of their numbers and a replaced part, `bool [n, n]`."""
        return (
            self.squared <= SAME_MODEL * np.maximum(self.norms, self.norms.T)
            if self.distinct is None
            else ~self.distinct
        )


def squared_distances(family: Entries) -> Distances:
    """Distances and norms of a family.

    Tensors of which only some entries were sampled count by their full size. A tensor that one of two models lacks (a
    head of another shape) is left out for that pair, and the sum is scaled up.
    Cost: four products `[n, entries] x [entries, n]`, and some matrices `[n, n]`.

    Args:
        family: The same entries of every model.

    Returns:
        Distances and norms; where two models share no tensor, the distance is that of orthogonal weights.

    Raises:
        MisuseError: If entries are not finite, or there are none.
    """
    values = family.values
    if not values.size:
        raise MisuseError(
            f"{len(values)} models with {values.shape[1]} common entries have no distances: leave out some models"
        )
    if not np.isfinite(values).all():
        raise MisuseError("some weights are NaN or infinite, so that distances are undefined: leave out such models")
    n, counted = len(values), _counted_tensors(family)
    squared, norms, weight = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    rounding = np.array([rounding_of(row[row != 0]) for row in values])
    tolerance, distinct = (
        np.square(np.maximum(np.maximum(rounding[:, None], rounding), REWRITE_ROUNDING)),
        np.zeros((n, n), bool),
    )
    agreeing, total_energy = np.zeros((n, n)), np.zeros((n, n))
    for k in range(len(family.tensors)):
        gram, both = _gram(family, k), counted(k)
        square, alive = np.diag(gram), both.any(axis=1)
        change, present = square[:, None] + square - 2 * gram, np.outer(family.present[:, k], family.present[:, k])
        largest, inherited = np.maximum(square[:, None], square), present & (_cosine(gram) >= REPLACED_COSINE)
        distinct |= inherited & (change > tolerance * largest)
        agreeing, total_energy = agreeing + inherited * largest, total_energy + present * largest
        squared += np.where(both, np.maximum(change, 0.0), 0.0)
        norms += np.where(both, square[:, None], 0.0)
        weight += np.where(both, float(square[alive].mean()) if alive.any() else 0.0, 0.0)
    total_weight = float(weight.max(initial=0.0))
    scale = np.where(weight > 0, total_weight / np.where(weight > 0, weight, 1.0), 0.0)
    squared, norms = squared * scale, norms * scale
    squared[weight <= 0] = 2 * total_weight
    np.fill_diagonal(squared, 0.0)
    return Distances((squared + squared.T) / 2, norms, weight / total_weight if total_weight else weight,
                     distinct | (agreeing <= total_energy / 2))  # fmt: skip


def _counted_tensors(family: Entries) -> Callable[[int], np.ndarray]:
    """Which tensors count for which pairs, `bool [n, n]` by tensor; the same for all pairs where possible."""
    count = range(len(family.tensors))

    def both_have(k: int) -> np.ndarray:
        return np.outer(family.present[:, k], family.present[:, k])

    whole = np.zeros((len(family), len(family)))
    for k in count:
        whole += _gram(family, k) * both_have(k)
    agree = _cosine(whole) >= RELATED_COSINE

    def replaced(k: int) -> np.ndarray:
        return both_have(k) & agree & (_cosine(_gram(family, k)) < REPLACED_COSINE)

    inherited = np.array([not replaced(k).any() for k in count])
    energy = np.array([float(np.trace(_gram(family, k))) for k in count])
    if energy[inherited].sum() >= energy.sum() / 2:
        return lambda k: both_have(k) & inherited[k]
    return lambda k: both_have(k) & ~replaced(k)


def _gram(family: Entries, tensor: int) -> np.ndarray:
    """Inner products of one tensor, scaled as if all of its entries had been sampled."""
    slot = family.tensors[tensor]
    x = family.values[:, slot.columns].astype(np.float64)
    return x @ x.T * (slot.size / max(1, slot.stop - slot.start))


def _cosine(gram: np.ndarray) -> np.ndarray:
    """Cosines from inner products; 1 where a norm is zero."""
    norm = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    return np.divide(gram, norm, out=np.ones_like(gram), where=norm > 0)


MAX_NEIGHBOURS = 64
"""Neighbours beyond which angles are computed from distances."""


@dataclass(frozen=True, eq=False)
class RowAngles:
    """Angles at a model between others, on which most of their rows agree.

    A common ancestor of two models moved every unit; training runs on similar data move only some units in the same
    direction. So the angle is computed row by row, and what counts is the mean of the overall cosine and of the lower
    quartile of the rows' cosines, corrected for the chance variation of rows of that width.
    Cost: one pass over the entries per pair of neighbours.

    Attributes:
        family: The same entries of every model.
    """

    family: Entries

    def __call__(self, centre: int, others: Sequence[int]) -> np.ndarray | None:
        """Cosines at a model between others, `float64 [m, m]`; None where a tensor is missing or m is too large."""
        at = [centre, *others]
        tensors = [k for k in range(len(self.family.tensors)) if self.family.present[at, k].all()]
        if len(others) > MAX_NEIGHBOURS or not tensors:
            return None
        total, rows, widths = np.zeros((len(others), len(others))), [], []
        for k in tensors:
            block = self.family.tensors[k].blocks(self.family.values[at]).astype(np.float64)
            change = (block[1:] - block[0]).swapaxes(0, 1)
            gram = change @ change.swapaxes(1, 2)
            total += gram.sum(axis=0)
            square = np.einsum("rii->ri", gram)
            moved = (square > 0).all(axis=1)
            size = np.sqrt(square[moved][:, :, None] * square[moved][:, None])
            rows.append(gram[moved] / size)
            widths += [change.shape[2]] * int(moved.sum())
        cosines = np.concatenate(rows)
        if not len(cosines):
            return None
        chance = 0.6745 * float(np.mean(1 / np.sqrt(widths)))
        return np.minimum((_cosine(total) + np.quantile(cosines, 0.25, axis=0) + chance) / 2, 1.0)


@dataclass(frozen=True)
class OddsFromNorms:
    """The rule of norms: an increment that is orthogonal to what it is added to makes the sum longer.

    In `c = p + d` with d orthogonal to p the difference of squared norms equals the squared distance; reversed it is
    minus that; between siblings it is near 0. Weight decay weakens the rule and can reverse it.

    Attributes:
        distances: Of the family.
        sharpness: Log-odds per unit of that ratio.
        middle: Ratio of even odds.
    """

    distances: Distances
    sharpness: float = 4.0
    middle: float = 0.5

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """Log-odds that b was made from a, and that a was made from b; both are below zero for siblings."""
        g = self.distances
        first, second, distance = g.norms[a, b], g.norms[b, a], g.squared[a, b]
        if distance <= 0 or max(first, second) <= 0:
            return 0.0, 0.0
        ratio = float(np.clip((second - first) / distance, -1.5, 1.5))
        return self.sharpness * (ratio - self.middle), self.sharpness * (-ratio - self.middle)
