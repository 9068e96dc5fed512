"""All that tells parents, learnt in order: pairs, families, thresholds; each from families that nothing else saw."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import Direction
from stemma.ancestry.parenthood import Parenthood, chosen
from stemma.training.direction import (
    Pair,
    Query,
    fit_direction,
    fit_parenthood,
    geometry_of,
    pairs,
    queries,
)
from stemma.training.lineage_families import pedigrees

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Families:
    """How many families of each kind are learnt from, one seed each, counted on from `seed`.

    Attributes:
        pairs: For the model of pairs: trees. As many mixed families are learnt from as well.
        parents: For the model of parenthood, likewise.
        thresholds: For the calibration of answers, likewise.
        seed: Of the first family.
        data: Data sets that children draw from; None is the kind's own.
    """

    pairs: Mapping[str, int] = field(default_factory=lambda: {"mlp": 80, "cnn": 24, "vit": 8, "lm": 5})
    parents: Mapping[str, int] = field(default_factory=lambda: {"mlp": 288, "cnn": 48, "vit": 6, "lm": 4})
    thresholds: Mapping[str, int] = field(default_factory=lambda: {"mlp": 96, "cnn": 32, "vit": 6, "lm": 4})
    seed: int = 3000
    data: tuple[str | None, ...] = (None,)

    def tasks(self, what: str) -> list[tuple[str, range, bool]]:
        """Kinds and seeds of one part, in pieces of sixteen families at most.

        Args:
            what: `pairs`, `parents` or `thresholds`.

        Returns:
            (kind, seeds, whether the families are mixed) pieces; no seed of a kind is in two parts.
        """
        parts = ("pairs", "parents", "thresholds")
        out = []
        for kind, count in getattr(self, what).items():
            first = self.seed + sum(getattr(self, p).get(kind, 0) for p in parts[: parts.index(what)])
            pieces = [range(at, min(at + 16, first + count)) for at in range(first, first + count, 16)]
            out += [(kind, piece, mixtures) for piece in pieces for mixtures in (False, True)]
        return out


def learn(
    families: Families,
    executor: Executor,
    *,
    direction: Direction | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Parenthood:
    """Train direction and parenthood on zoo families that nothing else has seen.

    Cost: about an hour on two cores for the default families when none is in the zoo's cache, fifteen minutes when all
    are.

    Args:
        families: How many of each kind.
        executor: Takes the pieces.
        direction: The model of pairs, where it was learnt before from the same families.
        seed: Of fits and draws.
        progress: Told what happens, how many pieces are done, and of how many.

    Returns:
        The model of parenthood with the model of pairs inside, calibrated; both carry what they learnt from.
    """
    told = progress or (lambda what, done, total: None)
    made: dict[str, Any] = {
        "families": {p: dict(getattr(families, p)) for p in ("pairs", "parents", "thresholds")},
        "first seed": families.seed,
        "data": [d or "digits" for d in families.data],
    }

    def collected(what: str, work: Callable[..., list[Any]], *given: Any) -> list[Any]:
        tasks = families.tasks(what)
        waiting = [executor.submit(work, *task, families.data, seed, *given) for task in tasks]
        out: list[Any] = []
        for i, one in enumerate(waiting):
            told(f"measuring families for {what}", i, len(waiting))
            out += one.result()
        return out

    if direction is None:
        known = collected("pairs", pairs_of)
        direction = fit_direction(known, seed, {**made, "pairs": len(known)})
    asked = collected("parents", queries_of, direction)
    parenthood = fit_parenthood(asked, direction, seed, {**made, "queries": len(asked)})
    held = collected("thresholds", queries_of, direction)
    return calibrated(parenthood, held_of(parenthood, held))


def pairs_of(kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int) -> list[Pair]:
    """The pairs of some families.

    Returns:
        As `stemma.training.direction.pairs` yields them.
    """
    return [
        pair
        for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures)
        for pair in pairs(pedigree.family, seed)
    ]


def queries_of(
    kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int, direction: Direction
) -> list[Query]:
    """The queries of some families, each family with two draws of who is enrolled.

    Returns:
        As `stemma.training.direction.queries` yields them.
    """
    out: list[Query] = []
    for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures):
        geometry = geometry_of(pedigree.family)
        for draw in (0, 1):
            out += queries(pedigree.family, direction, 2 * seed + draw, geometry=geometry)
    return out


COVERAGE_OF = (1, 3, 1 << 30)
"""Answers are calibrated apart by how many candidates there are, up to these numbers."""

WRONG, FALSE = 0.01, 0.02
"""Rates that thresholds are taken for: suspects, and orphans among them, for whom one is named that they do not come
from."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What was said of one suspect, and what is true.

    Attributes:
        query: The suspect and its relatives.
        probabilities: Of each relative.
    """

    query: Query
    probabilities: np.ndarray

    @property
    def of_the_truth(self) -> float:
        """The probability that was given to the parent, or to nobody here where it is nobody."""
        p = self.probabilities
        return float(max(0.0, 1 - p.sum()) if self.query.parent is None else p[self.query.parent])

    def comes_from(self, at: int | None) -> bool:
        """Whether the suspect comes from a relative, near or far."""
        return at is not None and (at == self.query.parent or at in self.query.ancestors)


@dataclass(frozen=True, eq=False)
class Held:
    """A suspect that was not learnt from, and the scores of its relatives.

    Attributes:
        query: The suspect and its relatives.
        scores: Of each relative, as trees give them.
    """

    query: Query
    scores: np.ndarray

    def answer(self, choice: Sequence[float]) -> Answer:
        """What is said of it."""
        return Answer(self.query, chosen(self.scores, choice))


def held_of(parenthood: Parenthood, queries_: Sequence[Query]) -> list[Held]:
    """The scores that a model gives to suspects.

    Returns:
        One per query.
    """
    return [Held(q, parenthood.trees.scores(q.rows)[:, 0]) for q in queries_]


def calibrated(
    parenthood: Parenthood, held: Sequence[Held], edges: Sequence[Sequence[float]] = ((0.0, 1.0), (0.0, 1.0))
) -> Parenthood:
    """Take the odds of nobody, the tables of parent sets, and from where a parent is named.

    Args:
        parenthood: The model.
        held: Suspects that it, or what stands for it, did not learn from; those that are `stood_for` do not count.
        edges: How often edges of family trees are right, as `right_by_probability` gives it; as stated unless given.

    Returns:
        The same model with its calibration.
    """
    held = [h for h in held if not h.query.stood_for]
    choice = _choice(held)
    sets = tables([h.answer(choice) for h in held])
    return Parenthood(parenthood.direction, _with(parenthood.trees, choice=choice, sets=sets, edges=edges))


ENOUGH = 1500
"""Suspects that the odds of nobody are taken from, at most."""


def _choice(held: Sequence[Held]) -> list[float]:
    """The three numbers of `chosen` under which what is true is likeliest."""
    from scipy.optimize import minimize

    some = held[:: -(-len(held) // ENOUGH)]

    def surprise(choice: np.ndarray) -> float:
        return float(-np.mean([np.log(max(h.answer(choice.tolist()).of_the_truth, 1e-9)) for h in some]))

    found = minimize(surprise, [1.0, 0.0, 0.0], method="Nelder-Mead", options={"maxiter": 120})
    return [round(float(v), 5) for v in found.x]


def tables(held: Sequence[Answer]) -> list[dict[str, Any]]:
    """Calibration by number of candidates.

    Args:
        held: Answers about suspects that were not learnt from.

    Returns:
        Quantiles of the probability that the truth was given, and the probability from which a parent is named.
    """
    out, least = [], 0
    for most in COVERAGE_OF:
        some = [a for a in held if least < len(a.probabilities) <= most]
        grid = np.quantile([a.of_the_truth for a in some], np.linspace(0, 1, 101)) if some else np.zeros(101)
        sure = max(_named_from(some, WRONG), _named_from([a for a in some if a.query.parent is None], FALSE))
        out.append({"candidates up to": most, "n": len(some), "named from": sure,
                    "of the truth": [round(float(v), 5) for v in grid]})  # fmt: skip
        least = most
    return out


def right_by_probability(stated: Sequence[float], right: Sequence[bool]) -> list[list[float]]:
    """How often edges of family trees are right, by the probability that they were drawn with.

    Args:
        stated: The probabilities.
        right: Whether the edge was.

    Returns:
        Probabilities and shares of right ones at them, both ascending (isotonic regression, in steps joined by lines).

    Source: Zadrozny and Elkan 2002.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(stated, kind="stable")
    x, y = np.asarray(stated, float)[order], np.asarray(right, float)[order]
    groups = np.array_split(np.arange(len(x)), max(1, len(x) // STEP))
    at, means = [float(x[g].mean()) for g in groups], np.array([y[g].mean() for g in groups])
    fitted = isotonic_regression(means, weights=np.array([len(g) for g in groups], float)).x
    return [[round(v, 4) for v in at], [round(float(v), 4) for v in fitted]]


STEP = 100
"""Edges that one share is taken of."""


def _named_from(held: Sequence[Answer], share: float) -> float:
    """The probability that, in all but a share of the cases, only what the suspect comes from reaches.

    Returns:
        At least one half; 1, which is never reached, where there are too few cases to show so small a share.
    """
    if len(held) * share < 1:
        return 1.0
    best = sorted(
        (float(a.probabilities.max()) for a in held if not a.comes_from(int(a.probabilities.argmax()))), reverse=True
    )
    allowed = int(share * len(held))
    return max(0.5, round(min(1.0, best[allowed] + 1e-5), 5)) if len(best) > allowed else 0.5


def _with(trees: BoostedTrees, **about: Any) -> BoostedTrees:
    return replace(trees, about={**trees.about, **about})
