"""Task vectors: how far a child and its possible parents moved from a base, with the rounding that hides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from stemma.errors import MisuseError
from stemma.kinship.weights.residual import rounding_of

COLLINEAR = 1e-6
"""Distance of the cosine of two task vectors from 1 up to which one is a multiple of the other."""

MAX_BASES = 4
"""Candidates that are tried as the base where none was given."""


class Span(NamedTuple):
    """Columns of one tensor.

    Attributes:
        name: The tensor. Tensors whose names agree up to the last dot are one layer.
        start: First column.
        stop: Column after the last.
        rows: Units, where the entries are a whole matrix, row by row; 1 where they are a sample.
    """

    name: str
    start: int
    stop: int
    rows: int = 1


@dataclass(frozen=True, eq=False)
class TaskVectors:
    """Differences from a base, entry by entry, and their rounding, at entries that are finite in all models.

    Attributes:
        child: `float64 [k]`, child minus base.
        moves: `float64 [n, k]`, each candidate minus base.
        base: `float64 [k]`, the base, or the mean of the candidates where no base was given.
        has_base: Whether a base was given. Without one, only weights that sum to 1 have a meaning.
        tolerance: `float64 [k]`, how far rounding alone can take the child from what the merge computed.
        tensor: `int [k]`, which tensor each entry belongs to.
        layer: `int [k]`, which layer.
        scale: `float64 [k]`, typical change of the candidates in the entry's tensor.
        matrices: First entry, entry after the last, and rows of each tensor that is there as a whole matrix.

    Source: task vectors: Ilharco et al., ICLR 2023 (arXiv:2212.04089).
    """

    child: np.ndarray
    moves: np.ndarray
    base: np.ndarray
    has_base: bool
    tolerance: np.ndarray
    tensor: np.ndarray
    layer: np.ndarray
    scale: np.ndarray
    matrices: tuple[tuple[int, int, int], ...] = ()

    @property
    def n(self) -> int:
        """Number of candidates."""
        return len(self.moves)

    def of(self, parents: Sequence[int], entries: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Task vectors of some candidates, at all entries unless given, `float64 [parents, entries]`."""
        rows = list(parents)
        if isinstance(entries, slice):
            return self.moves[rows, entries]
        at = np.flatnonzero(entries) if entries.dtype == bool else entries
        return self.moves[np.array(rows, int)[:, None], at]

    def subset(self, candidates: Sequence[int]) -> "TaskVectors":
        """The same with some of the candidates."""
        return replace(self, moves=self.moves[list(candidates)])


def task_vectors(
    child: np.ndarray,
    candidates: np.ndarray,
    base: np.ndarray | None = None,
    tensors: Sequence[tuple[str, int, int] | Span] = (),
    slack: float = 4.0,
) -> TaskVectors:
    """Subtract the base `[k]` from child `[k]` and candidates `[n, k]`, and compute the rounding tolerance."""
    child, candidates = np.asarray(child, np.float64), np.asarray(candidates, np.float64)
    if child.ndim != 1 or candidates.ndim != 2 or candidates.shape[1] != len(child):
        raise MisuseError(
            f"a merge regression needs the same entries of all models, child [k] and candidates [n, k], but "
            f"got {child.shape} and {candidates.shape}. Read them with stemma.kinship.weights.entries."
        )
    if base is not None and np.shape(base) != child.shape:
        raise MisuseError(f"the base must have the child's {len(child)} entries, but has shape {np.shape(base)}")
    spans = [Span(*t) for t in tensors]
    tensor, layer = _places(spans, len(child))
    has_base = base is not None
    models = [child, *candidates] + ([np.asarray(base, np.float64)] if base is not None else [])
    finite = np.asarray(np.isfinite(np.stack(models)).all(axis=0))
    origin = candidates.mean(0) if base is None and len(candidates) else np.zeros_like(child)
    origin = np.asarray(base, np.float64) if base is not None else origin
    size = np.abs(candidates).max(0, initial=0.0) + np.abs(origin)
    tolerance = slack * (rounding_of(child) * np.abs(child) + max(map(rounding_of, models[1:]), default=0.0) * size)
    keep = np.flatnonzero(finite)
    moves = candidates[:, keep] - origin[keep]
    return TaskVectors(
        child[keep] - origin[keep], moves, origin[keep], has_base, tolerance[keep], tensor[keep], layer[keep],
        _scale(moves, tensor[keep]), _matrices(spans, finite),
    )  # fmt: skip


def distinct_candidates(vectors: TaskVectors) -> tuple[list[int], dict[int, list[int]]]:
    """Positions of candidates that moved, one of each set of duplicates; and the duplicates by position."""
    kept: list[int] = []
    duplicates: dict[int, list[int]] = {}
    for i, row in enumerate(vectors.moves):
        if vectors.has_base and (np.abs(row) <= vectors.tolerance).all():
            continue
        same = next((j for j in kept if (np.abs(row - vectors.moves[j]) <= vectors.tolerance).all()), None)
        if same is None:
            kept.append(i)
        else:
            duplicates.setdefault(same, []).append(i)
    return kept, duplicates


def non_collinear(vectors: TaskVectors, pool: Sequence[int]) -> list[int]:
    """Candidates of the pool, in order, without multiples of a candidate that moved further from the base."""
    moves = vectors.of(pool) / vectors.scale
    norms = np.sqrt(np.square(moves).sum(1))
    unit = moves / np.maximum(norms, 1e-300)[:, None]
    cosines, kept = np.abs(unit @ unit.T), list[int]()
    for i in np.argsort(-norms, kind="stable"):
        if all(cosines[i, j] < 1 - COLLINEAR for j in kept):
            kept.append(int(i))
    return [pool[i] for i in sorted(kept)]


def is_copy(vectors: TaskVectors, share: float) -> bool:
    """Whether the child equals the base or a candidate, down to rounding, in this share of entries."""
    rows = [*vectors.moves, np.zeros_like(vectors.child)] if vectors.has_base else vectors.moves
    return any((np.abs(vectors.child - row) <= vectors.tolerance).mean() >= max(share, 0.999) for row in rows)


def possible_bases(vectors: TaskVectors) -> list[int]:
    """A few candidates that may be the base: those the child kept most entries of, then the most central."""
    if vectors.n < 2:
        return []
    spread = np.square(vectors.moves / vectors.scale).sum(1)
    moved = np.abs(vectors.moves).max(0) > vectors.tolerance
    equal = [float((np.abs(vectors.child - row) <= vectors.tolerance)[moved].mean()) for row in vectors.moves]
    order = sorted(range(vectors.n), key=lambda i: (-round(equal[i], 3), spread[i]))
    return order[:MAX_BASES]


def _matrices(spans: Sequence[Span], finite: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Whole matrices of at least two rows and columns, by their columns without entries that are not finite."""
    before = np.concatenate([[0], np.cumsum(finite)])
    return tuple(
        (int(before[s.start]), int(before[s.stop]), s.rows)
        for s in spans
        if s.rows > 1
        and (s.stop - s.start) % s.rows == 0
        and s.stop - s.start > s.rows
        and finite[s.start : s.stop].all()
    )


def _places(tensors: Sequence[Span], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tensor and layer of each entry; a layer is what tensor names have in common before the last dot."""
    tensor, layer = np.zeros(count, int), np.zeros(count, int)
    layers: dict[str, int] = {}
    if any(not 0 <= t.start <= t.stop <= count for t in tensors):
        raise MisuseError(
            f"tensor spans must lie between columns 0 and {count}, but are {[tuple(t) for t in tensors][:4]}"
        )
    for i, (name, start, stop, _) in enumerate(tensors):
        tensor[start:stop] = i
        layer[start:stop] = layers.setdefault(name.rpartition(".")[0] or name, len(layers))
    return tensor, layer


def _scale(moves: np.ndarray, tensor: np.ndarray) -> np.ndarray:
    """Root mean square change per tensor, so that small and large tensors weigh by their number of entries."""
    if not moves.size:
        return np.ones(moves.shape[1])
    count = np.maximum(np.bincount(tensor), 1)
    mean = np.bincount(tensor, np.square(moves).mean(0)) / count
    return np.sqrt(np.where(mean > 0, mean, 1.0))[tensor]
