"""Search for a map between two models over all symmetries that preserve a network's function.

Units may be permuted, rescaled or sign-flipped; a residual stream may be rotated, heads may have other bases, gains of
normalisations may be folded into the next matrices.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import Part, UnitMap
from stemma.kinship.weights.maps.blocks import MappedPair, TensorReader
from stemma.kinship.weights.maps.folded_gains import fold_gains
from stemma.kinship.weights.maps.heads import match_heads
from stemma.kinship.weights.maps.match_units import match_units
from stemma.kinship.weights.maps.paired_parts import ORDERED, paired_parts
from stemma.kinship.weights.maps.rotation import fit_stream_rotations, order_of
from stemma.kinship.weights.maps.search_state import MIN_MARGIN, SearchState, refine
from stemma.kinship.weights.maps.single_tensor import is_small_enough, match_single_tensor
from stemma.kinship.weights.maps.unnamed_tensors import agrees_under_map, alternatives, extend_map

MAX_MISSES = 6
"""Tensors that are matched individually without success before the search ends."""


@dataclass(frozen=True, eq=False)
class FoundMap:
    """The result of a search.

    Attributes:
        map: The map, as far as matches are clear.
        sides: Readers of both models, perhaps with folded gains.
        gains_folded: Whether gains were folded.
        untried: What was not searched, with the reason.
        tried: Fits of the rotations that were tried, so that later searches of these models skip them.
    """

    map: UnitMap
    sides: MappedPair
    gains_folded: bool
    untried: tuple[str, ...]
    tried: dict[Hashable, float] = field(default_factory=dict)


def find_map(
    a: Model, b: Model, pairings: Sequence[Pairing], known: Structure, seed: int = 0, *, named: bool = True,
    alone: bool = True, tried: dict[Hashable, float] | None = None,
) -> FoundMap:  # fmt: skip
    """Search for a map from A to B.

    Cost: each tensor is read a few times; products of all pairs of units in every set, with `SearchState.coordinates`
    entries each. Memory: the units of a few tensors at a time.

    Args:
        a: The reference, whose structure is known.
        b: The target.
        pairings: Pairing of tensors, found without using the order of units.
        known: The structure of the reference.
        seed: Seed of random choices.
        named: Whether names pair the tensors; otherwise the pairing is a proposal, and others are tried.
        alone: Whether tensors without mapped axes are matched individually.
        tried: Fits of rotations tried by another search of these models; extended.

    Returns:
        The map and what was not searched.
    """
    state, gains, untried = _new_state(a, b, pairings, known, seed), False, []
    tried = {} if tried is None else tried
    extend_map(state, named=named)
    if _unequal_widths(state):
        loose = _new_state(a, b, pairings, known, seed, loose=True)
        _match_single_tensors(loose, known, named=named)
        state = loose if len(loose.mapped()) > len(state.mapped()) else state
    if any(g.rotatable and g.name not in state.units for g in known.groups):
        x, y = fold_gains(a), fold_gains(b)
        turned = _new_state(x or a, y or b, pairings, known, seed)
        turned.tried = tried
        untried += fit_stream_rotations(turned, known, named=named)
        if len(turned.units) > len(state.units):
            gains = x is not None or y is not None
            plain = _only_reordered(turned, _new_state(a, b, pairings, known, seed), known, named=named)
            state, gains = (turned, gains) if plain is None else (plain, False)
    untried += match_heads(state, known)
    untried += _match_single_tensors(state, known, named=named) if alone else []
    _match_reordered_rows(state, named=named)
    refine(state)
    return FoundMap(_map(state, a, b), state.sides, gains, tuple(untried), tried)


def _only_reordered(turned: SearchState, plain: SearchState, known: Structure, *, named: bool) -> SearchState | None:
    """The map without rotations and folded gains, if every rotation is a permutation of the dimensions."""
    for group in known.groups:
        if group.rotatable and group.name in turned.units:
            order = order_of(turned.units[group.name])
            if order is None:
                return None
            plain.units[group.name] = order
    extend_map(plain, named=named)
    return plain if len(plain.units) >= len(turned.units) else None


def _new_state(
    a: Model, b: Model, pairings: Sequence[Pairing], known: Structure, seed: int, *, loose: bool = False
) -> SearchState:  # fmt: skip
    return SearchState(
        MappedPair(TensorReader(a), TensorReader(b)), paired_parts(a, b, pairings, known, loose=loose), seed=seed
    )


def _unequal_widths(state: SearchState) -> bool:
    """Whether one side has more fixed rows (tokens, classes) and the tensors with them are not all mapped."""
    mapped = state.mapped()
    return any(
        name not in mapped and any(not x.key and x.a != x.b and x.label.role in ORDERED for x in p.axes)
        for name, p in state.parts.items()
    )


def _match_single_tensors(state: SearchState, known: Structure, *, named: bool) -> list[str]:
    """Match the remaining tensors one by one, spread over the model, as long as that succeeds."""
    mapped = state.mapped()
    unmapped = [n for n in state.parts if n not in mapped]
    small = sorted((n for n in unmapped if is_small_enough(state, n)), key=lambda n: state.parts[n].entries)
    first = small[:: max(1, len(small) // MAX_MISSES)]
    misses = 0
    for name in (*first, *(n for n in small if n not in first)):
        if misses >= MAX_MISSES:
            break
        if name in mapped:
            continue
        if match_single_tensor(state, name):
            extend_map(state, named=named)
            match_heads(state, known)
            mapped, misses = state.mapped(), -len(small)
        else:
            misses += 1
    large = [n for n in unmapped if n not in small and n not in mapped]
    started = bool(state.units) or any(_is_anchored(state, n) for n in state.parts)
    if large and not started:
        return [f"independent permutations of {len(large)} tensors with more than 4 million entries"]
    return []


def _match_reordered_rows(state: SearchState, *, named: bool) -> None:
    """Match reordered tokens, classes or experts whose other axes are mapped."""
    unmapped = {n: p for n, p in state.parts.items() if "#" not in n and n not in state.fitted and _reorderable(p)}
    unmapped = {n: p for n, p in unmapped.items() if not agrees_under_map(state, n)}
    others = {p.pairing.b: state.sides.target.model.weights[p.pairing.b] for p in unmapped.values()}
    for name, own in unmapped.items():
        for part in [own] if named else alternatives(own, others):
            state.parts[name] = part
            if _match_rows(state, name):
                others.pop(part.pairing.b, None)
                break
            state.parts[name] = own


def _reorderable(part: Part) -> bool:
    return sum(not x.key and x.a == x.b and x.label.role in ORDERED for x in part.axes) == 1


def _match_rows(state: SearchState, name: str) -> bool:
    """Match the fixed rows of one tensor through its mapped axes; keep them where the match is clear."""
    part = state.parts[name]
    k = next(k for k, x in enumerate(part.axes) if not x.key and x.a == x.b and x.label.role in ORDERED)
    block = state.block(name, k)
    found = None if block is None else match_units([(name, k, block)], signed=False, seed=state.seed, stop_early=True)
    if found is None or found.margin <= MIN_MARGIN:
        return False
    own = replace(part.axes[k], key=f"{name}[{part.pairing.axes_a[k]}]", free=True)
    state.parts[name] = Part(part.pairing, (*part.axes[:k], own, *part.axes[k + 1 :]))
    state.units[own.key] = found.units
    return True


def _is_anchored(state: SearchState, name: str) -> bool:
    """Whether a tensor has one axis of units, and all others have the same order in all networks."""
    keys = [axis.key for axis in state.parts[name].axes]
    return sum(bool(k) for k in keys) == 1


def _map(state: SearchState, a: Model, b: Model) -> UnitMap:
    mapped = state.mapped()
    own = {name.partition("#")[0] for name in state.parts}
    missing = {name.partition("#")[0] for name in state.parts if name not in mapped}
    covered = {p.part.pairing.b for name, p in mapped.items() if name.partition("#")[0] not in missing}
    lost = tuple(n for n in matrices(a) if n in missing or n not in own)
    left = tuple(n for n in matrices(b) if n not in covered)
    return UnitMap(mapped, dict(state.units), lost, left, frozenset(state.fitted))
