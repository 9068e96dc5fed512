"""Our networks compute what independent implementations of the same architectures compute."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.signal import correlate2d

torch = pytest.importorskip("torch")

from stemma import networks  # noqa: E402
from stemma.checkpoints.save import save  # noqa: E402
from stemma.errors import UnreadableModelError  # noqa: E402
from stemma.networks.load import from_arrays, load  # noqa: E402
from stemma.zoo.kinds import KINDS  # noqa: E402
from stemma.zoo.training import initial  # noqa: E402


def weights(config, seed=0):
    """A random start with batch norm statistics and gains away from their trivial values."""
    rng = np.random.default_rng(seed)
    out = initial(config, seed)
    for name, a in out.items():
        if name.endswith("running_var"):
            out[name] = rng.uniform(0.5, 2, a.shape).astype(np.float32)
        elif a.ndim == 1 and a.dtype == np.float32:
            out[name] = (a + 0.3 * rng.standard_normal(a.shape)).astype(np.float32)
    return out


def made(config, seed=0):
    arrays = weights(config, seed)
    return networks.build_with_weights(from_arrays(arrays, "made", config)), arrays


def images(count=3):
    return np.random.default_rng(5).random((count, 1, 8, 8), np.float32)


def answer(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_mlp_is_the_textbook_formula():
    module, w = made(KINDS["mlp"].config)
    h = images().reshape(3, -1)
    for i in range(3):
        h = np.maximum(h @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"], 0)
    expected = h @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(answer(module, images()), expected, atol=1e-5)
    assert np.abs(answer(module, 1 - images()) - expected).max() > 0.01


def convolved(x, kernel, stride):
    pad = kernel.shape[-1] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    return np.stack([sum(correlate2d(c, k, "valid") for c, k in zip(x, ks, strict=True)) for ks in kernel])[
        :, ::stride, ::stride
    ]


def normed(x, w, name):
    mean, var, gain, shift = (
        w[f"{name}.{s}"][:, None, None] for s in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gain + shift


def test_cnn_is_convolutions_norms_and_shortcuts():
    config = KINDS["cnn"].config
    module, w = made(config)
    x = images(1)[0]
    h = np.maximum(normed(convolved(x, w["stem.conv.weight"], 1), w, "stem.bn"), 0)
    for i, stride in enumerate(config["strides"]):
        b = f"blocks.{i}"
        inner = np.maximum(normed(convolved(h, w[f"{b}.conv1.weight"], stride), w, f"{b}.bn1"), 0)
        inner = normed(convolved(inner, w[f"{b}.conv2.weight"], 1), w, f"{b}.bn2")
        if f"{b}.shortcut.conv.weight" in w:
            h = normed(convolved(h, w[f"{b}.shortcut.conv.weight"], stride), w, f"{b}.shortcut.bn")
        h = np.maximum(inner + h, 0)
    expected = w["head.weight"] @ h.mean((1, 2)) + w["head.bias"]
    np.testing.assert_allclose(answer(module, x[None])[0], expected, atol=1e-4)
    assert np.abs(answer(module, 1 - x[None])[0] - expected).max() > 0.01


@pytest.mark.parametrize("fused", [False, True])
def test_vit_is_torchs_own_encoder(fused):
    config = {**KINDS["vit"].config, "fused": fused}
    module, w = made(config)
    t = {n: torch.from_numpy(a) for n, a in w.items()}
    x = images()
    patches = x.reshape(3, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(3, 16, 4)
    h = torch.from_numpy(patches) @ t["patch_embed.proj.weight"].flatten(1).T + t["patch_embed.proj.bias"]
    h = torch.cat([t["class_token"].expand(3, 1, -1), h], 1) + t["position_embed"]
    for i in range(config["depth"]):
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True).eval()
        b = f"blocks.{i}"
        for kind in ("weight", "bias"):
            joint = [t[f"{b}.attn.{s}.{kind}"] for s in (["qkv"] if fused else "qkv")]
            ours = {
                f"self_attn.in_proj_{kind}": torch.cat(joint),
                f"self_attn.out_proj.{kind}": t[f"{b}.attn.o.{kind}"],
                f"linear1.{kind}": t[f"{b}.mlp.fc1.{kind}"],
                f"linear2.{kind}": t[f"{b}.mlp.fc2.{kind}"],
                f"norm1.{kind}": t[f"{b}.norm1.{kind}"],
                f"norm2.{kind}": t[f"{b}.norm2.{kind}"],
            }
            assert not layer.load_state_dict(ours, strict=False).unexpected_keys
        with torch.no_grad():
            h = layer(h)
    h = torch.nn.functional.layer_norm(h[:, 0], (32,), t["norm.weight"], t["norm.bias"])
    expected = (h @ t["head.weight"].T + t["head.bias"]).numpy()
    np.testing.assert_allclose(answer(module, x), expected, atol=1e-5)
    assert np.abs(answer(module, 1 - x) - expected).max() > 0.01


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_is_the_llama_of_transformers(tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {**KINDS["lm"].config, "tie_word_embeddings": tied}
    arrays = weights(config)
    folder = save(from_arrays(arrays, "lm", config), tmp_path / "lm", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokens = np.random.default_rng(0).integers(0, 256, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(
        answer(networks.build_with_weights(load(folder)), tokens), expected, atol=2e-5, rtol=1e-4
    )
    other = networks.build_with_weights(from_arrays(weights(config, 1), "other", config))
    assert np.abs(answer(other, tokens) - expected).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_double_weights_are_decoded(kind):
    config = KINDS[kind].config
    arrays = weights(config)
    x = np.full((1, 12), 65) if kind == "lm" else images()
    full = answer(networks.build_with_weights(from_arrays(arrays, "full", config)), x)
    half = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in arrays.items()}
    error = np.abs(answer(networks.build_with_weights(from_arrays(half, "half", config)), x) - full).max()
    assert 0 < error < 0.01 * np.abs(full).max()
    double = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in arrays.items()}
    module = networks.build_with_weights(from_arrays(double, "double", config))
    y = answer(module, x if kind == "lm" else x.astype(np.float64))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, full, atol=1e-4 * np.abs(full).max())


@pytest.mark.parametrize("kind", KINDS)
def test_input_spec_is_what_the_network_takes(kind):
    config = KINDS[kind].config
    spec = networks.input_spec(config)
    module, _ = made(config)
    low = np.full((1, *spec.shape), spec.low, np.int64 if spec.kind == "tokens" else np.float32)
    high = np.full_like(low, spec.high)
    assert np.isfinite(answer(module, low)).all()
    assert np.abs(answer(module, high) - answer(module, low)).max() > 0
    if spec.kind == "tokens":
        with pytest.raises(IndexError):
            answer(module, high + 1)


def test_errors_say_what_is_wrong():
    config = KINDS["mlp"].config
    arrays = weights(config)
    with pytest.raises(UnreadableModelError, match="has no configuration"):
        networks.build_with_weights(from_arrays(arrays, "bare"))
    with pytest.raises(UnreadableModelError, match=r"Supported: stemma-mlp"):
        networks.build_with_weights(from_arrays(arrays, "strange", {"model_type": "resnet"}))
    with pytest.raises(UnreadableModelError, match="does not describe a valid stemma-mlp"):
        networks.build({"model_type": "stemma-mlp", "hidden": [3]})
    with pytest.raises(UnreadableModelError, match=r"renamed do not fit .*layers\.0\.bias"):
        networks.build_with_weights(
            from_arrays({f"x.{n}": a for n, a in arrays.items()} | {"y": np.ones(3)}, "renamed", config)
        )
    with pytest.raises(UnreadableModelError, match=r"1 of the wrong shape \(head\.bias\)"):
        networks.build_with_weights(from_arrays({**arrays, "head.bias": np.ones(3, np.float32)}, "cut", config))


def test_importing_networks_and_zoo_loads_no_torch():
    line = "import sys, stemma.networks, stemma.zoo; print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
