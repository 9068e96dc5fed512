"""Cosines between a model's outputs for pairs of probes."""

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import Values
from stemma.measures.samples import CONSTANT_TOLERANCE, sample_matrices


def sample_cosines(a: Values, b: Values, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """For two models, the cosines between the outputs of every pair of samples, `[n * (n - 1) / 2]`."""
    from scipy.spatial.distance import pdist

    found = []
    for x in sample_matrices(a, b, measure):
        zero = np.abs(x).max(1) <= CONSTANT_TOLERANCE * np.abs(x).max()
        if zero.any():
            raise MisuseError(
                f"{measure} compares directions, but one model returns zeros for sample {int(zero.argmax())}. Remove "
                "that probe"
            )
        found.append(np.clip(1 - pdist(x, "cosine"), -1, 1))
    return found[0], found[1]
