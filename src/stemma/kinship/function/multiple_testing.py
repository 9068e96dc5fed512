"""Correction of p-values for the number of candidates that one suspect was compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.kinship.function import combined
from stemma.kinship.function.null_models import conformal_p_value

HOLM, CLOSEST = "Holm", "closest of all candidates"


@dataclass(frozen=True, eq=False)
class CorrectedPValues:
    """p-values of one suspect against many candidates.

    Attributes:
        p_values: `[n]`, each valid for the whole search; NaN where no measure applies to a candidate.
        uncorrected: `[n]`, as for a single candidate.
        method: `HOLM` or `CLOSEST`.
        smallest_p: Smallest attainable corrected p-value.
        statistics: Combined distances of the suspect `[n]`.
        null: Combined distances of the null models `[m, n]`.
    """

    p_values: np.ndarray
    uncorrected: np.ndarray
    method: str
    smallest_p: float
    statistics: np.ndarray
    null: np.ndarray


def correct_for_candidates(suspect: np.ndarray, null: np.ndarray, alpha: float) -> CorrectedPValues:
    """Correct functional closeness for the number of candidates.

    Every null model takes the suspect's place: it is compared with the same candidates, and its smallest distance to
    any of them is one null value. If the suspect is independent of all candidates, it is exchangeable with the
    null models, so the rank of *its* closest is exact whatever the dependence between candidates; a candidate's own
    p-value counts the null models whose closest is as close as the suspect is to it (single-step maximum).
    Where the null is so large that 1 / (m + 1) <= alpha / n, Holm's correction of the single p-values is used
    instead; which one depends on m, n and alpha, never on the distances.

    Where a null model is a candidate itself, put the suspect in its place: the distance between the two, so that
    every query is compared with the same number of models.

    Args:
        suspect: Distances of the suspect to the candidates `[n, measures]`, NaN where a measure does not apply.
        null: Distances of the null models to the candidates `[m, n, measures]`.
        alpha: Significance level of the whole search.

    Returns:
        The corrected p-values.

    Source: Westfall and Young 1993, chapter 2 (maximum statistic); Holm 1979.
    """
    m, n = null.shape[:2]
    own, others = np.full(n, np.nan), np.full((m, n), np.nan)
    for j in range(n):
        usable = np.isfinite(suspect[j]) & np.isfinite(null[:, j]).all(0)
        if m and usable.any():
            distances = np.where(usable, suspect[j], np.nan)
            own[j], others[:, j] = combined.statistics(distances, np.where(usable, null[:, j], np.nan))
    return correct_statistics(own, others, alpha)


def correct_statistics(own: np.ndarray, others: np.ndarray, alpha: float) -> CorrectedPValues:
    """The correction on combined statistics: of the suspect `[n]` and of the null models `[m, n]`."""
    m, n = others.shape
    tested = np.flatnonzero(np.isfinite(own))
    single = np.full(n, np.nan)
    single[tested] = [conformal_p_value(own[j], others[:, j].tolist()) for j in tested]
    count = max(1, len(tested))
    smallest_p = 1 / (m + 1)
    if smallest_p <= alpha / count:
        return CorrectedPValues(holm(single), single, HOLM, min(1.0, count * smallest_p), own, others)
    p = np.full(n, np.nan)
    if len(tested):
        closest = np.fmin.reduce(others[:, tested], axis=1).tolist()
        p[tested] = [conformal_p_value(own[j], closest) for j in tested]
    return CorrectedPValues(p, single, CLOSEST, smallest_p, own, others)


def holm(p_values: np.ndarray | Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of p-values `[n]`; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, float)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, float(p[i]) * (len(order) - rank)))
        out[i] = largest
    return out
