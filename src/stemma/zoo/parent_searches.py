"""Searches for parents whose answers are known: lineages from which some parents were taken out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError
from stemma.zoo.lineages import Recipes
from stemma.zoo.recipe import Recipe

_ORPHANS = 25  # seeds of what is drawn here; those of lineages are beside it


@dataclass(frozen=True)
class ParentSearch:
    """Models whose parents are searched, and the models to search.

    Attributes:
        enrolled: Candidates.
        queries: Children to be traced.
        parent: The right answer for each query: a name among the enrolled, or None where the parent is not enrolled.
        siblings: Queries without parent that have a sibling among the enrolled.
    """

    enrolled: Recipes
    queries: Recipes
    parent: Mapping[str, str | None]
    siblings: frozenset[str]


def orphans(
    recipes: Mapping[str, Recipe], share: float = 0.2, seed: int = 0, *, siblings: bool = False
) -> ParentSearch:
    """A search in which some parents are left out.

    Every model without children here is a query, and every other model is enrolled; of a share of the parents of
    queries, all that was made from them becomes orphaned because they are not enrolled.

    Args:
        recipes: Lineages.
        share: Share of the parents of queries that are left out.
        seed: Of the choice.
        siblings: Enrol one child of every left-out parent instead of asking for it.

    Returns:
        The search.

    Raises:
        MisuseError: If the share is no share.
    """
    if not 0 <= share <= 1:
        raise MisuseError(f"the share of left-out parents must be from 0 to 1, but is {share}.")
    names = {r.digest: n for n, r in reversed(list(recipes.items()))}
    above = {n: [names[p.digest] for p in r.parents if p.digest in names] for n, r in recipes.items()}
    inner = {p for parents in above.values() for p in parents}
    queries = [n for n in recipes if n not in inner and above[n]]
    parents = sorted({p for n in queries for p in above[n]})
    chosen = np.random.default_rng([seed, _ORPHANS]).permutation(len(parents))[: round(share * len(parents))]
    left_out = {parents[i] for i in chosen}
    kept: dict[str, str] = {}
    for n in queries if siblings else ():
        for p in set(above[n]) & left_out:
            kept.setdefault(p, n)
    queried = [n for n in queries if n not in kept.values()]
    parent = {n: next((p for p in above[n] if p not in left_out), None) for n in queried}
    enrolled = {n: r for n, r in recipes.items() if n not in queried and n not in left_out}
    with_sibling = frozenset(n for n in queried if parent[n] is None and set(above[n]) & set(kept))
    return ParentSearch(enrolled, {n: recipes[n] for n in queried}, parent, with_sibling)
