"""Pauses Python's search for unreachable cycles while many small records are made."""

import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def paused_collection() -> Generator[None]:
    """Make no search for cycles in this block: it would walk over all records of a checkpoint again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
