"""Perturbed probes, the same for every model."""

import numpy as np

from stemma.probes.probes import Probes

NOISE, SMALL_NOISE = 0.75, 0.15
"""Size of the noise, in standard deviations of the probes."""

TOKENS, FEW_TOKENS = 0.3, 0.1
"""Share of tokens that are replaced."""


def perturb(probes: Probes, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each probe with noise, with less noise, and mixed with the next one.

    For tokens, a share is replaced by tokens of other probes, and the mixture is the first half of one and the second
    half of the next.

    Args:
        probes: The inputs, in raw input space.
        seed: Seed of the noise.

    Returns:
        Three arrays like the inputs; values may be outside the range of the probes.

    """
    rng = np.random.default_rng([seed, 31])
    x = probes.inputs
    after = np.roll(x, -1, axis=0)
    if probes.kind == "tokens":
        others = rng.permutation(x.ravel()).reshape(x.shape)
        draws = rng.random(x.shape)
        first = np.arange(x.shape[1]) < x.shape[1] // 2
        return np.where(draws < TOKENS, others, x), np.where(draws < FEW_TOKENS, others, x), np.where(first, x, after)
    noise = rng.standard_normal(x.shape).astype(np.float32)
    unit = float(x.std()) or 1.0
    mixed = 0.5 * (x + after)
    return ((x + NOISE * unit * noise).astype(x.dtype), (x + SMALL_NOISE * unit * noise).astype(x.dtype),
            mixed.astype(x.dtype))  # fmt: skip
