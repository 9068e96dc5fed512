"""What the black-box test sees: hard labels of a model, and one model among its controls."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.outputs import Outputs
from stemma.kinship.function.multiple_testing import holm
from stemma.kinship.function.null_comparison import alike, median_known
from stemma.kinship.function.null_models import Party, conformal
from stemma.kinship.function.observations import Sight, accuracy, agreement
from stemma.kinship.function.partitions import adjusted_rand, compressed, contributions, paired
from stemma.kinship.function.sketches import FunctionalSketch, looked
from stemma.measures.agreement import top_answers
from stemma.probes import Probes
from stemma.types import Digest, Fingerprint


@dataclass(frozen=True, eq=False)
class PartitionView:
    """One model among its controls, as the other model sees them.

    Attributes:
        model: The model that the controls stand in for.
        observer: The other one.
        controls: Names of those that were used.
        statistic: How much of the observer's partition is the model's.
        statistics: The same of the controls.
        by_probe: p-values over probes, one per control, uncorrected.
        rand: Adjusted Rand index of the observer with the model, and with each control.
        hard: Whether the controls are of the model's architecture; None where that is unknown.
        accuracies: Of the model, of the observer and the median of the controls, where true labels are known.
        agreements: Label agreement of observer and model, and the median of observer and controls.
        left_out: Controls that were not used, with the reason.
    """

    model: str
    observer: str
    controls: tuple[str, ...]
    statistic: float
    statistics: tuple[float, ...]
    by_probe: np.ndarray = field(repr=False)
    rand: tuple[float, ...]
    hard: bool | None
    accuracies: tuple[float | None, float | None, float | None]
    agreements: tuple[float | None, float | None]
    left_out: tuple[str, ...]

    @property
    def beaten(self) -> int:
        """Controls that share less of the observer's partition than the model does."""
        return sum(v < self.statistic for v in self.statistics)

    @property
    def by_model(self) -> float:
        """p-value over models: the rank of the model among its controls."""
        return conformal(-self.statistic, [-v for v in self.statistics])

    def beats_all(self, correction: str) -> float:
        """p-value over probes: that every control would be beaten on further probes."""
        return float((holm(self.by_probe) if correction == "holm" else self.by_probe).max())

    @property
    def effect(self) -> float:
        """How much of what controls lack of the observer's partition the model has, in [0, 1]."""
        middle = float(np.median(self.rand[1:]))
        return float(np.clip((self.rand[0] - middle) / (1 - middle), 0, 1)) if middle < 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the evidence's details.

        Returns:
            Plain JSON values.
        """
        return {
            "null_stands_for": self.model, "seen_from": self.observer, "n": len(self.controls), "beaten": self.beaten,
            "p_value_of_models": self.by_model, "p_value_of_probes": self.beats_all("largest"),
            "p_value_of_probes_holm": self.beats_all("holm"),
            "adjusted_rand": self.rand[0], "null_adjusted_rand_median": float(np.median(self.rand[1:])),
            "null_adjusted_rand_largest": max(self.rand[1:]), "agreement": self.agreements[0],
            "null_agreement": self.agreements[1], "accuracy": self.accuracies[0], "null_accuracy": self.accuracies[2],
            "same_architecture": self.hard, "left_out": list(self.left_out),
        }  # fmt: skip


def among(
    model: Sight,
    observer: Sight,
    controls: Sequence[Sight],
    probes: Probes,
    parts: Sequence[str],
    enough: int,
    margin: float,
) -> PartitionView | None:
    """One model among its controls, as the other model sees them.

    Args:
        model: The model.
        observer: Who observes.
        controls: Independent models.
        probes: What was asked.
        parts: What is counted per probe.
        enough: Controls of the model's architecture from which no others count.
        margin: Of `means_the_same`.

    Returns:
        The view; None where nothing can stand in for the model: no control has its shape of answers, or their labels
        mean something else.
    """
    if model.classes is None or observer.classes is None or model.classes.shape != observer.classes.shape:
        return None
    fitting = [(s, np.asarray(s.classes)) for s in controls if s.shape == model.shape and s.classes is not None]
    left_out = [f"{s.name}: answers with shape {list(s.shape)}" for s in controls if s.shape != model.shape]
    kept, hard = alike(model, fitting, enough)
    if not kept:
        return None
    used = [s for s, _ in kept]
    if not means_the_same(model.classes, np.array([labels for _, labels in kept]), margin):
        return None
    left_out += [f"{s.name}: another architecture" for s, _ in fitting if s not in used]
    pool = np.array([model.classes, *(labels for _, labels in kept)])
    own, flat = observer.classes.ravel(), pool.reshape(len(pool), -1)
    found = contributions(own, flat, parts).reshape(len(pool), len(observer.classes), -1).mean(2, dtype=float)
    means = found.mean(1).round(9).tolist()  # equal answers tie, whatever the order of a sum
    return PartitionView(
        model.name, observer.name, tuple(s.name for s in used), means[0], tuple(means[1:]), paired(found),
        tuple(adjusted_rand(own, r) for r in flat), hard,
        (accuracy(model, probes), accuracy(observer, probes), median_known([accuracy(s, probes) for s in used])),
        (agreement(model, observer), median_known([agreement(s, observer) for s in used])), tuple(left_out),
    )  # fmt: skip


def means_the_same(labels: np.ndarray, controls: np.ndarray, margin: float) -> bool:
    """Whether a model's labels mean what those of its controls mean: other names would not make them much more alike.

    Args:
        labels: The model's `[n]` or `[n, t]`.
        controls: Theirs, `[m, n]` or `[m, n, t]`.
        margin: Share of probes that the best renaming may win.

    Returns:
        False for a head with other classes that happens to be of the same size.
    """
    from scipy.optimize import linear_sum_assignment

    names = compressed(np.concatenate([labels.ravel(), controls.ravel()]))
    own, others = names[: labels.size], names[labels.size :]
    width = int(names.max()) + 1
    table = np.bincount(np.tile(own, len(controls)) * width + others, minlength=width * width).reshape(width, width)
    best = table[linear_sum_assignment(-table)].sum()
    return bool(best - np.trace(table) <= margin * table.sum())


def thinned(sight: Sight, positions: int) -> Sight:
    """A model at some positions of every sequence.

    Args:
        sight: What was seen of it.
        positions: How many, evenly spaced.

    Returns:
        The same where there are no more.
    """
    labels = sight.classes
    if labels is None or labels.ndim < 2 or labels.shape[1] <= positions:
        return sight
    return replace(sight, classes=labels[:, np.linspace(0, labels.shape[1] - 1, positions).round().astype(int)])


def asked_of(party: Party, probes: Probes, asked: Probes) -> Sight:
    """Labels of a model, or of the sketch that is left of it.

    Args:
        party: The model.
        probes: All probes, as given.
        asked: Those that are asked: all, or the few that sketches are of.

    Returns:
        What was seen; its classes are None where answers are no choice.

    Raises:
        StemmaError: If it cannot be asked, or is gone without a sketch.
    """
    if party.load is None:
        kept = party.sketch
        if kept is None or kept.probes != probes.digest or kept.spec.digest != FunctionalSketch.of(probes).spec.digest:
            raise StemmaError(f"{party.name} is gone, and no functional sketch for these probes is kept")
        return looked(kept, party.name, probes.kind, labelled=False)
    model = party.load()
    labels, shape = hard_labels(model, asked)
    digest, spec = model.network.digest, Outputs().spec
    kept_of = {} if labels is None else {spec.digest: Fingerprint(digest, asked.digest, spec, {"outputs": labels})}
    return Sight(party.name, digest, shape, labels, kept_of, {}, model.architecture)


def hard_labels(model: Model, probes: Probes) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """What a model chooses, a few probes at a time: scores are never held for all of them.

    Args:
        model: The model.
        probes: What it is asked.

    Returns:
        Labels `[n]`, or `[n, t]` of token models; None where its answers are no choice. And the shape of one answer.

    Raises:
        StemmaError: If it cannot be asked, or answers with NaN.
    """
    found, shape = [], ()
    for block in Outputs(batch=8 if probes.kind == "tokens" else 256).blocks(model, probes):
        given = block.values["outputs"]
        shape, labels = given.shape[1:], top_answers(given, probes.kind)
        if labels is None and model.black_box and _are_labels(given, probes.kind):
            labels = given[..., 0].astype(np.int64)
        if labels is None:
            return None, shape
        found.append(labels)
    return np.concatenate(found), shape


def _are_labels(given: np.ndarray, kind: str) -> bool:
    """Whether a service answers with labels themselves: one whole number per probe, or per position."""
    single = given.shape[-1] == 1 and given.ndim == 2 + (kind == "tokens")
    return single and bool((given >= 0).all() and (given == np.floor(given)).all())


def recorded(name: str, labels: np.ndarray, shape: tuple[int, ...]) -> Sight:
    """A model of which only labels are known.

    Args:
        name: The model's name.
        labels: `[n]` or `[n, t]`.
        shape: What their shape has to be.

    Returns:
        What was seen of it.

    Raises:
        MisuseError: If these are no labels, or not of these probes.
    """
    found = np.asarray(labels)
    if found.dtype.kind not in "iu" or found.shape != shape or not 1 <= found.ndim <= 2 or not found.size:
        raise MisuseError(
            f"labels are integers, one per probe (and position), the same probes for all: those of {name} are "
            f"{found.dtype} {list(found.shape)}, those of the first model {list(shape)}"
        )
    return Sight(name, Digest(f"blackbox:{name}"), (), found, {})


def mute(a: Sight, b: Sight) -> bool:
    """Whether two models agree only in never changing their answer: that is no finding.

    Returns:
        True where both put all probes into one class.
    """
    return all(s.classes is None or np.ptp(s.classes) == 0 for s in (a, b))
