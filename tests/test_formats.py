"""The same weights through every format, against the libraries that own the formats."""

import hashlib
import importlib.util
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stemma.checkpoints import load
from stemma.checkpoints.formats import views as layouts
from stemma.checkpoints.save import save
from stemma.checkpoints.tensor import decode, encode
from stemma.errors import MissingExtraError, MisuseError, NotAModelError, UnreadableModelError

SHARED = Path(__file__).parents[2] / "shared"


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.standard_normal((5, 3, 3, 2)).astype("f4"),
        "fc.weight": rng.standard_normal((7, 40)).astype("f4"),
        "fc.bias": rng.standard_normal(7).astype("f4"),
        "half": rng.standard_normal((6, 4)).astype("f2"),
        "double": rng.standard_normal((2, 2)),
        "steps": np.array(12, "i8"),
        "flags": np.array([True, False, True]),
        "empty": np.zeros((0, 4), "f4"),
        "odd": np.array([np.nan, np.inf, -np.inf, -0.0], "f4"),
    }


def slow_digest(values: dict[str, np.ndarray]) -> str:
    """The obvious twin of `Model.digest` for models without ties."""
    codes = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "bool": "BOOL"}
    lines = []
    for name, a in values.items():
        head = f"{codes[a.dtype.name]} {list(a.shape)}\n"
        tensor = hashlib.sha256(head.encode() + a.tobytes()).hexdigest()
        lines.append(f"{name}\t{codes[a.dtype.name]}\t{list(a.shape)}\tsha256:{tensor}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def write_safetensors(path: Path, values: dict[str, np.ndarray]) -> Path:
    from safetensors.numpy import save_file

    save_file(values, path)
    return path


def write_torch(path: Path, values: dict[str, np.ndarray], legacy: bool = False) -> Path:
    import torch

    torch.save(
        {k: torch.from_numpy(v.copy()) for k, v in values.items()}, path, _use_new_zipfile_serialization=not legacy
    )
    return path


def write_npz(path: Path, values: dict[str, np.ndarray], compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **values)
    return path


def write_onnx(path: Path, values: dict[str, np.ndarray], external: bool = False) -> Path:
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(v, k) for k, v in values.items()])
    more = {"save_as_external_data": True, "location": "outside.bin", "size_threshold": 0} if external else {}
    onnx.save(helper.make_model(graph), path, **more)
    return path


def write_h5(path: Path, values: dict[str, np.ndarray], compression: str | None = None) -> Path:
    import h5py

    with h5py.File(path, "w") as f:
        for k, v in values.items():
            f.create_dataset(f"model_weights/{k}", data=v, compression=compression if v.ndim and v.size else None)
        f.create_dataset("optimizer_weights/m", data=np.ones(3))
    return path


def write_keras(path: Path, values: dict[str, np.ndarray]) -> Path:
    inner = write_h5(path.with_suffix(".inner.h5"), values, "gzip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(inner, "model.weights.h5")
        z.writestr("config.json", "{}")
    inner.unlink()
    return path


def write_msgpack(path: Path, values: dict[str, np.ndarray]) -> Path:
    import msgpack

    def packed(a: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((a.shape, a.dtype.name, a.tobytes())))

    path.write_bytes(msgpack.packb({"params": {k: packed(v) for k, v in values.items()}, "step": 3}))
    return path


def write_paddle(path: Path, values: dict[str, np.ndarray]) -> Path:
    path.write_bytes(pickle.dumps({**values, "StructuredToParameterName@@": {k: k for k in values}}, 2))
    return path


WRITERS = {
    "a.safetensors": write_safetensors,
    "a.pt": write_torch,
    "legacy.pth": lambda p, v: write_torch(p, v, legacy=True),
    "a.npz": write_npz,
    "packed.npz": lambda p, v: write_npz(p, v, compressed=True),
    "a.onnx": write_onnx,
    "outside.onnx": lambda p, v: write_onnx(p, v, external=True),
    "a.h5": write_h5,
    "chunked.h5": lambda p, v: write_h5(p, v, "gzip"),
    "a.keras": write_keras,
    "a.msgpack": write_msgpack,
    "a.pdparams": write_paddle,
}


@pytest.mark.parametrize("file", WRITERS)
def test_same_weights_same_digest_in_every_format(tmp_path: Path, file: str) -> None:
    values = arrays()
    found = load.load(WRITERS[file](tmp_path / file, values))
    assert found.digest == slow_digest(values)
    assert found.name == Path(file).stem
    for name, expected in values.items():
        tensor = found.tensors[name]
        want = expected.astype("f4") if expected.dtype == np.float16 else expected
        np.testing.assert_array_equal(tensor.array(), want)
        if tensor.shape and tensor.shape[0] > 2:
            np.testing.assert_array_equal(tensor.rows(1, 3), want[1:3])


def test_another_value_name_dtype_or_shape_is_another_digest(tmp_path: Path) -> None:
    base = arrays()
    touched = {**base, "fc.bias": np.nextafter(base["fc.bias"], np.float32(9))}
    renamed = {("fc.b" if k == "fc.bias" else k): v for k, v in base.items()}
    wider = {**base, "half": base["half"].astype("f4")}
    reshaped = {**base, "fc.weight": base["fc.weight"].reshape(40, 7)}
    digests = {load.from_arrays(v, "m").digest for v in (base, touched, renamed, wider, reshaped)}
    assert len(digests) == 5
    assert load.from_arrays(renamed, "m").names_free_digest == load.from_arrays(base, "m").names_free_digest
    assert load.from_arrays(touched, "m").names_free_digest != load.from_arrays(base, "m").names_free_digest


def test_a_name_cannot_imitate_another_line() -> None:
    one = load.from_arrays({"a": np.ones(3, "f4"), "b": np.zeros(3, "f4")}, "m")
    line = f"a\tF32\t[3]\t{one.tensor_digests['a']}\nb"
    assert load.from_arrays({line: np.zeros(3, "f4")}, "m").digest != one.digest


def test_torch_views_dtypes_and_nesting_against_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    state = {
        "t": torch.randn(30, 20).bfloat16().t(),
        "permuted": torch.randn(5, 3, 4, 2).permute(2, 0, 3, 1),
        "sliced": torch.randn(9, 8)[1::2, ::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "f8": torch.randn(40).to(torch.float8_e4m3fn),
        "e5": torch.randn(40).to(torch.float8_e5m2),
        "c": torch.randn(3, 2, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }
    whole = {
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "epoch": 3, "best": np.float64(0.5), "device": torch.device("cpu"), "sparse": torch.eye(3).to_sparse(),
    }  # fmt: skip
    for legacy in (False, True):
        torch.save(whole, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        found = load.load(tmp_path / "m.pt")
        assert set(found.tensors) == set(state)
        assert any("optimizer" in n for n in found.notes)
        for k, v in state.items():
            wide = v.detach().float() if v.is_floating_point() else v
            np.testing.assert_array_equal(found.tensors[k].array(), wide.numpy())
        assert found.digest == load.from_arrays(state, "m").digest


def test_training_state_of_known_kinds_is_a_hole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import argparse
    import collections
    import datetime

    state = {
        "model": {"w": torch.ones(2, 2)}, "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "when": datetime.datetime.now(),
        "rng": np.random.RandomState(0), "history": collections.deque([1, 2]), "count": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]), "set": {1, 2}, "numpy": np.float32(3),
    }  # fmt: skip
    torch.save(state, tmp_path / "x.pt")
    found = load.load(tmp_path / "x.pt")
    assert list(found.tensors) == ["w"]
    np.testing.assert_array_equal(found.tensors["w"].array(), np.ones((2, 2)))


@pytest.mark.parametrize("block", [1, 100, 700, 5000])
def test_strided_views_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(layouts, "BLOCK", block)
    views = {
        "t": torch.randn(17, 23).t(), "p": torch.randn(4, 5, 6, 3).permute(3, 1, 0, 2),
        "s": torch.randn(40, 9)[3::4, 1::2], "v": torch.randn(30, 4)[:, 2],
        "e": torch.randn(7, 1).expand(7, 5), "w": torch.randn(3, 3).expand(4, 3, 3),
    }  # fmt: skip
    torch.save(views, tmp_path / "x.pt")
    found = load.load(tmp_path / "x.pt")
    assert found.digest == load.from_arrays({k: v.numpy() for k, v in views.items()}, "m").digest
    for k, v in views.items():
        np.testing.assert_array_equal(found.tensors[k].array(), v.numpy())
        np.testing.assert_array_equal(found.tensors[k].rows(2, 3), v.numpy()[2:3])
        assert b"".join(bytes(c) for c in found.tensors[k].chunks(bytearray(13))) == v.contiguous().numpy().tobytes()


@pytest.mark.filterwarnings("ignore")  # torch says once per process that these are deprecated
def test_torch_quantised_tensors_are_codes_with_scales(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 6)
    channels = torch.rand(4, dtype=torch.float64) + 0.1
    per_tensor = torch.quantize_per_tensor(x, 0.1, 3, torch.qint8)
    per_channel = torch.quantize_per_channel(x, channels, torch.zeros(4, dtype=torch.long), 0, torch.qint8)
    torch.save({"w": per_tensor, "c": per_channel}, tmp_path / "q.pt")
    found = load.load(tmp_path / "q.pt")
    assert found.tensors["w"].dtype == "I8"
    assert set(found.weights) == {"w", "c"}
    np.testing.assert_allclose(found.weights["w"].array(), per_tensor.dequantize().numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.weights["c"].array(), per_channel.dequantize().numpy(), rtol=1e-6)


def test_averaged_weights_are_a_second_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    main, averaged = {"w": torch.randn(3, 3)}, {"w": torch.randn(3, 3)}
    torch.save({"model": main, "ema": averaged, "optimizer": {"x": torch.ones(2)}}, tmp_path / "a.pt")
    torch.save({"w": main["w"], "model_ema.w": averaged["w"]}, tmp_path / "flat.pt")
    for file in ("a.pt", "flat.pt"):
        one, two = load.open_models(tmp_path / file, "net")
        assert (one.name, two.name) == ("net", "net#ema")
        np.testing.assert_array_equal(one.tensors["w"].array(), main["w"].numpy())
        np.testing.assert_array_equal(two.tensors["w"].array(), averaged["w"].numpy())
    torch.save({"w": main["w"], "ema.other": averaged["w"]}, tmp_path / "none.pt")
    assert len(load.open_models(tmp_path / "none.pt")) == 1, "a part that is called ema and has no twin is no average"


@pytest.mark.parametrize("outside", [{}, {"first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3)}])
@pytest.mark.parametrize("word", ["model", "denoise_fn"])
def test_averaged_weights_whose_names_lost_their_dots_are_a_second_model(
    tmp_path: Path, outside: dict[str, tuple[int, ...]], word: str
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3), "diffusion_model.out.2.weight": (4, 8, 3, 3),
              "diffusion_model.time_embed.0.bias": (16,)}  # fmt: skip
    main = {f"{word}.{n}": rng.normal(size=s).astype("f4") for n, s in shapes.items()}
    averaged = {n: x + 0.01 for n, x in main.items()}
    ema = {"model_ema." + n.partition(".")[2].replace(".", ""): x for n, x in averaged.items()}
    ema |= {"model_ema.num_updates": np.array(7, np.int32), "model_ema.decay": np.array(0.99, np.float32)}
    parts = {n: rng.normal(size=s).astype("f4") for n, s in outside.items()}
    write_safetensors(tmp_path / "sd.safetensors", main | ema | parts)
    one, two = load.open_models(tmp_path / "sd.safetensors")
    assert (one.name, two.name) == ("sd", "sd#ema")
    assert set(one.tensors) == {*main, *parts}
    assert set(two.tensors) - {"num_updates", "decay"} == set(main)
    for n, x in averaged.items():
        np.testing.assert_array_equal(two.tensors[n].array(), x)
    del ema[next(iter(ema))]
    ema["model_ema.elsewhere"] = main[next(iter(main))]
    write_safetensors(tmp_path / "other.safetensors", main | ema)
    assert len(load.open_models(tmp_path / "other.safetensors")) == 1, (
        "a name that nothing could be called is no average"
    )


def test_nesting_is_removed_only_where_it_wraps_one_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    msgpack = pytest.importorskip("msgpack")

    def names(content: object) -> set[str]:
        torch.save(content, tmp_path / "x.pt")
        return set(load.load(tmp_path / "x.pt").tensors)

    net, other = {"w": torch.randn(2, 2)}, {"v": torch.randn(2, 2)}
    training = {
        "optimizer": {"state": [torch.ones(2)]},
        "epoch": 3,
        "loss": torch.tensor(0.1),
        "rng_state": torch.ones(2),
    }
    for key in ("state_dict", "model", "model_state_dict", "params", "net"):
        assert names({key: net, **training}) == {"w"}
    assert names({"model": {"state_dict": net}}) == {"w"}
    assert names({"params_ema": net}) == {"w"} == names({"ema": net, "optimizer": {"m": torch.ones(2)}})
    assert names({"generator": net, "discriminator": other}) == {"generator.w", "discriminator.v"}
    assert names({"model": net, "head": other, "optimizer": {"m": torch.ones(2)}}) == {"model.w", "head.v"}
    assert names({"_orig_mod.module.w": net["w"], "_orig_mod.module.v": other["v"]}) == {"w", "v"}
    assert names({"model.w": net["w"], "model.v": other["v"]}) == {"model.w", "model.v"}
    assert names([net["w"], other["v"]]) == {"0", "1"}

    def packed(a: np.ndarray) -> object:
        return msgpack.ExtType(1, msgpack.packb((a.shape, a.dtype.name, a.tobytes())))

    one = packed(np.ones((2, 2), "f4"))
    (tmp_path / "x.msgpack").write_bytes(msgpack.packb({"model": {"scaler": {"w": one}}, "lm_head": {"w": one}}))
    assert set(load.load(tmp_path / "x.msgpack").tensors) == {"model/scaler/w", "lm_head/w"}
    (tmp_path / "x.msgpack").write_bytes(
        msgpack.packb({"params": {"model": {"w": one}}, "batch_stats": {"m": one}, "opt_state": {"0": {"w": one}}})
    )
    assert set(load.load(tmp_path / "x.msgpack").tensors) == {"model/w", "batch_stats/m"}


def test_ties_count_once_however_they_are_stored(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.randn(20, 8)
    body = {"layers.0.w": torch.randn(8, 8), "norm.weight": torch.ones(8), "norm2.weight": torch.ones(8)}
    torch.save({**body, "embed_tokens.weight": w, "lm_head.weight": w}, tmp_path / "aliased.pt")
    twice = {k: v.numpy() for k, v in {**body, "embed_tokens.weight": w, "lm_head.weight": w.clone()}.items()}
    once = {k: v for k, v in twice.items() if k != "lm_head.weight"}
    aliased = load.load(tmp_path / "aliased.pt")
    assert "lm_head.weight" not in aliased.tensors
    assert aliased.digest == load.from_arrays(twice, "m").digest == load.from_arrays(once, "m").digest

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.lm_head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20, bias=False)
            self.lm_head.weight = self.embed_tokens.weight

    from safetensors.torch import save_model

    save_model(Tied(), str(tmp_path / "by_library.safetensors"))
    by_library = load.load(tmp_path / "by_library.safetensors")
    assert len(by_library.tensors) == 1
    assert by_library.claims == {}
    assert any("is tied to" in n for n in by_library.notes)
    # controls: constants are no tie, and a layer that was copied is a difference
    assert "norm2.weight" in aliased.tensors
    without = {k: v for k, v in once.items() if k != "norm2.weight"}
    assert load.from_arrays(without, "m").digest != aliased.digest
    stacked = {**once, "layers.1.w": once["layers.0.w"]}
    assert load.from_arrays(stacked, "m").digest != aliased.digest


def test_gguf_every_type_against_the_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 512)).astype("f4")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("a name")
    writer.add_array("tokens", ["a", "bb"] * 100)
    expected = {}
    for kind in (k for k in gguf.GGMLQuantizationType if k in gguf.quants._type_traits):
        block, width = gguf.GGML_QUANT_SIZES[kind]
        try:
            raw = gguf.quants.quantize(w, kind)
        except NotImplementedError:
            raw = rng.integers(0, 256, (6, 512 // block * width), dtype=np.uint8)
        writer.add_tensor(kind.name, raw, raw_shape=raw.shape, raw_dtype=kind)
        with np.errstate(all="ignore"):
            expected[kind.name] = gguf.quants.dequantize(raw, kind)
    writer.add_tensor("plain", w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load.load(tmp_path / "m.gguf")
    assert len(expected) >= 20
    assert found.claims["name"] == "a name"
    np.testing.assert_array_equal(found.tensors["plain"].array(), w)
    for name, values in expected.items():
        assert found.tensors[name].shape == (6, 512)
        np.testing.assert_array_equal(found.tensors[name].array(), values)
        np.testing.assert_array_equal(found.tensors[name].rows(2, 5), values[2:5])
    data = (tmp_path / "m.gguf").read_bytes()
    at = data.index(b"plain") + 5 + 4 + 16
    (tmp_path / "odd.gguf").write_bytes(data[:at] + (36).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UnreadableModelError, match=r"type|format"):
        load.load(tmp_path / "odd.gguf")


def test_onnx_typed_fields_and_constants(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    values = {
        "f": np.array([[1.5, -2]], "f4"), "h": np.array([1.5, -2], "f2"), "i8": np.array([-3, 4], "i1"),
        "u2": np.array([3, 60000], "u2"), "i64": np.array([-(2**40), 5]), "d": np.array([0.1]),
        "c": np.array([1 + 2j], "c8"), "s": np.array(2.5, "f4"),
    }  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype
    inits = [helper.make_tensor(k, kind(v.dtype), v.shape, v.flatten()) for k, v in values.items()]
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(values["f"], "inner"))
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [], inits)), tmp_path / "t.onnx")
    found = load.load(tmp_path / "t.onnx")
    assert set(found.tensors) == {*values, "k"}
    for k, v in {**values, "k": values["f"]}.items():
        assert found.tensors[k].shape == v.shape
        np.testing.assert_array_equal(found.tensors[k].array(), v)


def build_tflite(path: Path, tensors: list[tuple]) -> Path:
    """Write (name, array, type code, scales, zero points) with the flatbuffers library."""
    import flatbuffers
    import tflite

    b = flatbuffers.Builder(1024)

    def table(start, add, end, **fields):
        start(b)
        for key, value in fields.items():
            add[key](b, value)
        return end(b)

    def offsets(start, items):
        start(b, len(items))
        for item in reversed(items):
            b.PrependUOffsetTRelative(item)
        return b.EndVector()

    made = []
    buffers = [table(tflite.BufferStart, {}, tflite.BufferEnd)]
    for i, (name, array, kind, scales, zeros) in enumerate(tensors, 1):
        data = b.CreateByteVector(array.tobytes())
        buffers.append(table(tflite.BufferStart, {"d": tflite.BufferAddData}, tflite.BufferEnd, d=data))
        text, shape = b.CreateString(name), b.CreateNumpyVector(np.array(array.shape, "i4"))
        more = {}
        if scales is not None:
            s, z = b.CreateNumpyVector(np.array(scales, "f4")), b.CreateNumpyVector(np.array(zeros, "i8"))
            add = {"s": tflite.QuantizationParametersAddScale, "z": tflite.QuantizationParametersAddZeroPoint}
            more["q"] = table(tflite.QuantizationParametersStart, add, tflite.QuantizationParametersEnd, s=s, z=z)
        add = {"n": tflite.TensorAddName, "s": tflite.TensorAddShape, "t": tflite.TensorAddType,
               "b": tflite.TensorAddBuffer, "q": tflite.TensorAddQuantization}  # fmt: skip
        made.append(table(tflite.TensorStart, add, tflite.TensorEnd, n=text, s=shape, t=kind, b=i, **more))
    listed = offsets(tflite.SubGraphStartTensorsVector, made)
    graph = table(tflite.SubGraphStart, {"t": tflite.SubGraphAddTensors}, tflite.SubGraphEnd, t=listed)
    graphs = offsets(tflite.ModelStartSubgraphsVector, [graph])
    stored = offsets(tflite.ModelStartBuffersVector, buffers)
    add = {"v": tflite.ModelAddVersion, "g": tflite.ModelAddSubgraphs, "b": tflite.ModelAddBuffers}
    model = table(tflite.ModelStart, add, tflite.ModelEnd, v=3, g=graphs, b=stored)
    b.Finish(model, b"TFL3")
    path.write_bytes(bytes(b.Output()))
    return path


def test_tflite_codes_scales_and_zero_points(tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    codes = np.arange(-12, 12, dtype="i1").reshape(1, 2, 3, 4)
    bias = np.arange(4, dtype="i4")
    plain = np.arange(6, dtype="f4").reshape(2, 3)
    scales = [0.5, 0.25, 2.0, 1.0]
    path = build_tflite(tmp_path / "m.tflite", [
        ("depthwise", codes, 9, scales, [1, 2, 3, 4]), ("bias", bias, 2, [0.5], [0]), ("plain", plain, 0, None, None),
    ])  # fmt: skip
    found = load.load(path)
    assert {n: t.dtype for n, t in found.tensors.items()} == {
        "depthwise": "I8", "depthwise::scale": "F32", "depthwise::zero_point": "I64", "bias": "I32",
        "bias::scale": "F32", "bias::zero_point": "I64", "plain": "F32",
    }  # fmt: skip
    assert set(found.weights) == {"depthwise", "bias", "plain"}
    slow = (codes.astype("f4") - np.array([1, 2, 3, 4])) * np.array(scales)
    np.testing.assert_allclose(found.weights["depthwise"].array(), slow)
    np.testing.assert_allclose(found.weights["bias"].array(), bias * 0.5)


@pytest.mark.skipif(not (SHARED / "zoo").is_dir(), reason="the real checkpoints are not beside the checkout")
def test_published_int8_models_are_their_float_models_rounded() -> None:
    for net in ("kws", "resnet8", "vww96"):
        codes, plain = (load.load(SHARED / f"zoo/mlperf_tiny/{net}_{k}.safetensors") for k in ("int8", "float"))
        shared = [n for n, t in codes.weights.items() if t.is_float and t.size > 100 and n in plain.weights]
        assert len(shared) >= 5
        for n in shared:
            a, b = codes.weights[n].array(), plain.weights[n].array()
            assert np.abs(a - b).max() <= np.abs(b).max() / 100, n


def test_folders_shards_config_and_claims(tmp_path: Path) -> None:
    values = arrays()
    model = load.from_arrays(values, "m", config={"model_type": "x"})
    folder = save(model, tmp_path / "sharded", max_shard_bytes=500)
    assert len(list(folder.glob("*.safetensors"))) > 2
    (folder / "README.md").write_text(
        "---\nlicense: mit\nbase_model:\n- org/base\ntags:\n- x\n---\n# text\nlicense: no"
    )
    found = load.load(folder)
    assert (found.digest, found.name, found.config) == (model.digest, "sharded", {"model_type": "x"})
    assert found.claims == {"license": "mit", "base_model": "org/base"}
    (folder / "model.safetensors.index.json").unlink()
    assert load.load(folder).digest == model.digest, "shards are put together without their index too"
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(UnreadableModelError, match=r"1 of \d+ shards are missing"):
        load.load(folder)


def test_several_components_are_several_models(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        save(
            load.from_arrays({f"{part}.w": np.ones((2, 2), "f4")}, part),
            tmp_path / "pipe" / part,
            config={"_class": part},
        )
    (tmp_path / "pipe" / "scheduler").mkdir()
    assert [m.name for m in load.open_models(tmp_path / "pipe")] == ["pipe/unet", "pipe/vae"]
    assert [c.name for c in load.discover(tmp_path)] == ["pipe/unet", "pipe/vae"]
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert [c.name for c in load.discover(tmp_path)] == ["pipe"]


def test_discover_names_and_skips(tmp_path: Path) -> None:
    one = {"w": np.ones(3, "f4")}
    for file in (
        "a.safetensors",
        "b/a.safetensors",
        "b/c.x.safetensors",
        "twin.safetensors",
        "noise0_scale2.0x.safetensors",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        write_safetensors(tmp_path / file, one)
    write_torch(tmp_path / "twin.pt", one)
    write_npz(tmp_path / "data.npz", one)
    save(load.from_arrays(one, "m"), tmp_path / "hf", config={})
    save(load.from_arrays(one, "m"), tmp_path / "hf" / "checkpoint-5", config={})
    for junk in (
        "README.md",
        "LICENSE",
        "x.json",
        "hf/tokenizer.json",
        "training_args.bin",
        "hf/optimizer.pt",
        "d.bin",
        "n.pkl",
    ):
        (tmp_path / junk).write_bytes(b"no weights")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = [c.name for c in load.discover(tmp_path)]
    assert names == [
        "a", "b/a", "b/c.x", "hf", "hf/checkpoint-5", "noise0_scale2.0x", "twin.pt", "twin.safetensors",
    ]  # fmt: skip
    assert [c.name for c in load.discover(tmp_path, all_formats=True)] == sorted([*names, "data"])
    assert [c.name for c in load.discover(tmp_path / "hf")] == ["hf"]
    assert [c.name for c in load.discover(tmp_path / "a.safetensors")] == ["a"]
    with pytest.raises(NotAModelError, match="does not exist"):
        list(load.discover(tmp_path / "absent"))


@pytest.mark.parametrize(("file", "package"), [("a.h5", "h5py"), ("a.keras", "h5py"), ("q.gguf", "gguf")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, package: str) -> None:
    if file == "q.gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(tmp_path / file, "x")
        raw = gguf.quants.quantize(np.ones((2, 32), "f4"), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("w", raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        WRITERS[file](tmp_path / file, arrays())
    assert load.load(tmp_path / file).parameters
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*stemma-ml\[formats\]"):
        load.load(tmp_path / file)


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    for file, word in {"m.pb": "TensorFlow", "m.mlmodel": "Core ML", "m.joblib": "joblib", "m.7z": "archive"}.items():
        (tmp_path / file).write_bytes(b"something else entirely")
        with pytest.raises(NotAModelError, match=word):
            load.load(tmp_path / file)


def test_saving_is_complete_or_absent(tmp_path: Path) -> None:
    model = load.from_arrays(arrays(), "m")
    path = save(model, tmp_path / "m.safetensors", metadata={"from": "here"})
    assert load.load(path).digest == model.digest
    assert load.load(path).claims == {"from": "here"}
    with pytest.raises(MisuseError, match="exists"):
        save(model, path)
    broken = dict(model.tensors)
    truncated = write_safetensors(tmp_path / "gone.safetensors", {"w": np.ones(9, "f4")})
    broken["w"] = load.load(truncated).tensors["w"]
    truncated.write_bytes(b"")
    before = path.read_bytes()
    with pytest.raises(UnreadableModelError):
        save(broken, path, replace=True)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gone.safetensors", "m.safetensors"]


def test_rounding_to_narrow_floats_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal(5000).astype("f4") * np.float32(1e3)
    x[:4] = [np.nan, np.inf, -np.inf, 3.4e38]
    for code, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        np.testing.assert_array_equal(decode(encode(x, code), code), torch.from_numpy(x).to(dtype).float().numpy())


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_merges_as_peft_merges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import torch
    from peft import LoraConfig, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.conv = torch.nn.Conv2d(3, 5, 3)
            self.fc = torch.nn.Linear(6, 8)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.fc(self.emb(x)))

    torch.manual_seed(0)
    card = "---\nlicense: other\nlicense_name: llama3.1\n---\n"
    for options in ({}, {"use_rslora": True, "rank_pattern": {"fc": 2}, "alpha_pattern": {"fc": 5}}):
        net = Net()
        base = load.from_arrays({n: t.clone() for n, t in net.state_dict().items()}, "base")
        save(base, tmp_path / "base", config={"model_type": "x"}, replace=True)
        (tmp_path / "base/README.md").write_text(card)
        tuned = get_peft_model(net, LoraConfig(r=3, lora_alpha=12, target_modules=["emb", "conv", "fc"],
                                               modules_to_save=["head"], **options))  # fmt: skip
        for name, p in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(p)
        tuned.save_pretrained(tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
        for place in ("organisation/base", "../base", str(tmp_path / "base")):
            (tmp_path / "adapter/adapter_config.json").write_text(
                json.dumps({**config, "base_model_name_or_path": place})
            )
            found = load.load(tmp_path / "adapter")
            assert found.claims["base_model_license"] == "other: llama3.1"
            assert found.config == {"model_type": "x"}
        (tmp_path / "adapter/adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": "far/away"})
        )
        with pytest.raises(UnreadableModelError, match="the base 'far/away' is not on this machine"):
            load.load(tmp_path / "adapter")
        merged = tuned.merge_and_unload().state_dict()
        assert set(found.tensors) == set(merged)
        for name, values in merged.items():
            np.testing.assert_allclose(found.tensors[name].array(), values.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
            changed = name.split(".")[0] in ("emb", "conv", "fc", "head") and not name.startswith(("conv.b", "fc.b"))
            assert (found.tensor_digests[name] != base.tensor_digests[name]) == changed
