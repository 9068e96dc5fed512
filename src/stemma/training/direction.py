"""Training of the classifier of pairs (which came first) and of the parent model, from families with known history.

Both are boosted trees on features of `stemma.ancestry.geometry` and `stemma.ancestry.parent_model`. Families are split:
the classifier of pairs learns from some, the parent model from others (its input is the output of the first), and
decision thresholds are calibrated on a third part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.ancestry import direction as pair_model
from stemma.ancestry import parent_model
from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import DirectionModel
from stemma.ancestry.geometry import Geometry, PairFeatures
from stemma.ancestry.parent_model import ParentModel
from stemma.errors import MissingExtraError
from stemma.training.histories import Family

UNRELATED_PER_CHILD = 1.5
"""Pairs where neither descends from the other, per pair of parent and child."""

INDISTINGUISHABLE_FROM_ANCESTOR = 0.35
"""A sibling that moved so little from the common ancestor, relative to the other, cannot be told from the ancestor by
its weights, and such pairs are left out of the training."""

MISTAKABLE_FOR_PARENT = 0.5
"""The same where the ancestor is missing: a suspect beside a sibling that moved less than half as far is left out, as
is one whose sibling lies on the way to it (one parent, pruned a little and pruned more)."""


@dataclass(frozen=True, eq=False)
class Pair:
    """An ordered pair of one family; `label` is `FORWARD` for ancestor and descendant, else `NEITHER`."""

    features: PairFeatures
    label: int
    family: tuple[str, int]


def geometry_of(family: Family) -> Geometry:
    """The geometry of a whole family, in the order of its members."""
    return Geometry.of([m.model for m in family.members])


def pairs(family: Family, seed: int = 0, geometry: Geometry | None = None) -> Iterator[Pair]:
    """All parents with their children, some grandparents with their grandchildren, and pairs without descent."""
    geometry = geometry or geometry_of(family)
    at, members = family.positions(), {m.name: m for m in family.members}
    ancestors_of = {n: [a for a in m.ancestors if a in at] for n, m in members.items()}
    rng = np.random.default_rng([seed, family.number, 33])
    chosen_pairs: list[tuple[str, str, int]] = []
    for name in members:
        for generation, ancestor in enumerate(ancestors_of[name]):
            if generation == 0 or rng.random() < 0.3:
                chosen_pairs.append((ancestor, name, pair_model.FORWARD))
    names = [n for n in members if ancestors_of[n]]
    unrelated = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if a not in ancestors_of[b]
        and b not in ancestors_of[a]
        and not indistinguishable_from_ancestor(geometry, at[_last_common_ancestor(ancestors_of, a, b)], at[a], at[b])
    ]
    count = min(len(unrelated), round(UNRELATED_PER_CHILD * len(names)))
    chosen = rng.choice(len(unrelated), count, replace=False) if count else []
    chosen_pairs += [(*unrelated[k], pair_model.NEITHER) for k in chosen]
    for a, b, label in chosen_pairs:
        found = geometry.pair_features(at[a], at[b])
        if found is not None:
            yield Pair(found, label, (family.kind, family.number))


def _last_common_ancestor(ancestors_of: Mapping[str, Sequence[str]], a: str, b: str) -> str:
    return next(x for x in ancestors_of[a] if x in ancestors_of[b])


def indistinguishable_from_ancestor(geometry: Geometry, ancestor: int, a: int, b: int) -> bool:
    """Whether one of two descendants is too near to their ancestor to tell, or shares nothing with it."""
    moved = sorted((geometry.squared_distance(ancestor, a), geometry.squared_distance(ancestor, b)))
    return not np.isfinite(moved[1]) or moved[0] < INDISTINGUISHABLE_FROM_ANCESTOR**2 * moved[1]


def mistakable_for_parent(geometry: Geometry, parent_position: int, sibling: int, suspect: int) -> bool:
    """Whether a sibling moved so little, or lies on the way, that it looks like the missing parent."""
    to_suspect, to_sibling, between = (
        geometry.squared_distance(*pair)
        for pair in ((parent_position, suspect), (parent_position, sibling), (sibling, suspect))
    )
    return (
        not np.isfinite(to_suspect + to_sibling)
        or to_sibling < MISTAKABLE_FOR_PARENT**2 * to_suspect
        or to_sibling + between < 1.02 * to_suspect
    )


def fit_direction(labelled_pairs: Sequence[Pair], seed: int = 0, about: dict[str, Any] | None = None) -> DirectionModel:
    """Fit the classifier of pairs, each shown in both orders; some seconds for 10,000 pairs."""
    rows = np.stack([pair_model.feature_row(p.features) for p in labelled_pairs])
    swapped = np.stack([pair_model.feature_row(p.features.swapped()) for p in labelled_pairs])
    labels = np.array([p.label for p in labelled_pairs])
    back = np.where(labels == pair_model.FORWARD, pair_model.BACKWARD, pair_model.NEITHER)
    trees = _fit(
        np.concatenate([rows, swapped]), np.concatenate([labels, back]), pair_model.FEATURE_NAMES, seed, about or {}
    )
    return DirectionModel(trees)


@dataclass(frozen=True, eq=False)
class Query:
    """A suspect beside some relatives, and which of them is its parent.

    Attributes:
        rows: Features of each relative, `[relatives, features]`.
        parent: Position of the nearest ancestor that is enrolled: the parent itself, or an ancestor further away
            through models that are not enrolled; None where there is none.
        ancestors: Positions of more distant ancestors.
        family: Kind and number.
        suspect: Its name.
        candidates: Names of the relatives, of indistinguishable ones the nearest one's.
        ambiguous: Whether all its ancestors are missing and a sibling that moved much less is near the missing parent:
            weights cannot tell. Such a suspect is not used for training or calibration.
    """

    rows: np.ndarray
    parent: int | None
    ancestors: tuple[int, ...]
    family: tuple[str, int]
    suspect: str = ""
    candidates: tuple[str, ...] = ()
    ambiguous: bool = False


def queries(
    family: Family,
    direction: DirectionModel,
    seed: int = 0,
    orphan_share: float = 0.4,
    geometry: Geometry | None = None,
) -> Iterator[Query]:
    """Every child of a family as a suspect, beside a random part of the family, often without its parent."""
    geometry = geometry or geometry_of(family)
    at, members = family.positions(), family.members
    others = [i for i, m in enumerate(members) if not m.leaf]
    parents = {m.name: next(iter(m.ancestors), None) for m in members}
    rng = np.random.default_rng([seed, family.number, 34])
    for s, member in enumerate(members):
        parent = parents[member.name]
        if parent is None or parent not in at:
            continue
        share, parent_position = rng.choice(ENROLLED_SHARES), at[parent]
        enrolled = [i for i in others if i not in (s, parent_position) and rng.random() < share]
        if rng.random() >= orphan_share:
            enrolled.append(parent_position)
        groups = parent_model.indistinguishable_groups(geometry, s, enrolled)[: parent_model.NEAREST]
        siblings = [i for group in groups for i in group if parents[members[i].name] == parent]
        if not groups:
            continue
        is_orphan = not any(at[a] in enrolled for a in member.ancestors if a in at)
        ambiguous = is_orphan and any(mistakable_for_parent(geometry, parent_position, i, s) for i in siblings)
        rows = parent_model.parent_features(geometry, direction, s, [group[0] for group in groups])
        ancestors = [at[a] for a in member.ancestors if a in at]
        places = [k for a in ancestors for k, group in enumerate(groups) if a in group]
        parent_place, more_distant = (places[0], tuple(k for k in places if k != places[0])) if places else (None, ())
        candidate_names = tuple(members[group[0]].name for group in groups)
        yield Query(
            rows, parent_place, more_distant, (family.kind, family.number), member.name, candidate_names, ambiguous
        )


ENROLLED_SHARES = (0.1, 0.3, 0.6, 1.0)
"""Shares of a family that a registry may hold."""


def fit_parent_model(
    parent_queries: Sequence[Query], direction: DirectionModel, seed: int = 0, about: dict[str, Any] | None = None
) -> ParentModel:
    """Fit the parent model on queries of families that `direction` was not trained on."""
    parent_queries = [q for q in parent_queries if not q.ambiguous]
    rows = np.concatenate([q.rows for q in parent_queries])
    labels = np.concatenate([np.arange(len(q.rows)) == (-1 if q.parent is None else q.parent) for q in parent_queries])
    return ParentModel(direction, _fit(rows, labels.astype(int), parent_model.FEATURE_NAMES, seed, about or {}))


def _fit(rows: np.ndarray, labels: np.ndarray, names: Sequence[str], seed: int, about: dict[str, Any]) -> BoostedTrees:
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise MissingExtraError("training on a zoo", "scikit-learn", "networks") from error
    model = HistGradientBoostingClassifier(
        max_iter=200,
        learning_rate=0.06,
        max_leaf_nodes=8,
        min_samples_leaf=20,
        l2_regularization=5.0,
        random_state=seed,
    ).fit(rows.astype(np.float32), labels)
    return _as_table(model, {**about, "features": list(names), "rows": len(rows)})


def _as_table(model: Any, about: dict[str, Any]) -> BoostedTrees:
    """scikit-learn's trees as `BoostedTrees`; a test compares its scores with scikit-learn's own."""
    feature, threshold, left, right, value, root, output = [], [], [], [], [], [], []
    start = 0
    for iteration in model._predictors:
        for k, tree in enumerate(iteration):
            nodes = tree.nodes
            leaf = nodes["is_leaf"].astype(bool)
            feature.append(np.where(leaf, -1, nodes["feature_idx"]))
            threshold.append(nodes["num_threshold"])
            left.append(nodes["left"].astype(np.int64) + start)
            right.append(nodes["right"].astype(np.int64) + start)
            value.append(nodes["value"])
            root.append(start)
            output.append(k)
            start += len(nodes)
    whole = [np.concatenate(x) for x in (feature, threshold, left, right, value)]
    types = (np.int32, np.float32, np.int32, np.int32, np.float32)
    table = [x.astype(t) for x, t in zip(whole, types, strict=True)]
    baseline = np.ravel(model._baseline_prediction).astype(np.float32)
    return BoostedTrees(*table, np.array(root, np.int32), np.array(output, np.int32), baseline, about)
