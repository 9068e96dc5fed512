"""Input normalisation in front of a network."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from stemma.types import InputSpec


@final
class Normalised(nn.Module):
    """A network with its input normalisation in front, so that it takes raw inputs.

    Attributes:
        inner: Takes normalised inputs.
        flip_channels: Whether to reverse the channel order first (networks trained on BGR images).
        per_input: Whether to standardise every input separately, as for speech models.

    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        inner: Callable[[torch.Tensor], Any],
        spec: InputSpec,
        *,
        flip_channels: bool = False,
        per_input: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.flip_channels, self.per_input = inner, flip_channels, per_input
        axes = [1] * (len(spec.shape) - 1) if spec.kind == "image" else []
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float64).reshape(-1, *axes), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float64).reshape(-1, *axes), persistent=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        """Raw inputs `[n, …]` to the network's answer."""
        x = x.flip(1) if self.flip_channels else x
        if self.per_input:
            axes = tuple(range(1, x.ndim))
            x = (x - x.mean(axes, keepdim=True)) / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-7)
        return self.inner((x - self.mean.to(x)) / self.std.to(x))
