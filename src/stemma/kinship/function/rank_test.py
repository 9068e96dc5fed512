"""Rank test of one model among null models, by their distances from an observing model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from stemma.kinship.function import combined
from stemma.kinship.function.consensus import shared_deviations, unlikeness
from stemma.kinship.function.few_controls import CHECKED, OWN_ENOUGH, NormalLaw, normal_law
from stemma.kinship.function.null_models import conformal_p_value
from stemma.kinship.function.observations import Observation, accuracy, agreement, json_number
from stemma.probes import Probes
from stemma.types import Distance

Payload = TypeVar("Payload")

UNLIKE = 0.01
"""Level at which null models cannot stand in for a model that answers otherwise than they do."""

UNLIKE_FEW = 0.1
"""The same with fewer null models than `CHECKED`, which show less of it."""

TASK_MARGIN = 0.1
"""Default of how far the median accuracy of the null models may lie below the model's."""


@dataclass(frozen=True, eq=False)
class NullModelDistances:
    """A null model with its distances `[methods]` from both models of the pair."""

    observation: Observation
    from_a: np.ndarray
    from_b: np.ndarray


@dataclass(frozen=True, eq=False)
class RankTest:
    """A rank test: is a model closer to the observer than its null models are?

    Attributes:
        model: The model that the null models stand in for.
        observer: The other model.
        used: Which of the methods apply, `[methods]`.
        pair: The pair's distances `[methods]`.
        null: Distances of the observer to the null models `[m, methods]`.
        statistic: The pair's combined distance, None where nothing could be tested.
        statistics: The null models' combined distances.
        left_out: Null models that were not used, with the reason.
        accuracies: Of the model, and the median of the null models, where true labels are known.
        observer_accuracy: Accuracy of the observer.
        agreements: Label agreement of observer and model, and the median of observer and null models.
        same_architecture: Whether the null models are of the model's architecture; None where that is unknown.
        law: The null models' tail, extrapolated; None where there are too few.
        alike: p-value that the model answers as its null models do among themselves; None where that is unknown.
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
    observer_accuracy: float | None
    agreements: tuple[float | None, float | None]
    same_architecture: bool | None
    law: NormalLaw | None = None
    alike: float | None = None

    @property
    def size(self) -> int:
        """Number of null models."""
        return len(self.null)

    @property
    def p_value(self) -> float | None:
        """The conformal p-value, None where nothing could be tested."""
        return None if self.statistic is None else conformal_p_value(self.statistic, self.statistics)

    def extrapolates(self, enough: int) -> bool:
        """Whether the extrapolated p-value decides: too few null models for a rank, and all further away."""
        closest = self.statistic is not None and all(v > self.statistic for v in self.statistics)
        return self.size < enough and closest and self.law is not None and self.law.fits

    def deciding_p_value(self, enough: int) -> float | None:
        """The p-value that decides: the rank, or with fewer null models than `enough` the normal law."""
        return self.law.p_value if self.law is not None and self.extrapolates(enough) else self.p_value

    @property
    def stands_in(self) -> bool | None:
        """Whether the null models answer as the model does; None where that is unknown."""
        return None if self.alike is None else self.alike > (UNLIKE if self.size >= CHECKED else UNLIKE_FEW)

    @property
    def effect(self) -> float:
        """1 less the pair's distance over the median null distance, averaged over the methods, in [0, 1]."""
        if not self.size or not self.used.any():
            return 0.0
        middle = np.median(self.null[:, self.used], 0)
        gone = 1 - self.pair[self.used] / np.where(middle > 0, middle, np.inf)
        return float(np.clip(gone.mean(), 0, 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the evidence's details."""
        return {
            "null_stands_for": self.model, "seen_from": self.observer, "p_value": self.p_value, "n": self.size,
            "statistic": json_number(self.statistic),
            "null_statistic_smallest": json_number(min(self.statistics, default=None)),
            "accuracy": self.accuracies[0], "null_accuracy": self.accuracies[1],
            "agreement": self.agreements[0], "null_agreement": self.agreements[1],
            "same_architecture": self.same_architecture, "left_out": list(self.left_out),
            "p_value_normal_law": None if self.law is None else self.law.p_value,
            "normal_law_fit_p_value": None if self.law is None else self.law.fit_p, "alike_p_value": self.alike,
        }  # fmt: skip


def rank_test(
    model: Observation,
    observer: Observation,
    pair: np.ndarray,
    null_models: Sequence[tuple[Observation, np.ndarray]],
    probes: Probes,
    enough: int,
) -> RankTest:
    """Rank a model among those null models that can stand in for it.

    Networks of one architecture are nearer to each other than to others, so where there are enough null models of the
    model's own architecture, only these count.

    Args:
        model: The model.
        observer: The model from which distances are measured.
        pair: Their distances `[methods]`.
        null_models: Null models with their distances from the observer.
        probes: The probes of all models.
        enough: Number of null models that the significance level needs.

    Returns:
        The test; without a p-value where no null model has the model's output shape and the same methods.
    """
    used = np.isfinite(pair)
    kept: list[tuple[Observation, np.ndarray]] = []
    left_out = []
    for observation, distances in null_models:
        if observation.shape != model.shape:
            left_out.append(
                f"{observation.name}: output shape {list(observation.shape)}, but {model.name} has {list(model.shape)}"
            )
        elif not np.isfinite(distances[used]).all():
            left_out.append(
                f"{observation.name}: {next(iter(observation.missing.values()), 'a distance is undefined')}"
            )
        else:
            kept.append((observation, distances))
    own_enough = enough if len(kept) >= enough else OWN_ENOUGH  # an exact rank is not given up for a law
    kept, same_architecture = of_same_architecture(model, kept, own_enough)
    null = np.array([d for _, d in kept]).reshape(len(kept), len(pair))
    null = np.where(used, null, np.nan)
    statistic: float | None = None
    statistics: Sequence[float] = ()
    law: NormalLaw | None = None
    if used.any() and kept:
        table = with_deviations(observer, [model, *(s for s, _ in kept)], np.vstack([pair[None], null]))
        own, others = combined.statistics(table[0], table[1:])
        law = normal_law(table[0], table[1:])
        statistic, statistics = float(own), [float(v) for v in others]
    return RankTest(
        model.name, observer.name, used, pair, null, statistic, tuple(statistics), tuple(left_out),
        (accuracy(model, probes), median_known([accuracy(s, probes) for s, _ in kept])), accuracy(observer, probes),
        (agreement(model, observer), median_known([agreement(s, observer) for s, _ in kept])), same_architecture,
        law, unlikeness(model, [s for s, _ in kept]),
    )  # fmt: skip


def with_deviations(observer: Observation, models: Sequence[Observation], distances: np.ndarray) -> np.ndarray:
    """Distances `[m, methods]` of models from the observer, with those of their shared deviations where they apply."""
    found = shared_deviations(observer, models)
    return distances if found is None else np.column_stack([distances, found])


def same_task(own: float | None, other: float | None, null: float | None, margin: float) -> bool | None:
    """Whether null models are about as accurate as the pair, within a margin; None without true labels."""
    if own is None or null is None:
        return None
    return own - margin <= null <= max(own, other or 0.0) + margin


def of_same_architecture(
    model: Observation, null_models: Sequence[tuple[Observation, Payload]], enough: int
) -> tuple[list[tuple[Observation, Payload]], bool | None]:
    """Null models of the model's architecture if there are enough, else all; and whether they are of it."""
    same = [(s, d) for s, d in null_models if s.architecture == model.architecture]
    if not model.architecture:
        return list(null_models), None
    return (same, True) if len(same) >= min(enough, len(null_models)) else (list(null_models), False)


def median_known(values: Sequence[float | None]) -> float | None:
    """Median of the values that are not None; None if there is none."""
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def distance_entry(d: Distance) -> dict[str, Any]:
    """Method, measure, distance, interval over probes and coverage, for the evidence's details."""
    return {"fingerprint": d.fingerprint.name, "measure": d.measure.name, "distance": d.value, "interval": d.interval,
            "coverage": d.coverage, "spec": [d.fingerprint, d.measure]}  # fmt: skip


def null_summary(null: np.ndarray) -> dict[str, float]:
    """Median, smallest and largest of the null models' distances `[m]`; empty if one is undefined."""
    if not len(null) or not np.isfinite(null).all():
        return {}
    return {"null_median": float(np.median(null)), "null_smallest": float(null.min()),
            "null_largest": float(null.max())}  # fmt: skip
