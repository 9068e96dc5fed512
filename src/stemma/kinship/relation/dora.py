"""Operation: DoRA, differences of low rank followed by a new norm of every output unit.

Source: arXiv:2402.09353. The units' factors and the change of low rank are fitted alternately: outside the directions
of the change, a unit's new weights are its old ones times its factor. With the right rank that converges in a few
iterations; with another one it does not, so that each likely rank is tried.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.relation.base import BITS_PER_NUMBER, AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.lora import ADAPTED, trained_beside, trained_in_full
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind

RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
"""Ranks that are tried; the smallest that fits is used, because in small matrices a larger one may fit too."""


@dataclass(frozen=True)
class RescaledLowRank(AbstractOperation):
    """Every matrix that changed did so by low rank and one positive factor per unit of its first axis.

    Attributes:
        rows: Rows used for the fit; the others are checked against it where all entries are needed.
        directions: Directions onto which longer rows are projected.
        share: Largest rank, as a share of the rows and directions used.
        turns: Iterations after which a rank may be rejected, and largest number of iterations.
        held: Least share of the squared difference that the leading directions hold at first.
        drop: Ratio of the first singular value beyond a rank to the last within it, from which it may fit.
        above: Factor on the rounding level: singular values must exceed it, residuals of rows must not.
    """

    rows: int = 384
    directions: int = 192
    share: float = 1 / 3
    turns: tuple[int, int] = (5, 60)
    held: float = 0.8
    drop: float = 0.2
    above: float = 2.0

    name: ClassVar[str] = "dora"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`; matrices that are too small to decide are included."""
        changed = [m for m in pair.unexplained if m.matrix]
        changed.sort(key=lambda m: (trained_in_full(pair, m), -m.size))
        if not changed or any(m.measured is None for m in changed) or "lora" in pair.operations:
            return None
        fits: dict[str, tuple[int, float, float]] = {}
        dense: list[Layer] = []
        for layer in changed:
            hint = max((r for r, _, _ in fits.values()), default=0)
            found = pair.cached(f"dora {layer.b}", lambda layer=layer, hint=hint: self.fit_matrix(pair, layer, hint))
            if found is not None:
                fits[layer.b] = found
            elif not trained_beside(pair, [*dense, layer]):
                return None
            else:
                dense.append(layer)
        tolerance = max(m.tolerance for m in changed)
        scaled = any(max(abs(low - 1), abs(high - 1)) > 10 * tolerance for _, low, high in fits.values())
        if not fits or not scaled or not any(r for r, _, _ in fits.values()) or not trained_beside(pair, dense):
            return None
        return self._fitted_operation(pair, [m for m in changed if m.b in fits], fits)

    def _fitted_operation(
        self, pair: Pair, layers: list[Layer], fits: dict[str, tuple[int, float, float]]
    ) -> FittedOperation:
        ranks = {b: r for b, (r, _, _) in fits.items()}
        rank, count = Counter(ranks.values()).most_common(1)[0]
        same = "" if count == len(ranks) else f" ({min(ranks.values())} to {max(ranks.values())})"
        low, high = min(f[1] for f in fits.values()), max(f[2] for f in fits.values())
        bits = sum(16.0 * ranks[m.b] * sum(_sides(m)) + BITS_PER_NUMBER * _sides(m)[0] for m in layers)
        step = Step(
            self.name,
            RelationKind.LORA,
            f"{len(ranks)} of {len(pair.matrices)} matrices differ by rank {rank}{same} and a factor per unit "
            f"({low:.4g} to {high:.4g})",
            {"rank": rank, "ranks": ranks, "modules": sorted(ranks), "factors": [low, high]},
            bits=bits,
            place=ADAPTED,
        )
        done = {m.b: m.explained(f"rank {ranks[m.b]}, units rescaled") for m in layers}
        return FittedOperation(step, pair.with_layers(done, self.name))

    def fit_matrix(self, pair: Pair, layer: Layer, hint: int = 0) -> tuple[int, float, float] | None:
        """Rank, smallest and largest factor of one matrix; None if low rank and factors do not fit."""
        pieces = self._pieces(pair, layer)
        first = next(pieces, None)
        if first is None:
            return None
        a, b = first
        if self._spread_over_all_directions(a, b):
            return None
        noise = layer.floor * float(np.sqrt(np.mean(a * a)))
        edge = self.above * noise * (np.sqrt(len(a)) + np.sqrt(a.shape[1]))
        ranks = [r for r in (hint, *RANKS) if 0 < r <= self.share * min(a.shape)]
        found = next((f for r in dict.fromkeys(ranks) if (f := self._with_rank(a, b, r, edge)) is not None), None)
        if found is None:
            return None
        rank, factors, basis = found
        low, high = float(factors.min()), float(factors.max())
        for x, y in pieces:
            x, y = _outside(x, basis), _outside(y, basis)
            more = _factors(x, y)
            if not (more > 0).all() or np.sqrt(np.mean((y / more[:, None] - x) ** 2)) > self.above * noise:
                return None
            low, high = min(low, float(more.min())), max(high, float(more.max()))
        return rank, low, high

    def _spread_over_all_directions(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the difference is spread over all directions, as most training is."""
        factors = _factors(a, b)
        if not (factors > 0).all():
            return True
        rest = b / factors[:, None] - a
        squares = np.linalg.eigvalsh(rest.T @ rest)
        return bool(squares[-max(1, int(self.share * min(a.shape))) :].sum() < self.held * squares.sum())

    def _with_rank(
        self, a: np.ndarray, b: np.ndarray, rank: int, edge: float
    ) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Factors and directions of a change of one rank; None where more than rounding is left."""
        factors, values, basis = _factors(a, b), np.zeros(0), np.zeros((a.shape[1], 0))
        for turn in range(max(self.turns)):
            if not (factors > 0).all():
                return None
            rest = b / factors[:, None] - a
            squares, vectors = np.linalg.eigh(rest.T @ rest)
            values = np.sqrt(np.maximum(squares[::-1], 0))
            if turn == min(self.turns) and values[rank] > self.drop * values[rank - 1]:
                return None
            basis = vectors[:, -rank:]
            before, factors = factors, _factors(_outside(a, basis), _outside(b, basis))
            if turn > min(self.turns) and np.abs(factors - before).max() <= 1e-12:
                break
        if not (factors > 0).all():
            return None
        values = np.linalg.svd(b / factors[:, None] - a, compute_uv=False)
        return (int((values > edge).sum()), factors, basis) if values[rank] <= edge else None

    def _pieces(self, pair: Pair, layer: Layer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        x, y = pair.parent.weights[layer.a], pair.child.weights[layer.b]
        if x.shape != y.shape or layer.added_tokens or any(layer.not_finite) or not x.shape[0]:
            return
        width = x.size // x.shape[0]
        directions = None
        if width > self.directions:
            directions = np.random.default_rng(width).normal(scale=width**-0.5, size=(width, self.directions))
        readable = min(x.readable, y.readable)
        for start in range(0, readable if pair.all_entries else 1, self.rows):
            stop = min(start + self.rows, readable)
            pieces = [t.rows(start, stop).reshape(stop - start, width).astype(np.float64) for t in (x, y)]
            alive = (np.abs(pieces[0]).max(1) > 0) & (np.abs(pieces[1]).max(1) > 0)
            seen = [p[alive] if directions is None else p[alive] @ directions for p in pieces]
            if alive.any():
                yield seen[0], seen[1]


def _sides(layer: Layer) -> tuple[int, int]:
    rows = layer.sums.rows.shape[1]
    return rows, layer.sums.read // max(1, rows)


def _factors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norm = (a * a).sum(1)
    return np.where(norm > 0, (a * b).sum(1) / np.where(norm > 0, norm, 1), 1.0)


def _outside(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    return x - (x @ basis) @ basis.T
