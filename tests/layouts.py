"""One network as the tools of the field write it: other names, orders of rows, axes, joins, stacks and number formats.

Facts about formats are public; every writer here is this project's own.
"""

from collections.abc import Callable

import numpy as np

from plain_networks import Arrays

Writer = Callable[[Arrays], Arrays]
HEADS, KEYS, SIZE, WIDTH = 4, 2, 16, 64
"""Of the Llama-like network: query heads, key heads, numbers of a head, width."""


def layers(arrays: Arrays, mark: str) -> int:
    return sum(n.endswith(mark) for n in arrays)


# Rows of rotary queries and keys


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head put beside each other: pairs of a plane become neighbours."""
    return x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def _llama(
    arrays: Arrays, names: dict[str, str], prefix: str, *, rows: Callable[[str, np.ndarray], np.ndarray]
) -> Arrays:
    """Other names for each part of each layer, `prefix` holding the number as `#`."""
    out: Arrays = {}
    for n, x in arrays.items():
        words = n.split(".")
        layer = f"{prefix.replace('#', words[2])}." if words[1] == "layers" else ""
        part = ".".join(words[3:] if layer else words)
        out[layer + names[part]] = rows(part, x)
    return out


GGUF = {
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight", "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight", "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
}  # fmt: skip
META = {
    "self_attn.q_proj.weight": "attention.wq.weight", "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight", "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight", "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight", "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight", "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight", "lm_head.weight": "output.weight",
}  # fmt: skip


def rotary(part: str, x: np.ndarray) -> np.ndarray:
    heads = {"self_attn.q_proj.weight": HEADS, "self_attn.k_proj.weight": KEYS}.get(part)
    return x if heads is None else interleaved(x, heads)


def gguf(arrays: Arrays) -> Arrays:
    return _llama(arrays, GGUF, "blk.#", rows=rotary)


def meta(arrays: Arrays) -> Arrays:
    return _llama(arrays, META, "layers.#", rows=rotary)


TORCHTUNE = {
    "self_attn.q_proj.weight": "attn.q_proj.weight", "self_attn.k_proj.weight": "attn.k_proj.weight",
    "self_attn.v_proj.weight": "attn.v_proj.weight", "self_attn.o_proj.weight": "attn.output_proj.weight",
    "mlp.gate_proj.weight": "mlp.w1.weight", "mlp.up_proj.weight": "mlp.w3.weight",
    "mlp.down_proj.weight": "mlp.w2.weight", "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale", "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.scale", "lm_head.weight": "output.weight",
}  # fmt: skip


def torchtune(arrays: Arrays) -> Arrays:
    return _llama(arrays, TORCHTUNE, "layers.#", rows=rotary)


# Joined


def _each(arrays: Arrays, change: Callable[[str, Arrays], None]) -> Arrays:
    out = dict(arrays)
    for i in range(layers(arrays, "q_proj.weight")):
        change(f"model.layers.{i}.", out)
    return out


def _qkv(out: Arrays, p: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(out.pop(f"{p}self_attn.{k}_proj.weight") for k in "qkv")  # type: ignore[return-value]


def vllm(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        out[p + "self_attn.qkv_proj.weight"] = np.concatenate(_qkv(out, p))
        out[p + "mlp.gate_up_proj.weight"] = np.concatenate(
            [out.pop(f"{p}mlp.{k}_proj.weight") for k in ("gate", "up")]
        )

    return _each(arrays, change)


def megatron_core(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        q, k, v = (x.reshape(KEYS, -1, WIDTH) for x in _qkv(out, p))
        m = p.replace("model.layers", "decoder.layers")
        out[m + "self_attention.linear_qkv.weight"] = np.concatenate([q, k, v], 1).reshape(-1, WIDTH)
        out[m + "self_attention.linear_proj.weight"] = out.pop(p + "self_attn.o_proj.weight")
        out[m + "mlp.linear_fc1.weight"] = np.concatenate([out.pop(f"{p}mlp.{k}_proj.weight") for k in ("gate", "up")])
        out[m + "mlp.linear_fc2.weight"] = out.pop(p + "mlp.down_proj.weight")
        out[m + "self_attention.linear_qkv.layer_norm_weight"] = out.pop(p + "input_layernorm.weight")
        out[m + "mlp.linear_fc1.layer_norm_weight"] = out.pop(p + "post_attention_layernorm.weight")

    return _each(arrays, change)


def tensorrt_llm(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        m = p.replace("model.layers", "transformer.layers")
        out[m + "attention.qkv.weight"] = np.concatenate(_qkv(out, p))
        for old, new in (("self_attn.o_proj", "attention.dense"), ("mlp.gate_proj", "mlp.fc"),
                         ("mlp.up_proj", "mlp.gate"), ("mlp.down_proj", "mlp.proj"),
                         ("input_layernorm", "input_layernorm"),
                         ("post_attention_layernorm", "post_layernorm")):  # fmt: skip
            out[f"{m}{new}.weight"] = out.pop(f"{p}{old}.weight")

    return _each(arrays, change)


def xformers(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        out[p + "mlp.w12.weight"] = np.concatenate([out.pop(f"{p}mlp.{k}_proj.weight") for k in ("gate", "up")])
        out[p + "mlp.w3.weight"] = out.pop(p + "mlp.down_proj.weight")

    return _each(arrays, change)


def two_ranks(arrays: Arrays) -> Arrays:
    """Tensor parallelism of two, the shards beside each other under their ranks."""
    out: Arrays = {}
    for n, x in arrays.items():
        axis = 1 if n.endswith(("o_proj.weight", "down_proj.weight")) else 0
        if x.ndim < 2:
            out[n] = x
            continue
        for rank, piece in enumerate(np.split(x, 2, axis)):
            out[f"{n}.rank{rank}"] = np.ascontiguousarray(piece)
    return out


def zipped_ranks(arrays: Arrays) -> Arrays:
    """Joined projections whose halves belong to two ranks: gate and up of the first, then of the second."""

    def change(p: str, out: Arrays) -> None:
        gate, up = (np.split(out.pop(f"{p}mlp.{k}_proj.weight"), 2) for k in ("gate", "up"))
        out[p + "mlp.gate_up_proj.weight"] = np.concatenate([gate[0], up[0], gate[1], up[1]])

    return _each(arrays, change)


# Stacked and transposed


def flax(arrays: Arrays) -> Arrays:
    """Kernels input first, names with slashes."""
    out = {}
    for n, x in arrays.items():
        word = "kernel" if _linear(n, x) else "scale"
        out[f"params/{n.replace('.', '/').replace('weight', word)}"] = x.T if _linear(n, x) else x
    return out


def _linear(name: str, x: np.ndarray) -> bool:
    return x.ndim == 2 and "embed" not in name


def onnx(arrays: Arrays) -> Arrays:
    """Numbered initialisers, right-hand sides of products."""
    numbers = iter(range(1000, 10_000, 7))
    return {
        f"onnx::MatMul_{next(numbers)}" if _linear(n, x) else n: x.T if _linear(n, x) else x for n, x in arrays.items()
    }


def scanned(arrays: Arrays) -> Arrays:
    """One tensor for all layers, the number of the layer first, kernels input first."""
    out = {n: x for n, x in arrays.items() if ".layers." not in n}
    parts = {n.split(".", 3)[3] for n in arrays if ".layers." in n}
    for part in sorted(parts):
        every = [arrays[f"model.layers.{i}.{part}"] for i in range(layers(arrays, "q_proj.weight"))]
        out[f"layers/{part}"] = np.stack([x.T if x.ndim == 2 else x for x in every])
    return out


def scanned_inside(arrays: Arrays) -> Arrays:
    """The same with the number of the layer second."""
    return {
        n: np.moveaxis(x, 0, 1) if n.startswith("layers/") and x.ndim == 3 else x for n, x in scanned(arrays).items()
    }


def tokens_moved(arrays: Arrays) -> Arrays:
    order = np.random.default_rng(0).permutation(200)
    return {n: x[order] if "embed_tokens" in n or "lm_head" in n else x for n, x in arrays.items()}


def vocabulary_padded(arrays: Arrays) -> Arrays:
    """Rows of zeros up to a multiple of 128."""
    return {
        n: np.concatenate([x, np.zeros((56, x.shape[1]), x.dtype)]) if "embed_tokens" in n or "lm_head" in n else x
        for n, x in arrays.items()
    }


def half(dtype: str) -> Writer:
    return lambda arrays: {n: x.astype(dtype) for n, x in arrays.items()}


def eight_bits(arrays: Arrays) -> Arrays:
    """Rows in blocks of 32, one step for each: what a reader makes of Q8_0."""
    return {n: _blocks(x, 127) if x.ndim == 2 else x for n, x in arrays.items()}


def four_bits(arrays: Arrays) -> Arrays:
    return {n: _blocks(x, 7) if x.ndim == 2 else x for n, x in arrays.items()}


def _blocks(x: np.ndarray, steps: int) -> np.ndarray:
    b = x.reshape(-1, 16)
    scale = np.maximum(np.abs(b).max(1, keepdims=True), 1e-12) / steps
    return (np.round(b / scale) * scale).astype("f4").reshape(x.shape)


LLAMA: dict[str, Writer] = {
    "llama.cpp GGUF": gguf, "Meta": meta, "torchtune": torchtune, "vLLM": vllm, "Megatron-core": megatron_core,
    "TensorRT-LLM": tensorrt_llm, "xFormers SwiGLU": xformers, "two tensor-parallel ranks": two_ranks,
    "joined halves of ranks": zipped_ranks, "Flax": flax, "ONNX": onnx, "MaxText, scanned": scanned,
    "T5X, scanned inside": scanned_inside, "token ids reordered": tokens_moved,
    "vocabulary padded": vocabulary_padded, "float16": half("f2"),
    "GGUF Q8_0": lambda x: eight_bits(gguf(x)), "GGUF Q4_0": lambda x: four_bits(gguf(x)),
    "Megatron-core, float16": lambda x: half("f2")(megatron_core(x)), "vLLM, 8 bits": lambda x: eight_bits(vllm(x)),
    "Meta, eight bits": lambda x: eight_bits(meta(x)),
}  # fmt: skip


# BERT-like


def _bert_each(arrays: Arrays, change: Callable[[str, Arrays], None]) -> Arrays:
    out = dict(arrays)
    for i in range(layers(arrays, "self.query.weight")):
        change(f"encoder.layer.{i}.", out)
    return out


def _joined(out: Arrays, p: str, word: str) -> np.ndarray:
    return np.concatenate([out.pop(f"{p}attention.self.{k}.{word}") for k in ("query", "key", "value")])


def torch_encoder(arrays: Arrays) -> Arrays:
    """`torch.nn.TransformerEncoder`: joined input projection."""

    def change(p: str, out: Arrays) -> None:
        m = p.replace("encoder.layer", "encoder.layers")
        for w in ("weight", "bias"):
            out[f"{m}self_attn.in_proj_{w}"] = _joined(out, p, w)
            for old, new in (("attention.output.dense", "self_attn.out_proj"), ("intermediate.dense", "linear1"),
                             ("output.dense", "linear2"), ("attention.output.LayerNorm", "norm1"),
                             ("output.LayerNorm", "norm2")):  # fmt: skip
                out[f"{m}{new}.{w}"] = out.pop(f"{p}{old}.{w}")

    return _bert_each(arrays, change)


def ctranslate2(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        m = f"encoder/layer_{p.split('.')[2]}/"
        for w in ("weight", "bias"):
            out[f"{m}self_attention/linear_0/{w}"] = _joined(out, p, w)
            for old, new in (("attention.output.dense", "self_attention/linear_1"),
                             ("intermediate.dense", "ffn/linear_0"), ("output.dense", "ffn/linear_1")):  # fmt: skip
                out[f"{m}{new}/{w}"] = out.pop(f"{p}{old}.{w}")
        for old, new in (
            ("attention.output.LayerNorm", "self_attention/layer_norm"),
            ("output.LayerNorm", "ffn/layer_norm"),
        ):
            for w, v in (("weight", "gamma"), ("bias", "beta")):
                out[f"{m}{new}/{v}"] = out.pop(f"{p}{old}.{w}")

    return _bert_each(arrays, change)


def megatron_old(arrays: Arrays) -> Arrays:
    """Queries, keys and values of each head beside each other."""

    def change(p: str, out: Arrays) -> None:
        for w in ("weight", "bias"):
            every = [out.pop(f"{p}attention.self.{k}.{w}") for k in ("query", "key", "value")]
            heads = [x.reshape(4, -1, *x.shape[1:]) for x in every]
            joined = np.stack(heads, 1).reshape(-1, *every[0].shape[1:])
            out[f"{p}attention.query_key_value.{w}"] = joined

    return _bert_each(arrays, change)


def neox_transposed(arrays: Arrays) -> Arrays:
    """The oldest order: numbers of a head before its number."""

    def change(p: str, out: Arrays) -> None:
        for w in ("weight", "bias"):
            every = [out.pop(f"{p}attention.self.{k}.{w}") for k in ("query", "key", "value")]
            joined = np.stack([x.reshape(4, -1, *x.shape[1:]) for x in every], 1)
            out[f"{p}attention.query_key_value.{w}"] = np.moveaxis(joined, 2, 0).reshape(-1, *every[0].shape[1:])

    return _bert_each(arrays, change)


def flash_attention(arrays: Arrays) -> Arrays:
    def change(p: str, out: Arrays) -> None:
        for w in ("weight", "bias"):
            out[f"{p}mixer.Wqkv.{w}"] = _joined(out, p, w)

    return _bert_each(arrays, change)


def tensorflow(arrays: Arrays) -> Arrays:
    """Kernels input first, slashes, `gamma` and `beta`, the model's name in front."""
    out = {}
    for n, x in arrays.items():
        words = n.replace("encoder.layer.", "encoder.layer_").replace(".", "/")
        linear = x.ndim == 2 and "embeddings" not in n
        words = words.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
        out[
            "bert/"
            + (words.replace("/weight", "/kernel") if linear else words.replace("_embeddings/weight", "_embeddings"))
        ] = x.T if linear else x
    return out


BERT: dict[str, Writer] = {
    "torch.nn.TransformerEncoder": torch_encoder, "CTranslate2": ctranslate2, "Megatron-LM": megatron_old,
    "GPT-NeoX, oldest": neox_transposed, "FlashAttention": flash_attention, "TensorFlow": tensorflow,
    "ONNX initialisers": onnx,
}  # fmt: skip


# Recurrent, convolutional and expert networks


def recurrent(seed: int, gates: int, hidden: int = 48, inputs: int = 40) -> Arrays:
    rng = np.random.default_rng([10, seed])

    def w(*s: int) -> np.ndarray:
        return (0.1 * rng.normal(size=s)).astype("f4")

    return {
        "embedding.weight": w(100, inputs), "rnn.weight_ih_l0": w(gates * hidden, inputs),
        "rnn.weight_hh_l0": w(gates * hidden, hidden), "rnn.bias_ih_l0": w(gates * hidden),
        "rnn.bias_hh_l0": w(gates * hidden), "out.weight": w(20, hidden), "out.bias": w(20),
    }  # fmt: skip


def gates(order: str, of: str, *, turned: bool = False, names: bool = True, joined: bool = False) -> Writer:
    """Gates in another order, perhaps input first, under other names, both biases in one."""

    def change(arrays: Arrays) -> Arrays:
        out = {n: x for n, x in arrays.items() if "rnn" not in n}
        for n in (n for n in arrays if "rnn" in n):
            parts = dict(zip(of, np.split(arrays[n], len(of)), strict=True))
            x = np.concatenate([parts[g] for g in order])
            out[n if names else n.replace("rnn.", "layer/cell/")] = x.T if turned and x.ndim == 2 else x
        if joined:
            both = [n for n in out if "bias_ih" in n or "bias_hh" in n]
            out["rnn.bias"] = np.concatenate([out.pop(n) for n in sorted(both, reverse=True)])
        return out

    return change


RNN: dict[str, tuple[int, Writer]] = {
    "ONNX LSTM": (4, gates("iofg", "ifgo", names=False, joined=True)),
    "ONNX LSTM, same names": (4, gates("iofg", "ifgo")),
    "Keras GRU": (3, gates("zrn", "rzn", turned=True, names=False)), "ONNX GRU": (3, gates("zrn", "rzn", joined=True)),
    "cell order of TensorFlow 1": (4, gates("igfo", "ifgo", turned=True)),
}  # fmt: skip


def experts(seed: int, count: int = 4, d: int = 64, inner: int = 80, depth: int = 2) -> Arrays:
    rng = np.random.default_rng([11, seed])

    def w(*s: int) -> np.ndarray:
        return (rng.normal(size=s) / np.sqrt(s[-1])).astype("f4")

    out = {"model.embed_tokens.weight": w(150, d), "model.norm.weight": 1 + w(d)}
    for i in range(depth):
        p = f"model.layers.{i}."
        out |= {f"{p}self_attn.{k}_proj.weight": w(d, d) for k in "qkvo"}
        out |= {f"{p}mlp.gate.weight": w(count, d), f"{p}input_layernorm.weight": 1 + w(d)}
        for e in range(count):
            for k, s in (("w1", (inner, d)), ("w3", (inner, d)), ("w2", (d, inner))):
                out[f"{p}block_sparse_moe.experts.{e}.{k}.weight"] = w(*s)
    return out


def experts_stacked(arrays: Arrays, *, turned: bool = False, mixed: bool = False) -> Arrays:
    """All experts of a layer in one tensor; gate and up joined, perhaps input first, or row by row in turns."""
    out = {n: x for n, x in arrays.items() if ".experts." not in n}
    for i in range(layers(arrays, "mlp.gate.weight")):
        p = f"model.layers.{i}."
        every = [[arrays[f"{p}block_sparse_moe.experts.{e}.{k}.weight"] for k in ("w1", "w3", "w2")] for e in range(4)]
        joined = [np.stack([g, u], 1).reshape(-1, g.shape[1]) if mixed else np.concatenate([g, u]) for g, u, _ in every]
        both, down = np.stack(joined), np.stack([x for _, _, x in every])
        out[p + "mlp.experts.gate_up_proj"] = both.swapaxes(1, 2) if turned else both
        out[p + "mlp.experts.down_proj"] = down.swapaxes(1, 2) if turned else down
    return out


EXPERTS: dict[str, Writer] = {
    "experts stacked": experts_stacked, "experts stacked, input first": lambda x: experts_stacked(x, turned=True),
    "experts stacked, gate and up in turns": lambda x: experts_stacked(x, turned=True, mixed=True),
}  # fmt: skip


def channels_last(arrays: Arrays) -> Arrays:
    """TensorFlow's kernels: height, width, input, output; heads input first."""
    return {
        n.replace(".", "/"): x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x
        for n, x in arrays.items()
    }


def channels_last_mlx(arrays: Arrays) -> Arrays:
    return {n: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for n, x in arrays.items()}


def head_as_kernel(arrays: Arrays) -> Arrays:
    return {n: x[:, :, None, None] if n == "classifier.weight" else x for n, x in arrays.items()}


CNN: dict[str, Writer] = {
    "Keras, channels last": channels_last, "MLX, channels last": channels_last_mlx, "linear as 1 x 1": head_as_kernel,
}  # fmt: skip
