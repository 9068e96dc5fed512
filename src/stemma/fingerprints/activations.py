"""What goes on inside a network, at one layer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import as_tensor, questioned
from stemma.fingerprints.layers import channels_last, head, named, opened, watching
from stemma.fingerprints.recording import batches, recorded
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class Activations(AbstractFingerprinter):
    """The activations at one layer, a vector per probe.

    Their coordinates are the model's own, so only measures that are blind to a rotation of either side can compare
    them. Of a module that is run several times, the last run counts.
    Cost: one forward pass per probe. Needs the module: a black box has none.

    Attributes:
        layer: Name of a module, whose output is taken; empty for what enters the last linear or convolution module
            that is run (what the head sees).
        pool: What becomes of the positions of maps and sequences: `mean` over them, `flatten` them into the vector,
            or `none`: every position is a sample of its own (for two models with the same positions).
        batch: Probes asked at once; changes no number beyond rounding.
    """

    layer: str = ""
    pool: Literal["mean", "flatten", "none"] = "mean"
    batch: int = field(default=256, compare=False)

    name = "activations"
    gives = "features"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "flatten", "none") or self.batch < 1:
            raise MisuseError(f"pool is mean, flatten or none, not '{self.pool}', and batch is 1 or more")

    def blocks(self, model: Model, probes: Probes, first: int = 0) -> Iterator[Block]:
        """The activations in probe order.

        Yields:
            `features` `[k, channels]`, `[k, positions * channels]` or `[k, positions, channels]`, float32 (float64 of
            a network that computes so).
        """
        import torch

        network = questioned(model, probes)
        module = opened(network, self.name)
        last = not self.layer
        watched = head(network, module, as_tensor(network, probes.inputs[:1])) if last else \
            named(network, module, self.layer)  # fmt: skip
        for start, inputs in batches(network, probes, first, self.batch):
            with torch.no_grad(), watching(watched, entering=last) as seen:
                recorded(network, network(inputs), start, "outputs")
            features = self._pooled(network, watched, seen, len(inputs))
            yield Block(start, {"features": recorded(network, features, start, "activations")})

    def _pooled(
        self, network: Network, watched: "torch.nn.Module", seen: "list[torch.Tensor]", count: int
    ) -> "torch.Tensor":
        if not seen:
            raise MisuseError(f"the layer '{self.layer}' of {network.name} is not run: name another one")
        found = seen[-1]
        if found.ndim < 2 or len(found) != count or not found.is_floating_point():
            raise MisuseError(
                f"the layer '{self.layer}' of {network.name} has the shape {list(found.shape)} for {count} probes, "
                "where one row per probe is needed: name another layer"
            )
        if found.ndim == 2 or self.pool == "flatten":
            return found.flatten(1)
        positions = found.flatten(1, -2) if channels_last(watched, found) else found.flatten(2).mT
        return positions.mean(1) if self.pool == "mean" else positions
