"""Merges taken apart: every rule made here by a few lines of its own, with real fine-tunes of one base as parents."""

from collections.abc import Callable

import numpy as np
import pytest

from stemma.ancestry.merges.evidence import whitened
from stemma.ancestry.merges.regression import Merge, MergeRegression, find_merge
from stemma.ancestry.merges.task_vectors import Span, task_vectors
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.networks.load import from_arrays
from stemma.zoo.memory import model_of

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


def test_the_base_may_be_among_the_candidates(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    for rule in RULES:
        child, truth = merged(family, rule, (2, 7))
        found = take_apart(child, np.vstack([candidates, base[None]]), None)
        assert found is not None
        assert found.certain
        # A sum of task vectors below 1 is an average in which the base is one of the parents.
        assert {p.position for p in found.parents} == {*truth, *([12] if rule == "task-arithmetic" else [])}
        assert found.base == ("12" if rule in ("ties", "dare") else None)


def test_without_a_base_weights_that_sum_to_one_are_found(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    child, truth = merged(family, "linear", (1, 4, 8))
    found = take_apart(child, candidates, None)
    assert found is not None
    assert {p.position: round(p.coefficient, 3) for p in found.parents} == {p: round(c, 3) for p, c in truth.items()}
    sibling = (base + np.random.default_rng(4).standard_t(3, size=K) * 0.015).astype(np.float32)
    assert take_apart(sibling, candidates, None) is None
    assert take_apart(child, candidates[:1], None) is None


@pytest.mark.parametrize("rule", ["ties", "dare"])
def test_entries_left_alone_show_that_a_parent_is_missing(family: tuple[np.ndarray, np.ndarray], rule: str) -> None:
    child, _ = merged(family, rule, (1, 4, 8))
    found = take_apart(child, np.delete(family[1], 4, axis=0), family[0])
    assert found is not None
    assert found.remainder == "missing-parent"
    assert found.missing_parent
    assert found.method == rule
    assert {p.position for p in found.parents} == {1, 7}
    whole = take_apart(child, *reversed(family))
    assert whole is not None
    assert not whole.missing_parent


def test_mixtures_and_copies_among_the_candidates(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    mixture = (0.5 * candidates[2].astype(float) + 0.5 * candidates[3]).astype(np.float32)
    pool = np.vstack([candidates, mixture[None], candidates[5:6]])
    found = take_apart((0.4 * mixture + 0.6 * candidates[7].astype(float)).astype(np.float32), pool, base)
    assert found is not None
    assert {p.position for p in found.parents} == {7, 12}  # two parents rather than three
    found = take_apart((0.4 * candidates[5] + 0.6 * candidates[7].astype(float)).astype(np.float32), pool, base)
    assert found is not None
    assert {p.position for p in found.parents} == {5, 7}
    assert found.alternatives == (("5", "13"),)
    found = take_apart((0.3 * candidates[2].astype(float) + 0.7 * candidates[3]).astype(np.float32), pool, base)
    assert found is not None
    assert found.alternatives == (("3", "12"),)


def test_entries_that_are_no_numbers_are_left_out(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    child, truth = merged(family, "task-arithmetic", (1, 4, 8))
    holes, broken = child.copy(), candidates.copy()
    holes[::7], broken[3] = np.nan, np.inf
    for found in (take_apart(holes, candidates, base), take_apart(child, broken, base)):
        assert found is not None
        assert {p.position for p in found.parents} == set(truth)
    assert take_apart(np.full(K, np.nan), candidates, base) is None
    assert take_apart(np.ones(K), np.ones((3, K)), np.ones(K)) is None


def test_more_candidates_than_are_looked_at_together(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    more = base + np.random.default_rng(8).standard_t(3, size=(60, K)) * 0.015
    for rule in ("linear", "ties"):
        child, truth = merged(family, rule, (1, 4, 8))
        found = take_apart(child, np.vstack([candidates, more]).astype(np.float32), base)
        assert found is not None
        assert {p.position for p in found.parents} == set(truth)


def fine_tunes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps that share the directions of their tasks, as real fine-tunes do: the last two learnt one task."""
    rng = np.random.default_rng(seed)
    rows, columns = np.exp(rng.normal(size=120)), np.exp(rng.normal(size=80))
    steps = rng.normal(size=(count, 120, 80)) * np.sqrt(rows[:, None] * columns) * 0.01
    task = rng.normal(size=(120, 2)) @ rng.normal(size=(2, 80)) * 0.05
    steps[-2:] += task
    return rng.normal(size=9600) * 0.1, steps.reshape(count, -1)


def test_a_merge_that_was_trained_on_is_inferred_and_a_fine_tune_is_not() -> None:
    base, steps = fine_tunes(1, 13)
    candidates, later = base + steps[:12], steps[12]
    tensors = [Span("a.weight", 0, 9600, 120)]
    method = MergeRegression()
    child = base + 0.4 * steps[2] + 0.5 * steps[5] + 0.3 * steps[8] + later
    found = method.decompose(child, candidates, base, tensors=tensors)
    assert found is not None
    assert {p.position for p in found.parents} == {2, 5, 8}
    assert not found.certain
    assert found.remainder == "either"
    for parent, truth in zip(found.parents, (0.5, 0.4, 0.3), strict=True):
        assert parent.interval[0] <= truth + 0.05
        assert parent.interval[1] >= truth - 0.05
        assert parent.share > 10 * MergeRegression().loose
        assert parent.steady > MergeRegression().steady
        assert parent.log10_p < -3
    # Controls: the child of one candidate that then learnt what another had learnt, and a sibling that learnt the same.
    for none in (base + steps[2] + later, base + later):
        assert method.decompose(none, candidates, base, tensors=tensors) is None


def test_a_weight_of_one_is_a_parent_alone_and_less_is_not() -> None:
    base, steps = fine_tunes(1, 13)
    tensors = [Span("w", 0, 9600, 120)]

    def ask(weight: float, alone: float = MergeRegression().alone) -> Merge | None:
        child = base + weight * steps[2] + 0.5 * steps[5] + steps[12]
        return MergeRegression(alone=alone).decompose(child, base + steps[:12], base, tensors=tensors)

    assert ask(1.0) is None
    for found in (ask(0.7), ask(1.0, alone=0.0)):  # the second candidate is there either way
        assert found is not None
        assert {p.position for p in found.parents} == {2, 5}


def test_whitening_makes_relatives_fade_and_parents_stay() -> None:
    base, steps = fine_tunes(2, 13)
    child = base + steps[12] + 0.4 * steps[1]
    vectors = task_vectors(child, base + steps[:12], base, [Span("w", 0, 9600, 120)])
    plain, white = whitened(vectors, range(12), (0.0, 0.5))

    def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(x.T, y, rcond=None)[0]

    before, after = weights(*plain), weights(*white)
    assert after[1] == pytest.approx(0.4, abs=0.05)
    assert after[11] < 0.7 * before[11]  # it learnt the same task as the child, and is no parent


def models(family: tuple[np.ndarray, np.ndarray], child: np.ndarray) -> tuple[Model, list[Model], Model]:
    def model(name: str, values: np.ndarray, rename: bool = False) -> Model:
        shapes = {"one.weight": (60, 40), "two.weight": (50, 40), "head.weight": (40, 40)}
        arrays = {
            f"x{n}" if rename else n: values[start:stop].reshape(shapes[n]).astype(np.float32)
            for n, start, stop in TENSORS if n in shapes
        }  # fmt: skip
        return model_of(name, arrays, None)

    candidates = [model(f"expert-{i}", row, rename=i % 2 == 1) for i, row in enumerate(family[1])]
    return model("child", child), candidates, model("base", family[0])


def test_models_under_other_names_are_taken_apart(family: tuple[np.ndarray, np.ndarray]) -> None:
    child, truth = merged(family, "dare", (1, 4, 8))
    suspect, candidates, base = models(family, child)
    found = find_merge(suspect, candidates, base)
    assert found is not None
    assert found.base == "base"
    assert {p.name for p in found.parents} == {f"expert-{i}" for i in truth}
    assert {p.position for p in found.parents} == set(truth)
    assert found.to_dict()["parents"][0]["name"] == found.parents[0].name
    assert find_merge(candidates[3], candidates[:3], base) is None
    assert find_merge(suspect, [], base) is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("known", [True, False])
def test_a_parent_is_no_merge_of_its_own_child(family: tuple[np.ndarray, np.ndarray], rule: str, known: bool) -> None:
    base, candidates = family
    child, truth = merged(family, rule, (1, 4))
    for parent in truth:
        pool = np.vstack([np.delete(candidates, parent, axis=0), child[None], base[None]])
        assert take_apart(candidates[parent], pool[: -1 if known else None], base if known else None) is None


def test_entries_that_never_moved_do_not_blur_the_density(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    still = np.random.default_rng(2).random(candidates.shape) < np.where(np.arange(N) == 2, 0.8, 0.3)[:, None]
    sparse = np.where(still, base, candidates)
    child, truth = merged((base, sparse), "ties", (2, 7, 9))
    found = take_apart(child, sparse, base)
    assert found is not None
    assert found.certain
    assert {p.position for p in found.parents} == set(truth)


def test_frozen_layers_are_no_merge(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    child = candidates[2].copy()
    child[4460:] += np.random.default_rng(7).standard_t(3, size=1600).astype(np.float32) * 0.01
    assert take_apart(child, candidates, base) is None
    assert take_apart(child, candidates, None) is None


@pytest.mark.parametrize("half", [False, True])
def test_a_small_layer_from_a_parent_that_is_not_there_is_no_rounding(
    family: tuple[np.ndarray, np.ndarray], half: bool
) -> None:
    base, candidates = family
    few = slice(K - 100, K)  # 1.7 % of the entries, a layer of its own
    tensors = [*TENSORS[:3], ("head.weight", 4460, K - 100), ("last.weight", K - 100, K)]
    child = candidates[2].copy()
    child[2460:4460], child[few] = candidates[7][2460:4460], candidates[9][few]
    child = child.astype(np.float16).astype(np.float32) if half else child

    def ask(pool: np.ndarray) -> Merge | None:
        return MergeRegression().decompose(child, pool, base, tensors=tensors)

    found = ask(np.delete(candidates, 9, axis=0))
    assert found is not None
    assert {p.position for p in found.parents} == {2, 7}
    assert found.exact > MergeRegression().share
    assert not found.certain
    assert found.remainder == "either"
    assert found.missing_parent
    whole = ask(candidates)
    assert whole is not None
    assert {p.position for p in whole.parents} == {2, 7, 9}
    assert whole.certain
    assert not whole.missing_parent


def test_a_small_layer_that_was_trained_on_is_neither_a_merge_nor_hides_one(
    family: tuple[np.ndarray, np.ndarray],
) -> None:
    base, candidates = family
    tensors = [*TENSORS[:3], ("head.weight", 4460, K - 100), ("last.weight", K - 100, K)]
    step = np.zeros(K)
    step[K - 100 :] = np.random.default_rng(8).standard_t(3, size=100) * 0.01

    def ask(child: np.ndarray) -> Merge | None:
        return MergeRegression().decompose(child.astype(np.float32), candidates, base, tensors=tensors)

    assert ask(candidates[2] + step) is None
    mixture = 0.4 * candidates[2].astype(float) + 0.6 * candidates[7]
    for child, certain in ((mixture + step, False), (mixture, True)):
        found = ask(child)
        assert found is not None
        assert {p.position for p in found.parents} == {2, 7}
        assert found.certain == certain
        assert found.remainder == ("rounding" if certain else "either")


def test_wrong_input_is_one_clear_error(family: tuple[np.ndarray, np.ndarray]) -> None:
    base, candidates = family
    with pytest.raises(MisuseError, match="same entries"):
        take_apart(base[:-1], candidates, base)
    with pytest.raises(MisuseError, match="base must have"):
        take_apart(base, candidates, base[:-1])
    with pytest.raises(MisuseError, match="names"):
        MergeRegression().decompose(base, candidates, names=["a"])
    with pytest.raises(MisuseError, match="must lie between columns"):
        MergeRegression().decompose(base, candidates, tensors=[("a", 0, K + 1)])
    assert take_apart(base, np.empty((0, K), np.float32), base) is None


@pytest.mark.parametrize("new_in", ["first", "second", "both"])
def test_a_new_head_of_one_parent_does_not_hide_the_merge_of_the_rest(new_in: str) -> None:
    rng = np.random.default_rng(4)

    def layers(scale: float) -> dict[str, np.ndarray]:
        return {f"layer.{i}.weight": scale * rng.normal(size=(48, 48)).astype(np.float32) for i in range(6)}

    root, head = layers(1.0), rng.normal(size=(48, 48)).astype(np.float32)
    tuned = [{n: root[n] + x for n, x in layers(0.02).items()} for _ in range(3)]
    others = [rng.normal(size=(48, 48)).astype(np.float32) for _ in range(2)]
    heads = {"first": (others[0], head), "second": (head, others[0]), "both": (others[0], others[1])}[new_in]
    a, b, sibling = tuned
    mean = {n: 0.3 * a[n] + 0.7 * b[n] for n in root}
    child = from_arrays({**mean, "pooler.weight": head}, "child")
    parents = [from_arrays({**a, "pooler.weight": heads[0]}, "a"), from_arrays({**b, "pooler.weight": heads[1]}, "b"),
               from_arrays({**sibling, "pooler.weight": head}, "sibling")]  # fmt: skip
    found = find_merge(child, parents)
    assert found is not None
    assert found.certain
    assert {p.name: round(p.coefficient, 3) for p in found.parents} == {"a": 0.3, "b": 0.7}
    assert find_merge(parents[2], [child, *parents[:2]]) is None  # the control: a sibling is no merge
