"""Integer weights without a known scale are weights; packed codes, masks and indices are not."""

import warnings

import numpy as np
import pytest

from stemma.checkpoints.integer_codes import is_codes
from stemma.errors import UnreadableModelError
from stemma.fingerprints.tensor_content import features, matrices
from stemma.kinship.compare import compare
from stemma.networks.load import from_arrays

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(128, 256))


def codes(w, top=127):
    return np.rint(w / np.abs(w).max(1, keepdims=True) * top).astype(int)


def stored(array):
    return from_arrays({"w": array}, "m").tensors["w"]


REAL = {
    "int8": codes(WEIGHTS).astype(np.int8),
    "uint8": (codes(WEIGHTS) + 128).clip(0, 255).astype(np.uint8),
    "int16": codes(WEIGHTS, 32767).astype(np.int16),
    "int32": codes(WEIGHTS).astype(np.int32),
    "heavy tails": codes(RNG.standard_t(3, size=(128, 256))).astype(np.int8),
    "pruned": (codes(WEIGHTS) * (RNG.random((128, 256)) < 0.3)).astype(np.int8),
    "small": codes(WEIGHTS[:6, :9]).astype(np.int8),
}
NIBBLES = (codes(WEIGHTS, 7) + 8).astype(np.uint8)
PACKED = NIBBLES[:, ::2] | (NIBBLES[:, 1::2] << 4)
TERNARY = (np.clip(np.rint(WEIGHTS), -1, 1) + 1).astype(np.uint8)
OTHER = {
    "nibbles": PACKED,
    "nibbles as int8": PACKED.view(np.int8),
    "nibbles as int16": PACKED.view(np.int16),
    "nibbles as int32": PACKED.view(np.int32),
    "ternary": TERNARY[:, ::4] | (TERNARY[:, 1::4] << 2) | (TERNARY[:, 2::4] << 4) | (TERNARY[:, 3::4] << 6),
    "mask": (WEIGHTS > 0).astype(np.uint8),
    "index": np.arange(4096, dtype=np.int32).reshape(64, 64),
    "compressed": RNG.integers(0, 256, (64, 64)).astype(np.uint8),
}


@pytest.mark.parametrize("kind", REAL)
def test_one_code_per_weight_is_read_as_weights(kind):
    model = from_arrays({"w": REAL[kind]}, kind)
    found = matrices(model)["w"].array()
    expected = WEIGHTS[: found.shape[0], : found.shape[1]]
    assert found.dtype == np.float32
    if kind not in ("heavy tails", "pruned"):
        scaled = expected / np.abs(expected).max(1, keepdims=True)
        assert np.corrcoef(found.ravel(), scaled.ravel())[0, 1] > 0.999
        assert abs(found.mean()) < 2 * found.std()


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_no_weight_stays_as_stored(kind):
    assert not is_codes(stored(OTHER[kind]))
    assert not matrices(from_arrays({"w": OTHER[kind]}, kind))


def test_integer_tables_beside_real_weights_stay_as_stored():
    model = from_arrays({"w": WEIGHTS.astype(np.float32), "table": REAL["int8"][:64]}, "mixed")
    assert set(matrices(model)) == {"w"}


def test_scales_under_the_plural_are_read_and_packed_codes_beside_them_are_not():
    scale = (np.abs(WEIGHTS).max(1) / 127).astype(np.float32)
    for name in ("a.weight.scales", "a.scales", "a.weight_scales"):
        model = from_arrays({"a.weight": REAL["int8"], name: scale}, "m")
        assert set(model.weights) == {"a.weight"}
        np.testing.assert_allclose(model.weights["a.weight"].array(), WEIGHTS, atol=scale.max())
    packed = from_arrays({"a.weight": PACKED, "a.scales": scale}, "m")
    assert packed.weights["a.weight"].dtype == "U8"
    groups = np.ones((128, 4), np.float32)
    mlx = from_arrays({"a.weight": PACKED.view(np.uint32), "a.scales": groups, "a.biases": groups}, "m")
    with pytest.raises(UnreadableModelError, match="MLX"):
        matrices(mlx)


def network(seed):
    rng = np.random.default_rng(seed)
    sizes = [(40, 64), (48, 40), (32, 48), (10, 32)]
    return {f"fc{i}.weight": (rng.standard_t(4, size=s) / 8).astype(np.float32) for i, s in enumerate(sizes)}


@pytest.mark.parametrize("signed", [True, False])
def test_codes_without_a_scale_are_related_to_their_source_and_to_no_other(signed):
    source, other = network(0), network(1)
    low = {n: codes(w).astype(np.int8) if signed else (codes(w) + 128).astype(np.uint8) for n, w in source.items()}
    order = np.random.default_rng(2).permutation(len(low))
    anonymous = {f"t{i:04d}": w for i, w in zip(order, low.values(), strict=True)}
    for suspect in (low, anonymous):
        found = compare(from_arrays(source, "a"), from_arrays(suspect, "b")).weights
        assert found.p_value is not None
        assert found.p_value < 1e-6
        stranger = compare(from_arrays(other, "a"), from_arrays(suspect, "b")).weights
        assert stranger.p_value is None or stranger.p_value > 1e-4


@pytest.mark.parametrize(("factor", "dtype"), [
    (1e20, np.float32), (1e36, np.float32), (1e-25, np.float32), (1e60, np.float64), (1e300, np.float64),
    (1e-200, np.float64),
])  # fmt: skip
def test_features_do_not_depend_on_how_large_weights_are(factor, dtype):
    small = RNG.normal(size=(40, 30)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = features(stored(small)), features(stored((small.astype(np.float64) * factor).astype(dtype)))
        np.testing.assert_allclose(b.scalars[1:], a.scalars[1:], atol=1e-6)
        assert b.scalars[0] - a.scalars[0] == pytest.approx(0.3 * np.log(factor), abs=1e-6)
        for x, y in zip(a.profiles, b.profiles, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)
        huge = small * np.float32(1e25)
        huge[0, 0], huge[1] = np.inf, np.nan
        assert np.isfinite(features(stored(huge)).scalars).all()


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored_as", ["uint8", "int8", "int16", "uint32"])
def test_bytes_of_floats_in_whole_numbers_hide_no_model(kind: str, stored_as: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    floats = {f"l{i}.weight": RNG.normal(size=(64, 96)) * 0.05 for i in range(3)}
    arrays = {n: x.astype(getattr(ml_dtypes, kind, kind)) for n, x in floats.items()}
    if np.dtype(stored_as).itemsize > arrays["l0.weight"].itemsize:
        pytest.skip("wider than the floats")
    hidden = from_arrays({n: x.view(stored_as) for n, x in arrays.items()}, "hidden")
    found = compare(from_arrays(arrays, "known"), hidden)
    assert (found.verdict, found.relation.kind) == ("related", "reformatted")
    other = from_arrays({n: (RNG.normal(size=x.shape) * 0.05).astype(x.dtype) for n, x in arrays.items()}, "other")
    assert compare(other, hidden).verdict != "related"
