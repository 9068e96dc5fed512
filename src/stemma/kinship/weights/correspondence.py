"""Pairing of the tensors of two models, and of their axes.

Two ways, both independent of the order of hidden units, so that they cannot favour units in place:

- by **name**, where the names agree;
- by **content**: sizes, and quantities that do not change when entries are permuted along an axis (sorted profiles of
  each axis, moments, quantiles). A linear assignment over all tensors takes the cheapest correspondence.

Renamed and transposed checkpoints, other frameworks' layouts and removed layers are found by the second.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import Features, features, long_axes, matrices

MAX_AXES, MAX_PAIRS, NO_FIT = 6, 1 << 17, 1e9
"""Most axes whose orders are all tried, most pairs of tensors of one size whose contents are compared, and the cost of
tensors that fit in no order."""

CACHE_SIZE = 64
"""Models whose features are cached: a few numbers for each row of a matrix."""

SAME = 0.02
"""Distance of contents below which two tensors are equal up to rounding."""


@dataclass(frozen=True)
class Pairing:
    """One tensor of A and its counterpart in B.

    Attributes:
        a: Name in A.
        b: Name in B.
        axes_a: A's axes that are longer than one.
        axes_b: The axes of B that they correspond to, in the same order.
        cost: Distance of the contents, independent of the order of units.
    """

    a: str
    b: str
    axes_a: tuple[int, ...]
    axes_b: tuple[int, ...]
    cost: float

    def swapped(self) -> "Pairing":
        """The pairing from B to A."""
        return Pairing(self.b, self.a, self.axes_b, self.axes_a, self.cost)


def by_name(a: Model, b: Model) -> tuple[Pairing, ...]:
    """Pair tensors of equal name and rank in A's order; an axis may have lost or gained units."""
    ta, tb = matrices(a), matrices(b)
    long = {n: long_axes(t.shape) for n, t in ta.items()}
    return tuple(
        Pairing(n, n, axes, axes, 0.0)
        for n, axes in long.items()
        if n in tb and len(tb[n].shape) == len(ta[n].shape) and long_axes(tb[n].shape) == axes
    )


def candidates(a: Model, b: Model, *, contents: bool) -> list[tuple[str, tuple[Pairing, ...]]]:
    """One or two pairings to try as (how, pairs), the likelier first; empty where nothing fits.

    Reassigned names can agree by accident, so names must fit the contents about as well as the best assignment. The
    order of units is never used. With `contents`, every entry is read even where all names agree.

    Args:
        a: The first model.
        b: The second model.
        contents: Whether contents are compared even where all names agree.

    Returns:
        The pairings.
    """
    named = by_name(a, b)
    if named and not contents and len(named) >= min(len(matrices(a)), len(matrices(b))):
        return [("names", named)]
    fa, fb = _features_of(a), _features_of(b)
    free = by_content(fa, fb)
    if {(p.a, p.b, p.axes_b) for p in free} == {(p.a, p.b, p.axes_b) for p in named}:
        return [("names", named)]
    both = [("names", named), ("contents", free)]
    (cost_named, same_named), (cost_free, same_free) = _costs(named, fa, fb), _costs(free, fa, fb)
    if len(named) < len(free) or same_named < same_free or cost_named > 1.25 * cost_free + 0.02:
        both.reverse()
    return [(how, pairs) for how, pairs in both if pairs]


def _features_of(model: Model) -> Mapping[str, Features]:
    """Features of all matrices by name, cached."""
    tensors = matrices(model)
    key = model.digest, *tensors
    if (known := _cache.get(key)) is not None:
        return known
    found = {n: features(t) for n, t in tensors.items()}
    while len(_cache) >= CACHE_SIZE:
        _cache.pop(next(iter(_cache)), None)
    _cache[key] = found
    return found


_cache: dict[tuple[str, ...], Mapping[str, Features]] = {}


def _costs(pairs: tuple[Pairing, ...], fa: Mapping[str, Features], fb: Mapping[str, Features]) -> tuple[float, int]:
    """Mean distance over the tensors that kept their size, and how many are equal."""
    costs = []
    for p in pairs:
        x, y = fa[p.a], fb[p.b]
        cost = _layouts(x, y).get(tuple(y.axes.index(j) for j in p.axes_b)) if len(x.shape) == len(y.shape) else None
        if cost is not None:
            costs.append(cost)
    return float(np.mean(costs)) if costs else 0.0, sum(c <= SAME for c in costs)


def by_content(fa: Mapping[str, Features], fb: Mapping[str, Features]) -> tuple[Pairing, ...]:
    """Pair tensors of equal sizes, up to the order of axes, by the cheapest assignment of features."""
    from scipy.optimize import linear_sum_assignment

    pairs = []
    by_size: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
    for side, table in enumerate((fa, fb)):
        for n, f in table.items():
            by_size.setdefault(tuple(sorted(f.shape)), ([], []))[side].append(n)
    for names_a, names_b in by_size.values():
        if names_a and names_b:
            if len(names_a) * len(names_b) > MAX_PAIRS:
                pairs += _pair_in_order(names_a, names_b)
                continue
            cost = _content_distances(fa, fb, names_a, names_b)
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                pairs.append((names_a[i], names_b[j]))
    order = {n: i for i, n in enumerate(fa)}
    pairs.sort(key=lambda p: order[p[0]])
    return _one_layout(fa, fb, pairs)


def _content_distances(
    fa: Mapping[str, Features], fb: Mapping[str, Features], names_a: Sequence[str], names_b: Sequence[str]
) -> np.ndarray:  # fmt: skip
    """Smallest distance of the contents of all pairs over the orders of axes, `[a, b]`."""
    from scipy.spatial.distance import cdist

    out = np.full((len(names_a), len(names_b)), NO_FIT)
    for x, rows in _by_shape(fa, names_a).items():
        for y, columns in _by_shape(fb, names_b).items():
            own, other = [fa[names_a[i]] for i in rows], [fb[names_b[j]] for j in columns]
            scalars = cdist([f.scalars for f in own], [f.scalars for f in other], "sqeuclidean")
            for p in axis_orders(len(y)):
                if all(y[j] == s for j, s in zip(p, x, strict=True)):
                    apart = sum(
                        cdist([f.profiles[i] for f in own], [f.profiles[j] for f in other], "sqeuclidean") / x[i]
                        for i, j in enumerate(p)
                    )
                    here = np.ix_(rows, columns)
                    out[here] = np.minimum(out[here], np.sqrt(scalars + apart))
    return out


def _by_shape(features_: Mapping[str, Features], names: Sequence[str]) -> dict[tuple[int, ...], list[int]]:
    """Positions of names by the shape of their tensors."""
    out: dict[tuple[int, ...], list[int]] = {}
    for i, n in enumerate(names):
        out.setdefault(features_[n].shape, []).append(i)
    return out


def _pair_in_order(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs by name, and the rest in order, if too many have one size to compare contents."""
    there = set(other)
    named = [(n, n) for n in one if n in there]
    taken = {n for n, _ in named}
    return [*named, *zip((n for n in one if n not in taken), (n for n in other if n not in taken), strict=False)]


def _layouts(x: Features, y: Features) -> dict[tuple[int, ...], float]:
    """Cost of every order of B's axes that gives A's sizes."""
    scalars = float(np.sum((x.scalars - y.scalars) ** 2))
    out = {}
    for p in axis_orders(len(y.shape)):
        if all(y.shape[j] == s for j, s in zip(p, x.shape, strict=True)):
            profile = sum(np.mean((x.profiles[i] - y.profiles[j]) ** 2) for i, j in enumerate(p))
            out[p] = float(np.sqrt(scalars + profile))
    return out


def _one_layout(
    fa: Mapping[str, Features], fb: Mapping[str, Features], pairs: list[tuple[str, str]]
) -> tuple[Pairing, ...]:
    """Prefer, for each rank, the one order of axes that suits all pairs best."""
    total: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[tuple[int, ...], float]] = {}
    options = {}
    for x, y in pairs:
        rank = fa[x].axes, fb[y].axes
        options[x, y] = _layouts(fa[x], fb[y])
        worst = max(options[x, y].values(), default=0.0)
        table = total.setdefault(rank, {})
        for p in axis_orders(len(rank[0])):
            table[p] = table.get(p, 0.0) + options[x, y].get(p, worst + 0.1)
    out = []
    for x, y in pairs:
        own = options[x, y]
        if not own:
            continue
        table = total[fa[x].axes, fb[y].axes]
        p = min(own, key=lambda q: (round(table.get(q, np.inf), 9), _inversions(q)))
        out.append(Pairing(x, y, fa[x].axes, tuple(fb[y].axes[j] for j in p), own[p]))
    return tuple(out)


def axis_orders(axes: int) -> Iterable[tuple[int, ...]]:
    """All orders of axes; for very many axes the given and the reversed one."""
    if axes <= MAX_AXES:
        return itertools.permutations(range(axes))
    return (tuple(range(axes)), tuple(reversed(range(axes))))


def _inversions(p: tuple[int, ...]) -> int:
    """Inversions of an order of axes: of two equally good layouts the less shuffled one is used."""
    return sum(i > j for k, i in enumerate(p) for j in p[k + 1 :])
