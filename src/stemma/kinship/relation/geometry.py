"""Classification of a dense difference: fine-tuned, siblings, or two trainings from one random initialisation.

All features are symmetric in the two models. The classification uses that a fine-tuned child has larger norms than its
parent in nearly every layer and unit, because training makes weights grow, and that its change is nearly orthogonal to
the parent's weights; of two siblings neither has larger norms; two trainings from one initialisation share only the
distribution of that initialisation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

VERSION = 2
"""Raised with every new calibration (`geometry.json`), so that stored results of another one are not reused."""

NETWORKS = {"mlp": "perceptrons", "cnn": "CNNs", "vit": "vision transformers", "lm": "language models"}

KINDS = (RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT)

RANKS = 24
"""Most layers whose change is decomposed to find its rank."""

FEATURES = (
    "change", "asymmetry", "asymmetry of units", "asymmetry of layers", "typical asymmetry", "common over start",
    "spread of that", "least of that", "vectors over matrices", "vectors", "spread of change", "rank of change",
    "least rank of change", "difference of norms", "share of matrices changed",
)  # fmt: skip
"""Names of the features of a pair, see `features`."""


@dataclass(frozen=True)
class Classification:
    """Class of a dense difference.

    Attributes:
        kind: `finetuned`, `siblings` or `same-init`; `related` where none is likely enough.
        probability: Calibrated probability of the most likely class; None where the pair is unlike the calibration.
        position: Position of the common origin between parent (0) and child (1), by norms alone: about 0 or below for
            a child, one half for siblings, above 1 where the roles are exchanged.
        reason: Why there is no class, where there is none.
    """

    kind: RelationKind
    probability: float | None
    position: float | None
    reason: str = ""


KNOWN_LATER = Classification(RelationKind.FINETUNED, None, None)
"""For pairs in which another operation shows which model is the later one."""

UNDETERMINED = Classification(RelationKind.RELATED, None, None, "the paired tensors may not correspond")
"""For pairs whose tensors may be wrongly paired."""


def classify(pair: Pair) -> Classification:
    """Classify a dense difference by its geometry."""
    changed = _matrices(pair)
    if not changed:
        vectors = [v for v in pair.unexplained if not v.matrix]
        near = sum(v.sums.difference for v in vectors) <= sum(v.sums.norm_a for v in vectors)
        return KNOWN_LATER if near or not vectors else UNDETERMINED
    a, d = sum(m.sums.norm_a for m in changed), sum(m.sums.difference for m in changed)
    position = float((a - sum(m.sums.inner for m in changed)) / d)
    measured, fitted = features(pair), calibration()
    network, distance = nearest_calibration(measured, fitted)
    if distance > fitted["reach"]:
        return Classification(
            RelationKind.RELATED, None, position, "unlike all networks that the classifier was calibrated on"
        )
    p = probabilities(measured, fitted)
    best = int(np.argmax(p))
    least = fitted["sure"][network][KINDS[best].value]
    if p[best] >= least:
        return Classification(KINDS[best], float(p[best]), position)
    required = f"but below the threshold {least:.2f}" if least <= 1 else "which is never concluded"
    reason = f"most likely {KINDS[best].value}, {required} for networks similar to {NETWORKS[network]}"
    return Classification(RelationKind.RELATED, float(p[best]), position, reason)


def _matrices(pair: Pair) -> list[Layer]:
    """Matrices that changed and were not replaced."""
    out = [m for m in pair.matrices if not m.is_explained and m.sums.difference > 0 and "replaced" not in m.marks]
    return [m for m in out if m.sums.norm_a > 0 and m.sums.norm_b > 0]


def features(pair: Pair) -> np.ndarray:
    """Features of a pair.

    With r the relative change and n half the logarithm of the ratio of squared norms, the asymmetry n / r² says how far
    the projection of the origin lies from the middle between the two models.

    Args:
        pair: A pair with at least one changed matrix.

    Returns:
        One number per name in `FEATURES`.
    """
    changed = _matrices(pair)
    sums = [m.sums for m in changed]
    change = np.array([np.sqrt(s.difference / np.sqrt(s.norm_a * s.norm_b)) for s in sums])
    growth = np.array([0.5 * np.log(s.norm_b / s.norm_a) for s in sums])
    a, b, d = (sum(getattr(s, k) for s in sums) for k in ("norm_a", "norm_b", "difference"))
    whole, grown = np.sqrt(d / np.sqrt(a * b)), 0.5 * np.log(b / a)
    layers = growth / change**2
    # A start that is uniform within one over the root of the fan-in has squares that add up to a third per unit.
    common = np.array([np.log(max(s.inner, 1e-3 * s.norm_a) / (s.rows.shape[1] / 3)) for s in sums])
    ranks = np.array([_rank_share(m) for m in changed[:: -(-len(changed) // RANKS)]])
    vectors = _vector_change(pair)
    return np.array([
        np.log(whole), np.log1p(abs(grown / whole**2)), _unit_asymmetry(changed), abs(np.mean(np.sign(growth))),
        np.log1p(np.median(abs(layers))), common.mean(), common.std(), common.min(), vectors - np.log(whole), vectors,
        np.std(np.log(change)), ranks.mean(), ranks.min(), abs(grown), len(changed) / max(1, len(pair.matrices)),
    ])  # fmt: skip


def _unit_asymmetry(changed: list[Layer]) -> float:
    """Mean over layers and units of each unit's saturated asymmetry: near 1 where nearly all units grew."""
    out = []
    for m in changed:
        a, b, _, d = m.sums.rows
        alive = (a > 0) & (b > 0) & (d > 0)
        if alive.any():
            change = d[alive] / np.sqrt(a[alive] * b[alive])
            out.append(float(np.mean(np.tanh(0.5 * np.log(b[alive] / a[alive]) / change))))
    return abs(float(np.mean(out))) if out else 0.0


def _rank_share(layer: Layer) -> float:
    """Stable rank of the difference, as a share of the largest possible."""
    values = layer.sums.singular_values
    if not len(values) or values[0] == 0:
        return 1.0
    return float((values**2).sum() / values[0] ** 2 / max(1, layer.sums.max_rank))


def _vector_change(pair: Pair) -> float:
    """Log relative change of all biases and gains together."""
    sums = [v.sums for v in pair.layers if not v.matrix and not v.statistic and v.measured is not None]
    a, b, d = (sum(getattr(s, k) for s in sums) for k in ("norm_a", "norm_b", "difference"))
    return float(np.log(np.sqrt(d / np.sqrt(a * b)) + 1e-4)) if a > 0 and b > 0 else float(np.log(1e-4))


def probabilities(measured: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Probabilities of `KINDS`, from the features and a calibration."""
    x = np.clip((measured - np.asarray(fitted["mean"])) / np.asarray(fitted["scale"]), -4, 4)
    out = np.zeros(len(KINDS))
    for network in fitted["networks"]:
        hidden = np.tanh(x @ np.asarray(network["hidden"]) + np.asarray(network["hidden_bias"]))
        scores = hidden @ np.asarray(network["output"]) + np.asarray(network["output_bias"])
        e = np.exp((scores - scores.max()) / fitted["temperature"])
        out += e / e.sum() / len(fitted["networks"])
    return out


def nearest_calibration(measured: np.ndarray, fitted: Mapping[str, Any]) -> tuple[str, float]:
    """The calibrated kind of network nearest to the features, and the squared Mahalanobis distance to it."""
    x = (measured - np.asarray(fitted["mean"])) / np.asarray(fitted["scale"])
    distance = [(x - np.asarray(n["mean"]), np.asarray(n["precision"])) for n in fitted["neighbourhoods"]]
    distances = [float(d @ precision @ d) for d, precision in distance]
    best = int(np.argmin(distances))
    return fitted["neighbourhoods"][best]["network"], distances[best]


@lru_cache(maxsize=1)
def calibration() -> Mapping[str, Any]:
    """The calibrated classifiers of `geometry.json`, made by benchmarks/relation_geometry.py."""
    return json.loads((resources.files("stemma.kinship.relation") / "geometry.json").read_text())
