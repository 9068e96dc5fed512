"""What was done between two models, on models where it is known because the test did it; every mark has its control."""

from collections.abc import Mapping

import numpy as np
import pytest

from stemma.checkpoints.model import Model
from stemma.kinship.compare import compare
from stemma.kinship.explain import explain
from stemma.kinship.relation import ALL, EXACT, name_relation, pair_tensors
from stemma.kinship.relation.geometry import KINDS, calibration, probabilities
from stemma.kinship.relation.grids import grid_of
from stemma.kinship.relation.lora import LowRank
from stemma.kinship.relation.name_relation import simplest_explanation
from stemma.kinship.relation.operation_search import candidate_explanations
from stemma.kinship.relation.pair import Pair
from stemma.kinship.relation.pruned import mask_of
from stemma.kinship.relation.tensor_difference import tensor_difference
from stemma.kinship.relation.unlearned import Forgetting
from stemma.kinship.weights.correspondence import by_name
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import RelationKind as R

WIDTH = 64
Arrays = dict[str, np.ndarray]


def base(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"layers.0": (WIDTH, 40), "layers.1": (WIDTH, WIDTH), "layers.2": (WIDTH, WIDTH), "head": (10, WIDTH)}
    weights = {f"{n}.weight": rng.normal(size=s).astype(np.float32) / 8 for n, s in shapes.items()}
    return weights | {f"{n}.bias": rng.normal(size=s[0]).astype(np.float32) / 8 for n, s in shapes.items()}


def is_matrix(name: str) -> bool:
    return name.endswith("weight")


def tuned(arrays: Mapping[str, np.ndarray], seed: int, amount: float = 0.1) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: (a + amount * a.std() * rng.normal(size=a.shape)).astype(np.float32) for n, a in arrays.items()}


def adapted(arrays: Mapping[str, np.ndarray], rank: int, seed: int, names: tuple[str, ...] | None = None) -> Arrays:
    rng, out = np.random.default_rng(seed), dict(arrays)
    for n, a in arrays.items():
        if is_matrix(n) and (names is None or n in names):
            change = rng.normal(size=(len(a), rank)) @ rng.normal(size=(rank, a.shape[1]))
            out[n] = (a + 0.02 * change / np.sqrt(rank)).astype(np.float32)
    return out


def rounded(arrays: Mapping[str, np.ndarray], bits: int, block: int = 0, *, symmetric: bool = True) -> Arrays:
    out = dict(arrays)
    for n, a in arrays.items():
        if not is_matrix(n):
            continue
        groups = a.reshape(-1, block) if block else a
        if symmetric:
            step = np.abs(groups).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
            out[n] = (np.round(groups / step) * step).reshape(a.shape).astype(np.float32)
        else:
            low, high = np.minimum(groups.min(1, keepdims=True), 0), np.maximum(groups.max(1, keepdims=True), 0)
            step = (high - low) / (2**bits - 1)
            zero = np.round(-low / step)
            codes = np.clip(np.round(groups / step) + zero, 0, 2**bits - 1)
            out[n] = ((codes - zero) * step).reshape(a.shape).astype(np.float32)
    return out


def zeroed(arrays: Mapping[str, np.ndarray], ratio: float, *, seed: int | None = None) -> Arrays:
    rng, out = np.random.default_rng(seed), dict(arrays)
    for n, a in arrays.items():
        if is_matrix(n):
            score = np.abs(a) if seed is None else rng.random(a.shape)
            out[n] = np.where(score < np.quantile(score, ratio), 0, a).astype(np.float32)
    return out


def halved(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {n: a.astype(np.float16) for n, a in arrays.items()}


def made(arrays: Mapping[str, np.ndarray], name: str = "child") -> Model:
    return from_arrays(arrays, name)


def pair(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Pair:
    one, other = made(a, "parent"), made(b)
    return Pair.of(one, other, by_name(one, other), all_entries=True)


def steps(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    found = simplest_explanation(pair(a, b), ALL)
    return [] if found is None else [s.name for s in found.steps]


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_and_modules_of_an_adapter_are_recovered(rank: int) -> None:
    a = base()
    only = ("layers.1.weight", "layers.2.weight")
    found = simplest_explanation(pair(a, adapted(a, rank, 1, only)), ALL)
    assert found is not None
    assert (found.kind, found.steps[0].parameters["rank"]) == (R.LORA, rank)
    assert found.steps[0].parameters["modules"] == list(only)
    assert found.fitted == 1
    # The controls: the same with a bias that moved, and a change of full rank.
    moved = adapted(a, rank, 1, only)
    moved["head.bias"] = moved["head.bias"] + np.float32(0.1)
    assert steps(a, moved) == ["changed"]
    assert R.LORA not in {s.kind for x in candidate_explanations(pair(a, tuned(a, 1)), ALL) for s in x.steps}


def test_an_adapter_shows_through_half_precision() -> None:
    a = base()
    found = simplest_explanation(pair(a, halved(adapted(a, 2, 3))), ALL)
    assert found is not None
    assert (found.kind, found.steps[0].parameters["rank"]) == (R.LORA, 2)
    assert simplest_explanation(pair(a, halved(a)), ALL).kind is R.REFORMATTED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("bits", "block", "symmetric", "per"),
    [(8, 0, True, "row"), (8, 0, False, "row"), (4, 16, True, "block of 16"), (4, 0, True, "row"), (3, 32, True, "x"),
     (2, 16, True, "x"), (2, 0, True, "row")],
)  # fmt: skip
def test_the_grid_of_a_quantised_model_is_read_off(bits: int, block: int, symmetric: bool, per: str) -> None:
    a = base() | {"layers.0.weight": base(3)["layers.1.weight"][:, :32]}
    found = simplest_explanation(pair(a, rounded(a, bits, block, symmetric=symmetric)), ALL)
    assert found is not None
    assert [s.name for s in found.steps] == ["quantized"]
    step = found.steps[0].parameters
    assert step["bits"] == bits
    if bits > 3:
        assert step["symmetric"] is symmetric
        assert step["per"] == per or (block and step["per"].startswith("block"))


def test_numbers_without_a_grid_show_none() -> None:
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (16, 8), (4, 4), (200, 3), (10, 48)):
        for _ in range(20):
            values = rng.normal(size=shape).astype(np.float32)
            assert grid_of(values, 2.0**-24) is None
            assert grid_of(values.astype(np.float16).astype(np.float32), 2.0**-11) is None
    assert grid_of(np.zeros((8, 8), np.float32), 2.0**-24) is None
    assert grid_of(np.full((8, 8), 0.3, np.float32), 2.0**-24) is None


@pytest.mark.parametrize(("seed", "pattern"), [(None, "magnitude"), (5, "random")])
def test_how_weights_were_pruned_is_told(seed: int | None, pattern: str) -> None:
    a = base()
    found = simplest_explanation(pair(a, zeroed(a, 0.4, seed=seed)), ALL)
    assert found is not None
    assert [s.name for s in found.steps] == ["weights pruned"]
    assert found.steps[0].parameters["pattern"] == [pattern]
    assert found.steps[0].parameters["ratio"] == pytest.approx(0.4, abs=0.01)
    assert found.residual == 0


def test_two_of_four_and_whole_rows_are_told() -> None:
    a, blocks, rows = base(), dict(base()), dict(base())
    blocks["layers.1.weight"] = a["layers.1.weight"].copy()
    small = np.argsort(np.abs(blocks["layers.1.weight"].reshape(-1, 4)), axis=1)[:, :2]
    np.put_along_axis(blocks["layers.1.weight"].reshape(-1, 4), small, 0, axis=1)
    rows["layers.1.weight"] = a["layers.1.weight"] * (np.arange(WIDTH) % 4 > 0)[:, None]
    for child, pattern in ((blocks, "2:4"), (rows, "rows")):
        layer = next(m for m in pair(a, child).matrices if m.b == "layers.1.weight")
        assert mask_of(layer, 0.002).pattern == pattern


def test_sequences_are_told_in_order() -> None:
    a = base()
    mask = {n: x != 0 for n, x in zeroed(a, 0.5).items()}
    again = {n: x * mask[n] if is_matrix(n) else x for n, x in tuned(zeroed(a, 0.5), 2).items()}
    assert steps(a, again) == ["weights pruned", "finetuned"]
    assert steps(a, zeroed(tuned(a, 2, 0.3), 0.5)) == ["finetuned", "weights pruned"]
    assert steps(a, rounded(adapted(a, 2, 4), 8)) == ["lora", "quantized"]
    assert steps(a, rounded(tuned(a, 4), 8)) == ["finetuned", "quantized"]
    assert steps(a, rounded(zeroed(a, 0.5), 8)) == ["weights pruned", "quantized"]


def test_a_new_head_and_a_new_part_are_told_from_a_tuned_one() -> None:
    a, fresh = base(), base(9)
    head = {n: fresh[n] if n.startswith("head") else x for n, x in tuned(a, 3).items()}
    part = {n: fresh[n] if n.startswith(("head", "layers.2")) else x for n, x in a.items()}
    smaller = dict(tuned(a, 3)) | {"head.weight": fresh["head.weight"][:4], "head.bias": fresh["head.bias"][:4]}
    assert steps(a, head) == steps(a, smaller) == ["head replaced", "finetuned"]
    assert steps(a, part) == ["part inherited"]
    assert steps(a, tuned(a, 3, 0.5)) in (["finetuned"], ["siblings"], ["same-init"], ["changed"])
    only = {n: x + np.float32(0.01) if n.endswith("bias") else x for n, x in a.items()}
    found = simplest_explanation(pair(a, only), ALL)
    assert found is not None
    assert found.steps[0].parameters["where"] == "biases only"


def test_units_and_layers_that_are_gone_are_named() -> None:
    a = base()
    keep = np.sort(np.random.default_rng(0).permutation(WIDTH)[:48])
    narrow = dict(a) | {"layers.1.weight": a["layers.1.weight"][keep], "layers.1.bias": a["layers.1.bias"][keep],
                        "layers.2.weight": a["layers.2.weight"][:, keep]}  # fmt: skip
    found = simplest_explanation(pair(a, narrow), ALL)
    assert found is not None
    assert [s.name for s in found.steps] == ["units removed"]
    assert list(found.steps[0].parameters["kept"].values()) == [keep.tolist()]
    short = {n: x for n, x in a.items() if not n.startswith("layers.2")}
    assert steps(a, short) == ["layers removed"]


def test_each_with_a_mark_of_its_own_makes_siblings() -> None:
    a = base()
    one, other = made(zeroed(a, 0.5, seed=1), "a"), made(rounded(a, 4, 16), "b")
    assert compare(one, other).relation.kind is R.SIBLINGS
    assert compare(made(a, "a"), other).relation.kind is R.QUANTIZED


def test_the_name_does_not_depend_on_the_order_of_the_models() -> None:
    a = base()
    for child in (rounded(a, 8), zeroed(a, 0.5), adapted(a, 2, 1), tuned(a, 1)):
        one, other = made(a, "a"), made(child, "b")
        assert compare(one, other).relation.kind is compare(other, one).relation.kind


def test_joined_projections_are_split_before_anything_is_said() -> None:
    rng = np.random.default_rng(0)
    a = {f"blocks.{i}.attn.{p}.weight": rng.normal(size=(32, 32)).astype(np.float32) for i in (0, 1) for p in "qkvo"}
    a |= {f"blocks.{i}.attn.{p}.bias": rng.normal(size=32).astype(np.float32) for i in (0, 1) for p in "qkvo"}
    a |= {f"blocks.{i}.mlp.fc1.weight": rng.normal(size=(64, 32)).astype(np.float32) for i in (0, 1)}
    a |= {f"blocks.{i}.mlp.fc2.weight": rng.normal(size=(32, 64)).astype(np.float32) for i in (0, 1)}

    def joined(arrays: Arrays) -> Arrays:
        out = {n: x for n, x in arrays.items() if ".attn." not in n or ".o." in n}
        for i in (0, 1):
            for kind in ("weight", "bias"):
                parts = [arrays[f"blocks.{i}.attn.{p}.{kind}"] for p in "qkv"]
                out[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate(parts)
        return out

    one, other = made(a, "a"), made(joined(a), "b")
    for found in (explain(one, other), explain(other, one)):
        assert found.kind.value == "reformatted", found.sentence
        assert {"tensors joined", "tensors split"} & {s.name for s in found.steps}
    rounded_too = explain(one, made(joined(rounded(a, 8)), "c"))
    assert (rounded_too.kind.value, rounded_too.steps[-1].name) == ("quantized", "quantized")
    tuned = {n: x + 0.02 * rng.normal(size=x.shape).astype(np.float32) for n, x in joined(a).items()}
    assert not any("inherited" in s.name for s in explain(one, made(tuned, "d")).steps)
    stranger = {n: rng.normal(size=x.shape).astype(np.float32) for n, x in joined(a).items()}
    assert explain(one, made(stranger, "e")).kind.value == "unrelated"


def test_slices_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6, 3)), rng.normal(size=(40, 6, 3))
    y[3], y[5, 2] = 0, x[5, 2]
    whole = tensor_difference(lambda: [(x, y)])
    parts = tensor_difference(lambda: ((x[i : i + 7], y[i : i + 7]) for i in range(0, 40, 7)))
    assert whole is not None
    assert parts is not None
    d = (y - x).reshape(40, -1)
    assert np.allclose(whole.singular_values, np.linalg.svd(d, compute_uv=False))
    for name in (
        "norm_a",
        "norm_b",
        "inner",
        "difference",
        "residual_after_scaling",
        "equal",
        "zeros",
        "unzeroed_change",
    ):
        assert np.allclose(getattr(whole, name), getattr(parts, name)), name
    assert whole.difference == pytest.approx(float((d**2).sum()))
    assert whole.zeros == (0, 18, 0)
    assert tensor_difference(lambda: [(x, y[:3])]) is None


def test_the_rank_of_rounding_alone_is_none() -> None:
    a = base()
    close = {n: (x.astype(np.float64) * (1 + 2.0**-25)).astype(np.float32) for n, x in a.items()}
    assert all(LowRank().rank(m) == 0 for m in pair(a, close).matrices)
    assert all(LowRank().rank(m) == 0 for m in pair(a, halved(a)).matrices)


def test_degenerate_models_are_explained_or_refused_but_never_break() -> None:
    flat = {n: np.zeros_like(x) for n, x in base().items()}
    one, other = made(flat, "a"), made({n: x + np.float32(1) for n, x in flat.items()}, "b")
    assert compare(one, other).verdict != "related"
    assert explain(one, other).kind is R.UNRELATED
    assert explain(made(base(), "a"), made(base(), "a")).kind is R.COPY
    assert explain(made(base(), "a"), made(base(7), "b")).kind is R.UNRELATED
    odd = {n: np.where(np.arange(x.size).reshape(x.shape) % 97 == 5, np.nan, x).astype(np.float32)
           for n, x in tuned(base(), 1).items()}  # fmt: skip
    assert explain(made(base(), "a"), made(odd, "b")).to_dict()["kind"]


def test_geometry_gives_probabilities_for_anything() -> None:
    for x in (np.zeros(15), np.full(15, 1e6), np.full(15, -1e6)):
        p = probabilities(x, calibration())
        assert p.shape == (len(KINDS),)
        assert p.sum() == pytest.approx(1)


def test_a_class_that_is_gone_is_found_and_a_worse_model_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 30)
    probes = Probes.of(rng.random((180, 4)), labels=labels)
    right = np.eye(6)[labels] * 4 + rng.normal(size=(180, 6))
    gone, worse = right.copy(), right.copy()
    gone[labels == 2, 2] -= 20
    worse[rng.random(180) < 0.5] = 0
    found = Forgetting().of_answers(right, gone, probes)
    assert found is not None
    assert (found.label, found.by, found.after) == (2, "b", 0)
    swapped = Forgetting().of_answers(gone, right, probes)
    assert swapped is not None
    assert swapped.by == "a"
    assert Forgetting().of_answers(right, worse, probes) is None
    assert Forgetting().of_answers(right, right, probes) is None
    assert Forgetting().of_answers(right, right[:, :5], probes) is None


def test_exhibited_relations_are_named_from_every_entry() -> None:
    a = base()
    b = {n: x.copy() for n, x in a.items()}
    b["layers.2.weight"][-1, -1] += 1
    one, other = made(a, "a"), made(b, "b")
    found = name_relation(one, other, compare(one, other).weights, by_name(one, other))
    assert found.kind not in EXACT


def lengthened(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], seed: int) -> Arrays:
    rng, out = np.random.default_rng(seed), dict(arrays)
    for n in names:
        out[n] = (out[n] * np.exp(rng.normal(scale=0.1, size=(len(out[n]), 1)))).astype(np.float32)
    return out


@pytest.mark.parametrize(("rank", "half"), [(1, False), (4, False), (8, False), (4, True)])
def test_low_rank_with_a_length_per_unit_is_told(rank: int, half: bool) -> None:
    a, only = base(), ("layers.1.weight", "layers.2.weight")
    b = lengthened(adapted(a, rank, 1, only), only, 5)
    found = simplest_explanation(pair(a, halved(b) if half else b), ALL)
    assert found is not None
    assert (found.kind, [s.name for s in found.steps]) == (R.LORA, ["dora"])
    assert (found.steps[0].parameters["rank"], found.steps[0].parameters["modules"]) == (rank, list(only))
    low, high = found.steps[0].parameters["factors"]
    assert low < 0.9
    assert high > 1.1
    # The controls: a bias that moved, a dense change beside it, lengths alone, low rank alone.
    assert steps(a, b | {"head.bias": b["head.bias"] + np.float32(0.1)}) == ["changed"]
    assert "dora" not in steps(a, b | {"layers.0.weight": tuned(a, 2)["layers.0.weight"]})
    assert "dora" not in steps(a, lengthened(a, only, 5))
    assert steps(a, adapted(a, rank, 1, only)) == ["lora"]


@pytest.mark.parametrize("lengths", [False, True])
def test_a_head_trained_in_full_beside_an_adapter_is_a_step_of_its_own(lengths: bool) -> None:
    a, only = base() | {"head.weight": base(7)["layers.1.weight"][:40]}, ("layers.1.weight", "layers.2.weight")
    a["head.bias"] = a["layers.0.bias"][:40]
    b = adapted(a, 2, 1, only)
    b = lengthened(b, only, 5) if lengths else b
    b |= {n: tuned(a, 3)[n] for n in ("head.weight", "head.bias")}
    found = simplest_explanation(pair(a, b), ALL)
    assert found is not None
    assert (found.kind, [s.name for s in found.steps]) == (R.LORA, ["dora" if lengths else "lora", "finetuned"])
    assert "head only" in found.steps[1].sentence
    # The control: another matrix than the head, changed as densely, is no part of an adapter.
    assert steps(a, b | {"layers.0.weight": tuned(a, 2)["layers.0.weight"]})[0] not in ("lora", "dora")


def test_a_head_replaced_beside_an_adapter_is_a_step_of_its_own() -> None:
    a, only = base(), ("layers.1.weight", "layers.2.weight")
    b = adapted(a, 2, 1, only) | {n: base(9)[n] for n in ("head.weight", "head.bias")}
    assert steps(a, b) == ["head replaced", "lora"]
    assert steps(a, lengthened(b, only, 5)) == ["head replaced", "dora"]


def test_a_head_that_was_tied_is_no_new_part() -> None:
    rng = np.random.default_rng(0)
    tied = {"embed_tokens.weight": rng.normal(size=(50, 32)).astype(np.float32)}
    tied |= {f"layers.{i}.mlp.up_proj.weight": rng.normal(size=(40, 32)).astype(np.float32) for i in range(3)}
    apart = tied | {"lm_head.weight": tied["embed_tokens.weight"]}
    moved = apart | {"embed_tokens.weight": tuned(tied, 1)["embed_tokens.weight"]}
    moved = adapted(moved, 2, 1, ("layers.1.mlp.up_proj.weight",))
    for one, other in ((tied, moved), (moved, tied)):
        x, y, pairings = pair_tensors(made(one, "parent"), made(other), [])
        found = simplest_explanation(Pair.of(x, y, pairings, all_entries=True), ALL)
        assert found is not None
        assert [s.name for s in found.steps] == ["lora", "finetuned"]
    # The control: a head of another size is new.
    other = moved | {"lm_head.weight": rng.normal(size=(7, 32)).astype(np.float32)}
    assert pair_tensors(made(tied, "parent"), made(other), [])[0].tensors.keys() == tied.keys()
    assert "part inherited" in steps(tied, other)


def test_factors_that_nothing_takes_back_are_no_other_coordinates() -> None:
    a = {"embed.weight": base(3)["layers.1.weight"] * (np.arange(WIDTH) > 0)[:, None]} | base(4)
    b = a | {"layers.1.weight": (a["layers.1.weight"] * np.linspace(0.9, 1.1, WIDTH)).astype(np.float32)}
    assert steps(a, b) == ["changed"]
