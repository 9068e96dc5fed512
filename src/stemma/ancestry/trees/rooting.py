"""Directs a family tree: log-odds of ancestry, probabilities of parents, and the most likely forest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.ancestry.direction import BACKWARD, FORWARD, DirectionModel
from stemma.ancestry.geometry import Geometry
from stemma.ancestry.trees.arborescence import minimum_forest
from stemma.ancestry.trees.distances import Distances, OddsFromNorms

ParentProbabilities = Callable[[Sequence[int]], np.ndarray]
"""For some models of a family, given by position: `[n + 1, n]`, the probability that each (column) was made from each
other one (row), which is the nearest of its ancestors among them; last row: that none of them is an ancestor."""

AncestryOdds = Callable[[int, int], tuple[float, float]]
"""Log-odds that the first of two models is an ancestor of the second, and the reverse; both negative for siblings."""


@dataclass(frozen=True, eq=False)
class OddsFromWeights:
    """Log-odds of ancestry from the trained classifier of pairs, combined with the rule of norms.

    The rule also holds for architectures that the classifier was not trained on.

    Attributes:
        model: The classifier of pairs.
        geometry: Of the family.
        norms: The rule of norms.
        share: Weight of the rule. Chosen on the selection families of benchmarks/forest.py.
    """

    model: DirectionModel
    geometry: Geometry
    norms: OddsFromNorms
    share: float = 0.25
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    def __call__(self, a: int, b: int) -> tuple[float, float]:
        """Both log-odds, see `AncestryOdds`."""
        if (a, b) not in self._known:
            p = self.model.probabilities(self.geometry, [(a, b)])[0]
            rule = self.norms(a, b)
            for pair, chance, norm in (((a, b), p[FORWARD], rule[0]), ((b, a), p[BACKWARD], rule[1])):
                odds = float(np.log(max(chance, TINY) / max(1 - chance, TINY)))
                self._known[pair] = (1 - self.share) * odds + self.share * norm
        return self._known[a, b], self._known[b, a]


TINY = 1e-9


def ancestry_log_odds(direction: AncestryOdds, a: int, b: int) -> float | None:
    """Log-odds that a is an ancestor of b; None for the rule of norms, which is too weak to use alone."""
    return None if isinstance(direction, OddsFromNorms) else direction(a, b)[0]


MIN_PROBABILITY = 1e-6
"""Probability below which a model is not considered as a parent."""

UNEXPECTED_ROOT_COST = 1.5
"""Cost in log-odds of a root that the probabilities do not call for: above a near miss, below an implausible parent."""


@dataclass(frozen=True)
class ProbabilitiesFromDistances:
    """Probabilities of parents where only distances are known: a parent is near, and comes before its child.

    Attributes:
        distances: Of the family.
        direction: Log-odds of ancestry; the rule of norms unless given.
        nearness: Decrease of log-probability per logarithm of squared distance beyond the nearest.
        none: Logarithm of the weight of a missing ancestor, relative to the nearest likely one at even odds.
    """

    distances: Distances
    direction: AncestryOdds | None = None
    nearness: float = 4.0
    none: float = -0.5

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        """Probabilities `float64 [rows + 1, rows]`, see `ParentProbabilities`."""
        direction, n = self.direction or OddsFromNorms(self.distances), len(rows)
        odds = np.array([[direction(a, b)[0] if a != b else -np.inf for b in rows] for a in rows])
        log_distance = np.log(np.maximum(self.distances.squared[np.ix_(rows, rows)], 1e-300))
        nearest_ancestor = np.where(odds > 0, log_distance, np.inf).min(
            axis=0
        )  # the nearest that looks like an ancestor
        reference = np.where(
            np.isfinite(nearest_ancestor),
            nearest_ancestor,
            np.where(np.eye(n, dtype=bool), np.inf, log_distance).min(axis=0),
        )
        weight = np.concatenate(
            [np.exp(odds - self.nearness * (log_distance - reference)), np.full((1, n), np.exp(self.none))]
        )
        weight[np.arange(n), np.arange(n)] = 0.0
        return weight / weight.sum(axis=0)


def most_likely_forest(probabilities: np.ndarray, orphan_threshold: float = 0.5) -> dict[int, int | None]:
    """Parents in the most likely forest without cycles; None where none is likelier than the threshold."""
    n = probabilities.shape[1]
    sources, targets = np.nonzero(probabilities[:n] >= MIN_PROBABILITY)
    costs = -np.log(probabilities[sources, targets])
    root_costs = np.where(probabilities[n] >= orphan_threshold, 0.0, UNEXPECTED_ROOT_COST) - np.log(
        np.maximum(probabilities[n], MIN_PROBABILITY)
    )
    edges = minimum_forest(n, sources, targets, costs, root_costs)
    return {v: int(sources[e]) if e >= 0 else None for v, e in enumerate(edges)}
