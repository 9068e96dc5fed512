"""What a network's layers receive on a set of inputs, kept as second moments: one pass, then any number of scores.

For a layer with inputs `u` (for a convolution, the patch under its kernel) the mean of `u uᵀ` is all that fidelity,
compensation and allocation need; neither labels nor gradients nor the inputs themselves are kept.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stemma.edits.dependency_graph.groups import Reader
from stemma.edits.layer_inputs import batch_of, matrix, outputs_at, prod_of, scorable, unfolded, watching, wide
from stemma.errors import MisuseError, StemmaError
from stemma.types import Digest

if TYPE_CHECKING:
    import numpy as np

LEVELS = ("diag", "align", "full")
"""How much is kept: second moments inside each input channel; also those between inputs and outputs; all."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the positions that one layer was used at.

    Attributes:
        count: Number of positions.
        total: Sum of the inputs, `[inputs * kernel]`.
        blocks: Sum of second moments inside each input, `[inputs, kernel, kernel]`.
        cross: Sum of output times input, `[outputs, inputs * kernel]`; None at level `diag`.
        second: Sum of all second moments, `[inputs * kernel, inputs * kernel]`; None below level `full`.
    """

    count: int
    total: torch.Tensor
    blocks: torch.Tensor
    cross: torch.Tensor | None = None
    second: torch.Tensor | None = None

    def __add__(self, other: "LayerStatistics") -> "LayerStatistics":
        def plus(a: Any, b: Any) -> Any:
            return None if a is None or b is None else a + b

        return LayerStatistics(
            self.count + other.count, self.total + other.total, self.blocks + other.blocks,
            plus(self.cross, other.cross), plus(self.second, other.second),
        )  # fmt: skip

    def moment(self, *, centred: bool) -> torch.Tensor:
        """The mean of `u uᵀ`, or the covariance.

        Returns:
            `[inputs * kernel, inputs * kernel]`, float64.

        Raises:
            MisuseError: If only a part was collected.
        """
        if self.second is None:
            raise MisuseError("this needs all second moments: collect the statistics at level full")
        mean = self.total / self.count
        found = self.second / self.count
        return found - torch.outer(mean, mean) if centred else found


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of all layers that were watched.

    Attributes:
        level: One of `LEVELS`.
        layers: By name of the weight.
        inputs: How many inputs were put to the network.
        model: Digest of the model.
        probes: Digest of what it was asked.
        how: Which positions were looked at, in words.
    """

    level: str
    layers: Mapping[str, LayerStatistics]
    inputs: int
    model: Digest | None = None
    probes: Digest | None = None
    how: str = ""

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of both sets of inputs together, as if they had been collected in one pass.

        Returns:
            Their sum.

        Raises:
            MisuseError: If they are of other models, layers or levels.
        """
        if (self.level, self.model, set(self.layers)) != (other.level, other.model, set(other.layers)):
            raise MisuseError("these statistics are of different models, layers or levels and cannot be added")
        layers = {n: s + other.layers[n] for n, s in self.layers.items()}
        return replace(self, layers=layers, inputs=self.inputs + other.inputs, probes=None)

    def save(self, path: Path | str) -> None:
        """Write them to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {
            f"{n}/{k}": getattr(s, k).cpu().contiguous()
            for n, s in self.layers.items()
            for k in ("total", "blocks", "cross", "second")
            if getattr(s, k) is not None
        }
        counts = {n: s.count for n, s in self.layers.items()}
        about = {"level": self.level, "inputs": self.inputs, "model": self.model, "probes": self.probes,
                 "how": self.how}  # fmt: skip
        save_file(tensors, path, {"statistics": json.dumps({**about, "counts": counts})})

    @classmethod
    def read(cls, path: Path | str) -> "Statistics":
        """Read them from a file.

        Returns:
            What was saved.

        Raises:
            StemmaError: If it is no file of statistics.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["statistics"])
                names = list(file.keys())
                layers = {}
                for name, count in about["counts"].items():
                    parts = {k: file.get_tensor(f"{name}/{k}") for k in ("total", "blocks", "cross", "second")
                             if f"{name}/{k}" in names}  # fmt: skip
                    layers[name] = LayerStatistics(int(count), **parts)
            return cls(about["level"], layers, int(about["inputs"]), about["model"], about["probes"],
                       about["how"])  # fmt: skip
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StemmaError(f"{path} holds no statistics of layers: {' '.join(str(error).split())[:200]}") from error


@dataclass(frozen=True)
class Collecting:
    """How statistics are collected.

    Attributes:
        level: One of `LEVELS`.
        batch: Inputs at once.
        positions: Most positions of a convolution that are looked at for one input; 0 for all.
        seed: Of the choice of positions.
    """

    level: str = "full"
    batch: int = 128
    positions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS or self.batch < 1 or self.positions < 0:
            raise MisuseError(f"statistics have a level ({', '.join(LEVELS)}), a batch of 1 or more and positions of 0 "
                              "or more")  # fmt: skip

    def __call__(
        self,
        module: torch.nn.Module,
        forward: Callable[[torch.Tensor], Any],
        inputs: "np.ndarray",
        readers: Sequence[Reader],
        like: torch.Tensor,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Statistics:
        """Watch layers while the network answers.

        Cost: one forward pass, and per watched position `(inputs * kernel)²` multiplications at level `full`.

        Args:
            module: Holds the layers.
            forward: Runs it.
            inputs: Raw inputs `[n, …]`.
            readers: The layers.
            like: A parameter, for precision and device.
            progress: Told how far it is.

        Returns:
            The statistics; layers that were not run are missing.
        """
        names = {r.layer: r.weight for r in readers if scorable(module.get_submodule(r.layer))}
        found: dict[str, LayerStatistics] = {}
        draw = torch.Generator().manual_seed(self.seed)

        def seen(name: str, layer: torch.nn.Module, x: torch.Tensor) -> None:
            part = self._of(layer, x, draw)
            found[names[name]] = found[names[name]] + part if names[name] in found else part

        with torch.no_grad(), watching(module, list(names), seen):
            for start in range(0, len(inputs), self.batch):
                forward(batch_of(inputs[start : start + self.batch], like))
                if progress is not None:
                    progress("collecting statistics", min(len(inputs), start + self.batch), len(inputs))
        return Statistics(self.level, found, len(inputs), how=self.how)

    @property
    def how(self) -> str:
        """Which positions are looked at, in words."""
        return f"{self.positions or 'all'} positions, seed {self.seed}"

    def _of(self, layer: torch.nn.Module, x: torch.Tensor, draw: torch.Generator) -> LayerStatistics:
        spots = self.spots(layer, x, draw)
        u = unfolded(layer, wide(x), spots)
        w = matrix(layer)
        kernel = prod_of(getattr(layer, "kernel_size", (1,))) if scorable(layer) else 1
        split = u.reshape(len(u), -1, kernel)
        second = products(u, u) if self.level == "full" else None
        cross = ((u @ w.to(u.dtype).T).T @ u).double() if self.level == "align" else None
        if second is not None:
            n = split.shape[1]
            blocks = second.reshape(n, kernel, n, kernel).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
        else:
            blocks = torch.einsum("nck,ncl->ckl", split, split).double()
        return LayerStatistics(len(u), u.sum(0, dtype=torch.float64), blocks, cross, second)

    def spots(self, layer: torch.nn.Module, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor | None:
        """The positions of a convolution's output that are looked at.

        Returns:
            Integers, None for all.
        """
        count = outputs_at(layer, x)
        if not self.positions or count <= self.positions:
            return None
        return torch.randperm(count, generator=draw)[: self.positions].to(x.device)


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of `a bᵀ` over rows, float64, with deviations from the means multiplied apart: large means swallow none.

    Args:
        a: `[rows, …]`.
        b: As many rows.

    Returns:
        Second moments times the number of rows.
    """
    middle, other = a.mean(0), b.mean(0)
    a, b = a - middle, b - other
    middle, other = middle.double(), other.double()
    rest = torch.outer(middle, b.sum(0, dtype=torch.float64)) + torch.outer(a.sum(0, dtype=torch.float64), other)
    return (a.T @ b).double() + rest + len(a) * torch.outer(middle, other)
