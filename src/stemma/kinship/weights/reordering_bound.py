"""Bound on the probability that units of independent networks are as close as these, corrected for every reordering.

Two units of independent networks have unrelated directions. If d numbers of a unit vary freely, the cosine of two of
them exceeds x with a probability of at most (1 - x²)^((d-1)/2) / 2, the share of a sphere that a cap covers. So the
*gain* of a matched pair, (d - 1) times -½ log(1 - x²), has at most an exponential tail, and the sum over pairs has a
bound.

A forger who has both models can choose which unit is matched with which. Only the permutations of each set of units can
be chosen, so the probability is multiplied by their number, and the bound holds for the best order.

The number of free numbers is estimated from the pair itself: from the cosines of *unmatched* units, in their bulk and
in their tail, whichever is smaller.

Source: the area of a cap: K. Ball, "An elementary introduction to modern convex geometry" (1997), lecture 2, and
T. Tkocz, American Mathematical Monthly 119 (2012). The correction for every order is a union bound; its use for
networks is this project's (docs/methods/weight_tests.md, "Contents of matched units").
"""

from collections.abc import Sequence
from math import inf, lgamma, log, sqrt

import numpy as np

CLIP = 1e-7
"""Cosines closer to 1 than this are clipped, at the precision of float32."""

CAP = 2.0
"""Gains are clipped at this multiple of their tensor's median, so that a few common units do not decide."""

QUANTILES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Quantiles of unmatched cosines that are used."""

LEAST = 5
"""Least number of unmatched pairs beyond a quantile."""


def information(x: np.ndarray) -> np.ndarray:
    """-½ log(1 - x²) of cosines x in nats: their worth per free number; 0 for negative ones."""
    clipped = np.clip(x, 0.0, 1.0 - CLIP)
    return -0.5 * np.log1p(-clipped * clipped)


def free_numbers(similarity: np.ndarray, matched: np.ndarray, numbers: int) -> float:
    """Estimate how many numbers of a unit vary freely, from the cosines of unmatched units.

    Matched pairs were chosen because they are close, so they are missing among the unmatched ones: as many are added at
    the largest remaining cosine.

    Args:
        similarity: Cosines `[units of A, units of B]`.
        matched: For each unit of A its counterpart's column, `[units of A]`.
        numbers: That a unit has: no more can vary, though units that are orthogonal to each other look like more.

    Returns:
        The number less one (the exponent of the bound); 0 where there are too few pairs.
    """
    rows = np.arange(len(matched))
    left = np.ones(similarity.shape, bool)
    left[rows, matched] = False
    cosines = np.sort(np.abs(similarity[left].astype(np.float64)))
    count, chosen = len(cosines), len(matched)
    if count < 2 * LEAST or not cosines[-1] > 0:
        return 0.0
    energy = float((cosines**2).sum()) + chosen * float(cosines[-1]) ** 2
    exponents = [max(0.0, min((count + chosen) / energy, float(numbers)) - 1.0)]
    for quantile in QUANTILES:
        beyond = int((1 - quantile) * count)
        if beyond < max(LEAST, chosen):
            break
        share = (beyond + chosen + 2.0 * beyond**0.5) / (count + chosen)
        worth = float(information(cosines[count - beyond - 1]))
        exponents.append(-log(share) / worth if worth > 0 else inf)
    return min(exponents)


def free_numbers_of_many(similarities: np.ndarray, numbers: int) -> list[float]:
    """As `free_numbers`, of pairs of tensors whose units are matched in order, `[pairs, units, units]`."""
    pairs, chosen, _ = similarities.shape
    left = ~np.eye(chosen, dtype=bool)
    cosines = np.ascontiguousarray(np.abs(similarities[:, left].astype(np.float64)))  # else added in another order
    cosines.sort(axis=1)
    count = cosines.shape[1]
    if count < 2 * LEAST:
        return [0.0] * pairs
    largest = cosines[:, -1]
    energies = (cosines**2).sum(axis=1)
    exponents = []
    for top, energy in zip(largest.tolist(), energies.tolist(), strict=True):
        spread = energy + chosen * top**2
        exponents.append(max(0.0, min((count + chosen) / spread, float(numbers)) - 1.0) if top > 0 else 0.0)
    out = np.array(exponents)
    for quantile in QUANTILES:
        beyond = int((1 - quantile) * count)
        if beyond < max(LEAST, chosen):
            break
        share = (beyond + chosen + 2.0 * beyond**0.5) / (count + chosen)
        worth = information(cosines[:, count - beyond - 1])
        out = np.minimum(out, np.where(worth > 0, -log(share) / np.where(worth > 0, worth, 1), inf))
    return np.where(largest > 0, out, 0.0).tolist()


def gains(cosines: np.ndarray, exponent: float) -> np.ndarray:
    """Gains of matched pairs in nats, none above `CAP` times their median."""
    found = exponent * information(cosines)
    return np.minimum(found, CAP * float(np.median(found))) if found.size else found


def log_orders(units: int, of: int) -> float:
    """Log of the number of ways to choose counterparts, of! / (of - units)!."""
    return lgamma(of + 1) - lgamma(of - min(units, of) + 1)


def log_tail(pairs: int, gain: float) -> float:
    """Chernoff bound on log P(sum of gains ≥ gain) for one fixed order of independent units."""
    if pairs < 1 or 2 * gain <= pairs:
        return 0.0
    rest = (sqrt(1 + 4 * pairs / gain) - 1) / 2
    return min(0.0, pairs * log((1 + 1 / rest) / 2) - (1 - rest) * gain)


def surplus(pairs: int, gain: float) -> float:
    """How much a sum of gains exceeds what independent units gain, in nats."""
    return -log_tail(pairs, gain)


def detectable_cosine(tensors: Sequence[tuple[int, float, float]], alpha: float) -> float:
    """Smallest mean cosine that (pairs, exponent, cost) of these tensors could distinguish from chance."""
    low, high = 0.0, 1.0 - CLIP

    def found(x: float) -> bool:
        worth = float(information(np.asarray(x)))
        counted = [(n, n * e * worth, cost) for n, e, cost in tensors if surplus(n, n * e * worth) > cost]
        paid = sum(cost for _, _, cost in counted) + 2 * log(2) * len(tensors)
        gain = sum(g for _, g, _ in counted)
        return bool(counted) and paid + log_tail(sum(n for n, _, _ in counted), gain) <= log(alpha)

    if not found(high):
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
