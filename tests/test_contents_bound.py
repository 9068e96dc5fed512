"""The bound behind `units-alike`: that it holds for independent units in their best order, and what it can see."""

from itertools import permutations
from math import exp, factorial, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from stemma.kinship.weights import reordering_bound as bound
from stemma.kinship.weights.contents.choices import FREEDOM, Choice, union_of_choices
from stemma.kinship.weights.contents.units_alike import TensorAgreement, _log_ps
from stemma.kinship.weights.maps.held_out import held_out_agreement
from stemma.kinship.weights.reordering_bound import log_tail


def units(n: int, d: int, seed: int, rank: int | None = None) -> np.ndarray:
    """Directions of Gaussian units, perhaps in a space of fewer dimensions."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, rank or d))
    if rank:
        x = x @ generator.normal(size=(rank, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("d", [3, 8, 64])
@pytest.mark.parametrize("pairs", [1, 4, 32])
@pytest.mark.slow
def test_the_bound_holds_for_one_order(d: int, pairs: int) -> None:
    generator = np.random.default_rng(d * 100 + pairs)
    draws = 20_000
    x = generator.normal(size=(draws * pairs, d))
    cosines = (x[:, 0] / np.linalg.norm(x, axis=1)).reshape(draws, pairs)  # beside a fixed unit: all are alike
    total = np.sort(((d - 1) * bound.information(cosines)).sum(axis=1))
    for share in (0.1, 0.01, 0.001):
        value = float(total[-int(share * draws)])
        assert exp(bound.log_tail(pairs, value)) >= share * 0.8


@pytest.mark.parametrize(("n", "d"), [(5, 6), (6, 4), (6, 24)])
def test_the_bound_holds_for_the_best_of_all_orders(n: int, d: int) -> None:
    hits, trials = 0, 300
    for trial in range(trials):
        gain = (d - 1) * bound.information(units(n, d, 2 * trial) @ units(n, d, 2 * trial + 1).T)
        best = max(sum(gain[i, j] for i, j in enumerate(p)) for p in permutations(range(n)))
        hits += bound.log_tail(n, best) + bound.log_orders(n, n) <= log(0.05)
    assert hits <= 0.05 * trials


@given(st.integers(0, 9), st.integers(1, 12))
def test_orders_are_counted(chosen: int, of: int) -> None:
    chosen = min(chosen, of)
    assert bound.log_orders(chosen, of) == pytest.approx(log(factorial(of) / factorial(of - chosen)), abs=1e-9)


@pytest.mark.parametrize(("d", "rank"), [(32, None), (128, None), (128, 12), (512, 40)])
def test_freedom_is_never_overrated(d: int, rank: int | None) -> None:
    n = 96
    both = units(2 * n, d, seed=d, rank=rank)  # of one law: in one common space of fewer dimensions
    found = bound.free_numbers(both[:n] @ both[n:].T, np.arange(n), d)
    true = (rank or d) - 1
    assert found <= 1.05 * true
    assert found >= 0.4 * true


def test_the_bound_holds_where_strangers_share_some_directions() -> None:
    n, d, hits = 128, 256, 0
    for seed in range(20):
        x, y, common = (units(n, d, 1000 * k + seed) for k in range(3))
        generator = np.random.default_rng(seed)
        for z in (x, y):  # an eighth of the units of both point near one of eight directions, mean cosine .9
            z[::8] = common[generator.integers(8, size=n // 8)] + 0.3 * units(n // 8, d, int(generator.integers(2**31)))
            z[::8] /= np.linalg.norm(z[::8], axis=1, keepdims=True)
        similarity = x @ y.T
        rows, columns = linear_sum_assignment(-bound.information(similarity))
        total = bound.gains(similarity[rows, columns], bound.free_numbers(similarity, columns, d)).sum()
        hits += bound.log_tail(n, float(total)) + bound.log_orders(n, n) <= log(0.01)
    assert hits == 0


def test_units_that_are_orthogonal_have_no_more_freedom_than_numbers() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 48)))[0]
    assert bound.free_numbers(basis[:24] @ basis[24:].T, np.arange(24), 48) <= 47


def test_gains_of_a_few_equal_units_do_not_decide() -> None:
    cosines = np.concatenate([np.full(2, 1.0), np.full(62, 0.02)])
    found = bound.gains(cosines, 100.0)
    assert found.max() <= bound.CAP * np.median(found)


def test_nothing_is_said_without_units() -> None:
    assert bound.log_tail(0, 0.0) == 0.0
    assert bound.surplus(0, 0.0) == 0.0
    assert bound.free_numbers(np.zeros((3, 3)), np.arange(3), 8) == 0.0
    assert bound.gains(np.array([]), 3.0).size == 0
    assert bound.detectable_cosine([], 0.01) == 1.0


def test_what_could_have_been_seen_falls_with_the_number_of_units() -> None:
    few = bound.detectable_cosine([(8, 31.0, bound.log_orders(8, 8))], 0.01)
    many = bound.detectable_cosine([(256, 255.0, bound.log_orders(256, 256))], 0.01)
    assert many < few < 1


def test_kin_are_seen_where_they_are_said_to_be_detectable() -> None:
    n, d = 64, 48
    least = bound.detectable_cosine([(n, d - 1.0, bound.log_orders(n, n))], 0.01)
    for cosine, found in ((least + 0.03, True), (least - 0.03, False)):
        gain = n * (d - 1) * float(bound.information(np.asarray(cosine)))
        assert (bound.log_tail(n, gain) + bound.log_orders(n, n) + 2 * log(2) <= log(0.01)) is found


@pytest.mark.parametrize("n", [16, 48, 96])
def test_the_best_rotation_of_strangers_is_paid_for(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=(n, n)), generator.normal(size=(n, n))
    u, _, v = np.linalg.svd(a.T @ b)
    turned = a @ (u @ v)
    cosines = (turned * b).sum(axis=1) / np.linalg.norm(turned, axis=1) / np.linalg.norm(b, axis=1)
    gain = float(((n - 1) * bound.information(cosines)).sum())
    paid = Choice(frozenset(range(n)), n, "rotation").cost
    assert cosines.mean() == pytest.approx(0.75, abs=0.05)  # what a forger reaches
    assert paid + bound.log_tail(n, gain) > 0
    assert pytest.approx(1.28, abs=0.01) == FREEDOM


def test_a_set_of_units_is_paid_for_once() -> None:
    first, second = (
        {"u": Choice(frozenset({0, 1}), 8)},
        {"u": Choice(frozenset({1, 2}), 8), "v": Choice(frozenset({0}), 4)},
    )
    merged = union_of_choices([first, second])
    assert merged["u"].units == {0, 1, 2}
    assert sum(c.cost for c in merged.values()) == pytest.approx(log(8 * 7 * 6) + log(4))


def test_vectors_that_were_held_out_agree_only_where_there_is_a_rotation() -> None:
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    false = 0
    for _ in range(400):
        x, y = rng.normal(size=(256, 64)), rng.normal(size=(256, 64))
        false += held_out_agreement([x[::2]], [y[::2]], [x[1::2]], [y[1::2]])
    assert false <= 8  # one in 700 at three deviations
    x = rng.normal(size=(256, 64))
    for right in (1.0, 0.3):  # the share of pairs that are right
        y = x @ turn
        wrong = rng.random(256) > right
        y[wrong] = rng.normal(size=(int(wrong.sum()), 64))
        assert held_out_agreement([x[::2]], [y[::2]], [x[1::2]], [y[1::2]])


def test_leaving_out_a_tensor_is_what_working_it_out_anew_gives() -> None:
    rng = np.random.default_rng(6)

    def tensor(k: int) -> TensorAgreement:
        choices = {f"set {g}": Choice(frozenset(rng.choice(60, 20, replace=False).tolist()), 60)
                   for g in rng.choice(5, 2, replace=False)}  # fmt: skip
        return TensorAgreement(f"t{k}", 100, 20, float(rng.uniform(200, 900)), 0.5, 40.0, choices, f"digest {k}")

    for count in (1, 2, 7):
        chosen = [tensor(k) for k in range(count)]

        def slow(rest: list[TensorAgreement], fixed: set[str]) -> float:
            if not rest:
                return 0.0
            paid = sum(c.cost for key, c in union_of_choices([f.choices for f in rest]).items() if key not in fixed)
            return min(
                0.0, paid + 9 * log(2) + log(3) + log_tail(sum(f.pairs for f in rest), sum(f.gain for f in rest))
            )

        of_all = slow(chosen, set())
        without = max(slow([o for o in chosen if o is not f], set(f.choices)) for f in chosen)
        assert _log_ps(chosen, 9, 3) == pytest.approx((of_all, max(of_all, without)))
