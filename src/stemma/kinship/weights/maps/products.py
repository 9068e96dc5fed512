"""Matching of units on a rotated stream by their inner products, which no rotation and no permutation changes.

A unit of an MLP layer reads the stream through one row and writes to it through a column. Inner products of these
vectors, with each other and with those of other units, are invariant to rotations of the stream; sorted, they do not
depend on the order of units either. So units are matched first, and the rotation follows from the matched ones
(orthogonal Procrustes; Schönemann, Psychometrika 31, 1966), alternately. No tokens are needed: the vocabulary may be
permuted or another one.
"""

import numpy as np

from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.maps.assignment import EXACT, assign_units
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import directions, safely_scaled
from stemma.kinship.weights.maps.held_out import held_out_agreement
from stemma.kinship.weights.maps.search_state import SearchState, spread_first
from stemma.kinship.weights.maps.unnamed_tensors import alternatives
from stemma.kinship.weights.order.pair_reader import finite
from stemma.kinship.weights.sizes import sizes_of

MAX_SETS, ROUNDS = 2, 8
"""Most sets of units that are tried, and rounds of fitting units and rotation alternately."""

MIN_GAIN = 0.01
"""Least increase of the mean cosine for another round."""

LENGTHS = 512
"""Quantiles of the lengths of units by which tensors are distinguished."""

PROFILE = 64
"""Quantiles of a unit's products with all others."""

MIN_COSINE = 0.6
"""Least mean cosine of matched units under a rotation."""

SOME = 512
"""Units sampled to decide whether all are matched, if there are very many."""

MAX_UNITS = 1 << 13
"""Most units of a set whose products are formed."""


def match_by_products(state: SearchState, stream: str, *, named: bool) -> tuple[AxisMap, tuple[str, ...]] | None:
    """Match one set of units on a stream and its rotation; with the tensors used, or None."""
    beside = units_beside(state, stream)
    tried = spread_first(list(beside))[:MAX_SETS]
    if not named:
        several = [key for key in tried if all(state.parts[n].axes[k].a <= EXACT for n, k in beside[key])]
        tried = several or tried[-1:]  # for very many units only one set, in the middle of the model
        _pair_by_lengths(state, stream, {name for key in tried for name, _ in beside[key]})
        paired_anew = units_beside(state, stream)
        tried = [key for key in tried if key in paired_anew]
        beside |= paired_anew
    for key in tried:
        places = beside[key]
        tensors = tuple(state.parts[name].pairing for name, _ in places)
        if tensors in state.tried:
            continue
        sides = _vectors(state, stream, places)
        if sides is None:
            continue
        fitted = _alternate(*sides, state.seed)
        if fitted is None:
            state.tried[tensors] = 0.0
        if fitted is not None:
            if not named:
                _pair_by_lengths(state, stream, {name for others in beside.values() for name, _ in others})
            n, m = fitted.shape
            common = np.arange(min(n, m))
            return AxisMap(common, common, (n, m), rotation=fitted), tuple(name for name, _ in places)
    return None


def units_beside(state: SearchState, stream: str) -> dict[str, list[tuple[str, int]]]:
    """Sets of units that share tensors with a stream: tensors and axis positions by set."""
    out: dict[str, list[tuple[str, int]]] = {}
    for name, k in state.showing(stream):
        axes = state.parts[name].axes
        others = [i for i in range(len(axes)) if i != k]
        if len(others) == 1 and axes[others[0]].key not in ("", stream) and axes[k].a == axes[k].b:
            out.setdefault(axes[others[0]].key, []).append((name, others[0]))
    return {key: places for key, places in out.items() if len(places) > 1 and _single_rows(state, places)}


def _pair_by_lengths(state: SearchState, stream: str, names: set[str]) -> None:
    """Pair tensors by the sorted norms of their units, which rotation and order do not change."""
    from scipy.optimize import linear_sum_assignment

    reference, others = state.sides.reference.model.weights, matrices(state.sides.target.model)
    by_size: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for name, k in state.showing(stream):
        if name in names and name in reference:
            by_size.setdefault(sizes_of(reference[name]), []).append((name, k))
    for size, own in by_size.items():
        there = [n for n, t in others.items() if sizes_of(t) == size]
        if len(there) < 2:
            continue
        width = state.parts[own[0][0]].axes[own[0][1]].a
        x = np.array([_lengths(reference[n], state.parts[n].pairing.axes_a[k]) for n, k in own])
        y = np.array([_lengths(others[n], _along(others[n], width)) for n in there])
        cost = np.linalg.norm(x[:, None] - y[None], axis=2)
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            found = next(iter(alternatives(state.parts[own[i][0]], {there[j]: others[there[j]]})), None)
            if found is not None:
                state.parts[own[i][0]] = found


def _along(tensor: Tensor, width: int) -> int:
    """The axis of a matrix that is as long as a stream; the last one if both are."""
    return max(k for k, n in enumerate(tensor.shape) if n == width)


def _lengths(tensor: Tensor, along: int) -> np.ndarray:
    """Quantiles of the log norms of a matrix's units, at most `LENGTHS`."""
    x = np.moveaxis(safely_scaled(finite(tensor.array())), along, -1)
    x = x.reshape(-1, x.shape[-1])
    found = np.sort(np.log(np.maximum(np.sqrt(np.einsum("ij,ij->i", x, x)), 1e-30)))
    return found[np.linspace(0, len(found) - 1, min(LENGTHS, len(found))).round().astype(int)]


def _single_rows(state: SearchState, places: list[tuple[str, int]]) -> bool:
    """Whether units are single rows, equally many in all tensors, and not too many."""
    axes = [state.parts[name].axes[k] for name, k in places]
    sizes = {(len(x.units()), len(x.units_of_target())) for x in axes}
    single = all(x.units().shape[1] == 1 for x in axes)
    return single and len(sizes) == 1 and max(next(iter(sizes))) <= MAX_UNITS and min(next(iter(sizes))) > 1


def _vectors(
    state: SearchState, stream: str, places: list[tuple[str, int]]
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:  # fmt: skip
    """Unit vectors `[units, dimensions]` in each tensor, in either model's own order and coordinates."""
    name, k = places[0]
    axis = state.parts[name].axes[1 - k]
    state.units[stream] = AxisMap.identity(axis.a, axis.b)
    try:
        blocks = [state.block(name, k, axis.a * 2) for name, k in places]
    finally:
        del state.units[stream]
    if any(b is None or b.a.ndim != 3 or b.a.shape[2] != axis.a for b in blocks):
        return None
    own, other = (
        [x[:, 0].astype(np.float32) for x in side] for side in zip(*((b.a, b.b) for b in blocks if b), strict=True)
    )
    return own, other


def _alternate(own: list[np.ndarray], other: list[np.ndarray], seed: int) -> np.ndarray | None:
    """The rotation `[reference, target]`, alternating between matched units and fitted rotation; or None."""
    units = [tuple(directions(v, signed=True) for v in side) for side in (own, other)]
    many = max(len(own[0]), len(other[0])) > EXACT
    some = np.unique(np.linspace(0, len(own[0]) - 1, SOME).round().astype(int)) if many else None
    y = _invariants(other, units[1], every=not many)
    for chosen in (some, None)[not many :]:
        x = _invariants(own, units[0], every=not many, chosen=chosen)
        scale = np.maximum(x.std(axis=0), 1e-9)
        u, v = (directions((z - x.mean(axis=0)) / scale) for z in (x, y))
        if chosen is None:
            rows, columns = assign_units([(u, v)], signed=False, seed=seed)
        else:
            rows, columns = chosen, (u @ v.T).argmax(axis=1)
        if not _better_than_chance(*units, rows, columns):
            return None
    before = -1.0
    for _ in range(ROUNDS):
        product = sum(u[rows].T @ v[columns] for u, v in zip(*units, strict=True))
        left, _, right = np.linalg.svd(np.asarray(product, np.float64))
        rotation = (left @ right).astype(np.float32)
        turned = [(u @ rotation, v) for u, v in zip(*units, strict=True)]
        rows, columns = assign_units(turned, signed=False, seed=seed)
        cosine = float(np.mean([(u[rows] * v[columns]).sum(axis=1).mean() for u, v in turned]))
        if cosine <= before + MIN_GAIN:
            break
        before = cosine
    return rotation if before >= MIN_COSINE else None


def _better_than_chance(
    own: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], rows: np.ndarray, columns: np.ndarray
) -> bool:  # fmt: skip
    """Whether half of the matched units predict the other half through outer products."""
    return held_out_agreement(
        [u[rows[::2]] for u in own], [v[columns[::2]] for v in other],
        [u[rows[1::2]] for u in own], [v[columns[1::2]] for v in other],
    )  # fmt: skip


def _invariants(
    side: list[np.ndarray], units: tuple[np.ndarray, ...], *, every: bool, chosen: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Per-unit numbers `[units, numbers]` invariant to rotation, order of units and cancelling factors."""
    some = slice(None) if chosen is None else chosen
    norms = [np.linalg.norm(x[some], axis=1) for x in side]
    out = [np.log(np.maximum(np.prod(norms, axis=0), 1e-30))[:, None]]
    at = np.linspace(0, len(side[0]) - 1, PROFILE).round().astype(int)
    for i, u in enumerate(units):
        for v in units[i:]:
            if every or v is u:
                out.append(np.sort(u[some] @ v.T, axis=1)[:, at])
            if v is not u:
                out.append(np.repeat(np.einsum("ij,ij->i", u[some], v[some])[:, None], len(at), axis=1))
    return np.concatenate(out, axis=1)
