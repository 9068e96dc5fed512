"""Mean embedding of a sample of training inputs: the data-driven part of model DNA."""

import numpy as np

from stemma.probes import Probes

SIZE = 64
"""Length of the vector of a sample."""

SIDE, HASHED = 8, 256
"""Images are averaged to this side; tokens are counted in this many bins."""


def mean_embedding(sample: Probes) -> np.ndarray:
    """A kernel mean embedding of training inputs: `int8 [SIZE]`, 127 times the mean of random Fourier features.

    Samples from one distribution have similar embeddings; some hundred inputs are enough.

    Args:
        sample: Inputs that a model was trained on.

    Returns:
        The embedding.

    Source: Rahimi and Recht 2007; Gretton et al. 2012 for the distance between means.

    """
    rows = _flat_inputs(sample)
    rng = np.random.default_rng([rows.shape[1], 17])
    frequencies = rng.standard_normal((rows.shape[1], SIZE)) * (2.0 / np.sqrt(rows.shape[1]))
    shifts = rng.uniform(0, 2 * np.pi, SIZE)
    mean = np.cos(4 * rows @ frequencies + shifts).mean(0)
    return np.round(127 * mean).astype(np.int8)


def embedding_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two mean embeddings: about 0.1 or less for samples of one distribution, up to 1.4."""
    return float(np.sqrt(2 * np.square((a.astype(float) - b.astype(float)) / 127).mean()))


def _flat_inputs(sample: Probes) -> np.ndarray:
    """Every input as a short vector of about unit range, independent of its resolution."""
    x = sample.inputs
    if sample.kind == "tokens":
        bins = (x.astype(np.int64) * 2654435761 >> 7) % HASHED
        counts = np.zeros((len(x), HASHED))
        np.add.at(counts, (np.repeat(np.arange(len(x)), x.shape[1]), bins.ravel()), 1.0)
        return np.sqrt(counts / x.shape[1]) * np.sqrt(HASHED) / 4
    rows = np.asarray(x, np.float64)
    if sample.kind == "image":
        return _average_pool(_average_pool(rows, 2), 3).reshape(len(rows), -1)
    return _average_pool(rows.reshape(len(rows), -1), 1, SIDE * SIDE)


def _average_pool(rows: np.ndarray, axis: int, most: int = SIDE) -> np.ndarray:
    """Average-pool an axis to at most `most` entries."""
    n = rows.shape[axis]
    if n <= most:
        return rows
    starts = np.linspace(0, n, most + 1).astype(int)
    sums = np.add.reduceat(rows, starts[:-1], axis=axis)
    shape = [1] * rows.ndim
    shape[axis] = most
    return sums / np.diff(starts).reshape(shape)
