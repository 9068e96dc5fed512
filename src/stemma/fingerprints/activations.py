"""Fingerprint by activations at one layer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import as_tensor, checked_network
from stemma.fingerprints.layers import capture, channels_last, find_head, find_layer, module_of
from stemma.fingerprints.recording import input_batches, to_array
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class Activations(AbstractFingerprinter):
    """The activations at one layer, a vector per probe.

    Their coordinates are specific to the model, so only rotation-invariant measures can compare them. If a module runs
    several times, its last run is used.
    Cost: one forward pass per probe. Needs the module: not available for a black box.

    Attributes:
        layer: Name of a module, whose output is used; empty for the input of the last linear or convolution module
            (what the head receives).
        pool: How positions of maps and sequences are combined: `mean`, `flatten` into the vector, or `none`: every
            position is a sample of its own (for two models with the same positions).
        batch: Probes per forward pass; changes results only by rounding.

    """

    layer: str = ""
    pool: Literal["mean", "flatten", "none"] = "mean"
    batch: int = field(default=256, compare=False)

    name = "activations"
    produces = "features"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "flatten", "none") or self.batch < 1:
            raise MisuseError(f"pool must be mean, flatten or none (not '{self.pool}'), and batch 1 or more")

    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The activations in probe order.

        Yields:
            `features` `[k, channels]`, `[k, positions * channels]` or `[k, positions, channels]`, float32 (float64 of
            a network that computes so).
        """
        import torch

        network = checked_network(model, probes)
        module = module_of(network, self.name)
        last = not self.layer
        layer_module = find_head(network, module, as_tensor(network, probes.inputs[:1])) if last else \
            find_layer(network, module, self.layer)  # fmt: skip
        for start, inputs in input_batches(network, probes, from_probe, self.batch):
            with torch.no_grad(), capture(layer_module, entering=last) as captured:
                to_array(network, network(inputs), start, "outputs")
            features = self._pooled(network, layer_module, captured, len(inputs))
            yield Block(start, {"features": to_array(network, features, start, "activations")})

    def _pooled(
        self, network: Network, layer_module: "torch.nn.Module", captured: "list[torch.Tensor]", count: int
    ) -> "torch.Tensor":
        if not captured:
            raise MisuseError(
                f"the layer '{self.layer}' of {network.name} does not run on these probes. Name another layer"
            )
        found = captured[-1]
        if found.ndim < 2 or len(found) != count or not found.is_floating_point():
            raise MisuseError(
                f"the layer '{self.layer}' of {network.name} has the shape {list(found.shape)} for {count} probes, "
                "but needs one row per probe. Name another layer"
            )
        if found.ndim == 2 or self.pool == "flatten":
            return found.flatten(1)
        positions = found.flatten(1, -2) if channels_last(layer_module, found) else found.flatten(2).mT
        return positions.mean(1) if self.pool == "mean" else positions
