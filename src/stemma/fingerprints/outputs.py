"""Fingerprint by the outputs of a network."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import checked_network
from stemma.fingerprints.recording import input_batches, to_array
from stemma.probes import Probes
from stemma.types.network import Network


@final
@dataclass(frozen=True)
class Outputs(AbstractFingerprinter):
    """The network's outputs without normalisation: logits, not probabilities.

    Only outputs are needed, so black boxes are supported.
    Cost: one forward pass per probe.

    Attributes:
        batch: Probes per forward pass; changes results only by rounding.
    """

    batch: int = field(default=256, compare=False)

    name = "outputs"
    produces = "outputs"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise MisuseError("batch must be 1 or more")

    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The outputs in probe order.

        Yields:
            `outputs` `[k, …]`, float32 (float64 of a network that computes so); also `hidden` `[k]`, all true, of a
            network that answers with hidden states.
        """
        import torch

        network = checked_network(model, probes)
        for start, inputs in input_batches(network, probes, from_probe, self.batch):
            with torch.no_grad():  # not around the yield: callers keep their gradient mode
                outputs = network(inputs)
            found = to_array(network, outputs, start, "outputs")
            yield Block(start, {"outputs": found} | hidden_states(network, len(found)))


def hidden_states(network: Network, count: int) -> dict[str, np.ndarray]:
    """The mark of answers that are no scores, so that measures of classes refuse them; empty for scores."""
    return {} if network.scores else {"hidden": np.ones(count, bool)}
