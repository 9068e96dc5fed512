"""Which relative is the parent of a suspect, or none of them: a classifier of the geometry of all relatives.

Distances alone do not decide: two models fine-tuned on one task from one parent can be nearer to each other than to it.
The parent is where the other relatives branch off: seen from it, the suspect lies at right angles to them; and it came
before them all. A suspect whose relatives are all siblings has no such model among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import BACKWARD, FORWARD, NEITHER, DirectionModel
from stemma.ancestry.geometry import Geometry

FEATURE_NAMES = (
    "before", "after", "neither", "distance", "beyond the nearest", "rank", "gap", "largest angle", "mean angle",
    "smallest angle", "mean angle at the suspect", "smallest angle at the suspect", "relatives", "ancestry",
    "ancestry of the suspect", "centrality", "nearer to relatives", "apart from relatives", "best other",
    "before the best other", "lead over the others", "hub", "hub beyond the best", "branch", "branch beyond the best",
    "low branch", "high branch", "low branch beyond the best", "zeros of its own", "zeros of the suspect",
)  # fmt: skip
"""Features of one candidate that the trees use."""

NEAREST = 8
"""Candidates that are evaluated, the nearest first."""

INDISTINGUISHABLE = 0.25
"""Share of the way to the suspect below which two candidates count as one: weights do not show which is the parent."""


def indistinguishable_groups(geometry: Geometry, suspect: int, candidates: Sequence[int]) -> list[list[int]]:
    """Group candidates that are near to one another beside their distance to the suspect, nearest first."""
    distance = {c: geometry.squared_distance(suspect, c) for c in candidates}
    found: list[list[int]] = []
    for c in sorted((c for c in candidates if np.isfinite(distance[c])), key=lambda c: (distance[c], c)):
        group = next(
            (g for g in found if geometry.squared_distance(g[0], c) <= INDISTINGUISHABLE**2 * distance[g[0]]), None
        )
        found.append([c]) if group is None else group.append(c)
    return found


def possible_parents(geometry: Geometry, suspect: int, candidates: Sequence[int]) -> list[int]:
    """Candidates that lack at most one tensor (a head) that the suspect shares with any of them.

    A model does not regain units or layers, so that a model they were cut from is no child of the cut one.

    Returns:
        Positions of the candidates.
    """
    present = geometry.entries.present[list(candidates)]
    shared = present.any(axis=0) & geometry.entries.present[suspect]
    return [c for c, has in zip(candidates, present, strict=True) if (shared & ~has).sum() <= 1]


@dataclass(frozen=True, eq=False)
class ParentModel:
    """Finds the parent of a model among several relatives with boosted trees.

    Attributes:
        direction: The classifier of pairs.
        trees: One output, trained on families with known history, parents often left out (`stemma.training.direction`).
    """

    direction: DirectionModel
    trees: BoostedTrees

    def probabilities(self, geometry: Geometry, suspect: int, candidates: Sequence[int]) -> np.ndarray:
        """Probability of each candidate to be the parent of the suspect: the nearest of its ancestors among them.

        Cost: the pairs among the nearest eight candidates and the suspect, about 0.3 s for small networks.

        Args:
            geometry: Of the suspect and its relatives.
            suspect: Its position.
            candidates: Positions of relatives, without copies of the suspect.

        Returns:
            `float64 [candidates]`; the rest to 1 is for none of them. 0 for candidates that are not evaluated; of
            indistinguishable candidates the nearest gets the probability of all.
        """
        representatives = [g[0] for g in indistinguishable_groups(geometry, suspect, candidates)[:NEAREST]]
        out = np.zeros(len(candidates))
        if representatives:
            at = {c: k for k, c in enumerate(candidates)}
            probabilities = self.from_features(parent_features(geometry, self.direction, suspect, representatives))
            out[[at[c] for c in representatives]] = _weighted_by_counters(
                probabilities, geometry.batch_counts, suspect, representatives
            )
        return out

    def parent_probabilities(self, geometry: Geometry, rows: Sequence[int]) -> np.ndarray:
        """Probability of each of some relatives to be the parent of each other one.

        Of indistinguishable candidates the one from which the others were most probably made gets the probability of
        all.

        Cost: the pairs among every model and its nearest eight; about a second for twenty small models.

        Returns:
            As `stemma.ancestry.trees.rooting.ParentProbabilities`.
        """
        n, at = len(rows), {r: k for k, r in enumerate(rows)}
        out, merged = np.zeros((n + 1, n)), {}
        for c, row in enumerate(rows):
            others = possible_parents(geometry, row, [r for r in rows if r != row])
            out[[at[r] for r in others], c] = self.probabilities(geometry, row, others)
            merged[c] = [[at[r] for r in g] for g in indistinguishable_groups(geometry, row, others) if len(g) > 1]
        separate = out.copy()
        for c, found in merged.items():
            for group in found:
                source = max(group, key=lambda k: separate[k, group].sum())
                out[group[0], c], out[source, c] = 0.0, separate[group[0], c]
        out[n] = np.maximum(1 - out[:n].sum(axis=0), 0.0)
        return out

    def edge_confidence(self, probability: float) -> float:
        """Share of right edges among those drawn in a family tree with this probability, as calibrated."""
        stated, right = self.trees.about["edges"]
        return float(np.interp(probability, stated, right))

    def pair_probabilities(self, geometry: Geometry, a: int = 0, b: int = 1) -> tuple[float, float]:
        """Probability of each of two models alone to be the parent of the other; their sum is at most 1."""
        forth, back = (float(self.probabilities(geometry, s, [c])[0]) for c, s in ((a, b), (b, a)))
        whole = max(1.0, forth + back)
        return forth / whole, back / whole

    def from_features(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities `float64 [candidates]` from features `[candidates, len(FEATURE_NAMES)]` of one suspect."""
        return choice_probabilities(self.trees.scores(rows)[:, 0], self.trees.about["choice"])

    def parent_threshold(self, candidates: int) -> float:
        """Calibrated probability from which one of so many candidates is called the parent."""
        return float(self._calibration(candidates)["named from"])

    def _calibration(self, candidates: int) -> Mapping[str, Any]:
        return next(t for t in self.trees.about["sets"] if candidates <= t["candidates up to"])

    def set_threshold(self, candidates: int, coverage: float) -> float:
        """Probability from which a candidate, or an unknown ancestor, belongs to the parent set.

        Split conformal prediction, calibrated on families and kinds of networks that the trees were not trained on.

        Args:
            candidates: Number of candidates.
            coverage: Share of suspects whose set is to hold the parent.

        Returns:
            The probability.

        Source: Sadinle, Lei and Wasserman 2019 (arXiv:1609.00451); Vovk et al. 2005 for the split.
        """
        return float(np.quantile(self._calibration(candidates)["of the truth"], 1 - coverage))

    def parent_set(self, probabilities: Sequence[float], coverage: float) -> tuple[list[int], bool]:
        """Positions of the smallest set that holds the parent, and whether an unknown ancestor is in it."""
        unknown = max(0.0, 1 - float(sum(probabilities)))
        threshold = self.set_threshold(len(probabilities), coverage)
        kept = [k for k, p in enumerate(probabilities) if p >= threshold]
        if not kept and unknown < threshold:
            kept = [int(np.argmax(probabilities))] if max(probabilities) >= unknown else []
        return sorted(kept, key=lambda k: -probabilities[k]), unknown >= threshold or not kept


def _weighted_by_counters(
    probabilities: np.ndarray, batch_counts: Sequence[int], suspect: int, candidates: Sequence[int]
) -> np.ndarray:
    """Probabilities corrected for batch counters: a parent was hardly trained on more batches than its child."""
    suspect_count = batch_counts[suspect] if batch_counts else 0
    is_later = np.array([bool(suspect_count) and batch_counts[c] > suspect_count for c in candidates])
    weighted = np.where(is_later, LATER_COUNTER_FACTOR, 1.0) * probabilities
    return weighted / (weighted.sum() + max(0.0, 1 - float(probabilities.sum())) + 1e-12)


LATER_COUNTER_FACTOR = 0.1
"""Factor on the probability of a parent with a higher batch counter than its child; counters may be reset."""


def choice_probabilities(scores: np.ndarray, choice: Sequence[float]) -> np.ndarray:
    """Conditional logit of scores with "none" as a choice; `choice`: factor, score of none, its slope in log n."""
    scale, none, by_number = choice
    logits = np.append(scale * scores, none + by_number * np.log(max(1, len(scores))))
    exponentials = np.exp(logits - logits.max())
    return (exponentials / exponentials.sum())[:-1]


def parent_features(
    geometry: Geometry, direction: DirectionModel, suspect: int, candidates: Sequence[int]
) -> np.ndarray:
    """Features of each candidate, `float64 [candidates, len(FEATURE_NAMES)]`; -1 where an angle is undefined."""
    n = len(candidates)
    everyone = [*candidates, suspect]
    pairs = [(i, j) for i in range(n + 1) for j in range(i + 1, n + 1)]
    p = direction.probabilities(geometry, [(everyone[i], everyone[j]) for i, j in pairs])
    order = np.zeros((n + 1, n + 1, 3))
    for (i, j), row in zip(pairs, p, strict=True):
        order[i, j], order[j, i] = row, row[[BACKWARD, FORWARD, NEITHER]]
    log = np.log(order + 1e-4)
    odds = log[:, :, FORWARD] - log[:, :, BACKWARD]
    distance = np.array([[_log_distance(geometry, a, b) for b in everyone] for a in everyone])
    to_suspect = distance[:n, n]
    rank = np.argsort(np.argsort(to_suspect, kind="stable"), kind="stable")
    spread_at = np.array([_mean_cosine_between(geometry, c, [x for x in candidates if x != c]) for c in candidates])
    fork_quartiles = np.array(
        [_fork_distances(geometry, c, suspect, [x for x in candidates if x != c]) for c in candidates]
    )
    branches, low = fork_quartiles[:, 1], fork_quartiles[:, 0]
    rows = []
    for k, c in enumerate(candidates):
        others = [x for x in range(n) if x != k]
        angles = _angles(geometry, c, suspect, [candidates[x] for x in others])
        suspect_angles = _angles(geometry, suspect, c, [candidates[x] for x in others])
        next_distance = float(np.min(to_suspect[others])) if others else to_suspect[k] + 3.0
        rival_log = float(np.max(log[others, n, FORWARD])) if others else float(np.log(1e-4))
        nearer = distance[others, k] - distance[others, n]
        rows.append([
            *log[k, n], to_suspect[k], to_suspect[k] - to_suspect.min(), rank[k] / max(1, n - 1),
            np.clip(next_distance - to_suspect[k], -5, 5), *_summary(angles), *_summary(suspect_angles)[1:],
            np.log1p(len(others)), _mean(odds[k, others]), _mean(odds[n, others]), _mean(nearer),
            _mean((nearer < 0).astype(float)), _mean(order[k, others, NEITHER]), rival_log,
            log[k, n, FORWARD] - rival_log, odds[k, n] - (float(np.max(odds[others, n])) if others else 0.0),
            spread_at[k], spread_at[k] - spread_at.min(),
            branches[k], branches[k] - branches.min(), low[k], fork_quartiles[k, 2], low[k] - low.min(),
            *_exclusive_zeros(geometry, c, suspect),
        ])  # fmt: skip
    return np.array(rows)


def _log_distance(geometry: Geometry, a: int, b: int) -> float:
    d = 0.0 if a == b else geometry.squared_distance(a, b)
    return float(np.log(min(d, 10.0) + 1e-9))


def _angles(geometry: Geometry, corner: int, towards: int, others: Sequence[int]) -> list[float]:
    found = (geometry.cosine_at(corner, towards, x) for x in others)
    return [a for a in found if a is not None]


def _mean_cosine_between(geometry: Geometry, corner: int, others: Sequence[int]) -> float:
    """Mean cosine at a model between its relatives other than the suspect: near 0 where they branch off from it."""
    cosines = [geometry.cosine_at(corner, a, b) for i, a in enumerate(others) for b in others[i + 1 :]]
    known = [a for a in cosines if a is not None]
    return float(np.mean(known)) if known else 1.0


def _fork_distances(geometry: Geometry, corner: int, suspect: int, others: Sequence[int]) -> np.ndarray:
    """How far from a model the suspect branches off from the others, relative to its distance.

    The squared length to each fork is half of what two squared distances exceed the third by (Gromov's product). The
    suspect's own descendants branch off at the suspect, so that the lower quartile is informative where there are many.

    Returns:
        Lower quartile, median and upper quartile: about 0 for the parent, up to 1 for a sibling that moved much further
        than the suspect; 1 without others.
    """
    forks = []
    for x in others:
        cosine = geometry.cosine_at(corner, suspect, x)
        if cosine is not None:
            near, far = geometry.squared_distance(corner, suspect), geometry.squared_distance(corner, x)
            forks.append(cosine * float(np.sqrt(far / max(near, 1e-12))))
    return np.clip(np.quantile(forks, [0.25, 0.5, 0.75]), -2, 2) if forks else np.ones(3)


def _exclusive_zeros(geometry: Geometry, a: int, b: int) -> tuple[float, float]:
    """Shares of entries that are zero in one of two models only: what was pruned from one and not from the other."""
    shared = np.flatnonzero(geometry.shared_tensors(a, b))
    if not len(shared):
        return 0.0, 0.0
    tensors, values = geometry.entries.tensors, geometry.entries.values
    x, y = (np.concatenate([values[k, tensors[t].columns] for t in shared]) == 0 for k in (a, b))
    return float((x & ~y).mean()), float((y & ~x).mean())


def _summary(angles: Sequence[float]) -> tuple[float, float, float]:
    return (max(angles), float(np.mean(angles)), min(angles)) if angles else (-1.0, -1.0, -1.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
