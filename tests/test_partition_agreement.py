"""Provenance from hard labels: figures against slow twins, valid p-values, power, and silence where nothing shows."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.kinship.compare import compare
from stemma.kinship.function.label_observations import hard_labels, labels_mean_the_same
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.kinship.function.partitions import (
    PRIOR_WEIGHT,
    adjusted_rand,
    agreement,
    common_errors,
    contributions,
    information,
    paired_p_values,
    relabelled,
    vote_entropy,
)
from stemma.kinship.function.selection import select_by_entropy
from stemma.kinship.function.sketches import FunctionalSketch
from stemma.networks.from_module import from_module
from stemma.probes import Probes, read_probes
from stemma.probes.out_of_distribution import blend_and_shuffle
from stemma.probes.parameters import Parameters
from stemma.types import Evidence, RelationKind, Verdict
from stemma.zoo.data import examples
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all
from strangers import perceptrons

COUNT = 44


@pytest.fixture(scope="module")
def probes() -> Probes:
    """Blends of two digits each: what models answer differently."""
    x = examples("mlp", "test").inputs
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, len(x), (2, 1500))
    return Probes.of((x[first] + x[second]) / 2)


@pytest.fixture(scope="module")
def nets() -> list[Model]:
    """Networks of one architecture on one data set that differ by their seed: the hard negatives."""
    return perceptrons(COUNT)


@pytest.fixture(scope="module")
def family() -> dict[str, Model]:
    root = Recipe("mlp", "train", seed=77)
    taught = Recipe("mlp", "distill", RelationKind.DISTILLED, (root,), {"other": True}, seed=7, part="b")
    tuned = Recipe("mlp", "finetune", RelationKind.FINETUNED, (root,), seed=5, part="b")
    renamed = Recipe("mlp", "replace-head", RelationKind.HEAD_REPLACED, (root,), {"task": "shuffled:3"}, seed=7)
    names = {"root": root, "tuned": tuned, "distilled": taught, "renamed": renamed}
    return dict(zip(names, build_all(names), strict=True))


@pytest.fixture(scope="module")
def labels(nets: list[Model], probes: Probes) -> np.ndarray:
    """Labels of the independent networks `[n, probes]`."""
    return np.array([_labels(m, probes) for m in nets])


def _labels(model: Model, probes: Probes) -> np.ndarray:
    with torch.no_grad():
        return model.network(torch.from_numpy(probes.inputs.copy())).argmax(-1).numpy()


def _draws(rng: np.random.Generator, n: int, classes: int, m: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """An observer, and m models that answer as it does with a given chance, else anything."""
    own = rng.integers(0, classes, n)
    other = rng.integers(0, classes, (m, n))
    return own, np.where(rng.random((m, n)) < alike, own, other)


# Figures


def test_the_adjusted_rand_index_is_that_of_a_count_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for classes in (1, 2, 5, 30):
        a, b = rng.integers(0, classes, (2, 30))
        found = adjusted_rand(a, b)
        assert found == pytest.approx(adjusted_rand_score(a, b) if classes > 1 else 0.0)
        assert adjusted_rand(a * 7 + 1, b) == pytest.approx(found)  # names of labels do not matter
    x, y = rng.integers(0, 4, (2, 5000))
    assert abs(adjusted_rand(x, y)) < 0.01  # unrelated partitions: nothing, though a quarter of the labels agree
    assert agreement(x, y[None]).mean() == pytest.approx(0.25, abs=0.03)


def test_information_is_the_mutual_information_of_many_probes_and_nothing_on_average_without_any() -> None:
    rng = np.random.default_rng(1)
    own, pool = _draws(rng, 40_000, 6, 3, 0.7)
    assert information(own, pool).mean(1) == pytest.approx([mutual_info_score(own, p) for p in pool], abs=2e-3)
    gains = [information(*_draws(rng, 60, 6, 1, 0.0)).mean() for _ in range(300)]
    assert np.mean(gains) < 0 < np.mean([mutual_info_score(*rng.integers(0, 6, (2, 60))) for _ in range(300)])


def test_what_a_label_predicts_is_learnt_from_the_other_probes() -> None:
    rng = np.random.default_rng(2)
    own, pool = _draws(rng, 40, 3, 1, 0.5)
    found = information(own, pool)[0]
    for i in range(len(own)):
        rest = np.arange(len(own)) != i
        prior = ((own[rest] == own[i]).sum() + 1 / 3) / len(own)
        with_it = pool[0][rest] == pool[0][i]
        chance = ((own[rest][with_it] == own[i]).sum() + PRIOR_WEIGHT * prior) / (with_it.sum() + PRIOR_WEIGHT)
        assert found[i] == pytest.approx(np.log(chance / prior), rel=1e-5)


def test_common_errors_are_the_covariance_of_answers_given_the_pool() -> None:
    """The slow twin: one probe after the other, one model after the other."""
    rng = np.random.default_rng(3)
    own, pool = _draws(rng, 50, 4, 6, 0.6)
    own = own % 2  # an observer of other classes
    stands = np.zeros((4, 2))
    for model in pool:
        for x, label in enumerate(model):
            stands[label, own[x]] += 1
    stands = (stands + np.bincount(own) / len(own)) / (stands.sum(1, keepdims=True) + 1)
    found = common_errors(own, pool)
    for x in range(50):
        expected = np.mean([stands[model[x]] for model in pool], axis=0)
        surprise = np.eye(2)[own[x]] - expected
        for i, model in enumerate(pool):
            assert found[i, x] == pytest.approx(surprise @ stands[model[x]], abs=1e-6)


def test_names_of_classes_mean_nothing_and_models_are_treated_alike() -> None:
    rng = np.random.default_rng(4)
    own, pool = _draws(rng, 400, 5, 7, 0.6)
    parts, order = ("common-errors", "information"), rng.permutation(7)
    found = contributions(own, pool, parts)
    renamed = contributions(rng.permutation(5)[own] + 3, rng.permutation(5)[pool] * 2, parts)
    assert renamed == pytest.approx(found, abs=1e-4)
    assert contributions(own, pool[order], parts) == pytest.approx(found[order], abs=1e-4)
    published = contributions(own, pool, ("agreement",))  # the control: plain agreement needs the names
    assert np.abs(contributions(own, (pool + 1) % 5, ("agreement",)) - published).max() == 1


def test_rare_labels_are_one_and_the_frequent_ones_stay() -> None:
    found = relabelled(np.array([9, 9, 9, 4, 4, 1, 2, 3]), max_labels=3)
    assert found.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert relabelled(np.array([30, 10, 20])).tolist() == [2, 0, 1]


def test_entropy_of_votes() -> None:
    votes = np.array([[0, 0, 5], [0, 1, 6], [0, 0, 7], [0, 1, 8]])
    assert vote_entropy(votes) == pytest.approx([0, np.log(2), np.log(4)])


# p-values


def test_ranks_of_independent_networks_are_exactly_uniform(labels: np.ndarray) -> None:
    """Exchangeability as an identity: each network in the suspect's place once gives each rank once."""
    own, rest = labels[0], labels[1:]
    means = contributions(own, rest, ("common-errors", "information")).mean(1, dtype=float)
    ranks = []
    for i in range(len(rest)):
        turned = np.vstack([rest[i], np.delete(rest, i, 0)])
        found = contributions(own, turned, ("common-errors", "information")).mean(1, dtype=float)
        assert found[0] == pytest.approx(means[i], abs=1e-5)
        ranks.append(int((found[1:] > found[0]).sum()))
    assert sorted(ranks) == list(range(len(rest)))


@pytest.mark.slow
def test_the_p_value_is_uniform_on_independent_networks(labels: np.ndarray) -> None:
    """Random pairs and controls: uniform where the candidate is ranked, at most that where the larger rank counts."""
    rng, m, first, either = np.random.default_rng(0), 9, [], []
    for _ in range(250):
        a, b, *null = rng.choice(COUNT, m + 2, replace=False)
        given = labels[a], labels[b], {str(i): labels[i] for i in null}
        first.append(PartitionAgreement(0.1).of_labels(*given).p_value)
        either.append(PartitionAgreement(0.1, stands_for="either").of_labels(*given).p_value)
        both = PartitionAgreement(0.1, over="both").of_labels(*given).p_value
        assert both >= first[-1] - 1e-12
    p, larger = np.array(first), np.array(either)
    for t in (0.1, 0.2, 0.5, 0.8):
        spread = 3 * np.sqrt(t * (1 - t) / len(p))
        assert t - spread <= (p <= t + 1e-9).mean() <= t + spread
        assert (larger <= t + 1e-9).mean() <= t + spread
    assert (larger >= p - 1e-12).all()
    assert (larger > p + 0.05).mean() > 0.2  # the control: the two views are two


def test_the_test_over_probes_keeps_its_level_where_two_models_share_as_much() -> None:
    rng, p, apart = np.random.default_rng(6), [], []
    for _ in range(400):
        own, pool = _draws(rng, 300, 10, 2, 0.8)
        p.append(paired_p_values(agreement(own, pool))[0])
        better = np.vstack([_draws(rng, 300, 10, 1, 0.8)[1] * 0 + own, pool[1:]])
        apart.append(paired_p_values(agreement(own, better))[0])
    found = np.array(p)
    for t in (0.01, 0.05, 0.2, 0.5):
        assert (found <= t).mean() <= t + 3 * np.sqrt(t * (1 - t) / len(found))
    assert (found <= 0.5).mean() > 0.4  # uniform, not merely large
    assert max(apart) < 1e-6  # the control: a copy beats any other


def test_models_that_never_differ_are_not_told_apart() -> None:
    same = np.zeros((3, 20))
    assert paired_p_values(same).tolist() == [1, 1]
    assert paired_p_values(np.zeros((2, 1))).tolist() == [1]


def test_with_few_controls_an_independent_model_beats_all_however_many_probes_are_asked() -> None:
    """Best of m + 1 exchangeable models: once in m + 1; many probes make that significant, ranks never."""
    rng, m, draws, p, both = np.random.default_rng(8), 4, 150, [], []
    for _ in range(draws):
        own = rng.integers(0, 10, 4000)
        skill = rng.uniform(0.3, 0.95, (m + 1, 1))
        pool = np.where(rng.random((m + 1, 4000)) < skill, own, rng.integers(0, 10, (m + 1, 4000)))
        found = contributions(own, pool, ("agreement",))
        p.append(paired_p_values(found).max())
        rank = 1 + int((found[1:].mean(1) >= found[0].mean()).sum())
        both.append(max(p[-1], rank / (m + 1)))
    hits = np.mean(np.array(p) <= 0.01)
    assert 0.08 < hits <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / draws)  # at level .01
    for t in (0.2, 0.4):
        assert np.mean(np.array(both) <= t + 1e-9) <= t + 3 * np.sqrt(t * (1 - t) / draws)


# The evidence


def _test(a: Model, b: Model, probes: Probes, null: list[Model], alpha: float = 0.05) -> Evidence:
    return PartitionAgreement(alpha)(Subject.of(a), Subject.of(b), probes, NullModels.of(null))


@pytest.mark.parametrize("child", ["tuned", "distilled"])
def test_children_are_found_and_strangers_are_not(
    child: str, family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    found = _test(family["root"], family[child], probes, nets[:24])
    assert found.verdict is Verdict.SUPPORTED, found.reason
    assert found.p_value == pytest.approx(1 / 25)
    assert 0.1 < found.effect < 0.9
    assert found.details["adjusted_rand"] > found.details["views"][0]["null_adjusted_rand_largest"]
    stranger = _test(nets[30], family[child], probes, nets[:24])
    assert stranger.verdict is Verdict.INCONCLUSIVE


@pytest.mark.skipif(not os.environ.get("STEMMA_DATA"), reason="STEMMA_DATA names no folder with MNIST")
@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist8", "fashion8"])
def test_power_on_families_of_other_data(data: str) -> None:
    given = {"data": data}
    roots = {f"root {i}": Recipe("mlp", "train", parameters=given, seed=5100 + i) for i in range(5)}
    nulls = {f"null {i}": Recipe("mlp", "train", parameters=given, seed=5200 + i) for i in range(19)}
    made = {
        f"{operation} {i}": Recipe("mlp", operation, relation, (roots[f"root {i}"],), {**given, **more}, 5300 + i, "b")
        for operation, relation, more in (
            ("finetune", RelationKind.FINETUNED, {}),
            ("distill", RelationKind.DISTILLED, {"other": True}),
        )
        for i in range(5)
    }
    names = [*roots, *nulls, *made]
    models = dict(zip(names, build_all({**roots, **nulls, **made}), strict=True))
    x = examples("mlp", "test", "digit", data).inputs
    blends = Probes.of((x[:1000] + x[1000:2000]) / 2)
    null = [models[n] for n in nulls]
    for operation in ("finetune", "distill"):
        own = [_test(models[f"root {i}"], models[f"{operation} {i}"], blends, null).verdict for i in range(5)]
        other = [_test(models[f"root {(i + 1) % 5}"], models[f"{operation} {i}"], blends, null) for i in range(5)]
        assert own.count(Verdict.SUPPORTED) >= 4
        assert sum(e.verdict is Verdict.SUPPORTED for e in other) <= 2  # one in twenty each, for strangers


@pytest.mark.slow
def test_power_on_language_models() -> None:
    """Next tokens: a student and a fine-tune of one root, among networks that read the same text."""
    root = Recipe("lm", "train", seed=6100)
    tuned = Recipe("lm", "finetune", RelationKind.FINETUNED, (root,), {}, 6101, "b")
    nulls = {f"null {i}": Recipe("lm", "train", seed=6200 + i) for i in range(9)}
    models = build_all({"root": root, "tuned": tuned, **nulls})
    probes = Probes.of(examples("lm", "test").inputs[:200])
    found = _test(models[0], models[1], probes, models[2:], alpha=0.1)
    assert found.verdict is Verdict.SUPPORTED, found.reason
    assert found.details["agreement"] > found.details["views"][0]["null_agreement"]
    assert _test(models[2], models[1], probes, models[3:], alpha=0.12).details["views"][0]["beaten"] < 8


def test_a_head_with_other_classes_of_the_same_number_is_seen_from_its_own_side(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    found = _test(family["root"], family["renamed"], probes, nets[:24])
    assert [v["null_stands_for"] for v in found.details["views"]] == ["root"]
    assert found.details["views"][0]["beaten"] >= 22
    own = _labels(family["renamed"], probes)
    others = np.array([_labels(m, probes) for m in nets[:24]])
    assert not labels_mean_the_same(own, others, 0.1)
    assert labels_mean_the_same(_labels(family["tuned"], probes), others, 0.1)


def test_a_new_head_of_two_classes_is_tested_at_all(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    """Odd or even, answered exactly as the parent's digits say: the same partition, coarser."""

    def parity(x: torch.Tensor) -> torch.Tensor:
        scores = family["root"].network(x)
        return torch.stack([scores[:, ::2].amax(1), scores[:, 1::2].amax(1)], 1)

    found = _test(family["root"], from_module(parity, "parity"), probes, nets[:24])
    assert found.verdict is Verdict.SUPPORTED, found.reason
    other = _test(nets[30], from_module(parity, "parity"), probes, nets[:24])
    assert other.verdict is Verdict.INCONCLUSIVE


def test_services_that_answer_with_labels_only(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    def service(x: torch.Tensor) -> np.ndarray:
        return family["distilled"].network(x).argmax(-1, keepdim=True).numpy() + 100

    found = _test(family["root"], from_module(service, "service"), probes, nets[:24])
    assert found.verdict is Verdict.SUPPORTED, found.reason
    assert found.details["agreement"] is None  # 110 is no digit
    recorded_labels = {m.name: _labels(m, probes) for m in nets[:24]}
    own, other = (_labels(family[n], probes) for n in ("root", "distilled"))
    again = PartitionAgreement(0.05).of_labels(own, other, recorded_labels, ("root", "service"))
    seen = {v["null_stands_for"]: v for v in again.details["views"]}["root"]
    assert seen["beaten"] == found.details["views"][0]["beaten"] == 24
    assert again.inputs == ("blackbox:root", "blackbox:service")


def test_missing_controls_are_counted(family: dict[str, Model], nets: list[Model], probes: Probes) -> None:
    few = _test(family["root"], family["tuned"], probes, nets[:24], alpha=0.01)
    assert few.verdict is Verdict.INCONCLUSIVE
    assert few.details["null_models_missing"] == 75
    assert few.null.floor == 1 / 25
    assert "75 more are needed" in few.reason
    published = PartitionAgreement(0.01, over="probes")
    told = published(Subject.of(family["root"]), Subject.of(family["tuned"]), probes, NullModels.of(nets[:24]))
    assert told.verdict is Verdict.SUPPORTED
    assert "75 more are needed" in told.reason
    none = _test(family["root"], family["tuned"], probes, [])
    assert none.p_value is None
    assert "19 are needed" in none.reason


def test_controls_count_once_and_never_are_those_in_question(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    given = [*nets[:5], nets[0], family["root"]]
    found = _test(family["root"], family["tuned"], probes, given)
    assert len(found.details["controls"]) == 5
    assert len(found.details["left_out"]) == 2


def test_recorded_controls_count_once() -> None:
    rng = np.random.default_rng(12)
    own, controls = rng.integers(0, 5, 300), {str(i): rng.integers(0, 5, 300) for i in range(9)}
    copies = {f"again {i}": controls["0"] for i in range(90)}
    found = PartitionAgreement(0.01).of_labels(own, own, {**controls, **copies})
    assert found.p_value == 1 / 10  # not 1 / 100
    assert len(found.details["left_out"]) == 90
    with pytest.raises(MisuseError, match="but x is given twice"):
        PartitionAgreement().of_labels(own, own, controls, ("x", "x"))


def test_models_that_only_share_never_changing_their_answer_are_no_finding() -> None:
    rng = np.random.default_rng(9)
    constant = np.zeros(200, int)
    controls = {str(i): rng.integers(0, 2, 200) for i in range(19)}
    for parts in (("agreement",), ("common-errors", "information")):
        found = PartitionAgreement(0.05, parts=parts).of_labels(constant, constant, controls)
        assert found.verdict is Verdict.INCONCLUSIVE
    varied = rng.integers(0, 2, 200)  # the control: the same answers to all probes, but not the same to each
    assert PartitionAgreement(0.05).of_labels(varied, varied, controls).verdict is Verdict.SUPPORTED


def test_next_tokens_at_some_positions() -> None:
    rng = np.random.default_rng(10)
    text = rng.integers(0, 700, (60, 80))
    noisy = [np.where(rng.random(text.shape) < 0.5, text, rng.integers(0, 700, text.shape)) for _ in range(21)]
    child = np.where(rng.random(text.shape) < 0.7, noisy[0], text)
    controls = {str(i): v for i, v in enumerate(noisy[2:])}
    test = PartitionAgreement(0.05)
    assert test.of_labels(noisy[0], child, controls).verdict is Verdict.SUPPORTED
    assert test.of_labels(noisy[1], child, controls).verdict is Verdict.INCONCLUSIVE


def test_scores_are_asked_for_a_few_probes_at_a_time() -> None:
    table = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def model(ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return table[ids]

    ids = np.random.default_rng(13).integers(0, 50, (21, 6))
    labels, shape = hard_labels(from_module(model, "tokens"), Probes.of(ids))
    assert labels is not None
    assert labels.tolist() == table.argmax(-1).numpy()[ids].tolist()
    assert shape == (6, 300)
    assert max(asked) == 8


def test_answers_that_are_no_choice_say_so(nets: list[Model], probes: Probes) -> None:
    regression = from_module(lambda x: x.flatten(1)[:, :1] + 0.25, "regression")
    found = _test(nets[0], regression, probes, nets[1:21])
    assert found.p_value is None
    assert "not class scores" in found.reason


def test_a_model_that_is_gone_is_seen_through_its_sketch(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    sketch = FunctionalSketch.of(probes)(family["tuned"], probes)
    gone = Subject("tuned", None, sketch)
    found = PartitionAgreement(0.05)(Subject.of(family["root"]), gone, probes, NullModels.of(nets[:19]))
    assert found.details["n_probes"] == len(FunctionalSketch.of(probes).probes(probes))
    assert found.details["views"][0]["beaten"] >= 17
    with pytest.raises(StemmaError, match="no functional sketch"):
        PartitionAgreement(0.05)(Subject.of(family["root"]), Subject("lost"), probes, NullModels.of(nets[:19]))


def test_probes_are_chosen_by_models_that_do_not_test(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    chosen = select_by_entropy(nets[34:], probes, 300)
    votes = np.array([_labels(m, probes) for m in nets[34:]])
    assert vote_entropy(votes)[list(chosen.rows)].min() >= np.sort(vote_entropy(votes))[-300]
    test = PartitionAgreement(0.05)
    pair = Subject.of(family["root"]), Subject.of(family["tuned"])
    found = test(*pair, chosen, NullModels.of(nets[:24]))
    assert found.details["n_probes"] == 300
    with pytest.raises(MisuseError, match="not used for the selection"):
        test(*pair, chosen, NullModels.of(nets[20:]))
    with pytest.raises(MisuseError, match="at least 2 models"):
        select_by_entropy(nets[:1], probes, 3)


# Probes


def test_unusual_probes_are_blends_and_inputs_out_of_order() -> None:
    rng = np.random.default_rng(11)
    images = Probes.of(rng.random((9, 3, 4, 5), np.float32))
    made = blend_and_shuffle(images, Parameters(n=41, seed=2))
    assert made.inputs.shape == (41, 3, 4, 5)
    whole = {tuple(sorted(map(tuple, x.reshape(3, -1).T.tolist()))) for x in images.inputs}
    for i, x in enumerate(made.inputs):
        pixels = tuple(sorted(map(tuple, x.reshape(3, -1).T.tolist())))
        assert (pixels in whole) == (i % 2 == 1)  # the same pixels, channels together; blends have others
        assert not any(np.array_equal(x, y) for y in images.inputs)
    flat = images.inputs.reshape(9, -1).T.astype(float)
    shares, rest = np.linalg.lstsq(flat, made.inputs[::2].reshape(21, -1).T.astype(float), rcond=None)[:2]
    assert rest.max() < 1e-10
    assert (np.sort(shares, 0)[-2:] > 0.29).all()
    assert np.sort(shares, 0)[:-2] == pytest.approx(0, abs=1e-6)
    assert shares.sum(0) == pytest.approx(1)
    again = blend_and_shuffle(images, Parameters(n=41, seed=2))
    assert again.digest == made.digest != blend_and_shuffle(images, Parameters(n=41, seed=3)).digest


def test_unusual_texts_are_spliced_or_out_of_order(tmp_path: Path) -> None:
    ids = Probes.of(np.arange(60).reshape(6, 10))
    made = blend_and_shuffle(ids, Parameters(n=20)).inputs
    assert made.dtype == np.int64
    for i, x in enumerate(made):
        texts = {int(v) // 10 for v in x}
        assert len(texts) == (2 if i % 2 == 0 else 1)
        assert sorted(x % 10) == list(range(10))
        assert (list(x % 10) == list(range(10))) == (i % 2 == 0)
    np.savez(tmp_path / "ids.npz", inputs=ids.inputs)
    assert len(read_probes(f"unusual:{tmp_path / 'ids.npz'},n=8,seed=1#n=4")) == 4
    assert len(blend_and_shuffle(ids, Parameters())) == 4000
    with pytest.raises(MisuseError, match="at least two"):
        blend_and_shuffle(ids.take([0]), Parameters())
    with pytest.raises(StemmaError, match="no probes at"):
        read_probes("unusual:nowhere,n=4")


def test_where_nobody_taught_it_a_transferred_child_still_answers_as_its_parent(
    family: dict[str, Model], nets: list[Model]
) -> None:
    """A head with other classes."""
    asked = blend_and_shuffle(Probes.of(examples("mlp", "test").inputs), Parameters(n=3000))
    found = _test(family["root"], family["renamed"], asked, nets[:40], alpha=0.025)
    assert found.verdict is Verdict.SUPPORTED, found.reason
    stranger = _test(nets[41], family["renamed"], asked, nets[:40], alpha=0.025)
    assert stranger.verdict is Verdict.INCONCLUSIVE


def test_the_comparison_lists_it_and_its_verdict_stays(
    family: dict[str, Model], nets: list[Model], probes: Probes
) -> None:
    few = probes.take(slice(0, 60))
    found = compare(family["root"], family["distilled"], probes=few, null=nets[:19], alpha=0.05)
    listed = {e.statistic: e for e in found.evidence}
    assert listed["partition-agreement"].spec.params["alpha"] == 0.05
    assert found.function is listed["closer-than-independent"]
    assert found.to_dict()["evidence"][-1]["statistic"] == "partition-agreement"
    assert "partition-agreement" not in {e.statistic for e in compare(family["root"], family["tuned"]).evidence}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ()}, "parts must be one or more"),
        ({"parts": ("luck",)}, "not luck"),
        ({"correction": "none"}, "correction must be"),
        ({"over": "luck"}, "over must be 'models'"),
        ({"stands_for": "neither"}, "'first' or 'either'"),
        ({"positions": 0}, "positions must be at least 1"),
        ({"alpha": 1.5}, "between 0 and 1"),
    ],
)
def test_what_is_no_test_is_refused(given: dict, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        PartitionAgreement(**given)


def test_labels_of_other_probes_are_refused() -> None:
    test, own = PartitionAgreement(), np.arange(5)
    for wrong in (np.arange(4), np.arange(5.0), np.zeros((5, 2), int)):
        with pytest.raises(MisuseError, match="as of the first model"):
            test.of_labels(own, own, {"c": wrong})
    with pytest.raises(MisuseError, match="a unique name"):
        test.of_labels(own, own, {"a": own})
