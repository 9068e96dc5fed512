"""Multilayer perceptron with ReLU."""

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any, final

import torch
from torch import nn


@final
class Mlp(nn.Module):
    """Flattened image, hidden layers with ReLU, linear head.

    Config: `input_shape` (channels, height, width), `hidden` (widths), `classes`.
    Tensors: `layers.N.weight`, `layers.N.bias`, `head.weight`, `head.bias`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths = [prod(config["input_shape"]), *config["hidden"]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], config["classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, c, h, w]` to logits `[n, classes]`."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)
