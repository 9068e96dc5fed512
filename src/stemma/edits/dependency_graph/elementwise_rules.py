"""Labels of tensors that are combined entry by entry: units that meet at one place are one."""

from collections.abc import Sequence

import torch

from stemma.edits.dependency_graph.tracing_mode import Tracing
from stemma.edits.dependency_graph.unit_labels import Label, varies

MEETS = "it is combined with numbers that are not cut with it"


def combined(t: Tracing, given: Sequence[torch.Tensor], ndim: int) -> Label | None:
    """The label of what several tensors are combined to, aligned at the last axis."""
    label, weights = None, []
    for x in given:
        if t.origin(x) is not None:
            weights.append(x)
        else:
            label = t.known.join(label, aligned(t.label(x), ndim))
    for x in weights:
        label = with_weight(t, x, label, ndim)
    for x in given:
        own = None if t.origin(x) is not None else aligned(t.label(x), ndim)
        for axis in range(ndim - x.ndim, ndim):
            bare = t.origin(x) is None and not varies(own, axis) and x.shape[axis - ndim] > 1
            if bare and label is not None and varies(label, axis):
                label = t.known.settle(label, axis, MEETS)
    return label


def with_weight(t: Tracing, x: torch.Tensor, label: Label | None, ndim: int) -> Label | None:
    """A weight that is added or multiplied: one of its axes joins the units, others cannot be cut."""
    long = [a for a in range(x.ndim) if x.shape[a] > 1]
    best = next((a for a in long if varies(label, a + ndim - x.ndim)), long[-1] if long else 0)
    for axis in long:
        rows, place = aligned(t.row_label(x, axis), ndim), axis + ndim - x.ndim
        elsewhere = label is not None and any(varies(label, a) for a in range(ndim) if a != place)
        if axis == best and elsewhere and label is not None:  # the same for all units: a gain inside heads
            label = t.known.along(label, [place])
            t.known.fix(rows, "it is shared by all units")
        elif axis == best:
            label = t.known.join(label, rows)
        else:
            t.known.fix(rows, "it stands for a position")
    return label


def aligned(label: Label | None, ndim: int) -> Label | None:
    """A label with axes of length one in front, so that it has this many."""
    return None if label is None else label.reshape([1] * (ndim - label.ndim) + list(label.shape))
