"""Scaled: tensors multiplied by one number each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import NUMBER, AbstractOperation, Explained
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.units_of_pair import Cuts
from stemma.types import RelationKind

SAME = 1e-3
"""Relative difference up to which the factors of several tensors count as one."""

PEEK, CLOSE, LEAST = 4096, 1e-3, 256
"""Entries of one matrix that are looked at first, how far their cosine may be from one, and entries that prove it."""


@dataclass(frozen=True)
class Scaled(AbstractOperation):
    """Every tensor that changed is a multiple of the parent's: one factor each, or one for all.

    That does not keep the function unless the factors cancel, which weights alone show for few architectures: the
    relation stays `related`, and the factors are told.
    """

    name: ClassVar[str] = "scaled"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: applies only where it explains every tensor, down to rounding."""
        if set(pair.taken) - {"damaged"} or pair.kept or any(layer.grown for layer in pair.layers):
            return None
        changed = {layer.b: factor_of(layer) for layer in pair.open}
        if not any(layer.matrix for layer in pair.open) or any(f is None for f in changed.values()):
            return None
        factors = {b: f for b, f in changed.items() if f is not None}
        first = next(iter(factors.values()))
        one = all(abs(f / first - 1) <= SAME for f in factors.values())
        every = len(factors) == sum(not x.statistic and x.sums.norm_a > 0 for x in pair.layers)
        what = "all weights" if every else f"{len(factors)} of {len(pair.layers)} tensors"
        by = f"{first:.6g}" if one else f"a factor of their own each ({min(factors.values()):.4g} to "
        by += "" if one else f"{max(factors.values()):.4g})"
        step = Step(
            self.name,
            RelationKind.RELATED,
            f"{what} multiplied by {by}: the function stays the same only if factors cancel",
            {"factor": first if one else None, "factors": factors},
            bits=float(NUMBER * (1 if one else len(factors))),
            place=2.0,
        )
        done = {layer.b: layer.explained(f"times {factors[layer.b]:.6g}") for layer in pair.open}
        return Explained(step, pair.with_layers(done, self.name))


def factor_of(layer: Layer) -> float | None:
    """The number that a tensor was multiplied by.

    Args:
        layer: A tensor that differs.

    Returns:
        The factor, of either sign; None where no single one explains the difference down to rounding.
    """
    s = layer.sums
    if layer.measured is None or s.norm_a <= 0 or s.norm_b <= 0:
        return None
    left = max(0.0, s.norm_b - s.inner**2 / s.norm_a)
    if left > layer.tolerance**2 * s.norm_b:
        return None
    return s.inner / s.norm_a


def multiples(a: Model, b: Model, pairings: Sequence[Pairing]) -> Explained | None:
    """Whether all matrices of one model are multiples of the other's, whatever the signs of the factors.

    Cost: a few rows of one matrix where they are not, otherwise every entry.

    Args:
        a: One model.
        b: The other one.
        pairings: Correspondence of matrices.

    Returns:
        The factors; None where a matrix has no counterpart or is no multiple, or too few entries are there to show it.
    """
    whole = len(pairings) == len(matrices(a)) == len(matrices(b))
    if not whole or sum(a.weights[p.a].size for p in pairings) < LEAST:
        return None
    p = max(pairings, key=lambda p: a.weights[p.a].size)
    cut = Cuts(a, b, {p.a: p}, PEEK, 1)[p.a]
    if cut.a.shape != cut.b.shape or len(np.unique(cut.a)) < LEAST // 4:
        return None
    x, y = cut.a.reshape(-1).astype(np.float64), cut.b.reshape(-1).astype(np.float64)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm == 0 or abs(float(x @ y)) < (1 - CLOSE) * norm:
        return None
    pair = Pair.of(a, b, pairings, whole=True)
    found = Scaled().explain(pair)
    return None if found is None or found.pair.open else found
