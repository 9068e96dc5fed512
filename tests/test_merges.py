"""Merges taken apart: every rule made here by a few lines of its own, with real fine-tunes of one base as parents."""

from collections.abc import Callable

import numpy as np
import pytest

from stemma.errors import MisuseError
from stemma.lineage.merges import Merge, MergeRegression

TENSORS = [("one.weight", 0, 2400), ("one.bias", 2400, 2460), ("two.weight", 2460, 4460), ("head.weight", 4460, 6060)]
K, N = 6060, 12
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def family() -> tuple[np.ndarray, np.ndarray]:
    """A base, and candidates that moved from it by heavy-tailed steps with a part in common."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=K) * 0.1
    common = rng.standard_t(3, size=K) * 0.004
    moves = rng.standard_t(3, size=(N, K)) * rng.uniform(0.01, 0.02, (N, 1)) + common
    return base.astype(np.float32), (base + moves).astype(np.float32)


def layers_of(weights: np.ndarray) -> np.ndarray:
    """Weights by layer `[layer, parent]`, spread over entries `[parent, k]`."""
    spread = np.empty((weights.shape[1], K))
    for name, start, stop in TENSORS:
        spread[:, start:stop] = weights[["one", "two", "head"].index(name.split(".")[0])][:, None]
    return spread


def linear(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = w / w.sum()
    return base + w @ x, w


def task_arithmetic(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return base + w @ x, w


def ties(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    trimmed = np.zeros_like(x)
    for _, start, stop in TENSORS:
        for row, out in zip(x[:, start:stop], trimmed[:, start:stop], strict=True):
            keep = np.argsort(-np.abs(row))[: round(0.3 * (stop - start))]
            out[keep] = row[keep]
    elected = np.sign(w @ trimmed)
    agree = (np.sign(trimmed) == elected) & (trimmed != 0)
    total = w @ agree
    mean = np.divide(w @ (trimmed * agree), total, out=np.zeros(K), where=total > 0)
    return base + 0.9 * mean, 0.9 * w / w.sum()


def dare(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.random.default_rng(5).random(x.shape) >= 0.7
    return base + w @ (x * kept) / 0.3, w


def slerp(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t, out = 0.3, np.empty(K)
    for _, start, stop in TENSORS:
        u, v = base[start:stop] + x[:2, start:stop]
        angle = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        out[start:stop] = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / np.sin(angle)
    return out, np.array([1 - t, t] + [0.0] * (len(w) - 2))


def layer_wise(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = layers_of(np.random.default_rng(6).dirichlet(np.full(len(w), 3.0), 3))
    return base + (spread * x).sum(0), spread.mean(1)


def franken(base: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    table = np.zeros((3, len(w)))
    table[np.arange(3), np.arange(3) % len(w)] = 1
    spread = layers_of(table)
    return base + (spread * x).sum(0), spread.mean(1)


RULES = {
    "linear": linear, "task-arithmetic": task_arithmetic, "ties": ties, "dare": dare, "slerp": slerp,
    "layer-wise": layer_wise, "franken": franken,
}  # fmt: skip


def merged(
    family: tuple[np.ndarray, np.ndarray], rule: str, parents: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, float]]:
    base, candidates = family
    w = np.random.default_rng(len(parents)).uniform(0.2, 0.6, len(parents))
    child, truth = RULES[rule](base.astype(float), candidates[list(parents)].astype(float) - base, w)
    return child.astype(np.float32), {p: c for p, c in zip(parents, truth.tolist(), strict=True) if c > 0}


def take_apart(child: np.ndarray, candidates: np.ndarray, base: np.ndarray | None, **options: float) -> Merge | None:
    return MergeRegression(**options).decompose(child, candidates, base, tensors=TENSORS)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parents", [(2, 7), (1, 4, 8)])
def test_parents_weights_and_rule_are_found(
    family: tuple[np.ndarray, np.ndarray], rule: str, parents: tuple[int, ...]
) -> None:
    child, truth = merged(family, rule, parents)
    found = take_apart(child, family[1], family[0])
    assert found is not None
    assert found.certain
    assert found.remainder == "rounding"
    assert found.method == rule
    assert {p.position for p in found.parents} == set(truth)
    for parent in found.parents:
        assert parent.coefficient == pytest.approx(truth[parent.position], abs=0.03)


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_hides_no_parent(family: tuple[np.ndarray, np.ndarray], rule: str) -> None:
    child, truth = merged(family, rule, (0, 3))
    found = take_apart(child.astype(np.float16).astype(np.float32), family[1], family[0])
    assert found is not None
    assert {p.position for p in found.parents} == set(truth)


def test_children_of_one_parent_are_no_merges(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    rng = np.random.default_rng(9)
    step = (rng.standard_t(3, size=K) * 0.01).astype(np.float32)
    pruned = np.where(np.abs(candidates[2]) < np.quantile(np.abs(candidates[2]), 0.5), 0, candidates[2])
    grid = np.abs(candidates[2]).max() / 127
    for child in (candidates[2] + step, base + step, candidates[2], base, pruned, np.round(candidates[2] / grid) * grid,
                  candidates[2].astype(np.float16), rng.normal(size=K) * 0.1):  # fmt: skip
        assert take_apart(child.astype(np.float32), candidates, base) is None


def test_wrong_input_is_one_clear_error(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    with pytest.raises(MisuseError, match="same entries"):
        take_apart(base[:-1], candidates, base)
    with pytest.raises(MisuseError, match="base needs"):
        take_apart(base, candidates, base[:-1])
    with pytest.raises(MisuseError, match="names"):
        MergeRegression().decompose(base, candidates, names=["a"])
    with pytest.raises(MisuseError, match="lie between columns"):
        MergeRegression().decompose(base, candidates, tensors=[("a", 0, K + 1)])
    assert take_apart(base, np.empty((0, K), np.float32), base) is None
