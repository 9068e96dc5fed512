"""Distances of every suspect of the property-protection testbed from the victims, by every measure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.errors import StemmaError
from stemma.kinship.function.consensus import square_roots
from stemma.measures.base import AbstractMeasure
from stemma.measures.decision_distance import DecisionDistance
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.label_disagreement import LabelDisagreement
from stemma.measures.linear_cka import LinearCka
from stemma.measures.sample_correlation import SampleCorrelation
from stemma.measures.softmax_difference import SoftmaxDifference
from testbeds.ip_answers import METHODS, Questions
from testbeds.ip_models import Batch

OUTPUTS: Mapping[str, AbstractMeasure] = {
    "softmax-difference": SoftmaxDifference(),
    "jensen-shannon": JensenShannon(),
    "label-disagreement": LabelDisagreement(),
    "sample-correlation": SampleCorrelation(),
    "decision-distance": DecisionDistance(),
    "output-cka": LinearCka(),
}
NEED_CLASSES = ("softmax-difference", "jensen-shannon", "label-disagreement")
"""What compares class with class: not applicable where the heads differ."""

FIELDS = ("field", "published-8", "published")
MEASURES = (*FIELDS, *OUTPUTS, "weight-cosine")


@dataclass(frozen=True, eq=False)
class Suspects:
    """Models of one regime and their distances.

    Attributes:
        meta: Recipe of each model's batch.
        distances: `[models, victims]` by measure; NaN where it does not apply or was not asked.
        per_probe: Field distances `[models, victims, k]` by field, for what was asked of all models.
        accuracy: On the probes, `[models]`; NaN for other tasks.
        agreement: With each victim's labels on the probes, `[models, victims]`.
        roots: Square roots of the probabilities `[models, k, classes]`; NaN for other tasks.
        victims: The same of the victims.
    """

    meta: Sequence[Mapping[str, Any]]
    distances: Mapping[str, np.ndarray]
    per_probe: Mapping[str, np.ndarray]
    accuracy: np.ndarray
    agreement: np.ndarray
    roots: np.ndarray
    victims: np.ndarray

    def rows(self, **wanted: Any) -> np.ndarray:
        """Indices of the models whose recipe has these entries."""
        return np.array([i for i, m in enumerate(self.meta) if all(m.get(k) == v for k, v in wanted.items())], int)


def suspects(questions: Questions, batches: Iterable[Batch], told: Callable[[str], None]) -> Suspects:
    """Ask all models everything, or take their answers from the cache."""
    meta: list[Mapping[str, Any]] = []
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches:
        found = questions.asked(batch)
        count = len(found["logits"])
        meta += [batch.recipe] * count
        parts.append(_measured(questions, batch, found))
        told(f"{len(meta)} models, {batch.recipe}")
    joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    distances = {name: joined[name] for name in MEASURES}
    per_probe = {name: joined[f"{name}/probes"] for name in ("field",)}
    victims = np.stack([square_roots(v) for v in questions.logits])
    return Suspects(meta, distances, per_probe, joined["accuracy"], joined["agreement"], joined["roots"], victims)


def _measured(questions: Questions, batch: Batch, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    logits, victims = found["logits"], questions.logits
    count = len(logits)
    out: dict[str, np.ndarray] = {}
    for name in FIELDS:
        per_probe = found.get(name)
        nothing = np.full((count, len(victims)), np.nan)
        out[name] = nothing if per_probe is None else np.nanmean(per_probe, 2)
        if name == "field":
            out[f"{name}/probes"] = found[name]
    same = batch.recipe["kind"] != "transfer"
    against = range(len(victims)) if "victim" not in batch.recipe else (batch.recipe["victim"],)
    for name, measure in OUTPUTS.items():
        table = np.full((count, len(victims)), np.nan)
        for v in against if same or name not in NEED_CLASSES else ():
            table[:, v] = [_distance(measure, victims[v], row) for row in logits]
        out[name] = table
    out["roots"] = np.full((count, *victims.shape[1:]), np.nan, np.float32)
    if same:
        out["roots"][:] = [square_roots(row) for row in logits]
    out["weight-cosine"] = found["weights"]
    labels = logits.argmax(2)
    right = (labels == questions.probes.labels).mean(1)
    out["accuracy"] = right if same else np.full(count, np.nan)
    agree = (labels[:, None] == victims.argmax(2)[None]).mean(2)
    out["agreement"] = agree if same else np.full((count, len(victims)), np.nan)
    return out


def _distance(measure: AbstractMeasure, a: np.ndarray, b: np.ndarray) -> float:
    try:
        return float(np.nanmean(measure.distances({"outputs": a}, {"outputs": b})))
    except StemmaError:
        return float("nan")


def fields_asked() -> dict[str, Any]:
    """How the fields were taken, for the record."""
    return {name: {"fingerprint": METHODS[name][0].spec.params, "measure": METHODS[name][1].spec.params}
            for name in FIELDS}  # fmt: skip
