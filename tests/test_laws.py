"""The laws of uniform permutations against enumeration, simulation and textbook distributions."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import kstest, poisson

from stemma.kinship.weights.order import permutation_laws


def fixed(p: tuple[int, ...]) -> int:
    return sum(i == j for i, j in enumerate(p))


def concordant(p: tuple[int, ...]) -> int:
    return sum(p[i] < p[j] for i in range(len(p)) for j in range(i + 1, len(p)))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_laws_are_those_of_every_permutation(n: int) -> None:
    every = list(itertools.permutations(range(n)))
    for law, count in ((permutation_laws.fixed_point_law(n), fixed), (permutation_laws.concordance_law(n), concordant)):
        exact = np.bincount([count(p) for p in every], minlength=len(law)) / len(every)
        assert np.allclose(np.exp(law), exact, atol=1e-14)


@pytest.mark.parametrize("n", [20, 64, 100])
def test_concordance_law_sums_to_one_and_ends_at_one_permutation(n: int) -> None:
    law = permutation_laws.concordance_law(n)
    assert np.exp(law).sum() == pytest.approx(1, abs=1e-9)
    assert law[-1] == pytest.approx(-math.lgamma(n + 1), rel=1e-12)
    assert law[0] == pytest.approx(law[-1], rel=1e-12)


def test_tail_of_a_sum_is_the_convolution() -> None:
    sizes = [3, 4, 4, 5]
    total = np.ones(1)
    for n in sizes:
        total = np.convolve(total, np.exp(permutation_laws.fixed_point_law(n)))
    group = [permutation_laws.fixed_point_law(n) for n in sizes]
    for k in range(len(total)):
        assert math.exp(permutation_laws.log_tail(group, k)) == pytest.approx(total[k:].sum(), rel=1e-9)
    assert permutation_laws.log_tail(group, len(total)) == -math.inf


def test_far_tail_keeps_its_precision() -> None:
    everything = permutation_laws.log_tail([permutation_laws.fixed_point_law(12)] * 5, 60)
    assert everything == pytest.approx(-5 * math.lgamma(13), rel=1e-12)
    assert math.exp(permutation_laws.log_tail([permutation_laws.fixed_point_law(256)] * 50, 60)) == pytest.approx(
        poisson.sf(59, 50), rel=1e-9
    )


def test_beyond_the_exact_range_the_bound_is_an_upper_bound() -> None:
    group = [permutation_laws.fixed_point_law(256)] * 100
    exact_all = -100 * math.lgamma(257)
    assert exact_all <= permutation_laws.log_tail(group, 25_600) <= 0.99 * exact_all


@pytest.mark.parametrize("n", [2, 3, 6])
def test_e_values_have_mean_one(n: int) -> None:
    law = np.exp(permutation_laws.fixed_point_law(n))
    mean = sum(math.exp(permutation_laws.log_e_value(k, n)) * p for k, p in enumerate(law))
    assert mean == pytest.approx(1, abs=1e-12)


def test_randomised_p_is_uniform_and_conservative_p_is_larger() -> None:
    generator = np.random.default_rng(3)
    sizes = (5, 9, 16)
    group = [permutation_laws.fixed_point_law(n) for n in sizes]
    tails = [
        (*permutation_laws.log_pmf_and_tail(group, k), math.exp(permutation_laws.log_tail(group, k)))
        for k in range(sum(sizes) + 1)
    ]
    randomised, conservative = [], []
    for _ in range(4000):
        k = sum(int((generator.permutation(n) == np.arange(n)).sum()) for n in sizes)
        at, above, tail = tails[k]
        randomised.append(above + generator.random() * at)
        conservative.append(tail)
    assert kstest(randomised, "uniform").pvalue > 0.001
    assert np.mean(np.array(conservative) <= 0.05) <= 0.05
    assert kstest(conservative, "uniform").pvalue < 0.001  # the control: unrandomised is not uniform
