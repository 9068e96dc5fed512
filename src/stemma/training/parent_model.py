"""Trains direction and parent models in order, and calibrates them, each on families that nothing else used."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import DirectionModel
from stemma.ancestry.parent_model import ParentModel, choice_probabilities
from stemma.training.direction import Pair, Query, fit_direction, fit_parent_model, geometry_of, pairs, queries
from stemma.training.lineage_families import pedigrees

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Families:
    """Number of families of each kind, one seed each, counted on from `seed`.

    Attributes:
        pairs: For the classifier of pairs: trees, and as many mixed families.
        parents: For the parent model, likewise.
        thresholds: For the calibration of answers, likewise.
        seed: Of the first family.
        data: Data sets that children draw from; None is the kind's own.
    """

    pairs: Mapping[str, int] = field(default_factory=lambda: {"mlp": 80, "cnn": 24, "vit": 8, "lm": 5})
    parents: Mapping[str, int] = field(default_factory=lambda: {"mlp": 288, "cnn": 48, "vit": 6, "lm": 4})
    thresholds: Mapping[str, int] = field(default_factory=lambda: {"mlp": 96, "cnn": 32, "vit": 6, "lm": 4})
    seed: int = 3000
    data: tuple[str | None, ...] = (None,)

    def tasks(self, part: str) -> list[tuple[str, range, bool]]:
        """(kind, seeds, mixed) pieces of one part, of at most sixteen families; no seed of a kind is in two parts."""
        parts = ("pairs", "parents", "thresholds")
        out = []
        for kind, count in getattr(self, part).items():
            first = self.seed + sum(getattr(self, p).get(kind, 0) for p in parts[: parts.index(part)])
            pieces = [range(at, min(at + 16, first + count)) for at in range(first, first + count, 16)]
            out += [(kind, piece, mixtures) for piece in pieces for mixtures in (False, True)]
        return out


def train_parent_model(
    families: Families,
    executor: Executor,
    *,
    direction: DirectionModel | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ParentModel:
    """Train direction and parent models on zoo families, and calibrate them.

    Cost: about an hour on two cores for the default families when none is in the zoo's cache, fifteen minutes when all
    are.

    Args:
        families: How many of each kind.
        executor: Runs the pieces.
        direction: The classifier of pairs, if it was trained before on the same families.
        seed: Of fits and draws.
        progress: Called with what happens, how many pieces are done, and of how many.

    Returns:
        The calibrated parent model with the classifier of pairs inside; both record what they were trained on.
    """
    report = progress or (lambda part, done, total: None)
    notes: dict[str, Any] = {
        "families": {p: dict(getattr(families, p)) for p in ("pairs", "parents", "thresholds")},
        "first seed": families.seed,
        "data": [d or "digits" for d in families.data],
    }

    def collected(part: str, work: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        tasks = families.tasks(part)
        futures = [executor.submit(work, *task, families.data, seed, *arguments) for task in tasks]
        out: list[Any] = []
        for i, future in enumerate(futures):
            report(f"measuring families for {part}", i, len(futures))
            out += future.result()
        return out

    if direction is None:
        known = collected("pairs", labelled_pairs)
        direction = fit_direction(known, seed, {**notes, "pairs": len(known)})
    parent_queries = collected("parents", family_queries, direction)
    parent_model = fit_parent_model(parent_queries, direction, seed, {**notes, "queries": len(parent_queries)})
    scored = collected("thresholds", family_queries, direction)
    return calibrate(parent_model, score_queries(parent_model, scored))


def labelled_pairs(
    kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int
) -> list[Pair]:
    """The pairs of some families, as `stemma.training.direction.pairs` yields them."""
    return [
        pair
        for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures)
        for pair in pairs(pedigree.family, seed)
    ]


def family_queries(
    kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int, direction: DirectionModel
) -> list[Query]:
    """The queries of some families, each family with two draws of what is enrolled."""
    out: list[Query] = []
    for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures):
        geometry = geometry_of(pedigree.family)
        for draw in (0, 1):
            out += queries(pedigree.family, direction, 2 * seed + draw, geometry=geometry)
    return out


CANDIDATE_RANGES = (1, 3, 1 << 30)
"""Answers are calibrated separately by number of candidates, up to these numbers."""

MAX_WRONG_RATE, MAX_FALSE_RATE = 0.01, 0.02
"""Rates that thresholds are set for: suspects, and orphans among them, for whom a model is named that is no ancestor.
"""


@dataclass(frozen=True, eq=False)
class Answer:
    """The probability of each relative of one suspect to be its parent, beside the truth."""

    query: Query
    probabilities: np.ndarray

    @property
    def probability_of_truth(self) -> float:
        """The probability that was given to the parent, or to none where the parent is missing."""
        p = self.probabilities
        return float(max(0.0, 1 - p.sum()) if self.query.parent is None else p[self.query.parent])

    def comes_from(self, at: int | None) -> bool:
        """Whether the suspect comes from a relative, near or far."""
        return at is not None and (at == self.query.parent or at in self.query.ancestors)


@dataclass(frozen=True, eq=False)
class ScoredQuery:
    """A suspect that was not trained on, and the scores of its relatives as the trees give them."""

    query: Query
    scores: np.ndarray

    def answer(self, choice: Sequence[float]) -> Answer:
        """The answer under some choice parameters."""
        return Answer(self.query, choice_probabilities(self.scores, choice))


def score_queries(parent_model: ParentModel, queries_: Sequence[Query]) -> list[ScoredQuery]:
    """The scores that a model gives to suspects."""
    return [ScoredQuery(q, parent_model.trees.scores(q.rows)[:, 0]) for q in queries_]


def calibrate(
    parent_model: ParentModel,
    scored: Sequence[ScoredQuery],
    edges: Sequence[Sequence[float]] = ((0.0, 1.0), (0.0, 1.0)),
) -> ParentModel:
    """Calibrate a model on suspects that it was not trained on: score of none, parent sets, and naming threshold."""
    scored = [h for h in scored if not h.query.ambiguous]
    choice = _fit_choice(scored)
    sets = calibration_tables([h.answer(choice) for h in scored])
    return ParentModel(parent_model.direction, _with_notes(parent_model.trees, choice=choice, sets=sets, edges=edges))


MAX_CHOICE_QUERIES = 1500
"""Suspects that the score of none is fitted on, at most."""


def _fit_choice(scored: Sequence[ScoredQuery]) -> list[float]:
    """The three parameters of `choice_probabilities` that maximise the likelihood of the truth."""
    from scipy.optimize import minimize

    selected = scored[:: -(-len(scored) // MAX_CHOICE_QUERIES)]

    def negative_log_likelihood(choice: np.ndarray) -> float:
        return float(-np.mean([np.log(max(h.answer(choice.tolist()).probability_of_truth, 1e-9)) for h in selected]))

    found = minimize(negative_log_likelihood, [1.0, 0.0, 0.0], method="Nelder-Mead", options={"maxiter": 120})
    return [round(float(v), 5) for v in found.x]


def calibration_tables(scored: Sequence[Answer]) -> list[dict[str, Any]]:
    """Quantiles of the true probability, and the naming threshold, by number of candidates."""
    out, least = [], 0
    for most in CANDIDATE_RANGES:
        selected = [a for a in scored if least < len(a.probabilities) <= most]
        grid = (
            np.quantile([a.probability_of_truth for a in selected], np.linspace(0, 1, 101))
            if selected
            else np.zeros(101)
        )
        threshold = max(
            _naming_threshold(selected, MAX_WRONG_RATE),
            _naming_threshold([a for a in selected if a.query.parent is None], MAX_FALSE_RATE),
        )
        out.append({"candidates up to": most, "n": len(selected), "named from": threshold,
                    "of the truth": [round(float(v), 5) for v in grid]})  # fmt: skip
        least = most
    return out


def right_by_probability(stated: Sequence[float], right: Sequence[bool]) -> list[list[float]]:
    """Share of right edges of family trees by the probability that they were drawn with.

    Args:
        stated: The probabilities.
        right: Whether the edge was right.

    Returns:
        Probabilities and shares of right ones at them, both ascending (isotonic regression, in steps joined by lines).

    Source: Zadrozny and Elkan 2002.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(stated, kind="stable")
    x, y = np.asarray(stated, float)[order], np.asarray(right, float)[order]
    groups = np.array_split(np.arange(len(x)), max(1, len(x) // EDGES_PER_STEP))
    at, means = [float(x[g].mean()) for g in groups], np.array([y[g].mean() for g in groups])
    fitted = isotonic_regression(means, weights=np.array([len(g) for g in groups], float)).x
    return [[round(v, 4) for v in at], [round(float(v), 4) for v in fitted]]


EDGES_PER_STEP = 100
"""Edges that one share is computed from."""


def _naming_threshold(scored: Sequence[Answer], share: float) -> float:
    """Smallest probability (at least .5; 1 with few cases) that all but a share of non-ancestors stay below."""
    if len(scored) * share < 1:
        return 1.0
    best = sorted(
        (float(a.probabilities.max()) for a in scored if not a.comes_from(int(a.probabilities.argmax()))), reverse=True
    )
    allowed = int(share * len(scored))
    return max(0.5, round(min(1.0, best[allowed] + 1e-5), 5)) if len(best) > allowed else 0.5


def _with_notes(trees: BoostedTrees, **about: Any) -> BoostedTrees:
    return replace(trees, about={**trees.about, **about})
