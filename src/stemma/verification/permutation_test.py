"""An exact test of whether some models are further from a group than the group's members are from each other.

Models are the unit: which of them carry the label "suspect" is permuted, and probes are never counted as evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

COMBINATIONS = ("max", "mean")

TIED = 1e-9
"""Statistics closer than this are tied, and a tie counts against rejection."""


@dataclass(frozen=True, eq=False)
class Permuted:
    """Outcome of a label permutation.

    Attributes:
        value: The statistic of the labels as they are.
        values: That of all labellings, the true one first.
        p_value: Share of labellings with a statistic at least as large.
        floor: Smallest p-value that there could have been.
        exact: Whether every labelling was looked at.
    """

    value: float
    values: np.ndarray
    p_value: float
    floor: float
    exact: bool


def floor(suspects: int, group: int, most: int | None = None) -> float:
    """Smallest p-value that so many models allow.

    Args:
        suspects: Models under test.
        group: Models they are compared with.
        most: Most labellings that are looked at; all if None.

    Returns:
        One over the number of labellings; 1 with fewer than two in the group, which has no distances then.
    """
    if suspects < 1 or group < 2:
        return 1.0
    labellings = comb(suspects + group, suspects)
    return 1 / (labellings if most is None else min(labellings, most))


def needed(suspects: int, alpha: float) -> int:
    """How many models the group must have before anything can be rejected.

    Returns:
        The smallest size whose floor is at most `alpha`: 19 for one suspect at 5 %.
    """
    group = 2
    while floor(suspects, group) > alpha * (1 + TIED):
        group += 1
    return group


def excess(distances: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean distance from the chosen models to the others, less the mean distance among the others.

    Args:
        distances: `[n, n]`, symmetric, zero diagonal.
        chosen: `[labellings, n]` booleans; as many true in every row, and at least two false.

    Returns:
        `[labellings]`. For one chosen model this orders like its mean distance to all others.
    """
    z = chosen.astype(float)
    picked, left = int(chosen[0].sum()), int((~chosen[0]).sum())
    reached = z @ distances
    within, rows = (reached * z).sum(1), reached.sum(1)
    among = distances.sum() - 2 * rows + within
    return (rows - within) / (picked * left) - among / (left * (left - 1))


def permuted(
    distances: Sequence[np.ndarray], suspects: int, combine: str = "mean", most: int = 20_000, seed: int = 0
) -> Permuted:
    """Permute which models are the suspects.

    If the suspects are drawn like the others, every labelling is equally likely, whatever the distances are. Several
    matrices are joined into one statistic: the excess of each is standardised over the labellings, which treats all
    models alike, and then the largest (or the mean) counts; so the test stays exact and nothing has to be corrected.

    Cost: one matrix product per kind of distance, `labellings x n x n`.

    Args:
        distances: One matrix `[n, n]` per kind of distance, the suspects first.
        suspects: How many of the models are under test.
        combine: One of `COMBINATIONS`.
        most: Where there are more labellings, this many are drawn, the true one among them.
        seed: Of the draw.

    Returns:
        The outcome.
    """
    count = len(distances[0])
    exact = comb(count, suspects) <= most
    chosen = _all(count, suspects) if exact else _drawn(count, suspects, most, seed)
    standard = []
    for matrix in distances:
        values = excess(matrix, chosen)
        spread = values.std()
        standard.append((values - values.mean()) / spread if spread > 0 else np.zeros_like(values))
    values = np.max(standard, 0) if combine == "max" else np.mean(standard, 0)
    reached = int((values >= values[0] - TIED).sum())
    return Permuted(float(values[0]), values, reached / len(values), 1 / len(values), exact)


def _all(count: int, suspects: int) -> np.ndarray:
    rows = np.array(list(combinations(range(count), suspects)))
    out = np.zeros((len(rows), count), bool)
    np.put_along_axis(out, rows, True, axis=1)
    return out


def _drawn(count: int, suspects: int, most: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, count, suspects])
    out = np.zeros((most, count), bool)
    out[0, :suspects] = True
    for row in out[1:]:
        row[rng.choice(count, suspects, replace=False)] = True
    return out
