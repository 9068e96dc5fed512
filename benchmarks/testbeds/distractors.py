"""Networks that are no relatives of each other, in numbers: hard negatives of one architecture for a search.

Each is a mixture of two trained networks whose rows and columns were shuffled tensor by tensor: so it has weights as
training leaves them (norms of units, tails, sparse rows), in an order and a mixture of its own. Every tenth starts a
near-duplicate family: nine more that differ from it by a small change, as fine-tuned copies of one model do.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.unit_keys import UnitKeys
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.networks.load import from_arrays
from stemma.zoo.symmetries import permute_units, unit_groups

ALONE, FAMILY = 20, 10
"""Of every twenty distractors, ten are alone and ten are one family."""


def distractors(trained: Sequence[Model], count: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Weights of `count` networks without kinship to the trained ones.

    Yields:
        Arrays by name.
    """
    arrays = [{n: t.array() for n, t in m.tensors.items()} for m in trained]
    rng, base = np.random.default_rng([seed, 11]), {}
    for i in range(count):
        place = i % ALONE
        if place <= ALONE - FAMILY:
            a, b = rng.choice(len(arrays), 2, replace=False)
            share = rng.uniform(0.1, 0.9)
            base = {n: _mixed(x, arrays[b][n], share, rng) for n, x in arrays[a].items()}
            yield base
        else:
            change = rng.uniform(0.02, 0.3)
            yield {n: _changed(x, change, rng) for n, x in base.items()}


def _mixed(x: np.ndarray, y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return (np.sqrt(share) * _shuffled(x, rng) + np.sqrt(1 - share) * _shuffled(y, rng)).astype(np.float32)


def _shuffled(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for axis in range(min(x.ndim, 2)):
        x = np.take(x, rng.permutation(x.shape[axis]), axis=axis)
    return x


def _changed(x: np.ndarray, change: float, rng: np.random.Generator) -> np.ndarray:
    return (x + change * x.std() * rng.standard_normal(x.shape)).astype(np.float32)


def fingerprints(networks: Iterator[dict[str, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sketches and keys of hidden units, really computed.

    Returns:
        `uint8 [count, 256]`, and `int64 [count, 64]` with zeros where there are fewer keys.
    """
    sketch, units = WeightSketch(), UnitKeys()
    bits, keys = np.empty((count, 256), np.uint8), np.zeros((count, units.keys), np.int64)
    for i, arrays in enumerate(networks):
        model = from_arrays(arrays, f"distractor-{i}")
        model.__dict__["digest"] = f"sha256:{i:064x}"
        bits[i] = sketch(model).values["bits"]
        own = units(model).values["unit_keys"]
        keys[i, : len(own)] = own
    return bits, keys


def combined(bits: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As many sketches as wanted: beyond those given, each takes its two codes from two of them.

    Returns:
        `uint8 [count, 256]`.
    """
    if count <= len(bits):
        return bits[:count]
    out = np.empty((count, 256), np.uint8)
    out[: len(bits)] = bits
    for half in (slice(0, 128), slice(128, 256)):
        out[len(bits) :, half] = bits[rng.integers(0, len(bits), count - len(bits)), half]
    return out


def compound_children(kind: str, members: Mapping[str, Model], seed: int) -> Iterator[tuple[str, Model]]:
    """Children of the root by several steps, as somebody makes who wants to hide it; what lies between is not kept.

    Yields:
        Names and models.
    """
    rng = np.random.default_rng([seed, 5])
    for name in ("finetuned", "weights-pruned", "units-pruned-finetuned", "layers-pruned-finetuned"):
        arrays = {n: t.array() for n, t in members[f"{kind}/{name}"].tensors.items()}
        config = members[f"{kind}/{name}"].config or {}
        if name.endswith("-finetuned"):
            yield f"{name} (root)", members[f"{kind}/{name}"]
        for group in unit_groups(config, arrays):
            arrays = permute_units(arrays, group, rng.permutation(group.size))
        yield f"{name}, then permuted", from_arrays(arrays, f"{name}-permuted", dict(config))
