"""The learned lineage detector: what it names, where it says related, and what must not matter to it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from documents import check_document
from stemma.checkpoints.model import Model
from stemma.cli import main
from stemma.errors import MisuseError, UnreadableModelError
from stemma.kinship.learned import evidence
from stemma.kinship.learned.bounds import ORDER_ALONE
from stemma.kinship.learned.detector import Descent, LineageDetector
from stemma.kinship.learned.evidence import Evidence
from stemma.kinship.learned.heads import find_heads, head_factor, learned_with
from stemma.kinship.learned.weight_samples import sample_weights, squares
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.training import PRETRAINED, calibration, detector_curriculum, shipped_detector
from stemma.training.detector import Training, split, train
from stemma.training.detector_networks import INPUTS, Schedule, draw_make, examples, forward, shapes, start
from stemma.training.detector_networks import train as train_networks
from stemma.training.detector_questions import Drawing, Pool, pools
from stemma.training.detector_zoo import parse_zoo
from stemma.training.detector_zoo import random_family as recipes
from stemma.training.relatives import Relative, components, relatives_from_folder, relatives_from_zoo
from stemma.zoo.lineages import as_zoo

Arrays = dict[str, np.ndarray]

SHAPES = {"fc1.weight": (32, 16), "fc2.weight": (32, 32), "fc3.weight": (24, 32), "head.weight": (10, 24)}


def _root(seed: int) -> Arrays:
    rng = np.random.default_rng([seed, 1])
    return {n: (rng.normal(size=s) / np.sqrt(s[1])).astype(np.float32) for n, s in SHAPES.items()}


def _child(parent: Arrays, rng: np.random.Generator, change: float) -> Arrays:
    return {n: (a + change * a.std() * rng.normal(size=a.shape)).astype(np.float32) for n, a in parent.items()}


def _family(seed: int) -> list[Relative]:
    """A root, two children and two grandchildren each, by random steps: orthogonal, as training's nearly are."""
    rng, name, found = np.random.default_rng([seed, 2]), f"family-{seed}", []

    def add(own: str, arrays: Arrays, above: tuple[str, ...]) -> None:
        model = from_arrays(arrays, f"{name}:{own}", None)
        found.append(Relative(model.name, model, name, tuple(f"{name}:{a}" for a in above)))

    root = _root(seed)
    add("root", root, ())
    for i in "ab":
        child = _child(root, rng, rng.uniform(0.1, 0.4))
        add(i, child, ("root",))
        for j in "cd":
            add(i + j, _child(child, rng, rng.uniform(0.1, 0.4)), (i, "root"))
    return found


@pytest.fixture(scope="module")
def families() -> list[Relative]:
    return [r for seed in range(12) for r in _family(seed)]


@pytest.fixture(scope="module")
def pool(families: list[Relative]) -> Pool:
    (found,) = pools(families, cap=12, per_layer=1024)
    return found


@pytest.fixture(scope="module")
def models(families: list[Relative]) -> dict[str, Model]:
    return {r.name: r.model for r in families}


@pytest.fixture(scope="module")
def shipped() -> LineageDetector:
    return shipped_detector()


def _answer(detector: LineageDetector, models: dict[str, Model], child: str, *names: str) -> Descent:
    return detector(models[child], [models[n] for n in names])


def test_the_shipped_detector_finds_parents_of_networks_of_another_make(
    shipped: LineageDetector, models: dict[str, Model]
) -> None:
    right, refused = [], []
    for f in range(12):
        strangers = [f"family-{(f + i) % 12}:root" for i in (1, 2, 3)]
        name = f"family-{f}:"
        found = _answer(shipped, models, f"{name}ac", f"{name}root", f"{name}a", f"{name}b", f"{name}ad", *strangers)
        right.append(found.parent is not None and found.parent.name == f"{name}a")
        refused.append(_answer(shipped, models, f"{name}ac", *strangers).parent is None)  # the control
    assert sum(right) >= 10
    assert all(refused)


def test_a_fresh_head_hides_no_parent_and_takes_no_part(shipped: LineageDetector, models: dict[str, Model]) -> None:
    strangers = [f"family-{i}:root" for i in (1, 2, 3)]
    arrays = {n: t.array() for n, t in models["family-0:ac"].tensors.items()}
    rng = np.random.default_rng(5)
    for name in ("head.weight", "fc3.weight"):  # the last layer, and one in the middle
        fresh = (rng.normal(size=arrays[name].shape) / 5).astype(np.float32)
        child = from_arrays({**arrays, name: fresh}, "child", None)
        given = [models[n] for n in ("family-0:a", *strangers)]
        found = shipped(child, given)
        assert found.none < 0.01
        assert found.relatives == (given[0].ref,)
        assert found.layers == (3, 0, 0, 0)
        # whatever stands in the unrelated layer, nothing moves
        other = from_arrays({**arrays, name: 100 * fresh[:, ::-1].copy()}, "other", None)
        assert shipped(other, given).probabilities == pytest.approx(found.probabilities, abs=1e-6)


def test_an_order_that_does_not_show_is_answered_with_related(
    shipped: LineageDetector, models: dict[str, Model]
) -> None:
    strangers = [f"family-{i}:root" for i in (1, 2, 3)]
    for f in range(4, 10):
        name = f"family-{f}:"
        root = _answer(shipped, models, f"{name}root", f"{name}a", *strangers)
        sibling = _answer(shipped, models, f"{name}a", f"{name}b", *strangers)
        for found in (root, sibling):
            assert found.related[0] >= evidence.RELATED
            assert max(found.probabilities) < 0.95
            assert found.none < 0.05
            assert found.answer in ("related", "parent")
    nothing = Descent(found.child, found.candidates, (0.3, 0.1, 0.0, 0.0), 0.6, 0.0, (1.0, 1.0, 0.0, 0.0), (4, 4, 0, 0))
    assert (nothing.parent, nothing.answer) == (None, "related")
    assert nothing.relatives == found.candidates[:2]
    assert nothing.to_dict()["parent"] is None


def test_a_change_follows_the_head_that_it_was_learned_with(shipped: LineageDetector) -> None:
    rng = np.random.default_rng(0)
    body, heads = rng.normal(size=(40, 60)), [rng.normal(size=(n, 40)) for n in (10, 10, 7)]
    changes = [0.3 * h.T @ rng.normal(size=(len(h), 60)) / np.sqrt(len(h)) for h in heads]

    def model(name: str, weight: np.ndarray, head: int) -> Model:
        arrays = {"body.weight": weight.astype(np.float32), "head.weight": heads[head].astype(np.float32)}
        return from_arrays(arrays, name, None)

    parent = model("parent", body + changes[0], 0)
    child, other_width = (model(f"child{i}", body + changes[0] + changes[i], i) for i in (1, 2))
    for own in (child, other_width):
        heads_seen = find_heads([own, parent, child, other_width])
        order, weaker, stronger, differ = learned_with(
            heads_seen.of(1), heads_seen.of(0), heads_seen.pairs, evidence.alike
        )
        assert differ
        assert order > 1
        assert stronger > 1
        assert weaker < 0.15 * stronger
        assert head_factor(order, weaker, stronger, differ) > 1
        assert head_factor(-order, weaker, stronger, differ) < 0.1
        assert shipped(own, [parent]).probabilities[0] > shipped(parent, [own]).probabilities[0]
    siblings = find_heads([child, other_width])
    found = learned_with(siblings.of(1), siblings.of(0), siblings.pairs, evidence.alike)
    assert head_factor(*found) < 1
    assert head_factor(0, 0, 0, 0) == 1


def test_order_alone_names_no_parent_and_counters_are_heard(shipped: LineageDetector, models: dict[str, Model]) -> None:
    for f in range(12):
        found = _answer(shipped, models, f"family-{f}:a", f"family-{f}:root", f"family-{(f + 1) % 12}:root")
        assert found.parent is None
        assert max(found.probabilities) <= ORDER_ALONE
    counter = "bn.num_batches_tracked"

    def counted(name: str, batches: int) -> Model:
        arrays = {n: t.array() for n, t in models[name].tensors.items()}
        return from_arrays({**arrays, counter: np.array(batches)}, name, None)

    names = [f"family-3:{n}" for n in ("root", "a", "b", "ad")]
    plain = shipped(counted("family-3:ac", 10), [counted(n, 5) for n in names])
    later = shipped(counted("family-3:ac", 10), [counted(n, 20 if n.endswith(":a") else 5) for n in names])
    assert later.probabilities[1] == pytest.approx(plain.probabilities[1] / 10)
    assert sum(later.probabilities) + later.unordered + later.none == pytest.approx(1)


def test_relatedness_has_its_level_and_its_power_layer_by_layer() -> None:
    rng, found = np.random.default_rng(0), []
    for i in range(400):
        rows, columns = rng.integers(8, 40, 2)
        smooth = np.cumsum(rng.normal(size=(columns, columns)), 1) / columns  # inputs that all networks read alike
        x, y = (rng.standard_t(4, size=(rows, columns)) @ (smooth if i % 2 else np.eye(columns)) for _ in "ab")
        found.append((evidence.related_z(x, y), evidence.related_z(x, x + 2 * y)))
    strangers, related = np.array([f for f in found if not np.isnan(f[0])]).T
    assert (strangers > 1.645).mean() < 0.08
    assert (strangers > 2.326).mean() < 0.025
    assert strangers.max() < evidence.LAYER_Z
    assert np.median(related) > evidence.LAYER_Z
    x, y = rng.normal(size=(2, 12, 9))
    x, y = (z - z.mean(0) - z.mean(1, keepdims=True) + z.mean() for z in (x, y))
    drawn = [(x * y[rng.permutation(12)]).sum() for _ in range(4000)]
    slow = (x * y).sum() / np.std(drawn)
    across = [(x * y[:, rng.permutation(9)]).sum() for _ in range(4000)]
    assert evidence.related_z(x, y) == pytest.approx(min(slow, (x * y).sum() / np.std(across)), abs=0.1)
    assert np.isnan(evidence.related_z(x[:2], y[:2]))


def test_no_minority_of_layers_moves_what_is_pooled() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(7, 3))
    for wrong in (1e9, -1e9):
        broken = table.copy()
        broken[:1] = wrong
        assert np.abs(evidence.pooled(broken)).max() < 3
        broken[:3] = wrong
        assert np.abs(evidence.pooled(broken)[:3]).max() < 3
    assert evidence.pooled(table[:1]) == pytest.approx(np.tile(table[0], 2))


def test_evidence_of_a_pair_turns_its_sign_with_the_order(pool: Pool) -> None:
    seen = Evidence(pool.views)
    turned = Evidence(sample_weights([pool.relatives[i].model for i in (1, 0)], per_layer=1024))
    a, b = seen.pair(0, 1), turned.pair(0, 1)
    odd = 2 * len(evidence.ODD)
    assert a[:odd] == pytest.approx(-b[:odd], abs=1e-3)
    assert a[odd:] == pytest.approx(b[odd:], abs=1e-3)
    assert np.abs(a[:odd]).max() > 0


def test_probabilities_sum_to_one_and_say_the_same_in_every_order(
    shipped: LineageDetector, models: dict[str, Model]
) -> None:
    names = [f"family-0:{n}" for n in ("root", "a", "b", "bc")] + ["family-1:root", "family-2:a"]
    found = _answer(shipped, models, "family-0:ac", *names)
    assert sum(found.probabilities) + found.unordered + found.none == pytest.approx(1)
    mixed = _answer(shipped, models, "family-0:ac", *reversed(names))
    assert mixed.probabilities[::-1] == pytest.approx(found.probabilities, abs=1e-5)
    document = found.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert [c["probability"] for c in document["candidates"]] == sorted(found.probabilities, reverse=True)
    assert sum(c["related"] > 0.99 for c in document["candidates"]) == 4


def test_names_and_float_width_do_not_matter(shipped: LineageDetector, models: dict[str, Model]) -> None:
    names = [f"family-3:{n}" for n in ("root", "a", "b")] + ["family-4:root"]
    child = {n: t.array() for n, t in models["family-3:ad"].tensors.items()}
    plain = _answer(shipped, models, "family-3:ad", *names)
    renamed = from_arrays({f"z{9 - i}.w": a for i, a in enumerate(child.values())}, "renamed", None)
    halved = from_arrays({n: a.astype(np.float16) for n, a in child.items()}, "halved", None)
    for other in (renamed, halved):
        found = shipped(other, [models[n] for n in names])
        assert found.parent == plain.parent
        assert found.layers == plain.layers
        assert found.probabilities == pytest.approx(plain.probabilities, abs=0.1)
    # The control: other weights do matter.
    assert _answer(shipped, models, "family-5:ad", *names).parent is None


def test_permuted_units_hide_a_parent_and_are_said_to(shipped: LineageDetector, models: dict[str, Model]) -> None:
    child = {n: t.array() for n, t in models["family-3:ad"].tensors.items()}
    rng = np.random.default_rng(0)
    mixed = {n: a[rng.permutation(len(a))][:, rng.permutation(a.shape[1])] for n, a in child.items()}
    found = shipped(from_arrays(mixed, "mixed", None), [models["family-3:a"], models["family-3:root"]])
    assert found.parent is None
    assert "brought back" in (LineageDetector.__doc__ or "")


def test_one_candidate_itself_and_dead_layers(shipped: LineageDetector, models: dict[str, Model]) -> None:
    child = models["family-0:ac"]
    itself = shipped(child, [child])
    assert itself.related[0] > 0.99
    assert np.isfinite(itself.probabilities[0])
    arrays = {n: t.array() for n, t in child.tensors.items()}
    dead = from_arrays({**arrays, "fc2.weight": np.zeros_like(arrays["fc2.weight"])}, "dead", None)
    found = shipped(dead, [models["family-0:a"], models["family-1:a"]])
    assert [r.name for r in found.relatives] == ["family-0:a"]
    assert found.layers == (3, 0)
    broken = from_arrays({**arrays, "fc2.weight": np.full_like(arrays["fc2.weight"], np.nan)}, "broken", None)
    assert np.isfinite(shipped(broken, [models["family-0:a"]]).none)


def test_another_architecture_is_no_parent(shipped: LineageDetector, models: dict[str, Model]) -> None:
    rng = np.random.default_rng(0)
    other = from_arrays({"x.weight": rng.normal(size=(7, 5)).astype(np.float32)}, "other", None)
    found = shipped(models["family-0:ac"], [other, models["family-0:a"]])
    assert found.layers[0] == 0
    assert found.probabilities[0] == 0
    assert shipped(models["family-0:ac"], [other]).none == 1
    assert shipped(models["family-0:ac"], [other]).answer == "none"
    parent = {n: t.array() for n, t in models["family-0:a"].tensors.items()}
    part = from_arrays({n: parent[n] for n in list(parent)[:1]}, "part", None)  # one layer of four is no parent
    found = shipped(models["family-0:ac"], [part, models["family-0:a"]])
    assert found.layers == (1, 4)
    assert found.probabilities[0] == 0
    empty = from_arrays({"b": np.ones(3, np.float32)}, "empty", None)
    assert shipped(empty, [models["family-0:a"]]).none == 1


def test_wrong_use_is_one_clear_error(shipped: LineageDetector, models: dict[str, Model], tmp_path: Path) -> None:
    child = models["family-0:a"]
    with pytest.raises(MisuseError, match="no candidates"):
        shipped(child, [])
    with pytest.raises(MisuseError, match="no preset"):
        LineageDetector(preset="v9")
    with pytest.raises(MisuseError, match="do not fit"):
        LineageDetector()(child, [models["family-0:root"]])
    with pytest.raises(MisuseError, match="give probes"):
        LineageDetector(preset="paper", width=8)(child, [child])
    with pytest.raises(MisuseError, match="at least 1"):
        LineageDetector(width=0)
    with pytest.raises(MisuseError, match="no preset of the detector is called 'v2'"):
        LineageDetector(preset="v2")
    path = tmp_path / "x.safetensors"
    replace(shipped, weights={}).save(path)
    with pytest.raises(MisuseError, match="do not fit"):
        LineageDetector.load(path)(child, [models["family-0:root"]])
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2, np.float32)}, path)
    with pytest.raises(UnreadableModelError, match="not a lineage detector"):
        LineageDetector.load(path)
    save_file({"a": np.ones(2, np.float32)}, path, {"format": "stemma lineage detector", "version": "1"})
    with pytest.raises(UnreadableModelError, match="of version 2: train one with"):
        LineageDetector.load(path)
    for text in ("curriculum:smell", "curriculum:n=", "curriculumx"):
        with pytest.raises(MisuseError, match="write for example"):
            detector_curriculum.parse(text)
    assert detector_curriculum.parse("curriculum:table+sound:n=4,seed=2") == (4, 2, ("table", "sound"))
    assert detector_curriculum.parse("curriculum:n=4") == (4, 0, INPUTS)
    assert detector_curriculum.parse("mlp:n=4") is None
    for text in ("mlp:n", "nothing", "mlp+:n=2", "mlp:n=2,k=1"):
        with pytest.raises(MisuseError, match="write for example"):
            parse_zoo(text)
    assert parse_zoo("mlp+cnn:n=5,seed=3") == (("mlp", "cnn"), 5, 3)


@pytest.mark.slow
def test_training_learns_is_deterministic_and_can_be_kept(pool: Pool, tmp_path: Path) -> None:
    start = LineageDetector(width=16, per_layer=1024)
    quick = Training(steps=40, batch=16, check=40, questions=32, drawn=32, drawing=Drawing(most=8, relatives=4))
    first = train([pool], start, quick)
    short = replace(quick, steps=2)
    one, two, other = (train([pool], start, replace(short, seed=s)) for s in (0, 0, 1))
    assert one.weights_digest == two.weights_digest
    assert one.made["test"] == two.made["test"]
    assert one.weights_digest != other.weights_digest
    assert first.made["test"]["cross_entropy"] < one.made["test"]["cross_entropy"] - 0.1
    first.save(tmp_path / "d.safetensors")
    loaded = LineageDetector.load(tmp_path / "d.safetensors")
    assert loaded == first
    assert loaded.spec.digest == first.spec.digest
    models = {r.name: r.model for r in pool.relatives}
    for name in ("a", "bc"):
        given = models[f"family-0:{name}"], [models["family-0:root"], models["family-1:root"]]
        assert loaded(*given) == first(*given)


def test_preset_paper_needs_and_uses_features() -> None:
    kinds = [
        Relative(f"{f}:{m.name}", m.model, f"f{f}", tuple(f"{f}:{a}" for a in z.ancestors(m.name)))
        for f in range(8)
        for z in [as_zoo(_short(f), keep=False)]
        for m in z.members
    ]
    probes = Probes.of(np.random.default_rng(0).random((16, 1, 8, 8), np.float32))
    (found,) = pools(kinds, cap=4, per_layer=64, probes=lambda _: probes, matrix=True)
    start = LineageDetector(preset="paper", width=8, probes=16)
    trained = train([found], start, Training(steps=4, batch=4, check=2, questions=16, drawing=Drawing(most=4)))
    models = [r.model for r in kinds if r.family == "f0"]
    answer = trained(models[1], [models[0], models[2]], probes)
    assert sum(answer.probabilities) + answer.none == pytest.approx(1)
    question = found.draw(["f0", "f1"], np.random.default_rng(0), Drawing(), 4)
    assert question is not None
    assert found.arrays(question, "paper")["matrices"].shape[1:] == (2, 64, 64)
    with pytest.raises(MisuseError, match="no matrix by name"):
        trained(models[1], [from_arrays(_root(0), "other", None)], probes)


def _short(seed: int) -> dict:
    """Two-step trainings: history without learning."""
    made = recipes("mlp", 900 + seed, leaves=0)
    names = list(made)[:3]
    quick = {}
    for name in names:
        r = made[name]
        parents = tuple(quick[n] for n in names if made[n].digest in {p.digest for p in r.parents})
        quick[name] = replace(r, parents=parents, parameters={**r.parameters, "steps": 2})
    return quick


def test_questions_hold_the_right_answer(pool: Pool) -> None:
    rng, names = np.random.default_rng(0), [f"family-{i}" for i in range(12)]
    found = [q for _ in range(400) if (q := pool.draw(names, rng, Drawing(), 8))]
    kept = [pool.relatives[q.child].ancestors[:1] for q in found]
    for q, above in zip(found, kept, strict=True):
        candidates = [pool.relatives[i].name for i in q.others]
        assert q.child not in q.others
        assert len(set(candidates)) == len(candidates)
        ancestors = [a for a in pool.relatives[q.child].ancestors if a in candidates]
        assert (candidates[q.label] if q.label < len(candidates) else None) == (ancestors[0] if ancestors else None)
        assert not above or ancestors[:1] == list(above) or above[0] not in candidates
    missing = np.mean([q.label == len(q.others) for q in found])
    assert 0.1 < missing < 0.35
    closed = [pool.draw(names, rng, Drawing(closed=True), 8) for _ in range(100)]
    assert all(q is not None and q.label < len(q.others) for q in closed)


def test_parts_share_no_family() -> None:
    parts = split([f"f{i % 30}" for i in range(100)], seed=1)
    everything = [f for part in parts.values() for f in part]
    assert len(everything) == len(set(everything)) == 30
    assert min(map(len, parts.values())) >= 2
    assert parts != split([f"f{i}" for i in range(30)], seed=2)
    with pytest.raises(MisuseError, match="at least"):
        split(["a", "b"])
    assert components("abcd", [("a", "x"), ("b", "x")]) == {"a": "a", "b": "a", "c": "c", "d": "d"}


def test_angles_at_a_parent_are_right_and_at_a_sibling_are_not() -> None:
    rng = np.random.default_rng(0)
    root = _root(0)
    children = [_child(root, rng, 0.2) for _ in range(3)]
    seen = sample_weights([from_arrays(a, str(i), None) for i, a in enumerate([*children, root])])
    found, mask = Evidence(seen).triangles(0, np.arange(1, 4))
    angle, siblings, root_at = found[..., 0], (0, 1), 2
    assert np.abs(angle[root_at, :2]).max() < 0.1
    for s in siblings:
        assert angle[s, root_at] == pytest.approx(0.7, abs=0.1)
        assert angle[s, 1 - s] == pytest.approx(0.5, abs=0.1)
    assert mask.sum() == 6
    assert not mask.diagonal().any()
    # a third of the layers replaced in one of them changes no angle by much
    replaced = {**children[1], "fc2.weight": _root(9)["fc2.weight"]}
    mixed = [children[0], replaced, children[2], root]
    seen = sample_weights([from_arrays(a, str(i), None) for i, a in enumerate(mixed)])
    again, _ = Evidence(seen).triangles(0, np.arange(1, 4))
    assert np.abs(again - found).max() < 0.1


def test_distances_are_those_of_the_entries() -> None:
    seen = sample_weights([from_arrays(_root(i), str(i), None) for i in range(3)], per_layer=100)
    everything = np.arange(3)
    found = squares(seen)
    slow = np.square(seen.values[:, None] - seen.values[None]).sum(3).transpose(2, 0, 1)
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-6)
    assert (found[:, everything, everything] == 0).all()


@pytest.mark.parametrize("inputs", INPUTS)
def test_the_curriculum_holds_every_kind_of_child(inputs: str) -> None:
    make = replace(draw_make(inputs, 3), width=8, depth=1)
    shape = shapes(make)
    starts = [{n: start(make, np.random.default_rng(i), n, s) for n, s in shape.items()} for i in range(3)]
    frozen = next(n for n in shape if n.endswith("weight"))
    schedules = [Schedule("adam", 1, 0, 6), Schedule("sgd", 1, 0, 2), Schedule("adamw", 1, 0.1, 6, (frozen,))]
    made = train_networks(make, starts, [(1, 3), (1, 3), (2, 5)], schedules, 0)
    alone = train_networks(make, starts[:1], [(1, 3)], schedules[:1], 0)
    assert np.abs(made[0]["head.weight"] - starts[0]["head.weight"]).max() > 1e-3
    assert np.array_equal(made[2][frozen], starts[2][frozen])
    assert not np.array_equal(made[2]["head.weight"], starts[2]["head.weight"])
    assert alone[0].keys() == made[0].keys()
    x = torch.from_numpy(examples(inputs, 1, 3)[0][None, :5])

    def logits(arrays: Arrays) -> np.ndarray:
        with torch.no_grad():
            return forward(make, {n: torch.from_numpy(a[None]) for n, a in arrays.items()}, x).numpy()

    both = torch.cat([x, x])
    with torch.no_grad():
        together = forward(make, {n: torch.from_numpy(np.stack([made[0][n], made[1][n]])) for n in shape}, both).numpy()
    np.testing.assert_allclose(together[:1], logits(made[0]), atol=1e-4)
    np.testing.assert_allclose(together[1:], logits(made[1]), atol=1e-4)


def test_the_cap_takes_every_shape_and_no_name() -> None:
    rng = np.random.default_rng(0)
    arrays = {f"l{i}": rng.normal(size=(8, 8 + i % 3)).astype(np.float32) for i in range(12)}
    renamed = {f"m{(7 * i) % 12}": a for i, a in enumerate(arrays.values())}
    first, second = (sample_weights([from_arrays(a, "x", None)], cap=5, per_layer=200) for a in (arrays, renamed))
    assert first.values.shape[1] == 5
    assert len(set(first.sizes.tolist())) == 3

    def sums(seen: object) -> list[float]:
        return sorted(np.abs(seen.values[0]).sum(1).tolist())  # ty: ignore[unresolved-attribute]

    assert sums(first) == pytest.approx(sums(second))
    with pytest.raises(MisuseError, match="at least 1"):
        sample_weights([from_arrays(arrays, "x", None)], cap=0)


def test_calibration_finds_the_temperature_that_was_put_in() -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=6) * 2 for _ in range(5000)]
    labels = [int(rng.choice(6, p=p)) for p in calibration.probabilities(logits)]
    sharp = [3 * x - np.eye(6)[5] for x in logits]
    temperature, shift = calibration.fit(sharp, labels)
    assert temperature == pytest.approx(3, abs=0.2)
    assert shift == pytest.approx(1 / 3, abs=0.15)
    before = calibration.calibration_error(calibration.probabilities(sharp), labels)
    after = calibration.calibration_error(calibration.probabilities(sharp, temperature, shift), labels)
    assert after < 0.04 < before
    assert calibration.fit([], []) == (1.0, 0.0)


def test_a_written_zoo_says_the_same_as_one_in_memory(tmp_path: Path) -> None:
    zoo = as_zoo(_short(50), keep=False)
    zoo.write(tmp_path / "zoo")
    memory, folder = relatives_from_zoo(zoo, "f"), relatives_from_folder(tmp_path / "zoo")
    assert [r.ancestors for r in relatives_from_zoo(zoo, str(tmp_path / "zoo"))] == [r.ancestors for r in folder]
    assert [r.model.digest for r in memory] == [r.model.digest for r in folder]
    assert len({r.family for r in folder}) == 1
    (tmp_path / "zoo" / "truth.json").write_text("{}")
    with pytest.raises(MisuseError, match="not a valid truth file"):
        relatives_from_folder(tmp_path / "zoo")
    with pytest.raises(MisuseError, match=r"no truth\.json"):
        relatives_from_folder(tmp_path)


@pytest.mark.slow
def test_the_command_trains_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = {n: r for i in range(10) for n, r in _short(60 + i).items()}
    as_zoo(recipes, keep=False).write(tmp_path / "zoo")
    out = tmp_path / "detector.safetensors"
    with pytest.raises(SystemExit) as ended:
        main(["train", "detector", str(tmp_path / "zoo"), "--out", str(out), "--steps", "2", "--json"])
    assert not ended.value.code
    document = check_document(capsys.readouterr().out)
    loaded = LineageDetector.load(out)
    assert document["digest"] == loaded.weights_digest
    assert document["models"] == len(recipes)
    assert sum(document["families"].values()) == 10
    assert loaded.made["command"] == "stemma train detector zoo --preset v3 --steps 2 --seed 0"
    with pytest.raises(SystemExit) as ended:
        main(["train", "detector", str(tmp_path), "--out", str(out)])
    assert ended.value.code == 2
    assert "no truth.json" in capsys.readouterr().err


def test_what_ships_is_small_and_says_how_it_was_made(shipped: LineageDetector) -> None:
    assert (PRETRAINED / "lineage_detector.safetensors").stat().st_size < 300_000
    assert shipped.made["command"].startswith("stemma train detector ")
    assert shipped.made["families"]["test"] >= 4
    assert shipped.made["test"]["calibration_error"] < 0.1
    assert shipped.preset == "v3"
