"""Batch-norm statistics after an edit, re-estimated with forward passes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from stemma.edits.layer_inputs import as_tensor

MIN_BATCH = 8
"""Smallest last batch; a smaller one is left out where batch norm uses the statistics of the batch."""


def batch_norms(module: torch.nn.Module) -> list[Any]:
    """The batch-norm layers that keep running statistics."""
    kinds = torch.nn.modules.batchnorm._BatchNorm
    return [m for m in module.modules() if isinstance(m, kinds) and m.track_running_stats]


@contextmanager
def batch_statistics(module: torch.nn.Module) -> Generator[None]:
    """Let batch norm use the statistics of each batch inside, without changing its running statistics."""
    norms = batch_norms(module)
    before = [(m, m.momentum) for m in norms]
    try:
        for m in norms:
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
    """Re-estimate the running statistics of every batch norm in place, and return how many there are."""
    # `like` is a parameter that gives precision and device; a few hundred natural inputs or more are needed.
    norms = batch_norms(module)
    if not norms:
        return 0
    before = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
        m.train()
    try:
        with torch.no_grad():
            for start in range(0, len(inputs), batch):
                if start == 0 or len(inputs) - start >= MIN_BATCH:
                    forward(as_tensor(inputs[start : start + batch], like))
    finally:
        for m, momentum, count in before:
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)
            m.eval()
    return len(norms)
