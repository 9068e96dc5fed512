"""Tests on samples of inputs: levels by simulation, statistics by slow twins, verdicts on answers that are made up."""

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import binom

from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Verdict
from stemma.verification.few_retrained import SampleTests, SampleVerdict
from stemma.verification.sample_answers import independent_sets
from stemma.verification.sample_distances import Answers, labels_differ, likeness, nearer_in_outputs, unrecovered
from stemma.verification.two_sample import aggregated_mmd, discrepancies, kernels, mean_above_zero


def test_a_discrepancy_is_the_mean_over_all_pairs() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    kernel = next(kernels(points))
    chosen = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 0, 1, 0]], np.float32)
    for row, found in zip(chosen, discrepancies(kernel, chosen), strict=True):
        a, b = np.flatnonzero(row), np.flatnonzero(row == 0)
        inside = [np.mean([kernel[i, j] for i, j in combinations(group, 2)]) for group in (a, b)]
        assert found == pytest.approx(sum(inside) - 2 * kernel[np.ix_(a, b)].mean(), abs=1e-6)


def test_equal_distributions_are_rejected_at_the_level_and_others_are_found() -> None:
    rejected, shifted, wider = [], [], []
    for seed in range(150):
        rng = np.random.default_rng([seed, 1])
        a, b = rng.exponential(size=(14, 2)), rng.exponential(size=(21, 2))
        rejected.append(aggregated_mmd([a, a**2], [b, b**2], 99, seed).p_value <= 0.05)
    assert binom.sf(sum(rejected) - 1, 150, 0.05) > 1e-3
    for seed in range(10):
        rng = np.random.default_rng([seed, 2])
        a, b = rng.normal(size=(40, 2)), rng.normal(size=(60, 2))
        shifted.append(aggregated_mmd([a], [b + 1.2], 99, seed).p_value)
        wider.append(aggregated_mmd([a], [b * 4], 99, seed).p_value)
    assert max(np.median(shifted), np.median(wider)) == pytest.approx(0.01)
    constant = np.ones((8, 2))
    assert aggregated_mmd([constant], [constant], 99).p_value == 1


@pytest.mark.parametrize("rare", [0.5, 0.03])
def test_a_mean_of_zero_is_bet_on_in_vain_however_skewed(rare: float) -> None:
    # -1 rarely and a little often, and the reverse: both have the mean 0.
    wins = 0
    for seed in range(400):
        drawn = np.random.default_rng([seed, 3]).random(60)
        values = np.where(drawn < rare, -1.0, rare / (1 - rare)) * (1 if seed % 2 else -1)
        wins += mean_above_zero(values, seed) <= 0.05
    assert binom.sf(wins - 1, 400, 0.05) > 1e-3
    assert mean_above_zero(np.random.default_rng(0).normal(0.2, 0.2, 100).clip(-1, 1)) < 1e-3
    assert mean_above_zero(np.sort(np.linspace(-1, 1, 200)) - 1e-9) > 0.05  # an order of the inputs is no evidence
    assert mean_above_zero(np.zeros(0)) == 1


def test_pairs_estimate_which_discrepancy_is_larger() -> None:
    rng = np.random.default_rng(4)
    u, o, r = (rng.dirichlet(weights, 24) for weights in ([1, 1, 1], [5, 1, 1], [1, 3, 1]))
    models = [Answers(n, {"forget": np.log(p)}) for n, p in zip("uor", (u, o, r), strict=True)]

    def slow(a: np.ndarray, b: np.ndarray) -> float:
        pairs = list(permutations(range(len(a)), 2))
        return float(np.mean([
            likeness(a[i], a[j]) + likeness(b[i], b[j]) - likeness(a[i], b[j]) - likeness(a[j], b[i]) for i, j in pairs
        ]))  # fmt: skip

    drawn = [nearer_in_outputs(models[0], models[1], models[2:], seed).mean() for seed in range(400)]
    assert np.mean(drawn) == pytest.approx((slow(u, r) - slow(u, o)) / 3, abs=4 * np.std(drawn) / 20)


def features(forget: np.ndarray, retained: np.ndarray, outputs: np.ndarray, name: str = "model") -> Answers:
    return Answers(name, {"forget": outputs}, {"forget": forget, "retained": retained})


def test_what_is_recovered_depends_on_no_basis_of_the_hidden_layer() -> None:
    rng = np.random.default_rng(5)
    seen, asked = rng.normal(size=(300, 6)), rng.normal(size=(40, 6)) + 2
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    answers = np.zeros((40, 2))
    original = features(asked, seen, answers)
    assert unrecovered(original, original, 0.1).max() < 0.01
    assert unrecovered(features(asked @ turned + 3, seen @ turned + 3, answers), original, 0.1).max() < 0.01
    noise = features(rng.normal(size=(40, 6)), rng.normal(size=(300, 6)), answers)
    assert unrecovered(noise, original, 0.1).mean() > 0.4
    wide, few = rng.normal(size=(6, 30)), slice(0, 20)  # more features than retained inputs: the same map, solved twice
    both = [features(asked[:, :k] @ wide[:k], seen[few, :k] @ wide[:k], answers) for k in (6, 3)]
    assert unrecovered(both[0], original_few := features(asked, seen[few], answers), 0.1).mean() < 0.1
    assert unrecovered(both[1], original_few, 0.1).mean() > 0.1


def made(rng: np.random.Generator, knows: float, name: str, inputs: int = 240) -> Answers:
    """A classifier that errs at inputs of its own: on the forget set it is right as often as it knows."""

    def asked(right: float) -> np.ndarray:
        return np.where((rng.random(inputs) < right)[:, None], [[4.0, 0.0]], [[0.0, 4.0]])

    return Answers(name, {"forget": asked(knows), "unseen": asked(0.7)})


def verdict(suspect: float, gold: int, original: float = 0.99, seed: int = 0) -> SampleVerdict:
    rng = np.random.default_rng([seed, 6])
    models = [made(rng, knows, name) for knows, name in ((original, "a"), (suspect, "b"), *((0.7, "r"),) * gold)]
    return SampleTests(permutations=99)(models[0], models[1:2], models[2:])


@pytest.mark.parametrize("gold", [0, 1, 3])
def test_models_that_err_at_other_inputs_are_not_told_apart_and_memory_is(gold: int) -> None:
    # Input by input, two models that are right at 70 % differ more from each other than from one that is always right.
    assert verdict(0.98, gold).verdict == Verdict.REFUTED
    honest = [verdict(0.7, gold, seed=s) for s in range(3)]
    assert sum(v.verdict == Verdict.REFUTED for v in honest) <= 1
    assert all(v.verdict != Verdict.SUPPORTED for v in honest)


def test_without_power_or_with_a_refuted_reference_nothing_is_concluded() -> None:
    blind = verdict(0.7, 0, original=0.7)
    assert blind.verdict == Verdict.INCONCLUSIVE
    assert "no power" in blind.reason
    rng = np.random.default_rng(7)
    strange = [made(rng, 0.99, n) for n in ("a", "b")]
    other_kind = SampleTests(permutations=99)(*([strange[0], strange[1:], [made(rng, 0.2, "r")]]))
    assert not other_kind.findings[0].sound(0.025)  # the unseen inputs are of another kind than the forget set
    assert "unseen" not in other_kind.reason or other_kind.verdict == Verdict.INCONCLUSIVE
    assert SampleTests()(*(strange[0], strange[1:], [])).left_out["recovery"]


def test_repeated_and_shared_inputs_are_no_further_samples() -> None:
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    found = independent_sets({"forget": Probes.of(np.concatenate([x[:4], x[:2]])), "retained": Probes.of(x[2:])})
    assert (len(found["forget"]), len(found["retained"])) == (4, 6)
    np.testing.assert_array_equal(found["forget"].inputs, x[:4])
    with pytest.raises(MisuseError, match="2 inputs of the forget set are among the unseen ones"):
        independent_sets({"forget": Probes.of(x[:4]), "unseen": Probes.of(x[2:])})
    assert "retained" not in independent_sets({"forget": Probes.of(x), "retained": Probes.of(x[:3])})


def test_unseen_inputs_of_other_classes_refute_nobody() -> None:
    """A model that never saw the forget set answers inputs of other classes otherwise: that is no remembering."""
    rng = np.random.default_rng(9)

    def model(name: str) -> Answers:
        sets = {"forget": 3, "unseen": 1}
        return Answers(name, {s: rng.normal(size=(60, 4)) + 4 * np.eye(4)[c] for s, c in sets.items()})

    original, honest = model("original"), model("honest")
    threes, ones = np.full(60, 3), np.ones(60, int)
    assert SampleTests()(original, [honest]).verdict == Verdict.REFUTED  # without labels only the assumption says it
    found = SampleTests()(original, [honest], labels={"forget": threes, "unseen": ones})
    assert found.verdict == Verdict.INCONCLUSIVE
    assert "were not drawn alike" in found.left_out["unseen"]
    assert not labels_differ({"forget": threes, "unseen": threes[:20]})
    mixed = rng.integers(0, 4, 120)
    assert not labels_differ({"forget": mixed[:60], "unseen": mixed[60:]})
    assert not labels_differ({"forget": threes})
