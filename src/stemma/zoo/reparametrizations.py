"""Function-preserving changes beyond permutation: norms folded or rescaled, attention rescaled, residual rotated."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stemma.zoo.symmetries import Arrays, multiply_along

Config = Mapping[str, Any]


def norm_readers(config: Config) -> dict[str, tuple[str, ...]]:
    """Names of the matrices that read each norm's output, by name of the norm (transformers)."""
    out: dict[str, tuple[str, ...]] = {}
    if config["model_type"] == "stemma-vit":
        for i in range(config["depth"]):
            b = f"blocks.{i}"
            out[f"{b}.norm1"] = (f"{b}.attn.qkv",) if config.get("fused") else tuple(f"{b}.attn.{s}" for s in "qkv")
            out[f"{b}.norm2"] = (f"{b}.mlp.fc1",)
        return {**out, "norm": ("head",)}
    for i in range(config["num_hidden_layers"]):
        b = f"model.layers.{i}"
        out[f"{b}.input_layernorm"] = tuple(f"{b}.self_attn.{s}_proj" for s in "qkv")
        out[f"{b}.post_attention_layernorm"] = tuple(f"{b}.mlp.{s}_proj" for s in ("gate", "up"))
    return {**out, "model.norm": ("lm_head",)}


def untie_head(config: Config, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Arrays]:
    """The same language model with a head of its own where it shared the embedding."""
    if not config.get("tie_word_embeddings"):
        return dict(config), dict(arrays)
    head = arrays["model.embed_tokens.weight"].copy()
    return {**config, "tie_word_embeddings": False}, {**arrays, "lm_head.weight": head}


def scale_norms(config: Config, arrays: Mapping[str, np.ndarray], rng: np.random.Generator | None) -> Arrays:
    """Change norm gains by random factors and their readers inversely; without `rng`, fold gains and shifts."""
    out = dict(arrays)
    for norm, readers in norm_readers(config).items():
        gain = out[f"{norm}.weight"].astype(np.float64)
        factor = 1 / np.where(gain == 0, 1, gain) if rng is None else random_factors(len(gain), rng)
        shift = out.get(f"{norm}.bias")
        for name in readers:
            if shift is not None and rng is None:
                moved = out[f"{name}.weight"].astype(np.float64) @ shift.astype(np.float64)
                out[f"{name}.bias"] = (out[f"{name}.bias"] + moved).astype(shift.dtype)
            out[f"{name}.weight"] = multiply_along(out[f"{name}.weight"], 1, 1 / factor)
        out[f"{norm}.weight"] = multiply_along(out[f"{norm}.weight"], 0, factor)
        if shift is not None:
            out[f"{norm}.bias"] = np.zeros_like(shift) if rng is None else multiply_along(shift, 0, factor)
    return out


def scale_queries(config: Config, arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> Arrays:
    """Multiply queries and divide keys; in a rotary model both halves of a pair alike, one factor per group."""
    out = dict(arrays)
    if config["model_type"] == "stemma-vit":
        size = config["heads"] * config.get("head_dim", config["width"] // config["heads"])
        for i in range(config["depth"]):
            factor = random_factors(size, rng)
            for kind in ("weight", "bias"):
                if config.get("fused"):
                    whole = np.concatenate([factor, 1 / factor, np.ones(size)])
                    name = f"blocks.{i}.attn.qkv.{kind}"
                    out[name] = multiply_along(out[name], 0, whole)
                else:
                    for s, vector in (("q", factor), ("k", 1 / factor)):
                        name = f"blocks.{i}.attn.{s}.{kind}"
                        out[name] = multiply_along(out[name], 0, vector)
        return out
    shared, repeat = config["num_key_value_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    for i in range(config["num_hidden_layers"]):
        pairs = random_factors(shared * config["head_dim"] // 2, rng).reshape(shared, -1)
        key = np.concatenate([pairs, pairs], 1)
        query = np.repeat(key, repeat, axis=0)
        q, k = (f"model.layers.{i}.self_attn.{s}_proj.weight" for s in "qk")
        out[q], out[k] = multiply_along(out[q], 0, query.reshape(-1)), multiply_along(out[k], 0, 1 / key.reshape(-1))
    return out


def scale_batch_norms(arrays: Mapping[str, np.ndarray], rng: np.random.Generator, epsilon: float = 1e-5) -> Arrays:
    """Scale convolutions before a batch norm per channel; statistics and gains compensate, epsilon included."""
    out = dict(arrays)
    for norm in sorted(n.removesuffix(".running_var") for n in arrays if n.endswith(".running_var")):
        conv = norm.replace(".bn", ".conv")
        variance = out[f"{norm}.running_var"].astype(np.float64)
        factor = random_factors(len(variance), rng)
        new = (variance * factor**2).astype(np.float32).astype(np.float64)
        gain = np.sqrt((new + epsilon) / (variance + epsilon)) / factor
        out[f"{conv}.weight"] = multiply_along(out[f"{conv}.weight"], 0, factor)
        out[f"{norm}.running_mean"] = multiply_along(out[f"{norm}.running_mean"], 0, factor)
        out[f"{norm}.running_var"] = new.astype(out[f"{norm}.running_var"].dtype)
        out[f"{norm}.weight"] = multiply_along(out[f"{norm}.weight"], 0, gain)
    return out


def fold_batch_norms(config: Config, arrays: Mapping[str, np.ndarray], epsilon: float = 1e-5) -> tuple[dict, Arrays]:
    """Configuration and weights of a CNN without batch norm: convolutions take up gain, statistics and shift."""
    out = {n: a for n, a in arrays.items() if ".bn" not in n}
    for norm in sorted(n.removesuffix(".running_var") for n in arrays if n.endswith(".running_var")):
        conv = norm.replace(".bn", ".conv")
        mean, variance, gain, shift = (
            arrays[f"{norm}.{s}"].astype(np.float64) for s in ("running_mean", "running_var", "weight", "bias")
        )
        factor = gain / np.sqrt(variance + epsilon)
        out[f"{conv}.weight"] = multiply_along(arrays[f"{conv}.weight"], 0, factor)
        out[f"{conv}.bias"] = (shift - mean * factor).astype(arrays[f"{norm}.bias"].dtype)
    return {**config, "batch_norm": False}, out


def rotate_residual_stream(
    config: Config, arrays: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[dict, Arrays]:
    """Rotate the residual stream of a language model by a random orthogonal matrix (Haar), with norm gains folded.

    A root mean square does not change under rotation, so that the function stays.

    Returns:
        Configuration (its head is untied) and weights.

    Source: Ashkboos et al. 2024, arXiv:2401.15024, section 3.
    """
    config, out = untie_head(config, arrays)
    out = scale_norms(config, out, None)
    width = config["hidden_size"]
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    turn = q * np.sign(np.diag(r))
    for name, array in out.items():
        if array.ndim != 2:
            continue
        exact = array.astype(np.float64)
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        out[name] = (turn.T @ exact if writes else exact @ turn).astype(array.dtype)
    return config, out


def append_tokens(
    config: Config, arrays: Mapping[str, np.ndarray], added: int, rng: np.random.Generator
) -> tuple[dict, Arrays]:
    """Append `added` tokens to a language model's vocabulary; logits of the old tokens stay as they are.

    New embeddings are drawn around the mean of the old ones.

    Returns:
        Configuration and weights.
    """
    out = dict(arrays)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in out:
            old = out[name]
            fresh = old.mean(0) + 0.1 * old.std() * rng.standard_normal((added, old.shape[1]))
            out[name] = np.concatenate([old, fresh.astype(old.dtype)])
    return {**config, "vocab_size": config["vocab_size"] + added}, out


def random_factors(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random positive factors `[count]`, log-uniform between a quarter and four."""
    return 2.0 ** rng.uniform(-2, 2, count)
