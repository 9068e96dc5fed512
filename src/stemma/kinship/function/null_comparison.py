"""One model among those that stand for independence, as another model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from stemma.kinship.function import combined
from stemma.kinship.function.null_models import conformal
from stemma.kinship.function.observations import Sight, accuracy, agreement, plain
from stemma.probes import Probes
from stemma.types import Distance

Beside = TypeVar("Beside")

TASK_MARGIN = 0.1
"""How far below a model's accuracy the median of its null may lie, where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Standing:
    """A null model and its distances by all methods.

    Attributes:
        sight: What was seen of it.
        from_a: Distances `[methods]` of (a, it).
        from_b: Distances of (it, b).
    """

    sight: Sight
    from_a: np.ndarray
    from_b: np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """A rank test: is a model closer to the observer than its null is?

    Attributes:
        model: The model that the null stands in for.
        observer: The other one.
        used: Which of the methods apply, `[methods]`.
        pair: The pair's distances `[methods]`.
        null: Distances of the observer to the null models `[m, methods]`.
        statistic: The pair's combined distance, None where nothing could be tested.
        statistics: Those of the null models.
        left_out: Null models that were not used, with the reason.
        accuracies: Of the model and the median of its null, where true labels are known.
        observed: Accuracy of the observer.
        agreements: Label agreement of observer and model, and the median of observer and null.
        hard: Whether the null models are of the model's architecture; None where that is unknown.
    """

    model: str
    observer: str
    used: np.ndarray
    pair: np.ndarray
    null: np.ndarray
    statistic: float | None
    statistics: tuple[float, ...]
    left_out: tuple[str, ...]
    accuracies: tuple[float | None, float | None]
    observed: float | None
    agreements: tuple[float | None, float | None]
    hard: bool | None

    @property
    def size(self) -> int:
        """Number of null models."""
        return len(self.null)

    @property
    def p_value(self) -> float | None:
        """The conformal p-value, None where nothing could be tested."""
        return None if self.statistic is None else conformal(self.statistic, self.statistics)

    @property
    def effect(self) -> float:
        """How much of the distance between independent models is gone, on average over the methods; in [0, 1]."""
        if not self.size or not self.used.any():
            return 0.0
        middle = np.median(self.null[:, self.used], 0)
        gone = 1 - self.pair[self.used] / np.where(middle > 0, middle, np.inf)
        return float(np.clip(gone.mean(), 0, 1))

    def to_dict(self) -> dict[str, Any]:
        """For the evidence's details.

        Returns:
            Plain JSON values.
        """
        return {
            "null_stands_for": self.model, "seen_from": self.observer, "p_value": self.p_value, "n": self.size,
            "statistic": plain(self.statistic), "null_statistic_smallest": plain(min(self.statistics, default=None)),
            "accuracy": self.accuracies[0], "null_accuracy": self.accuracies[1],
            "agreement": self.agreements[0], "null_agreement": self.agreements[1],
            "same_architecture": self.hard, "left_out": list(self.left_out),
        }  # fmt: skip


def view(
    model: Sight,
    observer: Sight,
    pair: np.ndarray,
    standing: Sequence[tuple[Sight, np.ndarray]],
    probes: Probes,
    enough: int,
) -> View:
    """Rank a model among those null models that can stand in for it.

    Networks of one architecture are nearer to each other than to others, so where there are enough null models of the
    model's own architecture, only these count.

    Args:
        model: The model.
        observer: From where distances are taken.
        pair: Their distances `[methods]`.
        standing: Null models with their distances from the observer.
        probes: What all were asked.
        enough: Null models that the level takes.

    Returns:
        The view; without a p-value where no null model answers in the model's shape by the same methods.
    """
    used = np.isfinite(pair)
    kept: list[tuple[Sight, np.ndarray]] = []
    left_out = []
    for sight, distances in standing:
        if sight.shape != model.shape:
            left_out.append(
                f"{sight.name}: answers with shape {list(sight.shape)}, {model.name} with {list(model.shape)}"
            )
        elif not np.isfinite(distances[used]).all():
            left_out.append(f"{sight.name}: {next(iter(sight.missing.values()), 'a distance is undefined')}")
        else:
            kept.append((sight, distances))
    kept, hard = alike(model, kept, enough)
    null = np.array([d for _, d in kept]).reshape(len(kept), len(pair))
    null = np.where(used, null, np.nan)
    statistic: float | None = None
    statistics: Sequence[float] = ()
    if used.any() and kept:
        own, others = combined.statistics(pair, null)
        statistic, statistics = float(own), [float(v) for v in others]
    return View(
        model.name, observer.name, used, pair, null, statistic, tuple(statistics), tuple(left_out),
        (accuracy(model, probes), median_known([accuracy(s, probes) for s, _ in kept])), accuracy(observer, probes),
        (agreement(model, observer), median_known([agreement(s, observer) for s, _ in kept])), hard,
    )  # fmt: skip


def same_task(own: float | None, other: float | None, null: float | None, margin: float) -> bool | None:
    """Whether null models do the task of a pair about as well: two that know less than the null do are not its like.

    Args:
        own: Accuracy of the model that the null stands in for.
        other: Accuracy of the model beside it.
        null: Median of the null models.
        margin: What counts as about as well.

    Returns:
        False where the null is below its model, or above both; None where no true labels tell.
    """
    if own is None or null is None:
        return None
    return own - margin <= null <= max(own, other or 0.0) + margin


def alike(
    model: Sight, standing: Sequence[tuple[Sight, Beside]], enough: int
) -> tuple[list[tuple[Sight, Beside]], bool | None]:
    """Null models of a model's own architecture, where there are enough of them.

    Args:
        model: The model.
        standing: Null models, with what belongs to them.
        enough: How many are needed.

    Returns:
        These, or all; and whether they are of the model's architecture, None where it is unknown.
    """
    same = [(s, d) for s, d in standing if s.architecture == model.architecture]
    if not model.architecture:
        return list(standing), None
    return (same, True) if len(same) >= min(enough, len(standing)) else (list(standing), False)


def median_known(values: Sequence[float | None]) -> float | None:
    """The median of the figures that are known.

    Returns:
        None where none is.
    """
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def figures(d: Distance) -> dict[str, Any]:
    """A distance as an entry of the evidence's details.

    Returns:
        Method, measure, distance, interval over probes and coverage.
    """
    return {"fingerprint": d.fingerprint.name, "measure": d.measure.name, "distance": d.value, "interval": d.interval,
            "coverage": d.coverage, "spec": [d.fingerprint, d.measure]}  # fmt: skip


def null_figures(null: np.ndarray) -> dict[str, float]:
    """What independent models show by the same measure.

    Args:
        null: Their distances.

    Returns:
        `null_median`, `null_smallest` and `null_largest`; nothing where a distance is undefined or there are none.
    """
    if not len(null) or not np.isfinite(null).all():
        return {}
    return {"null_median": float(np.median(null)), "null_smallest": float(null.min()),
            "null_largest": float(null.max())}  # fmt: skip
