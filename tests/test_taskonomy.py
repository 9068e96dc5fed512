"""Task relatedness: the published figures, slow twins, what the tree must not confuse, and the tasks of our own zoo."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stemma.errors import MisuseError
from stemma.measures.relatedness import similarity_tree, transfer_agreement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("sklearn")
    return importlib.import_module("taskonomy")


@pytest.fixture(scope="module")
def found(script: ModuleType, shared: Path) -> dict[str, Any]:
    return script.study(shared / "data")


def test_the_published_correlations_are_reproduced_exactly(found: dict[str, Any]) -> None:
    assert found["affinity"]["per_target"]["diagonal_in"] == pytest.approx(0.8349192618223761, abs=1e-12)
    assert found["win_rate"]["per_target"]["diagonal_in"] == pytest.approx(0.8061859972702815, abs=1e-12)
    each = "745 853 765 895 885 902 860 926 953 956 816 770 806 868 917 713 564"
    logged = np.array([int(v) / 1000 for v in each.split()])
    assert np.abs(np.array(found["affinity"]["per_target_each"]) - logged).max() < 6e-4


def test_other_views_of_the_same_question(found: dict[str, Any]) -> None:
    """Computed once with independent code; the weaker ones stay in the record."""
    a, w = found["affinity"], found["win_rate"]
    assert (round(a["per_target"]["diagonal_out"], 4), round(w["per_target"]["diagonal_out"], 4)) == (0.8035, 0.7652)
    assert (round(a["per_source"]["diagonal_in"], 4), round(a["per_source"]["diagonal_out"], 4)) == (0.4537, 0.3663)
    assert (round(a["all_off_diagonal"], 4), round(a["symmetric_upper_triangle"], 4)) == (0.5908, 0.7470)
    assert [round(v, 3) for v in a["precision_at"].values()] == [0.824, 0.804, 0.788]
    assert [round(v, 3) for v in a["recall_at"].values()] == [0.165, 0.482, 0.788]


def test_relabelled_tasks_stay_far_below_the_published_figure(found: dict[str, Any]) -> None:
    chance = found["chance"]
    assert 0.1 < chance["mean"] < 0.22  # above 0: every task is nearest to itself
    assert chance["max"] < 0.6
    assert chance["p_value"] < 0.001


def test_the_similarity_tree_has_the_four_published_groups(found: dict[str, Any]) -> None:
    tree = found["tree"]
    assert tree["adjusted_rand"] == 1.0
    assert np.allclose(tree["top_heights"], [7.18, 7.96, 8.26, 11.64, 16.29, 28.82], atol=0.006)
    assert round(tree["adjusted_rand_average_linkage_of_distances"], 3) == 0.729
    assert len({g for g, h in zip(tree["groups"], tree["groups"][1:], strict=False) if g != h}) == 3


def test_the_result_file_is_that_of_this_code(found: dict[str, Any]) -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "taskonomy.json").read_text())
    for key in ("affinity", "win_rate"):
        assert kept[key]["per_target"] == pytest.approx(found[key]["per_target"])
        assert kept[key]["per_source"] == pytest.approx(found[key]["per_source"])
    assert kept["chance"] == pytest.approx(found["chance"])
    assert kept["tree"]["order"] == found["tree"]["order"]


def ranks(values: list[float]) -> list[float]:
    """Average ranks, one value against every other."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def slow_agreement(distance: np.ndarray, affinity: np.ndarray, diagonal: bool) -> list[float]:
    out = []
    for j in range(len(distance)):
        rows = [i for i in range(len(distance)) if diagonal or i != j]
        x, y = ranks([distance[i, j] for i in rows]), ranks([affinity[i, j] for i in rows])
        mx, my = sum(x) / len(x), sum(y) / len(y)
        top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
        out.append(-top / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5)
    return out


@pytest.mark.parametrize("diagonal", [True, False])
def test_agreement_equals_its_slow_twin_with_ties(diagonal: bool) -> None:
    rng = np.random.default_rng(4)
    distance, affinity = rng.integers(0, 5, (9, 9)).astype(float), rng.integers(0, 6, (9, 9)).astype(float)
    found = transfer_agreement(distance, affinity, diagonal=diagonal)
    assert np.allclose(found, slow_agreement(distance, affinity, diagonal), atol=1e-12)


def test_agreement_of_perfect_and_of_ignorant_distances() -> None:
    rng = np.random.default_rng(5)
    affinity = rng.random((12, 12))
    assert np.allclose(transfer_agreement(-np.exp(affinity * 3), affinity), 1)  # only the order counts
    noise = [transfer_agreement(rng.random((12, 12)), affinity, diagonal=False).mean() for _ in range(200)]
    assert abs(np.mean(noise)) < 3 * np.std(noise) / 200**0.5 + 0.01
    np.fill_diagonal(affinity, 2)
    nearest_itself = rng.random((12, 12)) * (1 - np.eye(12))
    assert transfer_agreement(nearest_itself, affinity).mean() > 0.1  # the diagonal alone is worth something


@pytest.mark.parametrize(
    ("distance", "affinity", "said"),
    [
        (np.zeros((3, 3)), np.zeros((4, 4)), "two square matrices over the same"),
        (np.full((5, 5), np.nan), np.eye(5), "NaN"),
        (np.ones((5, 5)), np.eye(5), "column 0 has only one value"),
    ],
)
def test_agreement_refuses_what_has_no_order(distance: np.ndarray, affinity: np.ndarray, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        transfer_agreement(distance, affinity)


def test_the_tree_finds_planted_groups_and_follows_relabelling() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat([0, 1, 2], 5)
    distance = np.where(groups[:, None] == groups, 0.9, 0.995) + rng.random((15, 15)) * 1e-3
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    order = rng.permutation(15)
    for d, truth in ((distance, groups), (distance[np.ix_(order, order)], groups[order])):
        tree = similarity_tree(d)
        cut = tree.clusters(3)
        assert len({(int(a), int(b)) for a, b in zip(cut, truth, strict=True)}) == 3
        assert list(dict.fromkeys(cut[tree.order].tolist())) == [0, 1, 2]  # numbered as drawn
        assert sorted(tree.order.tolist()) == list(range(15))


def test_a_distance_of_one_or_more_is_no_similarity_and_no_error() -> None:
    distance = np.array([[0, 0.5, 1.2, 1.0], [0.5, 0, 1.1, 1.0], [1.2, 1.1, 0, 0.6], [1.0, 1.0, 0.6, 0]])
    assert similarity_tree(distance).clusters(2).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    with pytest.raises(MisuseError, match="finite symmetric"):
        similarity_tree(np.arange(9.0).reshape(3, 3))


@pytest.fixture(scope="module")
def testbed() -> Any:
    """The modules of the testbed, as its script imports them."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    return {name: importlib.import_module(f"testbeds.{name}") for name in ("tasks", "task_transfer", "task_scores")}


def pictures(tasks: Any, count: int = 6) -> Any:
    import torch

    pixels = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return tasks.Images("mnist", pixels, torch.arange(count) % 10)


def task(testbed: Any, name: str) -> Any:
    return next(t for t in testbed["tasks"].TASKS if t.name == name)


def test_there_are_ten_tasks_and_more_of_four_kinds(testbed: Any) -> None:
    for data_set in ("mnist", "fashion_mnist", "cifar10"):
        found = testbed["tasks"].tasks_of(data_set)
        assert len(found) >= 10
        assert {t.kind for t in found} == set(testbed["tasks"].KINDS)


def test_rotation_and_jigsaw_are_undone_by_their_answers(testbed: Any) -> None:
    import torch

    images = pictures(testbed["tasks"], 40)
    turned, turns = task(testbed, "rotation").examples(images, 3)
    back = torch.stack([torch.rot90(x, -int(k), (1, 2)) for x, k in zip(turned, turns, strict=True)])
    assert torch.equal(back, images.pixels)
    assert set(turns.tolist()) == {0, 1, 2, 3}
    mixed, which = task(testbed, "jigsaw").examples(images, 3)
    corners = [(0, 0), (0, 14), (14, 0), (14, 14)]
    for x, k, whole in zip(mixed, which, images.pixels, strict=True):
        for place, part in enumerate(testbed["tasks"].QUADRANTS[k].tolist()):
            (r, c), (a, b) = corners[place], corners[part]
            assert torch.equal(x[:, r : r + 14, c : c + 14], whole[:, a : a + 14, b : b + 14])


def test_a_shifted_picture_lies_where_its_answer_says(testbed: Any) -> None:
    import torch

    pixels = torch.zeros(20, 1, 28, 28)
    pixels[:, :, 13:15, 13:15] = 1
    images = testbed["tasks"].Images("mnist", pixels, torch.zeros(20, dtype=torch.long))
    moved, answer = task(testbed, "shift").examples(images, 1)
    at = torch.arange(28) - 13.5
    where = (
        torch.stack([(moved.sum((1, 2)) * at).sum(1), (moved.sum((1, 3)) * at).sum(1)], 1)
        / moved.sum((1, 2, 3))[:, None]
    )
    assert torch.allclose(where, -answer / 3**0.5 * 0.4 * 14, atol=0.3)


def test_structure_maps_of_a_square(testbed: Any) -> None:
    """Edges on its outline, corners at its four corners only, depth in its middle, nothing on an empty picture."""
    import torch

    pixels = torch.zeros(2, 1, 28, 28)
    pixels[0, :, 8:20, 8:20] = 1
    images = testbed["tasks"].Images("mnist", pixels, torch.zeros(2, dtype=torch.long))
    found = {n: task(testbed, n).examples(images, 0)[1] for n in ("edges", "corners", "silhouette", "distance inside")}
    assert all(float(m[1].abs().max()) < 1e-6 for m in found.values())
    corners = found["corners"][0, 0]
    assert corners[4, 4] > 0
    assert corners[7, 4] == 0  # a straight edge is no corner
    assert float(found["edges"][0, 0, 7, 4]) > 0.1
    assert float(found["edges"][0, 0, 7, 7]) == 0
    assert float(found["silhouette"].sum()) == 36
    assert divmod(int(found["distance inside"][0, 0].argmax()), 14) in [(r, c) for r in (6, 7) for c in (6, 7)]


def test_affinities_recover_planted_strengths(testbed: Any) -> None:
    """With win rates s_i / (s_i + s_j) the ratios are s_i / s_j, of rank one: the eigenvector is s itself."""
    strength = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
    found = testbed["task_transfer"].affinity(strength[:, None] / (strength[:, None] + strength))
    assert np.allclose(found, strength)


def test_wins_equal_their_slow_twin(testbed: Any) -> None:
    losses = np.random.default_rng(2).integers(0, 4, (3, 2, 30)).astype(float)
    found = testbed["task_transfer"].wins(losses)
    for i, j, a, b in np.ndindex(3, 3, 2, 2):
        pairs = list(zip(losses[i, a], losses[j, b], strict=True))
        assert found[i, j, a, b] == pytest.approx(np.mean([(x < y) + 0.5 * (x == y) for x, y in pairs]))
    assert np.allclose(found + found.transpose(1, 0, 3, 2), 1)


@pytest.mark.slow
def test_intervals_separate_a_better_method_and_not_an_equal_one(testbed: Any) -> None:
    scores, transfer = testbed["task_scores"], testbed["task_transfer"]
    rng = np.random.default_rng(3)
    n, s = 10, 2
    strength = rng.random((n, n))
    np.fill_diagonal(strength, 1)  # every task is its own best source
    losses = -strength[:, None, :, None] + 0.3 * rng.standard_normal((n, s, n, 60))
    truth = scores.Truth(tuple("abcdefghij"), ("x", "y") * 5,
                         tuple(transfer.wins(losses[:, :, t]) for t in range(n)))  # fmt: skip
    good = np.broadcast_to(1 - strength[:, None, :, None], (n, s, n, s)) + 0.1 * rng.random((n, s, n, s))
    noise = [rng.random((n, s, n, s)) for _ in range(2)]
    found = scores.scored({"good": good, "noise": noise[0], "other": noise[1]}, truth, ["noise"])
    assert found["good"]["diagonal_out"]["mean"] > 0.8
    assert found["good"]["difference"]["noise"]["diagonal_out"]["interval"][0] > 0
    low, high = found["other"]["difference"]["noise"]["diagonal_out"]["interval"]
    assert low < 0 < high
    known = scores.chance(truth, 300)
    assert abs(known["diagonal_out"]["mean"]) < 0.05 < known["diagonal_in"]["mean"]


def test_the_measured_figures_follow_from_the_matrices_beside_them() -> None:
    path = ROOT / "benchmarks" / "results" / "task_relatedness.json"
    kept = json.loads(path.read_text())
    affinity = np.array(kept["affinity"])
    for name, distance in kept["distances"].items():
        for inside, key in ((True, "diagonal_in"), (False, "diagonal_out")):
            again = transfer_agreement(np.array(distance), affinity, diagonal=inside).mean()
            assert again == pytest.approx(kept["methods"][name][key]["mean"], abs=2e-3)


def encoder(seed: int, channels: int) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, channels, 3, 1, 1)).double().eval()


def test_the_difference_potential_equals_its_slow_twin() -> None:
    """One point at a time with plain autograd; the other probe is two steps along the cycle that starts the paths."""
    torch = pytest.importorskip("torch")
    from stemma import Probes, from_module
    from stemma.fingerprints.gradient_field import GradientField
    from stemma.fingerprints.paths import derangement

    net = encoder(0, 3)
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = GradientField(steps=3)(from_module(net, "net"), Probes.of(x.numpy())).values["curve"]
    start = derangement(5, 0)
    for k in range(5):
        b, other = x[start[k]], x[start[start[k]]]
        assert not torch.equal(other, b)
        direction = (net(x[k : k + 1]) - net(other[None])).detach()
        total = torch.zeros_like(x[k])
        for t in range(3):
            point = (b + (t + 0.5) / 3 * (x[k] - b)).requires_grad_()
            total = total + torch.autograd.grad((net(point[None]) * direction).sum(), point)[0] / 3
            assert np.allclose(found[k, t], (total * (x[k] - b)).flatten().numpy(), atol=1e-12)


def test_the_field_of_maps_prefers_no_basis_of_the_outputs() -> None:
    """Rotated, rescaled and shifted maps are the same distance away, though channel-max sees another network."""
    torch = pytest.importorskip("torch")
    from torch import nn

    from stemma import FieldCosine, GradientField, Probes, from_module

    net = encoder(0, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = nn.Conv2d(4, 4, 1).double()
    turned.weight.data, turned.bias.data = 3 * rotation[:, :, None, None], torch.arange(4.0).double()
    models = [from_module(n, f"n{i}") for i, n in enumerate((net, nn.Sequential(net, turned).eval(), encoder(1, 4)))]
    probes = Probes.of(np.random.default_rng(0).random((8, 1, 6, 6)))
    for potential, same in (("auto", True), ("channel-max", False)):
        prints = [GradientField(potential=potential)(m, probes) for m in models]
        distance = FieldCosine()(prints[0], prints[1]).value
        assert (distance < 1e-9) == same
        assert FieldCosine()(prints[0], prints[2]).value > 0.1
