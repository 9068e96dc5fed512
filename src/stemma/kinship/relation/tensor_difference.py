"""Difference of two versions of one tensor: sums over all entries, read in slices, that all operations use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

PROJECTIONS = 96
"""Directions onto which the rows of a difference are projected to find its rank; shorter rows are not projected."""

PATTERNS = ((2, 4), (4, 8), (1, 4))
"""N:M patterns of zeros that are detected."""

SAMPLED_ENTRIES = 1 << 14
"""Sampled entries of each tensor, for what sums do not show (order of magnitudes, patterns of zeros)."""


FEW_ENTRIES = 256
"""Of a tensor without new zeros, of which a model may have 100,000."""


@dataclass(eq=False)
class ProjectedDifference:
    """A difference projected onto `PROJECTIONS` directions, read only when its rank is needed."""

    slices: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]

    @cached_property
    def singular_values(self) -> np.ndarray:
        """Singular values of the projected difference, largest first; none of vectors."""
        gram: np.ndarray | None = None
        for x, y in self.slices():
            d = y.reshape(len(y), -1).astype(np.float64) - x.reshape(len(x), -1)
            seen = d if d.shape[1] <= PROJECTIONS else d @ _random_directions(d.shape[1])
            if x.ndim > 1:
                gram = seen.T @ seen + (0 if gram is None else gram)
        return np.zeros(0) if gram is None else np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


@dataclass(frozen=True, eq=False)
class TensorDifference:
    """Entry-wise comparison of two versions A and B of one tensor.

    Sums are over the entries that were read, in float64; `rows` are the units of the first axis.

    Attributes:
        shape: Sizes of the axes longer than one.
        read: Entries that were read.
        rows: Per row: sum of A², of B², of AB, of (B - A)², `[4, rows]`.
        axis_sums: The same per unit of every further axis, `[4, units]` each; empty for vectors.
        equal: Entries that are the same number in both.
        zeros: Entries that are zero in A only, in B only, in both.
        unzeroed_change: Sums of (B - A)² where B is not zero, and where A is not.
        projected: The difference, projected when its rank is needed.
        sample: The same entries of A and of B, spread evenly, `[2, n]`.
        zero_patterns: (n, m) where n of every m neighbours are zero, else None; of B, then of A.
    """

    shape: tuple[int, ...]
    read: int
    rows: np.ndarray
    axis_sums: tuple[np.ndarray, ...]
    equal: int
    zeros: tuple[int, int, int]
    unzeroed_change: tuple[float, float]
    projected: "ProjectedDifference"
    sample: np.ndarray
    zero_patterns: tuple[tuple[int, int] | None, tuple[int, int] | None]

    @property
    def norm_a(self) -> float:
        """Sum of squares of A."""
        return float(self.rows[0].sum())

    @property
    def norm_b(self) -> float:
        """Sum of squares of B."""
        return float(self.rows[1].sum())

    @property
    def inner(self) -> float:
        """Sum of products."""
        return float(self.rows[2].sum())

    @property
    def difference(self) -> float:
        """Sum of squares of B - A."""
        return float(self.rows[3].sum())

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of A."""
        return min(1e9, float(np.sqrt(self.difference / max(self.norm_a, 1e-60))))

    @property
    def cosine(self) -> float:
        """Cosine of A and B; 0 where one of them is zero."""
        norm = self.norm_a * self.norm_b
        return float(np.clip(self.inner / np.sqrt(norm), -1, 1)) if norm > 0 else 0.0

    @property
    def zeroed(self) -> float:
        """Share of A's nonzero entries that are zero in B."""
        nonzero = self.read - self.zeros[0] - self.zeros[2]
        return self.zeros[1] / max(1, nonzero)

    def swapped(self) -> "TensorDifference":
        """The same with A and B exchanged; nothing is read again."""
        swap = [1, 0, 2, 3]
        return replace(
            self, rows=self.rows[swap], axis_sums=tuple(s[swap] for s in self.axis_sums), sample=self.sample[::-1],
            zeros=(self.zeros[1], self.zeros[0], self.zeros[2]), unzeroed_change=self.unzeroed_change[::-1],
            zero_patterns=self.zero_patterns[::-1],
        )  # fmt: skip

    @cached_property
    def residual_after_scaling(self) -> float:
        """Relative difference after the best positive scale per unit of the best axis; units count equally."""
        return min((_after_scale(s) for s in (self.rows, *self.axis_sums) if s.size), default=self.relative)

    @cached_property
    def singular_values(self) -> np.ndarray:
        """Singular values of the (projected) difference, largest first; the tensors are read again for them."""
        return self.projected.singular_values

    @property
    def max_rank(self) -> int:
        """Largest rank that can be measured here."""
        return min(self.rows.shape[1], PROJECTIONS, int(np.prod(self.shape[1:]))) if len(self.shape) > 1 else 0


def _after_scale(sums: np.ndarray) -> float:
    aa, bb, ab, _ = sums
    scale = np.maximum(ab, 0) / np.where(bb > 0, bb, 1)
    left = np.maximum(aa - 2 * scale * ab + scale**2 * bb, 0)
    alive = aa > 1e-12 * aa.max(initial=0.0)
    return float(np.sqrt(np.mean(left[alive] / aa[alive]))) if alive.any() else 0.0


@lru_cache(maxsize=8)
def _random_directions(width: int) -> np.ndarray:
    """Random directions of nearly unit length and nearly at right angles, the same for every tensor of a width."""
    return np.random.default_rng(width).normal(scale=width**-0.5, size=(width, PROJECTIONS))


def tensor_difference(slices: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]) -> TensorDifference | None:
    """Difference of corresponding row slices of A and B; None where sizes differ or nothing was read.

    Memory: one slice in float64. Time: a few passes over the entries, and another one when the rank is needed.

    Args:
        slices: Gives corresponding rows of A and B, in order, all other axes whole; called once more for the rank.

    Returns:
        The difference, or None.
    """
    sums = _Sums()
    for x, y in slices():
        if x.shape != y.shape:
            return None
        if x.size:
            sums.add(x, y)
    return sums.result(ProjectedDifference(slices))


def _along(x: np.ndarray, axis: int) -> np.ndarray:
    return x.sum(tuple(i for i in range(x.ndim) if i != axis))


class _Sums:
    """Private: sums under way; alive inside `tensor_difference`."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.axis_sums: list[np.ndarray] = []
        self.equal, self.read = 0, 0
        self.zeros, self.support = np.zeros(3, int), np.zeros(2)
        self.samples: list[np.ndarray] = []
        self.patterns = [dict.fromkeys(PATTERNS, True), dict.fromkeys(PATTERNS, True)]
        self.shape: tuple[int, ...] = ()

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        a = x.reshape(len(x), -1).astype(np.float64)
        b = y.reshape(len(y), -1).astype(np.float64)
        d = b - a
        squares = (a * a, b * b, a * b, d * d)
        self.rows.append(np.stack([s.sum(1) for s in squares]))
        if x.ndim > 1:
            seen = [np.stack([_along(s.reshape(x.shape), i) for s in squares]) for i in range(1, x.ndim)]
            self.axis_sums = [s + t for s, t in zip(seen, self.axis_sums, strict=True)] if self.axis_sums else seen
        zero_a, zero_b = a == 0, b == 0
        self.equal += int((a == b).sum())
        self.zeros += [(zero_a & ~zero_b).sum(), (zero_b & ~zero_a).sum(), (zero_a & zero_b).sum()]
        self.support += [squares[3][~zero_b].sum(), squares[3][~zero_a].sum()]
        for known, zero in zip(self.patterns, (zero_b, zero_a), strict=True):
            _update_patterns(known, zero)
        self.read += x.size
        self.shape = ((self.shape[0] if self.shape else 0) + len(x), *x.shape[1:])
        step = max(1, x.size // SAMPLED_ENTRIES)
        self.samples.append(np.stack([a.reshape(-1)[::step], b.reshape(-1)[::step]]))

    def result(self, projected: ProjectedDifference) -> TensorDifference | None:
        if not self.read:
            return None
        most = SAMPLED_ENTRIES if self.zeros[:2].any() else FEW_ENTRIES
        sample = np.concatenate(self.samples, axis=1)
        sample = sample[:, :: max(1, sample.shape[1] // most)].copy()
        patterns = [next((p for p, holds in known.items() if holds), None) for known in self.patterns]
        return TensorDifference(
            shape=self.shape, read=self.read, rows=np.concatenate(self.rows, axis=1), axis_sums=tuple(self.axis_sums),
            equal=self.equal, zeros=(int(self.zeros[0]), int(self.zeros[1]), int(self.zeros[2])),
            unzeroed_change=(float(self.support[0]), float(self.support[1])), projected=projected, sample=sample,
            zero_patterns=(patterns[0], patterns[1]),
        )  # fmt: skip


def _update_patterns(known: dict[tuple[int, int], bool], zero: np.ndarray) -> None:
    """Drop the N:M patterns of zeros that these rows do not follow."""
    if not any(known.values()) or not zero.any():  # every pattern has zeros
        known.update(dict.fromkeys(known, False))
        return
    for (n, m), holds in known.items():
        whole = zero.shape[1] // m * m
        if holds and whole:
            counts = zero[:, :whole].reshape(len(zero), -1, m).sum(2)
            known[n, m] = bool((counts == n).mean() > 0.98)
        elif not whole:
            known[n, m] = False


NOT_COMPARABLE = TensorDifference((), 0, np.zeros((4, 0)), (), 0, (0, 0, 0), (0.0, 0.0), ProjectedDifference(tuple),
                   np.zeros((2, 0)), (None, None))  # fmt: skip
"""The difference of tensors of different sizes: nothing."""
