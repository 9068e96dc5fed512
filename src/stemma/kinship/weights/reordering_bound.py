"""How improbable it is that units trained apart come as near as these: a bound that pays for every reordering.

Two units of independent networks point in directions that have nothing to do with each other. If d numbers of a unit
vary freely, the cosine of two of them exceeds x with a probability of at most (1 - x²)^((d-1)/2) / 2: the share of a
sphere that a cap covers. So the *gain* of a matched pair, (d - 1) times -½ log(1 - x²), has a tail no heavier than an
exponential one, and for the sum over pairs there is a bound.

Whoever holds both models can choose which unit is matched with which, and write that order into a file. All that can
be chosen are the permutations of each set of units, so the probability is multiplied by their number: it is *paid
for*, and the bound holds for the best order there is, whoever found it and however.

How many numbers vary freely is measured on the pair itself: from the cosines of units that are *not* matched, in their
bulk and in their tail, whichever says less.

Source: the area of a cap: K. Ball, "An elementary introduction to modern convex geometry" (1997), lecture 2, and
T. Tkocz, American Mathematical Monthly 119 (2012). Paying for every order is a union bound; its use for the kinship of
networks is this project's (docs/kinship.md, "Contents of matched units").
"""

from collections.abc import Sequence
from math import inf, lgamma, log, sqrt

import numpy as np

CLIP = 1e-7
"""Cosines nearer to one than this count as this near: float32 knows no better."""

CAP = 2.0
"""Gains count up to so many times the median of their tensor: a few units that many networks share decide nothing."""

QUANTILES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Where the tail of unmatched cosines is looked at."""

LEAST = 5
"""Unmatched pairs beyond a quantile that are needed to read it."""


def information(x: np.ndarray) -> np.ndarray:
    """-½ log(1 - x²): what a cosine is worth for each number that varies freely, in nats; 0 for negative ones.

    Args:
        x: Cosines.

    Returns:
        The same shape, at most about 8.
    """
    clipped = np.clip(x, 0.0, 1.0 - CLIP)
    return -0.5 * np.log1p(-clipped * clipped)


def freedom(similarity: np.ndarray, matched: np.ndarray, numbers: int) -> float:
    """How many numbers of a unit vary freely, as the cosines of unmatched units tell.

    The matched pairs were chosen because they are near, so they are missing among the unmatched ones: as many are put
    back at the largest cosine that is left.

    Args:
        similarity: Cosines `[units of A, units of B]`.
        matched: For each unit of A its counterpart's column, `[units of A]`.
        numbers: That a unit has: no more can vary, though units that are orthogonal to each other look like more.

    Returns:
        The number less one (the exponent of the bound); 0 where too few pairs tell.
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


def gains(cosines: np.ndarray, exponent: float) -> np.ndarray:
    """What each matched pair adds to the evidence.

    Args:
        cosines: Of the matched units.
        exponent: See `freedom`.

    Returns:
        Nats, none above `CAP` times their median.
    """
    found = exponent * information(cosines)
    return np.minimum(found, CAP * float(np.median(found))) if found.size else found


def orders(units: int, of: int) -> float:
    """Natural logarithm of the number of ways to choose counterparts.

    Args:
        units: Units that were matched.
        of: Units that each could have been matched with, none twice.

    Returns:
        log(of! / (of - units)!).
    """
    return lgamma(of + 1) - lgamma(of - min(units, of) + 1)


def log_tail(pairs: int, gain: float) -> float:
    """Natural logarithm of a bound on P(sum of gains ≥ gain) for one fixed order of independent units.

    Half of all cosines are negative and gain nothing, the others' gains are at most exponential: Chernoff's bound for
    the sum of such variables has a closed form.

    Args:
        pairs: Matched pairs.
        gain: The sum.

    Returns:
        The logarithm, at most 0.
    """
    if pairs < 1 or 2 * gain <= pairs:
        return 0.0
    rest = (sqrt(1 + 4 * pairs / gain) - 1) / 2
    return min(0.0, pairs * log((1 + 1 / rest) / 2) - (1 - rest) * gain)


def surplus(pairs: int, gain: float) -> float:
    """How much of a sum of gains is left after what independent units gain anyway.

    Args:
        pairs: Matched pairs.
        gain: The sum.

    Returns:
        Nats, at least 0.
    """
    return -log_tail(pairs, gain)


def detectable(tensors: Sequence[tuple[int, float, float]], alpha: float) -> float:
    """The smallest cosine, the same for all matched units, that these tensors could have told from chance.

    Args:
        tensors: Of each its matched pairs, its exponent, and what its share of the orders costs, in nats.
        alpha: Level of the decision.

    Returns:
        A cosine; 1 where none would do.
    """
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
