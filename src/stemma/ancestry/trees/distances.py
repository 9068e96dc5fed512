"""Squared distances of weights within a family, and how far each model lies from the origin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of

SAME = 1e-6
"""Squared relative change below which two models are one in another rounding, where nothing else is known."""

ARITHMETIC = 1e-6
"""Relative change that a rewrite in single precision may leave; fewer bits leave their own rounding."""

REPLACED, RELATED = 0.3, 0.7
"""Cosine below which one of two tensors was replaced, where the rest of the models agrees at least so well."""


@dataclass(frozen=True, eq=False)
class Distances:
    """Where the models of one family lie to one another.

    Attributes:
        squared: Squared distance of every pair over the tensors that both have, as if both had all of them;
            `float64 [n, n]`.
        norms: `norms[i, j]` is the squared norm of model i over the tensors that it shares with j, scaled likewise;
            `float64 [n, n]`.
        shared: Share of the weights (by the family's mean energy) that both have; `float64 [n, n]`.
        apart: Which pairs differ by more than the rounding of their numbers in a tensor that neither replaced, where
            that is known; `bool [n, n]`.
    """

    squared: np.ndarray
    norms: np.ndarray
    shared: np.ndarray
    apart: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of models."""
        return len(self.squared)

    def of(self, rows: list[int]) -> "Distances":
        """The same for some of the models.

        Returns:
            Those of these models, in this order.
        """
        at = np.ix_(rows, rows)
        return Distances(
            self.squared[at], self.norms[at], self.shared[at], None if self.apart is None else self.apart[at]
        )

    @property
    def same(self) -> np.ndarray:
        """Which are one model up to the rounding of their numbers and a part that was replaced.

        Returns:
            `bool [n, n]`.
        """
        return self.squared <= SAME * np.maximum(self.norms, self.norms.T) if self.apart is None else ~self.apart


def squared_distances(family: Entries) -> Distances:
    """Measure a family.

    Tensors of which only some entries were drawn count by their full size. A tensor that one of two models lacks (a
    head of another shape) is left out for that pair, and the rest is scaled up.
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
        raise MisuseError(f"{len(values)} models of {values.shape[1]} common entries have no distances")
    if not np.isfinite(values).all():
        raise MisuseError("weights that are NaN or infinite have no distance; leave such models out")
    n, kept = len(values), _kept(family)
    squared, own, weight = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    rounding = np.array([rounding_of(row[row != 0]) for row in values])
    least, apart = np.square(np.maximum(np.maximum(rounding[:, None], rounding), ARITHMETIC)), np.zeros((n, n), bool)
    alike, whole = np.zeros((n, n)), np.zeros((n, n))
    for k in range(len(family.tensors)):
        gram, both = _gram(family, k), kept(k)
        square, alive = np.diag(gram), both.any(axis=1)
        change, there = square[:, None] + square - 2 * gram, np.outer(family.present[:, k], family.present[:, k])
        largest, inherited = np.maximum(square[:, None], square), there & (_cosine(gram) >= REPLACED)
        apart |= inherited & (change > least * largest)
        alike, whole = alike + inherited * largest, whole + there * largest
        squared += np.where(both, np.maximum(change, 0.0), 0.0)
        own += np.where(both, square[:, None], 0.0)
        weight += np.where(both, float(square[alive].mean()) if alive.any() else 0.0, 0.0)
    total = float(weight.max(initial=0.0))
    scale = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), 0.0)
    squared, own = squared * scale, own * scale
    squared[weight <= 0] = 2 * total
    np.fill_diagonal(squared, 0.0)
    return Distances((squared + squared.T) / 2, own, weight / total if total else weight,
                     apart | (alike <= whole / 2))  # fmt: skip


def _kept(family: Entries) -> Callable[[int], np.ndarray]:
    """Which tensors count, for every pair: distances that leave out something else for every pair do not add up.

    Returns:
        For a tensor, booleans `[n, n]`.
    """
    count = range(len(family.tensors))

    def there(k: int) -> np.ndarray:
        return np.outer(family.present[:, k], family.present[:, k])

    whole = np.zeros((len(family), len(family)))
    for k in count:
        whole += _gram(family, k) * there(k)
    agree = _cosine(whole) >= RELATED

    def fresh(k: int) -> np.ndarray:
        return there(k) & agree & (_cosine(_gram(family, k)) < REPLACED)

    stays = np.array([not fresh(k).any() for k in count])
    energy = np.array([float(np.trace(_gram(family, k))) for k in count])
    if energy[stays].sum() >= energy.sum() / 2:
        return lambda k: there(k) & stays[k]
    return lambda k: there(k) & ~fresh(k)


def _gram(family: Entries, tensor: int) -> np.ndarray:
    """Inner products of one tensor, as if all of its entries had been drawn."""
    slot = family.tensors[tensor]
    x = family.values[:, slot.columns].astype(np.float64)
    return x @ x.T * (slot.size / max(1, slot.stop - slot.start))


def _cosine(gram: np.ndarray) -> np.ndarray:
    """Cosines of inner products; 1 where a norm is zero, for nothing contradicts nothing."""
    norm = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    return np.divide(gram, norm, out=np.ones_like(gram), where=norm > 0)


WIDE = 64
"""Neighbours beyond which angles are left to distances."""


@dataclass(frozen=True, eq=False)
class RowAngles:
    """Angles at a model between others, as their rows agree on them.

    An ancestor that two models have in common moved every unit; trainings on like data push some units the same way
    and leave the others apart. So the angle is taken row by row, and what counts is the mean of the overall cosine and
    of the lower quartile of the rows', the latter corrected for what rows of that width scatter by chance.
    Cost: one pass over the entries per pair of neighbours.

    Attributes:
        family: The same entries of every model.
    """

    family: Entries

    def __call__(self, centre: int, others: Sequence[int]) -> np.ndarray | None:
        """Cosines at a model between others.

        Args:
            centre: Position of the one.
            others: Positions of the others.

        Returns:
            `float64 [m, m]`, 1 on the diagonal; None where a tensor is missing, or there are too many.
        """
        at = [centre, *others]
        kept = [k for k in range(len(self.family.tensors)) if self.family.present[at, k].all()]
        if len(others) > WIDE or not kept:
            return None
        total, rows, widths = np.zeros((len(others), len(others))), [], []
        for k in kept:
            block = self.family.tensors[k].blocks(self.family.values[at]).astype(np.float64)
            change = (block[1:] - block[0]).swapaxes(0, 1)
            gram = change @ change.swapaxes(1, 2)
            total += gram.sum(axis=0)
            square = np.einsum("rii->ri", gram)
            alive = (square > 0).all(axis=1)
            size = np.sqrt(square[alive][:, :, None] * square[alive][:, None])
            rows.append(gram[alive] / size)
            widths += [change.shape[2]] * int(alive.sum())
        cosines = np.concatenate(rows)
        if not len(cosines):
            return None
        chance = 0.6745 * float(np.mean(1 / np.sqrt(widths)))
        return np.minimum((_cosine(total) + np.quantile(cosines, 0.25, axis=0) + chance) / 2, 1.0)


@dataclass(frozen=True)
class ByNorm:
    """The rule of norms: an increment that is orthogonal to what it is added to makes the sum longer.

    In `c = p + d` with d orthogonal to p the difference of squared norms is all of the squared distance; reversed it is
    minus that; between siblings it is about nothing. Decay of weights weakens the rule and can turn it round.

    Attributes:
        distances: Of the family.
        sharpness: Log-odds per unit of that ratio.
        middle: Ratio of even odds.
    """

    distances: Distances
    sharpness: float = 4.0
    middle: float = 0.5

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """Log-odds that b was made from a, and that a was made from b.

        Returns:
            Both; below zero for siblings.
        """
        g = self.distances
        first, second, distance = g.norms[a, b], g.norms[b, a], g.squared[a, b]
        if distance <= 0 or max(first, second) <= 0:
            return 0.0, 0.0
        ratio = float(np.clip((second - first) / distance, -1.5, 1.5))
        return self.sharpness * (ratio - self.middle), self.sharpness * (-ratio - self.middle)
