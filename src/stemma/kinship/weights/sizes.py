"""What sizes alone exclude: a matrix comes from another one as it is, or with units taken out or put in."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import features, long_axes, matrices
from stemma.kinship.weights.correspondence import MOST_PAIRS, Pairing, orders_of
from stemma.types import Axis, Evidence, Null, Spec, Verdict

SHARE = 0.05
"""Share of the smaller model's entries below which it does not matter that they could have been inherited."""

FEW = 8
"""Length of an axis that both must have in common; shorter ones are common to anything."""

NEARER, UNFIT = 1e3, 1e9
"""What sizes weigh against numbers where partners are proposed, and the price of a pair that does not fit."""

Sizes = tuple[int, ...]
"""Lengths of axes."""


def sizes_apart(a: Model, b: Model) -> Evidence | None:
    """Whether no matrix of one model has a size that units of the other could have.

    A matrix that lost or gained units on one axis keeps the length of another; so do matrices that were joined, split,
    or stored as two factors.

    Args:
        a: One model.
        b: The other.

    Returns:
        The evidence that they share nothing; None where some matrices could be related.
    """
    own, other = matrices(a), matrices(b)
    if not own or not other:
        return None
    small, large = (own, other) if _entries(own) <= _entries(other) else (other, own)
    kinds = {sizes_of(t) for t in large.values()}
    fitting = _entries({n: t for n, t in small.items() if has_counterpart(t, kinds)})
    share = fitting / max(1, _entries(small))
    if share >= SHARE:
        return None
    reason = f"no matrix of one has a size that units of the other could have ({share:.0%} of the smaller model fits)"
    claim = "some matrix has a size that units of the other could have"
    return Evidence(claim, Axis.WEIGHTS, "sizes", share, Null("none: no size fits"), None, None,
                    0.0, Verdict.REFUTED, reason, Spec("sizes"), (a.digest, b.digest))  # fmt: skip


def has_counterpart(tensor: Tensor, kinds: Collection[Sizes]) -> bool:
    """Whether one matrix could come from one of another model, or the other way round.

    Args:
        tensor: The matrix.
        kinds: The sizes of the other model's matrices, each once.

    Returns:
        What their sizes allow.
    """
    own = sizes_of(tensor)
    return own in kinds or any(fits(own, other) for other in kinds)


def could_be(one: Tensor, other: Tensor) -> bool:
    """Whether one matrix could have been made from the other by taking units out or putting some in.

    Args:
        one: A matrix.
        other: Another one.

    Returns:
        What their sizes allow.
    """
    return fits(sizes_of(one), sizes_of(other))


def left_over(a: Model, b: Model, pairings: Sequence[Pairing], *, again: bool = False) -> list[Pairing]:
    """Proposals for matrices that have no counterpart yet: others that they could have been cut from, or grown into.

    Args:
        a: The one model.
        b: The other.
        pairings: What is paired already.
        again: Whether matrices of the larger model that are paired already are proposed a second time, to those of the
            smaller one that are not.

    Returns:
        One pair for each that finds a partner: the nearest sizes, and among these the likest numbers.
    """
    own, other = matrices(a), matrices(b)
    taken = {p.a for p in pairings}, {p.b for p in pairings}
    smaller = _entries(own) <= _entries(other)
    left = {n: t for n, t in own.items() if n not in taken[0] or (again and not smaller)}
    free = {n: t for n, t in other.items() if n not in taken[1] or (again and smaller)}
    fitting = _assigned(left, free, possible=True)
    done = {p.a for p in fitting}, {p.b for p in fitting}
    left, free = ({n: t for n, t in m.items() if n not in d} for m, d in zip((left, free), done, strict=True))
    return [*fitting, *_assigned(left, free, possible=False)]


def _assigned(own: Mapping[str, Tensor], other: Mapping[str, Tensor], *, possible: bool) -> list[Pairing]:
    """The cheapest pairs of matrices of which one could be cut from the other; or which are nested and no more."""
    from scipy.optimize import linear_sum_assignment

    kinds = _by_shape(own), _by_shape(other)
    orders = {
        (x, y): order for x, ns in kinds[0].items() for y, ms in kinds[1].items()
        if could_be(own[ns[0]], other[ms[0]]) == possible and (order := _order(own[ns[0]], other[ms[0]])) is not None
    }  # fmt: skip
    if sum(len(kinds[0][x]) * len(kinds[1][y]) for x, y in orders) > MOST_PAIRS:
        return _in_turn(own, kinds, orders)
    axes = {(n, m): order for (x, y), order in orders.items() for n in kinds[0][x] for m in kinds[1][y]}
    if not axes:
        return []
    law = {x: features(own[x]).scalars for x in dict.fromkeys(x for x, _ in axes)}
    laws = {y: features(other[y]).scalars for y in dict.fromkeys(y for _, y in axes)}
    rows, columns = list(law), list(laws)
    cost = np.full((len(rows), len(columns)), UNFIT)
    for x, y in axes:
        apart = NEARER * abs(math.log(own[x].size / other[y].size))
        cost[rows.index(x), columns.index(y)] = apart + float(np.linalg.norm(law[x] - laws[y]))
    pairs = [(rows[i], columns[j]) for i, j in zip(*linear_sum_assignment(cost), strict=True) if cost[i, j] < UNFIT]
    return [Pairing(x, y, long_axes(own[x].shape), axes[x, y], 1.0) for x, y in pairs]


def _by_shape(tensors: Mapping[str, Tensor]) -> dict[Sizes, list[str]]:
    out: dict[Sizes, list[str]] = {}
    for name, tensor in tensors.items():
        out.setdefault(tuple(tensor.shape), []).append(name)
    return out


def _in_turn(
    own: Mapping[str, Tensor], kinds: tuple[Mapping[Sizes, list[str]], Mapping[Sizes, list[str]]],
    orders: Mapping[tuple[Sizes, Sizes], tuple[int, ...]],
) -> list[Pairing]:  # fmt: skip
    """Pairs of the nearest sizes, one after the other: too many of them to be told apart by their numbers."""
    left, free = ({shape: list(names) for shape, names in kind.items()} for kind in kinds)
    out = []
    for x, y in sorted(orders, key=lambda pair: abs(math.log(math.prod(pair[0]) / math.prod(pair[1])))):
        while left[x] and free[y]:
            name = left[x].pop(0)
            out.append(Pairing(name, free[y].pop(0), long_axes(own[name].shape), orders[x, y], 1.0))
    return out


def _order(one: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The other's axes in the order of the one's, so that most lengths agree and all are nested the same way.

    A matrix between two sets of units loses rows and columns: no length needs to agree.

    Returns:
        Positions; None where the lengths are not nested.
    """
    mine, theirs = long_axes(one.shape), long_axes(other.shape)
    best: tuple[int, tuple[int, ...]] | None = None
    if len(mine) != len(theirs):
        return None
    for order in (tuple(theirs[i] for i in p) for p in orders_of(len(theirs))):
        pairs = [(one.shape[i], other.shape[j]) for i, j in zip(mine, order, strict=True)]
        equal = sum(x == y >= FEW for x, y in pairs)
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if nested and (best is None or equal > best[0]):
            best = equal, order
    return None if best is None else best[1]


def sizes_of(tensor: Tensor) -> Sizes:
    """The lengths of a tensor's axes, those of length one left out.

    Args:
        tensor: A tensor.

    Returns:
        Lengths in ascending order.
    """
    return tuple(sorted(s for s in tensor.shape if s > 1))


@lru_cache(1 << 16)
def fits(one: Sizes, other: Sizes) -> bool:
    """Whether a matrix of one size could have been made into the other by taking units out, or putting some in.

    Args:
        one: Lengths of its axes.
        other: Lengths of the other's.

    Returns:
        True where no axis of one side is longer than its counterpart, and one of them is equally long.
    """
    if len(one) != len(other):
        return False
    if one == other:
        return True
    for order in (tuple(other[i] for i in p) for p in orders_of(len(other))):
        pairs = list(zip(one, order, strict=True))
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if nested and any(x == y >= FEW for x, y in pairs):
            return True
    return False


def _entries(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.size for t in tensors.values())
