"""Pairing of equally large tensors without usable names, by the cosine of their values.

Decisions about shared origin must not rest on this, because it selects by values in place. It is used only after that
decision, to find out which operations were applied.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.correspondence import Pairing, axis_orders
from stemma.kinship.weights.order.pair_reader import finite

PEEK, LARGEST, MAX_MATRICES = 4096, 1 << 24, 256
"""Entries of a matrix that are compared, largest size of a matrix that is read, and most matrices of one size that are
compared with each other."""

MORE = 0.02
"""Least increase of the mean cosine of matrices of one size."""


def match_by_values(a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Exchange the counterparts of equally large matrices where others have a higher cosine."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(pairings):
        sizes = sorted(a.weights[p.a].shape[k] for k in p.axes_a)
        if sizes == sorted(b.weights[p.b].shape[k] for k in p.axes_b):
            groups.setdefault(tuple(sizes), []).append(i)
    out = list(pairings)
    for sizes, members in groups.items():
        if 1 < len(members) <= MAX_MATRICES and np.prod(sizes) <= LARGEST:
            for i, found in zip(members, _best_counterparts([pairings[i] for i in members], a, b), strict=True):
                out[i] = found
    return tuple(out)


def _best_counterparts(pairs: Sequence[Pairing], a: Model, b: Model) -> list[Pairing]:
    """The pairs with those counterparts and axis orders that have the highest cosine."""
    from scipy.optimize import linear_sum_assignment

    one = [_in_order(a.weights[p.a], p.axes_a) for p in pairs]
    cosine, axes = np.full((len(pairs), len(pairs)), -1.0), {}
    for j, q in enumerate(pairs):
        for order in axis_orders(len(q.axes_b)):
            chosen = tuple(sorted(q.axes_b)[k] for k in order)
            shape, other = _in_order(b.weights[q.b], chosen)
            for i, (own_shape, own) in enumerate(one):
                if own_shape == shape and float(own @ other) > cosine[i, j]:
                    cosine[i, j], axes[i, j] = float(own @ other), chosen
    found = linear_sum_assignment(-cosine)[1]
    if cosine[np.arange(len(pairs)), found].mean() <= cosine.diagonal().mean() + MORE:
        return list(pairs)
    return [
        replace(p, b=pairs[j].b, axes_b=axes.get((i, j), p.axes_b))
        for i, (p, j) in enumerate(zip(pairs, found, strict=True))
    ]


def _in_order(tensor: Tensor, axes: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
    """Entries of a tensor with its axes in the given order, of norm 1; and the sizes in that order."""
    x = finite(tensor.array())
    x = x.transpose((*axes, *(k for k in range(x.ndim) if k not in axes)))
    flat = x.reshape(-1)[:: max(1, x.size // PEEK)].astype(np.float64)
    return tuple(x.shape[: len(axes)]), flat / max(float(np.linalg.norm(flat)), 1e-300)
