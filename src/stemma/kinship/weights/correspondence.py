"""Which tensor of A is which of B, in which layout.

Two ways, both blind to any hidden permutation of units, so that nothing they choose can favour "in place":

- by **name**, where the names agree;
- by **content**: sizes, and quantities that do not change when entries are permuted along an axis (sorted profiles of
  each axis, moments, quantiles). A linear assignment over all tensors takes the cheapest correspondence.

Renamed and transposed checkpoints, other frameworks' layouts and removed layers are found by the second.
"""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stemma.models.model import Model, Tensor

KERNEL = 11
"""Longest axis that can be a kernel's."""

QUANTILES = 65
EXACT_QUANTILES = 1 << 20
"""Largest tensor whose quantiles are part of its features; sorting more costs more than it tells."""


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


@dataclass(frozen=True)
class Features:
    """What a tensor's content shows when the order of its units is ignored.

    Attributes:
        shape: Axis lengths without axes of length one.
        axes: Position of each of those axes in the stored shape.
        profiles: Per axis: root mean square along all other axes over that of the tensor, sorted.
        scalars: Logarithm of the scale, then shape of the distribution of entries.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    profiles: tuple[np.ndarray, ...]
    scalars: np.ndarray


def matrices(model: Model) -> dict[str, Tensor]:
    """The tensors that weight tests look at: real numbers with at least two axes longer than one.

    Returns:
        Tensor by name; empty and one-dimensional ones are left out.
    """
    return {n: t for n, t in model.weights.items() if t.is_float and sum(s > 1 for s in t.shape) >= 2 and t.size > 0}


def features(tensor: Tensor) -> Features:
    """Read a tensor once, in slices, and keep what no permutation of units changes.

    Returns:
        The features; non-finite entries count as zero.
    """
    axes = _long_axes(tensor.shape)
    shape = tuple(tensor.shape[i] for i in axes)
    squares = [np.zeros(s) for s in shape]
    moments = np.zeros(4)
    step = max(1, (1 << 20) // max(1, tensor.size // tensor.shape[0]))
    values = []
    for start in range(0, tensor.shape[0], step):
        stop = min(start + step, tensor.shape[0])
        part = np.nan_to_num(tensor.rows(start, stop).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if tensor.size <= EXACT_QUANTILES:
            values.append(part.reshape(-1))
        first_kept = axes and axes[0] == 0
        part = part.reshape(*((stop - start,) if first_kept else ()), *shape[1 if first_kept else 0 :])
        square = np.square(part, dtype=np.float32)
        for k in range(len(shape)):
            along = square.sum(axis=tuple(i for i in range(len(shape)) if i != k), dtype=np.float64)
            if k == 0 and first_kept:
                squares[0][start:stop] += along
            else:
                squares[k] += along
        moments += [part.sum(dtype=np.float64), square.sum(dtype=np.float64),
                    np.abs(part).sum(dtype=np.float64), np.square(square).sum(dtype=np.float64)]  # fmt: skip
    return _features(shape, axes, squares, moments / tensor.size, values)


def _features(
    shape: tuple[int, ...], axes: tuple[int, ...], squares: list[np.ndarray], m: np.ndarray, values: list[np.ndarray]
) -> Features:
    size = int(np.prod(shape))
    rms = float(np.sqrt(m[1]))
    if rms == 0 or not np.isfinite(rms):
        return Features(shape, axes, tuple(np.zeros(s) for s in shape), np.zeros(QUANTILES + 4))
    profiles = tuple(np.sort(np.sqrt(q * s / size)) / rms for q, s in zip(squares, shape, strict=True))
    entries = np.zeros(QUANTILES)
    if values:
        flat = np.sort(np.concatenate(values))
        entries = flat[np.linspace(0, size - 1, QUANTILES).astype(int)] / rms / np.sqrt(QUANTILES)
    shape_of_law = [0.3 * np.log(rms), m[0] / rms, m[2] / rms, 0.2 * np.log(max(m[3], 1e-300) / rms**4)]
    return Features(shape, axes, profiles, np.concatenate([shape_of_law, entries]))


def by_name(a: Model, b: Model) -> tuple[Pairing, ...]:
    """Pair tensors of equal name whose sizes fit (an axis may have lost or gained units).

    Returns:
        Pairs in A's order; empty where no name fits.
    """
    ta, tb = matrices(a), matrices(b)
    long = {n: _long_axes(t.shape) for n, t in ta.items()}
    return tuple(
        Pairing(n, n, axes, axes, 0.0)
        for n, axes in long.items()
        if n in tb and len(tb[n].shape) == len(ta[n].shape) and _long_axes(tb[n].shape) == axes
    )


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i, s in enumerate(shape) if s > 1)


def by_content(a: Model, b: Model) -> tuple[Pairing, ...]:
    """Pair tensors of equal sizes, up to the order of axes, by the cheapest assignment of contents.

    One layout (order of axes) is chosen for all tensors of a rank, by the total cost; tensors that it does not fit
    take their own cheapest.

    Returns:
        Pairs in A's order.
    """
    from scipy.optimize import linear_sum_assignment

    fa = {n: features(t) for n, t in matrices(a).items()}
    fb = {n: features(t) for n, t in matrices(b).items()}
    pairs = []
    by_size: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
    for side, table in enumerate((fa, fb)):
        for n, f in table.items():
            by_size.setdefault(tuple(sorted(f.shape)), ([], []))[side].append(n)
    for names_a, names_b in by_size.values():
        if names_a and names_b:
            cost = np.array([[min(_layouts(fa[x], fb[y]).values()) for y in names_b] for x in names_a])
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                pairs.append((names_a[i], names_b[j]))
    order = {n: i for i, n in enumerate(fa)}
    pairs.sort(key=lambda p: order[p[0]])
    return _one_layout(fa, fb, pairs)


def _layouts(x: Features, y: Features) -> dict[tuple[int, ...], float]:
    """Cost of every order of B's axes that gives A's sizes (in the axes longer than one)."""
    scalars = float(np.sum((x.scalars - y.scalars) ** 2))
    out = {}
    for p in itertools.permutations(range(len(y.shape))):
        if all(y.shape[j] == s for j, s in zip(p, x.shape, strict=True)):
            profile = sum(np.mean((x.profiles[i] - y.profiles[j]) ** 2) for i, j in enumerate(p))
            out[p] = float(np.sqrt(scalars + profile))
    return out


def _one_layout(
    fa: Mapping[str, Features], fb: Mapping[str, Features], pairs: list[tuple[str, str]]
) -> tuple[Pairing, ...]:
    """Prefer, rank by rank, the one order of axes that suits all pairs best."""
    total: dict[tuple[tuple[int, ...], tuple[int, ...]], Counter] = {}
    options = {}
    for x, y in pairs:
        rank = fa[x].axes, fb[y].axes
        options[x, y] = _layouts(fa[x], fb[y])
        worst = max(options[x, y].values())
        table = total.setdefault(rank, Counter())
        for p in itertools.permutations(range(len(rank[0]))):
            table[p] += options[x, y].get(p, worst + 0.1)
    out = []
    for x, y in pairs:
        own = options[x, y]
        table = total[fa[x].axes, fb[y].axes]
        p = min(own, key=lambda q: (round(table[q], 9), _moved(q)))
        out.append(Pairing(x, y, fa[x].axes, tuple(fb[y].axes[j] for j in p), own[p]))
    return tuple(out)


def _moved(p: tuple[int, ...]) -> int:
    """Inversions of an order of axes: of two equally good layouts the less shuffled one is meant."""
    return sum(i > j for k, i in enumerate(p) for j in p[k + 1 :])
