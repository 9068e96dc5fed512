"""Random initialisations that anybody can reproduce: torch's default initialisers under common seeds.

Two trainings from one initialisation stay similar for long without one being derived from the other. Where the seed is
public, similarity is no evidence of a common origin. The first random numbers of torch under a seed can be reproduced:
uniform for layers and kernels, normal for embeddings. The first tensor of a network still correlates with them after
training.

Source: Mersenne Twister (Matsumoto & Nishimura, 1998) with torch's use of it: 24 bits per uniform number, and normal
numbers by Box and Muller (1958) in blocks of sixteen.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices

SEEDS = (*range(11), 21, 42, 77, 99, 100, 123, 321, 666, 777, 999, 1000, 1024, 1111, 1234, 1337, 2000, 2019, 2020, 2021,
         2022, 2023, 2024, 2025, 2026, 3407, 4321, 9999, 12345, 31337, 54321, 123456)  # fmt: skip
"""Seeds that code, courses and papers use."""

ENTRIES = 4096
"""Numbers of a tensor that are compared, the first ones; at least an eighth as many are needed."""

SIGMAS = 7.0
"""Standard deviations of the correlation from which a seed is recognised, corrected for seeds and tensors tried."""


ROUNDING = 1e-6
"""What correlations with all patterns at once may differ by from those that decide."""


def public_start(model: Model) -> int | None:
    """The public seed that the network was initialised with, or None; reads the first numbers of each matrix."""
    for first in _firsts(model):
        if (seed := _seed_of(first)) is not None:
            return seed
    return None


def _firsts(model: Model) -> Iterator[np.ndarray]:
    """The first numbers of every matrix, as torch stores them."""
    for tensor in matrices(model).values():
        width = max(1, tensor.size // tensor.shape[0])
        rows = min(tensor.readable, -(-ENTRIES // width))
        x = np.asarray(tensor.rows(0, rows), np.float64).reshape(-1)[:ENTRIES]
        if len(x) >= ENTRIES // 8 and np.isfinite(x).all() and x.std() > 0:
            yield x


def _seed_of(x: np.ndarray) -> int | None:
    centred = (x - x.mean()) / x.std()
    if not (np.abs(_stacked_patterns()[:, : len(x)] @ centred) / len(x) ** 0.5 > SIGMAS - ROUNDING).any():
        return None
    best = max(((abs(float(centred @ p[: len(x)])) / len(x) ** 0.5, seed) for seed, p in _patterns()), default=(0.0, 0))
    return best[1] if best[0] > SIGMAS else None


@lru_cache(maxsize=1)
def _stacked_patterns() -> np.ndarray:
    """The numbers of `_patterns`, a row each."""
    return np.stack([p for _, p in _patterns()])


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[int, np.ndarray], ...]:
    """The first uniform and normal numbers under every seed, standardised."""
    out = []
    for seed in SEEDS:
        uniform = _uniform(np.random.RandomState(seed), ENTRIES)
        out += [(seed, (uniform - 0.5) * 12**0.5), (seed, _normal(uniform))]
    return tuple(out)


def _uniform(source: np.random.RandomState, count: int) -> np.ndarray:
    """Numbers in [0, 1) as torch makes them of 32 random bits."""
    bits = source.randint(0, 2**32, size=count, dtype=np.uint32) & np.uint32((1 << 24) - 1)
    return bits.astype(np.float64) * 2.0**-24


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Normal numbers from uniform ones: of every sixteen, eight give lengths and eight angles."""
    blocks = uniform[: len(uniform) // 16 * 16].reshape(-1, 2, 8)
    length = np.sqrt(-2 * np.log(np.maximum(1 - blocks[:, 0], 1e-12)))
    angle = 2 * np.pi * blocks[:, 1]
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1).reshape(-1)
