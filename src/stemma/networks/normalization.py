"""From raw inputs to what a network was trained on."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from stemma.types import InputSpec


@final
class Normalised(nn.Module):
    """A network behind its own normalisation, so that raw inputs are the shared space.

    Attributes:
        inner: What takes normalised inputs.
        flip: Reverse the channels first (networks trained on blue, green, red).
        each: Bring every input to mean 0 and variance 1 first, as speech models are trained.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, inner: Callable[[torch.Tensor], Any], spec: InputSpec, *, flip: bool = False, each: bool = False
    ) -> None:
        super().__init__()
        self.inner, self.flip, self.each = inner, flip, each
        axes = [1] * (len(spec.shape) - 1) if spec.kind == "image" else []
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float64).reshape(-1, *axes), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float64).reshape(-1, *axes), persistent=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        """Raw inputs `[n, …]` to the network's answer."""
        x = x.flip(1) if self.flip else x
        if self.each:
            axes = tuple(range(1, x.ndim))
            x = (x - x.mean(axes, keepdim=True)) / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-7)
        return self.inner((x - self.mean.to(x)) / self.std.to(x))
