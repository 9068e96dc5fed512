"""Rotation of a residual stream, fitted to tokens (orthogonal Procrustes) and confirmed by other tensors."""

import numpy as np

from stemma.architectures.structure import Structure
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.maps.axis_map import AxisMap, Part
from stemma.kinship.weights.maps.blocks import directions
from stemma.kinship.weights.maps.held_out import held_out_agreement
from stemma.kinship.weights.maps.products import match_by_products, units_beside
from stemma.kinship.weights.maps.search_state import SearchState
from stemma.kinship.weights.maps.unnamed_tensors import alternatives, extend_map

TOKENS = 2
"""Tokens per dimension of the stream that are used."""

ALIKE = 0.02
"""How much worse than the best fit a tensor may be that a rotation is fitted to (other gains may disturb it)."""

MIN_COSINE = 0.1
"""Mean cosine of held-out tokens below which no rotation is fitted."""

ORDERED = 0.9
"""Entry of a rotation from which it maps one dimension to another."""

FEWEST, FAINT = 0.25, 1e-5
"""Share of the dimensions that tokens must span, and relative singular value below which they do not."""

NARROW = 256
"""Dimensions up to which all tokens that a fit takes are read at once."""

MAX_WIDTH = 8192
"""Most dimensions of a fitted rotation, which needs a singular value decomposition."""


def fit_stream_rotations(state: SearchState, known: Structure, *, named: bool) -> tuple[str, ...]:
    """Fit a rotation to every unmapped stream and keep it if other tensors agree; streams not tried."""
    untried = []
    for group in known.groups:
        if not group.rotatable or group.name in state.units:
            continue
        why = _fit_by_tokens(state, group.name, named=named)
        if group.name in state.units:
            continue
        shown = match_by_products(state, group.name, named=named)
        if shown is not None:
            _keep_if_confirmed(state, group.name, shown[0], [(name, 0) for name in shown[1]], named=named)
        if why and not units_beside(state, group.name):
            untried.append(f"{group.name}: {why}")
    return tuple(untried)


def _fit_by_tokens(state: SearchState, stream: str, *, named: bool) -> str:
    """Fit the rotation on tokens (positions, pixels); the reason if that was not possible."""
    anchors = [(name, k) for name, k in state.showing(stream) if _is_anchored(state, name, k)]
    if not anchors:
        return "no tensor connects it with tokens"
    fits = {} if named else _pair_anchors(state, anchors)
    widths = [state.parts[name].axes[k].b for name, k in anchors]
    width = max(widths, key=widths.count)
    anchors = [place for place, there in zip(anchors, widths, strict=True) if there == width]
    fits = {n: fits[n] if n in fits else _fit(state, n, state.parts[n], k) for n, k in anchors}
    if max(fits.values()) < MIN_COSINE:
        return ""
    best = [(name, k) for name, k in anchors if fits[name] >= max(fits.values()) - ALIKE]
    fitted = _rotation(state, best)
    if isinstance(fitted, str):
        fitted = _rotation(state, anchors)
    else:
        anchors = best
    if isinstance(fitted, str):
        return fitted
    _keep_if_confirmed(state, stream, fitted, anchors, named=named)
    return ""


def _keep_if_confirmed(
    state: SearchState, stream: str, fitted: AxisMap, anchors: list[tuple[str, int]], *, named: bool
) -> None:
    """Keep a rotation if tensors agree that it was not fitted to; then fit it again with those."""
    before = set(state.units)
    state.units[stream] = fitted
    own = {name for name, _ in anchors}
    state.fitted |= own
    extend_map(state, named=named)
    if _is_confirmed(state, stream, own, before) and _rank(fitted) < min(fitted.of):
        more = _matched_through(state, stream, anchors)
        better = _rotation(state, [*anchors, *more])
        if not isinstance(better, str):
            state.units[stream] = better
            state.fitted |= {name for name, _ in more}
            extend_map(state, named=named)
    if not _is_confirmed(state, stream, own, before):
        for key in set(state.units) - before:
            del state.units[key]
        state.fitted -= own


def _is_confirmed(state: SearchState, stream: str, fitted: set[str], before: set[str]) -> bool:
    """Whether units were matched through a rotation in tensors that it was not fitted to."""
    new = set(state.units) - before - {stream}
    return any(name not in fitted for key in new for name, _ in state.showing(key))


def _pair_anchors(state: SearchState, anchors: list[tuple[str, int]]) -> dict[str, float]:
    """Give each anchor the target tensor that a rotation fits best on held-out tokens; fits by anchor."""
    others, fits = dict(matrices(state.sides.target.model)), {}
    for name, k in anchors:
        tried = [(_fit(state, name, part, k), part) for part in alternatives(state.parts[name], others)]
        if tried:
            fits[name], best = max(tried, key=lambda found: found[0])
            state.parts[name] = best
            others.pop(best.pairing.b, None)
    return fits


def _fit(state: SearchState, name: str, part: Part, k: int) -> float:
    """Mean cosine of held-out tokens after the best rotation; 0 where none fits."""
    if (part.pairing, k) in state.tried:
        return state.tried[part.pairing, k]
    state.tried[part.pairing, k] = found = _fitted(state, name, part, k)
    return found


def _fitted(state: SearchState, name: str, part: Part, k: int) -> float:
    """As `_fit`; for wide streams few tokens decide whether more are read."""
    width, x, y = part.axes[k].a, np.zeros((0, 0)), np.zeros((0, 0))
    for tokens in (TOKENS * width, 4 * TOKENS * width)[width <= NARROW :]:
        before, state.parts[name] = state.parts[name], part
        block = state.block(name, k, tokens)
        state.parts[name] = before
        if block is None:
            return -1.0
        x, y = (directions(side.reshape(len(side), -1).T) for side in (block.a, block.b))
        if not held_out_agreement([x[::2]], [y[::2]], [x[1::2]], [y[1::2]]):
            return 0.0
    left, _, right = np.linalg.svd(x[::2].T @ y[::2], full_matrices=False)
    return float(((x[1::2] @ (left @ right)) * y[1::2]).sum(axis=1).mean())


def _is_anchored(state: SearchState, name: str, k: int) -> bool:
    """Whether all other axes of a tensor have a fixed order."""
    return all(not axis.key for i, axis in enumerate(state.parts[name].axes) if i != k)


def _rotation(state: SearchState, anchors: list[tuple[str, int]]) -> AxisMap | str:
    """The best orthogonal map of the stream on tokens of all anchors, or the reason why there is none."""
    name, k = anchors[0]
    n, m = state.parts[name].axes[k].a, state.parts[name].axes[k].b
    if max(n, m) > MAX_WIDTH:
        return f"it has {max(n, m):,} dimensions, more than {MAX_WIDTH:,}"
    product, tokens = np.zeros((n, m)), 0
    for name, k in anchors:
        block = state.block(name, k, -(-TOKENS * n // len(anchors)))
        if block is None:
            continue
        x, y = (directions(side.reshape(len(side), -1).T) for side in (block.a, block.b))
        product += x.T.astype(np.float64) @ y
        tokens += len(x)
    left, strength, right = np.linalg.svd(product, full_matrices=False)
    usable = strength > FAINT * strength[0]
    if usable.sum() < FEWEST * min(n, m):
        return f"{tokens:,} tokens are too few for {max(n, m):,} dimensions"
    common = np.arange(min(n, m))
    return AxisMap(common, common, (n, m), rotation=(left[:, usable] @ right[usable]).astype(np.float32))


def order_of(found: AxisMap) -> AxisMap | None:
    """The permutation that a rotation amounts to; None where dimensions are mixed."""
    if found.rotation is None:
        return found
    columns = found.rotation.argmax(axis=1)
    plain = len(set(columns.tolist())) == len(columns) and float(found.rotation.max(axis=1).min()) > ORDERED
    return AxisMap(np.arange(len(columns)), columns, found.of) if plain else None


def _rank(fitted: AxisMap) -> int:
    """Rank of a partial rotation, whose singular values are 1 or 0."""
    assert fitted.rotation is not None
    return round(float((fitted.rotation.astype(np.float64) ** 2).sum()))


def _matched_through(state: SearchState, key: str, anchors: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Tensors matched through the dimensions that tokens span, enough to fit the others."""
    out, rows, wanted = [], 0, TOKENS * state.units[key].of[0]
    for name, k in state.showing(key):
        axes = state.parts[name].axes
        own = (name, k) in anchors or axes[k].b != state.units[key].of[1]
        if own or any(x.key == key for i, x in enumerate(axes) if i != k):
            continue
        others = [state.rows(name, i) for i in range(len(axes)) if i != k]
        if any(m is None for m in others) or rows >= wanted:
            continue
        out.append((name, k))
        rows += int(np.prod([len(m.rows) for m in others if m is not None]))
    return out
