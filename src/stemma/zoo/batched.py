"""Forward passes of many networks of one configuration at once.

Every parameter carries a first axis of length m, one entry per network, and so do the inputs. What a module of
`stemma.networks` computes for one network, these compute for m, with batched products and grouped convolutions
instead of m small ones; a test compares the two.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from stemma.networks.language_model import rotary, rotate

Stack = Mapping[str, torch.Tensor]


def forward(config: Mapping[str, Any], p: Stack, x: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    """Logits `[m, n, …, classes]` of m networks for inputs `[m, n, …]`; training updates running statistics."""
    match config["model_type"]:
        case "stemma-mlp":
            return _mlp(config, p, x)
        case "stemma-cnn":
            return _cnn(config, p, x, training)
        case "stemma-vit":
            return _vit(config, p, x)
    return _language_model(config, p, x)


def linear(p: Stack, name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear layer per network, `[m, …, outputs]` for `x` of `[m, …, inputs]`."""
    weight, bias = p[f"{name}.weight"].transpose(1, 2), p.get(f"{name}.bias")
    flat = x.flatten(1, -2)
    out = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return out.view(*x.shape[:-1], -1)


def _mlp(config: Mapping[str, Any], p: Stack, x: torch.Tensor) -> torch.Tensor:
    x = x.flatten(2)
    for i in range(len(config["hidden"])):
        x = linear(p, f"layers.{i}", x).relu()
    return linear(p, "head", x)


def _cnn(config: Mapping[str, Any], p: Stack, x: torch.Tensor, training: bool) -> torch.Tensor:
    def unit(conv: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight, bias = p[f"{conv}.weight"], p.get(f"{conv}.bias")
        x = F.conv2d(
            x, weight.flatten(0, 1), None if bias is None else bias.flatten(), stride, weight.shape[-1] // 2, groups=m
        )
        if f"{norm}.weight" not in p:
            return x
        mean, var, gain, shift = (p[f"{norm}.{s}"].view(-1) for s in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gain, shift, training)

    m, n = x.shape[:2]
    x = x.transpose(0, 1).flatten(1, 2)
    x = unit("stem.conv", "stem.bn", x).relu()
    for i, stride in enumerate(config["strides"]):
        b = f"blocks.{i}"
        inner = unit(f"{b}.conv2", f"{b}.bn2", unit(f"{b}.conv1", f"{b}.bn1", x, stride).relu())
        if f"{b}.shortcut.conv.weight" in p:
            x = unit(f"{b}.shortcut.conv", f"{b}.shortcut.bn", x, stride)
        x = (inner + x).relu()
    return linear(p, "head", x.mean((2, 3)).view(n, m, -1).transpose(0, 1))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention over `[m, n, heads, t, size]`, giving `[m, n, t, heads * size]`."""
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), is_causal=causal)
    return out.transpose(1, 2).flatten(2).view(*q.shape[:2], q.shape[3], -1)


def _heads(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.view(*x.shape[:-1], -1, size).transpose(2, 3)


def _vit(config: Mapping[str, Any], p: Stack, x: torch.Tensor) -> torch.Tensor:
    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        gain, shift = p[f"{name}.weight"][:, None, None], p[f"{name}.bias"][:, None, None]
        return F.layer_norm(x, x.shape[-1:]) * gain + shift

    m, n = x.shape[:2]
    size = config.get("head_dim", config["width"] // config["heads"])
    weight, side = p["patch_embed.proj.weight"], config["patch"]
    patches = x.unfold(3, side, side).unfold(4, side, side).permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
    x = linear({"w.weight": weight.flatten(2), "w.bias": p["patch_embed.proj.bias"]}, "w", patches)
    token = p["class_token"].expand(m, n, 1, -1)
    x = torch.cat([token, x], 2) + p["position_embed"]
    for i in range(config["depth"]):
        b = f"blocks.{i}"
        y = norm(f"{b}.norm1", x)
        if config.get("fused"):
            q, k, v = linear(p, f"{b}.attn.qkv", y).chunk(3, -1)
        else:
            q, k, v = (linear(p, f"{b}.attn.{s}", y) for s in "qkv")
        x = x + linear(p, f"{b}.attn.o", _attend(_heads(q, size), _heads(k, size), _heads(v, size), causal=False))
        x = x + linear(p, f"{b}.mlp.fc2", F.gelu(linear(p, f"{b}.mlp.fc1", norm(f"{b}.norm2", x))))
    return linear(p, "head", norm("norm", x[:, :, :1])[:, :, 0])


def _language_model(config: Mapping[str, Any], p: Stack, x: torch.Tensor) -> torch.Tensor:
    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return p[f"{name}.weight"][:, None, None] * (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config["rms_norm_eps"])
        )

    m, _, t = x.shape
    size, repeat = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
    embed = p["model.embed_tokens.weight"]
    offset = torch.arange(m, device=x.device)[:, None, None] * embed.shape[1]
    x = F.embedding(x + offset, embed.flatten(0, 1))
    table = rotary(t, size, float(config["rope_theta"]), x)
    for i in range(config["num_hidden_layers"]):
        b = f"model.layers.{i}"
        y = norm(f"{b}.input_layernorm", x)
        q, k, v = (_heads(linear(p, f"{b}.self_attn.{s}_proj", y), size) for s in "qkv")
        k, v = rotate(k, *table).repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        x = x + linear(p, f"{b}.self_attn.o_proj", _attend(rotate(q, *table), k, v, causal=True))
        y = norm(f"{b}.post_attention_layernorm", x)
        inner = F.silu(linear(p, f"{b}.mlp.gate_proj", y)) * linear(p, f"{b}.mlp.up_proj", y)
        x = x + linear(p, f"{b}.mlp.down_proj", inner)
    x = norm("model.norm", x)
    return linear({"w.weight": embed}, "w", x) if config["tie_word_embeddings"] else linear(p, "lm_head", x)
