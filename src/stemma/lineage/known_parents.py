"""Models whose parents are known beforehand: merges, and what was cut from a model that is here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stemma.types import RelationKind


@dataclass(frozen=True)
class Parents:
    """The parents of a model, known without a tree.

    Attributes:
        shares: Coefficient of each parent of a merge, by its position in the family; None of another relation.
        relation: What the model is to them.
        reason: How that is known, in one sentence.
    """

    shares: Mapping[int, float | None]
    relation: str = RelationKind.MERGED.value
    reason: str = ""


def apart(distances: np.ndarray, rows: list[int], known: Mapping[int, Parents]) -> list[list[int]]:
    """Models that form one tree: all without one of known parents above them, and each of those with its descendants.

    No tree holds a merge with all its parents, so it is taken out, with what descends from it: models that are nearer
    to it, or to another descendant of it, than to any model of another tree. Its own parents are not among them.

    Args:
        distances: Squared distances `[n, n]`.
        rows: Positions of the models that count.
        known: Parents by position.

    Returns:
        Positions of the members of each tree; a model of known parents comes first in its own.
    """
    own = {m: m for m in rows if m in known}
    rest = [r for r in rows if r not in own]
    if not own:
        return [rows]
    barred = {(p, m) for m in own for p in known[m].shares}
    whose: dict[int, int | None] = {r: None for r in rest}
    for _ in range(len(rows)):
        moved = False
        for r in rest:
            near = min((c for c in rows if c != r and (r, c) not in barred), key=lambda c: distances[r, c], default=r)
            goes = own.get(near, whose.get(near))
            if goes is not None and whose[r] is None and not _above(r, goes, known):
                whose[r], moved = goes, True
        if not moved:
            break
    out = [[m, *(r for r in rest if whose[r] == m)] for m in own]
    main = [r for r in rest if whose[r] is None]
    return [*([main] if main else []), *out]


def _above(node: int, merge: int, known: Mapping[int, Parents]) -> bool:
    """Whether a model is a parent of a merge, or of a merge that is a parent of it, and so on."""
    todo, seen = [merge], set()
    while todo:
        m = todo.pop()
        if node in known[m].shares:
            return True
        seen.add(m)
        todo += [p for p in known[m].shares if p in known and p not in seen]
    return False
