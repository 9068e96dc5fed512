"""Find a map between two models: every symmetry that costs nothing, one after the other.

Units may stand in another order, at another scale, under other signs; a residual stream may be rotated, heads may have
other bases, gains may have moved into the matrices behind them. All of this leaves a network's function as it is.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import Part, UnitMap
from stemma.kinship.weights.maps.blocks import Reader, Sides
from stemma.kinship.weights.maps.free import match_alone, readable
from stemma.kinship.weights.maps.gains import folded
from stemma.kinship.weights.maps.heads import match_heads
from stemma.kinship.weights.maps.layout import ORDERED, parts_of
from stemma.kinship.weights.maps.match import match
from stemma.kinship.weights.maps.rotation import order_of, turn_streams
from stemma.kinship.weights.maps.search import SURE, Chart, refine
from stemma.kinship.weights.maps.settle import agrees, alternatives, grow

ALONE = 6
"""Tensors that are matched by themselves without success before the search ends."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to.

    Attributes:
        map: The map, as far as it is clear.
        sides: Both models as they were read: perhaps with gains folded into the matrices behind them.
        folded: Whether gains were folded.
        untried: What was not looked for, with the reason.
        tried: How well rotations fitted that were tried: no other search of these models tries them again.
    """

    map: UnitMap
    sides: Sides
    folded: bool
    untried: tuple[str, ...]
    tried: dict[Hashable, float] = field(default_factory=dict)


def find(
    a: Model, b: Model, pairings: Sequence[Pairing], known: Structure, seed: int = 0, *, named: bool = True,
    alone: bool = True, tried: dict[Hashable, float] | None = None,
) -> Found:  # fmt: skip
    """Look for a map from A to B.

    Cost: each tensor is read a few times; products of all pairs of units in every set, with `Chart.coordinates`
    numbers each. Memory: the units of a few tensors at a time.

    Args:
        a: The model whose structure is known: the reference.
        b: The other one: the target.
        pairings: Which tensor is which, found without looking at the order of units.
        known: The structure of the reference.
        seed: Of what falls at random.
        named: Whether names say which tensor is which; otherwise the pairs are a proposal, and others are tried.
        alone: Whether tensors that nothing else shows are matched by themselves.
        tried: How well rotations fitted that another search of these models tried; added to.

    Returns:
        The map and what was not looked for.
    """
    chart, gains, untried = _chart(a, b, pairings, known, seed), False, []
    tried = {} if tried is None else tried
    grow(chart, named=named)
    if _uneven(chart):
        loose = _chart(a, b, pairings, known, seed, loose=True)
        _by_themselves(loose, known, named=named)
        chart = loose if len(loose.mapped()) > len(chart.mapped()) else chart
    if any(g.rotatable and g.name not in chart.units for g in known.groups):
        x, y = folded(a), folded(b)
        turned = _chart(x or a, y or b, pairings, known, seed)
        turned.tried = tried
        untried += turn_streams(turned, known, named=named)
        if len(turned.units) > len(chart.units):
            gains = x is not None or y is not None
            plain = _only_reordered(turned, _chart(a, b, pairings, known, seed), known, named=named)
            chart, gains = (turned, gains) if plain is None else (plain, False)
    untried += match_heads(chart, known)
    untried += _by_themselves(chart, known, named=named) if alone else []
    _reordered_rows(chart, named=named)
    refine(chart)
    return Found(_map(chart, a, b), chart.sides, gains, tuple(untried), tried)


def _only_reordered(turned: Chart, plain: Chart, known: Structure, *, named: bool) -> Chart | None:
    """The map without rotations and folded gains, where every rotation that was found is an order of the dimensions."""
    for group in known.groups:
        if group.rotatable and group.name in turned.units:
            order = order_of(turned.units[group.name])
            if order is None:
                return None
            plain.units[group.name] = order
    grow(plain, named=named)
    return plain if len(plain.units) >= len(turned.units) else None


def _chart(
    a: Model, b: Model, pairings: Sequence[Pairing], known: Structure, seed: int, *, loose: bool = False
) -> Chart:  # fmt: skip
    return Chart(Sides(Reader(a), Reader(b)), parts_of(a, b, pairings, known, loose=loose), seed=seed)


def _uneven(chart: Chart) -> bool:
    """Whether fixed rows (tokens, classes) are more on one side, and what they stand beside is not all mapped."""
    mapped = chart.mapped()
    return any(
        name not in mapped and any(not x.key and x.a != x.b and x.label.role in ORDERED for x in p.axes)
        for name, p in chart.parts.items()
    )


def _by_themselves(chart: Chart, known: Structure, *, named: bool) -> list[str]:
    """Match what is left tensor by tensor, spread over the model, as long as that leads anywhere."""
    mapped = chart.mapped()
    open_ = [n for n in chart.parts if n not in mapped]
    small = sorted((n for n in open_ if readable(chart, n)), key=lambda n: chart.parts[n].entries)
    first = small[:: max(1, len(small) // ALONE)]
    misses = 0
    for name in (*first, *(n for n in small if n not in first)):
        if misses >= ALONE:
            break
        if name in mapped:
            continue
        if match_alone(chart, name):
            grow(chart, named=named)
            match_heads(chart, known)
            mapped, misses = chart.mapped(), -len(small)
        else:
            misses += 1
    large = [n for n in open_ if n not in small and n not in mapped]
    started = bool(chart.units) or any(_anchored(chart, n) for n in chart.parts)
    if large and not started:
        return [f"units of {len(large)} tensors with more than 4 million entries, in an order of their own"]
    return []


def _reordered_rows(chart: Chart, *, named: bool) -> None:
    """Match tokens, classes or experts that stand in another order, where everything beside them is mapped.

    Such rows do not tell which of two tensors of one size is meant: without names each of them is tried.
    """
    open_ = {n: p for n, p in chart.parts.items() if "#" not in n and n not in chart.fitted and _reorderable(p)}
    open_ = {n: p for n, p in open_.items() if not agrees(chart, n)}
    others = {p.pairing.b: chart.sides.target.model.weights[p.pairing.b] for p in open_.values()}
    for name, own in open_.items():
        for part in [own] if named else alternatives(own, others):
            chart.parts[name] = part
            if _rows_matched(chart, name):
                others.pop(part.pairing.b, None)
                break
            chart.parts[name] = own


def _reorderable(part: Part) -> bool:
    return sum(not x.key and x.a == x.b and x.label.role in ORDERED for x in part.axes) == 1


def _rows_matched(chart: Chart, name: str) -> bool:
    """Match the fixed rows of one tensor through what is mapped; keep them where that is clear."""
    part = chart.parts[name]
    k = next(k for k, x in enumerate(part.axes) if not x.key and x.a == x.b and x.label.role in ORDERED)
    block = chart.block(name, k)
    found = None if block is None else match([(name, k, block)], signed=False, seed=chart.seed, hopeful=True)
    if found is None or found.clear <= SURE:
        return False
    own = replace(part.axes[k], key=f"{name}[{part.pairing.axes_a[k]}]", free=True)
    chart.parts[name] = Part(part.pairing, (*part.axes[:k], own, *part.axes[k + 1 :]))
    chart.units[own.key] = found.units
    return True


def _anchored(chart: Chart, name: str) -> bool:
    """Whether a tensor shows units beside rows that have one order in all networks."""
    keys = [axis.key for axis in chart.parts[name].axes]
    return sum(bool(k) for k in keys) == 1


def _map(chart: Chart, a: Model, b: Model) -> UnitMap:
    mapped = chart.mapped()
    own = {name.partition("#")[0] for name in chart.parts}
    missing = {name.partition("#")[0] for name in chart.parts if name not in mapped}
    covered = {p.part.pairing.b for name, p in mapped.items() if name.partition("#")[0] not in missing}
    lost = tuple(n for n in matrices(a) if n in missing or n not in own)
    left = tuple(n for n in matrices(b) if n not in covered)
    return UnitMap(mapped, dict(chart.units), lost, left, frozenset(chart.fitted))
