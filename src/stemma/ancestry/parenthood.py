"""Which relative is the parent of a suspect, or none of those at hand: the family's geometry, weighed.

Distances alone do not tell: two models fine-tuned on one task from one parent can be nearer to each other than to it.
The parent is where the other relatives branch off: seen from it, the suspect lies at right angles to them; and it comes
before them all. A suspect whose relatives are siblings only has no such place among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import BACKWARD, FORWARD, NEITHER, Direction
from stemma.ancestry.geometry import Geometry

COLUMNS = (
    "before", "after", "neither", "distance", "beyond the nearest", "rank", "gap", "largest angle", "mean angle",
    "smallest angle", "mean angle at the suspect", "smallest angle at the suspect", "relatives", "ancestry",
    "ancestry of the suspect", "centrality", "nearer to relatives", "apart from relatives", "best other",
    "before the best other", "lead over the others", "hub", "hub beyond the best", "branch", "branch beyond the best",
    "low branch", "high branch", "low branch beyond the best", "zeros of its own", "zeros of the suspect",
)  # fmt: skip
"""What the trees look at, for one candidate."""

NEAREST = 8
"""Candidates that are looked at, the nearest first."""

HARDLY = 0.25
"""Share of the way to the suspect below which two candidates hardly differ: which of them is the parent, weights do not
tell, and they are one candidate."""


def groups(geometry: Geometry, suspect: int, candidates: Sequence[int]) -> list[list[int]]:
    """Candidates that hardly differ from one another, beside how far the suspect is from them, as one.

    Args:
        geometry: Of the suspect and its relatives.
        suspect: Its position.
        candidates: Positions of its relatives.

    Returns:
        Groups of positions, the nearest first, and in each the nearest first; candidates that share nothing with the
        suspect are in none.
    """
    distance = {c: geometry.squared_distance(suspect, c) for c in candidates}
    out: list[list[int]] = []
    for c in sorted((c for c in candidates if np.isfinite(distance[c])), key=lambda c: (distance[c], c)):
        home = next((g for g in out if geometry.squared_distance(g[0], c) <= HARDLY**2 * distance[g[0]]), None)
        out.append([c]) if home is None else home.append(c)
    return out


def complete(geometry: Geometry, suspect: int, candidates: Sequence[int]) -> list[int]:
    """Candidates that lack no more than one tensor (a head) of what the suspect has in common with any of them.

    A model does not regain units or layers, so what was cut is nobody's parent who has them.

    Args:
        geometry: Of the suspect and its relatives.
        suspect: Its position.
        candidates: Positions of its relatives.

    Returns:
        Positions of those that may be its parents.
    """
    there = geometry.entries.present[list(candidates)]
    wanted = there.any(axis=0) & geometry.entries.present[suspect]
    return [c for c, has in zip(candidates, there, strict=True) if (wanted & ~has).sum() <= 1]


@dataclass(frozen=True, eq=False)
class Parenthood:
    """Asks boosted trees which of several relatives is the parent of one.

    Attributes:
        direction: For pairs.
        trees: One output, trained on families with known history, parents often left out (`stemma.training.direction`).
    """

    direction: Direction
    trees: BoostedTrees

    def probabilities(self, geometry: Geometry, suspect: int, candidates: Sequence[int]) -> np.ndarray:
        """How likely each candidate is the parent of the suspect: the nearest of its ancestors that are here.

        Cost: the pairs among the nearest eight candidates and the suspect, about 0.3 s for small networks.

        Args:
            geometry: Of the suspect and its relatives.
            suspect: Its position.
            candidates: Positions of relatives, no copies of the suspect among them.

        Returns:
            `float64 [candidates]`; what sums to less than 1 is left for none of them. 0 for those not looked at; of
            candidates that hardly differ (`groups`) the nearest stands for all.
        """
        firsts = [g[0] for g in groups(geometry, suspect, candidates)[:NEAREST]]
        out = np.zeros(len(candidates))
        if firsts:
            at = {c: k for k, c in enumerate(candidates)}
            told = self.of_rows(features(geometry, self.direction, suspect, firsts))
            out[[at[c] for c in firsts]] = _by_counters(told, geometry.counters, suspect, firsts)
        return out

    def chances(self, geometry: Geometry, rows: Sequence[int]) -> np.ndarray:
        """How likely each of some relatives was made from each other one.

        Of candidates that hardly differ the one stands for all from which the others are the likeliest made.

        Cost: the pairs among every model and its nearest eight; about a second for twenty small models.

        Args:
            geometry: Of the relatives.
            rows: Positions of those that are asked about, and that may be parents.

        Returns:
            As `stemma.ancestry.trees.rooting.Chances`.
        """
        n, at = len(rows), {r: k for k, r in enumerate(rows)}
        out, alike = np.zeros((n + 1, n)), {}
        for c, row in enumerate(rows):
            others = complete(geometry, row, [r for r in rows if r != row])
            out[[at[r] for r in others], c] = self.probabilities(geometry, row, others)
            alike[c] = [[at[r] for r in g] for g in groups(geometry, row, others) if len(g) > 1]
        own = out.copy()
        for c, some in alike.items():
            for group in some:
                first = max(group, key=lambda k: own[k, group].sum())
                out[group[0], c], out[first, c] = 0.0, own[group[0], c]
        out[n] = np.maximum(1 - out[:n].sum(axis=0), 0.0)
        return out

    def confidence(self, probability: float) -> float:
        """How often an edge is right that a family tree was drawn with, as calibrated on kinds that were left out.

        Among all models of a family the parent of some is not there, and one of their siblings looks most like it.

        Args:
            probability: Of that parent, as `chances` gives it.

        Returns:
            A share of edges.
        """
        stated, right = self.trees.about["edges"]
        return float(np.interp(probability, stated, right))

    def of_pair(self, geometry: Geometry, a: int = 0, b: int = 1) -> tuple[float, float]:
        """How likely each of two models alone is the parent of the other: what a trace of one among the other says.

        Returns:
            For a and for b, of sum at most 1; what is left is for neither.
        """
        forth, back = (float(self.probabilities(geometry, s, [c])[0]) for c, s in ((a, b), (b, a)))
        whole = max(1.0, forth + back)
        return forth / whole, back / whole

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The same for features at hand, of one suspect.

        Args:
            rows: `[candidates, len(COLUMNS)]`.

        Returns:
            `float64 [candidates]`, of sum at most 1.
        """
        return chosen(self.trees.scores(rows)[:, 0], self.trees.about["choice"])

    def named_from(self, candidates: int) -> float:
        """The probability from which a relative is called the parent, as calibrated.

        Args:
            candidates: How many there are.

        Returns:
            The probability.
        """
        return float(self._calibration(candidates)["named from"])

    def _calibration(self, candidates: int) -> Mapping[str, Any]:
        return next(t for t in self.trees.about["sets"] if candidates <= t["candidates up to"])

    def least(self, candidates: int, coverage: float) -> float:
        """The probability from which a candidate, or an unknown ancestor, belongs to the set that holds the parent.

        Split conformal prediction: on families that the trees did not learn from, and of kinds of networks that they
        did not learn from, the true one was as probable in this share of the cases.

        Args:
            candidates: How many there are.
            coverage: Share of suspects whose set is to hold the truth.

        Returns:
            The probability.

        Source: Sadinle, Lei and Wasserman 2019 (arXiv:1609.00451); Vovk et al. 2005 for the split.
        """
        return float(np.quantile(self._calibration(candidates)["of the truth"], 1 - coverage))

    def parent_set(self, probabilities: Sequence[float], coverage: float) -> tuple[list[int], bool]:
        """The smallest set that holds the parent, with a stated coverage.

        Args:
            probabilities: Of each candidate, copies counted once.
            coverage: Share of suspects whose set is to hold the truth.

        Returns:
            Positions of the candidates in it, the likeliest first, and whether an unknown ancestor is in it.
        """
        unknown = max(0.0, 1 - float(sum(probabilities)))
        least = self.least(len(probabilities), coverage)
        kept = [k for k, p in enumerate(probabilities) if p >= least]
        if not kept and unknown < least:
            kept = [int(np.argmax(probabilities))] if max(probabilities) >= unknown else []
        return sorted(kept, key=lambda k: -probabilities[k]), unknown >= least or not kept


def _by_counters(told: np.ndarray, counters: Sequence[int], suspect: int, candidates: Sequence[int]) -> np.ndarray:
    """Probabilities where files count batches: who has seen more of them than the suspect is hardly its parent."""
    own = counters[suspect] if counters else 0
    later = np.array([bool(own) and counters[c] > own for c in candidates])
    weighed = np.where(later, LATER, 1.0) * told
    return weighed / (weighed.sum() + max(0.0, 1 - float(told.sum())) + 1e-12)


LATER = 0.1
"""How many times less likely a parent is that was trained on more batches than its child: counters may start anew."""


def chosen(scores: np.ndarray, choice: Sequence[float]) -> np.ndarray:
    """Probabilities of candidates by their scores: one of them is the parent, or none (a conditional logit).

    Args:
        scores: One per candidate.
        choice: What scores are multiplied by; the score of none, and what is added to it per logarithm of candidates.

    Returns:
        `float64 [candidates]`; what is left to 1 is for none.
    """
    scale, none, by_number = choice
    all_ = np.append(scale * scores, none + by_number * np.log(max(1, len(scores))))
    e = np.exp(all_ - all_.max())
    return (e / e.sum())[:-1]


def features(geometry: Geometry, direction: Direction, suspect: int, candidates: Sequence[int]) -> np.ndarray:
    """What the family shows of each candidate, `COLUMNS` in order.

    Args:
        geometry: Of the suspect and its relatives.
        direction: For pairs.
        suspect: Its position.
        candidates: Positions of its relatives.

    Returns:
        `float64 [candidates, len(COLUMNS)]`; -1 where an angle has no other relative to be seen by.
    """
    n = len(candidates)
    everyone = [*candidates, suspect]
    pairs = [(i, j) for i in range(n + 1) for j in range(i + 1, n + 1)]
    p = direction.probabilities(geometry, [(everyone[i], everyone[j]) for i, j in pairs])
    before = np.zeros((n + 1, n + 1, 3))
    for (i, j), row in zip(pairs, p, strict=True):
        before[i, j], before[j, i] = row, row[[BACKWARD, FORWARD, NEITHER]]
    log = np.log(before + 1e-4)
    lead = log[:, :, FORWARD] - log[:, :, BACKWARD]
    distance = np.array([[_log_distance(geometry, a, b) for b in everyone] for a in everyone])
    to_suspect = distance[:n, n]
    order = np.argsort(np.argsort(to_suspect, kind="stable"), kind="stable")
    hubs = np.array([_hub(geometry, c, [x for x in candidates if x != c]) for c in candidates])
    forks = np.array([_branches(geometry, c, suspect, [x for x in candidates if x != c]) for c in candidates])
    branches, low = forks[:, 1], forks[:, 0]
    rows = []
    for k, c in enumerate(candidates):
        others = [x for x in range(n) if x != k]
        seen = _angles(geometry, c, suspect, [candidates[x] for x in others])
        from_suspect = _angles(geometry, suspect, c, [candidates[x] for x in others])
        rest = float(np.min(to_suspect[others])) if others else to_suspect[k] + 3.0
        rival = float(np.max(log[others, n, FORWARD])) if others else float(np.log(1e-4))
        nearer = distance[others, k] - distance[others, n]
        rows.append([
            *log[k, n], to_suspect[k], to_suspect[k] - to_suspect.min(), order[k] / max(1, n - 1),
            np.clip(rest - to_suspect[k], -5, 5), *_summary(seen), *_summary(from_suspect)[1:], np.log1p(len(others)),
            _mean(lead[k, others]), _mean(lead[n, others]), _mean(nearer), _mean((nearer < 0).astype(float)),
            _mean(before[k, others, NEITHER]), rival, log[k, n, FORWARD] - rival,
            lead[k, n] - (float(np.max(lead[others, n])) if others else 0.0), hubs[k], hubs[k] - hubs.min(),
            branches[k], branches[k] - branches.min(), low[k], forks[k, 2], low[k] - low.min(),
            *_own_zeros(geometry, c, suspect),
        ])  # fmt: skip
    return np.array(rows)


def _log_distance(geometry: Geometry, a: int, b: int) -> float:
    d = 0.0 if a == b else geometry.squared_distance(a, b)
    return float(np.log(min(d, 10.0) + 1e-9))


def _angles(geometry: Geometry, corner: int, towards: int, others: Sequence[int]) -> list[float]:
    found = (geometry.cosine_at(corner, towards, x) for x in others)
    return [a for a in found if a is not None]


def _hub(geometry: Geometry, corner: int, others: Sequence[int]) -> float:
    """Mean cosine at a model between its other relatives, the suspect apart: near 0 where they branch off from it."""
    found = [geometry.cosine_at(corner, a, b) for i, a in enumerate(others) for b in others[i + 1 :]]
    told = [a for a in found if a is not None]
    return float(np.mean(told)) if told else 1.0


def _branches(geometry: Geometry, corner: int, suspect: int, others: Sequence[int]) -> np.ndarray:
    """How far the places where the suspect leaves the others lie from a model, relative to its distance: 0 at it.

    Half of what two squared distances exceed the third by is the squared length to the fork (Gromov's product). The
    suspect's own descendants leave it at itself, so the lower quartile over the other relatives tells more than the
    median where there are many of them.

    Returns:
        Lower quartile, median and upper quartile: about 0 for the parent, up to 1 for a sibling that moved much further
        than the suspect; 1 without others.
    """
    told = []
    for x in others:
        cosine = geometry.cosine_at(corner, suspect, x)
        if cosine is not None:
            near, far = geometry.squared_distance(corner, suspect), geometry.squared_distance(corner, x)
            told.append(cosine * float(np.sqrt(far / max(near, 1e-12))))
    return np.clip(np.quantile(told, [0.25, 0.5, 0.75]), -2, 2) if told else np.ones(3)


def _own_zeros(geometry: Geometry, a: int, b: int) -> tuple[float, float]:
    """Shares of entries that are zero in one of two models only: what was cut from one was not cut from the other."""
    kept = np.flatnonzero(geometry.shared(a, b))
    if not len(kept):
        return 0.0, 0.0
    tensors, values = geometry.entries.tensors, geometry.entries.values
    x, y = (np.concatenate([values[k, tensors[t].columns] for t in kept]) == 0 for k in (a, b))
    return float((x & ~y).mean()), float((y & ~x).mean())


def _summary(angles: Sequence[float]) -> tuple[float, float, float]:
    return (max(angles), float(np.mean(angles)), min(angles)) if angles else (-1.0, -1.0, -1.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
