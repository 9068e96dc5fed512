"""Decoder language model of the Llama architecture, under the tensor names and config keys of Hugging Face.

Source: Touvron et al. 2023, arXiv:2302.13971 (architecture); Su et al. 2021, arXiv:2104.09864 (rotary positions);
Ainslie et al. 2023, arXiv:2305.13245 (grouped query heads).
"""

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn


@final
class RmsNorm(nn.Module):
    """Division by the root mean square of the last axis, then a gain per entry."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon))


def rotary(length: int, size: int, theta: float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary angles, `[length, size]`; dimension `i` is paired with `i + size / 2`."""
    frequency = theta ** (-torch.arange(0, size, 2, dtype=like.dtype, device=like.device) / size)
    angle = torch.outer(torch.arange(length, dtype=like.dtype, device=like.device), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of the last axis by its angle."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@final
class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped query heads."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.groups, self.size = config["num_key_value_heads"], config["head_dim"]
        self.theta = float(config["rope_theta"])
        self.q_proj = nn.Linear(width, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, self.groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, self.groups * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, t, width]` to tokens of the same shape."""
        n, t, _ = x.shape
        q, k, v = (p(x).view(n, t, -1, self.size).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        table = rotary(t, self.size, self.theta, x)
        repeat = self.heads // self.groups
        k, v = rotate(k, *table).repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = F.scaled_dot_product_attention(rotate(q, *table), k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(n, t, -1))


@final
class FeedForward(nn.Module):
    """Gated feed-forward layer with SiLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@final
class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["rms_norm_eps"]
        self.self_attn = Attention(config)
        self.mlp = FeedForward(width, config["intermediate_size"])
        self.input_layernorm = RmsNorm(width, epsilon)
        self.post_attention_layernorm = RmsNorm(width, epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


@final
class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RmsNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids `[n, t]` to the normalised residual stream `[n, t, width]`."""
        return self.from_embeddings(self.embed_tokens(tokens))

    def from_embeddings(self, x: torch.Tensor) -> torch.Tensor:
        """Embedded tokens `[n, t, width]` to the normalised residual stream."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


@final
class LanguageModel(nn.Module):
    """Llama-style decoder.

    Config: Hugging Face's keys (`vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
    `num_attention_heads`, `num_key_value_heads`, `head_dim`, `rms_norm_eps`, `rope_theta`, `tie_word_embeddings`).
    Tensors: `model.embed_tokens.weight`, `model.layers.N.self_attn.q_proj.weight`, …, `model.norm.weight`,
    `lm_head.weight` (absent where the head is tied to the embedding).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Decoder(config)
        tied = bool(config["tie_word_embeddings"])
        self.lm_head = None if tied else nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids `[n, t]` to next-token logits `[n, t, vocabulary]`."""
        return self._logits(self.model(tokens))

    def from_embeddings(self, x: torch.Tensor) -> torch.Tensor:
        """Embedded tokens `[n, t, width]` to next-token logits; a tied head keeps its own table."""
        return self._logits(self.model.from_embeddings(x))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
