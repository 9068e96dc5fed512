"""Operation: weights set to zero."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation, choice_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Mask:
    """How the zeros of a layer were chosen.

    Attributes:
        pattern: `magnitude`, `random`, `mixed`, `rows`, `columns`, `whole`, or `N:M` zeros in every M neighbours.
        misplaced: Share of entries on the wrong side of the best threshold on the parent's magnitudes.
    """

    pattern: str
    misplaced: float


@dataclass(frozen=True)
class WeightsPruned(AbstractOperation):
    """Entries of the parent's matrices that are zero in the child, or whole biases and gains.

    Attributes:
        least: Share of zeroed entries from which a matrix counts as pruned.
        exact: Share of entries that may lie on the wrong side of a threshold where magnitudes chose the zeros.
    """

    least: float = 0.01
    exact: float = 0.002

    name: ClassVar[str] = "weights pruned"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: the difference where the child is not zero stays unexplained."""
        if self.name in pair.operations or ("quantized" not in pair.operations and _stored_as_codes(pair)):
            return None
        zeroed = {
            m.b: m for m in pair.unexplained if (m.sums.zeroed >= self.least and m.sums.zeros[1] >= 4 if m.matrix
                                          else _zeroed_vector(m))
        }  # fmt: skip
        if not zeroed:
            return None
        masks = {b: mask_of(m, self.exact) for b, m in zeroed.items()}
        changed = {b: _unzeroed(m, masks[b]) for b, m in zeroed.items()}
        bits = sum(_mask_bits(zeroed[b], mask, self.exact) for b, mask in masks.items())
        counts = [(m.sums.zeros[1], m.sums.read) for m in zeroed.values()]
        inside = sum(z for z, _ in counts) / sum(n for _, n in counts)
        of_matrices = sum(m.matrix for m in zeroed.values())
        what = [f"{n} {w}" for n, w in ((of_matrices, "matrices"), (len(zeroed) - of_matrices, "biases or gains")) if n]
        everywhere = sum(m.sums.read for m in pair.layers if m.matrix or m.b in zeroed)
        overall = sum(z for z, _ in counts) / max(1, everywhere)
        patterns = sorted({mask.pattern for mask in masks.values()})
        before = all(mask.misplaced <= self.exact or mask.pattern == "random" for mask in masks.values())
        step = Step(
            self.name,
            RelationKind.PRUNED,
            f"{inside:.0%} of the weights of {' and '.join(what)} are zero"
            + (f" (chosen by {' and '.join(patterns)})" if patterns != ["whole"] else ""),
            {"zeroed": overall, "ratio": inside, "pattern": patterns, "tensors": sorted(zeroed)},
            bits=bits,
            place=0.5 if before else 2.0,
        )
        return FittedOperation(step, pair.with_layers(changed, self.name))


def _zeroed_vector(vector: Layer) -> bool:
    """Whether a bias or gain is all zeros in the child only."""
    return vector.sums.read > 0 and vector.sums.norm_b == 0 and vector.sums.norm_a > 0


def _stored_as_codes(pair: Pair) -> bool:
    """Whether the child is stored as integer codes: rounding makes zeros, so quantisation is fitted first."""
    return any(m.b in pair.child.tensors and not pair.child.tensors[m.b].is_float for m in pair.matrices)


def _unzeroed(layer: Layer, mask: Mask) -> Layer:
    kept = layer.sums.unzeroed_change[0]
    return layer.explained(f"{layer.sums.zeroed:.0%} zero ({mask.pattern})", min(layer.residual, kept))


def _mask_bits(layer: Layer, mask: Mask, exact: float) -> float:
    n, k = layer.sums.read, layer.sums.zeros[1]
    if mask.misplaced <= exact or mask.pattern in ("rows", "columns", "whole"):
        return float(BITS_PER_NUMBER)
    wrong = round(mask.misplaced * n)
    return min(choice_bits(n, min(n, k)), BITS_PER_NUMBER + choice_bits(n, min(n // 2, wrong)))


def mask_of(layer: Layer, exact: float) -> Mask:
    """How the zeros of a layer were chosen, by the parent's magnitudes."""
    measured = layer.sums
    a, b = np.abs(measured.sample[0]), measured.sample[1]
    nonzero = a > 0
    a, zeroed = a[nonzero], b[nonzero] == 0
    misplaced = _misplaced(a, zeroed)
    if measured.zeroed > 0.999:
        return Mask("whole", 0.0)
    if misplaced <= exact:
        return Mask("magnitude", misplaced)
    for axis, sums in (("rows", measured.rows), *(("columns", s) for s in measured.axis_sums[:1])):
        if sums.size and sums[1][sums[0] > 0].size:
            empty = (sums[1] == 0) & (sums[0] > 0)
            share = sums[0][empty].size / max(1, sums.shape[1])
            if share > 0 and abs(share - measured.zeroed) < 0.1 * measured.zeroed + 1e-9:
                return Mask(axis, 0.0)
    pattern = measured.zero_patterns[0]
    if pattern is not None:
        return Mask(f"{pattern[0]}:{pattern[1]}", misplaced)
    area = _area(a, zeroed)
    return Mask("random" if abs(area - 0.5) < 0.06 else "mixed" if area < 0.8 else "magnitude", misplaced)


def _misplaced(a: np.ndarray, zeroed: np.ndarray) -> float:
    """Share of entries on the wrong side of the best threshold."""
    if not zeroed.any() or zeroed.all():
        return 0.0
    order = np.argsort(a, kind="stable")
    kept_below = np.cumsum(~zeroed[order])
    gone_above = zeroed.sum() - np.cumsum(zeroed[order])
    return float((kept_below + gone_above).min()) / len(a)


def _area(a: np.ndarray, zeroed: np.ndarray) -> float:
    """Probability that a kept entry is larger than a zeroed one (area under the ROC curve)."""
    if not zeroed.any() or zeroed.all():
        return 0.5
    rank = np.empty(len(a))
    rank[np.argsort(a)] = np.arange(len(a))
    kept = ~zeroed
    return float((rank[kept].mean() - rank[zeroed].mean()) / len(a) + 0.5)
