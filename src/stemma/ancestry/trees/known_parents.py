"""Finds models whose parents weights show exactly: merges, and models pruned from one that is here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stemma.ancestry.merges.regression import MergeRegression, comparable_tensors
from stemma.ancestry.trees.additive_tree import spanning_tree
from stemma.ancestry.trees.distances import Distances
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of
from stemma.types import RelationKind

NEAREST, MAX_CANDIDATES = 24, 12
"""Nearest relatives of a model among which its parents are searched, and how many of them are tried together."""

BETWEEN_COSINE = -0.2
"""Cosine at a model between two others below which it lies between them, as only a merge does."""

PARALLEL_COSINE = 0.6
"""Cosine of two differences without a common end above which both are the same increment."""

PRUNED_SHARE, EQUAL_TOLERANCE = 0.05, 1e-3
"""Share of zeros from which a model may have been pruned; largest difference elsewhere, in root mean squares."""


DESCENDANT_SHARE = 2 / 3
"""Share of the way between a merge and a model by which others are farther from one of them than from the other, if the
one was made from the other: half way between what a child shows and what the sibling of a parent shows."""

SHARE_QUANTILE = 0.9
"""Quantile of those shares that is compared with the limit."""


@dataclass(frozen=True)
class KnownParents:
    """The parents of a model, known without a tree.

    Attributes:
        shares: Coefficient of each parent of a merge, by its position in the family; None for another relation.
        relation: Relation of the model to them.
        reason: How that is known, in one sentence.
    """

    shares: Mapping[int, float | None]
    relation: str = RelationKind.MERGED.value
    reason: str = ""


def find_known_parents(
    family: Entries, distances: Distances, method: MergeRegression | None = None
) -> dict[int, KnownParents]:
    """Parents that weights show exactly: of models pruned from one that is here, and of merges exact down to rounding.

    Merges that were further trained are not included: a model between two others of one training run looks the same.

    Cost: some passes over each pruned model and its nearest relatives; a `MergeRegression` for each model that geometry
    suggests to be a merge.

    Args:
        family: The same entries of every model.
        distances: Between them.
        method: Takes merges apart; with its defaults unless given.

    Returns:
        Parents by position, of those models only.
    """
    out = _pruned_models(family, distances)
    method = method or MergeRegression()

    def decompose(child: int, excluded: set[int]) -> KnownParents | None:
        neighbours = [
            j
            for j in _ranked_candidates(distances, child)
            if j not in excluded and _share_most_tensors(family, child, j)
        ][:MAX_CANDIDATES]
        if len(neighbours) < 2:
            return None
        columns, tensors, start = [], [], 0
        slots = [family.tensors[t] for t in comparable_tensors(family, child, neighbours)]
        for slot in slots:
            columns.append(np.arange(slot.start, slot.stop))
            tensors.append((slot.name, start, start := start + slot.stop - slot.start))
        if not tensors:
            return None
        kept = np.concatenate(columns)
        spans = [(start, stop, slot.rows) for (_, start, stop), slot in zip(tensors, slots, strict=True)]
        if not could_be_exact_merge(family.values[child, kept], family.values[neighbours][:, kept], spans):
            return None
        merge = method.decompose(family.values[child, kept], family.values[neighbours][:, kept], tensors=tensors)
        if merge is None or not merge.certain or len(merge.parents) < 2:
            return None
        shares = {neighbours[p.position]: round(p.coefficient, 4) for p in merge.parents}
        return KnownParents(shares, RelationKind.MERGED.value, merge.reason)

    waiting = [child for child in merge_suspects(distances) if child not in out]
    merged = {child: merge for child in waiting if (merge := decompose(child, set()))}
    for child, merge in merged.items():
        rest = decompose(child, set(merged)) if set(merge.shares) & set(merged) else None
        out[child] = rest or merge  # a merge of a merge is one of the first models too
    return {child: p for child, p in out.items() if not _is_own_ancestor(child, out)}


SAMPLED_ENTRIES, RESIDUAL_SHARE, UNCHANGED_SHARE = 512, 1e-3, 0.005
"""Entries of a tensor that a merge is searched in first; share of the squared change that a sum may leave; and share of
entries, in rows that moved, that are still equal to a candidate's."""


def could_be_exact_merge(child: np.ndarray, candidates: np.ndarray, tensors: Sequence[tuple[int, int, int]]) -> bool:
    """Quick check whether a model may be a merge of others down to rounding.

    Each tensor is a sum of theirs (linear, SLERP, layers of several), or single entries are unchanged from one of them
    (TIES, DARE).

    Args:
        child: `[k]`.
        candidates: `[n, k]`.
        tensors: First column, column after the last, and number of rows of each tensor.

    Returns:
        False where neither is so.
    """
    moved, residual, rounding = 0.0, 0.0, rounding_of(child[child != 0])
    for start, stop, rows in tensors:
        step = max(1, (stop - start) // SAMPLED_ENTRIES)
        y = child[start:stop:step].astype(np.float64)
        x = candidates[:, start:stop:step].astype(np.float64)
        change, directions = y - x[0], (x[1:] - x[0]).T
        remaining = change - directions @ np.linalg.lstsq(directions, change, rcond=None)[0]
        moved += float(change @ change)
        residual += max(0.0, float(remaining @ remaining) - 4 * rounding**2 * float(y @ y))
        unchanged = child[start:stop].reshape(rows, -1) == candidates[:, start:stop].reshape(len(candidates), rows, -1)
        changed_rows = ~unchanged.all(axis=2)
        if any(
            len(s := unchanged[i][changed_rows[i]]) and UNCHANGED_SHARE < s.mean() < 1 - UNCHANGED_SHARE
            for i in range(len(candidates))
        ):
            return True
    return residual <= RESIDUAL_SHARE * moved


def _share_most_tensors(family: Entries, a: int, b: int) -> bool:
    """Whether two models have most of their tensors in common."""
    both = family.present[a] & family.present[b]
    return 2 * int(both.sum()) > max(int(family.present[a].sum()), int(family.present[b].sum()))


def _is_own_ancestor(child: int, parents_of: Mapping[int, KnownParents]) -> bool:
    """Whether a model would descend from itself."""
    pending, seen = list(parents_of[child].shares), set()
    while pending:
        v = pending.pop()
        if v == child:
            return True
        if v in parents_of and v not in seen:
            seen.add(v)
            pending += parents_of[v].shares
    return False


def merge_suspects(distances: Distances) -> list[int]:
    """Positions of models that may be merges: between two others, or reached by an increment that occurs twice."""
    d, out = distances.squared, []
    for m in range(len(d)):
        neighbours = _nearest(distances, m)
        same = distances.same[m].sum() > 1
        if len(neighbours) < 2 or same:
            continue
        if _cosines(distances, m, neighbours).min() < BETWEEN_COSINE or _added_twice(d, m, neighbours[:MAX_CANDIDATES]):
            out.append(m)
    return out


def _cosines(distances: Distances, m: int, neighbours: list[int]) -> np.ndarray:
    """Cosines at a model between others."""
    d = distances.squared
    g = (d[m, neighbours][:, None] + d[m, neighbours] - d[np.ix_(neighbours, neighbours)]) / 2
    size = np.sqrt(np.outer(d[m, neighbours], d[m, neighbours]))
    return np.divide(g, size, out=np.ones_like(g), where=size > 0)


def _ranked_candidates(distances: Distances, m: int) -> list[int]:
    """The nearest models, first those between which the model lies, the straighter the earlier."""
    neighbours = _nearest(distances, m)
    between = _cosines(distances, m, neighbours).min(axis=0, initial=1.0)
    order = sorted(
        range(len(neighbours)), key=lambda k: (round(float(between[k]), 1) if between[k] < BETWEEN_COSINE else 1.0, k)
    )
    return [neighbours[k] for k in order]


def _nearest(distances: Distances, m: int) -> list[int]:
    """The nearest models that are not the same, up to `NEAREST`."""
    d = distances.squared[m]
    order = [int(j) for j in np.argsort(d, kind="stable") if j != m and not distances.same[m, j]]
    return order[:NEAREST]


def _added_twice(d: np.ndarray, m: int, neighbours: list[int]) -> bool:
    """Whether the increment from the nearest model to this one is also that between two others, as in a sum."""
    a = neighbours[0]
    for b, p in combinations(neighbours[1:], 2):
        size = np.sqrt(d[m, a] * d[b, p])
        inner = abs(d[m, p] + d[a, b] - d[m, b] - d[a, p]) / 2
        if size > 0 and inner / size > PARALLEL_COSINE:
            return True
    return False


def _pruned_models(family: Entries, distances: Distances) -> dict[int, KnownParents]:
    """Models that are zero where another is not, and equal to it elsewhere: pruned from it."""
    zero = family.values == 0
    present = np.concatenate([np.repeat(family.present[:, [k]], s.stop - s.start, 1)
                            for k, s in enumerate(family.tensors)], axis=1)  # fmt: skip
    share = (zero & present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    out: dict[int, KnownParents] = {}
    for i in np.flatnonzero(share >= PRUNED_SHARE).tolist():
        for j in sorted(_nearest(distances, i), key=lambda j: -int((family.present[i] & family.present[j]).sum())):
            both = present[i] & present[j] & ~zero[i]
            x, y = family.values[i][both], family.values[j][both]
            size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0
            if (
                share[j] < share[i] - PRUNED_SHARE / 2
                and len(x)
                and (np.abs(x - y) <= EQUAL_TOLERANCE * size).mean() > 0.999
            ):
                reason = f"{share[i]:.0%} of the entries are zero, and all others equal the parent's"
                out[i] = KnownParents({j: None}, RelationKind.PRUNED.value, reason)
                break
    return out


def split_at_merges(
    distances: np.ndarray, rows: list[int], parents_of: Mapping[int, KnownParents],
    direction: Callable[[int, int], tuple[float, float]] = lambda a, b: (0.0, 0.0),
) -> list[list[int]]:  # fmt: skip
    """Split models into groups that each form one tree: one without merges, one for each merge with its descendants.

    No tree holds a merge with all its parents, so that it is taken out with its descendants: models that are nearest to
    it, and that the others are farther from than from it. Its own parents and their siblings are not among them,
    although a mean of two models is near to all of them.

    Args:
        distances: Squared distances `[n, n]`.
        rows: Positions of the models that count.
        parents_of: Parents by position.
        direction: Log-odds that one model is an ancestor of another, and the reverse: a root is as near to a merge of
            its children as a child of the merge would be.

    Returns:
        Positions of the members of each tree; a model of known parents comes first in its own.
    """
    merges = [m for m in rows if m in parents_of]
    if not merges:
        return [rows]
    merge_of_model: dict[int, int] = {}
    sides = [
        (m, r, part)
        for m, r, part in _parts_beside_merges(distances, rows, parents_of)
        if not any(_is_merge_parent(v, m, parents_of) for v in part)
    ]
    while sides:  # first what looks most like a descendant: it has no say about the others then
        shares = []
        for m, r, part in sides:
            own = {m, *part, *parents_of[m].shares, *(v for v in merge_of_model if merge_of_model[v] == m)}
            shares.append(_excess_distance_shares(distances, r, m, [x for x in rows if x not in own]))
        descendants = [k for k, (m, r, _) in enumerate(sides) if _descends_from_merge(shares[k], *direction(r, m))]
        if not descendants:
            break
        m, _, part = sides[max(descendants, key=lambda k: direction(sides[k][1], sides[k][0])[1])]
        merge_of_model |= dict.fromkeys(part, m)
        sides = [side for side in sides if not merge_of_model.keys() & set(side[2])]
    main = [r for r in rows if r not in parents_of and r not in merge_of_model]
    return [*([main] if main else []), *([m, *(r for r in rows if merge_of_model.get(r) == m)] for m in merges)]


def _parts_beside_merges(
    distances: np.ndarray, rows: list[int], parents_of: Mapping[int, KnownParents]
) -> list[tuple[int, int, tuple[int, ...]]]:
    """Parts of the spanning tree without the merges, as (merge, nearest model, all models), shortest edge first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    d = distances[np.ix_(rows, rows)].astype(np.float64)
    at = {r: i for i, r in enumerate(rows)}
    tree = [(rows[i], rows[j]) for i, j in spanning_tree(d)]
    inside = [e for e in tree if not parents_of.keys() & set(e)]
    linked = coo_array(
        (np.ones(len(inside)), np.array([[at[v] for v in e] for e in inside], int).reshape(-1, 2).T), d.shape
    )
    label = connected_components(linked, directed=False)[1]
    part = {r: tuple(v for v in rows if label[at[v]] == label[at[r]]) for r in rows}
    ends = [(m, r) for e in tree for m, r in (e, e[::-1]) if m in parents_of and r not in parents_of]
    return [(m, r, part[r]) for m, r in sorted(ends, key=lambda e: (d[at[e[0]], at[e[1]]], e))]


def _excess_distance_shares(distances: np.ndarray, model: int, merge: int, others: Sequence[int]) -> np.ndarray:
    """How much farther others are from a model than from a merge, as a share of the distance between these two.

    If the model was made from the merge, the path between them is a part of the path to all others: 1. For a sibling of
    the merge's parent it is a third, if both changed alike.

    Args:
        distances: Squared distances `[n, n]`.
        model: The model.
        merge: The merge.
        others: Models to measure from: not the parents of the merge (at a mean of two models, everything independent is
            at right angles to both), its known descendants, nor those connected to the model.

    Returns:
        One share each; 1 where the two are one model.
    """
    witnesses = [x for x in others if x not in (model, merge)]
    between = distances[model, merge]
    if between <= 0:
        return np.ones(len(witnesses))
    return (distances[witnesses, model] - distances[witnesses, merge]) / between


def _descends_from_merge(between: np.ndarray, up: float, down: float) -> bool:
    """Whether a model was made from a merge.

    A high quantile is used: others that learned the same as the model are nearer to it, whatever it was made from.

    Args:
        between: Excess distances of others, see `_excess_distance_shares`.
        up: Log-odds that the model is an ancestor of the merge.
        down: Log-odds of the reverse.

    Returns:
        False where the path between the two is not part of the path to any other, or the model looks like the ancestor;
        without others, only where it looks more like the ancestor.
    """
    if not len(between):
        return up <= down
    return bool(np.quantile(between, SHARE_QUANTILE) > DESCENDANT_SHARE) and up <= max(down, 0.0)


def _is_merge_parent(node: int, merge: int, parents_of: Mapping[int, KnownParents]) -> bool:
    """Whether a model is a parent of a merge, or of a merge that is a parent of it, and so on."""
    pending, seen = [merge], set()
    while pending:
        m = pending.pop()
        if node in parents_of[m].shares:
            return True
        seen.add(m)
        pending += [p for p in parents_of[m].shares if p in parents_of and p not in seen]
    return False
