"""Few controls and none: the extrapolated p-value, shared deviations, and what agreement beyond the labels shows."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import t as student

from checkpoints import Run
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.kinship.compare import compare
from stemma.kinship.function import combined, rank_test
from stemma.kinship.function.beyond_labels import beyond_labels, counted, e_value
from stemma.kinship.function.closer_than_independent import CloserThanIndependent
from stemma.kinship.function.consensus import deviation_distances, shared_deviations, square_roots, unlikeness
from stemma.kinship.function.few_controls import CHECKED, FEWEST, UNCHECKED, NormalLaw, normal_law
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.kinship.function.observations import observe
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import Evidence, RelationKind, Verdict
from stemma.zoo import independents
from stemma.zoo.data import examples
from stemma.zoo.kinds import kind_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build
from strangers import perceptrons

COLUMNS = len(combined.METHODS) + 1


@pytest.fixture(scope="module")
def probes() -> Probes:
    found = examples("mlp", "test")
    return Probes.of(found.inputs[:300], found.targets[:300])


@pytest.fixture(scope="module")
def nets() -> list[Model]:
    return perceptrons(44)


@pytest.fixture(scope="module")
def taught() -> dict[str, Model]:
    """A teacher, and a student of another architecture that saw the other half of the data."""
    made: dict = {}
    root = Recipe("mlp", "train", seed=77)
    pupil = Recipe("mlp", "distill", RelationKind.DISTILLED, (root,), {"other": True}, seed=5, part="b")
    return {n: build(r, n, made=made) for n, r in (("teacher", root), ("student", pupil))}


def _test(a: Model, b: Model, probes: Probes, null: list[Model], alpha: float = 0.01) -> Evidence:
    return CloserThanIndependent(alpha)(Subject.of(a), Subject.of(b), probes, NullModels.of(null))


# The extrapolated p-value


@pytest.mark.parametrize("m", [3, 10])
@pytest.mark.first(1)
def test_the_extrapolated_p_value_is_uniform_for_a_normal_law_of_any_correlation(m: int) -> None:
    rng, p = np.random.default_rng(m), []
    mix = rng.normal(size=(COLUMNS, COLUMNS))
    for _ in range(3000):
        table = np.exp(0.2 * rng.normal(size=(m + 1, COLUMNS)) @ mix + np.arange(COLUMNS))
        found = normal_law(table[0], table[1:])
        assert found is not None
        p.append(found.p_value / (UNCHECKED if m < CHECKED else 1))  # twice, where nothing checks the law
    for level in (0.01, 0.05, 0.2, 0.45):
        error = np.sqrt(level * (1 - level) / len(p))
        assert abs(np.mean(np.array(p) <= level) - level) < 4 * error


def test_with_one_distance_it_is_students_prediction_of_a_new_value() -> None:
    logs = np.random.default_rng(1).normal(size=8)
    logs[0] = -2.5
    table = np.full((8, COLUMNS), np.nan)
    table[:, 0] = np.exp(logs)
    found, own, null = normal_law(table[0], table[1:]), logs[0], logs[1:]
    assert found is not None
    wanted = min(1.0, UNCHECKED * student.cdf((own - null.mean()) / (null.std(ddof=1) * np.sqrt(1 + 1 / 7)), 6))
    assert wanted < 1
    assert found.p_value == pytest.approx(wanted, rel=1e-9)
    table[:, 0] *= 37  # units do not matter
    again = normal_law(table[0], table[1:])
    assert again is not None
    assert again.p_value == pytest.approx(wanted, rel=1e-9)


def test_nothing_is_extrapolated_from_too_few_equal_or_odd_controls() -> None:
    rng = np.random.default_rng(2)
    table = np.exp(rng.normal(size=(13, COLUMNS)))
    assert normal_law(table[0], table[1:FEWEST]) is None
    assert normal_law(table[0], np.ones((5, COLUMNS))) is None
    two_kinds = table.copy()
    two_kinds[7:] *= 1e3
    odd, plain = normal_law(table[0], two_kinds[1:]), normal_law(table[0], table[1:])
    assert odd is not None
    assert not odd.fits
    assert plain is not None  # the control
    assert plain.fits
    small = normal_law(table[0], two_kinds[1:CHECKED])
    assert small is not None
    assert small.fit_p is None


# Shared deviations


def test_shared_deviations_agree_with_their_definition_and_treat_all_models_alike() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(6, 7, 4))
    pool = np.stack([square_roots(s) for s in scores[1:]])
    own = square_roots(scores[0])
    found = deviation_distances(own, pool)
    for i in range(5):
        middle = sum(np.sqrt(np.exp(s) / np.exp(s).sum(1, keepdims=True)) for s in scores[1:]) / 5
        u, v = (
            (np.sqrt(np.exp(s) / np.exp(s).sum(1, keepdims=True)) - middle).ravel() for s in (scores[0], scores[1 + i])
        )
        r = float(u @ v / np.sqrt((u @ u) * (v @ v)))
        assert found[i] == pytest.approx((1 - r) / (1 + r), rel=1e-4)
    np.testing.assert_allclose(deviation_distances(own, pool[::-1])[::-1], found, rtol=1e-6)
    assert deviation_distances(own, np.stack([own, *pool]))[0] == min(deviation_distances(own, np.stack([own, *pool])))


def test_many_classes_are_added_up_to_about_the_same_distances() -> None:
    rng = np.random.default_rng(4)
    scores = 2 * rng.normal(size=(5, 40, 3000)) + 2 * rng.normal(size=(40, 3000))
    scores[1] = scores[0] + 0.5 * rng.normal(size=(40, 3000))
    exact = np.stack([np.sqrt(np.exp(s) / np.exp(s).sum(1, keepdims=True)) for s in scores])
    small = np.stack([square_roots(s) for s in scores])
    assert small.shape == (5, 40, 1024)
    z = [0.5 * np.log(deviation_distances(x[0], x[1:])) for x in (exact, small)]
    np.testing.assert_allclose(z[1], z[0], atol=0.05)
    assert square_roots(np.zeros((9000, 100))).size <= 1 << 18


def test_shared_deviations_need_scores_of_the_same_classes(nets: list[Model], probes: Probes) -> None:
    few = probes.take(slice(20))
    seen = [observe(m, few, combined.METHODS, labelled=True) for m in nets[:4]]
    assert shared_deviations(seen[0], seen[1:]) is not None
    assert shared_deviations(seen[0], seen[1:2]) is None  # one model is its own mean
    other = observe(nets[5], few.take(slice(10)), combined.METHODS, labelled=True)
    assert shared_deviations(seen[0], [*seen[1:], other]) is None


# A pair with ten controls


@pytest.mark.slow
def test_ten_controls_show_a_student_of_another_architecture_and_no_stranger(
    taught: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    found = _test(taught["teacher"], taught["student"], probes, nets[:10])
    assert (found.verdict, found.null.size, found.null.floor) == (Verdict.SUPPORTED, 10, 1 / 11)
    both = found.details["p_values"]
    assert both["exact"] == pytest.approx(1 / 11)
    assert found.p_value == both["normal_law"] <= 0.01
    assert both["decides"] == "normal law"
    assert "follow a normal law" in found.reason
    wide = independents("mlp", 4, seed=8, part="b", config=kind_of("mlp").other)
    strangers = [_test(nets[20 + i], wide[i], probes, nets[:10]) for i in range(4)]
    assert {e.verdict for e in strangers} == {Verdict.INCONCLUSIVE}
    assert json.loads(json.dumps(found.to_dict()))["details"]["p_values"] == both
    whole = compare(taught["teacher"], taught["student"], probes=probes, null=nets[:10])
    assert (whole.verdict, whole.relation.kind, whole.direction) == ("related", RelationKind.DISTILLED, "unknown")
    assert "which of the two learned from the other is not shown" in whole.relation.reason


@pytest.mark.slow
def test_controls_of_the_models_own_architecture_count_where_there_are_eight(
    taught: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    wide = independents("mlp", 19, seed=8, config=kind_of("mlp").other)
    pair = taught["teacher"], nets[30]
    sizes = {n: _test(*pair, probes, [*wide[:12], *nets[:n]]).details["views"][0]["n"] for n in (4, 8)}
    assert sizes == {4: 16, 8: 8}


# No control


def test_the_e_value_is_an_average_of_likelihood_ratios_and_at_most_one_for_a_fair_coin() -> None:
    for alike, apart in ((0, 0), (3, 1), (12, 2), (1, 9), (400, 100)):
        wanted = quad(
            lambda c, k=alike, n=apart: 2 * (2 * c) ** k * (2 - 2 * c) ** n, 0.5, 1, epsabs=0, epsrel=1e-10, limit=500
        )
        assert e_value(alike, apart) == pytest.approx(wanted[0], rel=1e-6)
    for n in (1, 5, 30):
        assert sum(comb(n, k) / 2**n * e_value(k, n - k) for k in range(n + 1)) == pytest.approx(1, rel=1e-9)
        assert sum(comb(n, k) * 0.4**k * 0.6 ** (n - k) * e_value(k, n - k) for k in range(n + 1)) < 1
    assert np.isfinite(e_value(10**6, 0))
    assert e_value(0, 10**6) >= 0


def test_agreement_beyond_the_labels_is_counted_and_decides_nothing(
    taught: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    truth, a, b = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 2, 1, 0, 2]), np.array([0, 2, 1, 1, 0, 0])
    found = counted(a, b, truth)
    assert (found.alike_wrong, found.first_right, found.second_right) == (3, 2, 0)
    copy = _test(taught["teacher"], taught["teacher"], probes, [])
    assert copy.details["beyond_labels"]["e_value"] > 100
    assert copy.verdict is Verdict.INCONCLUSIVE
    assert copy.p_value is None
    without = probes.with_labels(None)
    assert "beyond_labels" not in _test(nets[0], nets[1], without, []).details
    answered = probes.with_labels(probes.labels, "a model")
    assert beyond_labels(*(observe(m, answered, combined.METHODS, labelled=True) for m in nets[:2]), answered) is None


# The command


@pytest.mark.slow
def test_the_command_prints_both_p_values_and_says_what_no_control_shows(
    run: Run, taught: dict[str, Model], nets: list[Model], probes: Probes, tmp_path: Path
) -> None:
    for model in (*taught.values(), *nets[:10]):
        folder = tmp_path / ("pair" if model.name in taught else "null") / model.name
        save(model, folder, model.config)
    np.savez(tmp_path / "p.npz", inputs=probes.inputs, labels=probes.labels)
    pair = ("compare", tmp_path / "pair" / "teacher", tmp_path / "pair" / "student", "--probes", tmp_path / "p.npz")
    code, out, _ = run(*pair, "--null", tmp_path / "null")
    shown = " ".join(out.split())
    assert code == 0
    assert "related in function only (distilled)" in shown
    assert "p = .091 by rank" in shown
    assert "one decides" in shown
    assert "the smallest attainable p-value ·" not in shown.split("p-values")[0]
    alone = " ".join(run(*pair)[1].split())
    assert "decides nothing" in alone
    assert "inconclusive" in alone.split(":")[0]
    assert run(*pair, "--fail-on", "distilled", "--null", tmp_path / "null")[0] == 3
    code, _, err = run(*pair, "--null-recipe", "distill")
    assert code == 2
    assert "students of one of the two models are no control models" in " ".join(err.split())


def test_a_control_that_gives_no_numbers_is_left_out(nets: list[Model], probes: Probes) -> None:
    broken = from_arrays(
        {n: np.full_like(np.array(t.array()), np.nan) for n, t in nets[3].tensors.items()}, "broken", nets[3].config
    )
    found = _test(nets[0], nets[1], probes.take(slice(40)), [*nets[4:8], broken])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.null.size == 4
    assert any(
        line.startswith("broken") for line in [*found.details["left_out"], *found.details["views"][0]["left_out"]]
    )


# Controls that are not like the model they stand for


def test_untrained_controls_accuse_nobody_where_no_labels_are_known(nets: list[Model], probes: Probes) -> None:
    """The accuracy of controls is not known without labels, so it is their answers that must be like the model's."""
    silent = probes.with_labels(None)
    blank = independents("mlp", 10, seed=3, untrained=True)
    found = _test(nets[0], nets[1], silent, blank)
    assert found.p_value is not None
    assert found.p_value < 1e-4  # as if one were a student of the other
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "they answer otherwise than mlp" in found.reason
    seen = [observe(m, silent, combined.METHODS, labelled=False) for m in (*nets[:12], *blank[:5])]
    alike = [unlikeness(seen[i], [seen[j] for j in range(12) if j != i]) for i in range(12)]
    assert sum(p is not None and p > 0.01 for p in alike) >= 11  # the control: trained alike
    assert unlikeness(seen[0], seen[12:]) < 0.01  # ty: ignore
    assert unlikeness(seen[0], seen[1:3]) is None


def test_the_controls_of_a_comparison_have_shared_deviations(
    nets: list[Model], probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls are slimmed while a comparison runs: what the third distance needs of them must be kept."""
    columns = []

    def law(suspect: np.ndarray, null: np.ndarray) -> NormalLaw | None:
        columns.append(np.isfinite(null).all(0).sum())
        return normal_law(suspect, null)

    monkeypatch.setattr(rank_test, "normal_law", law)
    _test(nets[0], nets[1], probes, nets[2:6])
    assert columns == [COLUMNS, COLUMNS]
