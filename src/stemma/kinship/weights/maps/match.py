"""Units matched by what tensors show of them, and how clear a match is: beyond what any order of units explains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np

from stemma.kinship.weights.maps.assignment import Views, matched, similarities
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import FAINT, Block, tamed
from stemma.kinship.weights.order.similarity import assign
from stemma.kinship.weights.reordering_bound import freedom, gains, orders, surplus

SAMPLE = 128
"""Matched units that decide whether a match is clear."""

PLAIN = (False,)
"""Units as they stand."""

SAME = 0.999
"""Mean cosine from which factors of units need not be divided out."""

TIE = 1e-3
"""What the length of a unit counts beside its direction."""

FEW = 32
"""Units below which their rows are compared one by one: a few heads have no others to be told from."""

TELLING = 2.0
"""Nats per unit that a tensor must say to be counted: independent units say one."""

EQUAL, MOST = 1e-6, 256
"""Distance of units, their root mean square being one, from which they differ, and how many may to be looked at."""

NEARLY = 0.95
"""Mean cosine from which a match is not looked at again."""


@dataclass(frozen=True, eq=False)
class Match:
    """Units that go together.

    Attributes:
        units: Which.
        clear: Nats beyond what any order of units gives; negative where an order alone would do.
        cosine: Mean cosine of the matched units.
        least: Mean cosine in the tensor that agrees least.
        silent: Units of which no tensor told anything; they stand in order.
    """

    units: AxisMap
    clear: float
    cosine: float
    least: float = 0.0
    silent: int = 0


def matched_best(blocks: Sequence[tuple[str, int, Block]], seed: int) -> tuple[Match | None, bool]:
    """Match units as they are, and where that does not bring all of them together, with their signs free.

    Args:
        blocks: Tensor, axis and what it shows.
        seed: Of what falls at random.

    Returns:
        The clearer match, and whether signs were free.
    """
    plain = match(blocks, signed=False, seed=seed, views=PLAIN, hopeful=True)
    if plain is not None and plain.cosine > NEARLY:
        return plain, False
    other = match(blocks, signed=False, seed=seed, hopeful=True)
    plain = max((m for m in (plain, other) if m is not None), key=lambda m: m.clear, default=None)
    if plain is not None and plain.cosine > NEARLY:
        return plain, False
    free = match(blocks, signed=True, seed=seed, hopeful=True)
    if free is None or (plain is not None and plain.clear >= free.clear):
        return plain, False
    return free, True


def match(
    blocks: Sequence[tuple[str, int, Block]], *, signed: bool, seed: int, views: tuple[bool, ...] = (True, False),
    hopeful: bool = False,
) -> Match | None:  # fmt: skip
    """Match units by all tensors that show them.

    Args:
        blocks: Tensor, axis and what it shows.
        signed: Whether the opposite of a unit counts like the same.
        seed: Of what falls at random.
        views: Units with their factors divided out, as they stand, or both.
        hopeful: Give up where a few units, each beside its nearest, say no more than any order of units does.

    Returns:
        The match; None where fewer than two units carry information, or it was given up.
    """
    shown = [pair for _, _, b in blocks for pair in _weighted(b, views, signed=signed)]
    of = len(shown[0][0]), len(shown[0][1])
    if hopeful and max(of) > SAMPLE and _hopeless(blocks, shown, of, signed=signed):
        return None
    rows, columns = matched([*shown, *(_lengths(b) for _, _, b in blocks)], signed=signed, seed=seed)
    alive = np.zeros(len(rows), bool)
    for u, v in shown:
        alive |= u[rows].any(axis=1) & v[columns].any(axis=1)
    if alive.sum() < 2:
        return None
    found = judged(blocks, AxisMap(rows[alive], columns[alive], of), signed=signed)
    completed = _completed(rows[alive], columns[alive], of)
    return replace(found, units=completed, silent=len(completed.rows) - int(alive.sum()))


def _hopeless(
    blocks: Sequence[tuple[str, int, Block]], shown: Views, of: tuple[int, int], *, signed: bool
) -> bool:  # fmt: skip
    """Whether some units, each beside its nearest, are no nearer than those of independent networks in the best order.

    No one-to-one match brings these units nearer; so strangers are left before all pairs are looked at.

    Returns:
        True where a match is not worth its cost.
    """
    alive = np.flatnonzero(np.logical_or.reduce([u.any(axis=1) for u, _ in shown]))
    if len(alive) < 2:
        return False
    rows = alive[np.unique(np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).round().astype(int))]
    nearest = similarities(shown, rows, signed=signed).argmax(axis=1)
    columns, first = np.unique(nearest, return_index=True)
    return judged(blocks, AxisMap(rows[first], columns, of), signed=signed).clear < 0


def _completed(rows: np.ndarray, columns: np.ndarray, of: tuple[int, int]) -> AxisMap:
    """Give units without a counterpart those that are left, in order, where they are as many.

    Dead units say nothing about which is which, and it does not matter.

    Returns:
        The map.
    """
    left = np.setdiff1d(np.arange(of[0]), rows), np.setdiff1d(np.arange(of[1]), columns)
    if len(left[0]) != len(left[1]):
        return AxisMap(rows, columns, of)
    rows, columns = np.concatenate([rows, left[0]]), np.concatenate([columns, left[1]])
    order = np.argsort(rows)
    return AxisMap(rows[order], columns[order], of)


def _weighted(block: Block, views: tuple[bool, ...], *, signed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Units with factors divided out, or as they stand; what scatters less between strangers counts more."""
    out = []
    for rescaled in views:
        u, v = block.vectors(rescaled=rescaled, signed=signed)
        step = max(1, len(u) // SAMPLE), max(1, len(v) // SAMPLE)
        scatter = float(np.mean((u[:: step[0]] @ v[:: step[1]].T) ** 2))
        out.append((u / np.float32(max(scatter, 1e-6)), v))
    return out


def _lengths(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose product is minus the squared difference of the logarithms of two lengths, times a small number.

    Lengths of units say little, factors being free, but they tell units apart that point the same way.

    Returns:
        A view, as directions are.
    """
    x, y = (np.log(np.linalg.norm(tamed(side).reshape(len(side), -1), axis=1) + 1e-30) for side in (block.a, block.b))
    x, y = (np.clip(z - np.median(z), -5, 5)[:, None] for z in (x, y))
    one = np.ones_like(x), np.ones_like(y)
    return TIE * np.hstack([2 * x, -x * x, -one[0]]).astype(np.float32), np.hstack([y, one[1], y * y]).astype(
        np.float32
    )


def judged(blocks: Sequence[tuple[str, int, Block]], units: AxisMap, *, signed: bool) -> Match:
    """How clear a match is: what its units gain beyond what the best order of units gives.

    Args:
        blocks: Tensors that show the units.
        units: Which go together.
        signed: Whether signs were free.

    Returns:
        The match with its figures.
    """
    pairs, total, told, cosines, seen = 0, 0.0, 0, [], set()
    for _, _, b in blocks:
        if (len(b.a), len(b.b)) != units.of:
            continue
        alive = np.flatnonzero(_alive(b.a)[units.rows] & _alive(b.b)[units.columns])
        if not len(alive):
            continue
        chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).round().astype(int))]
        rows, columns = units.rows[chosen], units.columns[chosen]
        part = _row_by_row(b, rows, columns) if len(rows) < FEW and b.a.shape[1] > 1 else b.of(rows, columns)
        gain, cosine, counted = _gain(*part.vectors(rescaled=False, signed=signed), signed=signed)
        if cosine < SAME:
            gain, cosine, counted = max(
                (gain, cosine, counted), _gain(*part.vectors(rescaled=True, signed=signed), signed=signed)
            )
        cosines.append(cosine)
        if gain > TELLING * counted:
            total, pairs, told = total + gain, pairs + counted, told + 1
            seen |= set(chosen.tolist())
    paid = orders(len(seen), units.of[1]) + told * log(2) * (1 + signed * len(seen))
    cosines = cosines or [0.0]
    return Match(units, surplus(pairs, total) - paid, float(np.mean(cosines)), min(cosines))


def polished(blocks: Sequence[Block], units: AxisMap) -> AxisMap:
    """Exchange the counterparts of a few units that are not the same among many that are.

    Units that point the same way are told apart by what they hold, to the last bit.

    Args:
        blocks: Tensors that show the units.
        units: Which go together.

    Returns:
        The map, better or as it was.
    """
    a, b = (np.hstack([_plain(x) for x in sides]) for sides in zip(*((b.a, b.b) for b in blocks), strict=True))
    rows, columns = units.rows, units.columns
    apart = np.flatnonzero(np.linalg.norm(a[rows] - b[columns], axis=1) > EQUAL)
    if not 2 <= len(apart) <= min(MOST, len(rows) // 2):
        return units
    distance = np.linalg.norm(a[rows[apart], None] - b[None, columns[apart]], axis=2)
    order = assign(-distance, np.random.default_rng(0))[1]
    if distance[np.arange(len(apart)), order].sum() >= distance.trace():
        return units
    better = columns.copy()
    better[apart] = columns[apart][order]
    return replace(units, columns=better)


def _plain(units: np.ndarray) -> np.ndarray:
    flat = tamed(units).reshape(len(units), -1).astype(np.float64)
    return flat / max(1e-30, float(np.sqrt(np.mean(flat**2))))


_NO = (0.0, 0.0, 0)


def _alive(units: np.ndarray) -> np.ndarray:
    """Which units carry information: a length of their own, and a direction beside the common one."""
    flat = tamed(units).reshape(len(units), -1)
    norm = np.linalg.norm(flat, axis=1)
    alive = norm > FAINT * max(float(norm.max(initial=0.0)), 1e-30)
    if alive.sum() < 2:
        return alive
    unit = flat / np.where(alive, norm, 1)[:, None]
    return alive & (np.abs(unit - unit[alive].mean(axis=0)).max(axis=1) > 1e-6)


def _gain(u: np.ndarray, v: np.ndarray, *, signed: bool) -> tuple[float, float, int]:
    """Gain, mean cosine and number of rows that carry information."""
    alive = u.any(axis=1) & v.any(axis=1)
    similarity = u[alive] @ v[alive].T
    if not similarity.size:
        return _NO
    own = np.abs(similarity.diagonal()) if signed else similarity.diagonal()
    return float(gains(own, freedom(similarity, np.arange(len(own)), u.shape[1])).sum()), float(own.mean()), len(own)


def _row_by_row(block: Block, rows: np.ndarray, columns: np.ndarray) -> Block:
    """Matched units as so many single rows."""
    a, b = block.a[rows], block.b[columns]
    return replace(block, a=a.reshape(-1, 1, *a.shape[2:]), b=b.reshape(-1, 1, *b.shape[2:]))
