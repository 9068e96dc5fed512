"""The entries of weights that the lineage detector compares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.learned.heads import Heads, find_heads
from stemma.kinship.weights.entries import Entries, Slot, entries
from stemma.types import ModelRef


@dataclass(frozen=True, eq=False)
class WeightSamples:
    """The same entries of several models.

    Attributes:
        models: The models.
        values: `float32 [models, layers, entries]`; zero where there is nothing.
        present: `bool [models, layers]`: whether a model has this layer in the reference's shape.
        valid: `bool [layers, entries]`: small layers have fewer entries.
        sizes: `int64 [layers]`: entries of the whole layer.
        lengths: `float64 [layers, models]`: squared length of the entries.
        rows: `int64 [layers]`: units of each layer among the entries; a layer's entries are a matrix of so many rows.
        distinct: `float64 [models, layers]`: share of entries that differ from all others; few in a grid.
        heads: Matrices that read other layers, and those layers.
        features: `float32 [models, probes, channels]`: what enters the head; None without probes.
        has_features: `bool [models]`: whether a model has features of the reference's width.
    """

    models: tuple[ModelRef, ...]
    values: np.ndarray
    present: np.ndarray
    valid: np.ndarray
    sizes: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    distinct: np.ndarray
    heads: Heads | None = None
    features: np.ndarray | None = None
    has_features: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of models."""
        return len(self.models)


def sample_weights(models: Sequence[Model], *, cap: int = 12, per_layer: int = 4096, seed: int = 0) -> WeightSamples:
    """Read the same entries of the same layers of every model; the first model says which.

    Tensors are paired by name where names fit and by content where they do not. Where the first model has more than
    `cap` matrices, one of every shape is taken in turn, in the order of their content digests: so neither names nor the
    order of layers in a file count.
    Cost: the first rows of each matrix; one pass over the first model where it has more than `cap` matrices.

    Args:
        models: The child, then its candidates.
        cap: Most layers.
        per_layer: Entries of each, drawn at random.
        seed: Seed of the draw.

    Returns:
        The samples.

    Raises:
        MisuseError: If there are no models, or no positive number of layers and entries.
    """
    if cap < 1 or per_layer < 1:
        raise MisuseError(f"cap and per_layer must be at least 1, not {cap} and {per_layer}")
    found = entries(models, reference=0, per_tensor=per_layer, seed=seed)
    chosen = _chosen(models[0], found, cap)
    values = np.zeros((len(models), len(chosen), per_layer), np.float32)
    valid = np.zeros((len(chosen), per_layer), bool)
    for i, at in enumerate(chosen):
        slot = found.tensors[at]
        width = slot.stop - slot.start
        values[:, i, :width] = np.nan_to_num(found.values[:, slot.columns], nan=0.0, posinf=0.0, neginf=0.0)
        valid[i, :width] = True
    present = found.present[:, chosen] if chosen else np.zeros((len(models), 0), bool)
    sizes = np.array([found.tensors[i].size for i in chosen], np.int64)
    rows = np.array([found.tensors[i].rows for i in chosen], np.int64)
    lengths = np.square(values, dtype=np.float64).sum(2).T
    steps = (np.diff(np.sort(values, 2), axis=2) != 0).sum(2)
    distinct = np.minimum((steps + 1) / np.maximum(valid.sum(1), 1), 1.0)
    alive = lengths.T > 0  # a layer of zeros has no scale to compare by
    return WeightSamples(
        found.models, values, present & alive, valid, sizes, lengths, rows, distinct, find_heads(models, seed)
    )


def squares(samples: WeightSamples) -> np.ndarray:
    """Squared distances per layer, `float64 [layers, models, models]`; NaN where either model lacks the layer."""
    out = np.full((samples.values.shape[1], len(samples), len(samples)), np.nan)
    for i in range(len(out)):
        x = samples.values[:, i].astype(np.float64)
        both = np.square(x).sum(1)[:, None] + np.square(x).sum(1)[None]
        found = np.maximum(both - 2 * x @ x.T, 0)
        found[found < 1e-13 * both] = 0
        known = samples.present[:, i, None] & samples.present[None, :, i]
        out[i][known] = found[known]
    return out


def _chosen(reference: Model, found: Entries, cap: int) -> list[int]:
    if len(found.tensors) <= cap:
        return list(range(len(found.tensors)))
    digests, weights = reference.tensor_digests, reference.weights
    by_shape: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for i, slot in enumerate(found.tensors):
        shape = tuple(sorted(weights[slot.name].shape))
        by_shape.setdefault(shape, []).append((digests.get(slot.name, _content(found, slot)), i))
    piles = [sorted(pile) for _, pile in sorted(by_shape.items())]
    taken: list[int] = []
    for turn in range(max(map(len, piles))):
        taken += [pile[turn][1] for pile in piles if turn < len(pile)]
    return sorted(taken[:cap])


def _content(found: Entries, slot: Slot) -> str:
    """A stand-in for the digest of a tensor that was dequantised on the way."""
    return found.values[0, slot.columns].tobytes().hex()[:64]
