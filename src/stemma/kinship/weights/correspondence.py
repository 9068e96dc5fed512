"""Which tensor of A is which of B, in which layout.

Two ways, both blind to any hidden permutation of units, so that nothing they choose can favour "in place":

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

MOST_AXES, MOST_PAIRS, FAR = 6, 1 << 17, 1e9
"""Axes up to which all their orders are tried, pairs of tensors of one size up to which contents tell them apart, and
how unlike two tensors are that fit in no order tried."""

REMEMBERED = 64
"""Models whose features are remembered: a few numbers for each row of a matrix."""

SAME = 0.02
"""Unlikeness of contents below which two tensors are the same but for rounding."""


@dataclass(frozen=True)
class Pairing:
    """One tensor of A and its counterpart in B.

    Attributes:
        a: Name in A.
        b: Name in B.
        axes_a: A's axes that are longer than one.
        axes_b: The axes of B that they correspond to, in the same order.
        cost: How unlike the two contents are, whatever the order of units; 0 is the same.
    """

    a: str
    b: str
    axes_a: tuple[int, ...]
    axes_b: tuple[int, ...]
    cost: float

    def turned(self) -> "Pairing":
        """The same with the roles of A and B exchanged.

        Returns:
            The pairing from B to A.
        """
        return Pairing(self.b, self.a, self.axes_b, self.axes_a, self.cost)


def by_name(a: Model, b: Model) -> tuple[Pairing, ...]:
    """Pair tensors of equal name whose sizes fit (an axis may have lost or gained units).

    Returns:
        Pairs in A's order; empty where no name fits.
    """
    ta, tb = matrices(a), matrices(b)
    long = {n: long_axes(t.shape) for n, t in ta.items()}
    return tuple(
        Pairing(n, n, axes, axes, 0.0)
        for n, axes in long.items()
        if n in tb and len(tb[n].shape) == len(ta[n].shape) and long_axes(tb[n].shape) == axes
    )


def candidates(a: Model, b: Model, *, contents: bool) -> list[tuple[str, tuple[Pairing, ...]]]:
    """Correspondences to try, the likelier first; which one that is, is decided by contents, never by unit order.

    Names that were handed out anew can agree by accident, so names must fit the contents about as well as the best
    assignment does before they are believed.

    Args:
        a: First model.
        b: Second model.
        contents: Look at contents even where every name agrees (it means reading every entry).

    Returns:
        One or two (how, pairs); empty where nothing fits.
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
    """Features of all matrices; they are remembered, as a comparison asks more than once.

    A tied tensor that is stored twice leaves the digest as it is, so names are part of what is remembered.

    Returns:
        By name.
    """
    tensors = matrices(model)
    key = model.digest, *tensors
    if (known := _remembered.get(key)) is not None:
        return known
    found = {n: features(t) for n, t in tensors.items()}
    while len(_remembered) >= REMEMBERED:
        _remembered.pop(next(iter(_remembered)), None)
    _remembered[key] = found
    return found


_remembered: dict[tuple[str, ...], Mapping[str, Features]] = {}


def _costs(pairs: tuple[Pairing, ...], fa: Mapping[str, Features], fb: Mapping[str, Features]) -> tuple[float, int]:
    """Mean unlikeness over the tensors that kept their size, and how many look the same."""
    costs = []
    for p in pairs:
        x, y = fa[p.a], fb[p.b]
        cost = _layouts(x, y).get(tuple(y.axes.index(j) for j in p.axes_b)) if len(x.shape) == len(y.shape) else None
        if cost is not None:
            costs.append(cost)
    return float(np.mean(costs)) if costs else 0.0, sum(c <= SAME for c in costs)


def by_content(fa: Mapping[str, Features], fb: Mapping[str, Features]) -> tuple[Pairing, ...]:
    """Pair tensors of equal sizes, up to the order of axes, by the cheapest assignment of contents.

    One layout (order of axes) is chosen for all tensors of a rank, by the total cost; tensors that it does not fit
    take their own cheapest.

    Args:
        fa: Features of A's tensors by name.
        fb: Features of B's.

    Returns:
        Pairs in A's order.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = []
    by_size: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
    for side, table in enumerate((fa, fb)):
        for n, f in table.items():
            by_size.setdefault(tuple(sorted(f.shape)), ([], []))[side].append(n)
    for names_a, names_b in by_size.values():
        if names_a and names_b:
            if len(names_a) * len(names_b) > MOST_PAIRS:
                pairs += _in_turn(names_a, names_b)
                continue
            cost = _unlike(fa, fb, names_a, names_b)
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                pairs.append((names_a[i], names_b[j]))
    order = {n: i for i, n in enumerate(fa)}
    pairs.sort(key=lambda p: order[p[0]])
    return _one_layout(fa, fb, pairs)


def _unlike(
    fa: Mapping[str, Features], fb: Mapping[str, Features], names_a: Sequence[str], names_b: Sequence[str]
) -> np.ndarray:  # fmt: skip
    """How unlike the contents of all pairs are in the order of axes that suits each best, `[a, b]`."""
    from scipy.spatial.distance import cdist

    out = np.full((len(names_a), len(names_b)), FAR)
    for x, rows in _by_shape(fa, names_a).items():
        for y, columns in _by_shape(fb, names_b).items():
            own, other = [fa[names_a[i]] for i in rows], [fb[names_b[j]] for j in columns]
            scalars = cdist([f.scalars for f in own], [f.scalars for f in other], "sqeuclidean")
            for p in orders_of(len(y)):
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


def _in_turn(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs by name, and the rest one after the other: too many of one size to be told apart by contents."""
    there = set(other)
    named = [(n, n) for n in one if n in there]
    taken = {n for n, _ in named}
    return [*named, *zip((n for n in one if n not in taken), (n for n in other if n not in taken), strict=False)]


def _layouts(x: Features, y: Features) -> dict[tuple[int, ...], float]:
    """Cost of every order of B's axes that gives A's sizes (in the axes longer than one)."""
    scalars = float(np.sum((x.scalars - y.scalars) ** 2))
    out = {}
    for p in orders_of(len(y.shape)):
        if all(y.shape[j] == s for j, s in zip(p, x.shape, strict=True)):
            profile = sum(np.mean((x.profiles[i] - y.profiles[j]) ** 2) for i, j in enumerate(p))
            out[p] = float(np.sqrt(scalars + profile))
    return out


def _one_layout(
    fa: Mapping[str, Features], fb: Mapping[str, Features], pairs: list[tuple[str, str]]
) -> tuple[Pairing, ...]:
    """Prefer, rank by rank, the one order of axes that suits all pairs best."""
    total: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[tuple[int, ...], float]] = {}
    options = {}
    for x, y in pairs:
        rank = fa[x].axes, fb[y].axes
        options[x, y] = _layouts(fa[x], fb[y])
        worst = max(options[x, y].values(), default=0.0)
        table = total.setdefault(rank, {})
        for p in orders_of(len(rank[0])):
            table[p] = table.get(p, 0.0) + options[x, y].get(p, worst + 0.1)
    out = []
    for x, y in pairs:
        own = options[x, y]
        if not own:
            continue
        table = total[fa[x].axes, fb[y].axes]
        p = min(own, key=lambda q: (round(table.get(q, np.inf), 9), _moved(q)))
        out.append(Pairing(x, y, fa[x].axes, tuple(fb[y].axes[j] for j in p), own[p]))
    return tuple(out)


def orders_of(axes: int) -> Iterable[tuple[int, ...]]:
    """Orders of axes that are tried.

    Args:
        axes: How many.

    Returns:
        All of them; of very many axes the two in which programs write them.
    """
    if axes <= MOST_AXES:
        return itertools.permutations(range(axes))
    return (tuple(range(axes)), tuple(reversed(range(axes))))


def _moved(p: tuple[int, ...]) -> int:
    """Inversions of an order of axes: of two equally good layouts the less shuffled one is meant."""
    return sum(i > j for k, i in enumerate(p) for j in p[k + 1 :])
