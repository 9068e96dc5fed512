"""Family trees from weights: simulated families are the truth, for trees, missing ancestors and directions."""

import json
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from documents import check_document
from stemma.ancestry.trees.additive_tree import RecursiveGrouping, spanning_tree
from stemma.ancestry.trees.cycles import remove_cycles
from stemma.ancestry.trees.distances import Distances, OddsFromNorms, squared_distances
from stemma.ancestry.trees.families import find_families
from stemma.ancestry.trees.forest import Family, Forest, PairResult
from stemma.ancestry.trees.rooting import most_likely_forest
from stemma.checkpoints.model import Model
from stemma.cli import main
from stemma.errors import MisuseError, NotAModelError
from stemma.kinship.relation.grids import lies_on_grid
from stemma.kinship.weights.entries import entries
from stemma.networks.load import from_arrays
from stemma.registry import Registry
from stemma.types import Digest, Edge, ModelRef
from stemma.workspace import Workspace
from stemma.workspace.forest import lineage
from stemma.workspace.incremental_forest import update_lineage
from stemma.workspace.lineage import models_to_draw
from stemma.workspace.lineage_builder import LineageBuilder
from stemma.zoo import family

VTHR = [-1, *[0] * 4, *(1 + i // 4 for i in range(16))]


def grown(parents: list[int], seed: int = 0, k: int = 3000, low: float = 0.3, high: float = 0.6) -> np.ndarray:
    """Weights of a family: a random root, and children that add something independent."""
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    for p in parents:
        rows.append(rng.normal(size=k) if p < 0 else rows[p] + rng.uniform(low, high) * rng.normal(size=k))
    return np.array(rows)


def between(w: np.ndarray) -> Distances:
    gram = w @ w.T
    square = np.diag(gram)
    squared = np.maximum(square[:, None] + square - 2 * gram, 0)
    np.fill_diagonal(squared, 0)
    n = len(w)
    return Distances((squared + squared.T) / 2, np.repeat(square[:, None], n, 1), np.ones((n, n)))


def refs(n: int) -> tuple[ModelRef, ...]:
    return tuple(ModelRef(f"m{i:02d}", Digest(f"sha256:{i:064x}")) for i in range(n))


def edges_of(parents: list[int]) -> set[tuple[str, str]]:
    return {(f"m{p:02d}", f"m{i:02d}") for i, p in enumerate(parents) if p >= 0}


def named(model: str, w: dict[str, np.ndarray]) -> Model:
    return from_arrays({n: a.astype(np.float32) for n, a in w.items()}, model)


def family_of_models(parents: list[int], seed: int = 0, prefix: str = "m") -> list[Model]:
    rng = np.random.default_rng(seed)
    made: list[dict[str, np.ndarray]] = []
    for p in parents:
        own = {}
        for i, shape in enumerate(((48, 40), (40, 48), (32, 40))):
            new = rng.normal(size=shape) / 6
            own[f"layers.{i}.weight"] = new if p < 0 else made[p][f"layers.{i}.weight"] + rng.uniform(0.3, 0.6) * new
        made.append(own)
    return [named(f"{prefix}{i:02d}", w) for i, w in enumerate(made)]


# The undirected tree


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_whose_models_are_all_there_is_recovered(seed: int) -> None:
    tree = RecursiveGrouping()(between(grown(VTHR, seed)).squared)
    assert set(tree.edges) == {(p, i) for i, p in enumerate(VTHR) if p >= 0}
    assert tree.missing == ()
    assert tree.noise < 0.08


@pytest.mark.parametrize("gone", [[0], [1], [0, 1], [2, 3], [1, 2, 3, 4]])
def test_missing_ancestors_are_found_with_exactly_their_children(gone: list[int]) -> None:
    w, kept = grown(VTHR, 3, low=0.45), [i for i in range(21) if i not in gone]
    tree = RecursiveGrouping()(between(w[kept]).squared)
    around = tree.neighbours()
    found = [{kept[v] if v < len(kept) else "missing" for v in around[h]} for h in tree.missing]
    expected = []
    for g in gone:
        near = [i for i, p in enumerate(VTHR) if p == g] + ([VTHR[g]] if VTHR[g] >= 0 else [])
        expected.append({"missing" if v in gone else v for v in near})
    assert sorted(map(sorted_text, found)) == sorted(map(sorted_text, expected))


def sorted_text(s: set) -> list[str]:
    return sorted(map(str, s))


def test_lengths_of_branches_to_a_missing_ancestor_are_those_of_the_truth() -> None:
    parents = [-1, 0, 0, 0, 0]
    w = grown(parents, 1, k=40_000, low=0.45)
    tree = RecursiveGrouping()(between(w[1:]).squared)
    assert len(tree.missing) == 1
    for (i, _), length in tree.edges.items():
        assert length == pytest.approx(np.sum((w[i + 1] - w[0]) ** 2), rel=0.05)


def test_two_children_of_like_direction_are_given_no_ancestor_but_three_of_another_are() -> None:
    rng = np.random.default_rng(0)
    root, way = rng.normal(size=5000), 0.32 * rng.normal(size=5000)
    pair = [root + way + 0.45 * rng.normal(size=5000) for _ in range(2)]
    others = [root + 0.5 * rng.normal(size=5000) for _ in range(4)]
    assert RecursiveGrouping()(between(np.array([root, *others, *pair])).squared).missing == ()
    many = [root + way + 0.45 * rng.normal(size=5000) for _ in range(4)]
    assert len(RecursiveGrouping()(between(np.array([root, *others, *many])).squared).missing) == 1


def test_a_chain_is_no_star() -> None:
    chain = list(range(-1, 9))
    tree = RecursiveGrouping()(between(grown(chain, 2)).squared)
    assert set(tree.edges) == {(i - 1, i) for i in range(1, 10)}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_nodes(n: int) -> None:
    tree = RecursiveGrouping()(between(grown([-1, 0][:n] or [-1], 0)[:n].reshape(n, 3000)).squared)
    assert len(tree.edges) == max(0, n - 1)


def test_equal_models_have_length_zero() -> None:
    tree = RecursiveGrouping()(np.zeros((4, 4)))
    assert len(tree.edges) == 3
    assert set(tree.edges.values()) == {0.0}
    assert tree.missing == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((2, 3)), "square matrix"),
        (np.array([[0, np.nan], [np.nan, 0]]), "are any weights NaN"),
        (np.array([[0, 1.0], [2.0, 0]]), "symmetric"),
        (np.array([[0, -1.0], [-1.0, 0]]), "non-negative"),
    ],
)
def test_wrong_distances_are_one_clear_error(given: np.ndarray, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        RecursiveGrouping()(given)


def test_spanning_tree_is_that_of_scipy() -> None:
    from scipy.sparse.csgraph import minimum_spanning_tree

    d = between(np.random.default_rng(1).normal(size=(40, 10))).squared
    own = sum(d[e] for e in spanning_tree(d))
    assert own == pytest.approx(minimum_spanning_tree(d).sum())


# Distances


def test_distances_of_drawn_entries_are_those_of_all_up_to_drawing() -> None:
    models = family_of_models([-1, 0, 0, 1])
    all_, some = (squared_distances(entries(models, per_tensor=k)) for k in (10**6, 600))
    whole = np.array([np.concatenate([t.array().ravel() for t in m.tensors.values()]) for m in models])
    assert all_.squared == pytest.approx(between(whole).squared, rel=1e-4)
    assert some.squared == pytest.approx(all_.squared, rel=0.25)


def test_a_fresh_head_is_left_out_for_all() -> None:
    rng = np.random.default_rng(5)
    models = family_of_models([-1, 0, 0])
    arrays = [{n: t.array() for n, t in m.tensors.items()} for m in models]
    for a in arrays:
        a["head.weight"] = rng.normal(size=(10, 32)) / 6
    with_head = squared_distances(entries([named(f"h{i}", a) for i, a in enumerate(arrays)]))
    without = squared_distances(entries(models))
    assert with_head.squared / with_head.squared[0, 1] == pytest.approx(
        without.squared / without.squared[0, 1], rel=1e-5
    )


def test_only_what_was_inherited_whole_is_one_model() -> None:
    rng = np.random.default_rng(2)
    root = {f"l{i}.weight": rng.normal(size=(24, 24)).astype(np.float32) for i in range(4)}
    moved = {n: a + 1e-4 * rng.normal(size=a.shape).astype(np.float32) for n, a in root.items()}
    others = {n: rng.normal(size=a.shape).astype(np.float32) for n, a in root.items()}
    half = {n: a.astype(np.float16) for n, a in root.items()}
    head = {**root, "l3.weight": others["l3.weight"]}
    models = [named("root", root), named("moved", moved), named("stranger", others), named("half", half),
              named("head", head)]  # fmt: skip
    same = squared_distances(entries(models)).same
    assert {(models[i].name, models[j].name) for i in range(5) for j in range(i) if same[i, j]} == {
        ("half", "root"), ("half", "moved"), ("head", "root"), ("head", "half"),
    }  # fmt: skip


def test_weights_that_are_no_numbers_have_no_distance() -> None:
    family = entries(family_of_models([-1, 0]))
    family.values[0, 0] = np.nan
    with pytest.raises(MisuseError, match="NaN"):
        squared_distances(family)


# Directions and the forest


def test_the_forest_of_a_simulated_family_is_its_history() -> None:
    for seed in range(3):
        found = Forest()([Family(refs(21), between(grown(VTHR, seed)))])
        assert {(e.parent, e.child) for e in found.edges} == edges_of(VTHR)
        assert found.roots == ("m00",)
        assert min(e.confidence or 0 for e in found.edges) > 0.5


def test_a_direction_that_is_given_counts_and_one_lie_is_outvoted() -> None:
    g = between(grown([-1, 0, 1, 2], 4))
    turned = OddsFromNorms(g)
    backwards = Forest()([Family(refs(4), g, lambda a, b: turned(a, b)[::-1])])
    assert {(e.parent, e.child) for e in backwards.edges} == {("m03", "m02"), ("m02", "m01"), ("m01", "m00")}

    def lying(a: int, b: int) -> tuple[float, float]:
        return (-1.0, 0.5) if (a, b) == (1, 2) else (0.5, -1.0) if (a, b) == (2, 1) else turned(a, b)

    found = Forest()([Family(refs(4), g, lying)])
    assert {(e.parent, e.child) for e in found.edges} == edges_of([-1, 0, 1, 2])


def test_siblings_alone_are_refused_a_direction() -> None:
    w = grown([-1, 0, 0], 6, low=0.5, high=0.5)[1:]
    g = between(w)
    found = Forest()([Family(refs(2), g)])
    assert found.edges == ()
    assert found.roots == ("m00", "m01")
    assert found.refused[0]["models"] == ["m00", "m01"]


def test_leaves_by_rule_have_no_children() -> None:
    g = between(grown([-1, 0], 7))
    assert [(e.parent, e.child) for e in Forest()([Family(refs(2), g)]).edges] == [("m00", "m01")]
    found = Forest()([Family(refs(2), g, childless=frozenset({0}))])
    assert found.edges == ()
    assert [r["models"] for r in found.refused] == [["m00", "m01"]]


def test_two_roundings_of_an_absent_model_are_refused_a_direction_however_they_are_stored() -> None:
    members = {m.name.removeprefix("cnn/"): m.model for m in family("cnn", only=["root", "finetuned"]).members}
    root = {n: t.array() for n, t in members["root"].tensors.items()}

    def rounded(step: float) -> dict[str, np.ndarray]:
        return {n: np.round(w / step) * step if w.ndim > 1 else w for n, w in root.items()}

    two = [named("fine", rounded(0.004)), named("coarse", rounded(0.005))]
    assert all(lies_on_grid(m) for m in two)
    assert not lies_on_grid(members["root"])
    found = lineage(two)
    assert found.edges == ()
    assert [r["models"] for r in found.refused] == [["coarse", "fine"]]
    with_parent = lineage([members["root"], two[0]])  # the control: what was rounded hangs below what was not
    assert [(e.parent, e.child) for e in with_parent.edges] == [(members["root"].name, "fine")]


def test_an_edge_that_the_test_of_the_pair_denies_is_refused() -> None:
    g = between(grown([-1, 0, 0], 8))
    denied = lambda a, b: PairResult(related=b != 2, reason="units are elsewhere")  # noqa: E731
    found = Forest()([Family(refs(3), g, relation=denied)])
    assert {(e.parent, e.child) for e in found.edges} == {("m00", "m01")}
    assert found.refused == ({"models": ["m00", "m02"], "reason": "units are elsewhere"},)
    assert found.roots == ("m00", "m02")


def test_no_model_descends_from_itself_whatever_pairs_say() -> None:
    circle = np.zeros((5, 4))
    circle[[1, 2, 3, 0], [0, 1, 2, 3]], circle[4] = [0.9, 0.8, 0.9, 0.9], [0.1, 0.2, 0.1, 0.1]
    assert most_likely_forest(circle) == {
        0: 1,
        1: None,
        2: 3,
        3: 0,
    }  # the circle is opened where it is the least likely
    assert most_likely_forest(np.array([[0.0, 0.3], [0.3, 0.0], [0.7, 0.7]])) == {0: None, 1: None}


def test_of_every_circle_the_least_sure_edge_is_left_out() -> None:
    def edge(parent: str, child: str, confidence: float | None) -> Edge:
        return Edge(parent=parent, child=child, relation="related", confidence=confidence)

    circle = [edge("a", "b", 0.9), edge("b", "c", None), edge("c", "a", 0.4), edge("c", "d", 0.1)]
    both = [*circle, edge("x", "y", None), edge("y", "x", 0.6)]
    kept, dropped = remove_cycles(both)
    assert [(e.parent, e.child) for e in dropped] == [("c", "a"), ("y", "x")]
    assert len(kept) == len(both) - 2
    assert remove_cycles(kept) == (kept, [])


def test_what_is_likelier_not_to_be_its_parent_is_not_drawn() -> None:
    g = between(grown([-1, 0, 0], 8))
    unsure = lambda rows: np.array([[0.0, 0.45, 0.9], [0.05, 0, 0.02], [0, 0.07, 0], [0.95, 0.48, 0.08]])  # noqa: E731
    found = Forest()([Family(refs(3), g, parent_probabilities=unsure)])
    assert [(e.parent, e.child, e.confidence) for e in found.edges] == [("m00", "m02", 0.9)]
    assert [r["models"] for r in found.refused] == [["m00", "m01"]]


def test_two_alone_are_given_an_order_only_where_a_trace_would_name_the_parent() -> None:
    g = between(grown([-1, 0], 8))
    likely = lambda rows: np.array([[0.0, 0.8], [0.1, 0.0], [0.9, 0.2]])  # noqa: E731
    drawn, kept = (Forest()([Family(refs(2), g, parent_probabilities=likely, pair_threshold=p)]) for p in (0.5, 0.9))
    assert [(e.parent, e.child) for e in drawn.edges] == [("m00", "m01")]
    assert kept.edges == ()
    assert kept.roots == ("m00", "m01")
    assert [r["models"] for r in kept.refused] == [["m00", "m01"]]


def test_a_test_of_the_pair_that_shows_the_order_counts_more_than_what_is_likely() -> None:
    g = between(grown([-1, 0, 0], 8))
    shown = lambda a, b: PairResult(child_first=a < b, parent_certain=a > b)  # noqa: E731
    equal = lambda rows: np.array([[0, 0.45, 0.45], [0.45, 0, 0.45], [0.45, 0.45, 0], [0.1, 0.1, 0.1]])  # noqa: E731
    found = Forest()([Family(refs(3), g, parent_probabilities=equal, relation=shown)])
    assert found.edges
    assert all(e.parent > e.child and e.confidence is None for e in found.edges)


def test_of_forms_of_one_network_the_widest_stands_for_all_whatever_they_are_called() -> None:
    rows = grown([-1, 0, 0], 4)
    for forms in ((0, 3), (3, 0)):
        g = between(np.concatenate([rows, rows[:1] * (1 + 1e-4)]))
        found = Forest()([Family(refs(4), g, originality=[(4 if k != forms[1] else 2,) for k in range(4)])])
        wide, narrow = (f"m{k:02d}" for k in forms)
        assert {(e.parent, e.child) for e in found.edges} == {(wide, narrow), (wide, "m01"), (wide, "m02")}


def test_the_document_is_plain_json_with_its_fields() -> None:
    found = Forest()([Family(refs(21), between(grown(VTHR, 0)))], [ModelRef("stranger", Digest("sha256:ff"))])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"models", "edges", "roots", "families", "missing_ancestors", "refused"} <= set(document)
    assert {"parent", "child", "relation", "p_value", "confidence"} <= set(document["edges"][0])
    assert document["families"][-1] == ["stranger"]
    assert "stranger" in document["roots"]


# Families


def test_families_are_components_and_few_pairs_are_tested() -> None:
    rng = np.random.default_rng(0)
    whose = np.repeat(np.arange(10), 12)
    codes = rng.integers(0, 256, (10, 256), dtype=np.uint8)
    flips = np.packbits(rng.random((120, 2048)) < 0.15, axis=1)
    asked = []

    def related(i: int, j: int) -> bool:
        asked.append((i, j))
        return bool(whose[i] == whose[j])

    found = find_families(codes[whose] ^ flips, related)
    assert found == [list(range(12 * f, 12 * f + 12)) for f in range(10)]
    assert len(asked) < 200
    assert find_families(codes[whose] ^ flips, lambda i, j: False) == [[i] for i in range(120)]
    with pytest.raises(MisuseError, match="uint8"):
        find_families(np.zeros((3, 4), np.uint8), related)


# From weights


def test_lineage_of_models_with_renamed_halved_and_copied_ones() -> None:
    models = family_of_models(VTHR, 1)
    other = family_of_models([-1, 0, 0], 99, "other")
    arrays = {n: t.array() for n, t in models[5].tensors.items()}
    copies = [named("copy", arrays), named("renamed", {f"t{i}": a for i, a in enumerate(arrays.values())}),
              from_arrays({n: a.astype(np.float16) for n, a in arrays.items()}, "half")]  # fmt: skip
    found = lineage([*models, *other, *copies], detailed=0)
    real = {(e.parent, e.child) for e in found.edges}
    swapped = {(p.replace("copy", "m05"), c.replace("copy", "m05")) for p, c in real} - {("m05", "m05")}
    assert edges_of(VTHR) <= swapped
    assert {("other00", "other01"), ("other00", "other02")} <= real
    assert [len(f) for f in found.families] == [24, 3]
    assert {"copy", "reformatted"} <= {e.relation for e in found.edges}


def with_tokens(parents: list[int], seed: int, prefix: str = "m") -> list[Model]:
    """A family whose models have an embedding of 100 tokens that was trained too."""
    rng, out = np.random.default_rng(seed), list[dict[str, np.ndarray]]()
    for p, m in zip(parents, family_of_models(parents, seed, prefix), strict=True):
        new = rng.normal(size=(100, 32)) / 6
        own = new if p < 0 else out[p]["embed.weight"] + 0.3 * new
        out.append({**{n: t.array() for n, t in m.tensors.items()}, "embed.weight": own.astype(np.float32)})
    return [named(f"{prefix}{i:02d}", a) for i, a in enumerate(out)]


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    return {n: t.array() for n, t in model.tensors.items()}


@pytest.mark.slow
def test_names_tokens_and_other_families_change_no_edge() -> None:
    parents = [-1, 0, 0, 0, 1, 1]
    models = with_tokens(parents, 3)

    def told(some: list[Model], names: dict[str, str] | None = None) -> tuple[dict, list[float]]:
        own = names or {m.name: m.name for m in models}
        edges = sorted((e for e in lineage(some).edges if e.child in own), key=lambda e: own[e.child])
        return {(own[e.parent], own[e.child]): e.relation for e in edges}, [e.confidence or 0.0 for e in edges]

    before, sure = told(models)
    assert before == dict.fromkeys(edges_of(parents), "finetuned")

    def changed(at: int, arrays: dict[str, np.ndarray]) -> list[Model]:
        return [named(m.name, arrays) if i == at else m for i, m in enumerate(models)]

    renamed = {f"x.{i}.w": a for i, a in enumerate(arrays_of(models[2]).values())}
    files = {f"z{9 - i}": m.name for i, m in enumerate(models)}
    for some, names in (
        (changed(2, renamed), None),
        ([replace(m, name=n) for n, m in zip(files, models, strict=True)], files),
        ([*models, *with_tokens(parents, 8, "o")], None),
    ):
        after, as_sure = told(some, names)
        assert after == before
        assert as_sure == pytest.approx(sure, abs=0.01)
    own = arrays_of(models[4])
    own["embed.weight"] = np.concatenate([own["embed.weight"], np.full((1, 32), 0.1, np.float32)])
    assert told(changed(4, own))[0] == before


def changed_at_random(rng: np.random.Generator, x: np.ndarray, other: np.ndarray, how: int) -> np.ndarray:
    """What children go through, and files in a bad state."""
    ways = (
        lambda: x + 0.02 * rng.normal(size=x.shape), lambda: x + 0.3 * rng.normal(size=x.shape),
        lambda: x.astype(np.float16), lambda: np.where(rng.random(x.shape) < 0.5, 0, x),
        lambda: (x + other) / 2 if x.shape == other.shape else x, lambda: np.zeros_like(x), lambda: x * np.nan,
        lambda: x[:-1] if x.ndim > 1 and len(x) > 2 else x, lambda: np.round(x * 16) / 16,
    )  # fmt: skip
    return ways[how]()


@pytest.mark.parametrize("seed", [*range(8), 24, 26])
@pytest.mark.first(1)
def test_every_model_is_in_the_tree_and_none_is_its_own_ancestor(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 30, size=rng.integers(1, 4)).tolist()) for _ in range(rng.integers(1, 5))]
    made = [{f"l{i}.weight": rng.normal(size=s) for i, s in enumerate(shapes)}]
    for _ in range(int(rng.integers(1, 8))):
        parent, other, how = made[int(rng.integers(len(made)))], made[int(rng.integers(len(made)))], rng.integers(9)
        made.append({n: changed_at_random(rng, x, other[n], int(how)) for n, x in parent.items()})
    models = [named(f"m{i}", {n: x.astype(np.float32) for n, x in a.items()}) for i, a in enumerate(made)]
    found = lineage(models, detailed=int(rng.choice([0, 200])))
    above: dict[str, set[str]] = {m.name: set() for m in models}
    for e in found.edges:
        above.setdefault(e.child, set()).add(e.parent)
    tuple(TopologicalSorter(above).static_order())  # a circle is an error
    assert {m.name for m in models} == {m for f in found.families for m in f}
    assert all(above[m.name] or m.name in found.roots for m in models)


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
@pytest.mark.parametrize("how", ["half", "brain, stored wide", "half, stored wide"])
@pytest.mark.parametrize("detailed", [200, 0])
def test_a_copy_in_half_precision_is_below_the_original_whatever_it_is_called(
    names: tuple[str, str], how: str, detailed: int
) -> None:
    models = with_tokens([-1, 0, 0], 4)
    wide, narrow = names
    root = {n: a.astype(np.float32) for n, a in arrays_of(models[0]).items()}
    if how.startswith("brain"):
        rounded = {n: ((a.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32) for n, a in root.items()}
    else:
        rounded = {n: a.astype(np.float16) for n, a in root.items()}
    if how.endswith("wide"):
        rounded = {n: a.astype(np.float32) for n, a in rounded.items()}
    copy = from_arrays(rounded, narrow)
    found = lineage([named(wide, root), copy, *models[1:]], detailed=detailed)
    assert {(e.parent, e.child) for e in found.edges} == {(wide, narrow), (wide, "m01"), (wide, "m02")}
    alone = lineage([named(wide, root), copy], detailed=detailed)
    assert [(e.parent, e.child) for e in alone.edges] == [(wide, narrow)]


def test_strangers_get_no_edge() -> None:
    found = lineage([family_of_models([-1], s, f"s{s}-")[0] for s in range(5)])
    assert found.edges == ()
    assert len(found.roots) == 5
    assert all(len(f) == 1 for f in found.families)


def test_a_merge_hangs_below_both_parents_and_its_child_below_it() -> None:
    models = family_of_models([-1, 0, 0, 0, 0], 2)
    arrays = [{n: t.array() for n, t in m.tensors.items()} for m in models]
    rng = np.random.default_rng(3)
    merge = {n: 0.6 * arrays[1][n] + 0.4 * arrays[2][n] for n in arrays[0]}
    child = {n: a + 0.3 * rng.normal(size=a.shape) / 6 for n, a in merge.items()}
    found = lineage([*models, named("merge", merge), named("tuned", child)], detailed=0)
    real = {(e.parent, e.child): e for e in found.edges}
    assert set(real) == edges_of([-1, 0, 0, 0, 0]) | {("m01", "merge"), ("m02", "merge"), ("merge", "tuned")}
    assert real["m01", "merge"].share == pytest.approx(0.6, abs=0.01)


def test_a_pruned_model_hangs_below_what_it_was_cut_from_and_a_pruned_parent_stays_one() -> None:
    models = family_of_models([-1, 0, 0, 0], 4)
    arrays = {n: t.array() for n, t in models[1].tensors.items()}
    cut = {n: np.where(np.abs(a) < np.quantile(np.abs(a), 0.5), 0, a) for n, a in arrays.items()}
    rng = np.random.default_rng(1)
    tuned = {n: np.where(a == 0, 0, a + 0.05 * rng.normal(size=a.shape)) for n, a in cut.items()}
    found = lineage([*models, named("cut", cut), named("cut-tuned", tuned)], detailed=0)
    edges = {(e.parent, e.child): e.relation for e in found.edges}
    assert edges["m01", "cut"] == "pruned"
    assert ("cut", "cut-tuned") in edges


def test_no_models_one_model_and_two_of_one_name() -> None:
    with pytest.raises(MisuseError, match="none was given"):
        lineage([])
    one = family_of_models([-1])
    assert lineage(one).roots == ("m00",)
    with pytest.raises(MisuseError, match="two models are named 'm00'"):
        lineage([*one, *one])


def test_models_that_cannot_be_compared_stand_alone() -> None:
    vectors = [named(f"v{i}", {"b": np.arange(5) + i}) for i in range(2)]
    flat = named("zero", {"layers.0.weight": np.zeros((16, 16)), "layers.1.weight": np.zeros((16, 16))})
    found = lineage([*vectors, flat, *family_of_models([-1, 0, 0])])
    assert {(e.parent, e.child) for e in found.edges} == {("m00", "m01"), ("m00", "m02")}
    assert {t["model"]: t["what"] for t in found.not_tested} == dict.fromkeys(("v0", "v1", "zero"), "not-comparable")
    alone = lineage([vectors[0]])
    assert [(t["model"], t["what"]) for t in alone.not_tested] == [("v0", "nothing-searched")]


def test_lineage_of_an_empty_place_is_one_clear_error(tmp_path) -> None:
    workspace = Workspace(Registry(":memory:"))
    with pytest.raises(NotAModelError, match="stemma add"):
        models_to_draw(workspace)
    with pytest.raises(NotAModelError, match="no checkpoint in"):
        models_to_draw(workspace, [tmp_path])


def in_other_coordinates(model: Model, name: str, seed: int = 0) -> Model:
    """The same network with its hidden units in another order."""
    rng, w = np.random.default_rng(seed), {n: t.array() for n, t in model.tensors.items()}
    first, second = rng.permutation(48), rng.permutation(40)
    return named(name, {
        "layers.0.weight": w["layers.0.weight"][first],
        "layers.1.weight": w["layers.1.weight"][second][:, first],
        "layers.2.weight": w["layers.2.weight"][:, second],
    })  # fmt: skip


def test_a_model_in_other_coordinates_hangs_below_the_one_it_is() -> None:
    models = family_of_models([-1, 0, 0, 1, 1], 5)
    found = lineage([*models, in_other_coordinates(models[1], "turned")])
    edges = {(e.parent, e.child): e.relation for e in found.edges}
    assert set(edges) == edges_of([-1, 0, 0, 1, 1]) | {("m01", "turned")}
    assert edges["m01", "turned"] == "permuted"
    alone = lineage([models[1], in_other_coordinates(models[1], "turned")])
    assert [(e.parent, e.child, e.relation) for e in alone.edges] == [("turned", "m01", "permuted")]
    assert alone.refused == ()


@pytest.mark.slow
def test_models_of_other_shapes_hang_below_what_they_were_cut_from() -> None:
    known = ("root", "finetuned", "units-pruned", "units-pruned-finetuned", "independent-1", "rescaled", "int8")
    found = lineage([m.model for m in family("mlp", only=known).members])
    edges = {(e.parent.removeprefix("mlp/"), e.child.removeprefix("mlp/")): e.relation for e in found.edges}
    assert edges == {
        ("root", "finetuned"): edges["root", "finetuned"], ("root", "units-pruned"): "pruned",
        ("units-pruned", "units-pruned-finetuned"): edges["units-pruned", "units-pruned-finetuned"],
        ("root", "rescaled"): "permuted", ("root", "int8"): "quantized",
    }  # fmt: skip
    assert [len(f) for f in found.families] == [6, 1]


@pytest.mark.slow
def test_one_model_without_numbers_does_not_stop_the_others() -> None:
    models = family_of_models(VTHR, 1)
    broken = named("m03", {n: t.array() * np.nan for n, t in models[3].tensors.items()})
    found = lineage([*models[:3], broken, *models[4:]], detailed=0)
    assert found.missing_ancestors[0]["children"] == ["m13", "m14", "m15", "m16"]
    assert found.missing_ancestors[0]["parent"] == "m00"
    assert ("m03",) in found.families


@pytest.mark.slow
def test_a_model_that_is_added_touches_its_family_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = family_of_models([-1, 0, 0, 0, *(1 + i // 3 for i in range(9))], 1, "a")
    second = family_of_models([-1, 0, 0, 0], 2, "b")
    stranger = family_of_models([-1], 5, "s")
    left = [m for m in first if m.name != "a01"]
    before = lineage([*left, *second[:3], *stranger], detailed=0)
    assert len(before.missing_ancestors) == 1
    drawn: list[int] = []
    monkeypatch.setattr(
        LineageBuilder,
        "describe_family",
        lambda self, m, v, own=LineageBuilder.describe_family: drawn.append(len(m)) or own(self, m, v),
    )
    after = update_lineage(before, [*left, *second, *stranger], detailed=0).lineage
    assert drawn == [4]
    whole = lineage([*left, *second, *stranger], detailed=0)
    assert {(e.parent, e.child) for e in after.edges} == {(e.parent, e.child) for e in whole.edges}
    assert (after.roots, after.families, after.models) == (whole.roots, whole.families, whole.models)
    assert after.missing_ancestors == whole.missing_ancestors
    found = update_lineage(before, [*first, *second[:3], *stranger], detailed=0).lineage
    assert found.missing_ancestors == ()
    assert len(found.edges) == 14


# The command


def written(models: list[Model], folder: Path) -> Path:
    for m in models:
        save_file({n: t.array() for n, t in m.tensors.items()}, folder / f"{m.name}.safetensors")
    return folder


def test_the_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(family_of_models([-1, 0, 0, 1], 7), tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["lineage", str(folder), "--json"])
    assert left.value.code == 0
    document = check_document(capsys.readouterr().out)
    assert {(e["parent"], e["child"]) for e in document["edges"]} == edges_of([-1, 0, 0, 1])
    assert document["roots"] == ["m00"]


def test_the_command_draws_what_is_enrolled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, registry = written(family_of_models([-1, 0, 0, 0, 0], 8)[1:], tmp_path), str(tmp_path / "r.db")
    for command in (["add", str(folder), "--registry", registry], ["lineage", "--registry", registry]):
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "(missing 1)" in shown
    assert "no model here can be the parent of m01, m02, m03, m04" in " ".join(shown.split())


def test_no_name_drives_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = family_of_models([-1, 0, 0], 8)
    folder = written([replace(m, name=f"{m.name}\x1b[31m[bold]") for m in models], tmp_path)
    with pytest.raises(SystemExit):
        main(["lineage", str(folder)])
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    assert r"m01\x1b[31m[bold]" in shown
