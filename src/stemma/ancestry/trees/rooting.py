"""Who is whose parent in a family, all models weighed together: the likeliest tree, and how likely each edge is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.ancestry.direction import BACKWARD, FORWARD
from stemma.ancestry.direction import Direction as PairModel
from stemma.ancestry.geometry import Geometry
from stemma.ancestry.trees.arborescence import minimum_forest
from stemma.ancestry.trees.distances import ByNorm, Distances

Chances = Callable[[Sequence[int]], np.ndarray]
"""Of some models of a family, by their positions: `[n + 1, n]`, the probability that each (column) was made from each
other one (row): that it is the nearest of its ancestors among them; last row: that none of its ancestors is."""

Direction = Callable[[int, int], tuple[float, float]]
"""Of two models: log-odds that the first is an ancestor of the second, and the second of the first; both are below zero
for siblings."""


@dataclass(frozen=True, eq=False)
class ByWeights:
    """What weights show of two models, as a direction: mostly what a trained model says, and the rule of norms.

    The rule holds for architectures that the model was not trained on, too.

    Attributes:
        model: Asked about pairs.
        geometry: Of the family.
        norms: The rule.
        share: How much the rule counts. Chosen on the selection families of benchmarks/forest.py.
    """

    model: PairModel
    geometry: Geometry
    norms: ByNorm
    share: float = 0.25
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """See `Direction`.

        Returns:
            Both log-odds.
        """
        if (a, b) not in self._known:
            p = self.model.probabilities(self.geometry, [(a, b)])[0]
            rule = self.norms(a, b)
            for pair, chance, norm in (((a, b), p[FORWARD], rule[0]), ((b, a), p[BACKWARD], rule[1])):
                odds = float(np.log(max(chance, TINY) / max(1 - chance, TINY)))
                self._known[pair] = (1 - self.share) * odds + self.share * norm
        return self._known[a, b], self._known[b, a]


TINY = 1e-9


def ancestry(direction: Direction, a: int, b: int) -> float | None:
    """Log-odds that one model is an ancestor of another; the rule of norms is too weak to say so.

    Returns:
        The odds, None where only norms are known.
    """
    return None if isinstance(direction, ByNorm) else direction(a, b)[0]


LEAST = 1e-6
"""Probability below which a model is not looked at as a parent."""

RELUCTANT = 1.5
"""Cost of a root, in log-odds, where one is not called for: more than a near miss, less than an absurd parent."""


@dataclass(frozen=True)
class ByDistance:
    """Probabilities of parents where nothing but distances is known: a parent is near, and comes before its child.

    Attributes:
        distances: Of the family.
        direction: Log-odds of ancestry; the rule of norms unless given.
        nearness: How fast others than the nearest become unlikely, per logarithm of squared distance.
        none: Logarithm of the weight of an ancestor who is not here, beside the nearest likely one at even odds.
    """

    distances: Distances
    direction: Direction | None = None
    nearness: float = 4.0
    none: float = -0.5

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        """See `Chances`.

        Returns:
            `float64 [rows + 1, rows]`.
        """
        direction, n = self.direction or ByNorm(self.distances), len(rows)
        odds = np.array([[direction(a, b)[0] if a != b else -np.inf for b in rows] for a in rows])
        far = np.log(np.maximum(self.distances.squared[np.ix_(rows, rows)], 1e-300))
        before = np.where(odds > 0, far, np.inf).min(axis=0)  # the nearest that looks like an ancestor
        least = np.where(np.isfinite(before), before, np.where(np.eye(n, dtype=bool), np.inf, far).min(axis=0))
        weight = np.concatenate([np.exp(odds - self.nearness * (far - least)), np.full((1, n), np.exp(self.none))])
        weight[np.arange(n), np.arange(n)] = 0.0
        return weight / weight.sum(axis=0)


def likeliest(chances: np.ndarray, orphan: float = 0.5) -> dict[int, int | None]:
    """The likeliest forest, given who may be whose parent: no model descends from itself, whatever pairs say.

    Args:
        chances: As `Chances` gives them.
        orphan: Models whose ancestors are less likely than this not to be here rather get a parent.

    Returns:
        The parent of every model, None where the likeliest forest has none.
    """
    n = chances.shape[1]
    sources, targets = np.nonzero(chances[:n] >= LEAST)
    costs = -np.log(chances[sources, targets])
    without = np.where(chances[n] >= orphan, 0.0, RELUCTANT) - np.log(np.maximum(chances[n], LEAST))
    chosen = minimum_forest(n, sources, targets, costs, without)
    return {v: int(sources[e]) if e >= 0 else None for v, e in enumerate(chosen)}
