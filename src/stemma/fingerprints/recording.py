"""Batches of probes in, checked arrays out: what every fingerprinter of a network's inside does alike."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stemma.errors import StemmaError
from stemma.fingerprints.evaluation import as_tensor
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


def batches(network: Network, probes: Probes, first: int, size: int) -> "Iterator[tuple[int, torch.Tensor]]":
    """The probes, a few at a time.

    Args:
        network: What will be asked.
        probes: What it is asked.
        first: Start here.
        size: Probes at once.

    Yields:
        Index of the first probe, and the inputs as the network takes them.
    """
    for start in range(first, len(probes), size):
        yield start, as_tensor(network, probes.inputs[start : start + size])


def recorded(network: Network, seen: "torch.Tensor", start: int, what: str) -> np.ndarray:
    """What was seen, as an array: float64 where the network computes so, else float32.

    Args:
        network: Whose it is.
        seen: One row per probe.
        start: Index of the first probe.
        what: Its name, for errors.

    Returns:
        An array of the same shape.

    Raises:
        StemmaError: If a value is NaN or infinite.
    """
    import torch

    if not torch.isfinite(seen).all():
        raise StemmaError(
            f"{network.name} has NaN or infinite {what} at probes {start} to {start + len(seen) - 1}: nothing can be "
            "measured there. Leave these probes out, or repair the model"
        )
    seen = seen.detach().cpu()
    return seen.numpy() if seen.dtype == torch.float64 else seen.float().numpy()
