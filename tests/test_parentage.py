"""Direction and parenthood on families with known history that nothing was fitted on."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from stemma.ancestry.direction import FORWARD, feature_row
from stemma.ancestry.geometry import Geometry, trained_batches
from stemma.ancestry.parent_model import FEATURE_NAMES, indistinguishable_groups, parent_features
from stemma.ancestry.roles import Role
from stemma.ancestry.trace import trace
from stemma.checkpoints.model import Model
from stemma.kinship.compare import compare_weights
from stemma.networks.load import from_arrays
from stemma.training import shipped_parent_model
from stemma.training.direction import Query, fit_direction, fit_parent_model, geometry_of, pairs, queries
from stemma.training.lineage_families import RECIPES, Pedigree, pedigrees, tunings
from stemma.training.parent_model import (
    Answer,
    ScoredQuery,
    calibrate,
    calibration_tables,
    right_by_probability,
    score_queries,
)
from stemma.types import Trace
from stemma.workspace.candidates import candidate_from_model
from stemma.workspace.role_assignment import RoleAssignment, with_direction
from stemma.zoo import family

SURE = 0.8


@pytest.fixture(scope="module")
def families() -> list[Pedigree]:
    return list(pedigrees("mlp", range(9101, 9104), shapes=((3, 2),), usual=True))


@pytest.fixture(scope="module")
def members() -> dict[str, Model]:
    names = ["root", "copy", "half", "int8", "finetuned", "finetuned-other-data", "merged-two", "lora", "permuted",
             "units-pruned", "weights-pruned", "independent-1", "independent-2"]  # fmt: skip
    return {m.name.removeprefix("mlp/"): m.model for m in family("mlp", only=names).members}


def traced(suspect: Model, others: Sequence[Model]) -> Trace:
    return trace(
        suspect,
        [candidate_from_model(m) for m in others],
        lambda c: compare_weights(c.load(), suspect),
        assign_roles=RoleAssignment(suspect, shipped_parent_model),
    )


@pytest.mark.slow
def test_direction_is_right_where_it_decides_and_silent_about_siblings(families: list[Pedigree]) -> None:
    model = shipped_parent_model().direction
    found = [pair for p in families for pair in pairs(p.family)]
    told = model.from_features([p.features for p in found])
    descends = np.array([p.label == FORWARD for p in found])
    decided = told[:, :2].max(axis=1) >= SURE
    assert decided[descends].mean() > 0.4
    assert (told[descends & decided, 0] > told[descends & decided, 1]).mean() > 0.85
    assert decided[~descends].mean() < 0.15
    turned = model.from_features([p.features.swapped() for p in found])
    np.testing.assert_allclose(turned, told[:, [1, 0, 2]], atol=1e-12)
    np.testing.assert_allclose(told.sum(axis=1), 1)


@pytest.mark.slow
def test_the_likeliest_is_the_parent_and_orphans_are_refused(families: list[Pedigree]) -> None:
    model = shipped_parent_model()
    right, refused = [], []
    for pedigree in families:
        geometry = geometry_of(pedigree.family)
        for query in queries(pedigree.family, model.direction, 3, geometry=geometry):
            p = model.from_features(query.rows)
            assert p.sum() <= 1 + 1e-9
            if query.ambiguous:
                continue
            if query.parent is not None:
                right.append(int(p.argmax()) == query.parent)
            elif not query.ancestors:
                refused.append(p.max() < model.parent_threshold(len(p)))
    assert np.mean(right) > 0.8
    assert np.mean(refused) > 0.7  # measured: four or five of five, by the last digits of what was trained
    assert min(len(right), len(refused)) >= 5


def test_features_have_a_name_each_and_a_lone_relative_has_them_too(families: list[Pedigree]) -> None:
    geometry = geometry_of(families[0].family)
    model = shipped_parent_model()
    assert parent_features(geometry, model.direction, 1, [0, 2, 3]).shape == (3, len(FEATURE_NAMES))
    assert np.isfinite(parent_features(geometry, model.direction, 1, [0])).all()
    assert model.probabilities(geometry, 1, []).shape == (0,)
    pair = geometry.pair_features(0, 1)
    assert pair is not None
    assert len(feature_row(pair)) == len(model.direction.trees.names)


def test_strangers_have_no_direction(members: dict[str, Model]) -> None:
    a, b = members["independent-1"], members["independent-2"]
    geometry = Geometry.of([a, b])
    assert shipped_parent_model().direction.probabilities(geometry, [(0, 1)]).tolist() == [[0.0, 0.0, 1.0]]
    found = compare_weights(a, b)
    assert with_direction(found, a, b, shipped_parent_model).direction == "unknown"


@pytest.mark.parametrize("child", ["int8", "half", "units-pruned"])
@pytest.mark.first(1)
def test_a_mark_decides_the_direction_both_ways(members: dict[str, Model], child: str) -> None:
    root, made = members["root"], members[child]
    turn = partial(with_direction, parent_model=shipped_parent_model)
    assert turn(compare_weights(root, made), root, made).direction == "a->b"
    assert turn(compare_weights(made, root), made, root).direction == "b->a"
    down = traced(made, [root, members["independent-1"]])
    assert (down.verdict, [p["name"] for p in down.parents]) == ("descends", ["mlp/root"])
    up = traced(root, [made, members["independent-1"]])
    assert (up.verdict, up.parents) == ("related", ())
    assert [r["role"] for r in up.relatives] == [Role.CHILD]


def test_what_was_cut_from_the_parent_is_no_child_of_its_sibling(members: dict[str, Model]) -> None:
    kin = [members[n] for n in ("root", "weights-pruned")]
    found = traced(members["finetuned"], kin)
    roles = {r["name"].removeprefix("mlp/"): r["role"] for r in (*found.parents, *found.relatives)}
    assert roles["weights-pruned"] == Role.RELATIVE
    alone = traced(members["root"], [members["weights-pruned"]])  # the control
    assert [r["role"] for r in alone.relatives] == [Role.CHILD]


def test_the_parent_set_is_printed_with_its_probabilities(members: dict[str, Model]) -> None:
    found = traced(members["finetuned"], [members[n] for n in ("root", "copy", "finetuned-other-data", "lora")])
    assert found.coverage == 0.95
    assert found.parent_set
    names = [p["name"].removeprefix("mlp/") for p in found.parent_set]
    assert "root" in names or "copy" in names
    first = next(p for p in found.parent_set if p["name"] in ("mlp/root", "mlp/copy"))
    assert {first["name"], *first["or"]} == {"mlp/root", "mlp/copy"}  # one member
    assert 0 < sum(p["probability"] for p in found.parent_set) <= 1.001
    exact = traced(members["int8"], [members["root"], members["finetuned-other-data"]])
    assert [p["name"] for p in exact.parent_set] == ["mlp/root"]


def test_the_parents_of_a_merge_are_named_with_their_shares(members: dict[str, Model]) -> None:
    others = [members[n] for n in ("finetuned", "finetuned-other-data", "lora", "independent-1")]
    found = traced(members["merged-two"], others)
    assert found.verdict == "descends"
    assert {p["name"] for p in found.parents} == {"mlp/finetuned", "mlp/finetuned-other-data"}
    assert [p["share"] for p in found.parents] == pytest.approx([0.5, 0.5], abs=0.02)
    assert {p["relation"] for p in found.parents} == {"merged"}
    one = traced(members["merged-two"], [members["finetuned"], members["independent-1"]])
    assert all(p["relation"] != "merged" for p in one.parents)  # the control: half of the parents make no merge


def test_copies_of_a_parent_count_once_and_share_its_probability(members: dict[str, Model]) -> None:
    kin = [members[n] for n in ("root", "copy", "finetuned", "finetuned-other-data")]
    found = traced(members["lora"], kin)
    by_name = {r["name"]: r for r in (*found.parents, *found.relatives)}
    assert by_name["mlp/root"]["confidence"] == by_name["mlp/copy"]["confidence"]
    assert by_name["mlp/root"]["role"] == by_name["mlp/copy"]["role"]


def test_another_form_is_neither_parent_nor_child(members: dict[str, Model]) -> None:
    found = traced(members["permuted"], [members["root"], members["independent-1"]])
    assert found.verdict == "related"
    assert [(p["name"], p["direction"], p["role"]) for p in found.parents] == [("mlp/root", "unknown", Role.SAME)]


@pytest.mark.slow
def test_what_is_learnt_again_is_learnt_the_same(families: list[Pedigree]) -> None:
    pytest.importorskip("sklearn")
    known = [pair for p in families for pair in pairs(p.family)]
    one, two = fit_direction(known), fit_direction(known)
    np.testing.assert_array_equal(one.trees.value, two.trees.value)
    asked = [q for p in families[:2] for q in queries(p.family, one)]
    parents = fit_parent_model(asked, one)
    assert parents.trees.names == FEATURE_NAMES
    assert 0 < calibrate(parents, score_queries(parents, asked)).parent_threshold(8) <= 1


def answer(parent: int | None, *probabilities: float) -> Answer:
    query = Query(np.zeros((len(probabilities), 1)), parent, (), ("mlp", 0))
    return Answer(query, np.array(probabilities))


@pytest.mark.slow
def test_a_parent_set_holds_the_truth_as_often_as_is_asked() -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int) -> list[ScoredQuery]:
        p = rng.dirichlet([1, 1, 1, 2], size=count)
        truths = [int(rng.choice(4, p=row)) for row in p]
        return [ScoredQuery(answer(t if t < 3 else None, *row[:3]).query, np.log(row[:3] / row[3]))
                for t, row in zip(truths, p, strict=True)]  # fmt: skip

    model = calibrate(shipped_parent_model(), drawn(3000))
    choice = model.trees.about["choice"]
    assert choice[0] == pytest.approx(1, abs=0.1)  # the scores were the true log-odds
    for coverage in (0.8, 0.9, 0.95):
        held, sizes = [], []
        for a in (h.answer(choice) for h in drawn(2000)):
            chosen, unknown = model.parent_set(list(a.probabilities), coverage)
            held.append(unknown if a.query.parent is None else a.query.parent in chosen)
            sizes.append(len(chosen) + unknown)
        assert abs(np.mean(held) - coverage) < 0.03
        assert 1 <= min(sizes) < np.mean(sizes) < 4  # the control: not everybody is in it


def test_a_parent_is_named_from_where_others_are_hardly_ever_named() -> None:
    wrong = [answer(None, 0.6 + k / 500) for k in range(100)]
    right = [answer(0, 0.99)] * 900
    [one, *rest] = calibration_tables([*wrong, *right])
    assert one["named from"] == pytest.approx(0.6 + 97 / 500, abs=0.001)  # two orphans of a hundred are named above it
    assert all(t["named from"] == 1 for t in rest)  # nothing is named where there is nothing to go by
    assert calibration_tables([*wrong[:20], *right])[0]["named from"] == 1  # nor by too few orphans
    assert calibration_tables([answer(None, 0.1)] * 100)[0]["named from"] == 0.5


def test_candidates_that_hardly_differ_are_one(members: dict[str, Model]) -> None:
    geometry = Geometry.of([members[n] for n in ("finetuned", "root", "copy", "half", "finetuned-other-data")])
    found = indistinguishable_groups(geometry, 0, [1, 2, 3, 4])
    assert sorted(found[0]) == [1, 2, 3]
    assert found[1:] == [[4]]
    assert indistinguishable_groups(geometry, 0, []) == []


def test_tunings_are_those_of_their_recipes(families: list[Pedigree]) -> None:
    drawn = tunings(3, usual=False)
    assert len(drawn) == 4 * len(RECIPES)
    assert {t.name.rsplit("-", 1)[0] for t in drawn} == set(RECIPES)
    assert all((t.weight_decay > 0) == (RECIPES[t.name.rsplit("-", 1)[0]][1] is not None) for t in drawn)
    assert families[0].family.members[0].ancestors == ()


def test_who_was_trained_on_more_batches_is_hardly_the_parent() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(64, 48)).astype(np.float32)
    child = root + 0.3 * rng.normal(size=root.shape).astype(np.float32)

    def model(name: str, weights: np.ndarray, batches: int | None) -> Model:
        counter = {} if batches is None else {"bn.num_batches_tracked": np.array(batches)}
        return from_arrays({"a.weight": weights, "b.weight": weights.T.copy(), **counter}, name)

    def parent(first: int | None, second: int | None) -> float:
        two = Geometry.of([model("child", child, second), model("root", root, first)])
        return float(shipped_parent_model().probabilities(two, 0, [1])[0])

    assert trained_batches(model("m", root, 7)) == 7
    without = parent(None, None)
    assert without > 0.2
    assert parent(100, 200) == without  # that order shows nothing new: siblings of another length look like it
    assert parent(200, 100) < 0.5 * without
    assert parent(200, None) == parent(None, 100) == without  # counters may be missing, or start anew


def test_edges_are_right_as_often_as_isotonic_regression_says() -> None:
    rng = np.random.default_rng(1)
    stated = rng.uniform(size=4000)
    at, right = right_by_probability(stated.tolist(), (rng.uniform(size=4000) < stated**2).tolist())
    assert at == sorted(at)
    assert right == sorted(right)
    assert np.interp([0.3, 0.6, 0.9], at, right) == pytest.approx([0.09, 0.36, 0.81], abs=0.08)
    alone = right_by_probability([0.4, 0.6], [True, False])
    assert alone == [[0.5], [0.5]]
