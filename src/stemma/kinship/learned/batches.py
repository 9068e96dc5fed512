"""Inputs of the lineage detector: a child and its candidates as arrays, for each preset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.learned.evidence import EVEN, NEAREST, ODD, PER_PAIR, RELATED, Evidence
from stemma.kinship.learned.weight_samples import WeightSamples
from stemma.probes import Probes

Arrays = dict[str, np.ndarray]

LEAST = 0.5
"""Least share of the child's layers that a candidate must have in equal shapes."""

SIDE = 64
"""Most rows and columns of the matrix that the preset `paper` uses."""


def with_features(samples: WeightSamples, models: Sequence[Model], probes: Probes, batch: int = 256) -> WeightSamples:
    """The samples with the features that enter each model's head; of other widths, they count as missing."""
    found = [Activations(batch=batch)(m, probes).values["features"] for m in models]
    width = found[0].shape
    has_features = np.array([f.shape == width for f in found])
    features = np.stack([f if ok else np.zeros(width, np.float32) for f, ok in zip(found, has_features, strict=True)])
    return replace(samples, features=np.asarray(features, np.float32), has_features=has_features)


def v3_question(evidence: Evidence, child: int, others: np.ndarray, copies: np.ndarray | None = None) -> Arrays:
    """One question for the preset `v3` without the axis of questions; see `Scorer.forward` for the arrays.

    Args:
        evidence: Of the child and its candidates.
        child: Position of the child.
        others: Positions of the candidates.
        copies: Which candidates equal the child: they are related, and not weighed.

    Returns:
        The arrays, with `related [candidates]`, `layers [candidates]` (how many are related), and `place`: which
        candidates the rows stand for.
    """
    samples = evidence.samples
    enough = (samples.present[child] & samples.present[others]).sum(1) >= LEAST * samples.present[child].sum()
    related = np.where(enough & samples.present[child].any(), evidence.related(child, others), 0.0)
    counts = np.array([evidence.related_layers(child, int(k)).sum() for k in others])
    kept = np.flatnonzero((related >= RELATED) & ~(np.zeros(len(others), bool) if copies is None else copies))
    distance = np.array([_distance(evidence.pair(int(others[i]), child)) for i in kept])
    place = kept[np.argsort(distance, kind="stable")][:NEAREST]
    near = others[place]
    everyone = [child, *(int(k) for k in near)]
    pairs = np.zeros((len(everyone), len(everyone), PER_PAIR), np.float32)
    for i, a in enumerate(everyone):
        for j, b in enumerate(everyone):
            if i != j:
                pairs[i, j] = evidence.pair(a, b)
    triangles, together = evidence.triangles(child, near)
    to_child = np.sort(distance)[: len(place)]
    most = counts[place].max(initial=1)
    own = np.stack([
        to_child - to_child.min(initial=0 if not len(place) else np.inf), np.arange(len(place)) / 4,
        np.log1p(np.full(len(place), len(place) - 1.0)), 1 - counts[place] / most,
    ], -1)  # fmt: skip
    return {
        "pairs": pairs, "triangles": triangles, "together": together, "own": own.astype(np.float32),
        "known": np.ones(len(place), bool), "place": place, "related": related, "layers": counts,
        "candidates": np.isin(np.arange(len(others)), place),
    }  # fmt: skip


def copies(samples: WeightSamples, child: int, others: np.ndarray) -> np.ndarray:
    """Whether each candidate equals the child in all that was read, and so shows no order."""
    same = (samples.present[others] == samples.present[child]).all(1)
    return same & (samples.values[others] == samples.values[child]).all((1, 2))


def _distance(pair: np.ndarray) -> float:
    return float(pair[_DISTANCE])


_DISTANCE = 2 * len(ODD) + EVEN.index("distance")


def shared_layer(models: Sequence[Model]) -> str:
    """The default layer of the preset `paper`: the largest matrix that all models have in one shape."""
    known = {n: t.shape for n, t in matrices(models[0]).items()}
    for model in models[1:]:
        own = matrices(model)
        known = {n: s for n, s in known.items() if n in own and own[n].shape == s}
    if not known:
        raise MisuseError(
            f"{models[0].name} and its candidates share no matrix by name and shape, which preset paper needs: "
            "use preset v3, or give models of one architecture"
        )
    sizes = {n: int(np.prod(s)) for n, s in known.items()}
    return max(n for n in known if sizes[n] == max(sizes.values()))


def layer_matrices(models: Sequence[Model], layer: str) -> np.ndarray:
    """One layer of every model as a matrix of outputs, `float32 [models, rows, columns]`, at most `SIDE` of each."""
    found = []
    for model in models:
        tensor = model.weights.get(layer)
        if tensor is None or (found and tensor.shape != models[0].weights[layer].shape):
            raise MisuseError(f"{model.name} has no layer '{layer}' in the child's shape: choose another layer")
        rows = tensor.rows(0, min(SIDE, tensor.shape[0]))
        found.append(np.asarray(rows, np.float32).reshape(len(rows), -1)[:, :SIDE])
    return np.stack(found)


def paper_question(matrices_: np.ndarray, features: np.ndarray, child: int, others: np.ndarray) -> Arrays:
    """One question for the preset `paper` without the axis of questions; see `PaperScorer.forward`."""

    def stack_pairs(x: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(x[others], x[child][None]), 1).astype(np.float32)

    return {
        "matrices": stack_pairs(matrices_),
        "features": stack_pairs(features),
        "candidates": np.ones(len(others), bool),
    }


def stacked(questions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Questions as tensors, padded to the largest number of candidates."""
    import torch

    if "known" in questions[0]:
        names, most = ("pairs", "triangles", "together", "own", "known"), max(len(q["known"]) for q in questions)
        sizes = {"pairs": (most + 1,) * 2, "triangles": (most,) * 2, "together": (most,) * 2}
    else:
        names, most, sizes = tuple(questions[0]), max(len(q["candidates"]) for q in questions), {}
    out = {}
    for name in names:
        first, size = questions[0][name], sizes.get(name, (most,))
        whole = np.zeros((len(questions), *size, *first.shape[len(size) :]), first.dtype)
        for i, q in enumerate(questions):
            whole[(i, *map(slice, q[name].shape[: len(size)]))] = q[name]
        out[name] = torch.from_numpy(whole)
    return out
