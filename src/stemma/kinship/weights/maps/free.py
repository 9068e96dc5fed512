"""A tensor matched by itself, whatever its axes carry: rows and columns in turn, starting from what no order changes.

Which numbers a row holds does not depend on the order of its columns. So rows are matched first by their sorted
entries, columns likewise; then rows by their entries in the columns found, columns by their entries in the rows found,
and so on. Nothing has to be known about the network. Source: alternating matching as in weight matching (Ainsworth et
al., ICLR 2023, arXiv:2209.04836, section 3.2), within one tensor; the start from sorted entries is this project's.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stemma.kinship.weights.maps.assignment import EXACT, matched
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import WHOLE, Block, directions, tamed
from stemma.kinship.weights.maps.match import NEARLY, judged, match
from stemma.kinship.weights.maps.search import SURE, Chart
from stemma.kinship.weights.reordering_bound import orders

ROUNDS = 6
"""Times that every axis is matched anew; clones are found in two."""

PROFILE = 128
"""Quantiles of a unit's entries that are compared first."""

SOME = 512
"""Units of very many that tell whether a match is worth looking for."""

TURNS, TRACE = 24, 3.0
"""Other orders that a first match is compared with, and deviations by which it must be nearer for a second one."""

LEAST = 8
"""Units that an axis needs; fewer are matched with anything."""


def match_alone(chart: Chart, name: str) -> bool:
    """Match the axes of one tensor that no map is known for; keep the maps where they are clear.

    Cost: a few products of all pairs of units on each axis; the tensor is read whole.

    Args:
        chart: Is filled where the match is clear.
        name: The tensor.

    Returns:
        Whether it was; False too for a tensor that is too large (see `readable`) or has too few units.
    """
    axes = chart.parts[name].axes
    open_ = [k for k, axis in enumerate(axes) if axis.key and chart.rows(name, k) is None]
    if not open_ or min(min(axes[k].a, axes[k].b) for k in open_) < LEAST or not readable(chart, name):
        return False
    if len({axes[k].key for k in open_}) < len(open_):
        return False
    best: tuple[float, Chart] = (SURE, chart)
    for signed in (False, True):
        trial = replace(chart, units=dict(chart.units), signs=dict(chart.signs), turned_units=dict(chart.turned_units))
        for key in {axes[k].key for k in open_}:
            trial.forget_signs(key)
        clear, cosine = _alternated(trial, name, open_, signed=signed)
        if clear > best[0]:
            best = clear, trial
        if not signed and clear > SURE and cosine > NEARLY:
            break
    found = best[1]
    chart.units, chart.signs, chart.turned_units = found.units, found.signs, found.turned_units
    return found is not chart


def readable(chart: Chart, name: str) -> bool:
    """Whether a pair of tensors is small enough to be matched by itself.

    Args:
        chart: The search.
        name: The tensor.

    Returns:
        True up to 4 million entries.
    """
    p = chart.parts[name].pairing
    sizes = chart.sides.reference.model.weights[p.a].size, chart.sides.target.model.weights[p.b].size
    return max(sizes) <= WHOLE


def _alternated(chart: Chart, name: str, open_: Sequence[int], *, signed: bool) -> tuple[float, float]:
    """How clear the match of a tensor's axes becomes, and its mean cosine; the maps are left in the chart."""
    axes = chart.parts[name].axes
    for k in open_:
        chart.units[axes[k].key] = AxisMap.identity(len(axes[k].units()), len(axes[k].units_of_target()))
    many = max(max(chart.units[axes[k].key].of) for k in open_) > EXACT
    for some in (SOME, None)[not many :] if len(open_) > 1 else ():  # a single axis is matched through the others
        starts = {k: _by_profile(chart, name, k, signed=signed, some=some) for k in open_}
        if any(start is None for start in starts.values()):
            return 0.0, 0.0
        chart.units |= {axes[k].key: start for k, start in starts.items() if start is not None}
        if not _traced(chart, name, open_[-1], signed=signed):
            return 0.0, 0.0
    last, cosine = -2.0, -1.0
    for _ in range(ROUNDS):
        for k in open_:
            block = chart.block(name, k)
            found = None if block is None else match(
                [(name, k, _absolute(block) if signed else block)], signed=False, seed=chart.seed,
                hopeful=len(open_) == 1,
            )  # fmt: skip
            if found is None:
                return 0.0, 0.0
            chart.units[axes[k].key], cosine = found.units, found.cosine
        if cosine <= last + 1e-3:
            break
        last = cosine
    if signed:
        _turn(chart, name, open_)
    final = chart.block(name, open_[-1])
    if final is None:
        return 0.0, 0.0
    paid = sum(orders(len(chart.units[axes[k].key].rows), chart.units[axes[k].key].of[1]) for k in open_[:-1])
    if signed:
        paid += np.log(2) * sum(len(chart.units[axes[k].key].rows) for k in open_[:-1])
    told = judged([(name, open_[-1], final)], chart.units[axes[open_[-1]].key], signed=signed)
    return told.clear - paid, told.cosine


def _traced(chart: Chart, name: str, k: int, *, signed: bool) -> bool:
    """Whether matched units are nearer through the matched coordinates than the same units in turned orders.

    Both matches were made apart from each other, so without kinship the units are as near as in any order; and where
    too few are right to show here, none could be told by them in the next round.

    Returns:
        True where another round is worth its cost.
    """
    block = chart.block(name, k)
    if block is None:
        return False
    u, v = (_absolute(block) if signed else block).vectors(rescaled=False)
    units = chart.units[chart.parts[name].axes[k].key]
    u, v = u[units.rows], v[units.columns]
    steps = np.unique(np.linspace(1, max(1, len(v) - 1), TURNS).round().astype(int))
    found = np.array([float((u * np.roll(v, step, axis=0)).sum()) for step in steps])
    return float((u * v).sum()) > float(found.mean() + TRACE * found.std())


def _absolute(block: Block) -> Block:
    return replace(block, a=np.abs(block.a), b=np.abs(block.b))


def _by_profile(chart: Chart, name: str, k: int, *, signed: bool, some: int | None) -> AxisMap | None:
    """Units matched by their sorted entries: all of them one to one, or some, each with its nearest."""
    axis = chart.parts[name].axes[k]
    own, other = axis.units(), axis.units_of_target()
    if not len(own) or not len(other):
        return None
    chosen = np.arange(len(own))
    if some is not None:
        chosen = np.unique(np.linspace(0, len(own) - 1, some).round().astype(int))
        own = own[chosen]
    x, y = chart.sides.whole(chart.parts[name])
    sides = [_profiles(_units(np.moveaxis(z, k, 0), rows), signed=signed) for z, rows in ((x, own), (y, other))]
    if sides[0].shape[1] != sides[1].shape[1]:
        return None
    middle = sides[0].mean(axis=0)
    u, v = directions(sides[0] - middle), directions(sides[1] - middle)
    if some is not None:
        return AxisMap(chosen, (u @ v.T).argmax(axis=1), (len(axis.units()), len(other)))
    rows, columns = matched([(u, v)], signed=False, seed=chart.seed)
    return AxisMap(rows, columns, (len(own), len(other)))


def _units(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Units as rows; nothing is copied where they are the rows as they stand."""
    plain = rows.shape == (len(x), 1) and bool((np.diff(rows[:, 0]) == 1).all())
    return x.reshape(len(x), 1, -1) if plain else x[rows]


def _profiles(units: np.ndarray, *, signed: bool) -> np.ndarray:
    """Quantiles of each unit's entries, at root mean square one."""
    flat = tamed(units).reshape(len(units), -1)
    flat = np.sort(np.abs(flat) if signed else flat, axis=1)
    rms = np.sqrt(np.mean(flat**2, axis=1, keepdims=True))
    at = np.linspace(0, flat.shape[1] - 1, min(PROFILE, flat.shape[1])).round().astype(int)
    return flat[:, at] / np.where(rms > 0, rms, 1)


def _turn(chart: Chart, name: str, open_: Sequence[int]) -> None:
    """Signs of matched units, on every axis in turn, so that most entries agree."""
    for k in open_:
        chart.signs.pop((name, k), None)
    generator = np.random.default_rng(chart.seed)
    first = chart.units[chart.parts[name].axes[open_[0]].key]
    if len(open_) > 1:
        chart.signs[name, open_[0]] = generator.choice(np.array([-1.0, 1.0], np.float32), len(first.rows))
    for _ in range(4 * ROUNDS):
        for k in reversed(open_):
            units, block = chart.units[chart.parts[name].axes[k].key], chart.block(name, k)
            if block is None:
                return
            a, b = (z.reshape(len(z), -1) for z in (block.a, block.b))
            agreed = (a[units.rows] * b[units.columns]).sum(axis=1)
            chart.signs[name, k] = np.where(agreed < 0, -1.0, 1.0).astype(np.float32)
