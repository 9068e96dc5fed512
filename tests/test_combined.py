"""Several distances joined to one: the rank of the suspect stays exact, and one measure that finds a copy is enough."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, norm

from stemma.errors import MisuseError
from stemma.kinship.function import combined

COLUMNS = len(combined.METHODS)


def table(rows: int, seed: int = 0) -> np.ndarray:
    """Distances as they look: positive, correlated, of different scales, skewed."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 1))
    return np.exp(0.3 * (shared + rng.normal(size=(rows, COLUMNS)))) * 10.0 ** np.arange(-1, COLUMNS - 1)


def joint(whole: np.ndarray) -> np.ndarray:
    first, others = combined.statistics(whole[0], whole[1:])
    return np.concatenate([[first], others])


def test_every_model_is_treated_alike_so_that_the_rank_is_exact() -> None:
    whole = table(25)
    scores = joint(whole)
    for i in range(25):
        order = np.r_[i, np.delete(np.arange(25), i)]
        np.testing.assert_allclose(joint(whole[order]), scores[order], rtol=1e-12)


def test_ranks_of_exchangeable_models_are_uniform() -> None:
    ranks = [int((joint(table(10, seed))[1:] <= joint(table(10, seed))[0]).sum()) for seed in range(1000)]
    assert chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-3


def test_units_do_not_matter() -> None:
    whole = table(40)
    moved = whole * np.linspace(0.2, 30, COLUMNS)
    np.testing.assert_allclose(joint(moved), joint(whole), rtol=1e-9)


def test_agrees_with_the_definition_written_out() -> None:
    whole, weights = table(31, 3), list(combined.weights())
    wanted = []
    for row in whole:
        total = 0.0
        for j, weight in enumerate(weights):
            column = sorted(np.log(whole[:, j]))
            z = (np.log(row[j]) - column[15]) / (column[15] - np.quantile(column, combined.LOWER_QUANTILE))
            total += weight * norm.logcdf(z)
        wanted.append(total / sum(weights))
    np.testing.assert_allclose(joint(whole), wanted, rtol=1e-10)


@pytest.mark.parametrize("column", range(COLUMNS))
def test_one_measure_that_finds_the_copy_is_enough_and_none_finds_a_stranger(column: int) -> None:
    whole = table(200, 1)
    stranger = np.median(whole, 0)
    copy = stranger.copy()
    copy[column] *= 0.02
    scores, others = combined.statistics(copy, whole)
    assert (others > scores).all()
    scores, others = combined.statistics(stranger, whole)
    assert 0.2 < (others <= scores).mean() < 0.9


@pytest.mark.parametrize("column", range(COLUMNS))
def test_a_measure_that_does_not_apply_is_as_if_it_were_not_there(column: int) -> None:
    whole = table(30)
    without = whole.copy()
    without[:, column] = np.nan
    only_suspect = whole.copy()
    only_suspect[0, column] = np.nan
    np.testing.assert_array_equal(joint(without), joint(only_suspect))
    alone = np.full_like(whole, np.nan)
    alone[:, column] = whole[:, column]
    np.testing.assert_array_equal(np.argsort(joint(alone)), np.argsort(whole[:, column]))


def test_null_models_that_agree_exactly_give_finite_statistics() -> None:
    same = np.ones((20, COLUMNS))
    nearer, others = combined.statistics(np.full(COLUMNS, 0.5), same)
    assert np.isfinite([nearer, *others]).all()
    assert (others > nearer).all()
    equal, others = combined.statistics(np.ones(COLUMNS), same)
    assert (others == equal).all()


def test_nothing_to_combine_is_refused() -> None:
    with pytest.raises(MisuseError, match="none of the distances"):
        combined.statistics(np.full(COLUMNS, np.nan), table(5))


def test_the_weights_say_where_they_come_from() -> None:
    kept = json.loads((resources.files("stemma.kinship.function") / "combination.json").read_text())
    assert [c["fingerprint"] for c in kept["measures"]] == [f.name for f, _ in combined.METHODS]
    assert [c["measure"] for c in kept["measures"]] == [m.name for _, m in combined.METHODS]
    assert {"date", "made_by", "data", "split"} <= kept.keys()
    assert all(w > 0 for w in combined.weights())


def test_the_study_behind_the_weights_is_large_enough_and_reaches_what_the_page_claims() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "ip_protection.json"
    study = json.loads(results.read_text())
    hard = study["regimes"]["hard"]
    assert min(hard["negatives"]["same"][split] for split in ("calibration", "test")) >= 400
    for name, table in study["regimes"].items():
        assert all(group["copies"] >= 60 for group in table["groups"].values())
        assert study["reached"][name]["pooled_auc"] >= 0.95
        assert all(f["combined"]["lower"] <= study["alpha"] for f in table["false_positives"].values())
    asked = study["fields"]["field"]["fingerprint"]
    shipped = combined.METHODS[0][0].spec.params
    for choice in ("steps", "quadrature", "potential", "baseline", "cumulative", "times_input", "uniform"):
        assert asked[choice] == shipped[choice]
