"""Matching of a single tensor: rows and columns alternately, starting from order-invariant profiles.

The sorted entries of a row do not depend on the order of columns. So rows are matched first by their sorted entries,
columns likewise; then rows by their entries in matched columns, columns by their entries in matched rows, and so on.
Nothing has to be known about the network. Source: alternating matching as in weight matching (Ainsworth et
al., ICLR 2023, arXiv:2209.04836, section 3.2), within one tensor; the start from sorted entries is this project's.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stemma.kinship.weights.maps.assignment import EXACT, assign_units
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import WHOLE, UnitBlock, directions, safely_scaled
from stemma.kinship.weights.maps.match_units import NEARLY_EQUAL, match_units, score_match
from stemma.kinship.weights.maps.search_state import MIN_MARGIN, SearchState
from stemma.kinship.weights.reordering_bound import log_orders

ROUNDS = 6
"""Most rounds in which every axis is matched again; copies need two."""

PROFILE = 128
"""Quantiles of a unit's entries that are compared first."""

SOME = 512
"""Units sampled of very many to decide whether a match is searched."""

TURNS, TRACE = 24, 3.0
"""Shifted orders that a first match is compared with, and standard deviations by which it must be closer."""

LEAST = 8
"""Least number of units of an axis."""


def match_single_tensor(state: SearchState, name: str) -> bool:
    """Match the unmapped axes of one tensor, which is read whole; whether that was clear, and kept."""
    axes = state.parts[name].axes
    unmapped = [k for k, axis in enumerate(axes) if axis.key and state.rows(name, k) is None]
    if not unmapped or min(min(axes[k].a, axes[k].b) for k in unmapped) < LEAST or not is_small_enough(state, name):
        return False
    if len({axes[k].key for k in unmapped}) < len(unmapped):
        return False
    best: tuple[float, SearchState] = (MIN_MARGIN, state)
    for signed in (False, True):
        trial = replace(state, units=dict(state.units), signs=dict(state.signs), unit_signs=dict(state.unit_signs))
        for key in {axes[k].key for k in unmapped}:
            trial.forget_signs(key)
        margin, cosine = _alternate(trial, name, unmapped, signed=signed)
        if margin > best[0]:
            best = margin, trial
        if not signed and margin > MIN_MARGIN and cosine > NEARLY_EQUAL:
            break
    found = best[1]
    state.units, state.signs, state.unit_signs = found.units, found.signs, found.unit_signs
    return found is not state


def is_small_enough(state: SearchState, name: str) -> bool:
    """Whether both tensors have at most 4 million entries."""
    p = state.parts[name].pairing
    sizes = state.sides.reference.model.weights[p.a].size, state.sides.target.model.weights[p.b].size
    return max(sizes) <= WHOLE


def _alternate(state: SearchState, name: str, unmapped: Sequence[int], *, signed: bool) -> tuple[float, float]:
    """Margin and mean cosine of matching a tensor's axes alternately; the maps are left in the state."""
    axes = state.parts[name].axes
    for k in unmapped:
        state.units[axes[k].key] = AxisMap.identity(len(axes[k].units()), len(axes[k].units_of_target()))
    many = max(max(state.units[axes[k].key].of) for k in unmapped) > EXACT
    for some in (SOME, None)[not many :] if len(unmapped) > 1 else ():  # a single axis is matched through the others
        starts = {k: _by_profile(state, name, k, signed=signed, some=some) for k in unmapped}
        if any(start is None for start in starts.values()):
            return 0.0, 0.0
        state.units |= {axes[k].key: start for k, start in starts.items() if start is not None}
        if not _better_than_chance(state, name, unmapped[-1], signed=signed):
            return 0.0, 0.0
    last, cosine = -2.0, -1.0
    for _ in range(ROUNDS):
        for k in unmapped:
            block = state.block(name, k)
            found = None if block is None else match_units(
                [(name, k, _absolute(block) if signed else block)], signed=False, seed=state.seed,
                stop_early=len(unmapped) == 1,
            )  # fmt: skip
            if found is None:
                return 0.0, 0.0
            state.units[axes[k].key], cosine = found.units, found.cosine
        if cosine <= last + 1e-3:
            break
        last = cosine
    if signed:
        _fit_signs(state, name, unmapped)
    final = state.block(name, unmapped[-1])
    if final is None:
        return 0.0, 0.0
    cost = sum(log_orders(len(state.units[axes[k].key].rows), state.units[axes[k].key].of[1]) for k in unmapped[:-1])
    if signed:
        cost += np.log(2) * sum(len(state.units[axes[k].key].rows) for k in unmapped[:-1])
    scored = score_match([(name, unmapped[-1], final)], state.units[axes[unmapped[-1]].key], signed=signed)
    return scored.margin - cost, scored.cosine


def _better_than_chance(state: SearchState, name: str, k: int, *, signed: bool) -> bool:
    """Whether matched units are closer through the matched coordinates than shifted orders of them."""
    block = state.block(name, k)
    if block is None:
        return False
    u, v = (_absolute(block) if signed else block).vectors(rescaled=False)
    units = state.units[state.parts[name].axes[k].key]
    u, v = u[units.rows], v[units.columns]
    steps = np.unique(np.linspace(1, max(1, len(v) - 1), TURNS).round().astype(int))
    found = np.array([float((u * np.roll(v, step, axis=0)).sum()) for step in steps])
    return float((u * v).sum()) > float(found.mean() + TRACE * found.std())


def _absolute(block: UnitBlock) -> UnitBlock:
    return replace(block, a=np.abs(block.a), b=np.abs(block.b))


def _by_profile(state: SearchState, name: str, k: int, *, signed: bool, some: int | None) -> AxisMap | None:
    """Units matched by their sorted entries: all one to one, or some with their nearest."""
    axis = state.parts[name].axes[k]
    own, other = axis.units(), axis.units_of_target()
    if not len(own) or not len(other):
        return None
    chosen = np.arange(len(own))
    if some is not None:
        chosen = np.unique(np.linspace(0, len(own) - 1, some).round().astype(int))
        own = own[chosen]
    x, y = state.sides.whole(state.parts[name])
    sides = [_profiles(_units(np.moveaxis(z, k, 0), rows), signed=signed) for z, rows in ((x, own), (y, other))]
    if sides[0].shape[1] != sides[1].shape[1]:
        return None
    middle = sides[0].mean(axis=0)
    u, v = directions(sides[0] - middle), directions(sides[1] - middle)
    if some is not None:
        return AxisMap(chosen, (u @ v.T).argmax(axis=1), (len(axis.units()), len(other)))
    rows, columns = assign_units([(u, v)], signed=False, seed=state.seed)
    return AxisMap(rows, columns, (len(own), len(other)))


def _units(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Units as rows; nothing is copied where they are the rows themselves."""
    plain = rows.shape == (len(x), 1) and bool((np.diff(rows[:, 0]) == 1).all())
    return x.reshape(len(x), 1, -1) if plain else x[rows]


def _profiles(units: np.ndarray, *, signed: bool) -> np.ndarray:
    """Quantiles of each unit's entries, at root mean square 1."""
    flat = safely_scaled(units).reshape(len(units), -1)
    flat = np.sort(np.abs(flat) if signed else flat, axis=1)
    rms = np.sqrt(np.mean(flat**2, axis=1, keepdims=True))
    at = np.linspace(0, flat.shape[1] - 1, min(PROFILE, flat.shape[1])).round().astype(int)
    return flat[:, at] / np.where(rms > 0, rms, 1)


def _fit_signs(state: SearchState, name: str, unmapped: Sequence[int]) -> None:
    """Signs of matched units, on every axis in turn, so that most entries agree."""
    for k in unmapped:
        state.signs.pop((name, k), None)
    generator = np.random.default_rng(state.seed)
    first = state.units[state.parts[name].axes[unmapped[0]].key]
    if len(unmapped) > 1:
        state.signs[name, unmapped[0]] = generator.choice(np.array([-1.0, 1.0], np.float32), len(first.rows))
    for _ in range(4 * ROUNDS):
        for k in reversed(unmapped):
            units, block = state.units[state.parts[name].axes[k].key], state.block(name, k)
            if block is None:
                return
            a, b = (z.reshape(len(z), -1) for z in (block.a, block.b))
            agreed = (a[units.rows] * b[units.columns]).sum(axis=1)
            state.signs[name, k] = np.where(agreed < 0, -1.0, 1.0).astype(np.float32)
