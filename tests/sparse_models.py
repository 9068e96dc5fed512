"""A Llama of seven billion parameters in files that are mostly holes.

Real numbers stand where a comparison of samples reads: in the leading rows of every tensor. Everything else is zero,
and takes no room.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stemma.checkpoints.sample import sampled_rows

LLAMA_7B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip


def shapes_of(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a Llama."""
    d, f, v, layers = (
        int(str(config[k])) for k in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers")
    )
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d)}
    out["model.norm.weight"] = (d,)
    for i in range(layers):
        layer = f"model.layers.{i}"
        out |= {f"{layer}.self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        out |= {f"{layer}.mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")}
        out[f"{layer}.mlp.down_proj.weight"] = (d, f)
        out |= {f"{layer}.{n}.weight": (d,) for n in ("input_layernorm", "post_attention_layernorm")}
    return out


def write_sparse(
    folder: Path, config: Mapping[str, object], seed: int, base: int | None = None, noise: float = 0.1, shards: int = 2
) -> int:
    """Write a model in bfloat16, in shards with an index; a child is its base plus noise. Returns its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes, weight_map, total = shapes_of(config), {}, 0
    names = sorted(shapes)
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = names[shard::shards]
        header, at = {}, 0
        for n in own:
            size = 2 * int(np.prod(shapes[n]))
            header[n] = {"dtype": "BF16", "shape": list(shapes[n]), "data_offsets": [at, at + size]}
            at, weight_map[n] = at + size, name
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for n in own:
                _write_rows(
                    file, 8 + len(raw) + header[n]["data_offsets"][0], names.index(n), shapes[n], seed, base, noise
                )
            file.truncate(8 + len(raw) + at)
        total += at
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def _write_rows(file, at: int, number: int, shape: tuple[int, ...], seed: int, base: int | None, noise: float) -> None:
    leading = sampled_rows(shape)
    rows, row = (leading, int(np.prod(shape[1:]))) if leading is not None else (1, int(np.prod(shape)))
    x = _numbers(seed if base is None else base, number, rows * row)
    if base is not None:
        x = x + np.float32(noise) * _numbers(seed, number, rows * row)
    x = x + 1 if len(shape) == 1 else x
    file.seek(at)
    file.write(((x.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes())


def _numbers(seed: int, number: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).standard_normal(count, dtype=np.float32) * np.float32(0.02)
