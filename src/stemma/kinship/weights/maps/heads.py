"""Attention heads in another basis: any invertible matrix between values and outputs, or queries and keys.

A head's output is the product of its output and value matrices, its attention that of its keys and queries; a matrix M
between them, and its inverse, changes both factors but not the product. So M is fitted to one factor and checked on the
other. With rotary embeddings only some M preserve the function; fitting any M finds those too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stemma.architectures.structure import Structure
from stemma.kinship.weights.maps.assignment import assign_units
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import directions
from stemma.kinship.weights.maps.match_units import score_match
from stemma.kinship.weights.maps.search_state import MIN_MARGIN, SearchState
from stemma.kinship.weights.order.similarity import assign
from stemma.kinship.weights.reordering_bound import free_numbers, gains, surplus

ROWS = 4096
"""Most rows of all heads together whose bases are searched."""

COORDINATES_PER_ROW = 4
"""Coordinates per row of a head used for a fit."""

SAME = 0.99
"""Mean cosine over all tensors from which single tensors are not checked."""

SAME_BASIS = 0.9
"""Mean cosine from which heads have the same basis, so that none is searched."""


@dataclass(frozen=True, eq=False)
class HeadFactor:
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


def match_heads(state: SearchState, known: Structure) -> tuple[str, ...]:
    """Match heads of every layer that is not matched yet, with their bases; layers skipped, with reasons."""
    skipped = []
    kinds = {s.group: s.kind for p in state.parts.values() for x in p.axes for s in x.label.segments}
    for group in known.groups:
        if kinds.get(group.name) != "head":
            continue
        if _already_matched(state, group.name) and _already_matched(state, f"{group.name}/heads"):
            continue
        factors = list(_factors(state, group.name, group.size))
        if factors and max(f.index.size for f in factors) > ROWS:
            skipped.append(f"{group.name}: heads have more than {ROWS:,} rows")
            continue
        _match_bases(state, group.name, factors)
    return tuple(skipped)


def _already_matched(state: SearchState, key: str) -> bool:
    """Whether heads were matched without a change of basis, in every tensor that shows them."""
    if not any(True for _ in state.showing(key)):
        return True
    if key not in state.units:
        return False
    if state.cosines.get(key, 0.0) >= SAME:
        return True
    blocks = state.blocks(key)
    return all(score_match([b], state.units[key], signed=False).cosine >= SAME_BASIS for b in blocks)


def _factors(state: SearchState, key: str, heads: int) -> Iterator[HeadFactor]:
    """The matrices that hold a part of every head; heads that share keys are one."""
    for name, k in (*state.showing(key), *state.showing(f"{key}/heads")):
        axis = state.parts[name].axes[k]
        if axis.a != axis.b or axis.a % heads or axis.a // heads < 2:
            continue
        rows = axis.a // heads
        block = state.block(name, k, COORDINATES_PER_ROW * axis.units().shape[1])
        if block is not None and block.a[0, 0].size > axis.units().shape[1]:
            index = np.arange(axis.a).reshape(heads, rows)
            sides = (side.reshape(heads, rows, -1) for side in (block.a, block.b))
            yield HeadFactor(name, k, *sides, index)


def _match_bases(state: SearchState, key: str, factors: list[HeadFactor]) -> None:
    """Fit the basis to each factor in turn; keep it where another one follows."""
    confirmed: set[str] = set()
    for first in factors:
        if first.name in confirmed or first.a.shape[1] > min(f.a.shape[1] for f in factors):
            continue
        known = state.units.get(key)
        heads = known if known and known.of == (len(first.a), len(first.b)) else _by_spaces(first, state.seed)
        bases = _fitted(first, heads)
        for second in factors:
            if second is first or second.name in confirmed or second.a.shape[1] % first.a.shape[1]:
                continue
            turned = _inverse_basis_fits(second, heads, bases)
            if turned is None:
                continue
            state.units.setdefault(key, heads)
            if first.name not in confirmed:
                state.head_bases[first.name, first.k] = _matrix(first, heads, [m.T for m in bases])
                state.fitted |= {first.name}
            state.head_bases[second.name, second.k] = turned
            confirmed |= {first.name, second.name}


def _by_spaces(f: HeadFactor, seed: int) -> AxisMap:
    """Heads matched by the span of their rows, which is the same in every basis."""
    one, two = (np.linalg.qr(side.transpose(0, 2, 1).astype(np.float64))[0] for side in (f.a, f.b))
    overlap = np.array([[np.linalg.norm(p.T @ q) for q in two] for p in one])
    rows, columns = assign(overlap, np.random.default_rng(seed))
    return AxisMap(rows, columns, (len(f.a), len(f.b)))


def _fitted(f: HeadFactor, heads: AxisMap) -> list[np.ndarray]:
    """For each matched head the matrix that takes its rows into the target's."""
    pairs = zip(heads.rows, heads.columns, strict=True)
    return [
        np.linalg.lstsq(f.a[i].T.astype(np.float64), f.b[j].T.astype(np.float64), rcond=None)[0].T for i, j in pairs
    ]


def _inverse_basis_fits(f: HeadFactor, heads: AxisMap, bases: list[np.ndarray]) -> np.ndarray | None:
    """The map `[reference, target]` of another factor's rows if the inverse bases fit it, else None."""
    size, moved, other, places = len(bases[0]), [], [], []
    for i, j, basis in zip(heads.rows, heads.columns, bases, strict=True):
        if np.linalg.cond(basis) > 1e6:
            return None
        back = np.linalg.inv(basis).T
        own = np.stack([back @ piece for piece in f.a[i].reshape(-1, size, f.a.shape[2]).astype(np.float64)])
        theirs = f.b[j].reshape(-1, size, f.b.shape[2])
        flat = (directions(own.reshape(len(own), -1)), directions(theirs.reshape(len(theirs), -1)))
        rows, columns = (np.zeros(1, int),) * 2 if len(own) == 1 else assign_units([flat], signed=False, seed=0)
        moved.append(own[rows].reshape(-1, f.a.shape[2]))
        other.append(theirs[columns].reshape(-1, f.b.shape[2]))
        places.append((i, j, back, rows, columns))
    u, v = directions(np.concatenate(moved)), directions(np.concatenate(other))
    similarity = u @ v.T
    own_cosines = similarity.diagonal()
    gain = float(gains(own_cosines, free_numbers(similarity, np.arange(len(u)), u.shape[1])).sum())
    if surplus(len(u), gain) <= MIN_MARGIN or own_cosines.mean() < SAME_BASIS / 2:
        return None
    out = np.zeros((f.index.size, f.index.size), np.float32)
    for i, j, back, rows, columns in places:
        for r, c in zip(rows, columns, strict=True):
            source, to = f.index[i][r * size : (r + 1) * size], f.index[j][c * size : (c + 1) * size]
            out[np.ix_(source, to)] = back.T
    return out


def _matrix(f: HeadFactor, heads: AxisMap, maps: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((f.index.size, f.index.size), np.float32)
    for i, j, m in zip(heads.rows, heads.columns, maps, strict=True):
        out[np.ix_(f.index[i], f.index[j])] = m
    return out
