"""A residual stream in other coordinates: the rotation that brings the tokens of one model onto those of the other.

Tokens are the same for both models, so two embeddings of one network differ by a rotation that has a closed form
(orthogonal Procrustes; Schönemann, Psychometrika 31, 1966). Embeddings of independent networks trained on like text can
be rotated onto each other to some extent too: what was fitted is no evidence, only what else then agrees.
"""

import numpy as np

from stemma.architectures.structure import Structure
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.maps.axis_map import AxisMap, Part
from stemma.kinship.weights.maps.blocks import directions
from stemma.kinship.weights.maps.held_out import agree
from stemma.kinship.weights.maps.products import by_products, units_beside
from stemma.kinship.weights.maps.search import Chart
from stemma.kinship.weights.maps.settle import alternatives, grow

TOKENS = 2
"""Tokens per dimension of the stream that are enough."""

ALIKE = 0.02
"""How much worse than the best a tensor may fit that a rotation is fitted to: gains of others may be in the way."""

LEAST = 0.1
"""Mean cosine of tokens held out below which a stream was not rotated: the rest need not be looked at."""

ORDERED = 0.9
"""Entry of a rotation from which it brings a dimension onto another one."""

FEWEST, FAINT = 0.25, 1e-5
"""Share of the dimensions that tokens must span, and singular value, against the largest, below which they do not."""

NARROW = 256
"""Dimensions up to which all tokens that a fit takes are read at once."""

WIDEST = 8192
"""Dimensions up to which a rotation is fitted: it takes a singular value decomposition."""


def turn_streams(chart: Chart, known: Structure, *, named: bool) -> tuple[str, ...]:
    """Fit a rotation of every stream that may be rotated and has no map yet; keep it where other tensors then agree.

    Args:
        chart: Is filled where a rotation helps.
        known: The structure of the reference.
        named: Whether names say which tensor is which; otherwise that is looked for too.

    Returns:
        Streams that could not be tried, with the reason.
    """
    untried = []
    for group in known.groups:
        if not group.rotatable or group.name in chart.units:
            continue
        why = _by_tokens(chart, group.name, named=named)
        if group.name in chart.units:
            continue
        shown = by_products(chart, group.name, named=named)
        if shown is not None:
            _kept(chart, group.name, shown[0], [(name, 0) for name in shown[1]], named=named)
        if why and not units_beside(chart, group.name):
            untried.append(f"{group.name}: {why}")
    return tuple(untried)


def _by_tokens(chart: Chart, stream: str, *, named: bool) -> str:
    """Fit the rotation that brings tokens (positions, pixels) together; a few words where that could not be tried."""
    anchors = [(name, k) for name, k in chart.showing(stream) if _anchored(chart, name, k)]
    if not anchors:
        return "no tensor shows it beside tokens"
    fits = {} if named else _pair_anchors(chart, anchors)
    widths = [chart.parts[name].axes[k].b for name, k in anchors]
    width = max(widths, key=widths.count)
    anchors = [place for place, there in zip(anchors, widths, strict=True) if there == width]
    fits = {n: fits[n] if n in fits else _fit(chart, n, chart.parts[n], k) for n, k in anchors}
    if max(fits.values()) < LEAST:
        return ""
    best = [(name, k) for name, k in anchors if fits[name] >= max(fits.values()) - ALIKE]
    fitted = _rotation(chart, best)
    if isinstance(fitted, str):
        fitted = _rotation(chart, anchors)
    else:
        anchors = best
    if isinstance(fitted, str):
        return fitted
    _kept(chart, stream, fitted, anchors, named=named)
    return ""


def _kept(chart: Chart, stream: str, fitted: AxisMap, anchors: list[tuple[str, int]], *, named: bool) -> None:
    """Keep a rotation where more than it was fitted to agrees under it; with those units it is fitted again."""
    before = set(chart.units)
    chart.units[stream] = fitted
    own = {name for name, _ in anchors}
    chart.fitted |= own
    grow(chart, named=named)
    if _told(chart, stream, own, before) and _rank(fitted) < min(fitted.of):
        more = _matched_too(chart, stream, anchors)
        better = _rotation(chart, [*anchors, *more])
        if not isinstance(better, str):
            chart.units[stream] = better
            chart.fitted |= {name for name, _ in more}
            grow(chart, named=named)
    if not _told(chart, stream, own, before):
        for key in set(chart.units) - before:
            del chart.units[key]
        chart.fitted -= own


def _told(chart: Chart, stream: str, fitted: set[str], before: set[str]) -> bool:
    """Whether units were matched through a rotation that are not shown by the tensors alone that it was fitted to."""
    new = set(chart.units) - before - {stream}
    return any(name not in fitted for key in new for name, _ in chart.showing(key))


def _pair_anchors(chart: Chart, anchors: list[tuple[str, int]]) -> dict[str, float]:
    """Of the target's tensors that fit, give each anchor the one that a rotation brings nearest, tokens held out.

    Returns:
        By anchor, how well it fits.
    """
    others, fits = dict(matrices(chart.sides.target.model)), {}
    for name, k in anchors:
        tried = [(_fit(chart, name, part, k), part) for part in alternatives(chart.parts[name], others)]
        if tried:
            fits[name], best = max(tried, key=lambda found: found[0])
            chart.parts[name] = best
            others.pop(best.pairing.b, None)
    return fits


def _fit(chart: Chart, name: str, part: Part, k: int) -> float:
    """Mean cosine of tokens that were held out, after the rotation that fits the others best; 0 where none can."""
    if (part.pairing, k) in chart.tried:
        return chart.tried[part.pairing, k]
    chart.tried[part.pairing, k] = found = _fitted(chart, name, part, k)
    return found


def _fitted(chart: Chart, name: str, part: Part, k: int) -> float:
    """As `_fit`; of wide streams few tokens say first whether more are worth reading."""
    width, x, y = part.axes[k].a, np.zeros((0, 0)), np.zeros((0, 0))
    for tokens in (TOKENS * width, 4 * TOKENS * width)[width <= NARROW :]:
        before, chart.parts[name] = chart.parts[name], part
        block = chart.block(name, k, tokens)
        chart.parts[name] = before
        if block is None:
            return -1.0
        x, y = (directions(side.reshape(len(side), -1).T) for side in (block.a, block.b))
        if not agree([x[::2]], [y[::2]], [x[1::2]], [y[1::2]]):
            return 0.0
    left, _, right = np.linalg.svd(x[::2].T @ y[::2], full_matrices=False)
    return float(((x[1::2] @ (left @ right)) * y[1::2]).sum(axis=1).mean())


def _anchored(chart: Chart, name: str, k: int) -> bool:
    """Whether all other axes of a tensor have a fixed order."""
    return all(not axis.key for i, axis in enumerate(chart.parts[name].axes) if i != k)


def _rotation(chart: Chart, anchors: list[tuple[str, int]]) -> AxisMap | str:
    """The best orthogonal map of the stream over some tokens of all anchors; or why there is none.

    Fewer tokens than dimensions fix it on what they span; it leaves the rest out.
    Where the target is narrower the map is one into its space: a stream that was rotated and cut.

    Returns:
        The map, or a few words.
    """
    name, k = anchors[0]
    n, m = chart.parts[name].axes[k].a, chart.parts[name].axes[k].b
    if max(n, m) > WIDEST:
        return f"it has {max(n, m):,} dimensions, more than {WIDEST:,}"
    product, tokens = np.zeros((n, m)), 0
    for name, k in anchors:
        block = chart.block(name, k, -(-TOKENS * n // len(anchors)))
        if block is None:
            continue
        x, y = (directions(side.reshape(len(side), -1).T) for side in (block.a, block.b))
        product += x.T.astype(np.float64) @ y
        tokens += len(x)
    left, strength, right = np.linalg.svd(product, full_matrices=False)
    told = strength > FAINT * strength[0]
    if told.sum() < FEWEST * min(n, m):
        return f"{tokens:,} tokens are too few for {max(n, m):,} dimensions"
    common = np.arange(min(n, m))
    return AxisMap(common, common, (n, m), rotation=(left[:, told] @ right[told]).astype(np.float32))


def order_of(found: AxisMap) -> AxisMap | None:
    """The order that a rotation comes to, where it brings every dimension onto one other.

    Args:
        found: The map of a stream.

    Returns:
        A map without a rotation; None where dimensions are mixed.
    """
    if found.rotation is None:
        return found
    columns = found.rotation.argmax(axis=1)
    plain = len(set(columns.tolist())) == len(columns) and float(found.rotation.max(axis=1).min()) > ORDERED
    return AxisMap(np.arange(len(columns)), columns, found.of) if plain else None


def _rank(fitted: AxisMap) -> int:
    """Dimensions that a map brings together: its singular values are one or zero."""
    assert fitted.rotation is not None
    return round(float((fitted.rotation.astype(np.float64) ** 2).sum()))


def _matched_too(chart: Chart, key: str, anchors: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Tensors whose units were matched through the dimensions that tokens reach: enough of them for the others."""
    out, rows, wanted = [], 0, TOKENS * chart.units[key].of[0]
    for name, k in chart.showing(key):
        axes = chart.parts[name].axes
        own = (name, k) in anchors or axes[k].b != chart.units[key].of[1]
        if own or any(x.key == key for i, x in enumerate(axes) if i != k):
            continue
        others = [chart.rows(name, i) for i in range(len(axes)) if i != k]
        if any(m is None for m in others) or rows >= wanted:
            continue
        out.append((name, k))
        rows += int(np.prod([len(m.rows) for m in others if m is not None]))
    return out
