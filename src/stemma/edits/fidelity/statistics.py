"""Second moments of the inputs of a network's layers: one forward pass, then any number of scores and plans.

For a layer with inputs `u` (for a convolution, the patch under its kernel) the mean of `u uᵀ` is all that fidelity,
compensation and allocation need; neither labels nor gradients nor the inputs themselves are kept.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stemma.edits.dependency_graph.dependency_groups import Reader
from stemma.edits.layer_inputs import (
    as_tensor,
    at_least_float32,
    has_collectable_inputs,
    output_positions,
    unfold_inputs,
    watch_inputs,
)
from stemma.errors import MisuseError, StemmaError
from stemma.types import Digest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the positions at which one layer was used.

    Attributes:
        count: Number of positions.
        total: Sum of the inputs, `[inputs * kernel]`.
        second: Sum of `u uᵀ`, `[inputs * kernel, inputs * kernel]`.
    """

    count: int
    total: torch.Tensor
    second: torch.Tensor

    def __add__(self, other: "LayerStatistics") -> "LayerStatistics":
        return LayerStatistics(self.count + other.count, self.total + other.total, self.second + other.second)

    def moment(self, *, centred: bool) -> torch.Tensor:
        """The mean of `u uᵀ`, or the covariance: `[inputs * kernel, inputs * kernel]`, float64."""
        mean = self.total / self.count
        found = self.second / self.count
        return found - torch.outer(mean, mean) if centred else found


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of several layers of one network.

    Attributes:
        layers: By name of the weight.
        inputs: Number of inputs that the network was run on.
        model: Digest of the model.
        probes: Digest of the inputs.
        sampling: How positions were sampled, in words.
    """

    layers: Mapping[str, LayerStatistics]
    inputs: int
    model: Digest | None = None
    probes: Digest | None = None
    sampling: str = ""

    def save(self, path: Path | str) -> None:
        """Write them to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {
            f"{n}/{k}": getattr(s, k).cpu().contiguous() for n, s in self.layers.items() for k in ("total", "second")
        }
        counts = {n: s.count for n, s in self.layers.items()}
        about = {"level": "full", "inputs": self.inputs, "model": self.model, "probes": self.probes,
                 "how": self.sampling, "counts": counts}  # fmt: skip
        save_file(tensors, path, {"statistics": json.dumps(about)})

    @classmethod
    def read(cls, path: Path | str) -> "Statistics":
        """Read them from a file that `save` wrote; `StemmaError` if it holds none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["statistics"])
                layers = {
                    name: LayerStatistics(int(count), *(file.get_tensor(f"{name}/{k}") for k in ("total", "second")))
                    for name, count in about["counts"].items()
                }
            return cls(layers, int(about["inputs"]), about["model"], about["probes"], about["how"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StemmaError(f"{path} holds no layer statistics: {' '.join(str(error).split())[:200]}") from error


@dataclass(frozen=True)
class StatisticsCollector:
    """How statistics are collected.

    Attributes:
        batch: Batch size.
        positions: Largest number of output positions of a convolution that are sampled per input; 0 for all.
        seed: Of the sampled positions.
    """

    batch: int = 128
    positions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.positions < 0:
            raise MisuseError(f"batch has to be 1 or more and positions 0 or more, but they are {self.batch} and "
                              f"{self.positions}")  # fmt: skip

    def __call__(
        self,
        module: torch.nn.Module,
        forward: Callable[[torch.Tensor], Any],
        inputs: "np.ndarray",
        readers: Sequence[Reader],
        like: torch.Tensor,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Statistics:
        """Sum the moments of the inputs of some layers over raw inputs `[n, …]`; layers that never run are missing."""
        # Cost: one forward pass, and per sampled position `(inputs * kernel)²` multiplications.
        names: dict[str, list[str]] = {}
        for r in readers:
            if has_collectable_inputs(module.get_submodule(r.layer), r.attribute):
                names.setdefault(r.layer, []).append(r.weight)
        found: dict[str, LayerStatistics] = {}
        draw = torch.Generator().manual_seed(self.seed)

        def add(name: str, layer: torch.nn.Module, x: torch.Tensor) -> None:
            u = unfold_inputs(layer, at_least_float32(x), self.sampled_positions(layer, x, draw))
            part = LayerStatistics(len(u), u.sum(0, dtype=torch.float64), cross_moments(u, u))
            for weight in names[name]:
                found[weight] = found[weight] + part if weight in found else part

        with torch.no_grad(), watch_inputs(module, list(names), add):
            for start in range(0, len(inputs), self.batch):
                forward(as_tensor(inputs[start : start + self.batch], like))
                if progress is not None:
                    progress("collecting statistics", min(len(inputs), start + self.batch), len(inputs))
        return Statistics(found, len(inputs), sampling=self.sampling)

    @property
    def sampling(self) -> str:
        """How positions are sampled, in words."""
        return f"{self.positions or 'all'} positions, seed {self.seed}"

    def sampled_positions(self, layer: torch.nn.Module, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor | None:
        """The sampled output positions of a convolution (integers), None for all."""
        count = output_positions(layer, x)
        if not self.positions or count <= self.positions:
            return None
        return torch.randperm(count, generator=draw)[: self.positions].to(x.device)


def cross_moments(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of `a bᵀ` over rows, float64; deviations from the means are multiplied apart, for precision."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    mean_a, mean_b = mean_a.double(), mean_b.double()
    mixed = torch.outer(mean_a, b.sum(0, dtype=torch.float64)) + torch.outer(a.sum(0, dtype=torch.float64), mean_b)
    return (a.T @ b).double() + mixed + len(a) * torch.outer(mean_a, mean_b)
