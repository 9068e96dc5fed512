"""Operation: LoRA, differences of low rank merged into the weights."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.checkpoints.tensor_names import EMBEDDING
from stemma.kinship.relation.base import AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair, layer_name
from stemma.kinship.relation.replaced import is_head
from stemma.types import RelationKind

ADAPTED = 0.95
"""Place of adapters among steps: before full training of other parts."""


def trained_beside(pair: Pair, dense: Sequence[Layer]) -> bool:
    """Whether all dense changes are of tensors that are fully trained beside adapters: heads and embeddings."""
    layers = {layer_name(m.b) for m in dense}
    vectors = [v for v in pair.unexplained if not v.matrix]
    return all(trained_in_full(pair, m) for m in dense) and all(layer_name(v.b) in layers for v in vectors)


def trained_in_full(pair: Pair, layer: Layer) -> bool:
    """Whether a matrix is a head or token embedding, which are fully trained beside adapters."""
    return is_head(pair, layer) or bool(EMBEDDING.search(layer.b))


@dataclass(frozen=True)
class LowRank(AbstractOperation):
    """Every matrix that changed did so by a matrix of low rank; biases and gains did not change.

    A head or an embedding that was fully trained beside the others is left to another operation.

    The rank is the number of singular values above what rounding can make: the largest singular value of a matrix of
    independent rounding errors lies at their standard deviation times the sum of the roots of its sides.

    Attributes:
        above: How far above that edge a singular value must lie.
        room: Largest rank, as a share of the largest possible.
        width: Matrices with a smaller possible rank than this are ignored.
    """

    above: float = 1.3
    room: float = 0.5
    width: int = 4

    name: ClassVar[str] = "lora"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: what remains beside the low rank is rounding."""
        changed = [layer for layer in pair.unexplained if layer.matrix]
        if not changed or any(m.measured is None for m in changed) or "dora" in pair.operations:
            return None
        if not trained_beside(pair, [m for m in changed if trained_in_full(pair, m)]):
            return None
        ranks = self._ranks(pair, changed)
        low = {b: r for b, r in ranks.items() if r and r <= self.room * self._room(pair, b)}
        if not low or (len(low) == 1 and len(pair.matrices) > 2 and max(low.values()) > 8):
            return None
        # A matrix whose possible rank is no larger than the others' rank shows nothing, such as a head of few classes.
        most = max(low.values())
        dense = [m for m in changed if m.b in ranks and m.b not in low]
        dense = [m for m in dense if ranks[m.b] > most or self._room(pair, m.b) > 2 * most]
        if not trained_beside(pair, dense):
            return None
        rank, count = Counter(low.values()).most_common(1)[0]
        low_rank = [m for m in changed if m not in dense]
        bits = sum(self._bits(m, low.get(m.b, m.sums.max_rank)) for m in low_rank)
        same = "" if count == len(low) else f" ({min(low.values())} to {max(low.values())})"
        step = Step(
            self.name,
            RelationKind.LORA,
            f"{len(low)} of {len(pair.matrices)} matrices differ by rank {rank}{same}",
            {"rank": rank, "ranks": low, "modules": sorted(low)},
            bits=bits,
            place=ADAPTED,
        )
        done = {m.b: m.explained(f"rank {low.get(m.b, m.sums.max_rank)}") for m in low_rank}
        return FittedOperation(step, pair.with_layers(done, self.name))

    def _ranks(self, pair: Pair, changed: Sequence[Layer]) -> dict[str, int]:
        """Ranks of the differences; empty where the largest matrix changed by more than low rank."""
        out: dict[str, int] = {}
        full = {m.b for m in changed if trained_in_full(pair, m)}
        most = max((m.sums.max_rank for m in changed if m.b not in full), default=0)
        for m in sorted(changed, key=lambda m: (m.b in full, -m.sums.max_rank, m.size)):
            room = m.sums.max_rank
            if room < self.width:
                continue
            out[m.b] = self.rank(m)
            if room == most and m.b not in full and out[m.b] > self.room * room:
                return {}
        return out

    def rank(self, layer: Layer) -> int:
        """Numerical rank of a layer's difference: the number of singular values above rounding."""
        sums = layer.sums
        values = sums.singular_values
        if not len(values):
            return 0
        extra = max(0.0, layer.rounding_noise - layer.tolerance**2 * sums.norm_a)
        variance = (layer.floor**2 * sums.norm_a + extra) / max(1, sums.read)
        edge = np.sqrt(variance) * (np.sqrt(sums.rows.shape[1]) + np.sqrt(len(values)))
        return int((values > max(self.above * edge, 1e-6 * values[0])).sum())

    @staticmethod
    def _room(pair: Pair, name: str) -> int:
        return next(layer.sums.max_rank for layer in pair.layers if layer.b == name)

    @staticmethod
    def _bits(layer: Layer, rank: int) -> float:
        rows = layer.sums.rows.shape[1]
        return 16.0 * rank * (rows + layer.sums.read / max(1, rows))
