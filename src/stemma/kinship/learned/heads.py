"""Which of two models learned with which head: the change of a layer lies where the next layer's rows point.

A layer is changed by gradients that come through the matrix that reads it. Where two related models have different
heads, the child was trained through its own: the change of the layer below lies in the span of the child's head far
more than chance, and in that of the parent's no more than chance. Of two siblings either head has its part of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices

MOST_READERS, MOST_FEEDERS = 4, 6
"""Matrices that read others, the narrowest first, and layers that each of them may read, the last ones first."""

NARROW = 0.75
"""Largest share of outputs to inputs of a reader: a wider one spans everything."""

LARGEST, KEPT = 1 << 22, 256
"""Entries of the largest tensor that is read; rows of a reader, and columns of a layer below, that are kept."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Heads:
    """Matrices that read layers, and those layers, of some models; read where they are asked for.

    Attributes:
        models: The models.
        pairs: Names of a reader and of a layer that it may read.
        shapes: Of these in the first model.
        seed: Of the choice of rows and columns where a matrix has many.
    """

    models: tuple[Model, ...]
    pairs: tuple[tuple[str, str], ...]
    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    _kept: dict[int, tuple[Arrays, Arrays]] = field(default_factory=dict)

    def of(self, k: int) -> tuple[Arrays, Arrays]:
        """The readers of one model by name, in whatever width they have, and its layers of the first one's shapes."""
        if k not in self._kept:
            own = {n: t for n, t in self.models[k].weights.items() if t.size <= LARGEST and t.leading is None}
            readers = {n: own[n] for n in dict.fromkeys(r for r, _ in self.pairs) if n in own}
            feeders = {n: own[n] for n in dict.fromkeys(f for _, f in self.pairs) if n in own}
            self._kept[k] = (
                {n: self._some(t.array(), 0) for n, t in readers.items()
                 if len(t.shape) == 2 and t.shape[1] == self.shapes[n][1] and t.shape[0] <= t.shape[1]},
                {n: self._some(t.array(), 1) for n, t in feeders.items() if t.shape == self.shapes[n]},
            )  # fmt: skip
        return self._kept[k]

    def _some(self, array: np.ndarray, axis: int) -> np.ndarray:
        flat = np.nan_to_num(np.asarray(array, np.float32).reshape(len(array), -1), posinf=0.0, neginf=0.0)
        if flat.shape[axis] <= KEPT:
            return flat
        return flat.take(np.sort(np.random.default_rng(self.seed).choice(flat.shape[axis], KEPT, replace=False)), axis)


def find_heads(models: Sequence[Model], seed: int = 0) -> Heads:
    """Find what reads what in the first model, by shape; the others are looked up by name.

    Cost: none until something is asked for, then the tensors in question, of at most 4 million entries each.

    Returns:
        The readers, and the layers that they may read.
    """
    shapes = {n: t.shape for n, t in matrices(models[0]).items() if t.size <= LARGEST}
    narrow = sorted((s[0] / s[1], n) for n, s in shapes.items() if len(s) == 2 and s[0] <= NARROW * s[1])
    pairs = []
    for _, reader in narrow[:MOST_READERS]:
        width = shapes[reader][1]
        pairs += [(reader, n) for n in [n for n, s in shapes.items() if s[0] == width and n != reader][-MOST_FEEDERS:]]
    return Heads(tuple(models), tuple(pairs), shapes, seed)


def in_span(change: np.ndarray, reader: np.ndarray) -> float:
    """Logarithm of how much more of a change `[units, columns]` lies in a reader's span than of a random one would."""
    _, singular, right = np.linalg.svd(reader.astype(np.float64), full_matrices=False)
    span = right[singular > 1e-6 * max(float(singular.max(initial=0)), 1e-30)]
    total = float(np.square(change).sum())
    if not len(span) or total <= 0:
        return 0.0
    share = float(np.square(span @ change).sum()) / total
    return float(np.clip(np.log(max(share, 1e-6) * reader.shape[1] / len(span)), -3, 3))


def learned_with(
    first: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    second: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[str, str]],
    alike: Callable[[np.ndarray, np.ndarray], bool],
) -> tuple[float, float, float, float]:
    """How far the change between two models lies in the span of either one's own head.

    Args:
        first: Readers and layers of one model.
        second: Those of the other.
        pairs: Which reader may read which layer.
        alike: Whether two matrices are related.

    Returns:
        That of the second less that of the first, the weaker and the stronger of the two, and 1; zeros where no head
        differs. Of several layers the one counts that follows a head most.
    """
    best = (0.0, 0.0, 0.0, 0.0)
    for reader, feeder in pairs:
        h, k, x, y = first[0].get(reader), second[0].get(reader), first[1].get(feeder), second[1].get(feeder)
        if h is None or k is None or x is None or y is None or (h.shape == k.shape and alike(h, k)) or not alike(x, y):
            continue
        change = y.astype(np.float64) - x
        if not change.any():
            continue
        one, two = in_span(change, h), in_span(change, k)
        if not best[3] or max(one, two) > best[2]:
            best = (two - one, min(one, two), max(one, two), 1.0)
    return best


FOLLOWED = 0.4
"""Logarithm of the share, in units of chance, from which a change follows a head."""

FACTORS = ((0.15, 20.0), (0.35, 8.0), (0.5, 1.0), (np.inf, 0.2))
"""Factors on the odds of a parent, up to a part of the change's share in the child's head that its own head has.

Set by rule, not fitted: a fine-tuned model's change has about no more of its parent's old head than chance, and after
long training up to a third of what it has of its own; of two siblings both heads have their part, unless one of the
two hardly moved."""


def head_factor(order: float, weaker: float, stronger: float, differ: float) -> float:
    """Factor on the odds that the first of two models is the parent of the second, from what `learned_with` returns."""
    if not differ or stronger < FOLLOWED:
        return 1.0
    factor = next(f for part, f in FACTORS if weaker <= part * stronger)
    return factor if order > 0 or factor <= 1 else 1 / factor
