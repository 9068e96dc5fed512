"""Model DNA: what it does not depend on, what it tells, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from checkpoints import Run
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.errors import MisuseError, StemmaError, UnreadableModelError
from stemma.fingerprints.canonical_outputs import (
    FEATURES,
    LABELS,
    LOGITS,
    PERTURBATIONS,
    PROBABILITIES,
    ROUNDED,
    SCORES,
    features,
    log_probabilities,
    output_form,
)
from stemma.fingerprints.dna import DNA, pack, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import embedding_distance, mean_embedding
from stemma.kinship.function.closest_dna_of_many import ClosestDnaOfMany
from stemma.kinship.function.dna_closeness import (
    ProvenanceClassifier,
    calibrated,
    pair_p_value,
    partial_correlations,
    partial_to_others,
    standardised_closeness,
)
from stemma.kinship.function.dna_order import order_by_references
from stemma.kinship.function.dna_population import Population, channel_correlations
from stemma.kinship.function.model_dna import CloserDnaThanIndependent, DnaIndex, dna_bytes, sample_distance
from stemma.networks.open import from_module
from stemma.probes import Probes
from stemma.probes.augmentation import perturb
from stemma.registry import Registry
from stemma.training import shipped_dna
from stemma.training.dna import Training, evaluate, split_sources, train
from stemma.training.dna_groups import Group, GroupRecipe, group_from_relatives, measure_group, parse_groups
from stemma.training.relatives import Relative
from stemma.types import Fingerprint, Verdict
from stemma.workspace import Workspace
from stemma.zoo import data
from stemma.zoo.provenance import DERIVATIONS, group
from stemma.zoo.recipe_builder import build_all
from strangers import perceptrons

PROBES = Probes.of(data.examples("mlp", "test").inputs)


JUDGE = {
    "kin.inner": np.ones((4, 3), np.float32), "kin.bias": np.zeros(3, np.float32), "kin.outer": np.ones(3, np.float32),
    "kin.linear": np.ones(4, np.float32), "kin.offset": np.ones(1, np.float32),
}  # fmt: skip


def answers(seed: int, classes: int = 10, n: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [log_probabilities(rng.normal(size=(n, classes)) * 2) for _ in range(1 + len(PERTURBATIONS))]


def column(name: str) -> int:
    return FEATURES.index(name)


WHITENED = [i for i, name in enumerate(FEATURES) if name.startswith(("whitened", "leverage"))]


# What the answers' space adds is taken out


def test_other_labels_and_another_order_change_nothing() -> None:
    asked = answers(1)
    order = np.random.default_rng(2).permutation(10)
    other = [a[:, order] for a in asked]
    np.testing.assert_allclose(features(asked[0], asked[1:]), features(other[0], other[1:]), atol=1e-4)


def test_another_temperature_changes_nothing_that_is_whitened() -> None:
    asked = answers(1)
    warm = [log_probabilities(a / 3) for a in asked]
    plain, other = features(asked[0], asked[1:]), features(warm[0], warm[1:])
    np.testing.assert_allclose(plain[:, WHITENED], other[:, WHITENED], atol=1e-3)
    assert np.abs(plain[:, column("entropy")] - other[:, column("entropy")]).max() > 0.1


def test_an_invertible_head_on_the_same_answers_changes_nothing_that_is_whitened() -> None:
    rng = np.random.default_rng(3)
    inner = [rng.normal(size=(96, 5)) for _ in range(1 + len(PERTURBATIONS))]
    head, other = rng.normal(size=(5, 8)), rng.normal(size=(5, 12))
    one, two = ([log_probabilities(x @ h + 1) for x in inner] for h in (head, other))
    first, second = features(one[0], one[1:]), features(two[0], two[1:])
    np.testing.assert_allclose(first[:, WHITENED], second[:, WHITENED], atol=1e-3)


def test_probabilities_logits_and_single_scores_are_one_thing() -> None:
    logits = np.random.default_rng(4).normal(size=(20, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(log_probabilities(logits), log_probabilities(p), atol=1e-6)
    score = log_probabilities(logits[:, :1])
    np.testing.assert_allclose(np.exp(score).sum(1), 1)
    assert np.isfinite(log_probabilities(np.eye(4))).all()


def test_features_that_do_not_vary_are_zero_and_nothing_is_nan() -> None:
    same = [np.tile(log_probabilities(np.array([[1.0, 2.0, 3.0]])), (40, 1))] * 8
    assert not features(same[0], same[1:]).any()
    once = [s.copy() for s in same]
    once[0][0, 0] -= 1
    assert np.isfinite(features(once[0], once[1:])).all()


def test_a_masked_class_says_nothing_about_the_others() -> None:
    rng = np.random.default_rng(6)
    logits = [rng.normal(size=(96, 8)) * 2 for _ in range(1 + len(PERTURBATIONS))]
    masked = [np.concatenate([x, np.full((96, 1), -3.4e38)], axis=1) for x in logits]
    one, two = ([log_probabilities(x) for x in some] for some in (logits, masked))
    found = np.corrcoef(features(one[0], one[1:])[:, 0], features(two[0], two[1:])[:, 0])[0, 1]
    assert found > 0.999


@pytest.mark.parametrize(
    ("answers", "form"),
    [(lambda p: np.log(p), LOGITS), (lambda p: p, PROBABILITIES), (lambda p: np.round(p, 2), ROUNDED + 2),
     (lambda p: np.round(p, 3), ROUNDED + 3), (lambda p: np.eye(5)[p.argmax(1)], LABELS), (lambda p: p / 2, SCORES)],
)  # fmt: skip
def test_the_form_of_answers_is_told(answers: Any, form: int) -> None:
    p = np.random.default_rng(7).dirichlet(np.ones(5), size=200)
    assert output_form(answers(p)) == form


@pytest.mark.slow
def test_controls_that_answer_in_another_form_do_not_stand_in(family: dict[str, list[Model]]) -> None:
    def softened(model: Model) -> Model:
        inner = model.network
        spec = inner.input_spec
        return from_module(lambda x: inner(x).detach().softmax(-1).numpy(), f"soft {model.name}", spec)

    method = DNA(encoder=shipped_dna())
    a, b = (method(softened(m), PROBES) for m in family["source"][:2])
    logits = [method(m, PROBES) for m in perceptrons(5)]
    soft = [method(softened(m), PROBES) for m in perceptrons(5)]
    assert CloserDnaThanIndependent(0.05)(a, b, logits).p_value is None
    assert CloserDnaThanIndependent(0.05)(a, b, soft).p_value is not None


def test_a_damaged_dna_is_refused(family: dict[str, list[Model]]) -> None:
    a, b = (DNA()(m, PROBES) for m in family["source"][:2])
    for broken in ({"code": b.values["code"][0]}, {"scalars": np.full(8, np.nan)}, {"head": np.zeros(0)}):
        with pytest.raises(MisuseError, match="damaged"):
            CloserDnaThanIndependent()(a, replace(b, values={**b.values, **broken}), [])
    with pytest.raises(MisuseError, match="finite"):
        FragmentEncoder(np.full((len(FEATURES), 2), np.nan), np.zeros((len(FEATURES) + 1, 0)), np.zeros((0, 2)))


def test_a_code_keeps_what_four_levels_can_keep() -> None:
    channels = np.random.default_rng(5).normal(size=(5000, 8))
    back = unpack(pack(channels))
    assert pack(channels).shape == (5000, 2)
    assert np.corrcoef(back.ravel(), channels.ravel())[0, 1] > 0.93  # Max 1960: distortion .1175
    assert np.array_equal(unpack(pack(back)), back)
    assert unpack(pack(channels[:, :3])).shape == (5000, 4)


def test_changes_are_the_same_every_time_and_follow_the_kind_of_probes() -> None:
    one, two = perturb(PROBES), perturb(PROBES)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(perturb(PROBES, 1)[0], one[0])
    tokens = Probes.of(np.random.default_rng(0).integers(0, 99, (40, 16)))
    noisy, less, mixed = perturb(tokens)
    assert noisy.dtype == tokens.inputs.dtype
    assert np.isin(noisy, tokens.inputs).all()
    assert 0.05 < (less != tokens.inputs).mean() < (noisy != tokens.inputs).mean() < 0.4
    assert np.array_equal(mixed[0], np.r_[tokens.inputs[0, :8], tokens.inputs[1, 8:]])


# What a DNA is


@pytest.fixture(scope="module")
def family() -> dict[str, list[Model]]:
    members = group("mlp", 11, 6, ways=("new head", "distilled, other architecture"), targets=(None,), strangers=4)
    models = build_all([m.recipe for m in members])
    out: dict[str, list[Model]] = {}
    for member, model in zip(members, models, strict=True):
        out.setdefault(member.way, []).append(model)
    return out


@pytest.fixture(scope="module")
def beside() -> list[Fingerprint]:
    method = DNA(encoder=shipped_dna())
    return [method(m, PROBES) for m in perceptrons(49)]


def test_a_code_takes_less_than_a_kilobyte_and_is_made_again_alike(family: dict[str, list[Model]]) -> None:
    method = DNA()
    a, b = (method(family["source"][0], PROBES, PROBES.take(slice(0, 50))) for _ in range(2))
    assert dna_bytes(a) <= 1024
    assert all(np.array_equal(a.values[n], b.values[n]) for n in a.values)
    assert a.spec == b.spec
    assert a.probes == PROBES.digest
    many = np.concatenate([np.asarray(v).reshape(-1).view(np.uint8) for v in a.values.values()])
    assert np.isfinite(many).all()


def test_batches_change_nothing(family: dict[str, list[Model]]) -> None:
    whole, small = DNA()(family["source"][0], PROBES), DNA(batch=7)(family["source"][0], PROBES)
    assert whole.spec.digest == small.spec.digest
    assert (whole.values["code"] != small.values["code"]).mean() < 0.01


def test_children_with_new_heads_are_told_from_those_of_like_sources(
    family: dict[str, list[Model]], beside: list[Fingerprint]
) -> None:
    encoder = shipped_dna()
    method, test = DNA(encoder=encoder), CloserDnaThanIndependent(0.02, encoder)
    sources, children = ([method(m, PROBES) for m in family[w]] for w in ("source", "new head"))
    own = [test(s, c, beside) for s, c in zip(sources, children, strict=True)]
    other = [test(sources[i - 1], children[i], beside) for i in range(6)]
    assert sum(e.verdict is Verdict.SUPPORTED for e in own) >= 4  # measured: five or six of six
    assert all(e.verdict is Verdict.INCONCLUSIVE for e in other)
    assert min(e.p_value or 1 for e in own) == pytest.approx(0.02)
    few = test(sources[0], children[0], beside[:5])
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "smallest attainable p-value with 5 control models is 0.0476: 4 more" in few.reason  # 1 of 21 pairs


def test_many_candidates_are_paid_for(family: dict[str, list[Model]], beside: list[Fingerprint]) -> None:
    encoder = shipped_dna()
    method = DNA(encoder=encoder)
    sources = [method(m, PROBES) for m in family["source"]]
    child = method(family["new head"][2], PROBES)
    found = ClosestDnaOfMany(0.02, encoder)(child, sources, beside)
    assert [e.verdict is Verdict.SUPPORTED for e in found] == [False, False, True, False, False, False]
    alone = CloserDnaThanIndependent(0.02, encoder)(sources[2], child, beside)
    assert (found[2].p_value or 1) >= 0.02
    assert alone.p_value == pytest.approx(0.02)
    assert ClosestDnaOfMany()(sources[0], [], []) == []
    assert ClosestDnaOfMany(0.02, encoder)(child, sources[:1], [])[0].p_value is None


def test_what_a_population_has_in_common_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    task = rng.normal(size=(2, 80, 4)) * 3
    codes = np.concatenate([task[i] + rng.normal(size=(20, 80, 4)) for i in (0, 1)])
    stranger = task[0] + rng.normal(size=(80, 4))
    plain = codes - codes.mean((0, 1))
    alike = np.corrcoef(plain[3].ravel(), (stranger - codes.mean((0, 1))).ravel())[0, 1]
    against = Population.of(codes[1:])
    assert alike > 0.7
    assert np.abs(channel_correlations(against(codes[:1]), against(stranger[None]))).max() < 0.3
    assert against.directions.shape == (4, 4, 80)
    np.testing.assert_allclose(np.linalg.norm(against(codes[:3]), axis=1), 1, atol=1e-9)
    one = Population.of(codes[:1])
    assert np.isfinite(one(codes[:1])).all()


def test_the_nearest_of_many_codes_are_found_again() -> None:
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(400, 96, 4))
    index = DnaIndex.of(codes)
    for i in (3, 250):
        assert index.nearest(codes[i] + 0.5 * rng.normal(size=(96, 4)), 5)[0] == i
    assert len(index.nearest(codes[0], 1000)) == 400


def test_p_values_of_strangers_are_uniform() -> None:
    dnas = [DNA()(m, PROBES) for m in perceptrons(60)]
    test = CloserDnaThanIndependent(0.05)
    p = [test(dnas[i], dnas[i + 1], dnas[20:]).p_value for i in range(0, 20, 2)]
    p += [test(dnas[i], dnas[i + 1], dnas[:40]).p_value for i in range(40, 60, 2)]
    values = np.sort(np.array(p, float))
    assert values.min() >= 1 / 41
    assert (values <= 0.2).sum() <= 9  # 20 pairs, the larger of two exact p-values: 4 or fewer are expected
    assert values.max() > 0.5


def codes_with_a_pair(seed: int, n: int, shared: float, common: float = 1.0) -> np.ndarray:
    """Codes of n models that have a task in common, of which 0 and 1 share more."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(n, 96, 8)) + common * rng.normal(size=(96, 8))
    codes[1] += shared * codes[0]
    return codes


def test_closeness_is_what_the_other_models_do_not_explain() -> None:
    codes = codes_with_a_pair(1, 12, 1.0)
    found = partial_correlations(codes)
    assert found.shape == (12, 12, 8)
    order = np.random.default_rng(2).permutation(12)
    np.testing.assert_allclose(partial_correlations(codes[order]), found[np.ix_(order, order)], atol=1e-9)
    score = found.mean(-1)
    rest = np.delete(score[0], [0, 1])
    assert score[0, 1] > rest.mean() + 5 * rest.std()
    # the slow twin: residuals of ridge regressions on all the other models
    seen = Population.plain(codes)(codes)[..., 3].T
    rest = np.delete(np.arange(12), [4, 7])
    gram = np.eye(12) * 0.3 + seen.T @ seen
    left = gram[np.ix_([4, 7], [4, 7])] - gram[np.ix_([4, 7], rest)] @ np.linalg.solve(
        gram[np.ix_(rest, rest)], gram[np.ix_(rest, [4, 7])]
    )
    assert found[4, 7, 3] == pytest.approx(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]))
    one = partial_to_others(codes, codes_with_a_pair(3, 5, 0.0)[:1])
    joined = partial_to_others(codes, codes_with_a_pair(3, 5, 0.0))
    np.testing.assert_allclose(one[:, 0], joined[:, 0])  # candidates do not explain one another


def test_p_values_of_pairs_and_the_calibration_hold_their_level() -> None:
    p, z = [], []
    for seed in range(300):
        values = partial_correlations(codes_with_a_pair(seed, 12, 0.0)).mean(-1)
        p.append(pair_p_value(values))
        z.append(standardised_closeness(values[1, 0], values[1, 2:].tolist()))
    assert min(p) >= 1 / 66
    assert sum(x <= 0.1 for x in p) <= 45  # binomial of 300 and .1: 45 or fewer in 99.6 %
    assert sum(x <= 0.5 for x in p) in range(120, 181)
    assert abs(np.mean(np.array(z, float))) < 0.25
    assert np.std(np.array(z, float)) == pytest.approx(1, abs=0.25)
    pairs = partial_correlations(codes_with_a_pair(0, 12, 1.5)).mean(-1)
    assert pair_p_value(pairs) == pytest.approx(1 / 66)
    assert calibrated(standardised_closeness(pairs[1, 0], pairs[1, 2:].tolist()))[1] == pytest.approx(1, abs=0.05)
    assert calibrated(standardised_closeness(1.0, [0.0] * 7)) == (None, None)


def test_the_order_is_told_by_what_a_child_keeps_of_its_sources_task() -> None:
    rng = np.random.default_rng(4)
    tasks = rng.normal(size=(2, 96, 8))
    references = [t + rng.normal(size=(8, 96, 8)) for t in tasks]
    source = tasks[0] + rng.normal(size=(96, 8))
    child = tasks[1] + 0.4 * source + rng.normal(size=(96, 8))
    assert order_by_references(source, child, *references) > 2
    assert order_by_references(child, source, *references[::-1]) == -order_by_references(source, child, *references)


def dna_of(code: np.ndarray, name: str, classes: int = 10) -> Fingerprint:
    values = {"code": pack(code), "scalars": np.zeros(8, np.float16), "sample": np.zeros(0, np.int8),
              "head": np.array([classes, LOGITS]), "architecture": np.zeros(0, np.uint8)}  # fmt: skip
    return Fingerprint(name, "sha256:probes", DNA().spec, values)


def test_few_control_models_decide_by_pairs_and_only_where_they_are_like_both() -> None:
    codes = codes_with_a_pair(5, 16, 2.0)
    made = [dna_of(c, f"m{i}") for i, c in enumerate(codes)]
    test = CloserDnaThanIndependent(0.01)
    found = test(*made[:2], made[2:])
    assert found.verdict is Verdict.SUPPORTED
    assert found.details["compared_with"] == "pairs of models"
    assert found.p_value == pytest.approx(1 / 120)
    assert "of 119 other pairs" in found.reason
    assert "smallest attainable is 0.00833" in found.reason
    other_head = test(made[0], dna_of(codes[1], "m1", 6), made[2:])
    assert other_head.verdict is Verdict.INCONCLUSIVE
    assert other_head.p_value == pytest.approx(1 / 15)
    assert "85 more" in other_head.reason
    assert CloserDnaThanIndependent(0.07)(made[0], dna_of(codes[1], "m1", 6), made[2:]).verdict is Verdict.SUPPORTED
    strangers = [dna_of(c, f"o{i}") for i, c in enumerate(codes_with_a_pair(6, 6, 0.0))]
    searched = ClosestDnaOfMany(0.07)(made[1], [made[0], *strangers], made[2:])
    assert [e.verdict is Verdict.SUPPORTED for e in searched] == [True, *[False] * 6]


def test_a_null_model_of_another_shape_or_architecture_does_not_stand_in(family: dict[str, list[Model]]) -> None:
    a, b = (DNA()(m, PROBES) for m in family["source"][:2])
    strangers = [DNA()(m, PROBES) for m in family["stranger"]]
    found = CloserDnaThanIndependent()(a, b, strangers)
    assert found.p_value is None
    assert "no control model" in found.reason


def test_samples_of_one_distribution_are_near_one_another() -> None:
    digits = PROBES.inputs
    one, two = (mean_embedding(Probes.of(digits[i::2])) for i in (0, 1))
    negative = mean_embedding(Probes.of(1 - digits))
    assert embedding_distance(one, one) == 0
    assert embedding_distance(one, two) < 0.5 * embedding_distance(one, negative)
    larger = mean_embedding(Probes.of(np.repeat(np.repeat(digits, 4, 2), 4, 3)))
    assert embedding_distance(mean_embedding(Probes.of(digits)), larger) < 0.02
    rng = np.random.default_rng(0)
    words = [mean_embedding(Probes.of(rng.integers(low, low + 40, (60, 32)))) for low in (0, 0, 100)]
    assert embedding_distance(words[0], words[1]) < 0.5 * embedding_distance(words[0], words[2])


def test_a_training_sample_is_kept_and_compared(family: dict[str, list[Model]]) -> None:
    a = DNA()(family["source"][0], PROBES, PROBES)
    b = DNA()(family["source"][1], PROBES, PROBES)
    assert sample_distance(a, b) == 0
    assert sample_distance(a, DNA()(family["source"][1], PROBES)) is None


# Bad input


def test_wrong_use_gets_one_sentence(family: dict[str, list[Model]], tmp_path: Path) -> None:
    model = family["source"][0]
    with pytest.raises(MisuseError, match="at least 32 probes"):
        DNA()(model, PROBES.take(slice(0, 10)))
    with pytest.raises(MisuseError, match="exceed one kilobyte"):
        DNA(rows=4000)
    with pytest.raises(MisuseError, match="different probes or encoders"):
        CloserDnaThanIndependent()(DNA()(model, PROBES), DNA(seed=1)(model, PROBES), [])
    constant = from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), "constant")
    for p in constant.network.module.parameters():  # ty: ignore[unresolved-attribute]
        p.data.zero_()
    with pytest.raises(StemmaError, match="same output for all 384 probes"):
        DNA()(constant, PROBES)
    bad = tmp_path / "bad.safetensors"
    save(model, bad)
    with pytest.raises(UnreadableModelError, match="not a DNA encoder"):
        FragmentEncoder.load(bad)
    with pytest.raises(MisuseError, match="shapes"):
        FragmentEncoder(np.zeros((3, 4)), np.zeros((4, 0)), np.zeros((0, 4)))


def test_an_encoder_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    f = len(FEATURES)
    made = FragmentEncoder(
        rng.normal(size=(f, 4)).astype(np.float32), rng.normal(size=(f + 1, 6)).astype(np.float32),
        rng.normal(size=(6, 4)).astype(np.float32), JUDGE, {"command": "none"},
    )  # fmt: skip
    made.save(tmp_path / "e.safetensors")
    back = FragmentEncoder.load(tmp_path / "e.safetensors")
    assert back.digest == made.digest != FragmentEncoder.untrained().digest
    assert back.about == {"command": "none"}
    measure_group = rng.normal(size=(40, f))
    np.testing.assert_array_equal(back(measure_group), made(measure_group))


def test_without_a_classifier_the_mean_correlation_decides() -> None:
    judge = ProvenanceClassifier({})
    assert judge.log_odds(np.array([0.2, 0.4])) == pytest.approx(0.3)
    assert judge.probability(0.3) is None


def test_every_way_of_the_zoo_makes_a_child_of_its_source() -> None:
    members = group("mlp", 3, 2)
    assert {m.way for m in members} == {"source", "stranger", *DERIVATIONS}
    roots = {m.source: m.recipe.digest for m in members if m.way == "source"}
    for m in members:
        if m.way in DERIVATIONS:
            first = m.recipe
            while first.parents:
                first = first.parents[0]
            assert first.digest == roots[m.source]
    assert len({m.recipe.digest for m in members}) == len(members)


# Training


def made_up(name: str, sources: int, seed: int, kin: float) -> Group:
    """A group whose children share a column with their source, and nothing else."""
    rng = np.random.default_rng(seed)
    f = len(FEATURES)
    own = rng.normal(size=(sources, 64))
    features = rng.normal(size=(2 * sources, 64, f))
    features[:, :, 3] = kin * np.concatenate([own, own]) + rng.normal(size=(2 * sources, 64))
    kept = np.clip(np.round(features / 0.05), -127, 127).astype(np.int8)
    way = np.repeat(["source", "new head"], sources)
    return Group(name, kept, np.tile(np.arange(sources), 2), way)


@pytest.mark.parametrize(
    "similarity", ["infonce", *(pytest.param(s, marks=pytest.mark.slow) for s in ("pair-margin", "triplet", "none"))]
)
@pytest.mark.slow
def test_what_kin_share_is_learnt_and_nothing_where_they_share_nothing(similarity: str) -> None:
    how = Training(steps=100, similarity=similarity, probes=64, classify=True)
    groups = [made_up("mlp-a", 24, 1, 1.5), made_up("mlp-b", 24, 2, 1.5)]
    learning, asked = split_sources(groups)
    assert {len(g.rows("source")) for g in learning} == {18}
    encoder = train(learning, how)
    assert np.abs(encoder.linear).mean(1).argmax() == 3
    assert evaluate(encoder, asked, learning)["auroc"] > 0.9
    nothing = split_sources([made_up("mlp-c", 80, 3, 0.0)])
    assert 0.3 < evaluate(train(nothing[0], how), nothing[1], nothing[0])["auroc"] < 0.7
    once, again = (train(learning, replace(how, steps=10)) for _ in range(2))
    np.testing.assert_array_equal(again.linear, once.linear)


def test_training_refuses_what_teaches_nothing() -> None:
    with pytest.raises(MisuseError, match="at least 8"):
        train([made_up("mlp-a", 6, 1, 1.0)])
    with pytest.raises(MisuseError, match="no group"):
        train([])
    with pytest.raises(MisuseError, match="no similarity loss is called"):
        Training(similarity="cosine")
    with pytest.raises(MisuseError, match="nothing is learnt"):
        Training(similarity="none", classify=False)
    with pytest.raises(MisuseError, match="nor a zoo by name"):
        parse_groups("mlp:what=3")


@pytest.mark.slow
def test_a_group_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path))
    recipe = GroupRecipe("mlp", 5, 2, folder=False)
    first = measure_group(recipe)
    before = sorted(p.name for p in (tmp_path / "zoo").iterdir())
    second = measure_group(recipe)
    assert sorted(p.name for p in (tmp_path / "zoo").iterdir()) == before
    np.testing.assert_array_equal(first.kept, second.kept)
    assert set(first.ways) == set(DERIVATIONS)
    assert first.features.shape == (26, 384, len(FEATURES))


@pytest.mark.slow
def test_an_encoder_is_trained_on_a_zoo_of_ones_own(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("zoo", "build", "flat:mlp:children=2", "--out", tmp_path / "zoo")[0] == 0
    np.savez(tmp_path / "p.npz", inputs=PROBES.inputs)
    out, asked = tmp_path / "own.safetensors", ("--probes", tmp_path / "p.npz")
    code, text, err = run("train", "dna", tmp_path / "zoo", *asked, "--steps", 40, "--out", out, "--json")
    assert code == 0, err
    assert json.loads(text)["test"]["sources"] == 0  # ten sources: none can be spared
    assert "kin.inner" in FragmentEncoder.load(out).classifier
    assert "not at all" in run("train", "dna", tmp_path / "zoo", *asked, "--steps", 2, "--out", out)[1]
    code, _, err = run("train", "dna", tmp_path / "zoo", "--out", out)
    assert code != 0
    assert "--probes gives" in err
    bare, config = tmp_path / "zoo", {}
    for found in sorted(bare.rglob("*.safetensors")):  # the same models without a configuration
        config = json.loads((found.parent / "config.json").read_text())
        found.rename(found.parent.with_name(f"{found.parent.name}.safetensors"))
        shutil.rmtree(found.parent)
    (tmp_path / "ownnets.py").write_text(
        f"from stemma.networks import build\n\n\ndef net():\n    return build({config!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    again = ("train", "dna", bare, *asked, "--steps", 2, "--out", tmp_path / "bare.safetensors")
    code, _, err = run(*again)
    assert code != 0
    assert "--network" in err
    code, _, err = run(*again, "--network", "ownnets:net", "--allow-code")
    assert code == 0, err
    assert FragmentEncoder.load(tmp_path / "bare.safetensors").channels == 8
    code, _, err = run("train", "dna", "mlp:n=8", "--out", out, "--network", "ownnets:net", "--allow-code")
    assert (code, "models in folders" in err) == (2, True)


def test_of_a_family_the_model_with_most_children_is_the_source() -> None:
    models = perceptrons(5)
    history = {"r": (), "a": ("r",), "b": ("a", "r"), "c": ("a", "r"), "x": ()}
    relatives = [
        Relative(n, m, "x" if n == "x" else "f", above)
        for (n, above), m in zip(history.items(), models, strict=True)
    ]  # fmt: skip
    found = group_from_relatives("zoo", relatives, PROBES)
    assert found.way.tolist() == ["source", "child 1", "child 2"]
    assert found.source.tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.features[0], DNA().fragments(models[1], PROBES)[0], atol=0.026)
    with pytest.raises(MisuseError, match="made from another"):
        group_from_relatives("zoo", [relatives[0], relatives[4]], PROBES)


# In a workspace


@pytest.mark.slow
def test_dna_decides_where_heads_differ_and_is_listed_where_they_do_not(tmp_path: Path) -> None:
    root = group("mlp", 21, 1, ways=("new head",), targets=(None,), strangers=0)
    two = replace(root[1].recipe, parameters={**root[1].recipe.parameters, "task": "parity"})
    source, same, fewer = build_all([root[0].recipe, root[1].recipe, two])
    asked = Workspace(Registry(f"sqlite:///{tmp_path / 'r.db'}"))
    given = {"probes": PROBES.take(slice(0, 96)), "null": perceptrons(9), "alpha": 0.1}
    differ = asked.compare(source, fewer, **given)
    assert differ.function is not None
    assert differ.function.statistic == "closer-dna-than-independent"
    assert differ.function.details["decides"] == "their output heads differ"
    assert "Model DNA decides" in differ.function.reason
    assert "closer-than-independent" in {e.statistic for e in differ.evidence}
    alike = asked.compare(source, same, **given)
    assert alike.function is not None
    assert alike.function.statistic == "closer-than-independent"
    assert "closer-dna-than-independent" in {e.statistic for e in alike.evidence}
    json.dumps(differ.to_dict())


@pytest.mark.slow
def test_a_search_uses_dna_for_candidates_with_other_heads(tmp_path: Path) -> None:
    root = group("mlp", 22, 2, ways=("new head",), targets=(None,), strangers=0)
    two = replace(root[2].recipe, parameters={**root[2].recipe.parameters, "task": "parity"})
    source, other, suspect = build_all([root[0].recipe, root[1].recipe, two])
    for name, model in (("source", source), ("other", other)):
        save(model, tmp_path / "in" / name)
    asked = Workspace(Registry(f"sqlite:///{tmp_path / 'r.db'}"))
    list(asked.add([tmp_path / "in"], probes=PROBES))
    digest = asked.show("source").digest
    assert asked.registry.functional(digest, PROBES.digest, DNA(encoder=shipped_dna()).spec) is not None
    found = asked.trace(suspect, probes=PROBES, null=perceptrons(9), alpha=0.1)
    rows = {c["name"]: c for c in found.candidates}
    assert all("DNA" in r["function"]["reason"] for r in rows.values())
    json.dumps(found.to_dict())


# Command line


def test_a_dna_is_kept_of_an_enrolled_model(family: dict[str, list[Model]], tmp_path: Path, run: Run) -> None:
    path = save(family["source"][0], tmp_path / "m")
    np.savez(tmp_path / "p.npz", inputs=PROBES.inputs)
    base = f"sqlite:///{tmp_path / 'r.db'}"
    assert run("add", str(path), "--registry", base)[0] == 0
    given = ("--probes", str(tmp_path / "p.npz"), "--training-sample", str(tmp_path / "p.npz"), "--registry", base)
    code, out, _ = run("fingerprint", str(path), "--method", "dna", *given, "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["values"]["code"]["shape"] == [384, 2]
    assert shown["values"]["sample"]["shape"] == [64]
    assert shown["method"]["name"] == "dna"
    assert shown["kept"] is True
    kept = Registry(base).functional(shown["model"]["digest"], PROBES.digest, DNA(encoder=shipped_dna()).spec)
    assert kept is not None
    assert dna_bytes(kept) <= 1024
    plain = run("fingerprint", str(path), "--method", "dna", *given[:2], "--encoder", "untrained", "--json")[1]
    assert json.loads(plain)["method"]["digest"] == shown["method"]["digest"]  # no learned encoder ships
    code, _, err = run("fingerprint", str(path), "--encoder", "untrained")
    assert code != 0
    assert "belongs to method dna" in err
