"""Which tensor is which where names are lost: decided while the map grows, by what fits what is mapped already.

Contents say which tensors may belong together, but not after units were rescaled or a stream was rotated. Once some
axes are mapped, a tensor's counterpart is the one whose units agree through them: every tensor of the same size is
tried, the likeliest first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import long_axes, matrices
from stemma.kinship.weights.correspondence import Pairing, orders_of
from stemma.kinship.weights.maps.axis_map import PairedAxis, Part
from stemma.kinship.weights.maps.match import Match, judged, match
from stemma.kinship.weights.maps.search import MISSES, SURE, Chart, propagate, spread

SAME = 0.9
"""Mean cosine from which no other counterpart is tried."""

AGREED = 0.5
"""Least mean cosine of a tensor whose axes are mapped and that is where it belongs."""


def grow(chart: Chart, *, named: bool) -> None:
    """Match whatever is shown by what is mapped already.

    Args:
        chart: Is filled.
        named: Whether names say which tensor is which; otherwise that is looked for too.
    """
    if named:
        propagate(chart)
    else:
        settle(chart)


def settle(chart: Chart) -> None:
    """Find the counterpart of every tensor that is not mapped, or that does not agree under its map.

    Args:
        chart: Its parts are paired anew where that fits better; maps of units are added.
    """
    settled = {n for n in chart.parts if n in chart.fitted or agrees(chart, n)}
    others = matrices(chart.sides.target.model)
    progress = True
    while progress:
        progress, misses = False, 0
        for name in spread([n for n in chart.parts if n not in settled and "#" not in n]):
            if misses >= MISSES:
                break
            best = _best(_tried(chart, name, settled, others))
            if best is None or best[1].clear <= SURE:
                misses += best is not None
                continue
            misses = -len(chart.parts)
            part, found, key = best
            chart.parts[name] = part
            if key and key not in chart.units:
                chart.units[key] = found.units
            settled.add(name)
            progress = True


def _best(tried: Iterator[tuple[Part, Match, str]]) -> tuple[Part, Match, str] | None:
    """The counterpart that is clearest; one that is the same needs no rival."""
    best = None
    for found in tried:
        if best is None or found[1].clear > best[1].clear:
            best = found
        if found[1].clear > SURE and found[1].cosine > SAME:
            return found
    return best


def agrees(chart: Chart, name: str) -> bool:
    """Whether a tensor is mapped, and its units are where the map says.

    Args:
        chart: The search.
        name: The part.

    Returns:
        True where its counterpart need not be looked for.
    """
    found = _agreement(chart, name, chart.parts[name])
    return found is not None and found.clear > 0 and found.cosine >= AGREED


def _agreement(chart: Chart, name: str, part: Part) -> Match | None:
    """How well a part agrees whose axes are all mapped."""
    before, chart.parts[name] = chart.parts[name], part
    try:
        keys = [k for k, axis in enumerate(part.axes) if axis.key in chart.units]
        if any(chart.rows(name, k) is None for k in range(len(part.axes))):
            return None
        for k in keys:
            units = chart.units[part.axes[k].key]
            if units.rotation is None and (block := chart.block(name, k)) is not None:
                return judged([(name, k, block)], units, signed=False)
        return None
    finally:
        chart.parts[name] = before


def _tried(
    chart: Chart, name: str, settled: set[str], others: Mapping[str, Tensor]
) -> Iterator[tuple[Part, Match, str]]:  # fmt: skip
    """Every counterpart that a tensor could have, with how well it agrees and the set of units that it would add."""
    own = chart.parts[name]
    unknown = [k for k, x in enumerate(own.axes) if x.key and x.key not in chart.units]
    if len(unknown) > 1:
        return
    taken = {chart.parts[n].pairing.b for n in settled}
    for part in alternatives(own, {n: t for n, t in others.items() if n not in taken}):
        if not unknown:
            found = _agreement(chart, name, part)
            if found is not None:
                yield part, found, ""
            continue
        before, chart.parts[name] = chart.parts[name], part
        block = chart.block(name, unknown[0])
        chart.parts[name] = before
        found = (
            None if block is None else match([(name, unknown[0], block)], signed=False, seed=chart.seed, hopeful=True)
        )
        if found is not None:
            yield part, found, part.axes[unknown[0]].key


def alternatives(own: Part, others: Mapping[str, Tensor]) -> Iterator[Part]:
    """The same tensor of the reference beside other tensors of its size, in every order of axes that fits.

    Args:
        own: The part as it is paired.
        others: Tensors of the target.

    Yields:
        Parts, as it is paired first.
    """
    yield from ([own] if own.pairing.b in others else [])
    sizes = [axis.a for axis in own.axes]
    for name, tensor in others.items():
        axes = long_axes(tensor.shape)
        if len(axes) != len(sizes):
            continue
        for order in (tuple(axes[i] for i in p) for p in orders_of(len(axes))):
            fits = all(
                tensor.shape[j] == a or axis.b == tensor.shape[j] for j, a, axis in _beside(order, sizes, own.axes)
            )
            if fits and (name, order) != (own.pairing.b, own.pairing.axes_b):
                pairing = Pairing(own.pairing.a, name, own.pairing.axes_a, order, own.pairing.cost)
                yield Part(pairing, tuple(replace(x, b=tensor.shape[j]) for j, _, x in _beside(order, sizes, own.axes)))


def _beside(
    order: Sequence[int], sizes: Sequence[int], axes: Sequence[PairedAxis]
) -> Iterator[tuple[int, int, PairedAxis]]:  # fmt: skip
    yield from zip(order, sizes, axes, strict=True)
