"""Geometry of relatives: on weights whose history is a formula, the figures are known."""

import numpy as np
import pytest

from stemma.ancestry.geometry import ANTISYMMETRIC, SYMMETRIC, Geometry
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.weights.entries import entries
from stemma.networks.load import from_arrays

SHAPES = {"a.weight": (48, 64), "b.weight": (40, 48), "c.weight": (10, 40)}


def weights(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}


def news(seed: int, size: float, rank: int = 3) -> dict[str, np.ndarray]:
    """An increment of a few directions, of `size` times the norm of standard normal weights."""
    rng = np.random.default_rng([seed, 7])
    out = {}
    for n, (rows, columns) in SHAPES.items():
        d = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
        out[n] = (size * d * np.sqrt(rows * columns) / np.linalg.norm(d)).astype(np.float32)
    return out


def plus(a: dict[str, np.ndarray], b: dict[str, np.ndarray], factor: float = 1.0) -> dict[str, np.ndarray]:
    return {n: (factor * a[n] + b[n]).astype(np.float32) for n in a}


def geometry(*arrays: dict[str, np.ndarray]) -> Geometry:
    models: list[Model] = [from_arrays(a, f"m{i}", None) for i, a in enumerate(arrays)]
    return Geometry(entries(models, reference=0))


def test_distance_is_relative_and_leaves_out_what_was_replaced() -> None:
    p = weights(0)
    c = plus(p, news(1, 0.3))
    replaced = {**c, "c.weight": weights(5)["c.weight"]}
    g = geometry(p, c, replaced, weights(9))
    assert g.squared_distance(0, 1) == pytest.approx(0.09, rel=0.1)
    assert g.squared_distance(0, 2) == pytest.approx(0.09, rel=0.1)
    assert list(g.shared_tensors(0, 2)) == [True, True, False]
    assert g.squared_distance(1, 1) == 0
    assert g.squared_distance(0, 3) == np.inf  # the control: strangers share no tensor
    tenfold = geometry(*({n: 10 * a for n, a in m.items()} for m in (p, c)))
    assert tenfold.squared_distance(0, 1) == pytest.approx(g.squared_distance(0, 1), rel=1e-4)


def test_children_leave_their_parent_at_right_angles_and_siblings_do_not() -> None:
    p = weights(0)
    g = geometry(p, *(plus(p, news(i, 0.4)) for i in (1, 2, 3)))
    for a, b in ((1, 2), (1, 3), (2, 3)):
        at_parent, at_sibling = g.cosine_at(0, a, b), g.cosine_at(a, b, 6 - a - b)
        assert at_parent is not None
        assert at_sibling is not None
        assert abs(at_parent) < 0.1
        assert at_sibling == pytest.approx(0.5, abs=0.1)
    assert g.cosine_at(1, 1, 2) is None


def test_features_turn_with_the_pair() -> None:
    p = weights(0)
    c = plus(p, news(1, 0.4))
    there, back = geometry(p, c).pair_features(0, 1), geometry(c, p).pair_features(0, 1)
    assert there is not None
    assert back is not None
    assert (len(there.antisymmetric), len(there.symmetric)) == (len(ANTISYMMETRIC), len(SYMMETRIC))
    np.testing.assert_allclose(back.antisymmetric, -there.antisymmetric, atol=0.05)
    np.testing.assert_allclose(back.symmetric, there.symmetric, atol=0.05)
    np.testing.assert_array_equal(there.swapped().antisymmetric, -there.antisymmetric)


def figure(g: Geometry, i: int, j: int, name: str) -> float:
    found = g.pair_features(i, j)
    assert found is not None
    return float(found.antisymmetric[ANTISYMMETRIC.index(name)])


def test_news_is_in_the_child_and_in_both_siblings() -> None:
    p = weights(0)
    a, b = plus(p, news(1, 0.4)), plus(p, news(2, 0.4))
    g = geometry(p, a, b)
    assert figure(g, 0, 1, "news") > 0.8
    assert figure(g, 1, 0, "news") < -0.8
    assert abs(figure(g, 1, 2, "news")) < 0.2  # the control: neither comes from the other


def test_decay_is_seen_and_set_aside() -> None:
    p = weights(0)
    c = plus(p, news(1, 0.2), factor=0.9)
    g = geometry(p, c)
    assert figure(g, 0, 1, "decay") == pytest.approx(-np.log(0.9), abs=0.05)
    assert figure(g, 0, 1, "norm") < 0
    assert figure(g, 0, 1, "news_undecayed") > 0.5


def test_nothing_to_compare_is_none_and_a_pair_is_of_two() -> None:
    p = weights(0)
    g = geometry(p, dict(p), weights(3))
    assert g.pair_features(0, 1) is None
    assert g.pair_features(0, 2) is None
    with pytest.raises(MisuseError, match="itself"):
        g.pair_features(1, 1)


def test_constant_and_zero_tensors_give_numbers() -> None:
    p = {**weights(0), "z.weight": np.zeros((8, 8), np.float32), "o.weight": np.ones((8, 8), np.float32)}
    c = {**plus(p, {**news(1, 0.3), "z.weight": p["z.weight"], "o.weight": 0.1 * p["o.weight"]})}
    found = geometry(p, c).pair_features(0, 1)
    assert found is not None
    assert np.isfinite(found.antisymmetric).all()
    assert np.isfinite(found.symmetric).all()
