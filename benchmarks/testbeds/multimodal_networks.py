"""Small networks that fuse late (a linear head on features side by side) and early (a perceptron on them)."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

FUSIONS = ("late", "early")


def perceptron(inputs: int, width: int = 64, depth: int = 2) -> nn.Sequential:
    """An encoder of vectors."""
    parts: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        parts += [nn.Linear(inputs if i == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*parts)


def convolutional(channels: int = 12, width: int = 64, norm: bool = False) -> nn.Sequential:
    """An encoder of one-channel pictures of any size: three strided convolutions, then a mean over positions 2 x 2."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(((1, channels), (channels, 2 * channels), (2 * channels, 2 * channels))):
        parts.append(nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, bias=not norm))
        parts += [nn.BatchNorm2d(b)] if norm else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18 * channels, width), nn.ReLU())


class Fused(nn.Module):
    """Encoders by modality, and what fuses their features."""

    def __init__(self, encoders: Mapping[str, nn.Module], width: int, classes: int, fusion: str) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        joined = width * len(encoders)
        self.head = (
            nn.Linear(joined, classes)
            if fusion == "late"
            else nn.Sequential(nn.Linear(joined, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))
        )

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([encoder(inputs[m]) for m, encoder in self.encoders.items()], 1))


def built(encoders: Mapping[str, Callable[[], nn.Module]], width: int, classes: int, fusion: str, seed: int) -> Fused:
    """A network whose start depends on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Fused({m: make() for m, make in encoders.items()}, width, classes, fusion)


def places(encoders: Mapping[str, object]) -> dict[str, str]:
    """Where the encoders are, by modality."""
    return {m: f"encoders.{m}" for m in encoders}
