"""Whole lineages are what their recipes say, however many are trained at once, and their children have learnt."""

import collections
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from stemma import zoo  # noqa: E402
from stemma.errors import MisuseError, UnknownNameError  # noqa: E402
from stemma.types import RelationKind as R  # noqa: E402
from stemma.zoo import cache, data, datasets, lineages  # noqa: E402
from stemma.zoo.finetuning_recipes import CHILD_OPERATIONS, FINETUNING_RECIPES, FinetuningRecipe  # noqa: E402
from stemma.zoo.kinds import KINDS, seed_for  # noqa: E402
from stemma.zoo.memory import arrays_of  # noqa: E402
from stemma.zoo.merged_operations import coefficients, experts  # noqa: E402
from stemma.zoo.optimizers import OPTIMIZERS, Optimizer  # noqa: E402
from stemma.zoo.recipe import Recipe  # noqa: E402
from stemma.zoo.recipe_builder import build, build_all  # noqa: E402
from stemma.zoo.training import INITIALISERS, accuracy, initial  # noqa: E402
from stemma.zoo.training_jobs import TrainingJob, group_into_stacks, run_jobs  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def small_tree(_own_cache):
    return zoo.as_zoo(zoo.tree("mlp", 0, (2, 2)))


def trained(seed=0, kind="mlp", **parameters):
    return Recipe(kind, "train", seed=seed, parameters={"steps": 40, **parameters})


def tuned(parent, seed=1, operation="finetune", relation=R.FINETUNED, part="a", **parameters):
    return Recipe(parent.kind, operation, relation, (parent,), {"steps": 10, **parameters}, seed, part)


def weights(model, name="layers.1.weight"):
    return arrays_of(model)[name].astype(float)


def flat_weights(model):
    return np.concatenate([a.ravel() for _, a in sorted(arrays_of(model).items()) if a.ndim > 1]).astype(float)


# Training many networks at once


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_is_torchs(name):
    rng = np.random.default_rng(0)
    start, rates, decay = rng.normal(size=(3, 5, 4)), np.array([0.1, 0.02, 0.05]), np.array([0.0, 0.3, 0.1])
    ours = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    rule = Optimizer(name, [ours], rates, decay)
    alone = [torch.tensor(s, dtype=torch.float32, requires_grad=True) for s in start]
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(name, torch.optim.SGD)
    more = {"momentum": 0.9} if name == "momentum" else {}
    theirs = [make([p], lr=r, weight_decay=d, **more) for p, r, d in zip(alone, rates, decay, strict=True)]
    for step in range(12):
        pull = torch.tensor(rng.normal(size=(3, 5, 4)), dtype=torch.float32)
        ((ours**2).sum() + (ours * pull).sum()).backward()
        rule.step(0.5 + step / 10)
        for p, optimizer, own, rate in zip(alone, theirs, pull, rates, strict=True):
            optimizer.zero_grad()
            ((p**2).sum() + (p * own).sum()).backward()
            optimizer.param_groups[0]["lr"] = rate * (0.5 + step / 10)
            optimizer.step()
    for got, expected in zip(ours, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (ours - torch.tensor(start)).abs().max() > 0.05
    with pytest.raises(UnknownNameError, match="no optimizer"):
        Optimizer("adagrad", [ours], rates, decay)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_network_becomes_the_same_whatever_shares_its_stack(kind):
    root = trained(kind=kind, steps=15)
    mine = tuned(root, 5, task="shuffled:4", shots=7, rate=3e-3, weight_decay=0.01)
    others = [tuned(root, i, task=f"inverted+shuffled:{i}", imbalance=9.0, part="b") for i in range(6, 10)]
    alone = build(mine, keep=False)
    together = build_all([*others, mine], keep=False)[-1]
    apart = np.linalg.norm(flat_weights(alone) - flat_weights(together))
    learnt = np.linalg.norm(flat_weights(alone) - flat_weights(build(root, keep=False)))
    assert apart < 1e-3 * learnt
    # The control: another seed is another network.
    other = build(tuned(root, 6, task="shuffled:4", shots=7, rate=3e-3, weight_decay=0.01), keep=False)
    assert np.linalg.norm(flat_weights(other) - flat_weights(alone)) > 0.1 * learnt


def test_adapters_are_each_networks_own():
    root = trained()
    recipes = [tuned(root, s, "lora", R.LORA, rank=2, steps=6, task="inverted") for s in (3, 4, 5)]
    alone, together = build(recipes[2], keep=False), build_all(recipes, keep=False)
    np.testing.assert_allclose(weights(alone), weights(together[2]), atol=1e-5)
    start = weights(build(root, keep=False))
    spaces = [np.linalg.svd(weights(m) - start)[2][:2] for m in together]
    assert np.linalg.svd(spaces[0] @ spaces[2].T, compute_uv=False).max() < 0.9
    assert np.linalg.svd(spaces[2] @ spaces[2].T, compute_uv=False).min() > 0.99


def test_what_trains_together_and_what_does_not():
    examples, config = data.examples("mlp", "a"), KINDS["mlp"].config
    start = initial(config, 0)

    def job(**more):
        return TrainingJob(config, start, examples, 1, 10, 8, 1e-3, **more)

    same = [job(), job(weight_decay=0.1), TrainingJob(config, start, data.examples("mlp", "b"), 2, 10, 8, 1e-2)]
    others = [job(optimizer="sgd"), job(rank=2), job(keep=(0,)), job(trainable=frozenset({"head.bias"}))]
    assert group_into_stacks([*same, *others]) == [[0, 1, 2], [3], [4], [5], [6]]
    assert group_into_stacks([job()] * 5, max_size=2) == [[0, 1], [2, 3], [4]]


def test_many_models_are_kept_in_few_files_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path))
    root = trained(steps=5)
    recipes = {f"m/{i}": tuned(root, i, steps=3) for i in range(40)}
    told = []
    first = build_all(recipes, progress=lambda *step: told.append(step))
    assert [m.name for m in first] == list(recipes)
    assert len({m.digest for m in first}) == 40
    assert [done for _, done, _ in told] == [1, 33, 41]
    assert len(list(cache.folder().iterdir())) == 4  # the root, two stacks, the index
    with monkeypatch.context() as patch:
        patch.setattr("stemma.zoo.training_jobs.run_jobs", None)
        assert [m.digest for m in build_all(recipes)] == [m.digest for m in first]
        assert build(recipes["m/7"]).digest == first[7].digest
        with pytest.raises(TypeError):
            build(tuned(root, 99, steps=3))
    for spoiled in cache.folder().glob("*.safetensors"):
        spoiled.write_bytes(spoiled.read_bytes()[:90])
    (cache.folder() / "stacks.jsonl").open("a").write("not json\n[3]\n")
    assert [m.digest for m in build_all(recipes)] == [m.digest for m in first]


def test_nothing_asked_is_nothing_made():
    assert build_all([]) == []
    assert zoo.as_zoo({}).members == ()


def test_an_early_checkpoint_of_a_short_run_is_there():
    quarters = build_all([trained(steps=2, quarter=q) for q in (1, 2, 3, 4)], keep=False)
    np.testing.assert_array_equal(weights(quarters[0]), initial(KINDS["mlp"].config, seed_for(0, 0))["layers.1.weight"])
    moved = [np.linalg.norm(weights(q) - weights(quarters[0])) for q in quarters]
    assert moved[0] == 0 < moved[1] == moved[2] < moved[3]


def test_what_is_drawn_does_not_depend_on_the_cache(tmp_path, monkeypatch):
    root = trained(steps=3)
    children = [
        Recipe("mlp", "rename", R.REFORMATTED, (root,)),
        Recipe("mlp", "prune-weights", R.PRUNED, (root,), {"ratio": 0.3, "by": "random"}),
        tuned(root, 2, "lora", R.LORA, rank=2, steps=3),
    ]
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path))
    fresh = [build(c, keep=False) for c in children]
    build(root)
    assert [build(c).digest for c in children] == [m.digest for m in fresh]


# What is learnt


def test_tasks_are_what_they_are_called():
    plain = data.examples("mlp", "a")
    shuffled = data.examples("mlp", "a", "shuffled:3")
    labels = {(int(a), int(b)) for a, b in zip(plain.targets, shuffled.targets, strict=True)}
    assert len(labels) == 10
    assert any(a != b for a, b in labels)
    np.testing.assert_allclose(data.examples("mlp", "a", "inverted").inputs, 1 - plain.inputs)
    turned = data.examples("mlp", "a", "rotated+inverted+shuffled:3")
    np.testing.assert_allclose(turned.inputs[4, 0], 1 - np.rot90(plain.inputs[4, 0]))
    np.testing.assert_array_equal(turned.targets, shuffled.targets)
    again = data.examples("mlp", "a", "rotated+inverted+shuffled:4")
    assert again.inputs is turned.inputs
    assert not np.array_equal(again.targets, turned.targets)
    text, cipher = (bytes(data.examples("lm", "test", t).inputs[5].astype(np.uint8)) for t in ("digit", "shuffled:1"))
    assert [chr(c).isalpha() for c in text] == [chr(c).isalpha() for c in cipher]
    assert text != cipher
    for kind, task in (("mlp", "melted"), ("mlp", "shuffled:x"), ("lm", "rotated"), ("mlp", "shuffled")):
        with pytest.raises(MisuseError, match=task):
            data.examples(kind, "a", task)


def test_a_network_can_see_a_share_of_the_examples():
    everything = data.examples("mlp", "a")
    few = data.subset_of(everything, 1, shots=3)
    assert np.bincount(few.targets).tolist() == [3] * 10
    tail = np.sort(np.bincount(data.subset_of(everything, 1, imbalance=50).targets, minlength=10))
    assert tail[0] <= 2
    assert tail[-1] >= 55
    half, other = (data.subset_of(everything, s, subset=0.5) for s in (1, 2))
    assert len(half.targets) == 350
    assert not np.array_equal(half.inputs, other.inputs)
    assert data.subset_of(everything, 1) is everything
    for wrong in ({"shots": -1}, {"imbalance": 0.5}, {"subset": 0.0}, {"subset": 2.0}):
        with pytest.raises(MisuseError, match="are invalid"):
            data.subset_of(everything, 1, **wrong)
    with pytest.raises(MisuseError, match="text has none"):
        data.subset_of(data.examples("lm", "test"), 1, shots=2)


def test_data_sets_of_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("STEMMA_DATA", raising=False)
    with pytest.raises(MisuseError, match="STEMMA_DATA"):
        data.examples("mlp", "a", data="mnist8")
    with pytest.raises(MisuseError, match="cannot be read"):
        data.examples("mlp", "a", data="mnist8", folder=tmp_path)
    with pytest.raises(MisuseError, match="cannot learn 'text'"):
        data.examples("mlp", "a", data="text")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6500, 28, 28), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(tmp_path / f"mnist_{part}.npz", images=pictures, labels=rng.integers(0, 10, 6500, dtype=np.uint8))
    monkeypatch.setenv("STEMMA_DATA", str(tmp_path))
    a, b = (data.examples("cnn", p, data="mnist8").inputs for p in "ab")
    assert a.shape == (3000, 1, 8, 8)
    assert 0 <= a.min() < a.max() <= 1
    small = np.pad(pictures / 255, ((0, 0), (2, 2), (2, 2))).reshape(-1, 8, 4, 8, 4).mean((2, 4))
    known = {s.tobytes() for s in small.round(4).astype(np.float32)}
    assert all(s[0].round(4).astype(np.float32).tobytes() in known for s in a[:50].astype(np.float64))
    assert not {s.tobytes() for s in a} & {s.tobytes() for s in b}
    np.savez(tmp_path / "text_authors.npz", bronte=np.frombuffer(bytes(range(32, 127)) * 60, np.uint8))
    assert data.examples("lm", "test", data="bronte").inputs.max() < 127


@pytest.mark.parametrize("init", INITIALISERS)
def test_starts_are_drawn_by_rule(init):
    start = initial(KINDS["mlp"].config, 3, init)["layers.1.weight"].astype(float)
    unit = np.abs(start @ start.T - np.eye(64)).max() < 1e-5
    assert unit == (init == "orthogonal")
    assert not np.array_equal(start, initial(KINDS["mlp"].config, 4, init)["layers.1.weight"])
    with pytest.raises(MisuseError, match="random start"):
        initial(KINDS["mlp"].config, 3, "zeros")


def test_parts_can_be_frozen_and_adapters_placed():
    root = trained()
    start, frozen, placed = build_all(
        [root, tuned(root, freeze=["layers.0.", "head"]), tuned(root, 2, "lora", R.LORA, rank=2, modules=["layers.1"])]
    )
    changed = [
        {n for n, a in arrays_of(m).items() if not np.array_equal(a, arrays_of(start)[n])} for m in (frozen, placed)
    ]
    assert changed == [
        {"layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"}, {"layers.1.weight"}
    ]  # fmt: skip
    with pytest.raises(MisuseError, match="no matrix"):
        build(tuned(root, 2, "lora", R.LORA, modules=["attention"]))
    with pytest.raises(MisuseError, match="no parameter 'speed'"):
        build(tuned(root, speed=3))
    with pytest.raises(MisuseError, match="constant"):
        build(tuned(root, decay="linear"))


def test_training_goes_on_from_codes_and_halves():
    root = trained()
    coded = Recipe("mlp", "int8", R.QUANTIZED, (root,))
    narrow = Recipe("mlp", "half", R.REFORMATTED, (root,))
    start, *children = build_all([root, tuned(coded), tuned(narrow)])
    for child in children:
        assert arrays_of(child).keys() == arrays_of(start).keys()
        assert 0.01 < np.linalg.norm(weights(child) - weights(start)) / np.linalg.norm(weights(start)) < 0.5


# Quantised, pruned, merged


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_has_as_many_levels_as_its_bits(bits, symmetric):
    root = trained()
    given = {"bits": bits, "block": 16, "symmetric": symmetric}
    start, child = build_all([root, Recipe("mlp", "quantize", R.QUANTIZED, (root,), given)])
    blocks, old = (weights(m).reshape(-1, 16) for m in (child, start))
    step = (np.abs(old).max(1) / (2 ** (bits - 1) - 1)) if symmetric else np.ptp(old, axis=1) / (2**bits - 1)
    if symmetric or (old.min() < 0 < old.max()):
        assert (np.abs(blocks - old) <= 1.01 * np.maximum(step, 1e-9)[:, None]).mean() > 0.99
    assert max(len(np.unique(b.round(6))) for b in blocks) <= 2**bits
    assert np.abs(blocks - old).max() > 1e-4
    whole = build(Recipe("mlp", "quantize", R.QUANTIZED, (root,), {"bits": bits, "block": -1}))
    assert len(np.unique(weights(whole))) <= 2**bits
    with pytest.raises(MisuseError, match="is invalid"):
        build(Recipe("mlp", "quantize", R.QUANTIZED, (root,), {"bits": 1}))


def test_weights_are_pruned_at_random_too():
    root = trained()
    given = [{"ratio": 0.4, "by": by} for by in ("random", "magnitude")]
    start, random, smallest = build_all([root, *(Recipe("mlp", "prune-weights", R.PRUNED, (root,), g) for g in given)])
    for child in (random, smallest):
        assert abs((weights(child) == 0).mean() - 0.4) < 0.02
    gone = [np.abs(weights(start)[weights(m) == 0]).max() for m in (random, smallest)]
    assert gone[0] > 1.5 * gone[1]
    with pytest.raises(MisuseError, match="ratio"):
        build(Recipe("mlp", "prune-weights", R.PRUNED, (root,), {"ratio": 1.4}))


@pytest.fixture(scope="module")
def merging(_own_cache):
    base = trained()
    children = [tuned(base, i, task="shuffled:1", part=p) for i, p in ((1, "a"), (2, "b"), (3, "a"))]
    made = {}
    base_model, *models = build_all([base, *children], made=made)

    def merged(operation, *, over_base=False, parents=children, **parameters):
        recipe = Recipe("mlp", operation, R.MERGED, ((base,) if over_base else ()) + tuple(parents), parameters, 7)
        return recipe, weights(build(recipe, made=made))

    return weights(base_model), np.stack([weights(m) for m in models]), children, merged


def test_merges_over_a_base(merging):
    base, parents, children, merged = merging
    changes = parents - base
    recipe, got = merged("task-arithmetic", over_base=True, scales=[0.5, 0.2, 0.9])
    np.testing.assert_allclose(got, base + np.tensordot([0.5, 0.2, 0.9], changes, 1), atol=1e-6)
    assert experts(recipe) == tuple(children)
    np.testing.assert_allclose(coefficients(recipe), [0.5, 0.2, 0.9])
    _, got = merged("dare", over_base=True, drop=0.75)
    everywhere = (np.abs(changes) > 1e-5).all(0)
    kept = np.array(list(np.ndindex(2, 2, 2))) @ (4 / 3 * changes[:, everywhere])
    error = np.abs(kept - (got - base)[everywhere])
    assert error.min(0).max() < 1e-6
    found = np.array(list(np.ndindex(2, 2, 2)))[error.argmin(0)]
    assert np.abs(found.mean(0) - 0.25).max() < 0.03
    _, got = merged("dare", over_base=True, drop=0.0)
    np.testing.assert_allclose(got, base + changes.mean(0), atol=1e-6)
    with pytest.raises(MisuseError, match="leaves nothing"):
        merged("dare", over_base=True, drop=1.0)
    _, got = merged("ties", over_base=True, density=0.3, scale=0.8)
    for i, j in ((0, 0), (5, 9), (40, 3), (63, 63)):
        kept = [c[i, j] if abs(c[i, j]) >= np.quantile(np.abs(c), 0.7) else 0.0 for c in changes]
        agreeing = [k for k in kept if k and np.sign(k) == np.sign(sum(kept))]
        expected = base[i, j] + 0.8 * (np.mean(agreeing) if agreeing else 0)
        assert abs(got[i, j] - expected) < 1e-6


def test_merges_without_a_base(merging):
    _, parents, children, merged = merging
    recipe, got = merged("merge", weights=[0.2, 0.3, 0.5])
    np.testing.assert_allclose(got, np.tensordot([0.2, 0.3, 0.5], parents, 1), atol=1e-6)
    np.testing.assert_allclose(coefficients(recipe), [0.2, 0.3, 0.5])
    _, got = merged("slerp", parents=children[:2], t=0.0)
    np.testing.assert_allclose(got, parents[0], atol=1e-6)
    _, got = merged("slerp", parents=children[:2], t=0.5)
    cosines = [(got * p).sum() / np.linalg.norm(got) / np.linalg.norm(p) for p in parents[:2]]
    assert abs(cosines[0] - cosines[1]) < 0.01
    _, got = merged("franken", layers=[2, 1, 0, 2])
    np.testing.assert_array_equal(got, parents[1])
    recipe, got = merged("layerwise")
    share = np.linalg.lstsq(parents.reshape(3, -1).T, got.ravel(), rcond=None)[0]
    assert abs(share.sum() - 1) < 1e-4
    assert coefficients(recipe) is None
    for wrong in ({"weights": [1, 2]}, {"weights": [[1]]}):
        with pytest.raises(MisuseError, match="one number"):
            merged("merge", **wrong)
    with pytest.raises(MisuseError, match="two parents"):
        merged("slerp")
    with pytest.raises(MisuseError, match="layers"):
        merged("franken", layers=[0, 1])
    with pytest.raises(MisuseError, match="from 0 to 1"):
        merged("ties", over_base=True, density=3)
    with pytest.raises(MisuseError, match="same names and shapes"):
        merged("merge", parents=[children[0], trained(5, other=True, steps=2)])


def test_a_drawn_frankenmerge_takes_something_from_everyone(merging):
    _, _, children, _ = merging
    made = {}
    parents = build_all(children, made=made)
    for seed in range(4):
        child = arrays_of(build(Recipe("mlp", "franken", R.MERGED, tuple(children), {}, seed), made=made))
        layers = ("layers.0", "layers.1", "layers.2", "head")
        origin = [
            next(i for i, p in enumerate(parents) if np.array_equal(arrays_of(p)[f"{n}.weight"], child[f"{n}.weight"]))
            for n in layers
        ]
        assert set(origin) == {0, 1, 2}


# Lineages


def test_a_tree_is_shaped_as_asked_and_its_children_have_learnt(small_tree):
    assert [m.name.split("/")[1] for m in small_tree.members] == ["root", "1", "2", "1-1", "1-2", "2-1", "2-2"]
    learnt = []
    for m in small_tree.members[1:]:
        assert m.relation == R.FINETUNED
        assert m.parents == (m.name.rsplit("-", 1)[0] if m.name.count("-") > 2 else "mlp-tree-0/root",)
        test = data.examples_for(m.recipe, "test")
        parent = small_tree[m.parents[0]].model
        child, before = (accuracy(x.config, [arrays_of(x)], test)[0] for x in (m.model, parent))
        learnt.append(child)
        assert child > before + 0.15
        moved = np.linalg.norm(flat_weights(m.model) - flat_weights(parent)) / np.linalg.norm(flat_weights(parent))
        assert 0.1 < moved < 1.2
    # Plain gradient descent at a large rate ends elsewhere on other processors: this tree's such child has .41 to .64,
    # the others .64 and more, whatever the processor (three of them); over six trees the mean is .70 to .84.
    assert min(learnt) > 0.2
    assert np.mean(learnt) > 0.6
    assert len(zoo.tree("vit", 3)) == 21
    assert len(zoo.forest("cnn", 1)) == 95
    assert len({r.parameters["task"] for r in zoo.tree("mlp", 0).values() if r.parents}) == 20


def test_the_truth_of_a_tree(small_tree, tmp_path):
    root, child, grandchild, nephew = (f"mlp-tree-0/{n}" for n in ("root", "1", "1-1", "2-1"))
    assert small_tree.relation(root, child) == small_tree.relation(grandchild, child) == R.FINETUNED
    assert small_tree.relation(root, grandchild) == R.RELATED
    assert small_tree.relation(grandchild, "mlp-tree-0/1-2") == small_tree.relation(child, nephew) == R.SIBLINGS
    assert small_tree.ancestors(grandchild) == (child, root)
    assert len(small_tree.truth["relations"]) == 6
    assert small_tree.truth["hidden_ancestors"] == small_tree.truth["not_related"] == []
    small_tree.write(tmp_path)
    assert json.loads((tmp_path / "truth.json").read_text()) == small_tree.truth
    known = {m.name: m.recipe for m in small_tree.members}
    orphaned = zoo.as_zoo({n: r for n, r in known.items() if n != child}, among=known)
    [hidden] = orphaned.truth["hidden_ancestors"]
    assert hidden["ancestor"] == f"absent: {child}"
    assert hidden["children"] == [grandchild, "mlp-tree-0/1-2"]
    assert orphaned.relation(grandchild, root) == R.RELATED


def test_trees_of_other_seeds_share_nothing(small_tree):
    other = zoo.tree("mlp", 1, (2, 2))
    assert not {r.seed for r in other.values()} & {m.recipe.seed for m in small_tree.members}
    both = zoo.as_zoo({**{m.name: m.recipe for m in small_tree.members}, "stranger": other["mlp-tree-1/root"]})
    assert both.relation("stranger", "mlp-tree-0/root") == R.UNRELATED
    assert zoo.tree("mlp", 1, (2, 2)) == other
    seeds = [r.seed for s in range(3) for r in zoo.forest("mlp", s, 2, (2,)).values()]
    assert len(set(seeds)) == len(seeds)


def test_a_tree_can_have_one_recipe():
    gentle = FinetuningRecipe("gentle", rate=0.5)
    ways = [r.parameters for r in zoo.tree("mlp", 0, (3, 2), tunings=[gentle], tasks=["inverted"]).values()][1:]
    assert {w["task"] for w in ways} == {"inverted"}
    assert {(w["optimizer"], w["rate"], w["steps"]) for w in ways} == {("adam", 5e-4, 160)}
    drawn = {r.parameters.get("optimizer") for r in zoo.tree("mlp", 0).values()}
    assert drawn == {None, *OPTIMIZERS}
    with pytest.raises(UnknownNameError, match="no fine-tuning recipe"):
        zoo.tree("mlp", tunings=["magic"])


@pytest.mark.parametrize("operation", CHILD_OPERATIONS)
def test_a_flat_family_is_made_by_its_operation(operation):
    recipes = zoo.flat("mlp", 4, 2, 6, operation)
    children = {n: r for n, r in recipes.items() if r.parents}
    assert len(recipes) == 14
    assert {r.parents[0].digest for r in children.values()} == {
        r.digest for n, r in recipes.items() if n not in children
    }
    assert len({r.digest for r in children.values()}) == 12
    assert [n for n in recipes if n not in children] == ["mlp-flat-4/root-1", "mlp-flat-4/root-2"]
    roots = [r for r in zoo.flat("mlp", 4, 2, 1, "lora").values() if not r.parents]
    assert [r.digest for r in roots] == [recipes[f"mlp-flat-4/root-{i}"].digest for i in (1, 2)]
    with pytest.raises(UnknownNameError, match="no flat family"):
        zoo.flat("mlp", operation="melt")


def test_children_of_flat_families_are_all_different_and_near_their_root():
    for operation in ("prune", "int8", "int4"):
        recipes = zoo.flat("mlp", 4, 1, 10, operation)
        root, *children = build_all(recipes)
        assert len({m.digest for m in children}) == 10
        for child in children:
            a, b = flat_weights(child), flat_weights(root)
            assert 0 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.8


def test_orphans_have_no_parent_to_be_found():
    recipes = {n: r for s in range(2) for n, r in zoo.flat("mlp", s, 10, 3).items()}
    for siblings in (False, True):
        search = zoo.orphans(recipes, 0.2, 1, siblings=siblings)
        without = [q for q, p in search.parent.items() if p is None]
        assert len(without) == (8 if siblings else 12)
        assert set(search.siblings) == (set(without) if siblings else set())
        digests = {r.digest for r in search.enrolled.values()}
        for name, recipe in search.queries.items():
            assert (recipe.parents[0].digest in digests) == (search.parent[name] is not None)
        assert not set(search.enrolled) & set(search.queries)
    assert None not in zoo.orphans(recipes, 0).parent.values()
    with pytest.raises(MisuseError, match="left-out parents must be"):
        zoo.orphans(recipes, 2)


def test_candidates_that_are_siblings_and_strangers():
    recipes = zoo.sibling_candidates("mlp", 0, 3, 2)
    assert len(recipes) == 1 + 3 + 6
    assert recipes["mlp-siblings-0/2-1"].parents[0].digest == recipes["mlp-siblings-0/2"].digest
    strangers = zoo.decoys("mlp", 0, 5)
    assert len({r.seed for r in strangers.values()}) == 5
    assert {r.operation for r in strangers.values()} == {"train"}


# Cases


@pytest.mark.parametrize("kind", KINDS)
def test_every_relation_has_cases_and_the_zoo_agrees_with_them(kind):
    cases = zoo.relations(kind, 1)
    counts = collections.Counter(c.relation for c in cases)
    assert set(counts) == set(R)
    assert min(counts.values()) >= 3
    assert len({c.name for c in cases}) == len(cases)
    recipes = {r.digest: r for c in cases for r in (c.a, c.b)}
    history = {d: tuple(p.digest for p in r.parents) for d, r in recipes.items()}
    members = tuple(zoo.Member(d, None, r, tuple(p.digest for p in experts(r)), r.relation) for d, r in recipes.items())
    truth = zoo.Zoo(members, history)
    for c in cases:
        got = truth.relation(c.a.digest, c.b.digest)
        assert got == c.relation, c.name
        assert bool(c.steps) == (c.relation in c.steps)


def test_histories_of_two_steps():
    found = {c.name.split("/")[1]: c for c in zoo.histories("mlp", 1)}
    assert found["lora-int8"].steps == (R.LORA, R.QUANTIZED)
    assert found["lora-int8"].a.operation == "train"
    assert found["merged-finetuned"].steps == (R.MERGED, R.FINETUNED)
    assert found["merged-finetuned"].a.operation == "finetune"
    for case in found.values():
        assert any(case.a.digest in {p.digest for p in middle.parents} for middle in case.b.parents)


@pytest.mark.slow
def test_the_cases_of_a_root_can_be_made_and_are_what_they_say():
    cases = zoo.relations("mlp", 1) + zoo.histories("mlp", 1)
    models = build_all([r for c in cases for r in (c.a, c.b)])
    pairs = dict(zip((c.name.split("/")[1] for c in cases), zip(models[::2], models[1::2], strict=True), strict=True))
    for rank in (1, 2, 4, 8):
        a, b = pairs[f"lora-{rank}"]
        values = np.linalg.svd(weights(b) - weights(a), compute_uv=False)
        assert (values > 1e-4 * values[0]).sum() == rank
    a, b = pairs["pruned-finetuned"]
    assert abs((weights(b) == 0).mean() - 0.5) < 0.02
    for name, (a, b) in pairs.items():
        assert (a.digest == b.digest) == name.startswith("copy"), name


@pytest.mark.anywhere  # other processors: `test_transformers_learn_too`
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "children"), [("cnn", 6), ("vit", 2)])
def test_children_of_larger_networks_learn_too(kind, children):
    found = zoo.as_zoo(zoo.tree(kind, 0, (children,)))
    for m in found.members[1:]:
        test = data.examples_for(m.recipe, "test")
        child, before = (accuracy(x.config, [arrays_of(x)], test)[0] for x in (m.model, found.members[0].model))
        assert child > before + 0.2, m.recipe.parameters


def test_lessons_of_no_steps_leave_the_start():
    config = KINDS["mlp"].config
    start = initial(config, 0)
    [[before, after]] = run_jobs([TrainingJob(config, start, data.examples("mlp", "a"), 1, 0, 8, 1e-3, keep=(0,))])
    for name, array in start.items():
        np.testing.assert_array_equal(before[name], array)
        np.testing.assert_array_equal(after[name], array)
    assert {*datasets.IMAGES} == {"mnist8", "fashion8"}
    assert {*FINETUNING_RECIPES} == {"adam", "adam-long", "adam-decayed", "adamw", "momentum", "sgd"}


# By name


def test_lineages_by_name():
    assert lineages.recipes_by_name("tree:mlp:branching=2x1", 3) == zoo.tree("mlp", 3, (2, 1))
    options = "roots=2,children=3,operation=lora,data=mnist8,init=xavier"
    expected = zoo.flat("cnn", 0, 2, 3, "lora", data="mnist8", init="xavier")
    assert lineages.recipes_by_name(f"flat:cnn:{options}") == expected
    assert lineages.recipes_by_name("forest:vit:roots=2,branching=1,tunings=sgd+adamw,data=digits+mnist8")
    assert len(lineages.recipes_by_name("relations:lm")) > 70
    assert lineages.recipes_by_name("mixed:mlp:children=5,deeper=0.5", 3) == zoo.mixed("mlp", 3, 5, deeper=0.5)
    assert {r.parameters.get("data") for r in zoo.flat("mlp", 0, 2, 8, "few-shot", data="mnist8").values()} == {
        "mnist8"
    }
    few = lineages.recipes_by_name("flat:mlp:roots=1,children=2,operation=few-shot,shots=20")
    assert few == zoo.flat("mlp", 0, 1, 2, "few-shot", shots=20) != zoo.flat("mlp", 0, 1, 2, "few-shot")
    assert {r.parameters["shots"] for r in few.values() if r.parents} == {20}
    for wrong, message in (
        ("bush:mlp", "no lineage"),
        ("tree:gpt", "no kind"),
        ("tree", "no kind"),
        ("tree:mlp:depth=3", "cannot be read"),
        ("tree:mlp:branching=many", "cannot be read"),
        ("tree:mlp:roots=3", "does not take 'roots'"),
    ):
        with pytest.raises((MisuseError, UnknownNameError), match=message):
            lineages.recipes_by_name(wrong)


def test_a_mixed_family_holds_all_operations_and_nothing_comes_from_a_quantised_copy():
    plan = zoo.mixed("mlp", 1, 60)
    root, *others = plan.values()
    operations = {n.split("/")[1].split("-", 1)[1] for n in list(plan)[1:]}
    assert operations == set(CHILD_OPERATIONS)
    made_from = {p.digest for r in others for p in r.parents}
    deeper = [r for r in others if r.parents[0].digest != root.digest]
    assert 0.1 < len(deeper) / len(others) < 0.5
    assert not any(r.digest in made_from for r in others if r.operation == "quantize")
    assert not any(
        r.parents[0].digest != root.digest for r in zoo.mixed("mlp", 1, 60, deeper=0.0).values() if r.parents
    )
    assert all("shots" not in r.parameters for r in zoo.mixed("lm", 1, 60).values())


def test_the_command_builds_a_lineage(tmp_path, capsys):
    from stemma.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as done:
            main([str(w) for w in words])
        return done.value.code, capsys.readouterr().out

    code, out = run(
        "zoo", "build", "tree:mlp:branching=2x2", "--out", tmp_path / "z", "--only", "root", "--only", "2-1", "--json"
    )
    assert code == 0
    assert [m["name"] for m in json.loads(out)["members"]] == ["mlp-tree-0/root", "mlp-tree-0/2-1"]
    truth = json.loads((tmp_path / "z" / "truth.json").read_text())
    assert truth["ancestors"]["mlp-tree-0/2-1"] == ["mlp-tree-0/2", "mlp-tree-0/root"]
    assert (tmp_path / "z" / "mlp-tree-0" / "2-1" / "model.safetensors").exists()
    shown = json.loads(run("zoo", "show", "tree:mlp:branching=2x2", "--json")[1])["members"]
    assert [m["parents"] for m in shown[:4]] == [[], ["mlp-tree-0/root"], ["mlp-tree-0/root"], ["mlp-tree-0/1"]]
    assert "tree:lm" in json.loads(run("zoo", "list", "--json")[1])["lineages"]
    assert run("zoo", "build", "tree:mlp", "--out", tmp_path / "y", "--only", "9-9")[0] == 1


# Recipes that say nothing that could be done


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("mlp", "finetune"), "at least 1"),
        (Recipe("mlp", "train", parents=(trained(),)), "no parents"),
        (Recipe("mlp", "merge", parents=(trained(),)), "at least 2"),
        (Recipe("mlp", "rotate", parents=(trained(),)), "works on lm"),
        (Recipe("mlp", "unlearn", parents=(trained(),)), "'forget'"),
        (Recipe("mlp", "prune-units", parents=(trained(),), parameters={"ratio": 1.0}), "from 0 to below 1"),
        (trained(quarter=5), "at most 4"),
        (trained(batch=0), "1 or more"),
        (trained(untrained=True), "takes no steps"),
        (tuned(Recipe("mlp", "rename", parents=(trained(),))), "renamed"),
        (tuned(tuned(trained(), 1, "replace-head"), 2, task="shuffled:1"), "2 classes cannot learn 'shuffled:1'"),
        (trained(rate=1e30, optimizer="sgd", init="normal"), "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.operation,
)
def test_a_recipe_that_makes_no_sense_is_one_clear_error(recipe, message):
    with pytest.raises(MisuseError, match=message):
        build(recipe, keep=False)


def test_a_replaced_head_can_be_trained_on():
    parity = tuned(trained(), 1, "replace-head", R.HEAD_REPLACED, steps=60)
    on = build(tuned(parity, 2, steps=20))
    test = data.examples("mlp", "test", "parity")
    assert accuracy(on.config, [arrays_of(on)], test)[0] > 0.75
