"""The same entries of several models: read at the same places whatever names, layout and float width."""

import numpy as np
import pytest

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.tensor_content import unit_axis
from stemma.kinship.weights.entries import entries
from stemma.networks.load import from_arrays
from stemma.zoo import family


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    names = ["root", "finetuned", "renamed", "transposed", "half", "head-replaced", "units-pruned", "independent-1"]
    return {m.name.removeprefix("mlp/"): m.model for m in family("mlp", only=names).members}


def test_disguises_are_read_at_the_same_places(models: dict[str, Model]) -> None:
    names = ["root", "renamed", "transposed", "half", "finetuned"]
    found = entries([models[n] for n in names], reference=0)
    assert found.present.all()
    np.testing.assert_array_equal(found.values[1], found.values[0])
    np.testing.assert_array_equal(found.values[2], found.values[0])
    np.testing.assert_allclose(found.values[3], found.values[0], rtol=1e-3, atol=1e-6)
    moved = np.linalg.norm(found.values[4] - found.values[0]) / np.linalg.norm(found.values[0])
    assert 0.01 < moved < 1  # the control: what was trained on is not equal


def test_whatever_has_another_shape_is_absent(models: dict[str, Model]) -> None:
    found = entries([models[n] for n in ("root", "head-replaced", "units-pruned")])
    named = {slot.name: i for i, slot in enumerate(found.tensors)}
    assert found.present[0].all()
    assert not found.present[1, named["head.weight"]]
    assert found.present[1, named["layers.0.weight"]]
    assert not found.present[2].any()
    assert not found.values[2].any()


def test_a_sample_holds_the_entries_themselves(models: dict[str, Model]) -> None:
    few, all_of_them = (entries([models["root"]], per_tensor=n) for n in (100, 10**6))
    for a, b in zip(few.tensors, all_of_them.tensors, strict=True):
        whole = models["root"].weights[b.name].array().reshape(-1)
        np.testing.assert_array_equal(all_of_them.values[0, b.columns], whole)
        assert (a.stop - a.start, a.size, a.rows) == (100, len(whole), 10)
        assert np.isin(few.values[0, a.columns], whole).all()
    np.testing.assert_array_equal(few.values, entries([models["root"]], per_tensor=100).values)
    assert not np.array_equal(few.values, entries([models["root"]], per_tensor=100, seed=1).values)


def test_a_sample_is_a_block_of_rows_and_columns(models: dict[str, Model]) -> None:
    few = entries([models["root"]], per_tensor=100)
    slot = few.tensors[1]
    [block] = slot.blocks(few.values)
    whole = models["root"].weights[slot.name].array()
    rows = [int(np.flatnonzero((whole == row[0]).any(1))[0]) for row in block]
    columns = [int(np.flatnonzero(whole[rows[0]] == entry)[0]) for entry in block[0]]
    np.testing.assert_array_equal(block, whole[np.ix_(rows, columns)])


def test_strangers_have_entries_that_do_not_agree(models: dict[str, Model]) -> None:
    x, y = entries([models["root"], models["independent-1"]]).values.astype(np.float64)
    assert abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y) < 0.2


def test_some_of_the_models(models: dict[str, Model]) -> None:
    found = entries([models["root"], models["finetuned"]])
    assert [m.name for m in found.of([1]).models] == ["mlp/finetuned"]
    np.testing.assert_array_equal(found.of([1]).values[0], found.values[1])


def test_nothing_to_read_is_refused(models: dict[str, Model]) -> None:
    with pytest.raises(MisuseError, match="at least one model"):
        entries([])
    with pytest.raises(MisuseError, match="one entry"):
        entries([models["root"]], per_tensor=0)


@pytest.mark.parametrize(
    ("units_first", "kernel_first"),
    [
        ((64, 32, 3, 3), (3, 3, 32, 64)),
        ((32, 32, 3, 3), (3, 3, 32, 32)),
        ((3, 256, 4, 4), (4, 4, 256, 3)),
        ((16, 3, 3, 3), (3, 3, 3, 16)),
        ((64, 32, 3), (3, 32, 64)),
        ((64, 10, 4, 2), (2, 4, 10, 64)),
    ],
)
def test_the_axis_of_units_is_found_in_both_layouts(
    units_first: tuple[int, ...], kernel_first: tuple[int, ...]
) -> None:
    assert unit_axis(units_first) == 0
    assert unit_axis(kernel_first) == len(kernel_first) - 1
    assert unit_axis(units_first[:2]) == 0  # a matrix does not tell


def test_rows_are_units_whichever_layout_the_reference_has() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(24, 8, 3, 3)).astype(np.float32)
    kernel *= rng.uniform(0.5, 2, (24, 1, 1, 1)).astype(np.float32)
    plain, turned = from_arrays({"w": kernel}, "plain"), from_arrays({"t": np.ascontiguousarray(kernel.T)}, "turned")
    for models in ([plain, turned], [turned, plain]):
        found = entries(models, reference=0, per_tensor=10**6)
        [slot] = found.tensors
        assert found.present.all()
        assert slot.rows == 24
        np.testing.assert_array_equal(found.values[1], found.values[0])
        norms = np.linalg.norm(slot.blocks(found.values)[0], axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(kernel.reshape(24, -1), axis=1), rtol=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_tokens_that_only_some_have_do_not_take_their_embedding_out(order: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    short = {"embed.weight": rng.normal(size=(60, 8)), "fc.weight": rng.normal(size=(24, 8))}
    long = {
        "embed.weight": np.concatenate([short["embed.weight"], rng.normal(size=(5, 8))]),
        "fc.weight": short["fc.weight"],
    }
    two = [from_arrays(a, n, None) for n, a in (("short", short), ("long", long))]
    found = entries([two[i] for i in order])
    assert found.present.all()
    assert np.array_equal(*found.values)
    fewer = {"embed.weight": short["embed.weight"], "fc.weight": short["fc.weight"][2:]}  # units are no tokens
    cut = entries([two[0], from_arrays(fewer, "cut", None)])
    names = [slot.name for slot in cut.tensors]
    assert cut.present[:, names.index("embed.weight")].all()
    assert not cut.present[:, names.index("fc.weight")].all()
