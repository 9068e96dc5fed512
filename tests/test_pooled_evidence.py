"""Pooled evidence for parents against slow twins, its symmetries, and the level of `none of these` by simulation."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import nn

import stemma
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.function.finetuning_approximation import FineTuningApproximation, direction
from stemma.kinship.function.no_parent import NoParent
from stemma.kinship.function.pooled_tails import pooled_tails
from stemma.probes import Probes


def slow_pooled(parts: np.ndarray) -> np.ndarray:
    out = np.zeros(parts.shape[1:])
    for part in parts:
        for i in range(part.shape[0]):
            for c in range(part.shape[1]):
                others = np.delete(part[:, c], i)
                scale = others.std(ddof=1) * np.sqrt(1 + 1 / len(others))
                out[i, c] -= np.log(t.sf((part[i, c] - others.mean()) / scale, len(others) - 1))
    return out


def test_pooled_tails_are_those_of_each_candidate_among_the_others() -> None:
    parts = np.random.default_rng(0).normal(size=(3, 6, 4))
    found = pooled_tails(parts)
    np.testing.assert_allclose(found, slow_pooled(parts), rtol=1e-9)
    rng = np.random.default_rng(1)
    candidates = rng.permutation(6)
    np.testing.assert_allclose(pooled_tails(parts[[2, 0, 1]][:, candidates]), found[candidates], rtol=1e-9)
    stretched = parts * np.array([0.01, 5, 1e4])[:, None, None] + np.array([7, 0, -1e3])[:, None, None]
    np.testing.assert_allclose(pooled_tails(stretched), found, rtol=1e-6)


def test_one_part_in_which_somebody_stands_out_counts_more_than_two_that_separate_nobody() -> None:
    parts = np.random.default_rng(2).normal(size=(3, 10, 200))
    parts[1, 4] += 12
    assert (pooled_tails(parts).argmax(0) == 4).mean() > 0.97
    assert (parts.argmax(1) == 4).mean(1).tolist()[0] < 0.3


def test_two_candidates_are_ranked_by_the_majority_and_what_is_not_finite_says_nothing() -> None:
    two = np.array([[0.0, 1.0], [0.0, 2.0], [9.0, 1.0]])[:, :, None]
    assert pooled_tails(two)[:, 0].argmax() == 1
    parts = np.random.default_rng(3).normal(size=(2, 5, 1))
    parts[0, 2, 0] = np.nan
    lowest = parts.copy()
    lowest[0, 2, 0] = np.nanmin(parts[0])
    np.testing.assert_array_equal(pooled_tails(parts), pooled_tails(lowest))
    assert np.isfinite(pooled_tails(np.full((2, 5, 1), np.nan))).all()
    assert np.isfinite(pooled_tails(np.zeros((2, 5, 1)))).all()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.first(1)
def test_the_level_of_none_of_these_is_exact(own: bool) -> None:
    rng = np.random.default_rng(4)
    p = []
    for _ in range(600):
        asked, candidates = 10, 9 if own else 6
        rows = asked if own else candidates
        # Each network is easier or harder to come near to, whoever asks: networks stay exchangeable.
        parts = rng.normal(size=(3, rows, asked)) + rng.normal(size=(3, rows, 1))
        names = [str(i) for i in range(asked)]
        p.append(NoParent.of(parts, names, names[1 : candidates + 1], own=own).p_value)
    p = np.array(p)
    assert p.min() == pytest.approx(0.1)
    for level in (0.1, 0.3, 0.5):
        assert abs((p <= level + 1e-9).mean() - level) < 3.5 * np.sqrt(level * (1 - level) / 600)


def tanh(seed: int, widths: tuple[int, int] = (12, 10)) -> nn.Module:
    torch.manual_seed(seed)
    first, second = widths
    return nn.Sequential(nn.Linear(6, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, 3))


def child_of(module: nn.Module, seed: int, by: float) -> nn.Module:
    made = tanh(seed + 1000)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mine, theirs in zip(made[:4].parameters(), module[:4].parameters(), strict=True):
            mine.copy_(theirs + by * theirs.std() * torch.randn(theirs.shape, generator=noise))
    return made


def model(module: nn.Module, name: str) -> Model:
    return stemma.from_module(module.double().eval(), name)


@pytest.fixture(scope="module")
def family() -> tuple[list[Model], list[Model], Probes]:
    modules = [tanh(i) for i in range(10)]
    children = [model(child_of(m, i, 0.4), f"child {i}") for i, m in enumerate(modules[:3])]
    probes = Probes.of(np.random.default_rng(5).normal(size=(40, 6)))
    return [model(m, f"parent {i}") for i, m in enumerate(modules)], children, probes


def test_the_direction_is_the_centred_cosine_and_has_no_scale() -> None:
    rng = np.random.default_rng(6)
    steps, apart = (torch.from_numpy(rng.normal(size=(2, 5, 3))) for _ in range(2))
    found = direction(steps, apart)
    for i in range(2):
        a, b = ((x[i].numpy() - x[i].numpy().mean(0)).ravel() for x in (steps, apart))
        assert float(found[i]) == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), rel=1e-12)
    torch.testing.assert_close(direction(3 * steps + 1, 0.1 * apart - 2), found)
    assert direction(torch.zeros_like(steps), apart).tolist() == [0, 0]


@pytest.mark.parametrize("similarity", ["l1", "l2"])
def test_combined_pools_the_scores_of_its_parts(similarity: Any, family: Any) -> None:
    parents, children, probes = family
    pooled = (("plain", similarity), ("linear", similarity), ("linear", "cka"), ("direction", "l1"))
    parts = {(f, s): FineTuningApproximation(f, s).matrix(parents, children, probes).values for f, s in pooled}
    near = [-np.log(-parts["plain", similarity]), -np.log(-parts["linear", similarity]),
            -np.log(1 - parts["linear", "cka"]), np.arctanh(parts["direction", "l1"])]  # fmt: skip
    method = FineTuningApproximation("combined", similarity)
    found = method.matrix(parents, children, probes)
    np.testing.assert_allclose(found.values, slow_pooled(np.stack(near)), rtol=1e-6)
    assert [b.parent for b in found.best()] == ["parent 0", "parent 1", "parent 2"]
    chunked = FineTuningApproximation("combined", similarity, batch=7, chunk=2).matrix(parents, children, probes)
    np.testing.assert_allclose(chunked.values, found.values, rtol=1e-6)
    with pytest.raises(MisuseError, match="matrix"):
        method(parents[0], children, probes)


def test_none_of_these_tells_children_from_orphans_and_says_how_small_its_p_value_could_be(family: Any) -> None:
    parents, children, probes = family
    method = FineTuningApproximation("combined")
    controls = [model(tanh(100 + i), f"control {i}") for i in range(9)]
    with_parent = method.none_of_these(parents, children[0], probes, controls)
    assert (with_parent.p_value, with_parent.smallest, with_parent.best) == (0.1, 0.1, "parent 0")
    assert "p = 0.1 (with 9 controls in its place at least 0.1); parent 0 stands out most" in str(with_parent)
    orphan = method.none_of_these(parents[1:], children[0], probes, controls)
    assert orphan.p_value > 0.1
    assert orphan.value < with_parent.value
    alone = method.none_of_these(parents, children[0], probes)
    assert alone.p_value <= 2 / 11
    assert (alone.smallest, alone.from_candidates, alone.best) == (1 / 11, True, "parent 0")
    with pytest.raises(MisuseError, match="at least 3"):
        method.none_of_these(parents[:2], children[0], probes)


def test_an_exact_copy_stands_out_and_copies_of_one_network_tie(family: Any) -> None:
    parents, _, probes = family
    copy = Model("copy", "here", parents[3].tensors, network_builder=parents[3].network_builder)
    found = FineTuningApproximation("combined").best_parent(parents, copy, probes)
    assert found.parent == "parent 3"
    assert np.isfinite(found.scores).all()
