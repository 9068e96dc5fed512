"""Operation: quantisation to a grid of few levels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.grids import Grid, grid_like
from stemma.kinship.relation.grids_of_many import TOGETHER
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

SLACK = {1: 6.0, 2: 4.0, 3: 2.0}
"""Largest ratio of the squared rounding error to that of uniform numbers, by bits; 1.5 from four bits up."""

SMALL = 1 << 14
"""Entries of a matrix that may be too small to show its grid."""

FEW = 8
"""Matrices of the parent, spread over the model, that are checked first: if none lies on a grid, none does."""

AHEAD = 64
"""Small matrices whose grids are looked for together."""

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

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: what exceeds the rounding to the grid stays unexplained."""
        open_matrices = [m for m in pair.unexplained if m.matrix and m.measured is not None and m.measured.read >= 64]
        grids = self._grids(pair, open_matrices)
        first = list(grids)[:: max(1, len(grids) // FEW)]
        if any(_parent_is_as_coarse(pair, b, grids[b]) for b in first):
            grids = {b: g for b, g in grids.items() if not _parent_is_as_coarse(pair, b, g)}
        size = sum(m.size for m in open_matrices)
        if not grids or sum(m.size for m in open_matrices if m.b in grids) < self.share * size:
            return None
        bits, _ = Counter(g.bits for g in grids.values()).most_common(1)[0]
        per = Counter(g.per for g in grids.values()).most_common(1)[0][0]
        one = next(g for g in grids.values() if g.bits == bits)
        grids |= _small_matrices(pair, grids, one)
        changed = {m.b: _rounded(m, grids[m.b]) for m in pair.unexplained if m.b in grids}
        changed |= _vectors(pair, changed)
        count = sum(g.bits == bits for g in grids.values())
        symmetric = sum(g.symmetric for g in grids.values()) * 2 > len(grids)
        coded = any(n in pair.child.tensors and not pair.child.tensors[n].is_float for n in grids)
        form = "lookup table of levels" if not one.uniform else "symmetric" if symmetric else "with a zero point"
        step = Step(
            self.name,
            RelationKind.QUANTIZED,
            f"quantised to {bits} {'bit' if bits == 1 else 'bits'} ({form}, one scale per {per}) in {count} of "
            f"{len(matrices(pair.child))} matrices" + ("" if coded else ", stored as floats"),
            {"bits": bits, "per": per, "symmetric": symmetric, "uniform": one.uniform, "coded": coded,
             "tensors": sorted(grids), "left_as_they_were": sorted(m.b for m in pair.matrices if m.b not in grids)},
            bits=float(BITS_PER_NUMBER * sum(g.groups for g in grids.values())),
            place=3.0,
        )  # fmt: skip
        return FittedOperation(step, pair.with_layers(changed, self.name))

    def _grids(self, pair: Pair, layers: Sequence[Layer]) -> dict[str, Grid]:
        """The grids of the child's matrices; empty where too many entries lie on none."""
        out, left = {}, (1 - self.share) * sum(m.size for m in layers)
        largest_first = sorted(layers, key=lambda m: -m.size)
        for i, m in enumerate(largest_first):
            if i % AHEAD == 0:
                pair.find_grids(pair.child, [x.b for x in largest_first[i : i + AHEAD] if x.size <= TOGETHER])
            grid = pair.grid(pair.child, m.b)
            if grid is not None:
                out[m.b] = grid
                continue
            left -= m.size
            if left < 0:
                return {}
        return {m.b: out[m.b] for m in layers if m.b in out}


def _parent_is_as_coarse(pair: Pair, name: str, grid: Grid) -> bool:
    """Whether the parent itself lies on a grid of as few bits, so that the child was not quantised."""
    a = next(layer.a for layer in pair.layers if layer.b == name)
    other = pair.grid(pair.parent, a)
    return other is not None and other.bits <= grid.bits


def _small_matrices(pair: Pair, found: dict[str, Grid], like: Grid) -> dict[str, Grid]:
    """Matrices too small to show a grid, whose change is within the rounding of the others."""
    out = {}
    for m in pair.unexplained:
        if m.matrix and m.measured is not None and m.b not in found and m.size <= SMALL:
            grid = grid_like(np.asarray(pair.child.weights[m.b].array(), np.float32), like)
            if m.residual <= m.rounding_noise + SLACK.get(grid.bits, 1.5) * grid.variance * m.sums.read:
                out[m.b] = grid
    return out


def _vectors(pair: Pair, matrices_: dict[str, Layer]) -> dict[str, Layer]:
    """Biases that were rounded too: stored as codes, or changed much less than the matrices."""
    changes = [m.sums.relative for m in matrices_.values()]
    little = BIASES * float(np.median(changes)) if changes else 0.0
    out = {}
    for v in pair.unexplained:
        coded = v.b in pair.child.tensors and not pair.child.tensors[v.b].is_float
        if not v.matrix and v.measured is not None and v.sums.relative <= (0.01 if coded else little):
            out[v.b] = v.explained("rounded")
    return out


def _rounded(layer: Layer, grid: Grid) -> Layer:
    expected = grid.variance * layer.sums.read
    mark = f"{grid.bits} bits per {grid.per}"
    if layer.residual <= layer.rounding_noise + SLACK.get(grid.bits, 1.5) * expected:
        return layer.explained(mark, 0.0, expected)
    return layer.explained(mark, max(0.0, layer.residual - expected), SLACK.get(grid.bits, 1.5) * expected)
