"""Vision transformer: patches, class token, learned positions, pre-norm blocks."""

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn


@final
class Patches(nn.Module):
    """Square patches, each mapped linearly to a token."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, c, h, w]` to tokens `[n, patches, width]`."""
        return self.proj(x).flatten(2).transpose(1, 2)


@final
class Attention(nn.Module):
    """Multi-head self-attention with separate or fused projections."""

    def __init__(self, width: int, heads: int, size: int, fused: bool) -> None:
        super().__init__()
        self.size, self.fused = size, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * heads * size)
        else:
            self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.o = nn.Linear(heads * size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, t, width]` to tokens of the same shape."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (z.view(n, t, -1, self.size).transpose(1, 2) for z in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


@final
class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        return self.fc2(F.gelu(self.fc1(x)))


@final
class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, width: int, heads: int, size: int, inner: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, size, fused)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@final
class Vit(nn.Module):
    """Vision transformer.

    Config: `input_shape`, `patch`, `width`, `depth`, `heads`, `inner`, `classes`, `head_dim` (width over
    heads unless given), `fused` (false unless given).
    Tensors: `patch_embed.proj.weight`, `class_token`, `position_embed`, `blocks.N.norm1.weight`,
    `blocks.N.attn.{q,k,v,o}.weight` or `blocks.N.attn.{qkv,o}.weight`, `blocks.N.mlp.fc1.weight`, `norm.weight`,
    `head.weight`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, height, breadth = config["input_shape"]
        width, patch = config["width"], config["patch"]
        if height % patch or breadth % patch:
            raise ValueError("the patch must divide the image")
        self.patch_embed = Patches(channels, width, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position_embed = nn.Parameter(0.02 * torch.randn(1, height * breadth // patch**2 + 1, width))
        fused, size = bool(config.get("fused", False)), config.get("head_dim", width // config["heads"])
        self.blocks = nn.ModuleList(
            Layer(width, config["heads"], size, config["inner"], fused) for _ in range(config["depth"])
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config["classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, c, h, w]` to logits `[n, classes]`."""
        x = self.patch_embed(x)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.position_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
