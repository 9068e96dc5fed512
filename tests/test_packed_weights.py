"""Packed low-bit weights against slow packers written out bit by bit."""

import json

import numpy as np
import pytest

from stemma.checkpoints import load
from stemma.checkpoints.tensor import Tensor
from stemma.errors import UnreadableModelError

RNG = np.random.default_rng(0)


def weights(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return dict(load.from_arrays(arrays, "packed").weights)


def check(tensor: Tensor, expected: np.ndarray) -> None:
    assert (tensor.dtype, tensor.shape) == ("F32", expected.shape)
    np.testing.assert_allclose(tensor.array(), expected, rtol=1e-5, atol=1e-6)
    for start, stop in ((1, 2), (3, 7), (0, expected.shape[0])):
        np.testing.assert_allclose(tensor.rows(start, stop), expected[start:stop], rtol=1e-5, atol=1e-6)


def word(codes: list[int], bits: int) -> int:
    value = sum(int(c) << (bits * i) for i, c in enumerate(codes))
    return value - 2**32 if value >= 2**31 else value


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq(bits: int, ordered: bool) -> None:
    fan_in, out, groups, per = 64, 32, 4, 32 // bits
    codes = RNG.integers(0, 2**bits, (fan_in, out))
    zeros = RNG.integers(1, 2**bits, (groups, out))
    scales = RNG.random((groups, out)).astype("f2")
    group = RNG.integers(0, groups, fan_in) if ordered else np.arange(fan_in) // (fan_in // groups)
    expected = np.empty((out, fan_in), "f4")
    for i in range(fan_in):
        for o in range(out):
            expected[o, i] = (codes[i, o] - zeros[group[i], o]) * np.float32(scales[group[i], o])
    packed = [[word(codes[i : i + per, o], bits) for o in range(out)] for i in range(0, fan_in, per)]
    less_one = [[word(zeros[g, o : o + per] - 1, bits) for o in range(0, out, per)] for g in range(groups)]
    stored = {
        "l.qweight": np.array(packed, "i4"),
        "l.qzeros": np.array(less_one, "i4"),
        "l.scales": scales,
        "l.bias": np.ones(out, "f4"),
    }
    if ordered:
        stored["l.g_idx"] = group.astype("i4")
    found = weights(stored)
    assert set(found) == {"l.weight", "l.bias"}
    check(found["l.weight"], expected)


def test_awq() -> None:
    fan_in, out, groups = 32, 24, 2
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = RNG.integers(0, 16, (fan_in, out)), RNG.integers(0, 16, (groups, out))
    scales = RNG.random((groups, out)).astype("f2")

    def packed(rows: np.ndarray) -> np.ndarray:
        return np.array([[word([r[o + j] for j in order], 4) for o in range(0, out, 8)] for r in rows], "i4")

    expected = np.array(
        [
            [(codes[i, o] - zeros[i // 16, o]) * np.float32(scales[i // 16, o]) for i in range(fan_in)]
            for o in range(out)
        ]
    )
    found = weights({"l.qweight": packed(codes), "l.qzeros": packed(zeros), "l.scales": scales})
    check(found["l.weight"], expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors(bits: int) -> None:
    out, fan_in, groups, per = 10, 48, 3, 32 // bits
    codes = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, fan_in))
    scales = RNG.random((out, groups)).astype("f4")
    shifted = codes + 2 ** (bits - 1)
    stored = {
        "l.weight_packed": np.array(
            [[word(r[i : i + per], bits) for i in range(0, fan_in, per)] for r in shifted], "i4"
        ),
        "l.weight_scale": scales,
        "l.weight_shape": np.array([out, fan_in]),
    }
    check(weights(stored)["l.weight"], codes * np.repeat(scales, 16, axis=1))
    with pytest.raises(UnreadableModelError, match="not supported"):
        weights({**stored, "l.weight_zero_point": np.zeros((1, 3), "i4")})


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bit(nested: bool) -> None:
    shape, block = (9, 15), 32
    table = np.sort(RNG.standard_normal(16)).astype("f4")
    codes = RNG.integers(0, 16, shape).reshape(-1)
    blocks = -(-codes.size // block)
    state = {"shape": list(shape), "blocksize": block, "quant_type": "nf4", "dtype": "bfloat16"}
    stored: dict[str, np.ndarray] = {"w.quant_map": table}
    if nested:
        inner = RNG.standard_normal(256).astype("f4")
        outer, small = RNG.random(-(-blocks // 2)).astype("f4"), RNG.integers(0, 256, blocks).astype("u1")
        absmax = np.array([inner[small[i]] * outer[i // 2] + 0.25 for i in range(blocks)])
        state |= {"nested_blocksize": 2, "nested_offset": 0.25}
        stored |= {"w.absmax": small, "w.nested_absmax": outer, "w.nested_quant_map": inner}
    else:
        absmax = RNG.random(blocks).astype("f4")
        stored["w.absmax"] = absmax
    stored["w.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), "u1")
    padded = [*codes, 0]
    stored["w"] = np.array([[padded[i] << 4 | padded[i + 1]] for i in range(0, codes.size, 2)], "u1")
    expected = np.array([table[c] * absmax[i // block] for i, c in enumerate(codes)]).reshape(shape)
    found = weights(stored)
    assert set(found) == {"w"}
    check(found["w"], expected)
    with pytest.raises(UnreadableModelError, match="inconsistently"):
        weights({**stored, "w": stored["w"][:-1]})


def test_bitsandbytes_int8() -> None:
    codes, scb = RNG.integers(-127, 128, (8, 5)).astype("i1"), RNG.random(8).astype("f4")
    found = weights({"l.weight": codes, "l.SCB": scb, "l.weight_format": np.zeros(1, "u1")})
    assert set(found) == {"l.weight"}
    check(found["l.weight"], codes * scb[:, None] / 127)


def test_fp8_per_tensor_channel_and_block() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = RNG.standard_normal((300, 200)).astype("f4")
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        codes = values.astype(kind)
        wide = codes.astype("f4")
        blocks = RNG.random((3, 2)).astype("f4")
        spread = np.array([[blocks[i // 128, j // 128] for j in range(200)] for i in range(300)])
        rows = RNG.random((300, 1)).astype("f4")
        one = {"l.weight": codes, "l.weight_scale": np.array(0.5, "f4"), "l.input_scale": np.array(3.0, "f4")}
        assert set(weights(one)) == {"l.weight"}
        check(weights(one)["l.weight"], wide * 0.5)
        check(weights({"l.weight": codes, "l.weight_scale": rows})["l.weight"], wide * rows)
        check(weights({"l.weight": codes, "l.weight_scale_inv": blocks})["l.weight"], wide * spread)
    assert weights({"l.weight": codes})["l.weight"].dtype == "F8_E5M2", "without a scale it is a plain float tensor"


@pytest.mark.parametrize("ending", [("::scale", "::zero_point"), (".scale", ".zero_point"), ("_scale", "_zero_point")])
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_integers_with_companions(ending: tuple[str, str], axis: int | None) -> None:
    codes = RNG.integers(-128, 128, (8, 5, 3, 4)).astype("i1")
    n = 1 if axis is None else codes.shape[axis]
    scale, zero = RNG.random(n).astype("f4"), RNG.integers(-5, 5, n)
    wide = [1, 1, 1, 1]
    wide[axis or 0] = n
    found = weights({"w": codes, "w" + ending[0]: scale, "w" + ending[1]: zero, "b": np.ones(3, "f4")})
    assert set(found) == {"w", "b"}
    check(found["w"], (codes - zero.reshape(wide)) * scale.reshape(wide))
    codes_alone = weights({"w": codes, "b": np.ones(3, "f4")})
    assert codes_alone["w"].dtype == "I8", "integers without a scale stay as they are"
    floats = weights({"w": codes.astype("f4"), "w" + ending[0].replace("::", "_"): scale})
    assert len(floats) == 2, "a float tensor with a scale beside it is not packed"


def test_real_numbers_are_weights_whatever_their_names() -> None:
    names = [
        "a.W_q",
        "a.qweight",
        "a.codes",
        "a.codebooks",
        "a.trellis",
        "a.weight_packed",
        "a.B",
        "a.s",
        "a.weight_scale",
    ]
    found = weights({n: np.full((4, 4), i, "f4") for i, n in enumerate(names)})
    assert sorted(found) == sorted(names)
    assert all(t.dtype == "F32" for t in found.values())


def test_stored_tensors_stay_as_stored() -> None:
    model = load.from_arrays({"w": np.ones((2, 2), "i1"), "w::scale": np.ones(1, "f4")}, "m")
    assert set(model.tensors) == {"w", "w::scale"}
    assert model.weights["w"].dtype == "F32"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("EXL2", ["l.q_weight", "l.q_scale"]), ("HQQ", ["l.W_q"]), ("AQLM", ["l.codes", "l.codebooks"]),
        ("MXFP4", ["e.gate_blocks", "e.gate_scales"]), ("NVFP4", ["l.weight_packed", "l.weight_global_scale"]),
        ("QuIP#", ["l.Qidxs"]), ("3 bits", ["l.qweight", "l.qzeros", "l.scales"]), ("no 'qzeros'", ["l.qweight"]),
    ],
)  # fmt: skip
def test_unknown_packings_are_refused_by_name(kind: str, names: list[str]) -> None:
    arrays = {n: np.zeros((8, 3), "u1") for n in names}
    if kind == "3 bits":
        arrays = {
            "l.qweight": np.zeros((6, 32), "i4"),
            "l.qzeros": np.zeros((1, 3), "i4"),
            "l.scales": np.ones((1, 32), "f2"),
        }
    with pytest.raises(UnreadableModelError, match="supported"):
        weights(arrays)
