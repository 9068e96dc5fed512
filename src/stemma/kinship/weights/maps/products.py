"""Units matched by what no rotation of a stream and no order changes: their products with each other.

A unit of an MLP layer reads the stream through one row and writes to it through a column. Inner products of these
vectors, with each other and with those of other units, stay the same when the stream is rotated; sorted, they do not
depend on the order of units either. So units can be matched before anything is known about the stream, and the rotation
follows from the matched ones (orthogonal Procrustes; Schönemann, Psychometrika 31, 1966), in turns. No token is needed:
a vocabulary may be in another order, or be another one.
"""

import numpy as np

from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.maps.assignment import EXACT, matched
from stemma.kinship.weights.maps.axis_map import AxisMap
from stemma.kinship.weights.maps.blocks import directions, tamed
from stemma.kinship.weights.maps.held_out import agree
from stemma.kinship.weights.maps.search import Chart, spread
from stemma.kinship.weights.maps.settle import alternatives
from stemma.kinship.weights.order.units_of_pair import finite
from stemma.kinship.weights.sizes import sizes_of

LAYERS, ROUNDS = 2, 8
"""Sets of units that are tried, and times that units and rotation are fitted in turn."""

BETTER = 0.01
"""By how much a round must bring units nearer for another one."""

LENGTHS = 512
"""Quantiles of the lengths of units by which tensors are told apart."""

PROFILE = 64
"""Quantiles of a unit's products with all others."""

TOLD = 0.6
"""Mean cosine of matched units under the rotation from which it is kept; others are left to what follows."""

SOME = 512
"""Units that tell whether it is worth matching all, where there are more than are assigned at once."""

MOST = 1 << 13
"""Units of a set up to which all products are formed."""


def by_products(chart: Chart, stream: str, *, named: bool) -> tuple[AxisMap, tuple[str, ...]] | None:
    """Match a set of units that reads and writes a stream, and the stream with it.

    Cost: products of all pairs of units in up to `LAYERS` sets, an assignment and a singular value decomposition of the
    stream's size for each round.

    Args:
        chart: The search; without names, tensors are paired anew in it.
        stream: The set of the stream's dimensions, which has no map yet.
        named: Whether names say which tensor is which.

    Returns:
        The rotation, and the tensors that it was fitted to; None where none fits.
    """
    beside = units_beside(chart, stream)
    tried = spread(list(beside))[:LAYERS]
    if not named:
        several = [key for key in tried if all(chart.parts[n].axes[k].a <= EXACT for n, k in beside[key])]
        tried = several or tried[-1:]  # of very many units one set, in the middle of the model
        _paired_by_lengths(chart, stream, {name for key in tried for name, _ in beside[key]})
        now = units_beside(chart, stream)
        tried = [key for key in tried if key in now]
        beside |= now
    for key in tried:
        places = beside[key]
        tensors = tuple(chart.parts[name].pairing for name, _ in places)
        if tensors in chart.tried:
            continue
        sides = _vectors(chart, stream, places)
        if sides is None:
            continue
        fitted = _in_turns(*sides, chart.seed)
        if fitted is None:
            chart.tried[tensors] = 0.0
        if fitted is not None:
            if not named:
                _paired_by_lengths(chart, stream, {name for others in beside.values() for name, _ in others})
            n, m = fitted.shape
            common = np.arange(min(n, m))
            return AxisMap(common, common, (n, m), rotation=fitted), tuple(name for name, _ in places)
    return None


def units_beside(chart: Chart, stream: str) -> dict[str, list[tuple[str, int]]]:
    """Sets of units that several tensors show beside a stream.

    Args:
        chart: The search.
        stream: The set of the stream's dimensions.

    Returns:
        By set, the tensors that show it and the position of its axis in each.
    """
    out: dict[str, list[tuple[str, int]]] = {}
    for name, k in chart.showing(stream):
        axes = chart.parts[name].axes
        others = [i for i in range(len(axes)) if i != k]
        if len(others) == 1 and axes[others[0]].key not in ("", stream) and axes[k].a == axes[k].b:
            out.setdefault(axes[others[0]].key, []).append((name, others[0]))
    return {key: places for key, places in out.items() if len(places) > 1 and _plain(chart, places)}


def _paired_by_lengths(chart: Chart, stream: str, names: set[str]) -> None:
    """Give tensors the counterparts whose units have the likest lengths: neither a rotation nor an order changes those.

    Args:
        chart: Its tensors are paired anew.
        stream: The set of the stream's dimensions.
        names: Tensors that show units beside it.
    """
    from scipy.optimize import linear_sum_assignment

    reference, others = chart.sides.reference.model.weights, matrices(chart.sides.target.model)
    by_size: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for name, k in chart.showing(stream):
        if name in names and name in reference:
            by_size.setdefault(sizes_of(reference[name]), []).append((name, k))
    for size, own in by_size.items():
        there = [n for n, t in others.items() if sizes_of(t) == size]
        if len(there) < 2:
            continue
        width = chart.parts[own[0][0]].axes[own[0][1]].a
        x = np.array([_lengths(reference[n], chart.parts[n].pairing.axes_a[k]) for n, k in own])
        y = np.array([_lengths(others[n], _along(others[n], width)) for n in there])
        cost = np.linalg.norm(x[:, None] - y[None], axis=2)
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            found = next(iter(alternatives(chart.parts[own[i][0]], {there[j]: others[there[j]]})), None)
            if found is not None:
                chart.parts[own[i][0]] = found


def _along(tensor: Tensor, width: int) -> int:
    """The axis of a matrix that is as long as a stream; the last one where both are."""
    return max(k for k, n in enumerate(tensor.shape) if n == width)


def _lengths(tensor: Tensor, along: int) -> np.ndarray:
    """Logarithms of the lengths of a matrix's units, sorted: at some quantiles.

    Args:
        tensor: The matrix.
        along: The axis of the stream.

    Returns:
        At most `LENGTHS` numbers.
    """
    x = np.moveaxis(tamed(finite(tensor.array())), along, -1)
    x = x.reshape(-1, x.shape[-1])
    found = np.sort(np.log(np.maximum(np.sqrt(np.einsum("ij,ij->i", x, x)), 1e-30)))
    return found[np.linspace(0, len(found) - 1, min(LENGTHS, len(found))).round().astype(int)]


def _plain(chart: Chart, places: list[tuple[str, int]]) -> bool:
    """Whether units are single rows, of one number in all tensors, and not too many."""
    axes = [chart.parts[name].axes[k] for name, k in places]
    sizes = {(len(x.units()), len(x.units_of_target())) for x in axes}
    single = all(x.units().shape[1] == 1 for x in axes)
    return single and len(sizes) == 1 and max(next(iter(sizes))) <= MOST and min(next(iter(sizes))) > 1


def _vectors(
    chart: Chart, stream: str, places: list[tuple[str, int]]
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:  # fmt: skip
    """What each tensor holds of the units, `[units, dimensions]`, in either model's own order and coordinates."""
    name, k = places[0]
    axis = chart.parts[name].axes[1 - k]
    chart.units[stream] = AxisMap.identity(axis.a, axis.b)
    try:
        blocks = [chart.block(name, k, axis.a * 2) for name, k in places]
    finally:
        del chart.units[stream]
    if any(b is None or b.a.ndim != 3 or b.a.shape[2] != axis.a for b in blocks):
        return None
    own, other = (
        [x[:, 0].astype(np.float32) for x in side] for side in zip(*((b.a, b.b) for b in blocks if b), strict=True)
    )
    return own, other


def _in_turns(own: list[np.ndarray], other: list[np.ndarray], seed: int) -> np.ndarray | None:
    """The rotation `[reference, target]`, from units matched by products, then by directions through it, in turns."""
    units = [tuple(directions(v, signed=True) for v in side) for side in (own, other)]
    many = max(len(own[0]), len(other[0])) > EXACT
    some = np.unique(np.linspace(0, len(own[0]) - 1, SOME).round().astype(int)) if many else None
    y = _invariants(other, units[1], every=not many)
    for chosen in (some, None)[not many :]:
        x = _invariants(own, units[0], every=not many, chosen=chosen)
        scale = np.maximum(x.std(axis=0), 1e-9)
        u, v = (directions((z - x.mean(axis=0)) / scale) for z in (x, y))
        if chosen is None:
            rows, columns = matched([(u, v)], signed=False, seed=seed)
        else:
            rows, columns = chosen, (u @ v.T).argmax(axis=1)
        if not _traced(*units, rows, columns):
            return None
    before = -1.0
    for _ in range(ROUNDS):
        product = sum(u[rows].T @ v[columns] for u, v in zip(*units, strict=True))
        left, _, right = np.linalg.svd(np.asarray(product, np.float64))
        rotation = (left @ right).astype(np.float32)
        turned = [(u @ rotation, v) for u, v in zip(*units, strict=True)]
        rows, columns = matched(turned, signed=False, seed=seed)
        cosine = float(np.mean([(u[rows] * v[columns]).sum(axis=1).mean() for u, v in turned]))
        if cosine <= before + BETTER:
            break
        before = cosine
    return rotation if before >= TOLD else None


def _traced(
    own: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], rows: np.ndarray, columns: np.ndarray
) -> bool:  # fmt: skip
    """Whether every other matched unit tells how the rest goes together, better than chance does.

    Units that are matched rightly have the same products with others that are, so the sum of the outer products of
    some (what a rotation is fitted to) brings the others together. Without kinship it has nothing to do with them.
    Where too few units are right for it to show here, more rounds do not find the others.

    Returns:
        True where a rotation is worth fitting.
    """
    return agree(
        [u[rows[::2]] for u in own], [v[columns[::2]] for v in other],
        [u[rows[1::2]] for u in own], [v[columns[1::2]] for v in other],
    )  # fmt: skip


def _invariants(
    side: list[np.ndarray], units: tuple[np.ndarray, ...], *, every: bool, chosen: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Numbers of every unit that neither a rotation, nor the order of units, nor a factor that cancels changes.

    Args:
        side: Units as each tensor shows them.
        units: The same as directions.
        every: Whether products between two tensors are looked at too: of many units those within each are enough.
        chosen: Whose numbers are wanted; all units' unless given.

    Returns:
        `[units, numbers]`.
    """
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
