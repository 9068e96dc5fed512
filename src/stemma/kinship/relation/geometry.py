"""Which story fits a dense difference: fine-tuned, siblings, or two trainings from one random start.

All figures are the same whichever of the two models is called the parent. What they rest on: a child lies farther from
the origin than its parent, in nearly every layer and unit, because training makes weights grow, and its change is
nearly orthogonal to what was there; of two siblings neither lies farther out; two trainings from one start share no
more than the law of random numbers that they started from.
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
"""Raised with every new calibration (`geometry.json`): answers of another one are not recalled."""

NETWORKS = {"mlp": "perceptrons", "cnn": "CNNs", "vit": "vision transformers", "lm": "language models"}

KINDS = (RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT)

RANKS = 24
"""Layers whose change is looked at for its rank, at most: a singular value decomposition each."""

FEATURES = (
    "change", "asymmetry", "asymmetry of units", "asymmetry of layers", "typical asymmetry", "common over start",
    "spread of that", "least of that", "vectors over matrices", "vectors", "spread of change", "rank of change",
    "least rank of change", "difference of norms", "share of matrices changed",
)  # fmt: skip
"""What is measured of a pair: see `features`."""


@dataclass(frozen=True)
class Story:
    """What a dense difference looks like.

    Attributes:
        kind: `finetuned`, `siblings` or `same-init`; `related` where none is likely enough.
        probability: Of the likeliest, as calibrated; None where the pair is unlike all that was calibrated on.
        position: Where the common origin lies between parent (0) and child (1), by norms alone: about 0 or below for a
            child, one half for siblings, above 1 where the roles are exchanged.
        why: Why no story is told, where none is.
    """

    kind: RelationKind
    probability: float | None
    position: float | None
    why: str = ""


LATER = Story(RelationKind.FINETUNED, None, None)
"""Where another operation shows which of the two is the later one."""

UNTOLD = Story(RelationKind.RELATED, None, None, "tensors have nothing in common that would show it")
"""Where tensors may not have been put side by side rightly."""


def story(pair: Pair) -> Story:
    """Tell which story fits.

    Args:
        pair: A pair with a dense difference.

    Returns:
        The story.
    """
    changed = _matrices(pair)
    if not changed:
        vectors = [v for v in pair.open if not v.matrix]
        near = sum(v.sums.difference for v in vectors) <= sum(v.sums.norm_a for v in vectors)
        return LATER if near or not vectors else UNTOLD
    a, d = sum(m.sums.norm_a for m in changed), sum(m.sums.difference for m in changed)
    position = float((a - sum(m.sums.inner for m in changed)) / d)
    measured, fitted = features(pair), model()
    network, away = nearest(measured, fitted)
    if away > fitted["reach"]:
        return Story(RelationKind.RELATED, None, position, "unlike every kind of network whose trainings were measured")
    p = probabilities(measured, fitted)
    best = int(np.argmax(p))
    least = fitted["sure"][network][KINDS[best].value]
    if p[best] >= least:
        return Story(KINDS[best], float(p[best]), position)
    asked = f"below the {least:.2f} that is asked" if least <= 1 else "which is not told surely enough"
    why = f"{KINDS[best].value} is likeliest, {asked} of networks that look like {NETWORKS[network]}"
    return Story(RelationKind.RELATED, float(p[best]), position, why)


def _matrices(pair: Pair) -> list[Layer]:
    """Matrices that changed and were not made anew."""
    out = [m for m in pair.matrices if not m.settled and m.sums.difference > 0 and "replaced" not in m.marks]
    return [m for m in out if m.sums.norm_a > 0 and m.sums.norm_b > 0]


def features(pair: Pair) -> np.ndarray:
    """Measure a pair.

    With r the relative change and n half the logarithm of the ratio of squared norms, n / r² says how far from the
    middle between the two models the foot of the origin lies: the asymmetry.

    Args:
        pair: A pair with at least one matrix that changed.

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
    vectors = _vectors(pair)
    return np.array([
        np.log(whole), np.log1p(abs(grown / whole**2)), _units(changed), abs(np.mean(np.sign(growth))),
        np.log1p(np.median(abs(layers))), common.mean(), common.std(), common.min(), vectors - np.log(whole), vectors,
        np.std(np.log(change)), ranks.mean(), ranks.min(), abs(grown), len(changed) / max(1, len(pair.matrices)),
    ])  # fmt: skip


def _units(changed: list[Layer]) -> float:
    """Mean over layers and units of the sign-like asymmetry of each unit: near 1 where nearly all of them grew."""
    out = []
    for m in changed:
        a, b, _, d = m.sums.rows
        alive = (a > 0) & (b > 0) & (d > 0)
        if alive.any():
            change = d[alive] / np.sqrt(a[alive] * b[alive])
            out.append(float(np.mean(np.tanh(0.5 * np.log(b[alive] / a[alive]) / change))))
    return abs(float(np.mean(out))) if out else 0.0


def _rank_share(layer: Layer) -> float:
    """Stable rank of the difference, as a share of the room."""
    values = layer.sums.singular_values
    if not len(values) or values[0] == 0:
        return 1.0
    return float((values**2).sum() / values[0] ** 2 / max(1, layer.sums.rank_of_room))


def _vectors(pair: Pair) -> float:
    """Logarithm of the relative change of biases and gains together."""
    sums = [v.sums for v in pair.layers if not v.matrix and not v.statistic and v.measured is not None]
    a, b, d = (sum(getattr(s, k) for s in sums) for k in ("norm_a", "norm_b", "difference"))
    return float(np.log(np.sqrt(d / np.sqrt(a * b)) + 1e-4)) if a > 0 and b > 0 else float(np.log(1e-4))


def probabilities(measured: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Probabilities of `KINDS`.

    Args:
        measured: As `features` gives it.
        fitted: Mean and scale of every feature, and small networks of one hidden layer whose answers are averaged.

    Returns:
        Three numbers that add up to one.
    """
    x = np.clip((measured - np.asarray(fitted["mean"])) / np.asarray(fitted["scale"]), -4, 4)
    out = np.zeros(len(KINDS))
    for network in fitted["networks"]:
        hidden = np.tanh(x @ np.asarray(network["hidden"]) + np.asarray(network["hidden_bias"]))
        scores = hidden @ np.asarray(network["output"]) + np.asarray(network["output_bias"])
        e = np.exp((scores - scores.max()) / fitted["temperature"])
        out += e / e.sum() / len(fitted["networks"])
    return out


def nearest(measured: np.ndarray, fitted: Mapping[str, Any]) -> tuple[str, float]:
    """Which calibrated kind of network a pair looks like, and how far from it: far off, the networks mean nothing.

    Args:
        measured: As `features` gives it.
        fitted: For each kind of network and relation of the calibration, mean and inverse covariance.

    Returns:
        The kind of network, and the square of the Mahalanobis distance from the nearest of its relations.
    """
    x = (measured - np.asarray(fitted["mean"])) / np.asarray(fitted["scale"])
    away = [(x - np.asarray(n["mean"]), np.asarray(n["precision"])) for n in fitted["neighbourhoods"]]
    distances = [float(d @ precision @ d) for d, precision in away]
    best = int(np.argmin(distances))
    return fitted["neighbourhoods"][best]["network"], distances[best]


@lru_cache(maxsize=1)
def model() -> Mapping[str, Any]:
    """The calibrated networks, made by benchmarks/relation_geometry.py from families of known history.

    Returns:
        As `probabilities` takes them, with `sure`: the probability asked of each kind of network and relation, above
        one where it is never said; and `made`: from which families, and when.
    """
    return json.loads((resources.files("stemma.kinship.relation") / "geometry.json").read_text())
