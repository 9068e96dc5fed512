"""One suspect, many candidates: what the closest of many strangers looks like."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.kinship.function import combined
from stemma.kinship.function.null_models import conformal

HOLM, CLOSEST = "Holm", "closest of all candidates"


@dataclass(frozen=True, eq=False)
class Corrected:
    """p-values of one suspect against many candidates.

    Attributes:
        p_values: `[n]`, each valid for the whole search; NaN where no measure applies to a candidate.
        uncorrected: `[n]`, as if a candidate had been the only one.
        method: `HOLM` or `CLOSEST`.
        floor: Smallest corrected p-value that was possible.
        statistics: Combined distances of the suspect `[n]`.
        null: Combined distances of the null models `[m, n]`.
    """

    p_values: np.ndarray
    uncorrected: np.ndarray
    method: str
    floor: float
    statistics: np.ndarray
    null: np.ndarray


def corrected(suspect: np.ndarray, null: np.ndarray, alpha: float) -> Corrected:
    """Correct functional closeness for the number of candidates.

    Every null model plays the suspect's part: it is put beside the same candidates, and the closest that it comes to
    any of them is one value of the null. If the suspect is independent of all candidates, it is exchangeable with the
    null models, so the rank of *its* closest is exact whatever the dependence between candidates; a candidate's own
    p-value counts the null models whose closest is as close as the suspect is to it (single-step maximum).
    Where the null is so large that 1 / (m + 1) <= alpha / n, Holm's correction of the single p-values is used
    instead; which one is settled by m, n and alpha, never by the distances.

    Where a null model is a candidate itself, put the suspect in its place: the distance between the two, so that
    every query is compared with the same number of models.

    Args:
        suspect: Distances of the suspect to the candidates `[n, measures]`, NaN where a measure does not apply.
        null: Distances of the null models to the candidates `[m, n, measures]`.
        alpha: Level of the whole search.

    Returns:
        The corrected p-values.

    Source: Westfall and Young 1993, chapter 2 (maximum statistic); Holm 1979.
    """
    m, n = null.shape[:2]
    own, others = np.full(n, np.nan), np.full((m, n), np.nan)
    for j in range(n):
        usable = np.isfinite(suspect[j]) & np.isfinite(null[:, j]).all(0)
        if m and usable.any():
            row = np.where(usable, suspect[j], np.nan)
            own[j], others[:, j] = combined.statistics(row, np.where(usable, null[:, j], np.nan))
    return ranked(own, others, alpha)


def ranked(own: np.ndarray, others: np.ndarray, alpha: float) -> Corrected:
    """The correction, once every comparison is one number.

    Args:
        own: The suspect's statistic for each candidate `[n]`, smaller is closer; NaN where none applies.
        others: Those of the null models `[m, n]`.
        alpha: Level of the whole search.

    Returns:
        The corrected p-values.
    """
    m, n = others.shape
    tested = np.flatnonzero(np.isfinite(own))
    single = np.full(n, np.nan)
    single[tested] = [conformal(own[j], others[:, j].tolist()) for j in tested]
    count = max(1, len(tested))
    floor = 1 / (m + 1)
    if floor <= alpha / count:
        return Corrected(holm(single), single, HOLM, min(1.0, count * floor), own, others)
    p = np.full(n, np.nan)
    if len(tested):
        closest = np.fmin.reduce(others[:, tested], axis=1).tolist()
        p[tested] = [conformal(own[j], closest) for j in tested]
    return Corrected(p, single, CLOSEST, floor, own, others)


def holm(p_values: np.ndarray | Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and is not counted.

    Args:
        p_values: `[n]`.

    Returns:
        Corrected p-values `[n]`, at most 1.
    """
    p = np.asarray(p_values, float)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, float(p[i]) * (len(order) - rank)))
        out[i] = largest
    return out
