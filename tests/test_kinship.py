"""Kinship in weights on networks whose history is known; every positive has its control."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import kstest

from plain_networks import llama, made
from stemma import zoo
from stemma.architectures.unit_groups import permute, structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import features, matrices
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.kinship.compare import compare
from stemma.kinship.weights.contents.sketched import SketchedUnitsAlike
from stemma.kinship.weights.correspondence import by_name, candidates
from stemma.kinship.weights.order.units_in_place import UnitsInPlace
from stemma.kinship.weights.units_matched import UnitsMatched
from stemma.networks.load import from_arrays
from stemma.types import RelationKind
from strangers import perceptrons

EXACT = {RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED}


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {n: t.array().copy() for n, t in model.tensors.items()}


def anonymous(content: Mapping[str, np.ndarray], seed: int, *, transpose: bool = False) -> Model:
    code = np.random.default_rng(seed).permutation(len(content))
    renamed = {
        f"t{c:03d}": np.ascontiguousarray(x.T) if transpose else x for c, x in zip(code, content.values(), strict=True)
    }
    return from_arrays(renamed, "anonymous")


@pytest.fixture(scope="module")
def pool() -> dict[str, list[Model]]:
    return {"mlp": perceptrons(30), "cnn": zoo.independents("cnn", 20, seed=4)}


@pytest.fixture(scope="module")
def families() -> dict[str, zoo.Zoo]:
    both = ("root", "finetuned", "finetuned-twice", "lora", "merged-two", "weights-pruned", "weights-pruned-finetuned",
            "units-pruned", "units-pruned-finetuned", "int8", "int4", "transposed", "permuted", "rescaled",
            "independent-1", "independent-2", "untrained")  # fmt: skip
    cnns = ("copy", "renamed", "half", "norms-folded", "layers-pruned", "part-inherited")
    return {"mlp": zoo.family("mlp", only=both), "cnn": zoo.family("cnn", only=(*both, *cnns))}


@pytest.mark.parametrize("kind", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_p_values_of_independent_trainings_are_uniform(pool: dict[str, list[Model]], kind: str) -> None:
    models, method = pool[kind], UnitsInPlace()
    known, generator, p = structure(models[0]), np.random.default_rng(0), []
    for i, a in enumerate(models):
        for b in models[:i]:
            p.append(method.count(a, b, by_name(a, b), known).randomised_p(generator.random()))
    assert len(p) == {"mlp": 435, "cnn": 190}[kind]
    assert kstest(p, "uniform").pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_independent_trainings_are_independent_and_descendants_are_not(
    families: dict[str, zoo.Zoo], pool: dict[str, list[Model]], kind: str
) -> None:
    family = families[kind]
    root = family[f"{kind}/root"].model
    for stranger in (*pool[kind][:8], family[f"{kind}/untrained"].model):
        assert compare(root, stranger).verdict == "independent"
    for name in ("finetuned-twice", "lora", "merged-two", "weights-pruned-finetuned", "units-pruned-finetuned", "int4"):
        found = compare(root, family[f"{kind}/{name}"].model)
        assert found.verdict == "related", name
        assert found.weights.log10_p is not None
        assert found.weights.log10_p < -6, name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("copy", RelationKind.COPY),
        ("renamed", RelationKind.REFORMATTED),
        ("half", RelationKind.REFORMATTED),
        ("transposed", RelationKind.REFORMATTED),
        ("norms-folded", RelationKind.REFORMATTED),
        ("permuted", RelationKind.PERMUTED),
        ("rescaled", RelationKind.PERMUTED),
        ("int8", RelationKind.QUANTIZED),
        ("int4", RelationKind.QUANTIZED),
        ("weights-pruned", RelationKind.PRUNED),
        ("layers-pruned", RelationKind.PRUNED),
        ("part-inherited", RelationKind.PART_INHERITED),
        ("finetuned", RelationKind.FINETUNED),
    ],
)
@pytest.mark.first(1)
def test_relations_that_leave_a_trace_are_named(families: dict[str, zoo.Zoo], name: str, kind: RelationKind) -> None:
    family = families["cnn"]
    found = compare(family["cnn/root"].model, family[f"cnn/{name}"].model)
    assert found.relation.kind is kind
    assert found.verdict == "related"


def test_what_is_inherited_is_told_apart_from_what_is_new(families: dict[str, zoo.Zoo]) -> None:
    family = families["cnn"]
    found = compare(family["cnn/root"].model, family["cnn/part-inherited"].model)
    inherited, new = found.relation.parameters["inherited"], found.relation.parameters["new"]
    assert "stream@-1" in inherited
    assert new
    assert not set(inherited) & set(new)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_renamed_transposed_and_halved_is_found_by_content(pool: dict[str, list[Model]], kind: str) -> None:
    a, other = pool[kind][:2]
    moved = {n: (x * 1.0).astype(np.float16) if x.dtype.kind == "f" else x for n, x in arrays(a).items()}
    found = compare(a, anonymous(moved, 1, transpose=True))
    assert found.relation.kind in EXACT
    assert found.weights.effect == pytest.approx(1)
    assert compare(a, anonymous(arrays(other), 1, transpose=True)).verdict == "independent"


def test_nothing_that_chooses_tensors_sees_the_order_of_units(pool: dict[str, list[Model]]) -> None:
    a, generator = pool["cnn"][0], np.random.default_rng(5)
    known = structure(a)
    orders = {g.name: generator.permutation(g.size) for g in known.groups}
    b = from_arrays(permute(arrays(a), known, orders), "permuted")
    for name in ("stem.conv.weight", "blocks.0.conv2.weight", "head.weight"):
        x, y = features(a.weights[name]), features(b.weights[name])
        assert all(np.allclose(p, q, rtol=1e-6) for p, q in zip(x.profiles, y.profiles, strict=True))
        assert np.allclose(x.scalars, y.scalars, atol=1e-6)


def test_accidental_names_are_not_believed(pool: dict[str, list[Model]]) -> None:
    content = arrays(pool["cnn"][0])
    a, b = anonymous(content, 1), anonymous(content, 2)
    how, pairs = candidates(a, b, contents=True)[0]
    assert how == "contents"
    assert all(np.array_equal(a.weights[p.a].array(), b.weights[p.b].array()) for p in pairs)
    how, _ = candidates(a, a, contents=True)[0]
    assert how == "names"


def test_zeroed_layers_fake_nothing(pool: dict[str, list[Model]]) -> None:
    a, b = arrays(pool["cnn"][0]), arrays(pool["cnn"][1])
    for side in (a, b):
        for name in ("blocks.0.conv1.weight", "blocks.1.conv1.weight", "blocks.2.conv1.weight"):
            side[name][:] = 0
    x, y = from_arrays(a, "a"), from_arrays(b, "b")
    assert compare(x, y).verdict != "related"
    half = {n: v * np.float32(1.01) if n.startswith("stem") else v for n, v in a.items()}
    assert compare(x, from_arrays(half, "c")).verdict == "related"


@pytest.mark.parametrize("kind", ["mlp", "cnn", *(pytest.param(k, marks=pytest.mark.slow) for k in ("vit", "lm"))])
@pytest.mark.first(1)
def test_disguised_clones_are_exhibited_and_altered_ones_are_not(kind: str) -> None:
    a = zoo.independents(kind, 2, seed=4, steps=60)[0]
    for seed in range(4):
        b, steps = zoo.disguise(a, seed)
        found = compare(a, b)
        assert found.relation.kind in EXACT, [s.name for s in steps]
        assert found.weights.effect == pytest.approx(1, abs=1e-3)
    altered = arrays(b)
    largest = max(altered, key=lambda n: altered[n].size)
    altered[largest] = (altered[largest].astype(np.float32) * 1.0).copy()
    altered[largest][: len(altered[largest]) // 2] *= np.random.default_rng(0).normal(
        1, 0.5, altered[largest][: len(altered[largest]) // 2].shape
    )
    assert compare(a, from_arrays(altered, "altered")).relation.kind not in EXACT


@pytest.mark.slow
def test_independent_networks_have_no_exact_map(pool: dict[str, list[Model]]) -> None:
    for kind in ("mlp", "cnn"):
        for a, b in zip(pool[kind][:10], pool[kind][10:20], strict=True):
            found = UnitsMatched().search(a, b, candidates(a, b, contents=True))
            assert found is not None
            assert not found.exact
            assert found.evidence.verdict != "supported"


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_order_of_the_models(families: dict[str, zoo.Zoo]) -> None:
    family = families["cnn"]
    root = family["cnn/root"].model
    for name in ("finetuned", "permuted", "int8", "units-pruned", "independent-1", "part-inherited"):
        other = family[f"cnn/{name}"].model
        assert compare(root, other).verdict == compare(other, root).verdict, name


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_sketches_find_clones_and_prove_kinship(families: dict[str, zoo.Zoo], kind: str) -> None:
    sketch, family = WeightSketch(), families[kind]

    def taken(name: str) -> object:
        return sketch(family[f"{kind}/{name}"].model)

    def apart(x: object, y: object, half: slice) -> float:
        bits = [np.unpackbits(f.values["bits"])[half] for f in (x, y)]  # type: ignore[attr-defined]
        return float(np.mean(bits[0] != bits[1]))

    root, ordered, free = taken("root"), slice(0, 1024), slice(1536, 2048)
    assert sum(np.asarray(v).nbytes for v in root.values.values()) <= 32 * 1024  # type: ignore[attr-defined]
    assert apart(root, taken("finetuned"), ordered) < 0.2 < 0.4 < apart(root, taken("independent-1"), ordered)
    assert apart(root, taken("transposed"), ordered) < 0.05  # measured: .001 to .016
    for clone in ("permuted", "rescaled"):
        assert apart(root, taken(clone), free) < 0.1 < 0.4 < apart(root, taken("independent-2"), free)
    test, known = SketchedUnitsAlike(), family[f"{kind}/root"].model
    assert test.evidence(root, taken("finetuned"), known).verdict == "supported"  # type: ignore[arg-type]
    for stranger in ("independent-1", "independent-2", "untrained"):
        assert test.evidence(root, taken(stranger), known).verdict != "supported"  # type: ignore[arg-type]


def test_a_tied_tensor_that_is_stored_twice_does_not_confuse_what_is_remembered() -> None:
    arrays, config = llama(3)
    once = {n: x for n, x in arrays.items() if n != "lm_head.weight"}
    twice = {**once, "lm_head.weight": once["model.embed_tokens.weight"]}
    one, two = made(once, config, "once"), made(twice, config, "twice")
    assert one.digest == two.digest
    other = made(llama(4)[0], config, "other")
    for first, second in ((one, two), (two, one)):
        for model in (first, second):
            pairs = candidates(model, other, contents=True)[0][1]
            assert {p.a for p in pairs} <= matrices(model).keys()
