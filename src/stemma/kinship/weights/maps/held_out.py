"""Held-out check whether a linear map between two sets of vectors is worth fitting."""

from collections.abc import Sequence

import numpy as np

TRACE = 3.0
"""Standard deviations above chance by which held-out vectors must agree."""


def held_out_agreement(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], held_x: Sequence[np.ndarray], held_y: Sequence[np.ndarray]
) -> bool:
    """Whether paired vectors are related by a linear map, tested on held-out pairs.

    Where y = x R, the sum of outer products x y' of some pairs is their covariance times R, and brings others together:
    x (sum) y' is positive on average. Of vectors that have nothing to do with each other it has mean zero, and its
    scatter is seen in the held-out pairs themselves. A tenth of the pairs is enough to show among a thousand.

    Cost: two products; no decomposition.

    Args:
        x: Vectors of the one side, `[pairs, dimensions]` for each tensor that shows them.
        y: Those of the other side, which may have another number of dimensions.
        held_x: Further ones, held out.
        held_y: Their counterparts.

    Returns:
        True where the held-out pairs agree.
    """
    product = sum(u.T @ v for u, v in zip(x, y, strict=True))
    found = np.sum([((u @ product) * v).sum(axis=1) for u, v in zip(held_x, held_y, strict=True)], axis=0)
    return float(found.mean()) > TRACE * float(found.std()) / max(1, len(found)) ** 0.5
