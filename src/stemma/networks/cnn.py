"""Residual convolutional network with batch norm."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import torch
from torch import nn


@final
class Unit(nn.Module):
    """Convolution and batch norm; with `batch_norm` false the convolution has a bias instead (norm folded in)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not batch_norm)
        self.bn = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to normalised feature maps."""
        return self.bn(self.conv(x))


@final
class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        bias = not batch_norm
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(inner) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Unit(inputs, outputs, 1, stride, batch_norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps to feature maps."""
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.shortcut(x)).relu()


@final
class Cnn(nn.Module):
    """Stem, residual blocks, global average pool, linear head.

    Config: `input_shape`, `stem` (channels), `widths` and `strides` (one entry per block), `classes`, `batch_norm`
    (true unless given), `inner` (channels between the two convolutions of each block; as `widths` unless given).
    Tensors: `stem.conv.weight`, `stem.bn.*`, `blocks.N.conv1.weight`, `blocks.N.bn1.*`,
    `blocks.N.shortcut.conv.weight`, `head.weight`, `head.bias`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        norm = bool(config.get("batch_norm", True))
        widths = [config["stem"], *config["widths"]]
        self.stem = Unit(config["input_shape"][0], widths[0], 3, 1, norm)
        self.blocks = nn.ModuleList(
            Block(a, inner, b, stride, norm)
            for (a, b), inner, stride in zip(
                pairwise(widths), config.get("inner", config["widths"]), config["strides"], strict=True
            )
        )
        self.head = nn.Linear(widths[-1], config["classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, c, h, w]` to logits `[n, classes]`."""
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
