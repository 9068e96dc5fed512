"""Pairing of tensors without usable names while the map grows: by agreement with what is mapped already."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import long_axes, matrices
from stemma.kinship.weights.correspondence import Pairing, axis_orders
from stemma.kinship.weights.maps.axis_map import PairedAxis, Part
from stemma.kinship.weights.maps.match_units import UnitMatch, match_units, score_match
from stemma.kinship.weights.maps.search_state import MAX_MISSES, MIN_MARGIN, SearchState, propagate, spread_first

SAME_COSINE = 0.9
"""Mean cosine from which no other counterpart is tried."""

MIN_COSINE = 0.5
"""Least mean cosine of a tensor that agrees under its map."""


def extend_map(state: SearchState, *, named: bool) -> None:
    """Match whatever mapped axes show; without names, counterparts of tensors are searched too."""
    if named:
        propagate(state)
    else:
        pair_unnamed_tensors(state)


def pair_unnamed_tensors(state: SearchState) -> None:
    """Find the counterpart of every tensor that is unmapped or does not agree under its map."""
    settled = {n for n in state.parts if n in state.fitted or agrees_under_map(state, n)}
    others = matrices(state.sides.target.model)
    progress = True
    while progress:
        progress, misses = False, 0
        for name in spread_first([n for n in state.parts if n not in settled and "#" not in n]):
            if misses >= MAX_MISSES:
                break
            best = _best_candidate(_candidates(state, name, settled, others))
            if best is None or best[1].margin <= MIN_MARGIN:
                misses += best is not None
                continue
            misses = -len(state.parts)
            part, found, key = best
            state.parts[name] = part
            if key and key not in state.units:
                state.units[key] = found.units
            settled.add(name)
            progress = True


def _best_candidate(tried: Iterator[tuple[Part, UnitMatch, str]]) -> tuple[Part, UnitMatch, str] | None:
    """The counterpart of largest margin; a near-identical one is taken at once."""
    best = None
    for found in tried:
        if best is None or found[1].margin > best[1].margin:
            best = found
        if found[1].margin > MIN_MARGIN and found[1].cosine > SAME_COSINE:
            return found
    return best


def agrees_under_map(state: SearchState, name: str) -> bool:
    """Whether a tensor is mapped and agrees under its map, so that no other counterpart is searched."""
    found = _agreement(state, name, state.parts[name])
    return found is not None and found.margin > 0 and found.cosine >= MIN_COSINE


def _agreement(state: SearchState, name: str, part: Part) -> UnitMatch | None:
    """How well a part with mapped axes agrees; None if some axis has no map."""
    before, state.parts[name] = state.parts[name], part
    try:
        keys = [k for k, axis in enumerate(part.axes) if axis.key in state.units]
        if any(state.rows(name, k) is None for k in range(len(part.axes))):
            return None
        for k in keys:
            units = state.units[part.axes[k].key]
            if units.rotation is None and (block := state.block(name, k)) is not None:
                return score_match([(name, k, block)], units, signed=False)
        return None
    finally:
        state.parts[name] = before


def _candidates(
    state: SearchState, name: str, settled: set[str], others: Mapping[str, Tensor]
) -> Iterator[tuple[Part, UnitMatch, str]]:  # fmt: skip
    """Every possible counterpart of a tensor, with its agreement and the set of units that it would add."""
    own = state.parts[name]
    unknown = [k for k, x in enumerate(own.axes) if x.key and x.key not in state.units]
    if len(unknown) > 1:
        return
    taken = {state.parts[n].pairing.b for n in settled}
    for part in alternatives(own, {n: t for n, t in others.items() if n not in taken}):
        if not unknown:
            found = _agreement(state, name, part)
            if found is not None:
                yield part, found, ""
            continue
        before, state.parts[name] = state.parts[name], part
        block = state.block(name, unknown[0])
        state.parts[name] = before
        found = (
            None
            if block is None
            else match_units([(name, unknown[0], block)], signed=False, seed=state.seed, stop_early=True)
        )
        if found is not None:
            yield part, found, part.axes[unknown[0]].key


def alternatives(own: Part, others: Mapping[str, Tensor]) -> Iterator[Part]:
    """A tensor of the reference with every tensor of fitting size, in every fitting order of axes."""
    yield from ([own] if own.pairing.b in others else [])
    sizes = [axis.a for axis in own.axes]
    for name, tensor in others.items():
        axes = long_axes(tensor.shape)
        if len(axes) != len(sizes):
            continue
        for order in (tuple(axes[i] for i in p) for p in axis_orders(len(axes))):
            fits = all(
                tensor.shape[j] == a or axis.b == tensor.shape[j]
                for j, a, axis in _axis_triples(order, sizes, own.axes)
            )
            if fits and (name, order) != (own.pairing.b, own.pairing.axes_b):
                pairing = Pairing(own.pairing.a, name, own.pairing.axes_a, order, own.pairing.cost)
                yield Part(
                    pairing, tuple(replace(x, b=tensor.shape[j]) for j, _, x in _axis_triples(order, sizes, own.axes))
                )


def _axis_triples(
    order: Sequence[int], sizes: Sequence[int], axes: Sequence[PairedAxis]
) -> Iterator[tuple[int, int, PairedAxis]]:  # fmt: skip
    yield from zip(order, sizes, axes, strict=True)
