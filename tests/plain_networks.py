"""Networks of numbers drawn at random, under the names and configurations of five common architectures.

Nothing is trained: contents of independent draws are independent, and the same on every machine.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from stemma.architectures.unit_groups import permute, structure
from stemma.checkpoints.model import Model
from stemma.networks.load import from_arrays

Arrays = dict[str, np.ndarray]
Config = dict[str, Any] | None


def made(arrays: Arrays, config: Config = None, name: str = "net") -> Model:
    return from_arrays({n: np.ascontiguousarray(x) for n, x in arrays.items()}, name, config=config)


def _matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("f4")


def _vector(rng: np.random.Generator, n: int, around: float = 0.0) -> np.ndarray:
    return (around + 0.1 * rng.normal(size=n)).astype("f4")


def mlp(seed: int, sizes: tuple[int, ...] = (60, 96, 72, 10)) -> tuple[Arrays, Config]:
    rng, out = np.random.default_rng([1, seed]), {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        out |= {f"{2 * i}.weight": _matrix(rng, b, a), f"{2 * i}.bias": _vector(rng, b)}
    return out, None


def cnn(seed: int, widths: tuple[int, ...] = (16, 40, 56)) -> tuple[Arrays, Config]:
    rng, out, before = np.random.default_rng([2, seed]), {}, 3
    for i, n in enumerate(widths):
        out |= {f"features.{3 * i}.weight": _matrix(rng, n, before, 3, 3)}
        out |= {f"features.{3 * i + 1}.{k}": np.abs(_vector(rng, n, 1.0)) for k in ("weight", "running_var")}
        out |= {f"features.{3 * i + 1}.{k}": _vector(rng, n) for k in ("bias", "running_mean")}
        before = n
    return out | {"classifier.weight": _matrix(rng, 10, before), "classifier.bias": _vector(rng, 10)}, None


def _linear(rng: np.random.Generator, name: str, rows: int, columns: int) -> Arrays:
    return {f"{name}.weight": _matrix(rng, rows, columns), f"{name}.bias": _vector(rng, rows)}


def _norm(rng: np.random.Generator, name: str, n: int) -> Arrays:
    return {f"{name}.weight": _vector(rng, n, 1.0), f"{name}.bias": _vector(rng, n)}


def vit(seed: int, d: int = 48, inner: int = 104, layers: int = 3, heads: int = 4) -> tuple[Arrays, Config]:
    rng = np.random.default_rng([3, seed])
    out = {
        "vit.embeddings.cls_token": _matrix(rng, 1, 1, d),
        "vit.embeddings.position_embeddings": _matrix(rng, 1, 17, d),
        "vit.embeddings.patch_embeddings.projection.weight": _matrix(rng, d, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": _vector(rng, d),
    }
    for i in range(layers):
        p = f"vit.encoder.layer.{i}."
        for k in ("query", "key", "value"):
            out |= _linear(rng, f"{p}attention.attention.{k}", d, d)
        out |= _linear(rng, f"{p}attention.output.dense", d, d) | _linear(rng, f"{p}intermediate.dense", inner, d)
        out |= _linear(rng, f"{p}output.dense", d, inner)
        out |= _norm(rng, f"{p}layernorm_before", d) | _norm(rng, f"{p}layernorm_after", d)
    out |= _norm(rng, "vit.layernorm", d) | _linear(rng, "classifier", 10, d)
    config = {
        "model_type": "vit", "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, "image_size": 16, "patch_size": 4, "num_channels": 3,
        "architectures": ["ViTForImageClassification"],
    }  # fmt: skip
    return out, config


def bert(
    seed: int, d: int = 48, inner: int = 120, layers: int = 3, heads: int = 4, tokens: int = 150
) -> tuple[Arrays, Config]:  # fmt: skip
    rng = np.random.default_rng([4, seed])
    out = {
        f"embeddings.{k}_embeddings.weight": _matrix(rng, n, d)
        for k, n in (("word", tokens), ("position", 32), ("token_type", 2))
    } | _norm(rng, "embeddings.LayerNorm", d)
    for i in range(layers):
        p = f"encoder.layer.{i}."
        for k in ("query", "key", "value"):
            out |= _linear(rng, f"{p}attention.self.{k}", d, d)
        out |= _linear(rng, f"{p}attention.output.dense", d, d) | _norm(rng, f"{p}attention.output.LayerNorm", d)
        out |= _linear(rng, f"{p}intermediate.dense", inner, d) | _linear(rng, f"{p}output.dense", d, inner)
        out |= _norm(rng, f"{p}output.LayerNorm", d)
    config = {
        "model_type": "bert", "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, "vocab_size": tokens, "max_position_embeddings": 32, "type_vocab_size": 2,
        "architectures": ["BertModel"],
    }  # fmt: skip
    return out, config


def llama(
    seed: int, d: int = 64, inner: int = 112, layers: int = 3, heads: int = 4, keys: int = 2, tokens: int = 200
) -> tuple[Arrays, Config]:  # fmt: skip
    rng = np.random.default_rng([5, seed])
    out, k = {"model.embed_tokens.weight": _matrix(rng, tokens, d)}, d // heads * keys
    for i in range(layers):
        p = f"model.layers.{i}."
        out |= {
            p + name: _matrix(rng, *shape)
            for name, shape in {
                "self_attn.q_proj.weight": (d, d), "self_attn.k_proj.weight": (k, d),
                "self_attn.v_proj.weight": (k, d), "self_attn.o_proj.weight": (d, d),
                "mlp.gate_proj.weight": (inner, d), "mlp.up_proj.weight": (inner, d),
                "mlp.down_proj.weight": (d, inner),
            }.items()
        }  # fmt: skip
        out |= {f"{p}{n}_layernorm.weight": _vector(rng, d, 1.0) for n in ("input", "post_attention")}
    out |= {"model.norm.weight": _vector(rng, d, 1.0), "lm_head.weight": _matrix(rng, tokens, d)}
    config = {
        "model_type": "llama", "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "intermediate_size": inner, "vocab_size": tokens, "tie_word_embeddings": False,
        "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    return out, config


ARCHITECTURES: dict[str, Callable[..., tuple[Arrays, Config]]] = {
    "mlp": mlp, "cnn": cnn, "vit": vit, "bert": bert, "llama": llama,
}  # fmt: skip


def network(kind: str, seed: int, **sizes: Any) -> Model:
    """One network of an architecture."""
    return made(*ARCHITECTURES[kind](seed, **sizes), name=f"{kind}-{seed}")


def reordered(arrays: Arrays, config: Config, seed: int = 0) -> Arrays:
    """The same function: every set of units that may be reordered, reordered."""
    known = structure(made(arrays, config))
    rng = np.random.default_rng([6, seed])
    orders = {g.name: rng.permutation(g.size) for g in known.groups if g.exchangeable}
    return dict(permute(arrays, known, orders))


def narrowed(arrays: Arrays, config: Config, share: float = 0.6, seed: int = 0) -> Arrays:
    """Units taken out of every set that may lose some; the others in another order."""
    known = structure(made(arrays, config))
    kept = {g.name: round(share * g.size) for g in known.groups if g.exchangeable and g.prunable}
    out = reordered(arrays, config, seed)
    for tensor, labels in known.axes.items():
        for axis, label in enumerate(labels):
            left = np.ones(out[tensor].shape[axis], bool)
            for segment in (s for s in label.segments if s.group in kept):
                left[segment.index()[kept[segment.group] :]] = False
            out[tensor] = out[tensor].compress(left, axis=axis)
    return out


def renamed(arrays: Arrays, seed: int = 0) -> Arrays:
    """Names that mean nothing, in another order."""
    order = np.random.default_rng([9, seed]).permutation(len(arrays))
    names = list(arrays)
    return {f"t{i:03d}": arrays[names[k]] for i, k in enumerate(order)}


def perturbed(arrays: Arrays, noise: float, seed: int = 0) -> Arrays:
    """Noise on every matrix, in shares of its standard deviation."""
    rng = np.random.default_rng([7, seed])
    return {
        n: (x + noise * x.std() * rng.normal(size=x.shape)).astype("f4") if x.ndim > 1 else x for n, x in arrays.items()
    }


def rounded(arrays: Arrays, bits: int = 8) -> Arrays:
    """Every row of a matrix on a grid of its own."""
    out, steps = {}, 2 ** (bits - 1) - 1
    for n, x in arrays.items():
        if x.ndim > 1:
            scale = np.abs(x).max(axis=tuple(range(1, x.ndim)), keepdims=True) / steps
            x = (np.round(x / scale) * scale).astype("f4")
        out[n] = x
    return out
