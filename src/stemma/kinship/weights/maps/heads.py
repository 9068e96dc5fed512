"""Attention heads in another basis: any invertible matrix between values and outputs, or queries and keys.

What a head writes is the product of its output and value matrices, what it looks at that of its keys and queries; a
matrix M put between them, and its inverse, changes both factors and no product. So M is fitted to one factor, and the
other one, which then has to follow, tells whether it is right. Where queries are turned in planes by their positions
(rotary embeddings) only some M keep the function; fitting any of them finds those too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stemma.architectures.structure import Structure
from stemma.kinship.weights.maps.assignment import matched
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import directions
from stemma.kinship.weights.maps.match import judged
from stemma.kinship.weights.maps.search import SURE, Chart
from stemma.kinship.weights.order.similarity import assign
from stemma.kinship.weights.reordering_bound import freedom, gains, surplus

ROWS = 4096
"""Rows of all heads together up to which their bases are looked at."""

WIDE = 4
"""Coordinates per row of a head that a fit needs."""

SAME = 0.99
"""Mean cosine over all tensors from which none is looked at by itself."""

ALIKE = 0.9
"""Mean cosine from which heads are in the same basis, and nothing is looked for."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One matrix that holds a part of every head.

    Attributes:
        name: The part.
        k: Its axis with the heads.
        a: The reference's heads, `[heads, rows, coordinates]`.
        b: The target's.
        index: Rows of each head on the axis, `[heads, rows]`.
    """

    name: str
    k: int
    a: np.ndarray
    b: np.ndarray
    index: np.ndarray


def match_heads(chart: Chart, known: Structure) -> tuple[str, ...]:
    """Match the heads of every layer that are not alike as they stand, and find their bases.

    Args:
        chart: Is filled where the factors of heads agree.
        known: The structure of the reference.

    Returns:
        Layers that were not looked at, with the reason.
    """
    skipped = []
    kinds = {s.group: s.kind for p in chart.parts.values() for x in p.axes for s in x.label.segments}
    for group in known.groups:
        if kinds.get(group.name) != "head":
            continue
        if _alike(chart, group.name) and _alike(chart, f"{group.name}/heads"):
            continue
        factors = list(_factors(chart, group.name, group.size))
        if factors and max(f.index.size for f in factors) > ROWS:
            skipped.append(f"{group.name}: heads have more than {ROWS:,} rows")
            continue
        _pair(chart, group.name, factors)
    return tuple(skipped)


def _alike(chart: Chart, key: str) -> bool:
    """Whether heads were matched as they stand, in every tensor that shows them."""
    if not any(True for _ in chart.showing(key)):
        return True
    if key not in chart.units:
        return False
    if chart.cosines.get(key, 0.0) >= SAME:
        return True
    blocks = chart.blocks(key)
    return all(judged([b], chart.units[key], signed=False).cosine >= ALIKE for b in blocks)


def _factors(chart: Chart, key: str, heads: int) -> Iterator[Factor]:
    """The matrices that hold a part of every head; heads that share keys are one."""
    for name, k in (*chart.showing(key), *chart.showing(f"{key}/heads")):
        axis = chart.parts[name].axes[k]
        if axis.a != axis.b or axis.a % heads or axis.a // heads < 2:
            continue
        rows = axis.a // heads
        block = chart.block(name, k, WIDE * axis.units().shape[1])
        if block is not None and block.a[0, 0].size > axis.units().shape[1]:
            index = np.arange(axis.a).reshape(heads, rows)
            sides = (side.reshape(heads, rows, -1) for side in (block.a, block.b))
            yield Factor(name, k, *sides, index)


def _pair(chart: Chart, key: str, factors: list[Factor]) -> None:
    """Fit the basis to each factor in turn; keep it where another one follows."""
    followed: set[str] = set()
    for first in factors:
        if first.name in followed or first.a.shape[1] > min(f.a.shape[1] for f in factors):
            continue
        known = chart.units.get(key)
        heads = known if known and known.of == (len(first.a), len(first.b)) else _by_spaces(first, chart.seed)
        bases = _fitted(first, heads)
        for second in factors:
            if second is first or second.name in followed or second.a.shape[1] % first.a.shape[1]:
                continue
            turned = _follows(second, heads, bases)
            if turned is None:
                continue
            chart.units.setdefault(key, heads)
            if first.name not in followed:
                chart.turned[first.name, first.k] = _matrix(first, heads, [m.T for m in bases])
                chart.fitted |= {first.name}
            chart.turned[second.name, second.k] = turned
            followed |= {first.name, second.name}


def _by_spaces(f: Factor, seed: int) -> AxisMap:
    """Heads matched by the space that their rows span: the same in every basis."""
    one, two = (np.linalg.qr(side.transpose(0, 2, 1).astype(np.float64))[0] for side in (f.a, f.b))
    overlap = np.array([[np.linalg.norm(p.T @ q) for q in two] for p in one])
    rows, columns = assign(overlap, np.random.default_rng(seed))
    return AxisMap(rows, columns, (len(f.a), len(f.b)))


def _fitted(f: Factor, heads: AxisMap) -> list[np.ndarray]:
    """For each matched head the matrix that takes its rows into the target's."""
    pairs = zip(heads.rows, heads.columns, strict=True)
    return [
        np.linalg.lstsq(f.a[i].T.astype(np.float64), f.b[j].T.astype(np.float64), rcond=None)[0].T for i, j in pairs
    ]


def _follows(f: Factor, heads: AxisMap, bases: list[np.ndarray]) -> np.ndarray | None:
    """The linear map of another factor's rows, if the inverse bases bring it onto the target's.

    Heads that share keys may be in any order.

    Returns:
        `[rows of the reference, rows of the target]`, or None.
    """
    size, moved, other, places = len(bases[0]), [], [], []
    for i, j, basis in zip(heads.rows, heads.columns, bases, strict=True):
        if np.linalg.cond(basis) > 1e6:
            return None
        back = np.linalg.inv(basis).T
        own = np.stack([back @ piece for piece in f.a[i].reshape(-1, size, f.a.shape[2]).astype(np.float64)])
        theirs = f.b[j].reshape(-1, size, f.b.shape[2])
        flat = (directions(own.reshape(len(own), -1)), directions(theirs.reshape(len(theirs), -1)))
        rows, columns = (np.zeros(1, int),) * 2 if len(own) == 1 else matched([flat], signed=False, seed=0)
        moved.append(own[rows].reshape(-1, f.a.shape[2]))
        other.append(theirs[columns].reshape(-1, f.b.shape[2]))
        places.append((i, j, back, rows, columns))
    u, v = directions(np.concatenate(moved)), directions(np.concatenate(other))
    similarity = u @ v.T
    own_cosines = similarity.diagonal()
    gain = float(gains(own_cosines, freedom(similarity, np.arange(len(u)), u.shape[1])).sum())
    if surplus(len(u), gain) <= SURE or own_cosines.mean() < ALIKE / 2:
        return None
    out = np.zeros((f.index.size, f.index.size), np.float32)
    for i, j, back, rows, columns in places:
        for r, c in zip(rows, columns, strict=True):
            source, to = f.index[i][r * size : (r + 1) * size], f.index[j][c * size : (c + 1) * size]
            out[np.ix_(source, to)] = back.T
    return out


def _matrix(f: Factor, heads: AxisMap, maps: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((f.index.size, f.index.size), np.float32)
    for i, j, m in zip(heads.rows, heads.columns, maps, strict=True):
        out[np.ix_(f.index[i], f.index[j])] = m
    return out
