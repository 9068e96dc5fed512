"""What names say about hidden units: chains that are real are read, codes and unknown layouts are not believed."""

import numpy as np
import pytest

from stemma.architectures.from_names import from_names
from stemma.architectures.unit_groups import axes, structure, structure_of, unit_groups
from stemma.networks.load import load
from symmetry import assert_nothing_visible_is_hidden


@pytest.mark.parametrize(("file", "sizes"), [
    ("waifu2x_upconv7_photo/scale2.0x", [16, 32, 64, 128, 128, 256]),
    ("fsrcnn/fsrcnn_x4", [56, 12, 12, 12, 12, 12, 56]),
    ("fsrcnn/fsrcnn_small_x3", [32, 5, 5, 32]),
    ("mlperf_tiny/kws_int8", [64] * 5),
    ("mlperf_tiny/vww96_keras", [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]),
    ("mlperf_tiny/vww96_float", [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]),
    ("mlperf_tiny/resnet8_keras", [16, 16, 16, 32, 32, 64, 64]),
    ("mlperf_tiny/resnet8_int8", [16, 16, 16, 32, 32, 64, 64]),
])  # fmt: skip
def test_real_checkpoints_without_a_family_are_read_as_chains(shared, file, sizes):
    model = load(shared / "zoo" / f"{file}.safetensors")
    known = structure(model)
    assert known.source == "inferred:names"
    assert not known.certain
    assert [g.size for g in unit_groups(model)] == sizes
    assert axes(model).keys() == model.weights.keys()
    vectors = [n for n, t in model.weights.items() if len(t.shape) == 1 and t.shape[0] in set(sizes)]
    assert all(known.axes[n][0].kind == "unit" for n in vectors)
    assert_nothing_visible_is_hidden({n: t.shape for n, t in model.weights.items()}, known)


def test_a_keras_export_and_its_tflite_twin_have_the_same_chain(shared):
    for name in ("resnet8", "vww96"):
        keras, lite = (structure(load(shared / f"zoo/mlperf_tiny/{name}_{k}.safetensors")) for k in ("keras", "float"))
        assert [(g.name, g.size) for g in keras.groups] == [(g.name, g.size) for g in lite.groups]


def test_names_without_meaning_are_not_read_as_an_order(shared):
    for file in ("waifu2x_upconv7_photo/scale2.0x", "mlperf_tiny/vww96_keras", "fsrcnn/fsrcnn_x2"):
        shapes = {n: t.shape for n, t in load(shared / f"zoo/{file}.safetensors").weights.items()}
        order = np.random.default_rng(1).permutation(len(shapes))
        for pattern in ("t{}", "tensor_{:04d}", "t{}.w", "{:08x}", "x/{}"):
            known = structure_of({pattern.format(i): s for i, s in zip(order, shapes.values(), strict=True)})
            assert known.source == "inferred:shapes", (file, pattern)


def test_grouped_convolutions_have_no_free_units():
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (10, 256)}
    shapes |= {"layer1.0.conv1.weight": (128, 64, 1, 1), "layer1.0.conv2.weight": (128, 4, 3, 3)}
    shapes |= {"layer1.0.conv3.weight": (256, 128, 1, 1), "layer1.0.downsample.0.weight": (256, 64, 1, 1)}
    known = structure_of(shapes)
    assert known.source == "inferred:shapes"
    assert 128 not in {g.size for g in known.groups}


def test_names_that_tell_no_order_are_no_chain():
    autoencoder = {"decoder.0.weight": (32, 8), "decoder.2.weight": (64, 32), "encoder.0.weight": (32, 64),
                   "encoder.2.weight": (8, 32)}  # fmt: skip
    known = from_names(autoencoder)
    assert known is not None
    assert known.axes["encoder.0.weight"][1].kind == "fixed"
    assert known.axes["decoder.2.weight"][0].kind == "fixed"
    assert from_names({"alice.weight": (8, 5), "bob.weight": (8, 8), "carol.weight": (3, 8)}) is None
    assert from_names({"lstm.weight_ih_l0": (32, 8), "lstm.weight_hh_l0": (32, 8), "fc.weight": (4, 8)}) is None
    assert from_names({f"layer.{i}.attn.{n}.weight": (8, 8) for i in range(2) for n in "qkvo"}) is None


PERCEPTRON = ((48, 64), (48, 48), (48, 48), (48, 48), (10, 48))


def numbered(pattern, sizes, order):
    """A perceptron whose weights and biases carry the numbers `order`."""
    shapes = {pattern.format(2 * i) + ".weight": s for i, s in zip(order, sizes, strict=True)}
    return shapes | {pattern.format(2 * i) + ".bias": s[:1] for i, s in zip(order, sizes, strict=True)}


@pytest.mark.parametrize("pattern", ["t{:04d}", "{:04d}", "tensor_{:04d}", "x.{:03d}", "w{:04d}", "l{}"])
def test_codes_are_no_order(pattern):
    """Square layers: whichever comes first shows the pixels, so an order by codes would call pixels hidden."""
    square = ((48, 48), (48, 48), (48, 48), (10, 48))
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(4)
        assert structure_of(numbered(pattern, square, order)).source == "inferred:shapes"
        assert structure_of({pattern.format(i): s for i, s in zip(order, square, strict=True)}).source == (
            "inferred:shapes"
        )


@pytest.mark.parametrize("pattern", ["{:04d}", "x.{:03d}", "w{:04d}"])
def test_codes_are_an_order_where_shapes_force_it(pattern):
    forced = structure_of(numbered(pattern, PERCEPTRON, range(5)))
    assert forced.source == "inferred:names"
    assert not forced.certain
    names = list(numbered(pattern, PERCEPTRON, range(5)))
    assert forced.axes[names[0]][1].role == "pixel"
    assert forced.axes[names[4]][0].role == "class"


@pytest.mark.parametrize("pattern", ["{}", "net.{}", "layers.{}", "conv.{}", "block{}.linear"])
def test_numbers_of_real_modules_are_an_order_whatever_the_shapes(pattern):
    square = ((48, 48), (48, 48), (48, 48), (48, 48))
    known = structure_of(numbered(pattern, square, range(4)))
    assert known.source == "inferred:names"
    assert [g.size for g in known.groups] == [48] * 3
    assert known.axes[pattern.format(0) + ".weight"][1].role == "pixel"
    bare = structure_of({f"{n}{i}": s for i in range(1, 5) for n, s in (("f", (48, 48)), ("b", (48,)))})
    assert bare.source == "inferred:names"


def test_an_order_of_flattened_maps_that_is_not_known_is_not_claimed():
    torch = {"conv1.weight": (8, 1, 3, 3), "conv2.weight": (16, 8, 3, 3), "fc.weight": (10, 256)}
    keras = {"conv2d/kernel:0": (3, 3, 1, 8), "conv2d_1/kernel:0": (3, 3, 8, 16), "dense/kernel:0": (256, 10)}
    (block,), (stride,) = (
        structure_of(shapes).axes[n][axis].segments for shapes, n, axis in ((torch, "fc.weight", 1),
                                                                            (keras, "dense/kernel:0", 0))
    )  # fmt: skip
    assert (block.block, block.stride) == (16, 1)
    assert (stride.block, stride.stride) == (16, 16)
    converted = structure_of({n: tuple(reversed(s)) for n, s in torch.items()})
    assert converted.source == "inferred:names"
    assert converted.axes["fc.weight"][0].role == "unknown"
    assert {g.size: [m.tensor for m in g.members] for g in converted.groups}[16] == ["conv2.weight"]


def test_plain_perceptrons_are_certain_only_where_no_shortcut_fits_or_the_config_says_so():
    shapes = {"layers.0.weight": (64, 64), "layers.1.weight": (64, 64), "layers.2.weight": (48, 64)}
    shapes |= {"head.weight": (10, 48)}
    assert not structure_of(shapes).certain
    assert structure_of(shapes, {"model_type": "stemma-mlp"}).certain
    assert structure_of({**shapes, "layers.0.weight": (32, 64), "layers.1.weight": (64, 32)}).certain
