"""Inputs of the lineage detector: a child and its candidates as arrays, for each preset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.learned import geometry
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


def v2_question(
    samples: WeightSamples, child: int, others: np.ndarray, crop: int, squared: geometry.Squares | None = None
) -> Arrays:
    """One question for the preset `v2` without the axis of questions; see `Scorer.forward` for the arrays."""
    shared = samples.present[child][None] & samples.present[others]
    enough = shared.any(1) & (shared.sum(1) >= LEAST * samples.present[child].sum())
    index, valid = _crop(samples.valid, crop)
    p = np.take_along_axis(samples.values[others], index[None], 2)
    c = np.take_along_axis(samples.values[child], index, 1)
    scale = np.sqrt(np.square(samples.values[others]).sum(2) / np.maximum(samples.valid.sum(1), 1))
    pairs = np.stack([p, np.broadcast_to(c, p.shape)], -1) / np.maximum(scale, 1e-20)[..., None, None]
    pairs = np.clip(np.where(shared[..., None, None] & valid[None, ..., None], pairs, 0), -8, 8)
    triangles, near = geometry.triangles(
        squared or partial(geometry.squares, samples), samples.lengths, samples.present, child, others
    )
    asked = (
        np.zeros(len(others), bool)
        if samples.has_features is None
        else samples.has_features[others] & samples.has_features[child]
    )
    return {
        "pairs": pairs.astype(np.float32),
        "valid": valid,
        "shared": shared,
        "layer": geometry.by_layer(samples, child, others),
        "triangles": triangles,
        "near": near,
        "answers": _answers(samples, child, others, crop),
        "answer": np.where(asked[:, None], geometry.of_features(samples, child, others), 0).astype(np.float32),
        "asked": asked,
        "candidates": enough,
    }


def _crop(valid: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced entries of each layer; layers hold their entries in front."""
    widths = valid.sum(1)
    steps = np.arange(crop)[None]
    index = np.where(widths[:, None] > crop, steps * widths[:, None] // crop, steps)
    inside = index < widths[:, None]
    return np.where(inside, index, 0), inside


def _answers(samples: WeightSamples, child: int, others: np.ndarray, crop: int) -> np.ndarray:
    if samples.features is None:
        return np.zeros((len(others), crop, 2), np.float32)
    flat = samples.features.reshape(len(samples), -1)
    index = np.arange(crop) * flat.shape[1] // crop
    scale = np.sqrt(np.square(flat[others]).mean(1))[:, None, None]
    pairs = np.stack(np.broadcast_arrays(flat[others][:, index], flat[child][index]), -1)
    return np.clip(pairs / np.maximum(scale, 1e-20), -8, 8).astype(np.float32)


def shared_layer(models: Sequence[Model]) -> str:
    """The default layer of the preset `paper`: the largest matrix that all models have in one shape."""
    known = {n: t.shape for n, t in matrices(models[0]).items()}
    for model in models[1:]:
        own = matrices(model)
        known = {n: s for n, s in known.items() if n in own and own[n].shape == s}
    if not known:
        raise MisuseError(
            f"{models[0].name} and its candidates share no matrix by name and shape, which preset paper needs: "
            "use preset v2, or give models of one architecture"
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
    """Questions of one architecture as tensors, padded to the largest number of candidates."""
    import torch

    most = max(len(q["candidates"]) for q in questions)
    out = {}
    for name, first in questions[0].items():
        if name == "valid":
            out[name] = torch.from_numpy(np.stack([q[name] for q in questions]))
            continue
        whole = np.zeros((len(questions), most, *first.shape[1:]), first.dtype)
        for i, q in enumerate(questions):
            whole[i, : len(q[name])] = q[name]
        out[name] = torch.from_numpy(whole)
    return out
