"""Training of the two models that read a family's geometry: which of two came first, and who is the parent.

Both are boosted trees on features of `stemma.ancestry.geometry` and `stemma.ancestry.parenthood`. Families are split:
the model of pairs learns from some, the model of parenthood from others that the first has not seen (its input is what
the first says), and the threshold of a decision is taken on a third part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.ancestry import direction as pair_model
from stemma.ancestry import parenthood as parent_model
from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.ancestry.direction import Direction
from stemma.ancestry.geometry import Geometry, PairFeatures
from stemma.ancestry.parenthood import Parenthood
from stemma.errors import MissingExtraError
from stemma.training.histories import Family

UNRELATED_PER_CHILD = 1.5
"""Pairs where neither descends from the other, per pair of parent and child."""

STANDS_IN = 0.35
"""A sibling that moved so little from the common ancestor, relative to the other, is where the ancestor is: no weights
tell the two apart, and nothing is learnt from such pairs."""

TAKEN_FOR = 0.5
"""The same where the ancestor is not there to compare with: a suspect beside a sibling that moved less than half as far
is not learnt from, nor one whose sibling lies on the way to it (one parent, cut a little and cut more)."""


@dataclass(frozen=True, eq=False)
class Pair:
    """An ordered pair of one family, with its truth.

    Attributes:
        features: What the weights show.
        label: `FORWARD` where the first is an ancestor of the second, else `NEITHER`.
        family: Kind and number.
    """

    features: PairFeatures
    label: int
    family: tuple[str, int]


def geometry_of(family: Family) -> Geometry:
    """The geometry of a whole family, in the order of its members.

    Returns:
        The geometry.
    """
    return Geometry.of([m.model for m in family.members])


def pairs(family: Family, seed: int = 0, geometry: Geometry | None = None) -> Iterator[Pair]:
    """All parents with their children, some grandparents with their grandchildren, and pairs of neither.

    Args:
        family: The models.
        seed: Of what is drawn.
        geometry: Of its members, where it is at hand.

    Yields:
        Pairs that share a tensor which changed.
    """
    geometry = geometry or geometry_of(family)
    at, members = family.positions(), {m.name: m for m in family.members}
    above = {n: [a for a in m.ancestors if a in at] for n, m in members.items()}
    rng = np.random.default_rng([seed, family.number, 33])
    wanted: list[tuple[str, str, int]] = []
    for name in members:
        for generation, ancestor in enumerate(above[name]):
            if generation == 0 or rng.random() < 0.3:
                wanted.append((ancestor, name, pair_model.FORWARD))
    names = [n for n in members if above[n]]
    apart = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if a not in above[b] and b not in above[a] and not stands_in(geometry, at[_fork(above, a, b)], at[a], at[b])
    ]
    count = min(len(apart), round(UNRELATED_PER_CHILD * len(names)))
    chosen = rng.choice(len(apart), count, replace=False) if count else []
    wanted += [(*apart[k], pair_model.NEITHER) for k in chosen]
    for a, b, label in wanted:
        found = geometry.pair(at[a], at[b])
        if found is not None:
            yield Pair(found, label, (family.kind, family.number))


def _fork(above: Mapping[str, Sequence[str]], a: str, b: str) -> str:
    """The last common ancestor."""
    return next(x for x in above[a] if x in above[b])


def stands_in(geometry: Geometry, ancestor: int, a: int, b: int) -> bool:
    """Whether one of two descendants moved so little from their ancestor that it cannot be told from it.

    Returns:
        True where one moved less than `STANDS_IN` times as far as the other, or shares nothing with the ancestor.
    """
    moved = sorted((geometry.squared_distance(ancestor, a), geometry.squared_distance(ancestor, b)))
    return not np.isfinite(moved[1]) or moved[0] < STANDS_IN**2 * moved[1]


def taken_for(geometry: Geometry, home: int, sibling: int, suspect: int) -> bool:
    """Whether a sibling looks like the parent itself where that is not there.

    Returns:
        True where it moved less than `TAKEN_FOR` times as far as the suspect, or lies on the way from the parent.
    """
    own, other, apart = (
        geometry.squared_distance(*pair) for pair in ((home, suspect), (home, sibling), (sibling, suspect))
    )
    return not np.isfinite(own + other) or other < TAKEN_FOR**2 * own or other + apart < 1.02 * own


def fit_direction(given: Sequence[Pair], seed: int = 0, about: dict[str, Any] | None = None) -> Direction:
    """Learn what pairs are from pairs with known truth, each shown in both orders.

    Cost: some seconds for 10,000 pairs.

    Args:
        given: Pairs.
        seed: Of the fit.
        about: What to write down beside the names of the features.

    Returns:
        The model.
    """
    rows = np.stack([pair_model.columns(p.features) for p in given])
    turned = np.stack([pair_model.columns(p.features.turned()) for p in given])
    labels = np.array([p.label for p in given])
    back = np.where(labels == pair_model.FORWARD, pair_model.BACKWARD, pair_model.NEITHER)
    trees = _fit(np.concatenate([rows, turned]), np.concatenate([labels, back]), pair_model.COLUMNS, seed, about or {})
    return Direction(trees)


@dataclass(frozen=True, eq=False)
class Query:
    """A suspect beside some relatives, and which of them is its parent.

    Attributes:
        rows: Features of each relative, `[relatives, features]`.
        parent: Position of the nearest ancestor that is enrolled: the parent itself, or whom it comes from through
            models that nobody enrolled; None where there is none.
        ancestors: Positions of more distant ancestors.
        family: Kind and number.
        suspect: Its name.
        candidates: Names of the relatives, of those that hardly differ the nearest one's.
        stood_for: Whether nobody that it comes from is here, and a sibling that moved much less stands where its parent
            stood: weights cannot tell. Nothing is learnt or calibrated from such a suspect.
    """

    rows: np.ndarray
    parent: int | None
    ancestors: tuple[int, ...]
    family: tuple[str, int]
    suspect: str = ""
    candidates: tuple[str, ...] = ()
    stood_for: bool = False


def queries(
    family: Family, direction: Direction, seed: int = 0, left_out: float = 0.4, geometry: Geometry | None = None
) -> Iterator[Query]:
    """Every child of a family as a suspect, beside a random part of the family.

    Args:
        family: The models.
        direction: For pairs.
        seed: Of what is drawn.
        left_out: Share of suspects whose parent is not among the relatives.
        geometry: Of its members, where it is at hand.

    Yields:
        One query per child that has any relative left.
    """
    geometry = geometry or geometry_of(family)
    at, members = family.positions(), family.members
    others = [i for i, m in enumerate(members) if not m.leaf]
    parents = {m.name: next(iter(m.ancestors), None) for m in members}
    rng = np.random.default_rng([seed, family.number, 34])
    for s, one in enumerate(members):
        parent = parents[one.name]
        if parent is None or parent not in at:
            continue
        share, home = rng.choice(SHARES), at[parent]
        kept = [i for i in others if i not in (s, home) and rng.random() < share]
        if rng.random() >= left_out:
            kept.append(home)
        near = parent_model.groups(geometry, s, kept)[: parent_model.NEAREST]
        beside = [i for group in near for i in group if parents[members[i].name] == parent]
        if not near:
            continue
        orphan = not any(at[a] in kept for a in one.ancestors if a in at)
        stood_for = orphan and any(taken_for(geometry, home, i, s) for i in beside)
        rows = parent_model.features(geometry, direction, s, [group[0] for group in near])
        above = [at[a] for a in one.ancestors if a in at]
        places = [k for a in above for k, group in enumerate(near) if a in group]
        place, further = (places[0], tuple(k for k in places if k != places[0])) if places else (None, ())
        names = tuple(members[group[0]].name for group in near)
        yield Query(rows, place, further, (family.kind, family.number), one.name, names, stood_for)


SHARES = (0.1, 0.3, 0.6, 1.0)
"""Parts of a family that a registry may hold."""


def fit_parenthood(
    given: Sequence[Query], direction: Direction, seed: int = 0, about: dict[str, Any] | None = None
) -> Parenthood:
    """Learn who is the parent from queries with known truth.

    Args:
        given: Queries, of families that `direction` did not learn from.
        direction: For pairs.
        seed: Of the fit.
        about: What to write down beside the names of the features.

    Returns:
        The model.
    """
    given = [q for q in given if not q.stood_for]
    rows = np.concatenate([q.rows for q in given])
    labels = np.concatenate([np.arange(len(q.rows)) == (-1 if q.parent is None else q.parent) for q in given])
    return Parenthood(direction, _fit(rows, labels.astype(int), parent_model.COLUMNS, seed, about or {}))


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
    return _table(model, {**about, "features": list(names), "rows": len(rows)})


def _table(model: Any, about: dict[str, Any]) -> BoostedTrees:
    """scikit-learn's trees as one table; a test compares its scores with scikit-learn's own.

    Returns:
        The trees.
    """
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
