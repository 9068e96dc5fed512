"""Networks that are no relatives of each other, in numbers: hard negatives of one architecture for a search.

Each is a mixture of two trained networks whose rows and columns were shuffled tensor by tensor: so it has weights as
training leaves them (norms of units, tails, sparse rows), in an order and a mixture of its own. Every tenth starts a
near-duplicate family: nine more that differ from it by a small change, as fine-tuned copies of one model do.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.networks.load import from_arrays

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


def sketches(networks: Iterator[dict[str, np.ndarray]], count: int) -> np.ndarray:
    """The bits of the weight sketches, really computed: `uint8 [count, 256]`.

    Returns:
        One row per network.
    """
    method, out = WeightSketch(), np.empty((count, 256), np.uint8)
    for i, arrays in enumerate(networks):
        model = from_arrays(arrays, f"distractor-{i}")
        model.__dict__["digest"] = f"sha256:{i:064x}"
        out[i] = method(model).values["bits"]
    return out
