"""Batch norm after an edit: its statistics are those of the network as it is now."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from stemma.edits.layer_inputs import batch_of

LEAST = 8
"""Inputs of a last batch; smaller ones are left out where batch norm goes by the batch."""


def norms(module: torch.nn.Module) -> list[Any]:
    """Batch norms that keep statistics."""
    kinds = torch.nn.modules.batchnorm._BatchNorm
    return [m for m in module.modules() if isinstance(m, kinds) and m.track_running_stats]


@contextmanager
def by_batch(module: torch.nn.Module) -> Generator[None]:
    """Let batch norm use the statistics of each batch, and keep what it remembers.

    Yields:
        While it does.
    """
    found = norms(module)
    before = [(m, m.momentum) for m in found]
    try:
        for m in found:
            m.momentum = 0.0
            m.train()
        yield
    finally:
        for m, momentum in before:
            m.momentum = momentum
            m.eval()


def recalibrate(
    module: torch.nn.Module,
    forward: Callable[[torch.Tensor], Any],
    inputs: np.ndarray,
    like: torch.Tensor,
    batch: int = 128,
) -> int:
    """Estimate the statistics of every batch norm anew, in place, with forward passes only.

    Args:
        module: The network.
        forward: Runs it.
        inputs: Natural inputs, a few hundred or more.
        like: A parameter, for precision and device.
        batch: Inputs at once; a last batch of fewer than `LEAST` is left out.

    Returns:
        How many batch norms there are.
    """
    found = norms(module)
    if not found:
        return 0
    before = [(m, m.momentum, m.num_batches_tracked.clone()) for m in found]
    for m in found:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
        m.train()
    try:
        with torch.no_grad():
            for start in range(0, len(inputs), batch):
                if start == 0 or len(inputs) - start >= LEAST:
                    forward(batch_of(inputs[start : start + batch], like))
    finally:
        for m, momentum, count in before:
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)
            m.eval()
    return len(found)
