"""All that tells parents, learnt in order: pairs, families, thresholds; each from families that nothing else saw."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.lineage.boosted_trees import BoostedTrees
from stemma.lineage.direction import FORWARD, Direction
from stemma.lineage.parenthood import Parenthood
from stemma.training.direction import (
    Pair,
    Query,
    fit_direction,
    fit_parenthood,
    geometry_of,
    pairs,
    queries,
)
from stemma.training.pedigrees import pedigrees

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Families:
    """How many families of each kind are learnt from, one seed each, counted on from `seed`.

    Attributes:
        pairs: For the model of pairs: trees. As many mixed families are learnt from as well.
        parents: For the model of parenthood, likewise.
        thresholds: For the thresholds of both, likewise.
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
        The model of parenthood with the model of pairs inside; both carry their threshold and what they learnt from.
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
    held = collected("thresholds", both_of, direction)
    held_pairs, held_queries = [h for h in held if isinstance(h, Pair)], [h for h in held if isinstance(h, Query)]
    direction = Direction(_with(direction.trees, threshold=pair_threshold(direction, held_pairs)))
    trees = _with(parenthood.trees, threshold=parent_threshold(parenthood, held_queries))
    return Parenthood(direction, trees)


def pairs_of(kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int) -> list[Pair]:
    """The pairs of some families.

    Returns:
        As `stemma.training.direction.pairs` yields them.
    """
    return [pair for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures) for pair in pairs(pedigree, seed)]


def queries_of(
    kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int, direction: Direction
) -> list[Query]:
    """The queries of some families, each family with two draws of who is enrolled.

    Returns:
        As `stemma.training.direction.queries` yields them.
    """
    out: list[Query] = []
    for pedigree in pedigrees(kind, seeds, data=data, mixtures=mixtures):
        geometry = geometry_of(pedigree)
        for draw in (0, 1):
            out += queries(pedigree, direction, 2 * seed + draw, geometry=geometry)
    return out


def both_of(
    kind: str, seeds: Sequence[int], mixtures: bool, data: Sequence[str | None], seed: int, direction: Direction
) -> list[Pair | Query]:
    """Pairs and queries of some families.

    Returns:
        All of them.
    """
    return [*pairs_of(kind, seeds, mixtures, data, seed), *queries_of(kind, seeds, mixtures, data, seed, direction)]


WRONG, FALSE = 0.02, 0.02
"""Rates that the thresholds are taken for: models called ancestor of one that does not descend from them, among pairs
that a registry holds; relatives called the parent where the parent is not enrolled."""


def pair_threshold(direction: Direction, held: Sequence[Pair]) -> float:
    """The probability from which a pair is given a direction.

    Args:
        direction: The model of pairs.
        held: Pairs of families that it did not learn from.

    Returns:
        The smallest at which at most `WRONG` of the pairs without descent are given one.
    """
    told = direction.of_features([p.features for p in held])[:, :2].max(axis=1)
    apart = np.array([p.label != FORWARD for p in held])
    return _quantile(told[apart], WRONG)


def parent_threshold(parenthood: Parenthood, held: Sequence[Query]) -> float:
    """The probability from which a relative is called the parent.

    Args:
        parenthood: The model of parenthood.
        held: Queries of families that it did not learn from; those made as children usually are count.

    Returns:
        The smallest at which at most `FALSE` of the queries without parent are given one that is no ancestor.
    """
    best = []
    for query in held:
        if query.parent is None and query.usual:
            p = parenthood.of_rows(query.rows)
            at = int(p.argmax())
            best.append(0.0 if at in query.ancestors else float(p[at]))
    return _quantile(np.array(best), FALSE)


def _quantile(values: np.ndarray, share: float) -> float:
    """A value that at most a share of the values reaches."""
    if not len(values):
        return 0.5
    ordered = np.sort(values)[::-1]
    allowed = int(np.floor(share * len(values)))
    return float(min(0.99, np.nextafter(ordered[min(allowed, len(ordered) - 1)], 1) + 1e-6))


def _with(trees: BoostedTrees, **about: Any) -> BoostedTrees:
    return replace(trees, about={**trees.about, **about})
