"""What is measured of a group for the table of DNA: answers under distortions, and how near other methods put pairs."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.canonical_outputs import FEATURES_VERSION
from stemma.fingerprints.dna import DNA, describe_outputs
from stemma.fingerprints.gradient_field import GradientField
from stemma.measures.field_cosine import FieldCosine
from stemma.probes import Probes
from stemma.training.dna_groups import FEATURE_STEP, GroupRecipe, standard_probes
from stemma.types import Spec
from stemma.zoo.cache import VERSION, recall
from stemma.zoo.recipe_builder import build_all

DISTORTIONS = ("soft answers", "temperature 3", "top 3 of the answers", "labels only")
FIELD_PROBES, FIELD_STEPS, FIELD_SOURCES = 64, 10, 12

BASELINES = ("label agreement", "partition agreement", "output CKA", "decision distance", "gradient field", "weights")
"""Methods beside DNA; `weights` is the white-box ceiling, and knows pairs of one architecture only."""


def distorted(asked: Sequence[np.ndarray], how: str) -> list[np.ndarray]:
    """Log-probabilities as an endpoint may give them."""
    if how == "soft answers":
        return list(asked)
    if how == "temperature 3":
        return [_normalised(x / 3) for x in asked]
    if how == "labels only":
        return [np.log(np.where(x == x.max(1, keepdims=True), 1.0, 1e-6)) for x in asked]
    kept = [np.where(x >= np.sort(x, axis=1)[:, -min(3, x.shape[1])][:, None], x, np.log(1e-6)) for x in asked]
    return [_normalised(x) for x in kept]


def _normalised(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)


def examined(recipe: GroupRecipe, probes: Probes | None = None) -> dict[str, np.ndarray]:
    """Features of every distortion `[models, probes, features]`, and `nearness` `[baselines, sources, models]`.

    NaN where a method says nothing of a pair.
    """
    members, asked_of = recipe.members(), probes or standard_probes(recipe.kind)
    known = {"recipes": [m.recipe.digest for m in members], "probes": asked_of.digest, "canonical": FEATURES_VERSION,
             "distortions": DISTORTIONS, "baselines": BASELINES, "fields": [FIELD_PROBES, FIELD_STEPS, FIELD_SOURCES],
             "version": 2}  # fmt: skip

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        models = build_all([m.recipe for m in members])
        look, start = DNA(), time.process_time()
        few = look.probes(asked_of)
        answers = [look.log_probabilities(m, few) for m in models]
        seconds = (time.process_time() - start) / len(models)
        out: dict[str, np.ndarray] = {}
        for how in DISTORTIONS:
            found = [describe_outputs(distorted(a, how)) for a in answers]
            out[how] = np.stack([np.clip(np.round(f / FEATURE_STEP), -127, 127).astype(np.int8) for f, _ in found])
        sources = [i for i, m in enumerate(members) if m.way == "source"]
        out["nearness"] = nearness(models, answers, sources, [m.source for m in members], asked_of)
        out["seconds"] = np.array([seconds], np.float32)
        return out, {}

    return recall(Spec("dna-examined", VERSION, known).digest, make, keep=True)[0]


def nearness(
    models: Sequence[Model], answers: Sequence[Sequence[np.ndarray]], sources: Sequence[int], whose: Sequence[int],
    probes: Probes,
) -> np.ndarray:  # fmt: skip
    """How near each source and each model are by each of `BASELINES`: larger is nearer."""
    from sklearn.metrics import adjusted_mutual_info_score

    out = np.full((len(BASELINES), len(sources), len(models)), np.nan, np.float32)
    labels = [a[0].argmax(1) for a in answers]
    grams = [_centred_gram(a[0]) for a in answers]
    vectors = [_decision_distances(a) for a in answers]
    fields = _fields(models, whose, probes)
    flat = [np.concatenate([t.array().ravel() for t in m.weights.values()]).astype(np.float64) for m in models]
    for i, s in enumerate(sources):
        for j in range(len(models)):
            if answers[s][0].shape == answers[j][0].shape:
                out[0, i, j] = (labels[s] == labels[j]).mean()
            out[1, i, j] = adjusted_mutual_info_score(labels[s], labels[j])
            out[2, i, j] = (grams[s] * grams[j]).sum()
            out[3, i, j] = vectors[s] @ vectors[j]
            if s in fields and j in fields:
                out[4, i, j] = 1 - FieldCosine()(fields[s], fields[j]).value
            if flat[s].shape == flat[j].shape:
                out[5, i, j] = flat[s] @ flat[j] / (np.linalg.norm(flat[s]) * np.linalg.norm(flat[j]))
    return out


def _fields(models: Sequence[Model], whose: Sequence[int], probes: Probes) -> dict[int, Any]:
    if probes.kind != "image":
        return {}
    method, few = GradientField(steps=FIELD_STEPS), probes.take(slice(0, FIELD_PROBES))
    return {i: method(m, few) for i, m in enumerate(models) if whose[i] < FIELD_SOURCES}


def _centred_gram(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    gram = centred @ centred.T
    return gram / max(float(np.linalg.norm(gram)), 1e-12)


def _decision_distances(asked: Sequence[np.ndarray]) -> np.ndarray:
    """Cosine distances between the probabilities of each probe and of the same with noise, as one unit vector.

    Source: Li et al., ModelDiff, ISSTA 2021 (arXiv:2106.08890), with noise in the place of adversarial changes.
    """
    p, q = np.exp(asked[0]), np.exp(asked[1])
    size = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    vector = 1 - (p * q).sum(1) / size
    vector = vector - vector.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
