"""What sizes alone exclude: a matrix derives from another one unchanged, or with units removed or added."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import features, long_axes, matrices
from stemma.kinship.weights.correspondence import MAX_PAIRS, Pairing, axis_orders
from stemma.types import Axis, Evidence, Null, Spec, Verdict

SHARE = 0.05
"""Share of the smaller model's entries below which possible inheritance is ignored."""

FEW = 8
"""Least length of a common axis; shorter ones occur in any model."""

NEARER, UNFIT = 1e3, 1e9
"""Weight of sizes relative to contents for proposed pairs, and cost of a pair that does not fit."""

Sizes = tuple[int, ...]
"""Lengths of axes."""


def no_fitting_sizes(a: Model, b: Model) -> Evidence | None:
    """Evidence that no matrix of one model could derive from the other by its size; None if some could."""
    own, other = matrices(a), matrices(b)
    if not own or not other:
        return None
    small, large = (own, other) if _entries(own) <= _entries(other) else (other, own)
    shapes = {sizes_of(t) for t in large.values()}
    fitting = _entries({n: t for n, t in small.items() if has_counterpart(t, shapes)})
    share = fitting / max(1, _entries(small))
    if share >= SHARE:
        return None
    reason = (
        f"no matrix of one model has a size that could derive from the other ({share:.0%} of the smaller model fits)"
    )
    claim = "some matrix has a size that units of the other could have"
    return Evidence(
        claim=claim,
        axis=Axis.WEIGHTS,
        statistic="sizes",
        value=share,
        null=Null("none: no size fits"),
        p_value=None,
        log10_p=None,
        effect=0.0,
        verdict=Verdict.REFUTED,
        reason=reason,
        spec=Spec("sizes"),
        inputs=(a.digest, b.digest),
    )


def has_counterpart(tensor: Tensor, shapes: Collection[Sizes]) -> bool:
    """Whether a matrix could derive from one with any of these sizes, or vice versa."""
    own = sizes_of(tensor)
    return own in shapes or any(fits(own, other) for other in shapes)


def could_derive(one: Tensor, other: Tensor) -> bool:
    """Whether one matrix could be made from the other by removing or adding units, by sizes."""
    return fits(sizes_of(one), sizes_of(other))


def pair_leftovers(a: Model, b: Model, pairings: Sequence[Pairing], *, again: bool = False) -> list[Pairing]:
    """Propose counterparts for unpaired matrices, from which they could have been cut or grown."""
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
    """The cheapest pairs of matrices that could derive from each other, or that are only nested."""
    from scipy.optimize import linear_sum_assignment

    shapes = _by_shape(own), _by_shape(other)
    log_orders = {
        (x, y): order for x, ns in shapes[0].items() for y, ms in shapes[1].items()
        if could_derive(own[ns[0]], other[ms[0]]) == possible
        and (order := _order(own[ns[0]], other[ms[0]])) is not None
    }  # fmt: skip
    if sum(len(shapes[0][x]) * len(shapes[1][y]) for x, y in log_orders) > MAX_PAIRS:
        return _pair_in_order(own, shapes, log_orders)
    axes = {(n, m): order for (x, y), order in log_orders.items() for n in shapes[0][x] for m in shapes[1][y]}
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


def _pair_in_order(
    own: Mapping[str, Tensor], shapes: tuple[Mapping[Sizes, list[str]], Mapping[Sizes, list[str]]],
    log_orders: Mapping[tuple[Sizes, Sizes], tuple[int, ...]],
) -> list[Pairing]:  # fmt: skip
    """Pairs of the nearest sizes in order, if there are too many to compare contents."""
    left, free = ({shape: list(names) for shape, names in kind.items()} for kind in shapes)
    out = []
    for x, y in sorted(log_orders, key=lambda pair: abs(math.log(math.prod(pair[0]) / math.prod(pair[1])))):
        while left[x] and free[y]:
            name = left[x].pop(0)
            out.append(Pairing(name, free[y].pop(0), long_axes(own[name].shape), log_orders[x, y], 1.0))
    return out


def _order(one: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The other's axes in the order of the one's, so that most lengths agree and all are nested; or None."""
    mine, theirs = long_axes(one.shape), long_axes(other.shape)
    best: tuple[int, tuple[int, ...]] | None = None
    if len(mine) != len(theirs):
        return None
    for order in (tuple(theirs[i] for i in p) for p in axis_orders(len(theirs))):
        pairs = [(one.shape[i], other.shape[j]) for i, j in zip(mine, order, strict=True)]
        equal = sum(x == y >= FEW for x, y in pairs)
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if nested and (best is None or equal > best[0]):
            best = equal, order
    return None if best is None else best[1]


def sizes_of(tensor: Tensor) -> Sizes:
    """Lengths of a tensor's axes that are longer than 1, ascending."""
    return tuple(sorted(s for s in tensor.shape if s > 1))


@lru_cache(1 << 16)
def fits(one: Sizes, other: Sizes) -> bool:
    """Whether a matrix of one size could become the other by removing or adding units on some axes."""
    if len(one) != len(other):
        return False
    if one == other:
        return True
    for order in (tuple(other[i] for i in p) for p in axis_orders(len(other))):
        pairs = list(zip(one, order, strict=True))
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if nested and any(x == y >= FEW for x, y in pairs):
            return True
    return False


def _entries(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.size for t in tensors.values())
