"""Models whose parents are known beforehand: merges, and what was cut from a model that is here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stemma.ancestry.merges.regression import MergeRegression, comparable
from stemma.ancestry.trees.additive_tree import spanning_tree
from stemma.ancestry.trees.distances import Distances
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of
from stemma.types import RelationKind

NEAREST, LOOKED_AT = 24, 12
"""Relatives of a model that its parents are looked for among, and how many of them are weighed together."""

BETWEEN = -0.2
"""Cosine at a model between two others below which it lies between them, as only a merge does."""

PARALLEL = 0.6
"""Cosine of two differences without a common end above which the one was added where the other was."""

CUT, EQUAL = 0.05, 1e-3
"""Share of zeros from which a model may have been pruned; largest difference elsewhere, in root mean squares."""


BEYOND = 2 / 3
"""Share of the way between a merge and a model by which others are farther from one of them than from the other, if the
one was made from the other: half way between what a child shows and what the sibling of a parent shows."""

MOST = 0.9
"""Quantile of those shares that is looked at."""


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


def known_parents(family: Entries, distances: Distances, method: MergeRegression | None = None) -> dict[int, Parents]:
    """Parents that weights exhibit: of models pruned from one that is here, and of merges exact down to rounding.

    A merge that was trained on is not among them: a model between two others on one way of training looks like it.

    Cost: some passes over each pruned model and its nearest relatives; a regression for each model that geometry makes
    suspect of being a merge, see `MergeRegression`.

    Args:
        family: The same entries of every model.
        distances: Between them.
        method: Takes merges apart; with its defaults unless given.

    Returns:
        Parents by position, of those models only.
    """
    out = _pruned(family, distances)
    method = method or MergeRegression()

    def taken_apart(child: int, barred: set[int]) -> Parents | None:
        near = [j for j in _likely(distances, child) if j not in barred and _enough(family, child, j)][:LOOKED_AT]
        if len(near) < 2:
            return None
        columns, tensors, start = [], [], 0
        slots = [family.tensors[t] for t in comparable(family, child, near)]
        for slot in slots:
            columns.append(np.arange(slot.start, slot.stop))
            tensors.append((slot.name, start, start := start + slot.stop - slot.start))
        if not tensors:
            return None
        kept = np.concatenate(columns)
        spans = [(start, stop, slot.rows) for (_, start, stop), slot in zip(tensors, slots, strict=True)]
        if not may_be_exact(family.values[child, kept], family.values[near][:, kept], spans):
            return None
        found = method.decompose(family.values[child, kept], family.values[near][:, kept], tensors=tensors)
        if found is None or not found.certain or len(found.parents) < 2:
            return None
        shares = {near[p.position]: round(p.coefficient, 4) for p in found.parents}
        return Parents(shares, RelationKind.MERGED.value, found.reason)

    waiting = [child for child in suspects(distances) if child not in out]
    merged = {child: found for child in waiting if (found := taken_apart(child, set()))}
    for child, found in merged.items():
        rest = taken_apart(child, set(merged)) if set(found.shares) & set(merged) else None
        out[child] = rest or found  # a merge of a merge is one of the first models too
    return {child: p for child, p in out.items() if not _loops(child, out)}


SAMPLED, LEFT, STAYED = 512, 1e-3, 0.005
"""Entries of a tensor that a merge is looked for in first; share of what moved that a sum may leave of it; and share of
entries, in rows that moved, that are still a candidate's."""


def may_be_exact(child: np.ndarray, candidates: np.ndarray, tensors: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a model may be a merge of others down to rounding, as far as a look shows that costs little.

    Tensor by tensor it is a sum of them (linear, SLERP, layers of several), or single entries were left where they
    stood in one of them (TIES, DARE).

    Args:
        child: `[k]`.
        candidates: `[n, k]`.
        tensors: First column, column after the last, and number of rows of each tensor.

    Returns:
        False where neither is so.
    """
    moved, left, rounding = 0.0, 0.0, rounding_of(child[child != 0])
    for start, stop, rows in tensors:
        step = max(1, (stop - start) // SAMPLED)
        y = child[start:stop:step].astype(np.float64)
        x = candidates[:, start:stop:step].astype(np.float64)
        change, ways = y - x[0], (x[1:] - x[0]).T
        rest = change - ways @ np.linalg.lstsq(ways, change, rcond=None)[0]
        moved += float(change @ change)
        left += max(0.0, float(rest @ rest) - 4 * rounding**2 * float(y @ y))
        still = child[start:stop].reshape(rows, -1) == candidates[:, start:stop].reshape(len(candidates), rows, -1)
        some = ~still.all(axis=2)
        if any(len(s := still[i][some[i]]) and STAYED < s.mean() < 1 - STAYED for i in range(len(candidates))):
            return True
    return left <= LEFT * moved


def _enough(family: Entries, a: int, b: int) -> bool:
    """Whether two models have most of their tensors in common."""
    both = family.present[a] & family.present[b]
    return 2 * int(both.sum()) > max(int(family.present[a].sum()), int(family.present[b].sum()))


def _loops(child: int, known: Mapping[int, Parents]) -> bool:
    """Whether a model would come from itself."""
    todo, seen = list(known[child].shares), set()
    while todo:
        v = todo.pop()
        if v == child:
            return True
        if v in known and v not in seen:
            seen.add(v)
            todo += known[v].shares
    return False


def suspects(distances: Distances) -> list[int]:
    """Models that may be merges: they lie between two others, or what leads to them was added elsewhere too.

    Returns:
        Positions.
    """
    d, out = distances.squared, []
    for m in range(len(d)):
        near = _near(distances, m)
        same = distances.same[m].sum() > 1
        if len(near) < 2 or same:
            continue
        if _cosines(distances, m, near).min() < BETWEEN or _added_twice(d, m, near[:LOOKED_AT]):
            out.append(m)
    return out


def _cosines(distances: Distances, m: int, near: list[int]) -> np.ndarray:
    """Cosines at a model between others."""
    d = distances.squared
    g = (d[m, near][:, None] + d[m, near] - d[np.ix_(near, near)]) / 2
    size = np.sqrt(np.outer(d[m, near], d[m, near]))
    return np.divide(g, size, out=np.ones_like(g), where=size > 0)


def _likely(distances: Distances, m: int) -> list[int]:
    """The nearest models; first those between which the model lies, the straighter the earlier."""
    near = _near(distances, m)
    between = _cosines(distances, m, near).min(axis=0, initial=1.0)
    order = sorted(range(len(near)), key=lambda k: (round(float(between[k]), 1) if between[k] < BETWEEN else 1.0, k))
    return [near[k] for k in order]


def _near(distances: Distances, m: int) -> list[int]:
    """The nearest models that are not the same, up to `NEAREST`."""
    d = distances.squared[m]
    order = [int(j) for j in np.argsort(d, kind="stable") if j != m and not distances.same[m, j]]
    return order[:NEAREST]


def _added_twice(d: np.ndarray, m: int, near: list[int]) -> bool:
    """Whether the way from the nearest model to this one is also that between two others, as sums of two are."""
    a = near[0]
    for b, p in combinations(near[1:], 2):
        size = np.sqrt(d[m, a] * d[b, p])
        inner = abs(d[m, p] + d[a, b] - d[m, b] - d[a, p]) / 2
        if size > 0 and inner / size > PARALLEL:
            return True
    return False


def _pruned(family: Entries, distances: Distances) -> dict[int, Parents]:
    """Models that are zero where another is not, and equal to it elsewhere: pruned from it."""
    zero = family.values == 0
    there = np.concatenate([np.repeat(family.present[:, [k]], s.stop - s.start, 1)
                            for k, s in enumerate(family.tensors)], axis=1)  # fmt: skip
    share = (zero & there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    out: dict[int, Parents] = {}
    for i in np.flatnonzero(share >= CUT).tolist():
        for j in sorted(_near(distances, i), key=lambda j: -int((family.present[i] & family.present[j]).sum())):
            both = there[i] & there[j] & ~zero[i]
            x, y = family.values[i][both], family.values[j][both]
            size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0
            if share[j] < share[i] - CUT / 2 and len(x) and (np.abs(x - y) <= EQUAL * size).mean() > 0.999:
                why = f"{share[i]:.0%} of the entries are zero, all others those of the parent"
                out[i] = Parents({j: None}, RelationKind.PRUNED.value, why)
                break
    return out


def apart(
    distances: np.ndarray, rows: list[int], known: Mapping[int, Parents],
    direction: Callable[[int, int], tuple[float, float]] = lambda a, b: (0.0, 0.0),
) -> list[list[int]]:  # fmt: skip
    """Models that form one tree: all without one of known parents above them, and each of those with its descendants.

    No tree holds a merge with all its parents, so it is taken out, with what descends from it: models that hang on it
    by the shortest ways, and that the others see beyond it. Its own parents are not among them, nor are their
    siblings, although a mean of two models is near to all of them.

    Args:
        distances: Squared distances `[n, n]`.
        rows: Positions of the models that count.
        known: Parents by position.
        direction: Log-odds that one model is an ancestor of another, and the reverse: a root lies to a merge of its
            children as a child of the merge would, with all that was made from it.

    Returns:
        Positions of the members of each tree; a model of known parents comes first in its own.
    """
    merges = [m for m in rows if m in known]
    if not merges:
        return [rows]
    goes: dict[int, int] = {}
    sides = [
        (m, r, part) for m, r, part in _sides(distances, rows, known) if not any(_above(v, m, known) for v in part)
    ]
    while sides:  # first what looks most like a descendant: it has no say about the others then
        shares = []
        for m, r, part in sides:
            own = {m, *part, *known[m].shares, *(v for v in goes if goes[v] == m)}
            shares.append(_between(distances, r, m, [x for x in rows if x not in own]))
        passed = [k for k, (m, r, _) in enumerate(sides) if _below(shares[k], *direction(r, m))]
        if not passed:
            break
        m, _, part = sides[max(passed, key=lambda k: direction(sides[k][1], sides[k][0])[1])]
        goes |= dict.fromkeys(part, m)
        sides = [side for side in sides if not goes.keys() & set(side[2])]
    main = [r for r in rows if r not in known and r not in goes]
    return [*([main] if main else []), *([m, *(r for r in rows if goes.get(r) == m)] for m in merges)]


def _sides(
    distances: np.ndarray, rows: list[int], known: Mapping[int, Parents]
) -> list[tuple[int, int, tuple[int, ...]]]:
    """What hangs together without the merges, where it comes nearest to a merge.

    Returns:
        (merge, nearest model, all models of that part), the shortest way first: edges of a minimum spanning tree.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    d = distances[np.ix_(rows, rows)].astype(np.float64)
    at = {r: i for i, r in enumerate(rows)}
    tree = [(rows[i], rows[j]) for i, j in spanning_tree(d)]
    inside = [e for e in tree if not known.keys() & set(e)]
    linked = coo_array(
        (np.ones(len(inside)), np.array([[at[v] for v in e] for e in inside], int).reshape(-1, 2).T), d.shape
    )
    label = connected_components(linked, directed=False)[1]
    part = {r: tuple(v for v in rows if label[at[v]] == label[at[r]]) for r in rows}
    ends = [(m, r) for e in tree for m, r in (e, e[::-1]) if m in known and r not in known]
    return [(m, r, part[r]) for m, r in sorted(ends, key=lambda e: (d[at[e[0]], at[e[1]]], e))]


def _between(distances: np.ndarray, model: int, merge: int, others: Sequence[int]) -> np.ndarray:
    """How much farther others are from a model than from a merge, as a share of the way between these two.

    If the model was made from the merge, the way between them is a part of the way to everybody: 1. For a sibling of
    the merge's parent it is a third, if both changed alike.

    Args:
        distances: Squared distances `[n, n]`.
        model: The model.
        merge: The merge.
        others: Who is asked: neither the parents of the merge (at a mean of two models, everything independent is at
            right angles to both) nor what is known to lie below it, nor what hangs on the model.

    Returns:
        One share each; 1 where the two are one model.
    """
    asked = [x for x in others if x not in (model, merge)]
    between = distances[model, merge]
    if between <= 0:
        return np.ones(len(asked))
    return (distances[asked, model] - distances[asked, merge]) / between


def _below(between: np.ndarray, up: float, down: float) -> bool:
    """Whether a model was made from a merge.

    Few have to say so: whoever learnt like the model is nearer to it than what adds up, whatever it was made from.

    Args:
        between: How much farther others are from the model, see `_between`.
        up: Log-odds that the model is an ancestor of the merge.
        down: Of the reverse.

    Returns:
        False where the way between the two is no part of the way to any others, or the model looks like the ancestor;
        where there are no others, it must not look more like the ancestor than like the descendant.
    """
    if not len(between):
        return up <= down
    return bool(np.quantile(between, MOST) > BEYOND) and up <= max(down, 0.0)


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
