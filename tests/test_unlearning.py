"""Verification of unlearning: exact by construction, held to slow twins, and to networks whose history is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, permutation_test

from checkpoints import Run
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.errors import MisuseError
from stemma.networks.open import from_module
from stemma.probes import Probes
from stemma.types import Evidence, Verdict
from stemma.verification import permutation_test as permutation
from stemma.verification.distances import separation
from stemma.verification.equivalence import excess_over_group
from stemma.verification.unlearning import UnlearningTest
from stemma.zoo.data import Examples, examples
from stemma.zoo.kinds import Schedule
from stemma.zoo.memory import model_of
from stemma.zoo.training import initial, train

ALL_SEEING = ("outputs", "features")


def apart(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def slow_excess(distances: np.ndarray, chosen: Sequence[int]) -> float:
    others = [i for i in range(len(distances)) if i not in chosen]
    across = [distances[i, j] for i in chosen for j in others]
    among = [distances[i, j] for i, j in combinations(others, 2)]
    return float(np.mean(across) - np.mean(among))


@pytest.mark.parametrize(("suspects", "count"), [(1, 8), (3, 9), (2, 4)])
def test_the_excess_is_what_its_name_says(suspects: int, count: int) -> None:
    distances = apart(np.random.default_rng(count).normal(size=(count, 3)))
    rows = list(combinations(range(count), suspects))
    chosen = np.array([[i in row for i in range(count)] for row in rows])
    expected = [slow_excess(distances, row) for row in rows]
    np.testing.assert_allclose(permutation.excess(distances, chosen), expected, atol=1e-12)


def test_one_suspect_is_the_leave_one_out_rank_test() -> None:
    for seed in range(20):
        distances = apart(np.random.default_rng(seed).normal(size=(20, 2)))
        mean = distances.sum(1) / 19
        expected = (mean >= mean[0]).sum() / 20
        assert permutation.permutation_test([distances], 1).p_value == pytest.approx(expected)


def test_three_against_six_agrees_with_scipy() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        points = rng.normal(size=(9, 2))
        points[:3] += 0.8
        distances = apart(points)
        twin = permutation_test(
            (np.arange(3), np.arange(3, 9)),
            lambda a, _, d=distances: slow_excess(d, a.astype(int).tolist()),
            permutation_type="independent", alternative="greater", n_resamples=np.inf, vectorized=False,
        )  # fmt: skip
        found = permutation.permutation_test([distances], 3)
        assert found.p_value == pytest.approx(twin.pvalue)
        assert len(found.values) == 84
        assert found.smallest_p_value == pytest.approx(1 / 84)


@pytest.mark.parametrize("combine", permutation.COMBINATIONS)
def test_exactly_the_level_is_rejected_among_exchangeable_models(combine: str) -> None:
    # A theorem: whoever of the pool is called the suspect, exactly one in twenty lies at the top.
    rng = np.random.default_rng(1)
    views = [apart(rng.normal(size=(20, d))) for d in (2, 5)]
    p = []
    for i in range(20):
        order = [i, *(j for j in range(20) if j != i)]
        p.append(permutation.permutation_test([v[np.ix_(order, order)] for v in views], 1, combine).p_value)
    assert sorted(p) == pytest.approx(np.arange(1, 21) / 20)


def test_drawn_labellings_hold_the_level_too() -> None:
    rejected = 0
    for seed in range(300):
        distances = apart(np.random.default_rng([seed, 2]).normal(size=(16, 2)))
        found = permutation.permutation_test([distances], 5, max_labellings=99, seed=seed)
        assert not found.exact
        assert found.smallest_p_value == pytest.approx(1 / 99)
        rejected += found.p_value <= 0.05
    assert binom.sf(rejected - 1, 300, 0.05) > 1e-3
    far = np.random.default_rng(0).normal(size=(16, 2))
    far[:5] += 9
    control = permutation.permutation_test([apart(far)], 5, max_labellings=99)
    assert control.p_value == pytest.approx(1 / 99)


def test_how_many_retrained_models_a_level_takes() -> None:
    assert permutation.required_group_size(1, 0.05) == 19
    assert permutation.required_group_size(1, 0.01) == 99
    assert permutation.smallest_p_value(3, 6) == pytest.approx(1 / 84)
    for suspects in (1, 2, 3, 4):
        group = permutation.required_group_size(suspects, 0.05)
        assert permutation.smallest_p_value(suspects, group) <= 0.05 + 1e-12
        assert group == 2 or permutation.smallest_p_value(suspects, group - 1) > 0.05


def test_the_upper_limit_holds_for_other_retrained_models() -> None:
    # Truth by a large sample: a fixed suspect one standard deviation off, retrained models around the origin.
    rng = np.random.default_rng(5)
    suspect, many = np.array([1.0, 0, 0]), rng.normal(size=(4000, 3))
    inside = np.linalg.norm(many[:2000] - many[2000:], axis=1).mean()
    truth = np.linalg.norm(many - suspect, axis=1).mean() / inside - 1
    limits = [excess_over_group(apart(np.vstack([suspect, rng.normal(size=(25, 3))])), 1, 0.05) for _ in range(300)]
    assert np.mean([e.share for e in limits]) == pytest.approx(truth, abs=0.02)
    for covered in (np.mean([e.high >= truth for e in limits]), np.mean([e.low <= truth for e in limits])):
        assert 0.90 <= covered <= 0.99


def evidence(suspect: np.ndarray, original: np.ndarray, group: int, seed: int = 0, **options: object) -> Evidence:
    """Models as points, in one view inside and one outside."""
    rng = np.random.default_rng(seed)
    at = np.vstack([np.atleast_2d(suspect), rng.normal(size=(group, 3)), original[None]])
    runs = len(np.atleast_2d(suspect))
    views = {v: apart(at) for v in options.pop("seen", ALL_SEEING)}  # ty: ignore[not-iterable]
    return UnlearningTest(**options).conclude(views, runs)  # ty: ignore[invalid-argument-type]


FAR, NEAR = np.array([6.0, 0, 0]), np.array([0.3, 0, 0])


def test_rejection_refutes_and_the_effect_says_how_much_is_left() -> None:
    found = evidence(FAR, FAR + 0.01, 19)
    assert found.verdict == Verdict.REFUTED
    assert found.p_value == pytest.approx(0.05)
    assert found.effect == pytest.approx(0, abs=0.02)
    assert found.details["control_p_value"] == pytest.approx(0.05)


def test_not_rejecting_is_no_proof() -> None:
    few = evidence(np.array([1.6, 0, 0]), FAR, 19, margin=0.02)  # as far out as most
    assert few.p_value is not None
    assert few.p_value > 0.05
    assert few.verdict == Verdict.INCONCLUSIVE
    assert "margin" in few.reason


def test_equivalence_supports_and_only_where_the_original_is_seen_from_inside() -> None:
    assert evidence(NEAR, FAR, 60).verdict == Verdict.SUPPORTED
    blind = evidence(NEAR, NEAR + 0.1, 60)
    assert blind.verdict == Verdict.INCONCLUSIVE
    assert "neither is the original" in blind.reason
    outside = evidence(NEAR, FAR, 60, seen=("outputs", "field"))
    assert outside.verdict == Verdict.INCONCLUSIVE
    assert "no view of hidden layers" in outside.reason


def test_an_excess_as_large_as_the_margin_is_seldom_supported() -> None:
    suspect, many = np.array([2.3, 0, 0]), np.random.default_rng(9).normal(size=(4000, 3))
    inside = np.linalg.norm(many[:2000] - many[2000:], axis=1).mean()
    truth = float(np.linalg.norm(many - suspect, axis=1).mean() / inside - 1)
    supported = [evidence(suspect, FAR, 30, s, margin=truth).verdict == Verdict.SUPPORTED for s in range(100)]
    assert binom.sf(sum(supported) - 1, 100, 0.05) > 1e-3
    near = [evidence(NEAR, FAR, 30, s, margin=truth).verdict == Verdict.SUPPORTED for s in range(40)]
    assert sum(near) >= 35  # the control


@pytest.mark.parametrize(("group", "missing"), [(0, 19), (1, 18), (5, 14), (18, 1), (19, 0)])
def test_too_few_retrained_models_are_counted(group: int, missing: int) -> None:
    found = evidence(FAR, FAR + 0.1, group)
    assert found.details["missing"] == missing
    assert (found.verdict == Verdict.INCONCLUSIVE) == (missing > 0)
    assert (str(missing) in found.reason) == (missing > 0)


def test_three_runs_need_six_retrained_models() -> None:
    runs = FAR + np.random.default_rng(3).normal(size=(3, 3))
    found = evidence(runs, FAR, 6)
    assert found.verdict == Verdict.REFUTED
    assert found.p_value == pytest.approx(1 / 84)
    assert evidence(runs, FAR, 6, alpha=0.01).details["missing"] == 1  # 120 labellings are needed


def test_the_order_of_the_retrained_models_does_not_matter() -> None:
    rng = np.random.default_rng(8)
    d = apart(rng.normal(size=(22, 3)))
    order = [0, *(1 + rng.permutation(20)), 21]
    one, two = (UnlearningTest().conclude({"features": m}, 1) for m in (d, d[np.ix_(order, order)]))
    assert one.p_value == two.p_value
    assert one.details["views"]["features"]["excess_high"] == pytest.approx(
        two.details["views"]["features"]["excess_high"]
    )


def test_separation_is_leave_one_out_ridge_regression() -> None:
    rng = np.random.default_rng(2)
    forget, retained = rng.normal(0.7, 1, (12, 5)), rng.normal(0, 1, (20, 5))
    x, y = np.vstack([forget, retained]), np.repeat([1.0, 0.0], [12, 20])
    z = (x - x.mean(0)) / x.std(0) / 5**0.5
    misses = []
    for i in range(32):
        kept = np.arange(32) != i
        a = np.column_stack([z[kept], np.ones(31)])
        penalty = np.diag([0.1] * 5 + [0.0])
        weights = np.linalg.solve(a.T @ a + penalty, a.T @ y[kept])
        misses.append(y[i] - np.append(z[i], 1) @ weights)
    expected = 1 - np.square(misses).sum() / np.square(y - y.mean()).sum()
    assert separation(forget, retained, 0.1) == pytest.approx(expected, abs=1e-10)
    assert separation(forget + 50, retained, 1e-3) > 0.95
    assert separation(rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), 0.1) < 0.1


CONFIG = {"model_type": "stemma-mlp", "input_shape": [1, 8, 8], "classes": 10, "hidden": [32, 24]}
LOST = 3


@dataclass(frozen=True)
class Family:
    """Networks on digits: originals know the 3, retrained ones never saw it."""

    originals: list[Model]
    retrained: list[Model]
    forget: Probes
    retained: Probes


@pytest.fixture(scope="module")
def digits() -> Family:
    data = examples("mlp", "a")
    lost = data.targets == LOST
    rest = Examples(data.inputs[~lost], data.targets[~lost])

    def made(name: str, learns: Examples, count: int, seed: int) -> list[Model]:
        starts = [initial(CONFIG, seed + i) for i in range(count)]
        runs = train(CONFIG, starts, learns, Schedule(200, 32, 4e-3), list(range(seed, seed + count)))
        return [model_of(f"{name}-{i}", run[-1], CONFIG) for i, run in enumerate(runs)]

    return Family(
        made("original", data, 3, 100), made("retrained", rest, 26, 500),
        Probes.of(data.inputs[lost][:60], data.targets[lost][:60]), Probes.of(rest.inputs[:120], rest.targets[:120]),
    )  # fmt: skip


def masked(model: Model) -> Model:
    """The class is never answered again; everything else is as it was."""
    arrays = {n: np.array(t.array()) for n, t in model.tensors.items()}
    arrays["head.weight"][LOST], arrays["head.bias"][LOST] = 0, -1e4
    return model_of(f"{model.name}-masked", arrays, CONFIG)


@pytest.mark.slow
def test_a_mask_is_refuted_and_a_retrained_network_is_not(digits: Family) -> None:
    test, gold = UnlearningTest(), digits.retrained[:20]
    for i, original in enumerate(digits.originals):
        hidden = test(original, [masked(original)], digits.forget, gold, digits.retained)
        assert hidden.verdict == Verdict.REFUTED, i
        assert hidden.details["forget_accuracy"]["unlearned"] == 0  # what a look at the answers would call forgotten
    p = [test(digits.originals[0], [m], digits.forget, gold, digits.retained).p_value for m in digits.retrained[20:]]
    assert sum(v is not None and v <= 0.05 for v in p) <= 2


def test_the_original_itself_is_refuted_and_has_the_effect_of_itself(digits: Family) -> None:
    original = digits.originals[0]
    found = UnlearningTest()(original, [original], digits.forget, digits.retrained[:19], digits.retained)
    assert found.verdict == Verdict.REFUTED
    assert found.effect == pytest.approx(0, abs=1e-9)
    assert set(found.details["views"]) == {"outputs", "field", "features", "separation"}
    assert all(v["to_original"] == pytest.approx(0, abs=1e-6) for v in found.details["views"].values())


def test_what_cannot_be_seen_is_left_out_and_said(digits: Family) -> None:
    import torch

    def answers(model: Model) -> Model:
        module = model.network.module
        assert module is not None

        def ask(x: torch.Tensor) -> np.ndarray:
            with torch.no_grad():
                return module(torch.as_tensor(x)).numpy()

        return from_module(ask, name=model.name)

    shut = [answers(m) for m in digits.retrained[:20]]
    found = UnlearningTest()(answers(digits.originals[0]), [shut[0]], digits.forget, shut[1:])
    assert set(found.details["left_out"]) >= {"features", "separation"}
    assert "no retained probes" in found.details["left_out"]["separation"]
    assert found.verdict != Verdict.SUPPORTED


def test_wrong_use_gets_one_sentence(digits: Family) -> None:
    test, (a, b) = UnlearningTest(), digits.originals[:2]
    with pytest.raises(MisuseError, match="no unlearned model"):
        test(a, [], digits.forget)
    with pytest.raises(MisuseError, match="are the same model"):
        test(a, [b], digits.forget, [digits.retrained[0], digits.retrained[0]])
    with pytest.raises(MisuseError, match="among the retrained"):
        test(a, [b], digits.forget, [a, digits.retrained[0]])
    with pytest.raises(MisuseError, match="raw inputs of shape"):
        test(a, [b], Probes.of(np.zeros((4, 1, 9, 9), np.float32)))
    with pytest.raises(MisuseError, match="views have to be some of"):
        UnlearningTest(views=("nothing",))
    with pytest.raises(MisuseError, match="combine has to be"):
        UnlearningTest(combine="sum")
    with pytest.raises(MisuseError, match="margin"):
        UnlearningTest(margin=0)


def test_the_command_refutes_with_exit_code_1_and_counts_what_is_missing(
    digits: Family, tmp_path: Path, run: Run
) -> None:
    for model in digits.retrained[:19]:
        save(model, tmp_path / "gold" / model.name)
    save(digits.originals[0], tmp_path / "original")
    save(masked(digits.originals[0]), tmp_path / "masked")
    np.savez(tmp_path / "forget.npz", inputs=digits.forget.inputs, labels=digits.forget.labels)
    np.savez(tmp_path / "kept.npz", inputs=digits.retained.inputs, labels=digits.retained.labels)
    asked = ["verify", "unlearning", "--original", tmp_path / "original", "--unlearned", tmp_path / "masked",
             "--forget", tmp_path / "forget.npz"]  # fmt: skip
    gold = ["--retrained", tmp_path / "gold", "--retained-probes", tmp_path / "kept.npz"]
    code, out, _ = run(*asked, *gold)
    assert code == 1
    assert "not unlearned" in out
    code, out, _ = run(*asked, *gold, "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["details"]["retrained"][0]) == (1, "refuted", "retrained-0")
    code, out, _ = run(*asked, "--retrained", tmp_path / "gold/retrained-0", tmp_path / "gold/retrained-1", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["details"]["missing"]) == (0, "inconclusive", 17)
    code, out, _ = run(*asked)
    assert code == 0
    assert "19 more are needed" in out
    code, _, err = run(*asked, "--strict")
    assert (code, err.count("not tested: ")) == (3, 1)
    code, _, err = run(*asked, "--margin", "0")
    assert code == 2
    assert "not a margin" in err


@pytest.mark.parametrize("gold", [0, 1, 3])
def test_a_mask_is_refuted_with_no_or_few_retrained_networks(digits: Family, gold: int) -> None:
    test, few = UnlearningTest(), digits.retrained[:gold]
    for original in digits.originals[:2]:
        hidden = test(original, [masked(original)], digits.forget, few, digits.retained)
        assert hidden.verdict == Verdict.REFUTED
        assert hidden.statistic == "samples-of-inputs"
        assert "assumes" in hidden.reason
        forms = hidden.details["samples"]["forms"]
        assert all(form["shown_to_have_power"] and form["sound"] for form in forms.values())
    for fresh in digits.retrained[20:23]:
        spared = test(digits.originals[0], [fresh], digits.forget, few, digits.retained)
        assert spared.verdict == Verdict.INCONCLUSIVE
        assert f"{19 - gold} more are needed" in spared.reason


def test_unseen_inputs_find_what_was_learned_by_heart_and_their_control_a_wrong_kind(digits: Family) -> None:
    held = examples("mlp", "b")
    unseen = Probes.of(held.inputs[held.targets == LOST][:60], held.targets[held.targets == LOST][:60])
    original = digits.originals[0]
    found = UnlearningTest()(original, [digits.retrained[0]], digits.forget, unseen=unseen)
    form = found.details["samples"]["forms"]["unseen"]
    assert found.verdict == Verdict.INCONCLUSIVE
    assert form["control_p_value"] is None
    other = Probes.of(digits.retained.inputs)  # without labels another kind, which retrained networks show
    wrong = UnlearningTest()(original, [digits.retrained[0]], digits.forget, digits.retrained[1:3], unseen=other)
    assert not wrong.details["samples"]["forms"]["unseen"]["sound"]
    assert wrong.verdict == Verdict.INCONCLUSIVE


RECIPE = """
import pathlib, torch
from stemma.zoo.memory import model_of
from stemma.zoo.kinds import Schedule
from stemma.zoo.data import Examples
from stemma.zoo.training import initial, train

CONFIG = {config}

def fit(dataset, seed):
    with open("trained.txt", "a") as f:
        f.write(f"{{seed}} {{len(dataset.labels)}}\\n")
    learns = Examples(dataset.inputs, dataset.labels)
    run = train(CONFIG, [initial(CONFIG, seed)], learns, Schedule(120, 32, 4e-3), [seed])
    return model_of("m", run[0][-1], CONFIG).network.module

def nothing(dataset, seed):
    return None

def other(dataset, seed):
    return torch.nn.Linear(2, 2)

def breaks(dataset, seed):
    raise ValueError("no <script> data\\nhere")
"""


def test_a_recipe_trains_retrained_networks_once_and_says_the_cost(
    digits: Family, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "unlearning_recipe.py").write_text(RECIPE.format(config=CONFIG))
    save(digits.originals[0], tmp_path / "original")
    save(masked(digits.originals[0]), tmp_path / "masked")
    np.savez(tmp_path / "forget.npz", inputs=digits.forget.inputs, labels=digits.forget.labels)
    np.savez(tmp_path / "kept.npz", inputs=digits.retained.inputs, labels=digits.retained.labels)
    asked = ["verify", "unlearning", "--original", "original", "--unlearned", "masked", "--forget", "forget.npz",
             "--retained-probes", "kept.npz", "--retrain-count", "2"]  # fmt: skip
    recipe = ["--retrain-recipe", "unlearning_recipe:fit", "--allow-code"]
    code, out, _ = run(*asked, *recipe, "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["details"]["retrained"]) == (1, "refuted", ["retrained-0", "retrained-1"])
    assert (tmp_path / "trained.txt").read_text() == "0 120\n1 120\n"
    code, out, _ = run(*asked, *recipe)  # from the cache
    assert code == 1
    assert "relative" in out
    assert "assumes" in out
    assert (tmp_path / "trained.txt").read_text() == "0 120\n1 120\n"
    for words, wrong, says in (
        (["--retrain-recipe", "unlearning_recipe:fit"], 2, "--allow-code"),
        (["--retrain-recipe", "unlearning_recipe", "--allow-code"], 2, "MODULE:FUNCTION"),
        (["--retrain-recipe", "unlearning_recipe:gone", "--allow-code"], 2, "cannot find"),
        (["--retrain-recipe", "unlearning_recipe:nothing", "--allow-code"], 2, "must return the trained nn.Module"),
        (["--retrain-recipe", "unlearning_recipe:other", "--allow-code"], 2, "other tensors"),
        (["--retrain-recipe", "unlearning_recipe:breaks", "--allow-code"], 1, "ValueError: no <script> data here"),
        ([], 2, "take --retrain-recipe"),
    ):
        code, _, err = run(*asked, *words)
        assert code == wrong, (words, err)
        assert says in " ".join(err.split()), (words, err)
