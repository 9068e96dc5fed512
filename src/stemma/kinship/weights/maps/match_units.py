"""Matching of units by the tensors that show them, and its margin over the best order of independent units."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np

from stemma.kinship.weights.maps.assignment import Views, assign_units, similarities
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import FAINT, UnitBlock, safely_scaled
from stemma.kinship.weights.order.similarity import assign
from stemma.kinship.weights.reordering_bound import free_numbers, gains, log_orders, surplus

SAMPLE = 128
"""Matched units from which the margin is computed."""

PLAIN = (False,)
"""Views of units as stored, without dividing out factors."""

SAME = 0.999
"""Mean cosine from which factors of units need not be divided out."""

TIE = 1e-3
"""Weight of the norm of a unit relative to its direction."""

MIN_UNITS = 32
"""Number of units below which their rows are compared individually."""

MIN_NATS_PER_UNIT = 2.0
"""Nats per unit that a tensor must gain to count; independent units gain one."""

EQUAL, MAX_DIFFERENT = 1e-6, 256
"""Distance of units of root mean square 1 from which they differ, and most units that are reassigned."""

NEARLY_EQUAL = 0.95
"""Mean cosine from which a match is not refined."""


@dataclass(frozen=True, eq=False)
class UnitMatch:
    """Matched units.

    Attributes:
        units: The map of units.
        margin: Nats beyond the best order of independent units; negative where an order alone explains the match.
        cosine: Mean cosine of the matched units.
        least: Mean cosine in the tensor that agrees least.
        silent: Uninformative units, which were assigned in order.
    """

    units: AxisMap
    margin: float
    cosine: float
    least: float = 0.0
    silent: int = 0


def match_with_optional_signs(blocks: Sequence[tuple[str, int, UnitBlock]], seed: int) -> tuple[UnitMatch | None, bool]:
    """Match units as stored, then with free signs; the match of larger margin, and if signs were free."""
    plain = match_units(blocks, signed=False, seed=seed, views=PLAIN, stop_early=True)
    if plain is not None and plain.cosine > NEARLY_EQUAL:
        return plain, False
    other = match_units(blocks, signed=False, seed=seed, stop_early=True)
    plain = max((m for m in (plain, other) if m is not None), key=lambda m: m.margin, default=None)
    if plain is not None and plain.cosine > NEARLY_EQUAL:
        return plain, False
    free = match_units(blocks, signed=True, seed=seed, stop_early=True)
    if free is None or (plain is not None and plain.margin >= free.margin):
        return plain, False
    return free, True


def match_units(
    blocks: Sequence[tuple[str, int, UnitBlock]], *, signed: bool, seed: int, views: tuple[bool, ...] = (True, False),
    stop_early: bool = False,
) -> UnitMatch | None:  # fmt: skip
    """Match units by all tensors that show them; None if too few are informative, or stopped early."""
    shown = [pair for _, _, b in blocks for pair in _weighted_views(b, views, signed=signed)]
    of = len(shown[0][0]), len(shown[0][1])
    if stop_early and max(of) > SAMPLE and _is_hopeless(blocks, shown, of, signed=signed):
        return None
    rows, columns = assign_units([*shown, *(_length_view(b) for _, _, b in blocks)], signed=signed, seed=seed)
    alive = np.zeros(len(rows), bool)
    for u, v in shown:
        alive |= u[rows].any(axis=1) & v[columns].any(axis=1)
    if alive.sum() < 2:
        return None
    found = score_match(blocks, AxisMap(rows[alive], columns[alive], of), signed=signed)
    completed = _with_leftovers(rows[alive], columns[alive], of)
    return replace(found, units=completed, silent=len(completed.rows) - int(alive.sum()))


def _is_hopeless(
    blocks: Sequence[tuple[str, int, UnitBlock]], shown: Views, of: tuple[int, int], *, signed: bool
) -> bool:  # fmt: skip
    """Whether sampled units with their nearest counterparts are no closer than independent units can be."""
    alive = np.flatnonzero(np.logical_or.reduce([u.any(axis=1) for u, _ in shown]))
    if len(alive) < 2:
        return False
    rows = alive[np.unique(np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).round().astype(int))]
    nearest = similarities(shown, rows, signed=signed).argmax(axis=1)
    columns, first = np.unique(nearest, return_index=True)
    return score_match(blocks, AxisMap(rows[first], columns, of), signed=signed).margin < 0


def _with_leftovers(rows: np.ndarray, columns: np.ndarray, of: tuple[int, int]) -> AxisMap:
    """Give units without a counterpart the remaining ones in order; uninformative units may go anywhere."""
    left = np.setdiff1d(np.arange(of[0]), rows), np.setdiff1d(np.arange(of[1]), columns)
    if len(left[0]) != len(left[1]):
        return AxisMap(rows, columns, of)
    rows, columns = np.concatenate([rows, left[0]]), np.concatenate([columns, left[1]])
    order = np.argsort(rows)
    return AxisMap(rows[order], columns[order], of)


def _weighted_views(block: UnitBlock, views: tuple[bool, ...], *, signed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Unit directions with and without factors divided out, weighted by inverse scatter."""
    out = []
    for rescaled in views:
        u, v = block.vectors(rescaled=rescaled, signed=signed)
        step = max(1, len(u) // SAMPLE), max(1, len(v) // SAMPLE)
        scatter = float(np.mean((u[:: step[0]] @ v[:: step[1]].T) ** 2))
        out.append((u / np.float32(max(scatter, 1e-6)), v))
    return out


def _length_view(block: UnitBlock) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose product is minus the squared difference of two log lengths, times a small weight."""
    x, y = (
        np.log(np.linalg.norm(safely_scaled(side).reshape(len(side), -1), axis=1) + 1e-30)
        for side in (block.a, block.b)
    )
    x, y = (np.clip(z - np.median(z), -5, 5)[:, None] for z in (x, y))
    one = np.ones_like(x), np.ones_like(y)
    return TIE * np.hstack([2 * x, -x * x, -one[0]]).astype(np.float32), np.hstack([y, one[1], y * y]).astype(
        np.float32
    )


def score_match(blocks: Sequence[tuple[str, int, UnitBlock]], units: AxisMap, *, signed: bool) -> UnitMatch:
    """Margin of a match: what its units gain beyond the best order of independent units."""
    pairs, total, counted_tensors, cosines, sampled = 0, 0.0, 0, [], set()
    for _, _, b in blocks:
        if (len(b.a), len(b.b)) != units.of:
            continue
        alive = np.flatnonzero(_informative(b.a)[units.rows] & _informative(b.b)[units.columns])
        if not len(alive):
            continue
        chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).round().astype(int))]
        rows, columns = units.rows[chosen], units.columns[chosen]
        part = _rows_as_units(b, rows, columns) if len(rows) < MIN_UNITS and b.a.shape[1] > 1 else b.of(rows, columns)
        gain, cosine, counted = _gain(*part.vectors(rescaled=False, signed=signed), signed=signed)
        if cosine < SAME:
            gain, cosine, counted = max(
                (gain, cosine, counted), _gain(*part.vectors(rescaled=True, signed=signed), signed=signed)
            )
        cosines.append(cosine)
        if gain > MIN_NATS_PER_UNIT * counted:
            total, pairs, counted_tensors = total + gain, pairs + counted, counted_tensors + 1
            sampled |= set(chosen.tolist())
    cost = log_orders(len(sampled), units.of[1]) + counted_tensors * log(2) * (1 + signed * len(sampled))
    cosines = cosines or [0.0]
    return UnitMatch(units, surplus(pairs, total) - cost, float(np.mean(cosines)), min(cosines))


def refine_near_duplicates(blocks: Sequence[UnitBlock], units: AxisMap) -> AxisMap:
    """Reassign a few nearly equal units by their exact values; the map may stay as it was."""
    a, b = (np.hstack([_plain(x) for x in sides]) for sides in zip(*((b.a, b.b) for b in blocks), strict=True))
    rows, columns = units.rows, units.columns
    apart = np.flatnonzero(np.linalg.norm(a[rows] - b[columns], axis=1) > EQUAL)
    if not 2 <= len(apart) <= min(MAX_DIFFERENT, len(rows) // 2):
        return units
    distance = np.linalg.norm(a[rows[apart], None] - b[None, columns[apart]], axis=2)
    order = assign(-distance, np.random.default_rng(0))[1]
    if distance[np.arange(len(apart)), order].sum() >= distance.trace():
        return units
    better = columns.copy()
    better[apart] = columns[apart][order]
    return replace(units, columns=better)


def _plain(units: np.ndarray) -> np.ndarray:
    flat = safely_scaled(units).reshape(len(units), -1).astype(np.float64)
    return flat / max(1e-30, float(np.sqrt(np.mean(flat**2))))


_NO = (0.0, 0.0, 0)


def _informative(units: np.ndarray) -> np.ndarray:
    """Which units carry information: a norm, and a direction besides the common one."""
    flat = safely_scaled(units).reshape(len(units), -1)
    norm = np.linalg.norm(flat, axis=1)
    alive = norm > FAINT * max(float(norm.max(initial=0.0)), 1e-30)
    if alive.sum() < 2:
        return alive
    unit = flat / np.where(alive, norm, 1)[:, None]
    return alive & (np.abs(unit - unit[alive].mean(axis=0)).max(axis=1) > 1e-6)


def _gain(u: np.ndarray, v: np.ndarray, *, signed: bool) -> tuple[float, float, int]:
    """Gain, mean cosine and number of informative rows."""
    alive = u.any(axis=1) & v.any(axis=1)
    similarity = u[alive] @ v[alive].T
    if not similarity.size:
        return _NO
    own = np.abs(similarity.diagonal()) if signed else similarity.diagonal()
    return (
        float(gains(own, free_numbers(similarity, np.arange(len(own)), u.shape[1])).sum()),
        float(own.mean()),
        len(own),
    )


def _rows_as_units(block: UnitBlock, rows: np.ndarray, columns: np.ndarray) -> UnitBlock:
    """Matched units of several rows as single rows."""
    a, b = block.a[rows], block.b[columns]
    return replace(block, a=a.reshape(-1, 1, *a.shape[2:]), b=b.reshape(-1, 1, *b.shape[2:]))
