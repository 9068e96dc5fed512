"""Exact laws of uniform random permutations: fixed points, inversions, their sums, tails and e-values.

If two trainings are independent and treat hidden units alike, the best assignment of one model's units to the
other's, composed with the identity, is a uniform permutation. The tests of this folder rest on that and on the laws
below.

All tails are computed after an exponential tilt towards the observed value, so that they keep full relative
precision far beyond what a double can hold (logarithms are returned).
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import inf, lgamma, log

import numpy as np

SUPPORT = 1 << 14
"""Longest distribution that is convolved exactly; beyond it the Chernoff bound is given."""

LAMBDAS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Bets of the e-value: rates of fixed points under the alternative. Fixed before any model was tested."""


@lru_cache(maxsize=4096)
def fixed_point_law(n: int) -> np.ndarray:
    """Log-probabilities that a uniform permutation of n has k = 0..n fixed points."""
    terms = np.cumsum([(-1.0) ** i * np.exp(-lgamma(i + 1)) for i in range(n + 1)])
    with np.errstate(divide="ignore"):
        law = np.array([np.log(max(terms[n - k], 0.0)) - lgamma(k + 1) for k in range(n + 1)])
    if n >= 1:
        law[n - 1] = -inf
    return law


@lru_cache(maxsize=1024)
def concordance_law(n: int) -> np.ndarray:
    """Log-probabilities of c concordant pairs of a uniform permutation of n (Mahonian law)."""
    scale, law = 0.0, np.ones(1)
    for i in range(2, n + 1):
        sums = np.cumsum(np.concatenate([law, np.zeros(i - 1)]))
        law = sums - np.concatenate([np.zeros(i), sums[:-i]])
        law = np.maximum(law, 0.0)
        top = law.max()
        law, scale = law / top, scale + log(top) - log(i)
    half = (len(law) + 1) // 2
    law[-half:] = law[:half][::-1]
    exact = _small_mahonian(n)
    with np.errstate(divide="ignore"):
        return exact if exact is not None else np.log(law) + scale


def _small_mahonian(n: int) -> np.ndarray | None:
    """Exact integers for small n; the floating recursion loses the far tail to cancellation."""
    if n > 64:
        return None
    counts = [1]
    for i in range(2, n + 1):
        out, window = [], 0
        for j in range(len(counts) + i - 1):
            window += counts[j] if j < len(counts) else 0
            window -= counts[j - i] if j >= i else 0
            out.append(window)
        counts = out
    total = lgamma(n + 1)
    return np.array([log(c) - total for c in counts])


def log_tail(laws: Sequence[np.ndarray], observed: int) -> float:
    """Log P(sum of independent variables ≥ observed); a Chernoff bound where the support exceeds `SUPPORT`."""
    if observed <= 0 or not laws:
        return 0.0
    if observed > sum(len(p) - 1 for p in laws):
        return -inf
    theta, log_m = _tilt(laws, observed)
    if theta <= 0:
        theta, log_m = 0.0, 0.0
    length = min(sum(len(p) - 1 for p in laws) + 1, 4 * observed + 64)
    if length > SUPPORT:
        return min(0.0, log_m - theta * observed)
    total = np.ones(1)
    for law, times in _distinct(laws):
        k = np.arange(len(law))
        p = np.exp(law + theta * k - _log_sum(law + theta * k))
        total = np.convolve(total, _power(p, times, length))[:length]
    k = np.arange(observed, len(total))
    with np.errstate(divide="ignore"):
        return float(min(0.0, log_m + _log_sum(np.log(total[observed:]) - theta * k)))


def log_pmf_and_tail(laws: Sequence[np.ndarray], observed: int) -> tuple[float, float]:
    """P(sum = observed) and P(sum > observed), for randomised p-values in calibration."""
    above = float(np.exp(log_tail(laws, observed + 1)))
    return max(0.0, float(np.exp(log_tail(laws, observed))) - above), above


def log_e_value(fixed: int, n: int) -> float:
    """Logarithm of an e-value for k fixed points of n: mean exactly 1 under the null, whatever n.

    For one bet λ the e-value is λ^k / Σ_{j≤n} (λ-1)^j / j!, the denominator being the exact generating function of
    fixed points at λ; bets are averaged. Source: standard betting construction; see docs/methods/weight_tests.md.

    Args:
        fixed: Fixed points seen.
        n: Size of the permutation.

    Returns:
        Natural logarithm.
    """
    j = np.arange(n + 1)
    fact = np.array([lgamma(i + 1) for i in j])
    bets = [fixed * log(lam) - _log_sum(j * log(lam - 1) - fact) for lam in LAMBDAS]
    return _log_sum(np.array(bets)) - log(len(bets))


def log_mean_e(log_e: Sequence[float]) -> float:
    """Log of the average of e-values, which is an e-value under any dependence."""
    return _log_sum(np.array(log_e)) - log(len(log_e)) if len(log_e) else 0.0


def _distinct(laws: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    by_id = {id(p): p for p in laws}
    return [(by_id[i], times) for i, times in Counter(id(p) for p in laws).items()]


def _power(p: np.ndarray, times: int, length: int) -> np.ndarray:
    out = np.ones(1)
    while times:
        if times & 1:
            out = np.convolve(out, p)[:length]
        p, times = np.convolve(p, p)[:length] if times > 1 else p, times >> 1
    return out


def _log_sum(x: np.ndarray) -> float:
    top = x.max() if x.size else -inf
    return float(top + np.log(np.exp(x - top).sum())) if np.isfinite(top) else -inf


def _tilt(laws: Sequence[np.ndarray], observed: int) -> tuple[float, float]:
    """The exponential tilt whose mean is the observed value, and its log-normaliser."""
    distinct = _distinct(laws)

    def at(theta: float) -> tuple[float, float]:
        mean = total = 0.0
        for law, times in distinct:
            k = np.arange(len(law))
            z = law + theta * k
            log_m = _log_sum(z)
            mean += times * float((np.exp(z - log_m) * k).sum())
            total += times * log_m
        return mean, total

    low, high = 0.0, 1.0
    while at(high)[0] < observed - 0.5 and high < 64:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] < observed else (low, middle)
    return low, at(low)[1]
