"""Every measure obeys the laws that it declares and no others, and agrees with a slow twin or a published number."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import distance as spatial
from scipy.stats import rankdata
from sklearn.datasets import load_iris, load_linnerud

from stemma.errors import MisuseError
from stemma.fingerprints import ALL as FINGERPRINTS
from stemma.measures import ALL
from stemma.measures.base import AbstractMeasure, Law
from stemma.measures.decision_distance import DecisionDistance
from stemma.measures.distance_correlation import DistanceCorrelation
from stemma.measures.intervals import mean_interval
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.label_disagreement import LabelDisagreement
from stemma.measures.linear_cka import LinearCka
from stemma.measures.mean_cca import MeanCca
from stemma.measures.procrustes import Procrustes
from stemma.measures.pwcca import Pwcca
from stemma.measures.rsa import Rsa
from stemma.measures.sample_correlation import SampleCorrelation
from stemma.measures.softmax_difference import SoftmaxDifference
from stemma.measures.svcca import Svcca
from stemma.types import Digest, Fingerprint, Spec

MEASURES = (*(kind() for kind in ALL), LinearCka(debiased=False), DistanceCorrelation(corrected=False))
CASES = [(measure, key) for measure in MEASURES for key in sorted(measure.accepts)]
IDS = [f"{m.name}{'' if m == type(m)() else '-plain'}-{key}" for m, key in CASES]
PROBES, WIDTH = 40, 4

Values = Mapping[str, np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


def values(key: str, rows: np.ndarray) -> Values:
    if key != "field":
        return {key: rows}
    weights = np.broadcast_to([0.25, 0.75], (len(rows), 2))
    return {"curve": np.stack([rows, rows + 0.3], 1), "weights": weights, "defined": np.ones(weights.shape, bool)}


def changed(key: str, given: Values, change: Change) -> Values:
    name = "curve" if key == "field" else key
    return {**given, name: change(given[name])}


def value(measure: AbstractMeasure, a: Values, b: Values) -> float:
    return float(measure.distances(a, b).mean())


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (PROBES, WIDTH))


TURN = np.linalg.qr(normal(91, WIDTH, WIDTH))[0]
STRETCH = TURN @ np.diag([0.5, 1.0, 2.0, 4.0]) @ np.linalg.qr(normal(92, WIDTH, WIDTH))[0]
PER_PROBE = 3 * normal(93, PROBES)

CHANGES: dict[Law, Change] = {
    Law.PERMUTATION: lambda x: x[..., [2, 0, 3, 1]],
    Law.ORTHOGONAL: lambda x: x @ TURN,
    Law.LINEAR: lambda x: x @ STRETCH,
    Law.SCALING: lambda x: 3.7 * x,
    Law.TRANSLATION: lambda x: x + np.array([0.0, 2.0, -1.0, 4.0]),
    Law.SHIFT: lambda x: x + PER_PROBE.reshape(-1, *[1] * (x.ndim - 1)),
}


def test_each_law_is_tried() -> None:
    assert {*CHANGES, Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED} == set(Law)


@pytest.mark.parametrize("law", CHANGES)
@pytest.mark.parametrize(("measure", "key"), CASES, ids=IDS)
def test_it_is_blind_to_exactly_what_it_declares(measure: AbstractMeasure, key: str, law: Law) -> None:
    """Related and unrelated models; the change is made to either side."""
    holds = []
    for seed in range(3):
        a, b = values(key, normal(seed)), values(key, normal(seed) + (0.5, 5.0)[seed % 2] * normal(seed + 50))
        before = value(measure, a, b)
        for pair in ((changed(key, a, CHANGES[law]), b), (a, changed(key, b, CHANGES[law]))):
            holds.append(abs(value(measure, *pair) - before) < 1e-7)
    assert all(holds) == (law in measure.laws)


@pytest.mark.parametrize(("measure", "key"), CASES, ids=IDS)
def test_identity_symmetry_and_bounds(measure: AbstractMeasure, key: str) -> None:
    rows = [normal(seed) for seed in range(6)]
    rows += [-rows[0], 1e3 * rows[1], 1e-3 * rows[2], rows[3] ** 3]
    found = np.array([[value(measure, values(key, x), values(key, y)) for y in rows] for x in rows])
    # float32 answers of one network differ by rounding only: the distance to itself is far below every other
    assert {Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED} <= measure.laws
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-7)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    assert found.min() >= -1e-12
    assert found.max() <= measure.top + 1e-12
    assert found[0, 1] > 1e-2  # the control: strangers are apart


@pytest.mark.parametrize(("measure", "key"), CASES, ids=IDS)
def test_the_triangle_law_where_it_is_declared_and_a_counterexample_where_not(
    measure: AbstractMeasure, key: str
) -> None:
    """Half-way between two near models: a measure that is quadratic at zero gives 4 against 1 + 1."""
    excess = []
    for seed in range(12):
        a, c = normal(seed), normal(seed) + (0.3, 1.0, 5.0)[seed % 3] * normal(seed + 40)
        for b in ((a + c) / 2, normal(seed + 80), a):
            ab, bc, ac = (value(measure, values(key, u), values(key, v)) for u, v in ((a, b), (b, c), (a, c)))
            excess.append(ac - ab - bc)
    assert (max(excess) <= 1e-9) == (Law.TRIANGLE in measure.laws)


def test_importing_all_loads_neither_torch_nor_scipy() -> None:
    code = "import json, sys, stemma.measures, stemma.fingerprints; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "scipy", "sklearn"}
    assert "numpy" in loaded


# Slow twins


def softmax(row: np.ndarray) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def test_jensen_shannon_is_the_root_of_the_mean_information_in_bits() -> None:
    x, y = normal(1, 5, 6), 2 * normal(2, 5, 6)
    slow = []
    for p, q in ((softmax(u), softmax(v)) for u, v in zip(x, y, strict=True)):
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        entropy = [-sum(v * math.log2(v) for v in d) for d in (m, p, q)]
        slow.append(math.sqrt(entropy[0] - (entropy[1] + entropy[2]) / 2))
    np.testing.assert_allclose(JensenShannon().distances({"outputs": x}, {"outputs": y}), slow, atol=1e-9)


def test_softmax_difference_is_the_largest_difference_over_sets_of_classes() -> None:
    x, y = normal(3, 5, 6), 2 * normal(4, 5, 6)
    slow = []
    for p, q in ((softmax(u), softmax(v)) for u, v in zip(x, y, strict=True)):
        sets = itertools.product((0, 1), repeat=6)
        slow.append(max(abs(sum(s * (a - b) for s, a, b in zip(chosen, p, q, strict=True))) for chosen in sets))
    np.testing.assert_allclose(SoftmaxDifference().distances({"outputs": x}, {"outputs": y}), slow, atol=1e-12)


def test_certain_and_opposed_predictions_are_at_distance_one() -> None:
    x, y = np.array([[800.0, 0, 0]]), np.array([[0, 800.0, 0]])
    for measure in (JensenShannon(), SoftmaxDifference(), LabelDisagreement()):
        assert value(measure, {"outputs": x}, {"outputs": y}) == pytest.approx(1, abs=1e-12)
        assert value(measure, {"outputs": x}, {"outputs": x}) == 0


def test_labels_are_compared_one_by_one_and_tokens_by_position() -> None:
    x = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 5], [2, 2, 0]], float)
    y = np.array([[9, 8, 7], [1, 0, 0], [0, 0, 1], [0, 3, 0]], float)
    np.testing.assert_array_equal(LabelDisagreement().distances({"outputs": x}, {"outputs": y}), [0, 1, 0, 1])
    for measure in (LabelDisagreement(), JensenShannon(), SoftmaxDifference()):
        single = measure.distances({"outputs": x}, {"outputs": y})
        tokens = measure.distances({"outputs": x.reshape(2, 2, 3)}, {"outputs": y.reshape(2, 2, 3)})
        np.testing.assert_allclose(tokens, single.reshape(2, 2).mean(1))


def test_plain_cka_is_the_cosine_of_centred_gram_matrices() -> None:
    x, y = normal(5, 12, 3), normal(6, 12, 20)
    centring = np.eye(12) - 1 / 12
    k, m = (centring @ (v @ v.T) @ centring for v in (x, y))
    cosine = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert value(LinearCka(False), {"features": x}, {"features": y}) == pytest.approx(1 - cosine, abs=1e-12)


def test_debiased_cka_is_made_of_the_u_statistic_over_four_different_samples() -> None:
    """Song et al. 2012, eq. 3: the mean over all ordered quadruples, term by term."""
    x, y = normal(7, 8, 3), normal(8, 8, 11)

    def u_statistic(k: np.ndarray, m: np.ndarray) -> float:
        quadruples = list(itertools.permutations(range(8), 4))
        return sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quadruples) / len(quadruples)

    k, m = x @ x.T, y @ y.T
    cosine = u_statistic(k, m) / math.sqrt(u_statistic(k, k) * u_statistic(m, m))
    for features in ((x, y), (x @ np.linalg.qr(normal(9, 3, 3))[0], np.pad(y, ((0, 0), (0, 70))))):
        found = value(LinearCka(), *({"features": f} for f in features))
        assert found == pytest.approx(1 - cosine, abs=1e-10)


@pytest.mark.parametrize(
    ("right", "plain"), [(LinearCka(), LinearCka(False)), (DistanceCorrelation(), DistanceCorrelation(False))]
)
def test_wide_independent_features_are_apart_only_without_the_bias(
    right: AbstractMeasure, plain: AbstractMeasure
) -> None:
    found = np.array([
        [value(m, {"features": normal(s, 50, 500)}, {"features": normal(s + 100, 50, 500)}) for m in (right, plain)]
        for s in range(8)
    ])  # fmt: skip
    assert abs(found[:, 0].mean() - 1) < 0.03  # one value spreads by about 1 / n
    assert found[:, 1].max() < 0.15  # the plain form calls them nearly the same


def test_canonical_correlations_of_a_published_table() -> None:
    """Linnerud's exercise data; SAS/STAT user's guide, CANCORR, example 1: .795608, .200556, .072570."""
    data = load_linnerud()
    found = value(MeanCca(), {"features": data.target}, {"features": data.data})
    assert found == pytest.approx(1 - (0.795608 + 0.200556 + 0.072570) / 3, abs=1e-6)


def eigen_cca(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Textbook: eigenvalues of the product of regressions, and the canonical variables of x."""
    x, y = x - x.mean(0), y - y.mean(0)
    xx, yy, xy = x.T @ x, y.T @ y, x.T @ y
    squares, vectors = np.linalg.eig(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T))
    order = np.argsort(-squares.real)
    variables = x @ vectors.real[:, order]
    return np.sqrt(np.clip(squares.real[order], 0, 1)), variables / np.linalg.norm(variables, axis=0)


def test_svcca_is_cca_of_the_strong_principal_directions() -> None:
    x, y = normal(10, 60, 6) @ np.diag([9, 5, 4, 3, 0.1, 0.1]), normal(11, 60, 5) @ np.diag([7, 4, 1, 0.1, 0.1])
    kept = []
    for given in (x, y):
        variance, axes = np.linalg.eigh(np.cov(given.T))
        count = 1
        while variance[::-1][:count].sum() < 0.99 * variance.sum():
            count += 1
        kept.append(given @ axes[:, ::-1][:, :count])
    assert [k.shape[1] for k in kept] == [4, 3]
    expected = 1 - eigen_cca(kept[1], kept[0])[0].mean()
    assert value(Svcca(), {"features": x}, {"features": y}) == pytest.approx(expected, abs=1e-9)


def test_svcca_of_more_features_than_probes_is_not_settled_by_counting() -> None:
    wide = [{"features": normal(s, 50, 400)} for s in (12, 13)]
    assert 0.2 < value(Svcca(), *wide) < 0.9
    assert value(Svcca(), wide[0], wide[0]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(MisuseError, match="more samples than directions"):
        value(MeanCca(), *wide)
    with pytest.raises(MisuseError, match="more samples than directions"):
        value(Pwcca(), *wide)


def test_pwcca_is_the_mean_of_both_published_orders() -> None:
    x, y = normal(14, 60, 4) @ np.diag([9, 3, 1, 0.3]), normal(15, 60, 4)
    y[:, 0] += x[:, 0]
    orders = []
    for one, other in ((x, y), (y, x)):
        found, variables = eigen_cca(one, other)
        centred = one - one.mean(0)
        weights = [sum(abs(variables[:, i] @ column) for column in centred.T) for i in range(4)]
        orders.append(sum(w * r for w, r in zip(weights, found, strict=True)) / sum(weights))
    assert abs(orders[0] - orders[1]) > 0.01  # the published one depends on the order
    found = value(Pwcca(), {"features": x}, {"features": y})
    assert found == pytest.approx(1 - sum(orders) / 2, abs=1e-9)


def test_procrustes_is_the_angle_of_scipys_disparity() -> None:
    x, y = normal(16, 20, 5), normal(17, 20, 5)
    _, _, disparity = spatial_procrustes(x, y)
    expected = math.acos(math.sqrt(1 - disparity)) / (math.pi / 2)
    assert value(Procrustes(), {"features": x}, {"features": y}) == pytest.approx(expected, abs=1e-9)


def spatial_procrustes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    from scipy.spatial import procrustes

    return procrustes(x, y)


@pytest.mark.parametrize("degrees", [0, 1e-5, 0.1, 30, 90])
def test_procrustes_gives_a_known_angle_back_at_any_width(degrees: float) -> None:
    u, v = np.array([1.0, -1, 1, -1, 0]), np.array([1.0, 1, -1, -1, 0])
    theta = math.radians(degrees)
    y = math.cos(theta) * u + math.sin(theta) * v
    wide = y[:, None] * normal(18, 1, 9)
    for other in (y[:, None], wide):
        found = value(Procrustes(), {"features": u[:, None]}, {"features": other})
        assert found == pytest.approx(degrees / 90, abs=1e-9)


def test_rsa_ranks_one_minus_pearson() -> None:
    x, y = normal(19, 9, 4), normal(20, 9, 6)
    pairs = list(itertools.combinations(range(9), 2))
    tables = [[1 - np.corrcoef(v[i], v[j])[0, 1] for i, j in pairs] for v in (x, y)]
    expected = 1 - np.corrcoef(*(rankdata(t) for t in tables))[0, 1]
    assert value(Rsa(), {"features": x}, {"features": y}) == pytest.approx(expected, abs=1e-9)


def test_distance_correlation_of_a_published_example() -> None:
    """R package energy, manual, `dcor`: two species of iris, dCor .3060479 (the square is compared)."""
    rows = load_iris().data
    found = value(DistanceCorrelation(corrected=False), {"features": rows[:50]}, {"features": rows[50:100]})
    assert found == pytest.approx(1 - 0.3060479**2, abs=1e-7)


def test_corrected_distance_correlation_is_that_of_2013() -> None:
    """Szekely and Rizzo 2013, definition 2: another formula, with a diagonal of its own, for the same number."""
    n = 10
    x, y = normal(21, n, 3), normal(22, n, 7)

    def modified(v: np.ndarray) -> np.ndarray:
        d = spatial.cdist(v, v)
        rows, mean = d.mean(1), d.mean()
        full = d - rows - rows[:, None] + mean
        out = n / (n - 1) * (full - d / n)
        np.fill_diagonal(out, n / (n - 1) * (rows - mean))
        return out

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        whole, own = (a * b).sum(), (np.diag(a) * np.diag(b)).sum()
        return whole - own - 2 / (n - 2) * own

    a, b = modified(x), modified(y)
    expected = covariance(a, b) / math.sqrt(covariance(a, a) * covariance(b, b))
    found = value(DistanceCorrelation(), {"features": x}, {"features": y})
    assert found == pytest.approx(1 - expected, abs=1e-10)


def test_distance_correlation_sees_what_cka_cannot() -> None:
    x = np.linspace(-1, 1, 81)[:, None]
    curve = {"features": x}, {"features": x**2}
    assert value(LinearCka(), *curve) > 0.98
    assert value(DistanceCorrelation(), *curve) < 0.9


def test_decision_distances_and_sample_correlations_pair_by_pair() -> None:
    x, y = normal(23, 7, 3), normal(24, 7, 5)
    pairs = list(itertools.combinations(range(7), 2))
    far = [[spatial.cosine(v[i], v[j]) for i, j in pairs] for v in (x, y)]
    given = {"outputs": x}, {"outputs": y}
    assert value(DecisionDistance(), *given) == pytest.approx(spatial.cosine(*far), abs=1e-12)
    expected = sum(abs(a - b) for a, b in zip(*far, strict=True)) / len(pairs)
    assert value(SampleCorrelation(), *given) == pytest.approx(expected, abs=1e-12)


# Use and misuse

SETS = [m for m in MEASURES if "features" in m.accepts]
SET_IDS = [i for i, (m, key) in zip(IDS, CASES, strict=True) if key == "features"]


@pytest.mark.parametrize("measure", SETS, ids=SET_IDS)
def test_several_samples_of_a_probe_count_one_by_one(measure: AbstractMeasure) -> None:
    x, y = normal(25, 10, 5, 4), normal(26, 10, 5, 4)
    whole = value(measure, {"features": x.reshape(50, 4)}, {"features": y.reshape(50, 4)})
    assert value(measure, {"features": x}, {"features": y}) == whole
    taken = [Fingerprint(Digest(n), Digest("p"), Spec("s"), {"features": v}) for n, v in (("a", x), ("b", y))]
    found = measure(*taken)
    assert found.value == whole
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]


@pytest.mark.parametrize("measure", SETS, ids=SET_IDS)
def test_what_cannot_be_compared_is_refused_in_one_sentence(measure: AbstractMeasure) -> None:
    fine = normal(27, 12, 3)
    broken = fine.copy()
    broken[4, 1] = np.nan
    for wrong, message in (
        (np.full((12, 3), 0.1), "same values at all 12 samples"),
        (np.zeros((12, 3)), "same values at all 12 samples"),
        (broken, "NaN"),
        (fine[:7], "same samples, but the models have"),
    ):
        for pair in ((fine, wrong), (wrong, fine)):
            with pytest.raises(MisuseError, match=message):
                measure.distances(*({"features": v} for v in pair))
    few = np.repeat(fine[:1], 12, 0)
    few[0] = fine[1]
    if measure not in (LinearCka(False), DistanceCorrelation(False)):
        with pytest.raises(MisuseError, match=r"needs at least \d different samples|equal outputs in both"):
            measure.distances({"features": few}, {"features": few})


@pytest.mark.parametrize("measure", [LinearCka(), DistanceCorrelation()], ids=lambda m: m.name)
def test_debiased_estimates_take_four_different_probes(measure: AbstractMeasure) -> None:
    x, y = normal(28, 12, 3), normal(29, 12, 3)
    assert 0 <= value(measure, {"features": x[:4]}, {"features": y[:4]}) <= 2
    with pytest.raises(MisuseError, match="at least 4 different samples"):
        measure.distances({"features": x[:3]}, {"features": y[:3]})
    again = [0, 1, 2, 3, 4, 2, 6, 7]
    with pytest.raises(MisuseError, match="probes 2 and 5 have equal outputs"):
        measure.distances({"features": x[again]}, {"features": y[again]})
    # Dead units: zeros at several probes are no repeated probe.
    dead = np.maximum(x, 0) * (np.arange(12) % 3 > 0)[:, None]
    assert value(measure, {"features": dead}, {"features": dead}) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", [JensenShannon(), SoftmaxDifference(), LabelDisagreement()], ids=lambda m: m.name)
def test_other_heads_have_no_common_classes(measure: AbstractMeasure) -> None:
    out = {"outputs": normal(30, 6, 3)}
    for other, message in (
        (normal(31, 6, 4), r"same classes, .* \[3\] and \[4\]"),
        (normal(31, 6, 3, 8, 8), r"one score per class, but a model returns shape \[3, 8, 8\]"),
        (normal(31, 6, 1), "one score per class"),
        (np.full((6, 3), np.inf), "NaN or infinite"),
    ):
        with pytest.raises(MisuseError, match=message):
            measure.distances(out, {"outputs": other})


def test_directions_and_correlations_that_do_not_exist_are_refused() -> None:
    x = normal(32, 8, 3)
    zero, level, rays = x.copy(), x.copy(), np.abs(normal(33, 8, 1)) * [[1.0, 2, 3]]
    zero[3], level[5] = 0, 2.5
    for measure in (SampleCorrelation(), DecisionDistance()):
        with pytest.raises(MisuseError, match="zeros for sample 3"):
            measure.distances({"outputs": x}, {"outputs": zero})
    with pytest.raises(MisuseError, match="all outputs of one model have the same direction"):
        DecisionDistance().distances({"outputs": x}, {"outputs": rays})
    with pytest.raises(MisuseError, match="at sample 5 all features of one model are equal"):
        Rsa().distances({"features": x}, {"features": level})
    with pytest.raises(MisuseError, match="equal distances"):
        Rsa().distances({"features": x}, {"features": rays})
    with pytest.raises(MisuseError, match="variance must be in"):
        Svcca(most=0.6)


def taken(given: Values) -> Fingerprint:
    return Fingerprint(Digest("sha256:m"), Digest("sha256:p"), Spec("method", 1, {}), given)


@pytest.mark.parametrize("measure", [m for m in MEASURES if "features" in m.accepts], ids=lambda m: m.name)
@pytest.mark.parametrize("scale", [1e-250, 1e-160, 1e160, 1e300])
def test_a_positive_factor_of_any_size_changes_nothing(measure: AbstractMeasure, scale: float) -> None:
    x, y = normal(1, 40, 6), normal(2, 40, 6)
    found = measure.distances({"features": x * scale}, {"features": y})
    assert found == pytest.approx(measure.distances({"features": x}, {"features": y}), abs=1e-9)


@pytest.mark.parametrize("measure", [LinearCka(), DistanceCorrelation(), MeanCca(), Procrustes()], ids=lambda m: m.name)
def test_a_value_without_an_interval_is_still_a_value(measure: AbstractMeasure) -> None:
    """With one probe less some measures are undefined; that says nothing against the value of all."""
    count = {"linear-cka": 4, "distance-correlation": 4, "mean-cca": 7}.get(measure.name, 40)
    x, y = normal(1, count, 3), normal(2, count, 3)
    if count == 40:
        x[:] = x[1]
        x[3], x[23] = 1.0, -1.0  # both in one group: without it all samples are alike
    found = measure(taken({"features": x}), taken({"features": y}))
    assert np.isfinite(found.value)
    assert found.interval is None


def test_none_of_thirty_is_not_never() -> None:
    """Wilson's interval holds its level where the t interval of a rare event covers nothing."""
    same = {"outputs": np.eye(3)[np.arange(30) % 3]}
    found = LabelDisagreement()(taken(same), taken(same))
    assert found.value == 0
    assert found.interval is not None
    assert found.interval == pytest.approx((0, 1.96**2 / (30 + 1.96**2)), abs=1e-4)  # its closed form for none
    for rate in (0.02, 0.1, 0.5):
        for k in (30, 100):
            drawn = (np.random.default_rng(0).random((2000, k)) < rate).sum(1).tolist()
            told = {n: mean_interval((np.arange(k) < n).astype(float), counted=True)[1] for n in set(drawn)}
            held = [i[0] <= rate <= i[1] for n in drawn if (i := told[n])]
            assert np.mean(held) > 0.91


def test_the_documented_laws_are_the_declared_ones() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "measures.md").read_text()
    table = page.split("## Measures")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines() if line.startswith("| `")]
    letters = {
        Law.IDENTITY: "I", Law.SYMMETRY: "S", Law.TRIANGLE: "T", Law.PERMUTATION: "P", Law.ORTHOGONAL: "O",
        Law.LINEAR: "L", Law.SCALING: "X", Law.TRANSLATION: "C", Law.SHIFT: "Z",
    }  # fmt: skip
    declared = [
        [f"`{kind.name}`", ", ".join(sorted(kind.accepts)),
         {f"B{kind.top:.0f}" if law is Law.BOUNDED else letters[law] for law in kind.laws}]
        for kind in ALL
    ]  # fmt: skip
    assert [[name, takes, set(laws.split())] for name, takes, laws in rows] == declared
    assert all(f"| `{kind.name}` | {kind.produces} |" in page for kind in FINGERPRINTS if hasattr(kind, "produces"))


@pytest.mark.parametrize("units", [1, 5, 20, 300])
def test_where_all_units_agree_the_interval_is_exact(units: int) -> None:
    from scipy.stats import binomtest

    from stemma.measures.intervals import at_boundary

    for right in (units, 0):
        exact = binomtest(right, units).proportion_ci(0.95, "exact")
        share = right / units
        assert at_boundary((share, share), share, units) == pytest.approx((exact.low, exact.high))
    assert at_boundary((0.3, 0.9), 0.6, units) == (0.3, 0.9)
    assert at_boundary((0.01, 1.0), 1.0, units)[0] == pytest.approx(min(0.01, 0.025 ** (1 / units)))
