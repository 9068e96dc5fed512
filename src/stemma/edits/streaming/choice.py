"""Whether a model is pruned block by block because the memory at hand does not hold it."""

import os
from pathlib import Path

from stemma.checkpoints.model import Model
from stemma.edits.streaming.layout import why_not as why_not

COPIES = 4
"""Copies of a network in float32 that pruning in memory holds: the original, the smaller one, and two to check with."""


def exceeds_memory(model: Model) -> bool:
    """Whether pruning in memory would take more than half of what is free."""
    if not model.source or not Path(model.source).is_dir():
        return False
    free = free_memory()
    return free is not None and COPIES * 4 * model.parameters > free / 2


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return None
