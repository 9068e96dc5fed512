"""Who descends from a merge: its children do; siblings of its parents, and their common root, do not."""

from dataclasses import replace

import numpy as np
import pytest

from stemma.ancestry.trees.distances import OddsFromNorms
from stemma.ancestry.trees.forest import Family, Forest
from stemma.ancestry.trees.known_parents import KnownParents, could_be_exact_merge, split_at_merges
from stemma.networks.load import from_arrays
from stemma.types import Digest, Lineage, ModelRef
from stemma.types import RelationKind as R
from stemma.workspace.forest import lineage
from stemma.zoo.lineages import tree
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all
from test_forest import between

SIZE = 20_000
MERGE = KnownParents({1: 0.5, 2: 0.5})


def weights(shared: float, own: float, children: int = 4, seed: int = 0) -> np.ndarray:
    """A root, its children, which have a part of their way in common, the mean of the first two, and a child of that.

    Returns:
        `[children + 3, SIZE]`: row 0 is the root, the last two are the merge and its child.
    """
    rng = np.random.default_rng(seed)
    root, way = rng.normal(size=SIZE), shared * rng.normal(size=SIZE)
    made = [root, *(root + way + own * rng.normal(size=SIZE) for _ in range(children))]
    merge = (made[1] + made[2]) / 2
    return np.array([*made, merge, merge + own * rng.normal(size=SIZE)])


@pytest.mark.parametrize(("shared", "own"), [(0.0, 0.3), (0.3, 0.3), (0.4, 0.2), (0.2, 0.05), (0.05, 0.05)])
@pytest.mark.parametrize("root", [True, False])
def test_a_merge_has_its_child_below_it_but_no_sibling_of_its_parents_and_no_root(
    shared: float, own: float, root: bool
) -> None:
    w = weights(shared, own)
    kept = list(range(0 if root else 1, len(w)))
    found = split_at_merges(between(w).squared, kept, {5: MERGE}, OddsFromNorms(between(w)))
    assert sorted(map(sorted, found)) == sorted([[v for v in kept if v < 5], [5, 6]])
    without_child = split_at_merges(between(w).squared, kept[:-1], {5: MERGE}, OddsFromNorms(between(w)))
    assert sorted(map(sorted, without_child)) == sorted([[v for v in kept if v < 5], [5]])


def test_generations_below_a_merge_stay_together() -> None:
    rng = np.random.default_rng(4)
    w = list(weights(0.3, 0.3))
    w += [w[6] + 0.3 * rng.normal(size=SIZE), w[6] + 0.3 * rng.normal(size=SIZE), w[5] + 0.4 * rng.normal(size=SIZE)]
    w.append(w[7] + 0.2 * rng.normal(size=SIZE))
    every = np.array(w)
    found = split_at_merges(between(every).squared, list(range(len(w))), {5: MERGE}, OddsFromNorms(between(every)))
    assert sorted(map(sorted, found)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]]


def test_without_others_what_is_nearest_to_a_merge_is_its_child() -> None:
    w = weights(0.3, 0.3)
    assert sorted(map(sorted, split_at_merges(between(w).squared, [1, 2, 5, 6], {5: MERGE}))) == [[1, 2], [5, 6]]


def test_no_merge_no_parts_and_copies_of_a_merge_are_its_own() -> None:
    w = weights(0.3, 0.3)
    assert split_at_merges(between(w).squared, [0, 1, 2, 3], {}) == [[0, 1, 2, 3]]
    twice = np.concatenate([w, w[5:6]])
    assert [5, 7] in split_at_merges(
        between(twice).squared, [0, 1, 2, 3, 4, 5, 7], {5: MERGE}, OddsFromNorms(between(twice))
    )


def drawn(w: np.ndarray) -> Lineage:
    refs = tuple(ModelRef(f"m{i}", Digest(f"sha256:{i:064x}")) for i in range(len(w)))
    return Forest()([Family(refs, between(w), known_parents={5: MERGE})])


def test_the_tree_around_a_merge_is_that_without_it() -> None:
    found = {(e.parent, e.child) for e in drawn(weights(0.0, 0.4)).edges}
    assert found == {*(("m0", f"m{i}") for i in range(1, 5)), ("m1", "m5"), ("m2", "m5"), ("m5", "m6")}


def test_models_are_given_no_merge_of_their_siblings_as_parent() -> None:
    rng = np.random.default_rng(2)

    def beside(w: dict[str, np.ndarray], change: float) -> dict[str, np.ndarray]:
        return {n: a + change * rng.normal(size=a.shape) / 6 for n, a in w.items()}

    start = {f"layers.{i}.weight": np.zeros(s) for i, s in enumerate(((48, 40), (40, 48), (32, 40)))}
    root = beside(start, 1.0)  # it is not shown
    children = [beside(root, 0.3) for _ in range(4)]
    merge = {n: (children[0][n] + children[1][n]) / 2 for n in root}
    given = {"a": children[0], "b": children[1], "c": children[2], "d": children[3], "merge": merge,
             "after": beside(merge, 0.3)}  # fmt: skip
    found = lineage([from_arrays({k: v.astype(np.float32) for k, v in w.items()}, n) for n, w in given.items()],
                    detailed=0)  # fmt: skip
    assert {(e.parent, e.child) for e in found.edges if e.relation == "merged"} == {("a", "merge"), ("b", "merge")}
    assert {e.child for e in found.edges if e.parent == "merge"} == {"after"}


# Adam ends in the same place on every processor, gradient descent at large rates does not. Measured with Adam on four
# kinds of processor: all of eight trees of CNNs are right, and four of eight trees of perceptrons.
@pytest.mark.parametrize(("kind", "seed"), [("cnn", 700), ("mlp", 703)])
@pytest.mark.slow
def test_trained_siblings_of_merged_models_are_not_hung_below_the_merge(kind: str, seed: int) -> None:
    trained = {n.split("/")[1]: r for n, r in tree(kind, seed, (4,), tunings=("adam", "adamw")).items()}
    merge = Recipe(kind, "merge", R.MERGED, (trained["1"], trained["2"]), {"weights": [0.5, 0.5]}, 7)
    after = Recipe(kind, "finetune", R.FINETUNED, (merge,), dict(trained["3"].parameters), 977, trained["3"].part)
    recipes = {**trained, "merge": merge, "after": after}
    models = {n: replace(m, name=n) for n, m in zip(recipes, build_all(list(recipes.values())), strict=True)}
    for absent in ((), ("root",), ("after",), ("root", "after")):
        found = lineage([m for n, m in models.items() if n not in absent], detailed=0)
        merged = {e.parent for e in found.edges if e.child == "merge"}
        below = {e.child for e in found.edges if e.parent == "merge"}
        assert merged == {"1", "2"}, absent
        assert below == ({"after"} - set(absent)), absent  # the child of the merge is the control


@pytest.mark.parametrize(
    ("what", "expected"),
    [("linear", True), ("layer by layer", True), ("left where it stood", True), ("halved", True), ("trained", False),
     ("trained on a merge", False), ("rows frozen", False)],
)  # fmt: skip
def test_a_cheap_look_tells_what_may_be_an_exact_merge(what: str, expected: bool) -> None:
    rng = np.random.default_rng(6)
    root = rng.normal(size=8000)
    near = root + 0.02 * rng.normal(size=(4, 8000))
    tensors = [(0, 4000, 50), (4000, 8000, 80)]
    mean = 0.4 * near[0] + 0.6 * near[1]
    news = 0.02 * rng.normal(size=8000)
    child = {
        "linear": mean,
        "layer by layer": np.concatenate([near[2][:4000], mean[4000:]]),
        "left where it stood": np.where(rng.random(8000) < 0.1, near[3], mean + news),
        "halved": mean.astype(np.float16).astype(np.float64),
        "trained": root + news,
        "trained on a merge": mean + news,
        "rows frozen": np.concatenate([near[0][:1600], (root + news)[1600:]]),
    }[what]
    assert could_be_exact_merge(child.astype(np.float32), near.astype(np.float32), tensors) is expected
