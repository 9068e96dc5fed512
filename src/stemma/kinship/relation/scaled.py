"""Operation: tensors multiplied by one factor each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.pair_reader import PairReader
from stemma.types import RelationKind

SAME = 1e-3
"""Relative difference up to which the factors of several tensors count as one."""

PEEK, CLOSE, LEAST = 4096, 1e-3, 256
"""Entries of one matrix that are compared first, how far their cosine may be from 1, and entries that suffice."""


@dataclass(frozen=True)
class Scaled(AbstractOperation):
    """Every tensor that changed is a multiple of the parent's: one factor each, or one for all.

    The function is preserved only if the factors cancel, which weights alone show for few architectures: the relation
    stays `related`, and the factors are reported.
    """

    name: ClassVar[str] = "scaled"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: applies only where it explains every tensor, down to rounding."""
        if set(pair.operations) - {"damaged"} or pair.kept or any(layer.added_tokens for layer in pair.layers):
            return None
        changed = {layer.b: factor_of(layer) for layer in pair.unexplained}
        if not any(layer.matrix for layer in pair.unexplained) or any(f is None for f in changed.values()):
            return None
        factors = {b: f for b, f in changed.items() if f is not None}
        first = next(iter(factors.values()))
        one = all(abs(f / first - 1) <= SAME for f in factors.values())
        every = len(factors) == sum(not x.statistic and x.sums.norm_a > 0 for x in pair.layers)
        what = "all weights" if every else f"{len(factors)} of {len(pair.layers)} tensors"
        by = f"{first:.6g}" if one else f"one factor per tensor ({min(factors.values()):.4g} to "
        by += "" if one else f"{max(factors.values()):.4g})"
        step = Step(
            self.name,
            RelationKind.RELATED,
            f"{what} multiplied by {by}: the function is preserved only if the factors cancel",
            {"factor": first if one else None, "factors": factors},
            bits=float(BITS_PER_NUMBER * (1 if one else len(factors))),
            place=2.0,
        )
        done = {layer.b: layer.explained(f"times {factors[layer.b]:.6g}") for layer in pair.unexplained}
        return FittedOperation(step, pair.with_layers(done, self.name))


def factor_of(layer: Layer) -> float | None:
    """The factor that a tensor was multiplied by; None if no single factor explains the difference."""
    s = layer.sums
    if layer.measured is None or s.norm_a <= 0 or s.norm_b <= 0:
        return None
    left = max(0.0, s.norm_b - s.inner**2 / s.norm_a)
    if left > layer.tolerance**2 * s.norm_b:
        return None
    return s.inner / s.norm_a


def fit_multiples(a: Model, b: Model, pairings: Sequence[Pairing]) -> FittedOperation | None:
    """Fit one factor per matrix, of either sign; None unless all matrices are multiples of the other model's."""
    covered = len(pairings) == len(matrices(a)) == len(matrices(b))
    if not covered or sum(a.weights[p.a].size for p in pairings) < LEAST:
        return None
    p = max(pairings, key=lambda p: a.weights[p.a].size)
    cut = PairReader(a, b, {p.a: p}, PEEK, 1)[p.a]
    if cut.a.shape != cut.b.shape or len(np.unique(cut.a)) < LEAST // 4:
        return None
    x, y = cut.a.reshape(-1).astype(np.float64), cut.b.reshape(-1).astype(np.float64)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm == 0 or abs(float(x @ y)) < (1 - CLOSE) * norm:
        return None
    pair = Pair.of(a, b, pairings, all_entries=True)
    found = Scaled().fit(pair)
    return None if found is None or found.pair.unexplained else found
