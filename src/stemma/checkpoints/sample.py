"""The sample of a large model: the leading rows of every tensor, chosen by shapes alone.

Which rows are read must not depend on what is in them: then a test that compares the sampled rows of two models keeps
its law under independence. It depends on shapes only, so that two models of equal shapes give the same sample whatever
their number format, sharding or place.
"""

import math
from dataclasses import replace

from stemma.checkpoints.model import Model

WHOLE = 1 << 18
"""Entries of a tensor up to which all of it is read: no less than the geometry of a family reads of any (`READ`)."""

ENTRIES, LEAST = 1 << 19, 48
"""About so many leading entries of a larger tensor are read, but at least so many rows."""

MOST = 1 << 22
"""Most entries of one tensor that are read: a tensor whose first row alone is longer is not read at all."""


def sampled_rows(shape: tuple[int, ...]) -> int | None:
    """How many leading entries of the first axis are read of a tensor of this shape; None for all of it."""
    size = math.prod(shape)
    if size <= WHOLE:
        return None
    row = size // shape[0]
    rows = min(max(LEAST, ENTRIES // row), MOST // row)
    return rows if rows < shape[0] else None


def sampled(model: Model) -> Model:
    """The model with nothing but its sample readable; itself where it is a sample already, or smaller than one."""
    if model.is_partial:
        return model
    cut = {n: replace(t, leading=sampled_rows(t.shape)) for n, t in model.tensors.items()}
    return replace(model, tensors=cut) if any(t.leading is not None for t in cut.values()) else model


def bytes_read(model: Model) -> tuple[int, int]:
    """Bytes of a model's tensors that can be read, and all of them."""
    return sum(t.cut().nbytes for t in model.tensors.values()), sum(t.nbytes for t in model.tensors.values())
