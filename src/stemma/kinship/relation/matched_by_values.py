"""Which tensor is which, among tensors of one size whose names mean nothing: the one whose numbers point the same way.

What is decided about kinship must not rest on this, for it looks at numbers in their places; here kinship is settled,
and only what was done is asked.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.correspondence import Pairing, orders_of
from stemma.kinship.weights.order.units_of_pair import finite

PEEK, LARGEST, MOST = 4096, 1 << 24, 256
"""Entries of a matrix that are compared, entries up to which it is read, and matrices of one size up to which every one
is compared with every other."""

MORE = 0.02
"""By how much the mean cosine of matrices of one size must grow."""


def in_place(a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Exchange the counterparts of matrices of one size where others agree better with them, number by number.

    Cost: matrices of which there are several of one size are read once.

    Args:
        a: One model.
        b: The other, related one.
        pairings: Correspondence of their matrices by contents.

    Returns:
        The correspondence, in the order of the one given.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(pairings):
        sizes = sorted(a.weights[p.a].shape[k] for k in p.axes_a)
        if sizes == sorted(b.weights[p.b].shape[k] for k in p.axes_b):
            groups.setdefault(tuple(sizes), []).append(i)
    out = list(pairings)
    for sizes, members in groups.items():
        if 1 < len(members) <= MOST and np.prod(sizes) <= LARGEST:
            for i, found in zip(members, _best([pairings[i] for i in members], a, b), strict=True):
                out[i] = found
    return tuple(out)


def _best(pairs: Sequence[Pairing], a: Model, b: Model) -> list[Pairing]:
    """The pairs with the counterparts, and the orders of their axes, that agree best."""
    from scipy.optimize import linear_sum_assignment

    one = [_in_order(a.weights[p.a], p.axes_a) for p in pairs]
    cosine, axes = np.full((len(pairs), len(pairs)), -1.0), {}
    for j, q in enumerate(pairs):
        for order in orders_of(len(q.axes_b)):
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
    """Some entries of a tensor whose axes are taken in an order, as a direction; with the sizes in that order."""
    x = finite(tensor.array())
    x = x.transpose((*axes, *(k for k in range(x.ndim) if k not in axes)))
    flat = x.reshape(-1)[:: max(1, x.size // PEEK)].astype(np.float64)
    return tuple(x.shape[: len(axes)]), flat / max(float(np.linalg.norm(flat)), 1e-300)
