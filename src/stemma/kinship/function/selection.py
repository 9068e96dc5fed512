"""Selection of the probes that separate related from independent models, with a guard against reusing models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Digest

MIN_NULL_MODELS = 2
"""Null models that a choice needs at least."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Selected probes, and the models that they were selected on.

    Attributes:
        probes: The selected ones, in their old order.
        rows: Their indices in the probes given.
        scores: How well each of the given probes separates, `[k]`; larger is better.
        used: Digests of the null models used for the selection: a test must use others.
    """

    probes: Probes
    rows: tuple[int, ...]
    scores: np.ndarray
    used: frozenset[Digest]

    def refuse_used(self, null: Sequence[tuple[str, Digest]]) -> None:
        """Raise `MisuseError` if one of these null models (name, digest) helped to choose the probes."""
        reused = [name for name, digest in null if digest in self.used]
        if reused:
            raise MisuseError(
                f"the probes were selected on {', '.join(reused[:5])}{' …' if len(reused) > 5 else ''}, so a test with "
                "these models is biased: give control models that were not used for the selection"
            )


def select(
    probes: Probes, null: np.ndarray, used: Sequence[Digest], keep: int, positive: np.ndarray | None = None
) -> Selection:
    """Choose the probes at which independent models are far and, where examples are given, related ones near.

    A probe's score is the mean distance of independent models over their spread; with positives, the difference of
    the means over the pooled spread (Cohen's d).

    Args:
        probes: All of them.
        null: Per-probe distances of independent models `[m, k]`, NaN where undefined.
        used: Digests of these m models.
        keep: How many probes to choose.
        positive: Per-probe distances of models known to be related `[p, k]`.

    Returns:
        The selection; hand it to the test, which refuses these models.

    Raises:
        MisuseError: If the shapes do not fit, or there are too few models or probes.
    """
    if null.ndim != 2 or null.shape != (len(used), len(probes)) or len(used) < MIN_NULL_MODELS:
        raise MisuseError(
            f"the distances must have shape [{len(used)}, {len(probes)}] (null models, probes), with at least "
            f"{MIN_NULL_MODELS} null models, but they have shape {list(null.shape)}"
        )
    if not 1 <= keep <= len(probes):
        raise MisuseError(f"keep must lie between 1 and the number of probes ({len(probes)}), but it is {keep}")
    if positive is not None and (positive.ndim != 2 or positive.shape[1] != len(probes)):
        raise MisuseError(f"the positives' distances have shape {list(positive.shape)}, not [p, {len(probes)}]")
    scores = _separation(null, positive)
    rows = np.sort(np.argsort(-scores, kind="stable")[:keep])
    return Selection(probes.take(rows), tuple(int(r) for r in rows), scores, frozenset(used))


def select_by_entropy(models: Sequence[Model], probes: Probes, keep: int) -> Selection:
    """Select the probes on which independent models differ most: where all agree, a test has no power.

    Labels are enough, so that black boxes can choose. Cost: one forward pass per model.

    Args:
        models: Independent models, for the choice only.
        probes: All of them.
        keep: How many probes to choose.

    Returns:
        The selection; a test refuses these models.

    Raises:
        MisuseError: If there are too few models or probes, or their answers are not class scores.

    Source: after the entropy-driven choice of prompts of Nikolic, Baluta and Saxena 2025, arXiv:2502.00706; here the
    entropy is that of the answers of many models, and the models that choose never test.
    """
    from stemma.kinship.function.label_observations import hard_labels
    from stemma.kinship.function.partitions import vote_entropy

    if len(models) < MIN_NULL_MODELS or not 1 <= keep <= len(probes):
        raise MisuseError(
            f"selection needs at least {MIN_NULL_MODELS} models and keep between 1 and {len(probes)}, but "
            f"{len(models)} models and keep {keep} were given"
        )
    found = [(m.name, hard_labels(m, probes)[0]) for m in models]
    if without_labels := [name for name, labels in found if labels is None]:
        raise MisuseError(f"the answers of {without_labels[0]} are not class scores: give classifiers or token models")
    labels = np.array([labels for _, labels in found])
    scores = vote_entropy(labels.reshape(len(models), -1)).reshape(labels.shape[1:]).reshape(len(probes), -1).mean(1)
    rows = np.sort(np.argsort(-scores, kind="stable")[:keep])
    used = frozenset(m.network.digest for m in models)
    return Selection(probes.take(rows), tuple(int(r) for r in rows), scores, used)


def _separation(null: np.ndarray, positive: np.ndarray | None) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        gap, variance = null.mean(0), null.var(0, ddof=1)
        if positive is not None:
            gap = gap - positive.mean(0)
            variance = (variance + positive.var(0)) / 2
        floor = 1e-3 * float(np.nanmedian(np.abs(gap))) + np.finfo(float).tiny
        score = gap / (np.sqrt(variance) + floor)
    return np.where(np.isfinite(score), score, -np.inf)
