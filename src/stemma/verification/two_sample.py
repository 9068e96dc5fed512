"""Tests on samples of answers: the level holds at any number of samples. Samples are inputs here, never models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels, as multiples of the median distance in the pooled sample."""

SMALLEST_SPREAD = 1e-12
"""A kernel whose values spread less than this over all permutations says nothing and is left out."""


@dataclass(frozen=True, slots=True)
class TwoSampleResult:
    """Outcome of a two-sample test.

    Attributes:
        value: The statistic.
        p_value: Fraction of permutations with a statistic at least as large, the true division included.
        smallest_p_value: Smallest p-value attainable.
    """

    value: float
    p_value: float
    smallest_p_value: float


def aggregated_mmd(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], permutations: int = 499, seed: int = 0
) -> TwoSampleResult:
    """Are two samples draws from one distribution? Maximum mean discrepancy over several kernels, by permutation.

    Gaussian and Laplace kernels of five bandwidths each, for each of one or more views of the same inputs. The
    discrepancy of a kernel is standardised over the permutations and the largest counts; all divisions of the pooled
    sample are treated alike, so that the p-value is exact at any sample size, and the choice of kernel and view costs
    no correction.

    Cost: ten products of matrices per view, `(n + m)^2 x permutations`, one at a time.

    Args:
        a: The first sample, `[n, d]` per view.
        b: The second sample, `[m, d]` per view.
        permutations: How many divisions are drawn besides the true one.
        seed: Of the divisions.

    Returns:
        The outcome; the p-value is 1 where all samples are equal.
    """
    first, second = len(a[0]), len(b[0])
    rng = np.random.default_rng([seed, first, second])
    true = np.arange(first + second) < first
    chosen = np.stack([true, *(rng.permutation(true) for _ in range(permutations))]).astype(np.float32)
    pooled = [np.concatenate(pair).astype(np.float32) for pair in zip(a, b, strict=True)]
    found = [discrepancies(kernel, chosen) for points in pooled for kernel in kernels(points)]
    spread = [v.std() for v in found]
    kept = [(v - v.mean()) / s for v, s in zip(found, spread, strict=True) if s > SMALLEST_SPREAD]
    if not kept:
        return TwoSampleResult(0.0, 1.0, 1 / len(chosen))
    values = np.max(kept, axis=0)
    reached = int((values >= values[0] - 1e-6).sum())
    return TwoSampleResult(float(values[0]), reached / len(chosen), 1 / len(chosen))


def kernels(points: np.ndarray) -> Iterator[np.ndarray]:
    """Kernel matrices of points `[n, d]` without their diagonals."""
    from scipy.spatial.distance import pdist, squareform

    for metric in ("euclidean", "cityblock"):
        apart = pdist(points, metric)
        median = float(np.median(apart[apart > 0])) if (apart > 0).any() else 0.0
        if median == 0:
            continue
        distances = squareform(apart / median).astype(np.float32)
        for bandwidth in BANDWIDTHS:
            scaled = distances / bandwidth
            kernel = np.exp(-np.square(scaled) if metric == "euclidean" else -scaled)
            np.fill_diagonal(kernel, 0)
            yield kernel


def discrepancies(kernel: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Unbiased squared discrepancies of divisions `[k, n + m]`, whose rows have as many ones each."""
    first = int(chosen[0].sum())
    second = chosen.shape[1] - first
    reached = chosen @ kernel
    within = (reached * chosen).sum(1, dtype=np.float64)
    from_first = reached.sum(1, dtype=np.float64)
    across = from_first - within
    others = kernel.sum(dtype=np.float64) - 2 * across - within
    return within / max(first * (first - 1), 1) + others / max(second * (second - 1), 1) - 2 * across / (first * second)


def mean_above_zero(values: np.ndarray, seed: int = 0) -> float:
    """P-value of "the mean is 0 or less", for independent values in [-1, 1]; it holds at any number of values.

    The values are bet on one after the other, in a random order: the stake depends on earlier values only, so that the
    capital is a supermartingale under the hypothesis, and its largest value bounds the p-value (Ville's inequality;
    Waudby-Smith and Ramdas 2024). Nothing is asymptotic and nothing is assumed about the shape of the distribution.

    Args:
        values: One per input, `[n]`.
        seed: Of the order.

    Returns:
        The p-value, at most 1.
    """
    drawn = np.random.default_rng([seed, len(values)]).permutation(np.asarray(values, np.float64))
    before = np.arange(len(drawn))
    mean = np.concatenate([[0.0], np.cumsum(drawn)[:-1]]) / np.maximum(before + 1, 1)
    square = (0.25 + np.concatenate([[0.0], np.cumsum(np.square(drawn))[:-1]])) / (before + 1)
    stake = np.clip(mean / square, 0, 0.9)
    log_capital = np.cumsum(np.log1p(stake * np.clip(drawn, -1, 1)))
    return float(np.exp(-max(log_capital.max(initial=0.0), 0.0)))
