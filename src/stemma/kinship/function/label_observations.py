"""What the black-box test extracts: hard labels of a model, and the comparison of one model with its controls."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.outputs import Outputs
from stemma.kinship.function.multiple_testing import holm
from stemma.kinship.function.null_models import Subject, conformal_p_value
from stemma.kinship.function.observations import Observation, accuracy, agreement
from stemma.kinship.function.partitions import adjusted_rand, contributions, paired_p_values, relabelled
from stemma.kinship.function.rank_test import median_known, of_same_architecture
from stemma.kinship.function.sketches import FunctionalSketch, from_sketch
from stemma.measures.agreement import top_answers
from stemma.probes import Probes
from stemma.types import Digest, Fingerprint


@dataclass(frozen=True, eq=False)
class PartitionComparison:
    """How much of the observer's partition a model shares, compared with its controls.

    Attributes:
        model: The model that the controls stand in for.
        observer: The other model.
        controls: Names of the controls used.
        statistic: How much of the observer's partition the model shares.
        statistics: The same of each control.
        probe_p_values: p-values over probes, one per control, uncorrected.
        adjusted_rands: Adjusted Rand index of the observer with the model, and with each control.
        same_architecture: Whether the controls are of the model's architecture; None where that is unknown.
        accuracies: Of the model, of the observer and the median of the controls, where true labels are known.
        agreements: Label agreement of observer and model, and the median of observer and controls.
        left_out: Controls that were not used, with the reason.
    """

    model: str
    observer: str
    controls: tuple[str, ...]
    statistic: float
    statistics: tuple[float, ...]
    probe_p_values: np.ndarray = field(repr=False)
    adjusted_rands: tuple[float, ...]
    same_architecture: bool | None
    accuracies: tuple[float | None, float | None, float | None]
    agreements: tuple[float | None, float | None]
    left_out: tuple[str, ...]

    @property
    def controls_below(self) -> int:
        """Number of controls that share less of the observer's partition than the model does."""
        return sum(v < self.statistic for v in self.statistics)

    @property
    def p_value_over_models(self) -> float:
        """p-value over models: the rank of the model among its controls."""
        return conformal_p_value(-self.statistic, [-v for v in self.statistics])

    def p_value_over_probes(self, correction: str) -> float:
        """p-value over probes: that the model exceeds every control on further probes."""
        return float((holm(self.probe_p_values) if correction == "holm" else self.probe_p_values).max())

    @property
    def effect(self) -> float:
        """Share of the gap between the median control and a perfect match that is closed, in [0, 1]."""
        middle = float(np.median(self.adjusted_rands[1:]))
        return float(np.clip((self.adjusted_rands[0] - middle) / (1 - middle), 0, 1)) if middle < 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the evidence's details."""
        return {
            "null_stands_for": self.model, "seen_from": self.observer, "n": len(self.controls),
            "beaten": self.controls_below,
            "p_value_of_models": self.p_value_over_models, "p_value_of_probes": self.p_value_over_probes("largest"),
            "p_value_of_probes_holm": self.p_value_over_probes("holm"),
            "adjusted_rand": self.adjusted_rands[0],
            "null_adjusted_rand_median": float(np.median(self.adjusted_rands[1:])),
            "null_adjusted_rand_largest": max(self.adjusted_rands[1:]), "agreement": self.agreements[0],
            "null_agreement": self.agreements[1], "accuracy": self.accuracies[0], "null_accuracy": self.accuracies[2],
            "same_architecture": self.same_architecture, "left_out": list(self.left_out),
        }  # fmt: skip


def compare_with_controls(
    model: Observation,
    observer: Observation,
    controls: Sequence[Observation],
    probes: Probes,
    parts: Sequence[str],
    enough: int,
    margin: float,
) -> PartitionComparison | None:
    """Compare how much of the observer's partition a model and its controls share.

    Args:
        model: The model.
        observer: The model whose partition is predicted.
        controls: Independently trained models.
        probes: The inputs.
        parts: What is counted per probe, names out of `PARTS`.
        enough: With this many controls of the model's architecture, no others are used.
        margin: Of `labels_mean_the_same`.

    Returns:
        The comparison; None where no control can stand in for the model, by output shape or meaning of labels.
    """
    if model.classes is None or observer.classes is None or model.classes.shape != observer.classes.shape:
        return None
    fitting = [(s, np.asarray(s.classes)) for s in controls if s.shape == model.shape and s.classes is not None]
    left_out = [f"{s.name}: output shape {list(s.shape)}" for s in controls if s.shape != model.shape]
    kept, same_architecture = of_same_architecture(model, fitting, enough)
    if not kept:
        return None
    used = [s for s, _ in kept]
    if not labels_mean_the_same(model.classes, np.array([labels for _, labels in kept]), margin):
        return None
    left_out += [f"{s.name}: another architecture" for s, _ in fitting if s not in used]
    pool = np.array([model.classes, *(labels for _, labels in kept)])
    own, flat = observer.classes.ravel(), pool.reshape(len(pool), -1)
    found = contributions(own, flat, parts).reshape(len(pool), len(observer.classes), -1).mean(2, dtype=float)
    means = found.mean(1).round(9).tolist()  # equal answers tie, whatever the order of a sum
    return PartitionComparison(
        model.name, observer.name, tuple(s.name for s in used), means[0], tuple(means[1:]), paired_p_values(found),
        tuple(adjusted_rand(own, r) for r in flat), same_architecture,
        (accuracy(model, probes), accuracy(observer, probes), median_known([accuracy(s, probes) for s in used])),
        (agreement(model, observer), median_known([agreement(s, observer) for s in used])), tuple(left_out),
    )  # fmt: skip


def labels_mean_the_same(labels: np.ndarray, controls: np.ndarray, margin: float) -> bool:
    """Whether no renaming of classes makes labels agree more with `controls` `[m, n]` by over `margin`."""
    from scipy.optimize import linear_sum_assignment

    names = relabelled(np.concatenate([labels.ravel(), controls.ravel()]))
    own, others = names[: labels.size], names[labels.size :]
    width = int(names.max()) + 1
    table = np.bincount(np.tile(own, len(controls)) * width + others, minlength=width * width).reshape(width, width)
    best = table[linear_sum_assignment(-table)].sum()
    return bool(best - np.trace(table) <= margin * table.sum())


def subsampled(observation: Observation, positions: int) -> Observation:
    """The observation at `positions` evenly spaced positions of every sequence."""
    labels = observation.classes
    if labels is None or labels.ndim < 2 or labels.shape[1] <= positions:
        return observation
    return replace(observation, classes=labels[:, np.linspace(0, labels.shape[1] - 1, positions).round().astype(int)])


def observe_labels(subject: Subject, probes: Probes, used: Probes) -> Observation:
    """Hard labels of a model, or of its stored sketch; `classes` is None where answers are not class scores."""
    if ("labels", used.digest) in subject.kept:
        return subject.kept["labels", used.digest]
    if subject.load is None:
        kept = subject.sketch
        if kept is None or kept.probes != probes.digest or kept.spec.digest != FunctionalSketch.of(probes).spec.digest:
            raise StemmaError(
                f"{subject.name} is no longer available, and no functional sketch for these probes is stored"
            )
        return from_sketch(kept, subject.name, probes.kind, labelled=False)
    model = subject.load()
    labels, shape = hard_labels(model, used)
    digest, spec = model.network.digest, Outputs().spec
    kept_of = {} if labels is None else {spec.digest: Fingerprint(digest, used.digest, spec, {"outputs": labels})}
    return Observation(subject.name, digest, shape, labels, kept_of, {}, model.architecture)


def hard_labels(model: Model, probes: Probes) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """Labels `[n]` or `[n, t]` (None if answers are not class scores) and output shape, computed in batches."""
    found, shape = [], ()
    for block in Outputs(batch=8 if probes.kind == "tokens" else 256).blocks(model, probes):
        given = block.values["outputs"]
        shape = given.shape[1:]
        labels = None if "hidden" in block.values else top_answers(given, probes.kind)
        if labels is None and model.black_box and _are_labels(given, probes.kind):
            labels = given[..., 0].astype(np.int64)
        if labels is None:
            return None, shape
        found.append(labels)
    return np.concatenate(found), shape


def _are_labels(given: np.ndarray, kind: str) -> bool:
    """Whether a service answers with class labels: one whole number per probe or position."""
    single = given.shape[-1] == 1 and given.ndim == 2 + (kind == "tokens")
    return single and bool((given >= 0).all() and (given == np.floor(given)).all())


def recorded_labels(name: str, labels: np.ndarray, shape: tuple[int, ...]) -> Observation:
    """An observation of recorded labels; raises `MisuseError` unless they are integers of the given shape."""
    found = np.asarray(labels)
    if found.dtype.kind not in "iu" or found.shape != shape or not 1 <= found.ndim <= 2 or not found.size:
        raise MisuseError(
            f"labels must be integers of shape {list(shape)}, as of the first model, one per probe (and position), "
            f"but those of {name} are {found.dtype} {list(found.shape)}"
        )
    return Observation(name, Digest(f"blackbox:{name}"), (), found, {})


def constant_labels(a: Observation, b: Observation) -> bool:
    """Whether both models put all probes into one class."""
    return all(s.classes is None or np.ptp(s.classes) == 0 for s in (a, b))
