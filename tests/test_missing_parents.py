"""One parent of a merge is there and the other is not; and what only looks like that."""

import numpy as np
import pytest

from stemma.ancestry.merges.regression import Merge, MergeRegression
from stemma.ancestry.merges.task_vectors import Span

K, N = 6060, 12
TENSORS = [Span("one.weight", 0, 2400, 60), Span("one.bias", 2400, 2460), Span("two.weight", 2460, 4460, 50),
           Span("head.weight", 4460, K, 40)]  # fmt: skip


@pytest.fixture(scope="module")
def family() -> tuple[np.ndarray, np.ndarray]:
    """A base, and candidates that moved from it by heavy-tailed steps with a part in common."""
    rng = np.random.default_rng(3)
    common = rng.standard_t(3, size=K) * 0.004
    moves = rng.standard_t(3, size=(N, K)) * rng.uniform(0.01, 0.02, (N, 1)) + common
    base = rng.normal(size=K) * 0.1
    return base.astype(np.float32), (base + moves).astype(np.float32)


def ask(child: np.ndarray, candidates: np.ndarray, base: np.ndarray | None, **settings: float) -> Merge | None:
    return MergeRegression(**settings).decompose(child.astype(np.float32), candidates, base, tensors=TENSORS)


@pytest.mark.parametrize("missing", [7, 4, 11])
def test_the_only_parent_that_is_there_shows_that_another_is_missing(
    family: tuple[np.ndarray, np.ndarray], missing: int
) -> None:
    base, candidates = family
    child = base + 0.5 * (candidates[2] - base) + 0.4 * (candidates[missing] - base)
    rest = np.delete(candidates, missing, axis=0)
    found = ask(child, rest, base)
    assert found is not None
    assert [p.position for p in found.parents] == [2]
    assert found.parents[0].coefficient == pytest.approx(0.5, abs=0.06)
    assert found.remainder == "either"
    assert found.missing_parent
    assert not found.certain
    assert "other parents are not among the candidates" in found.reason
    assert ask(child, rest, base, uneven=-9.0) is None
    assert ask(child, rest, base, size=0.01) is None
    assert ask(child, rest[:5], base) is None  # too few to make a null of
    assert ask(child, rest, None) is None  # a weight of what, without a base


def test_an_earlier_checkpoint_and_children_are_no_merges(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    rng = np.random.default_rng(9)
    learnt = np.concatenate([np.repeat(rng.uniform(0.2, 0.9, t.rows), (t.stop - t.start) // t.rows) for t in TENSORS])
    earlier = base + learnt * (candidates[2] - base) + rng.standard_t(3, size=K) * 0.002
    trained = 0.6 * candidates[2] + 0.4 * base + rng.standard_t(3, size=K) * 0.02
    child = candidates[2] + rng.standard_t(3, size=K) * 0.005
    for model in (earlier, trained, child):
        assert ask(model, candidates, base) is None


def test_points_on_one_line_are_one_candidate(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    child = base + 0.5 * (candidates[2] - base) + 0.4 * (candidates[7] - base)
    line = [base + w * (candidates[2] - base) for w in (1.0, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8)]
    assert ask(child, np.stack(line).astype(np.float32), base) is None
    others = np.delete(candidates, 7, axis=0)
    found = ask(child, np.concatenate([others, np.stack(line[1:])]).astype(np.float32), base)
    assert found is not None
    assert [p.position for p in found.parents] == [2]
