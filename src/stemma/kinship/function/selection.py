"""Which probes tell related from independent models best, chosen on models that are never tested against again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.function import combined
from stemma.probes import Probes
from stemma.types import Digest

LEAST = 2
"""Null models that a choice needs at least."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Probes that were chosen, and the models that they were chosen on.

    Attributes:
        probes: The chosen ones, in their old order.
        rows: Their indices in the probes given.
        scores: How well each of the given probes separates, `[k]`; larger is better.
        used: Digests of the null models that the choice was made on: a test must use others.
    """

    probes: Probes
    rows: tuple[int, ...]
    scores: np.ndarray
    used: frozenset[Digest]

    def refuse_used(self, null: Sequence[tuple[str, Digest]]) -> None:
        """Stop a test on models that helped to choose its probes.

        Args:
            null: Names and digests of the null models of the test.

        Raises:
            MisuseError: If one of them was used.
        """
        again = [name for name, digest in null if digest in self.used]
        if again:
            raise MisuseError(
                f"the probes were chosen on {', '.join(again[:5])}{' …' if len(again) > 5 else ''}: a test on the same "
                "models would find what the choice put there. Give null models that took no part in it"
            )


def select(
    probes: Probes,
    null: np.ndarray,
    used: Sequence[Digest],
    keep: int,
    positive: np.ndarray | None = None,
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
    if null.ndim != 2 or null.shape != (len(used), len(probes)) or len(used) < LEAST:
        raise MisuseError(
            f"selection takes distances of at least {LEAST} null models at every probe, [{len(used)}, {len(probes)}], "
            f"but they are {list(null.shape)}"
        )
    if not 1 <= keep <= len(probes):
        raise MisuseError(f"{keep} of {len(probes)} probes cannot be kept")
    if positive is not None and (positive.ndim != 2 or positive.shape[1] != len(probes)):
        raise MisuseError(f"the positives' distances are {list(positive.shape)}, not [p, {len(probes)}]")
    scores = _separation(null, positive)
    rows = np.sort(np.argsort(-scores, kind="stable")[:keep])
    return Selection(probes.take(rows), tuple(int(r) for r in rows), scores, frozenset(used))


def select_for(
    reference: Model, null: Sequence[Model], probes: Probes, keep: int, positive: Sequence[Model] = ()
) -> Selection:
    """Choose probes for questions about one model, by the first method of the verdict.

    Cost: one fingerprint of every model.

    Args:
        reference: The model that suspects will be compared with.
        null: Independent models, for the choice only.
        probes: All of them.
        keep: How many probes to choose.
        positive: Models known to come from the reference.

    Returns:
        The selection.
    """
    method, measure = combined.METHODS[0]
    own = method(reference, probes)

    def distances(models: Sequence[Model]) -> np.ndarray:
        return np.array([measure.distances(own.values, method(m, probes).values) for m in models])

    used = [m.network.digest for m in null]
    return select(probes, distances(null), used, keep, distances(positive) if positive else None)


def select_by_entropy(models: Sequence[Model], probes: Probes, keep: int) -> Selection:
    """Choose the probes about which independent models differ most: where all answer alike, kinship cannot show.

    Labels are enough, so that black boxes can choose. Cost: one forward pass per model.

    Args:
        models: Independent models, for the choice only.
        probes: All of them.
        keep: How many probes to choose.

    Returns:
        The selection; a test refuses these models.

    Raises:
        MisuseError: If there are too few models or probes, or their answers are no choice among classes.

    Source: after the entropy-driven choice of prompts of Nikolic, Baluta and Saxena 2025, arXiv:2502.00706; here the
    entropy is that of the answers of many models, and the models that choose never test.
    """
    from stemma.kinship.function.label_observations import hard_labels
    from stemma.kinship.function.partitions import vote_entropy

    if len(models) < LEAST or not 1 <= keep <= len(probes):
        raise MisuseError(
            f"a choice takes at least {LEAST} models and 1 to {len(probes)} probes to keep, but {len(models)} models "
            f"and {keep} were given"
        )
    found = [(m.name, hard_labels(m, probes)[0]) for m in models]
    if mute := [name for name, labels in found if labels is None]:
        raise MisuseError(f"the answers of {mute[0]} are no choice among classes: give classifiers or token models")
    labels = np.array([labels for _, labels in found])
    scores = vote_entropy(labels.reshape(len(models), -1)).reshape(labels.shape[1:]).reshape(len(probes), -1).mean(1)
    rows = np.sort(np.argsort(-scores, kind="stable")[:keep])
    used = frozenset(m.network.digest for m in models)
    return Selection(probes.take(rows), tuple(int(r) for r in rows), scores, used)


def _separation(null: np.ndarray, positive: np.ndarray | None) -> np.ndarray:
    """Score of each probe; one that is undefined for any model is last."""
    with np.errstate(invalid="ignore"):
        gap, variance = null.mean(0), null.var(0, ddof=1)
        if positive is not None:
            gap = gap - positive.mean(0)
            variance = (variance + positive.var(0)) / 2
        floor = 1e-3 * float(np.nanmedian(np.abs(gap))) + np.finfo(float).tiny
        score = gap / (np.sqrt(variance) + floor)
    return np.where(np.isfinite(score), score, -np.inf)
