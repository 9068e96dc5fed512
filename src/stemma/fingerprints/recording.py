"""Batches of probes as tensors, and checked results as arrays."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stemma.errors import StemmaError
from stemma.fingerprints.evaluation import as_tensor
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


def input_batches(network: Network, probes: Probes, from_probe: int, size: int) -> "Iterator[tuple[int, torch.Tensor]]":
    """Index of the first probe, and inputs, of batches of `size` probes."""
    for start in range(from_probe, len(probes), size):
        yield start, as_tensor(network, probes.inputs[start : start + size])


def to_array(network: Network, values: "torch.Tensor", start: int, what: str) -> np.ndarray:
    """Values as an array (float64 if the network computes so, else float32); raises if a value is not finite."""
    import torch

    if not torch.isfinite(values).all():
        raise StemmaError(
            f"{network.name} has NaN or infinite {what} at probes {start} to {start + len(values) - 1}. Remove these "
            "probes, or repair the model"
        )
    values = values.detach().cpu()
    return values.numpy() if values.dtype == torch.float64 else values.float().numpy()
