"""Quantised: the child's numbers lie on a grid of few levels, and differ from the parent's by rounding to it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import NUMBER, AbstractOperation, Explained
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.grids import Grid, assumed
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

SLACK = {1: 6.0, 2: 4.0, 3: 2.0}
"""How far the square of a rounding error may exceed that of evenly spread numbers, by bits; 1.5 from four bits up."""

SMALL = 1 << 14
"""Entries of a matrix that may be too small to show its grid."""

FEW = 8
"""Matrices of the parent, spread over the model, that are looked at first: where none lies on a grid, none does."""

BIASES = 0.25
"""Share of the matrices' relative change up to which a bias may have been rounded as well."""


@dataclass(frozen=True)
class Quantized(AbstractOperation):
    """The child lies on a grid that the parent does not lie on.

    Attributes:
        share: Of the entries of all matrices, how many must lie on a grid.
    """

    share: float = 0.5

    name: ClassVar[str] = "quantized"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: what lies beyond the rounding to the grid is left open."""
        open_matrices = [m for m in pair.open if m.matrix and m.measured is not None and m.measured.read >= 64]
        grids = self._grids(pair, open_matrices)
        first = list(grids)[:: max(1, len(grids) // FEW)]
        if any(_already(pair, b, grids[b]) for b in first):
            grids = {b: g for b, g in grids.items() if not _already(pair, b, g)}
        size = sum(m.size for m in open_matrices)
        if not grids or sum(m.size for m in open_matrices if m.b in grids) < self.share * size:
            return None
        bits, _ = Counter(g.bits for g in grids.values()).most_common(1)[0]
        per = Counter(g.per for g in grids.values()).most_common(1)[0][0]
        one = next(g for g in grids.values() if g.bits == bits)
        grids |= _small(pair, grids, one)
        changed = {m.b: _rounded(m, grids[m.b]) for m in pair.open if m.b in grids}
        changed |= _vectors(pair, changed)
        count = sum(g.bits == bits for g in grids.values())
        symmetric = sum(g.symmetric for g in grids.values()) * 2 > len(grids)
        coded = any(n in pair.child.tensors and not pair.child.tensors[n].is_float for n in grids)
        form = "a table of levels" if not one.uniform else "symmetric" if symmetric else "with a zero point"
        step = Step(
            self.name,
            RelationKind.QUANTIZED,
            f"rounded to {bits} {'bit' if bits == 1 else 'bits'} ({form}, one step per {per}) in {count} of "
            f"{len(matrices(pair.child))} matrices" + ("" if coded else ", stored as floats"),
            {"bits": bits, "per": per, "symmetric": symmetric, "uniform": one.uniform, "coded": coded,
             "tensors": sorted(grids), "left_as_they_were": sorted(m.b for m in pair.matrices if m.b not in grids)},
            bits=float(NUMBER * sum(g.groups for g in grids.values())),
            place=3.0,
        )  # fmt: skip
        return Explained(step, pair.with_layers(changed, self.name))

    def _grids(self, pair: Pair, layers: Sequence[Layer]) -> dict[str, Grid]:
        """The grids of the child's matrices; none of them where too much lies on none."""
        out, left = {}, (1 - self.share) * sum(m.size for m in layers)
        for m in sorted(layers, key=lambda m: -m.size):
            grid = pair.grid(pair.child, m.b)
            if grid is not None:
                out[m.b] = grid
                continue
            left -= m.size
            if left < 0:
                return {}
        return {m.b: out[m.b] for m in layers if m.b in out}


def _already(pair: Pair, name: str, grid: Grid) -> bool:
    """Whether the parent lies on a grid of no more bits itself: then it is not the child that was rounded."""
    a = next(layer.a for layer in pair.layers if layer.b == name)
    other = pair.grid(pair.parent, a)
    return other is not None and other.bits <= grid.bits


def _small(pair: Pair, found: dict[str, Grid], like: Grid) -> dict[str, Grid]:
    """Matrices too small to show a grid, which changed by no more than the rounding of the others."""
    out = {}
    for m in pair.open:
        if m.matrix and m.measured is not None and m.b not in found and m.size <= SMALL:
            grid = assumed(np.asarray(pair.child.weights[m.b].array(), np.float32), like)
            if m.left <= m.noise + SLACK.get(grid.bits, 1.5) * grid.variance * m.sums.read:
                out[m.b] = grid
    return out


def _vectors(pair: Pair, matrices_: dict[str, Layer]) -> dict[str, Layer]:
    """Biases that were rounded too: stored as codes, or changed by much less than the matrices."""
    changes = [m.sums.relative for m in matrices_.values()]
    little = BIASES * float(np.median(changes)) if changes else 0.0
    out = {}
    for v in pair.open:
        coded = v.b in pair.child.tensors and not pair.child.tensors[v.b].is_float
        if not v.matrix and v.measured is not None and v.sums.relative <= (0.01 if coded else little):
            out[v.b] = v.explained("rounded")
    return out


def _rounded(layer: Layer, grid: Grid) -> Layer:
    expected = grid.variance * layer.sums.read
    mark = f"{grid.bits} bits per {grid.per}"
    if layer.left <= layer.noise + SLACK.get(grid.bits, 1.5) * expected:
        return layer.explained(mark, 0.0, expected)
    return layer.explained(mark, max(0.0, layer.left - expected), SLACK.get(grid.bits, 1.5) * expected)


def quantised(model: Model, pair: Pair) -> bool:
    """Whether most of a model's matrices lie on grids.

    Args:
        model: Parent or child of the pair.
        pair: The pair.

    Returns:
        True for a model that was quantised, whatever it came from.
    """
    names = [m.a if model is pair.parent else m.b for m in pair.matrices]
    return bool(names) and sum(pair.grid(model, n) is not None for n in names) * 2 > len(names)
