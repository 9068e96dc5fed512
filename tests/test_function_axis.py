"""The verdict on the function axis: exact under the null, strong for children, and silent where it must be."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.gradient_field import GradientField
from stemma.kinship.axes import both_axes
from stemma.kinship.compare import compare, reason_not_comparable
from stemma.kinship.function import combined
from stemma.kinship.function.closer_than_independent import CloserThanIndependent
from stemma.kinship.function.closest_of_many import ClosestOfMany
from stemma.kinship.function.multiple_testing import CLOSEST, HOLM, correct_for_candidates, holm
from stemma.kinship.function.null_models import NullModels, Subject, conformal_p_value, models_needed
from stemma.kinship.function.observations import mean_distances, observe
from stemma.kinship.function.selection import select
from stemma.kinship.function.sketches import MAX_BYTES, FunctionalSketch, from_sketch
from stemma.measures.field_cosine import FieldCosine
from stemma.networks.from_module import from_module
from stemma.networks.load import from_arrays, load
from stemma.probes import Probes
from stemma.registry import Registry, blobs
from stemma.types import Comparison, Evidence, RelationKind, Verdict
from stemma.workspace import Workspace
from stemma.zoo import independents
from stemma.zoo.data import examples
from stemma.zoo.kinds import kind_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build
from strangers import perceptrons

COUNT = 44


@pytest.fixture(scope="module")
def probes() -> Probes:
    found = examples("mlp", "test")
    return Probes.of(found.inputs[:48], found.targets[:48])


@pytest.fixture(scope="module")
def nets() -> list[Model]:
    """Networks of one architecture on one data set that differ by their seed: the hard negatives."""
    return perceptrons(COUNT)


@pytest.fixture(scope="module")
def family() -> dict[str, Model]:
    root = Recipe("mlp", "train", seed=77)
    made: dict = {}
    tuned = Recipe("mlp", "finetune", RelationKind.FINETUNED, (root,), seed=5)
    head = Recipe("mlp", "replace-head", RelationKind.HEAD_REPLACED, (root,), {}, seed=7)
    return {n: build(r, n, made=made) for n, r in (("root", root), ("tuned", tuned), ("head", head))}


@pytest.fixture(scope="module")
def table(nets: list[Model], probes: Probes) -> np.ndarray:
    """Distances of all pairs by all methods, `[n, n, methods]`."""
    seen = [observe(m, probes, combined.METHODS, labelled=True) for m in nets]
    return np.array([[mean_distances(a, b, combined.METHODS) for b in seen] for a in seen])


# The p-value


def test_the_conformal_p_value_is_the_rank_for_every_order_of_distinct_values() -> None:
    for m in (1, 2, 4):
        values = list(range(m + 1))
        p = sorted(conformal_p_value(o[0], o[1:]) for o in itertools.permutations(values))
        once = sorted((1 + k) / (m + 1) for k in range(m + 1))
        assert p == pytest.approx(sorted(once * (len(p) // (m + 1))))
    assert conformal_p_value(1.0, [1.0, 1.0, 2.0]) == 3 / 4  # ties count against the claim


@pytest.mark.parametrize(("alpha", "models"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.03, 33), (0.9, 1)])
def test_how_many_null_models_a_level_takes(alpha: float, models: int) -> None:
    assert models_needed(alpha) == models
    assert models == 1 or 1 / models > alpha >= 1 / (models + 1) or ceil(1 / alpha) - 1 == models


def test_ranks_of_independent_networks_are_exactly_uniform(table: np.ndarray) -> None:
    """Exchangeability as an identity: each network in the suspect's place once gives each rank once."""
    for a in range(0, COUNT, 5):
        others = [i for i in range(COUNT) if i != a]
        ranks = []
        for b in others:
            null = [i for i in others if i != b]
            value, values = combined.statistics(table[a, b], table[a, null])
            ranks.append(round(conformal_p_value(value, values.tolist()) * (COUNT - 1)))
        assert sorted(ranks) == list(range(1, COUNT))


def test_the_larger_p_value_of_both_views_is_conservative(table: np.ndarray) -> None:
    """Random pairs and nulls out of real networks: P(p <= t) <= t, up to three standard errors of the simulation."""
    rng, m, found = np.random.default_rng(0), 19, []
    for _ in range(1500):
        a, b, *null = rng.choice(COUNT, m + 2, replace=False)
        views = []
        for pair, rows in ((table[a, b], table[a, null]), (table[a, b], table[null, b])):
            value, values = combined.statistics(pair, rows)
            views.append(conformal_p_value(value, values.tolist()))
        found.append(max(views))
    p = np.array(found)
    for t in (0.05, 0.1, 0.2, 0.5, 0.8):
        assert (p <= t + 1e-9).mean() <= t + 3 * np.sqrt(t * (1 - t) / len(p))
    # The control: the same networks judged by the normal law of their null are not calibrated to that, only ranks are.
    assert p.min() >= 1 / (m + 1)


# The evidence


def _test(a: Model, b: Model, probes: Probes, null: Sequence[Model], alpha: float = 0.05) -> Evidence:
    return CloserThanIndependent(alpha)(Subject.of(a), Subject.of(b), probes, NullModels.of(null))


def test_a_child_is_found_and_strangers_are_not(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    null = nets[:19]
    child = _test(family["root"], family["tuned"], probes, null)
    assert (child.verdict, child.p_value, child.null.size, child.null.floor) == (Verdict.SUPPORTED, 0.05, 19, 0.05)
    assert child.effect > 0.2  # a quarter less for each of 48 answers that differs; measured: .50 to .996
    assert json.loads(json.dumps(child.to_dict()))["details"]["same_task"] is True
    strangers = [_test(family["root"], n, probes, null) for n in nets[19:27]]
    assert sum(e.verdict is Verdict.SUPPORTED for e in strangers) <= 2  # 8 trials at 5 %: more has p < .006
    assert {e.verdict for e in strangers} <= {Verdict.SUPPORTED, Verdict.INCONCLUSIVE}  # never refuted by not rejecting
    assert np.mean([e.effect for e in strangers]) < 0.5 * child.effect  # measured: .10
    turned = _test(family["tuned"], family["root"], probes, null)
    assert (turned.p_value, turned.value) == (child.p_value, pytest.approx(child.value))


def test_every_figure_stands_beside_its_control(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    e = _test(family["root"], family["tuned"], probes, nets[:19])
    first = e.details["measures"][0]
    assert first["distance"] == e.value
    assert first["interval"][0] < e.value < first["interval"][1]
    assert first["null_smallest"] > first["interval"][1]
    labels = np.asarray(probes.labels)
    answered = [observe(family[n], probes, combined.METHODS, labelled=True).classes for n in ("root", "tuned")]
    assert e.details["accuracy"] == pytest.approx([np.mean(c == labels) for c in answered if c is not None])
    assert e.details["agreement"] == pytest.approx(np.mean(np.equal(*answered)))
    assert [v["null_stands_for"] for v in e.details["views"]] == ["tuned", "root"]
    assert e.p_value == max(v["p_value"] for v in e.details["views"])


def test_a_null_that_is_too_small_says_how_many_are_missing(nets: list[Model], probes: Probes) -> None:
    e = _test(nets[0], nets[0], probes, nets[1:3], alpha=0.01)
    assert (e.verdict, e.p_value, e.null.floor) == (Verdict.INCONCLUSIVE, 1 / 3, 1 / 3)
    assert e.reason == (
        "the smallest attainable p-value with 2 control models is 0.333: 97 more are needed for alpha 0.01 "
        "(from 3 on a normal law is tried)"
    )
    apart = _test(nets[0], nets[1], probes, nets[2:7], alpha=0.01)
    assert (apart.verdict, apart.null.floor) == (Verdict.INCONCLUSIVE, 1 / 6)
    assert "94 more are needed for alpha 0.01" in apart.reason
    assert re.match(r"[1-5] of 5 control models are as close, and the smallest", apart.reason)
    none = _test(nets[0], nets[1], probes, [])
    assert (none.verdict, none.p_value, none.log10_p) == (Verdict.INCONCLUSIVE, None, None)
    assert none.details["p_values"]["decides"] is None
    assert "19 are needed" in none.reason


def test_null_models_that_do_the_task_less_well_prove_nothing(nets: list[Model], probes: Probes) -> None:
    """Two networks that learned one task are closer to each other than to networks that learned nothing."""
    ignorant = independents("mlp", 19, seed=5, untrained=True)
    e = _test(nets[0], nets[1], probes, ignorant)
    assert e.p_value == 0.05
    assert e.verdict is Verdict.INCONCLUSIVE
    assert "lower" in e.reason
    assert _test(nets[0], nets[0], probes, nets[1:20]).verdict is Verdict.SUPPORTED  # the control: a copy, a fair null


def test_null_models_that_know_more_than_both_prove_nothing(nets: list[Model], probes: Probes) -> None:
    """Two networks that were hardly trained are closer to each other than to networks that were."""
    young = independents("mlp", 24, seed=9, steps=30)
    e = _test(young[0], young[1], probes, nets[:19])
    assert e.p_value == 0.05
    assert e.verdict is Verdict.INCONCLUSIVE
    assert "higher" in e.reason
    assert _test(young[0], young[0], probes, young[5:]).verdict is Verdict.SUPPORTED  # the control: a fair null
    searched = ClosestOfMany(0.05)(*[Subject.of(m) for m in young[:1]], [Subject.of(young[1])], probes,
                                   NullModels.of(nets[:19]))  # fmt: skip
    assert isinstance(searched[0], Evidence)
    assert (searched[0].p_value, searched[0].verdict) == (0.05, Verdict.INCONCLUSIVE)
    assert "higher" in searched[0].reason


@pytest.mark.slow
def test_a_network_counts_once(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    """Copies of one null model are one draw, and those in question are none."""
    far = max(nets[2:12], key=lambda m: _test(nets[0], nets[1], probes, [m]).null.values[0])
    copies = _test(nets[0], nets[1], probes, [far] * 19)
    assert (copies.null.size, copies.verdict) == (1, Verdict.INCONCLUSIVE)
    assert f"{far.name}: the same network as {far.name}" in copies.details["left_out"]
    pair = family["root"], family["tuned"]
    e = _test(*pair, probes, [*pair, *nets[:19]])
    assert (e.null.size, e.p_value, e.verdict) == (19, 0.05, Verdict.SUPPORTED)
    assert [line.split(":")[0] for line in e.details["left_out"]] == ["root", "tuned"]
    found = ClosestOfMany(0.05)(
        Subject.of(pair[1]), [Subject.of(pair[0])], probes, NullModels.of([pair[1], *nets[:19] * 2])
    )
    assert isinstance(found[0], Evidence)
    assert (found[0].null.size, found[0].p_value) == (19, 0.05)


def test_black_boxes_of_one_name_are_not_one_model(nets: list[Model], probes: Probes) -> None:
    boxes = [from_module(lambda x, m=m: m.network(x).detach(), "service") for m in nets[:12]]
    e = _test(nets[20], nets[21], probes, [*boxes, boxes[3]])
    assert e.details["null_models"] == ["service"] * 12
    assert e.details["left_out"] == ["service: the same network as service"]


def test_two_networks_that_never_change_their_answer_are_no_kin_for_it(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    def dead(model: Model, shift: float) -> Model:
        arrays = {n: np.array(t.array()) for n, t in model.tensors.items()}
        last = [n for n in arrays if n.startswith("head.")]
        arrays |= {n: np.zeros_like(arrays[n]) for n in last}
        arrays["head.bias"][3] = shift
        return from_arrays(arrays, f"dead-{shift}", model.config)

    asked = probes.with_labels(None)
    null = NullModels.of(nets[2:22])
    test = CloserThanIndependent(0.05)
    found = test(Subject.of(dead(nets[0], 1.0)), Subject.of(dead(nets[1], 2.0)), asked, null)
    assert found.details["agreement"] == 1
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "is no evidence" in found.reason
    alive = test(Subject.of(family["root"]), Subject.of(family["tuned"]), asked, null)  # the control: p is as small
    assert alive.p_value == found.p_value
    assert alive.verdict is Verdict.SUPPORTED


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.01, 1.5, float("nan")])
def test_a_level_lies_between_zero_and_one(alpha: float) -> None:
    for test in (CloserThanIndependent, ClosestOfMany):
        with pytest.raises(MisuseError, match="between 0 and 1"):
            test(alpha)


def test_figures_are_of_the_view_that_decides(nets: list[Model], probes: Probes) -> None:
    """Models with other heads have nulls of other sizes."""
    heads = [from_module(nn.Sequential(m.network.module, nn.Linear(10, 5, bias=False)).eval(), f"five-{m.name}")
             for m in nets[:8]]  # fmt: skip
    for order in ([nets[20], heads[0]], [heads[0], nets[20]]):
        e = _test(*order, probes.with_labels(None), [*nets[8:20], *heads[1:]], alpha=0.125)
        view = max(e.details["views"], key=lambda v: v["p_value"])
        assert {v["n"] for v in e.details["views"]} == {12, 7}
        assert (e.null.size, len(e.null.values), e.null.floor) == (view["n"], view["n"], 1 / (view["n"] + 1))
        as_near = sum(v <= view["statistic"] for v in e.null.values)
        assert e.p_value == (1 + as_near) / (e.null.size + 1)
        assert e.reason.startswith(f"{as_near or 'none'} of {e.null.size} ")


def test_null_models_of_other_architectures_prove_nothing(nets: list[Model], probes: Probes) -> None:
    """Networks of one architecture are nearer to each other, so strangers of another say nothing of kinship."""
    wide = independents("mlp", 19, seed=8, config=kind_of("mlp").other)
    e = _test(nets[0], nets[0], probes, wide)
    assert (e.p_value, e.verdict) == (0.05, Verdict.INCONCLUSIVE)
    assert "other architectures" in e.reason
    mixed = _test(nets[0], nets[0], probes, [*wide, *nets[1:20]])
    assert (mixed.null.size, mixed.verdict) == (19, Verdict.SUPPORTED)  # only its own kind stands in for a model
    # A student of another architecture: the teacher's own null decides, for nothing stands in for the student.
    across = _test(nets[0], wide[0], probes, nets[1:20])
    assert across.details["same_architecture"] == [True]
    assert [v["same_architecture"] for v in across.details["views"]] == [False, True]
    assert across.p_value == across.details["views"][1]["p_value"]


def test_other_heads_are_compared_without_labels(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    e = _test(family["root"], family["head"], probes, nets[:19])
    assert e.details["labels"] == "not used (the models have different outputs)"
    assert e.details["agreement"] is None
    views = {v["null_stands_for"]: v for v in e.details["views"]}
    assert views["root"]["n"] == 19  # seen from the new head, the root stands among networks with its own head
    assert views["head"]["n"] == 0  # nothing stands in for the new head
    assert e.p_value == views["root"]["p_value"]
    assert e.null.size == 19
    assert "gradient-field" in {m["fingerprint"] for m in e.details["measures"]}


def test_wrong_probes_are_one_sentence(nets: list[Model], probes: Probes) -> None:
    with pytest.raises(MisuseError, match="raw inputs of shape"):
        _test(nets[0], nets[1], Probes.of(np.zeros((3, 1, 4, 4), np.float32)), nets[2:5])
    with pytest.raises(MisuseError, match="labels up to 12, but mlp-31-0 and mlp-31-1 have 10 outputs"):
        _test(nets[0], nets[1], probes.with_labels(np.full(len(probes), 12)), nets[2:5])
    frozen = _test(nets[0], nets[1], probes.with_labels(probes.labels, "a model"), nets[2:5])
    assert frozen.details["labels"] == "stored answers of a model"
    assert frozen.details["accuracy"] == [None, None]  # agreement with a model is no accuracy


# Many candidates


def _search(rng: np.random.Generator, m: int, n: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Exchangeable queries whose distances to the candidates have something in common."""
    own = rng.normal(size=(m + 1, 1, 1))
    kinds = len(combined.METHODS)
    values = shared * own + rng.normal(size=(m + 1, n, kinds)) * rng.uniform(0.5, 3, (1, n, kinds))
    distances = np.exp(values / 10)
    return distances[0], distances[1:]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_the_closest_of_many_keeps_the_level_where_single_tests_do_not(shared: float) -> None:
    rng, m, n, runs = np.random.default_rng(1), 19, 12, 600
    family_wise = {"corrected": 0, "single": 0}
    for _ in range(runs):
        found = correct_for_candidates(*_search(rng, m, n, shared), alpha=0.05)
        assert found.method == CLOSEST
        family_wise["corrected"] += bool(found.p_values.min() <= 0.05)
        family_wise["single"] += bool(found.uncorrected.min() <= 0.05)
    assert family_wise["corrected"] / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert family_wise["single"] / runs > 0.12  # the control: without correction many searches find something


def test_the_closest_of_many_finds_the_one_source() -> None:
    rng, hits, wrong = np.random.default_rng(2), 0, 0
    for _ in range(200):
        suspect, null = _search(rng, 39, 12, 1.0)
        suspect[4] *= np.exp(-2.5)
        p = correct_for_candidates(suspect, null, alpha=0.05).p_values
        hits += p[4] <= 0.05
        wrong += bool(np.delete(p, 4).min() <= 0.05)
    assert hits >= 195
    assert wrong / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_holm_serves_only_where_p_values_can_reach_it() -> None:
    rng = np.random.default_rng(3)
    assert correct_for_candidates(*_search(rng, 59, 3, 0.0), alpha=0.05).method == HOLM  # 1/60 = .05/3
    few = correct_for_candidates(*_search(rng, 58, 3, 0.0), alpha=0.05)
    assert (few.method, few.smallest_p) == (CLOSEST, 1 / 59)


def test_holm_is_the_closure_of_bonferroni() -> None:
    """The slow twin: a hypothesis is rejected if every set that holds it is, by the smallest p times its size."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        p = rng.uniform(size=4) ** 3
        slow = [
            max(
                min(1.0, len(s) * min(p[list(s)]))
                for r in range(1, 5)
                for s in itertools.combinations(range(4), r)
                if i in s
            )
            for i in range(4)
        ]
        assert holm(p) == pytest.approx(slow)
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.01, np.nan])[0] == 0.01


@pytest.mark.slow
def test_a_search_over_real_networks(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    sketch = FunctionalSketch.of(probes)

    def kept(models: Sequence[Model]) -> list[Subject]:
        return [Subject(m.name, None, sketch(m, probes)) for m in models]

    candidates, null = kept([*nets[20:26], family["root"]]), NullModels("strangers", tuple(kept(nets[:20])))
    found = ClosestOfMany(0.05)(*kept([family["tuned"]]), candidates, probes, null)
    *others, last = [e.verdict for e in found if not isinstance(e, str)]
    assert last is Verdict.SUPPORTED
    assert others.count(Verdict.INCONCLUSIVE) >= 5  # of six: one search in twenty names a stranger too
    last = found[-1]
    assert isinstance(last, Evidence)
    assert (last.p_value, last.details["corrected_for"], last.details["correction"]) == (1 / 21, 7, CLOSEST)
    wrong = 0
    for stranger in kept(nets[26:38]):
        answers = ClosestOfMany(0.05)(stranger, candidates, probes, null)
        wrong += any(not isinstance(e, str) and e.verdict is Verdict.SUPPORTED for e in answers)
    assert wrong <= 3  # 12 searches at 5 %: more has p < .003
    gone = ClosestOfMany(0.05)(*kept([nets[30]]), [Subject("lost"), *candidates], probes, null)
    assert isinstance(gone[0], str)
    assert "lost is no longer available" in gone[0]


# Sketches


def test_a_sketch_fits_its_budget_and_says_what_the_field_says(nets: list[Model], table: np.ndarray) -> None:
    found = examples("mlp", "test")
    many = Probes.of(found.inputs, found.targets)
    method = FunctionalSketch.of(many)
    assert len(blobs.pack(method(nets[0], many).values)) <= MAX_BYTES
    assert method.rows == 256
    assert method.width >= 16
    few = Probes.of(found.inputs[:48], found.targets[:48])
    method = FunctionalSketch.of(few)
    seen = [from_sketch(method(m, few), m.name, few.kind, labelled=True) for m in nets[:8]]
    sketched = np.array([[mean_distances(a, b, method.methods)[0] for b in seen] for a in seen])
    assert np.abs(sketched - table[:8, :8, 0]).max() < 0.02


def test_a_kept_sketch_is_the_one_that_was_put_and_damage_is_found(
    tmp_path: Path, nets: list[Model], probes: Probes
) -> None:
    method = FunctionalSketch.of(probes)
    with Registry(tmp_path / "r.db") as registry:
        Workspace(registry).add([_write(nets[0], tmp_path)], probes=probes)
        kept = registry.functional(nets[0].digest, probes.digest, method.spec)
        assert kept is not None
        made = method(nets[0], probes)
        assert (kept.model, kept.probes, kept.spec.digest) == (
            nets[0].network.digest,
            probes.digest,
            method.spec.digest,
        )
        assert {k: v.tobytes() for k, v in kept.values.items()} == {k: v.tobytes() for k, v in made.values.items()}
        assert registry.functional(nets[0].network.digest, probes.digest, method.spec) is not None
        assert registry.functional(nets[0].digest, probes.take(range(5)).digest, method.spec) is None
        registry.put_functional(nets[0].digest, made)  # again: nothing new
        files = [f for f in (tmp_path / "r.db.blobs").rglob("*") if f.is_file() and len(f.name) == 64]
        assert len(files) == 1
        assert files[0].stat().st_size <= MAX_BYTES
        assert registry.check() == []
        content = bytearray(files[0].read_bytes())
        content[-1] ^= 1
        files[0].write_bytes(content)
        assert [f.kind for f in registry.check()] == ["blob"]


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, nets: list[Model], family: dict[str, Model], probes: Probes
) -> Iterator[tuple[Path, Workspace]]:
    """A registry of eleven strangers, a root and its child, with functional sketches, and the folder of their files."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    for m in (*nets[:11], family["root"], family["tuned"]):
        _write(m, home / "models")
    with Registry(home / "r.db") as registry:
        results = Workspace(registry).add([home / "models"], probes=probes)
        assert [(r.error, r.note) for r in results] == [(None, "")] * 13
        yield home / "models", Workspace(registry)


def _write(model: Model, home: Path) -> Path:
    from safetensors.numpy import save_file

    from stemma.zoo.memory import arrays_of

    place = home / model.name
    place.mkdir()
    save_file(arrays_of(model), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(dict(model.config or {})))
    return place


@pytest.mark.slow
def test_enrolled_models_are_compared_without_their_files(home: tuple[Path, Workspace], probes: Probes) -> None:
    folder, workspace = home
    with_files = workspace.compare(workspace.resolve("root"), workspace.resolve("tuned"), 0.1, probes)
    near = workspace.distance(workspace.resolve("root"), workspace.resolve("tuned"), probes)
    folder.rename(folder.with_name("elsewhere"))
    try:
        root, tuned = workspace.resolve("root"), workspace.resolve("tuned")
        found = workspace.compare(root, tuned, 0.1, probes)
        gone = workspace.distance(root, tuned, probes)
        stranger = workspace.compare(root, workspace.resolve("mlp-31-3"), 0.1, probes)
        other = workspace.compare(root, tuned, 0.1, probes.take(range(9)))
    finally:
        folder.with_name("elsewhere").rename(folder)
    with pytest.raises(MisuseError, match=r"only a functional sketch of root is kept.*steps=.*not steps=3"):
        workspace.distance(root, tuned, probes, GradientField(steps=3), FieldCosine())
    assert with_files.function is not None
    assert found.function is not None
    assert with_files.function.verdict is found.function.verdict is Verdict.SUPPORTED
    assert "the function of root and tuned, of which only a functional sketch is kept" in found.cannot_see
    assert gone.fingerprint.params["sketch"] > 0 == near.fingerprint.params["sketch"]
    assert gone.value == pytest.approx(near.value, abs=0.02)
    assert (gone.a, gone.b) == (near.a, near.b)
    assert stranger.function is not None
    assert stranger.function.verdict is Verdict.INCONCLUSIVE
    assert other.function is None
    assert "no functional sketch for these probes is stored" in other.cannot_see[0]


@pytest.mark.slow
def test_relatives_and_families_are_no_null(home: tuple[Path, Workspace], nets: list[Model], probes: Probes) -> None:
    """Enrolled null models: one of each family, none that the pair may come from, all others listed."""
    workspace = home[1]
    found = workspace.compare(nets[40], nets[41], 0.07, probes).function  # asks for more than there are
    related = workspace.compare(workspace.resolve("root"), nets[41], 0.1, probes)
    assert found is not None
    assert len({"root", "tuned"} & set(found.details["null_models"])) == 1
    assert any("related by weights to" in why for why in found.details["left_out"])
    assert found.null.size == 12
    assert found.null.source == "enrolled models with independent weights"
    assert related.function is not None
    assert not {"root", "tuned"} & set(related.function.details["null_models"])
    document = related.to_dict()["function"]
    assert set(document) >= {"verdict", "p_value", "distance", "null"}
    assert document["null"] == {"source": related.function.null.source, "n": 9, "floor": 0.1}  # as many as alpha takes


@pytest.mark.slow
def test_given_null_models_are_looked_at_too(home: tuple[Path, Workspace], nets: list[Model], probes: Probes) -> None:
    folder, workspace = home
    e = workspace.compare(workspace.resolve("root"), nets[41], 0.1, probes, null=[folder, nets[2], nets[41]]).function
    assert e is not None
    left_out = {why.split(": ")[0]: why.split(": ")[1] for why in e.details["left_out"]}
    assert left_out == {
        "root": "the same weights as root",
        "tuned": "its weights are related to root",
        "mlp-31-2": "the same weights as mlp-31-2",
        "mlp-31-41": "the same weights as mlp-31-41",
    }
    assert e.null.size == 11


@pytest.mark.slow
def test_enrolled_models_are_candidates_and_null_at_once(home: tuple[Path, Workspace], probes: Probes) -> None:
    """Each stands for a stranger beside all the others, the suspect in its own place."""
    workspace = home[1]
    root = Recipe("mlp", "train", seed=77)
    again = build(Recipe("mlp", "finetune", RelationKind.FINETUNED, (root,), seed=9), "again")
    found = workspace.trace(again, alpha=0.1, probes=probes)
    functions = {c["name"]: c["function"] for c in found.candidates}
    assert len(functions) == 13
    kin, related = {"root", "tuned"}, {n for n, f in functions.items() if f["verdict"] == "related"}
    assert kin <= related
    assert len(related - kin) <= 1  # at level .1 one search in ten names a stranger too: by the last digits, this one
    near, far = ([f["distance"] for n, f in functions.items() if (n in kin) == own] for own in (True, False))
    assert max(near) < 0.1 * min(far)  # measured: .002 and .145
    assert {f["null"]["n"] for f in functions.values()} == {9}
    assert workspace.registry.functional(again.digest, probes.digest, FunctionalSketch.of(probes).spec) is None
    assert workspace.check() == []


@pytest.mark.slow
def test_a_model_without_a_network_keeps_its_weights_axis(home: tuple[Path, Workspace], probes: Probes) -> None:
    folder, workspace = home
    bare = load(folder / "root" / "model.safetensors")
    bare = replace(bare, config=None)
    found = workspace.compare(bare, workspace.resolve("tuned"), 0.1, probes)
    assert (found.function, found.weights.verdict) == (None, Verdict.SUPPORTED)
    assert "--network MODULE:FACTORY" in found.cannot_see[0]
    traced = workspace.trace(bare, alpha=0.1, probes=probes)
    assert {c["function"] for c in traced.candidates} == {None}
    assert any("--network MODULE:FACTORY" in unseen for unseen in traced.cannot_see)


def test_a_black_box_is_never_kept(tmp_path: Path, nets: list[Model], probes: Probes) -> None:
    from stemma.networks.from_module import from_module

    inner = nets[0].network
    box = from_module(lambda x: inner(x).detach().numpy(), "box", inner.input_spec)
    with Registry(tmp_path / "r.db") as registry:
        registry.make_writable()
        found = Workspace(registry).compare(box, nets[1], 0.25, probes, null=nets[2:5])
        assert registry.functional(box.digest, probes.digest, FunctionalSketch.of(probes).spec) is None
        sketch = FunctionalSketch.of(probes)(box, probes)
        registry.put_functional(box.digest, sketch)
        assert registry.functional(box.digest, probes.digest, sketch.spec) is None
    assert found.function is not None
    assert "has outputs but no gradients" in found.function.details["missing_measures"]["gradient-field"]
    outputs = [f.name for f, m in combined.METHODS if f.produces == "outputs"]
    assert {m["fingerprint"] for m in found.function.details["measures"]} == set(outputs)


@pytest.mark.slow
def test_a_recipe_makes_the_null(nets: list[Model], probes: Probes, tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        workspace = Workspace(registry)
        found = workspace.compare(nets[0], nets[1], 0.05, probes, null="mlp:n=32,seed=31")
        assert found.function is not None
        assert found.function.null.size == 30  # the two themselves are among them, and are left out
        with pytest.raises(MisuseError, match="is not a recipe"):
            workspace.compare(nets[0], nets[1], 0.05, probes, null="mlp:seeds=3")
        with pytest.raises(MisuseError, match="makes networks for tokens inputs of shape"):
            workspace.compare(nets[0], nets[1], 0.05, probes, null="lm:n=2")
        with pytest.raises(MisuseError, match=r"give probes \(--probes\) too"):
            workspace.compare(nets[0], nets[1], 0.05, null="mlp")


@pytest.mark.slow
def test_a_trace_reports_both_axes(
    home: tuple[Path, Workspace], family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    folder, workspace = home
    against = [folder / name for name in ("root", *(m.name for m in nets[:4]))]
    found = workspace.trace(family["tuned"], against, alpha=0.1, probes=probes, null=nets[12:21])
    plain = workspace.trace(family["tuned"], against, alpha=0.1)
    functions = {c["name"]: c["function"] for c in found.candidates}
    assert functions["root"]["verdict"] == "related"
    assert functions["root"]["details"]["corrected_for"] == 5
    others = [f["verdict"] for n, f in functions.items() if n != "root"]
    assert others.count("inconclusive") >= 3  # one search in ten names a stranger too
    assert [p["name"] for p in found.parents] == ["root"]
    assert "function (no probes were given)" in plain.cannot_see
    assert "function (no probes were given)" not in found.cannot_see
    assert {c["function"] for c in plain.candidates} == {None}
    json.dumps(found.to_dict())


@pytest.mark.slow
def test_the_front_door_asks_models(
    family: dict[str, Model], nets: list[Model], probes: Probes, tmp_path: Path
) -> None:
    import stemma

    null = [_write(m, tmp_path) for m in nets[:9]]
    found = stemma.compare(family["root"], family["tuned"], probes, null, alpha=0.1)
    assert found.function is not None
    assert (found.function.verdict, found.function.null.size) == (Verdict.SUPPORTED, 9)
    apart = stemma.distance(family["root"], family["tuned"], probes, GradientField(), FieldCosine())
    a, b = (GradientField()(family[n], probes) for n in ("root", "tuned"))
    assert apart.value == pytest.approx(FieldCosine()(a, b).value)
    assert apart.interval == pytest.approx(FieldCosine()(a, b).interval)


# Names from both axes


def _decided(found: Comparison, weights: Verdict, function: Evidence, alpha: float = 0.05) -> Comparison:
    kinds = {Verdict.REFUTED: "independent", Verdict.SUPPORTED: "related", Verdict.INCONCLUSIVE: "inconclusive"}
    known = replace(found, weights=replace(found.weights, verdict=weights), verdict=kinds[weights])
    return both_axes(known, function, alpha)


def test_a_relation_is_named_from_both_axes(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    strangers, kin = compare(nets[20], nets[21]), compare(family["root"], family["tuned"])
    close = _test(family["root"], family["tuned"], probes, nets[:19])
    apart = replace(close, verdict=Verdict.INCONCLUSIVE, reason="no closer")
    named = _decided(strangers, Verdict.REFUTED, close)
    assert (named.relation.kind, named.verdict, named.weights.verdict) == (
        RelationKind.DISTILLED,
        "related",
        Verdict.REFUTED,
    )
    assert "distillation" not in named.cannot_see
    open_ = _decided(strangers, Verdict.INCONCLUSIVE, close)
    assert (open_.relation.kind, open_.verdict) == (RelationKind.RELATED, "related")
    nothing = _decided(strangers, Verdict.REFUTED, apart)
    assert (nothing.relation.kind, nothing.verdict) == (RelationKind.UNRELATED, "independent")
    assert "distillation (no closer)" in nothing.cannot_see
    half = _decided(strangers, Verdict.REFUTED, apart, alpha=0.01)  # nineteen models can never show that
    assert (half.undetermined, half.verdict, half.weights.verdict) == (True, "inconclusive", Verdict.REFUTED)
    assert [t["what"] for t in half.open_questions] == ["function"]
    assert half.relation.reason == "no shared weights were found, but the function is undetermined: no closer"
    both = both_axes(kin, close)
    assert (both.relation.kind, both.verdict) == (kin.relation.kind, "related")
    assert "in function" in both.relation.reason
    moved = both_axes(kin, apart)
    assert (moved.relation.kind, moved.verdict) == (kin.relation.kind, "related")
    unasked = both_axes(kin, "nothing says how it runs")
    assert unasked.function is None
    assert unasked.cannot_see[0] == "function (nothing says how it runs)"
    assert named.evidence[-1] is close


# Choosing probes


def test_probes_chosen_on_the_null_of_the_test_find_what_is_not_there() -> None:
    """Why the split is enforced: the same choice is calibrated on other models, and is not on its own."""
    rng, m, runs, kept = np.random.default_rng(6), 19, 400, 6
    rejected = {"own": 0, "other": 0}
    probes = Probes.of(np.zeros((600, 3), np.float32))
    for _ in range(runs):
        used, fresh = rng.gamma(2, size=(2, m, 600))
        suspect = rng.gamma(2, size=600)
        rows = list(select(probes, used, [f"sha256:{i}" for i in range(m)], kept).rows)  # ty: ignore
        for name, null in (("own", used), ("other", fresh)):
            rejected[name] += conformal_p_value(suspect[rows].mean(), null[:, rows].mean(1).tolist()) <= 0.05
    assert rejected["other"] / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert rejected["own"] / runs > 0.12


def test_a_test_refuses_the_models_that_chose_its_probes(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    method, measure = combined.METHODS[0]
    own = method(family["root"], probes)
    distances = np.array([measure.distances(own.values, method(n, probes).values) for n in nets[:6]])
    chosen = select(probes, distances, [n.network.digest for n in nets[:6]], 16)
    assert len(chosen.probes) == 16
    assert list(chosen.rows) == sorted(np.argsort(-chosen.scores, kind="stable")[:16])
    question = Subject.of(family["root"]), Subject.of(family["tuned"]), chosen
    with pytest.raises(MisuseError, match="selected on mlp-31-5"):
        CloserThanIndependent(0.05)(*question, NullModels.of(nets[5:24]))
    assert CloserThanIndependent(0.05)(*question, NullModels.of(nets[6:25])).verdict is Verdict.SUPPORTED
    with pytest.raises(MisuseError, match="at least 2 null models"):
        select(probes, np.zeros((1, len(probes))), ["sha256:0"], 4)  # ty: ignore


def test_models_that_read_other_tokens_are_not_asked_together() -> None:
    one, other = independents("lm", 2, seed=3, untrained=True)

    def reading(model: Model, tokenizer: str) -> Subject:
        told = replace(model, network_builder=lambda m: replace(model.network, tokenizer=tokenizer))
        return Subject.of(told)

    assert reason_not_comparable(reading(one, "words"), reading(other, "words")) == ""
    assert "different tokenizers" in reason_not_comparable(reading(one, "words"), reading(other, "letters"))
