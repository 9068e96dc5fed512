"""What is said of models that were changed in ways no relation is named after: never more than is true."""

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from stemma.checkpoints.model import Model
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.kinship.axes import FORGOTTEN, both_axes
from stemma.kinship.compare import compare
from stemma.kinship.explain import explain
from stemma.networks.load import from_arrays
from stemma.types import Comparison, Verdict
from stemma.types import RelationKind as R
from stemma.zoo.evaluation_pairs import models
from stemma.zoo.recipe_builder import build_all

WIDTH = 64
LAYERS = ("layers.0", "layers.1", "layers.2", "head")
Arrays = dict[str, np.ndarray]


def base(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    sizes = dict(zip(LAYERS, ((WIDTH, 40), (WIDTH, WIDTH), (WIDTH, WIDTH), (10, WIDTH)), strict=True))
    weights = {f"{n}.weight": rng.normal(size=s).astype(np.float32) / 8 for n, s in sizes.items()}
    return weights | {f"{n}.bias": rng.normal(size=s[0]).astype(np.float32) / 8 for n, s in sizes.items()}


def told(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[R, list[str]]:
    """The name of the relation, which must not depend on who is asked, and the steps."""
    one, other = from_arrays(a, "a"), from_arrays(b, "b")
    found = explain(one, other)
    assert compare(one, other).relation.kind is found.kind
    return found.kind, [s.name for s in found.steps]


def permuted(a: Arrays, *, biases: bool = True) -> Arrays:
    rng, out = np.random.default_rng(5), dict(a)
    for x, y in itertools.pairwise(LAYERS):
        order = rng.permutation(WIDTH)
        out[f"{x}.weight"] = out[f"{x}.weight"][order]
        out[f"{x}.bias"] = out[f"{x}.bias"][order] if biases else out[f"{x}.bias"]
        out[f"{y}.weight"] = out[f"{y}.weight"][:, order]
    return out


def rescaled(a: Arrays, *, biases: bool = True, back: bool = True) -> Arrays:
    rng, out = np.random.default_rng(6), {n: x.astype(np.float64) for n, x in a.items()}
    for x, y in itertools.pairwise(LAYERS):
        factor = np.exp(rng.normal(size=WIDTH) / 2)
        out[f"{x}.weight"] *= factor[:, None]
        out[f"{x}.bias"] *= factor if biases else 1
        out[f"{y}.weight"] /= factor if back else 1
    return {n: x.astype(np.float32) for n, x in out.items()}


def noisy(a: Mapping[str, np.ndarray], amount: float) -> Arrays:
    rng = np.random.default_rng(7)
    return {n: (x * (1 + amount * rng.normal(size=x.shape))).astype(np.float32) for n, x in a.items()}


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_a_trip_through_half_precision_is_a_format_and_noise_of_its_size_is_not() -> None:
    a = base()
    half = {n: x.astype(np.float16).astype(np.float32) for n, x in a.items()}
    brain = {n: as_bfloat16(x) for n, x in a.items()}
    assert told(a, half) == told(a, brain) == (R.REFORMATTED, ["reformatted"])
    for child, format_ in ((half, "float16"), (brain, "bfloat16")):
        found = explain(from_arrays(a, "a"), from_arrays(child, "b"))
        assert found.steps[0].parameters["rounded_to"] == ["", format_]
        assert f"the child was rounded to {format_} and stored in a wider format" in found.sentence
    near = {n: as_bfloat16(x) for n, x in noisy(a, 2.0**-9).items()}
    assert told(a, near)[0] is R.RELATED
    assert told(a, noisy(a, 2.0**-12))[0] is R.RELATED
    assert told(a, noisy(a, 2.0**-9))[0] is R.RELATED


def test_zeroed_biases_are_pruned_and_nothing_else() -> None:
    a = base()
    empty = {n: x * 0 if x.ndim == 1 else x for n, x in a.items()}
    one = a | {"layers.1.bias": a["layers.1.bias"] * 0}
    assert told(a, empty) == told(a, one) == (R.PRUNED, ["weights pruned"])
    assert told(a, permuted(a))[0] is R.PERMUTED
    assert told(empty, dict(empty))[0] is R.COPY
    tuned = {n: x + np.float32(0.01) if x.ndim == 1 else x for n, x in a.items()}
    assert told(a, tuned) == (R.FINETUNED, ["finetuned"])


@pytest.mark.parametrize("factor", [2.0, 1.1, -0.5, -1.0, 1e-20, 1e20])
def test_multiples_are_named_with_their_factor_and_are_no_change_of_coordinates(factor: float) -> None:
    a = base()
    one, other = from_arrays(a, "a"), from_arrays({n: x * np.float32(factor) for n, x in a.items()}, "b")
    found = explain(one, other)
    assert (found.kind, [s.name for s in found.steps]) == (R.RELATED, ["scaled"])
    assert found.steps[0].parameters["factor"] == pytest.approx(factor, rel=1e-5)
    assert set(found.steps[0].parameters["factors"]) == set(a)
    assert compare(one, other).relation.kind is R.RELATED
    assert compare(one, from_arrays({n: x * np.float32(factor) for n, x in base(3).items()}, "c")).verdict != "related"


def test_only_factors_that_cancel_are_a_change_of_coordinates() -> None:
    a = base()
    assert told(a, rescaled(a)) == (R.PERMUTED, ["units rescaled"])
    assert told(a, rescaled(permuted(a)))[0] is R.PERMUTED
    one = a | {"layers.1.weight": a["layers.1.weight"] * np.float32(3)}
    assert told(a, one) == (R.RELATED, ["scaled"])
    rows = np.exp(np.random.default_rng(2).normal(size=(WIDTH, 1)) / 2)
    for child in (
        rescaled(a, biases=False),
        rescaled(a, back=False),
        a | {"layers.1.weight": (a["layers.1.weight"] * rows).astype(np.float32)},
    ):
        assert told(a, child)[0] is R.RELATED


def test_clipped_models_and_differences_are_told_no_story() -> None:
    a = base()
    clipped = {n: np.clip(x, -0.2, 0.2) for n, x in a.items()}
    assert told(a, clipped)[0] is R.RELATED
    apart = {n: x - a[n] for n, x in noisy(a, 0.1).items()}
    assert told(a, apart)[0] in (R.RELATED, R.UNRELATED)


def test_entries_that_are_no_numbers_are_mentioned_and_taken_for_nothing_else() -> None:
    a = base()
    holes = {n: np.where(np.arange(x.size).reshape(x.shape) % 97 == 5, np.nan, x) for n, x in a.items()}
    infinite = a | {"layers.1.bias": np.where(np.arange(WIDTH) == 3, np.inf, a["layers.1.bias"])}
    infinite["layers.1.bias"] = infinite["layers.1.bias"].astype(np.float32)
    for child, count in ((holes, sum((np.arange(x.size) % 97 == 5).sum() for x in a.values())), (infinite, 1)):
        found = explain(from_arrays(a, "a"), from_arrays({n: x.astype(np.float32) for n, x in child.items()}, "b"))
        assert (found.kind, [s.name for s in found.steps]) == (R.RELATED, ["damaged"])
        assert f"{count:,} of the child" in found.sentence
        assert sum(after for _, after in found.steps[0].parameters["not_finite"].values()) == count
    pruned = {n: np.where(np.abs(x) < 0.05, 0, x) if x.ndim > 1 else x for n, x in a.items()}
    assert told(a, pruned) == (R.PRUNED, ["weights pruned"])
    pruned["head.weight"][0, 0] = np.nan
    assert told(a, pruned) == (R.PRUNED, ["weights pruned", "damaged"])


def test_a_sketch_does_not_depend_on_the_scale_of_the_weights() -> None:
    a = base()

    def sketch(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        model: Model = from_arrays(arrays, "m")
        return WeightSketch()(model).values

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large = sketch({n: x * np.float32(2.0**100) for n, x in a.items()})
        vast = sketch({n: x.astype(np.float64) * 2.0**1000 for n, x in a.items()})
    plain, other = sketch(a), sketch(base(1))
    for found in (large, vast):
        assert np.array_equal(plain["units"], found["units"])
    assert not np.array_equal(plain["units"], other["units"])


@pytest.mark.slow
def test_descendants_are_not_called_siblings_while_siblings_are() -> None:
    lines = (("finetuned-other-data", "finetuned-twice"), ("finetuned-task", "finetuned-twice-other-task"),
             ("root", "finetuned-twice"), ("root", "finetuned-twice-other-task"), ("root", "cousin"))  # fmt: skip
    apart = (("finetuned-same-data", "finetuned-other-data"), ("finetuned-task", "finetuned-decayed"),
             ("finetuned-sgd", "finetuned-long"))  # fmt: skip
    said: tuple[list[R], list[R]] = ([], [])
    for seed in (41, 42, 43):
        known = {n.rsplit("/", 1)[1]: r for n, r in models("mlp", seed).items()}
        wanted = {n: known[n] for pair in (*lines, *apart) for n in pair}
        built = dict(zip(wanted, build_all(list(wanted.values())), strict=True))
        for out, pairs in zip(said, (lines, apart), strict=True):
            out += [compare(built[a], built[b]).relation.kind for a, b in pairs]
    assert said[0].count(R.SIBLINGS) == 0
    assert said[0].count(R.FINETUNED) >= 12
    assert said[1].count(R.SIBLINGS) >= 4
    assert said[1].count(R.FINETUNED) <= 2  # of nine; measured: one, on six kinds of processor


def test_networks_unlike_those_that_were_measured_are_told_no_story_and_why() -> None:
    a = base()
    found = explain(from_arrays(a, "a"), from_arrays(noisy(a, 0.01), "b"))
    assert found.kind is R.RELATED
    assert "unlike all networks" in found.sentence


def test_a_class_that_only_the_later_model_answers_may_have_been_learnt() -> None:
    a = base()
    rng = np.random.default_rng(3)
    b = {n: (x + 0.02 * rng.normal(size=x.shape)).astype(np.float32) for n, x in a.items()}
    found = compare(from_arrays(a, "a"), from_arrays(b, "b"))
    gone = {"label": 3, "by": "a", "before": 0.9, "after": 0.0, "others_before": 0.9, "others_after": 0.9}
    asked = replace(found.weights, axis="function", verdict=Verdict.INCONCLUSIVE, details={FORGOTTEN: gone})

    def named(direction: str, kept: tuple[str, ...] = ()) -> Comparison:
        relation = replace(found.relation, parameters={**found.relation.parameters, "frozen": list(kept)})
        return both_axes(replace(found, direction=direction, relation=relation), asked)

    learnt = named("a->b")
    assert learnt.relation.kind is found.relation.kind
    assert "only b recognises class 3 of the probes (accuracy 90%, the other 0%" in learnt.relation.reason
    assert "either b is the later model and learnt it" in learnt.relation.reason
    assert learnt.direction == "unknown"
    assert learnt.direction_confidence is None
    forgot = named("b->a")
    assert forgot.relation.kind is R.UNLEARNED
    assert forgot.relation.parameters["made_from"] == "b"
    either = named("unknown")
    assert either.relation.kind is R.UNLEARNED
    assert "made_from" not in either.relation.parameters
    assert either.direction == "unknown"
    assert "or it was learnt" in either.relation.reason
    edited = named("unknown", ("layers.0.weight",))
    assert edited.relation.parameters["made_from"] == "b"
    assert edited.direction == "b->a"
