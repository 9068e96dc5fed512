"""Exact label-permutation test: are some models further from a group than its members are from each other?

Models are the unit of replication: which of them carry the label "suspect" is permuted; probes never add evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

COMBINATIONS = ("max", "mean")

TIE_TOLERANCE = 1e-9
"""Statistics closer than this are tied, and a tie counts against rejection."""


@dataclass(frozen=True, eq=False)
class PermutationResult:
    """Outcome of a label permutation.

    Attributes:
        value: The statistic of the true labels.
        values: That of all labellings, the true one first.
        p_value: Fraction of labellings with a statistic at least as large.
        smallest_p_value: Smallest p-value attainable.
        exact: Whether every labelling was evaluated.
    """

    value: float
    values: np.ndarray
    p_value: float
    smallest_p_value: float
    exact: bool


def smallest_p_value(suspects: int, group: int, max_labellings: int | None = None) -> float:
    """Smallest p-value attainable with so many models: one over the number of labellings, 1 for a group below two."""
    if suspects < 1 or group < 2:
        return 1.0
    labellings = comb(suspects + group, suspects)
    return 1 / (labellings if max_labellings is None else min(labellings, max_labellings))


def required_group_size(suspects: int, alpha: float) -> int:
    """Smallest group with which rejection at `alpha` is possible: 19 for one suspect at 5 %."""
    group = 2
    while smallest_p_value(suspects, group) > alpha * (1 + TIE_TOLERANCE):
        group += 1
    return group


def excess(distances: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean distance from the chosen models to the others, minus the mean distance among the others, `[labellings]`."""
    # `distances [n, n]` are symmetric; `chosen [labellings, n]` has as many true in every row, and two false or more.
    z = chosen.astype(float)
    picked, left = int(chosen[0].sum()), int((~chosen[0]).sum())
    reached = z @ distances
    within, rows = (reached * z).sum(1), reached.sum(1)
    among = distances.sum() - 2 * rows + within
    return (rows - within) / (picked * left) - among / (left * (left - 1))


def permutation_test(
    distances: Sequence[np.ndarray], suspects: int, combine: str = "mean", max_labellings: int = 20_000, seed: int = 0
) -> PermutationResult:
    """Permute which models are the suspects.

    If the suspects are drawn like the others, every labelling is equally likely, whatever the distances are. Several
    matrices are joined into one statistic: the excess of each is standardised over the labellings, and then the largest
    (or the mean) counts; so the test stays exact and needs no correction.

    Cost: one matrix product per kind of distance, `labellings x n x n`.

    Args:
        distances: One matrix `[n, n]` per kind of distance, the suspects first.
        suspects: How many of the models are under test.
        combine: One of `COMBINATIONS`.
        max_labellings: Where there are more labellings, this many are sampled, the true one among them.
        seed: Of the sample.

    Returns:
        The outcome.
    """
    count = len(distances[0])
    exact = comb(count, suspects) <= max_labellings
    chosen = _all(count, suspects) if exact else _sampled(count, suspects, max_labellings, seed)
    standardised = []
    for matrix in distances:
        values = excess(matrix, chosen)
        spread = values.std()
        standardised.append((values - values.mean()) / spread if spread > 0 else np.zeros_like(values))
    values = np.max(standardised, 0) if combine == "max" else np.mean(standardised, 0)
    reached = int((values >= values[0] - TIE_TOLERANCE).sum())
    return PermutationResult(float(values[0]), values, reached / len(values), 1 / len(values), exact)


def _all(count: int, suspects: int) -> np.ndarray:
    rows = np.array(list(combinations(range(count), suspects)))
    out = np.zeros((len(rows), count), bool)
    np.put_along_axis(out, rows, True, axis=1)
    return out


def _sampled(count: int, suspects: int, labellings: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, count, suspects])
    out = np.zeros((labellings, count), bool)
    out[0, :suspects] = True
    for row in out[1:]:
        row[rng.choice(count, suspects, replace=False)] = True
    return out
