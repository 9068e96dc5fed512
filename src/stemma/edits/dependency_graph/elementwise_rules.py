"""Elementwise rules: units that are combined entry by entry become one unit."""

from collections.abc import Sequence

import torch

from stemma.edits.dependency_graph.tracing_mode import TracingMode
from stemma.edits.dependency_graph.unit_labels import Label, varies

MIXED = "it is combined with values that are not sliced with it"


def combine_labels(t: TracingMode, given: Sequence[torch.Tensor], ndim: int) -> Label | None:
    """The label of several tensors combined entry by entry, aligned at the last axis."""
    label, weights = None, []
    for x in given:
        if t.origin(x) is not None:
            weights.append(x)
        else:
            label = t.labels.join(label, align_label(t.label(x), ndim))
    for x in weights:
        label = join_weight(t, x, label, ndim)
    for x in given:
        own = None if t.origin(x) is not None else align_label(t.label(x), ndim)
        for axis in range(ndim - x.ndim, ndim):
            bare = t.origin(x) is None and not varies(own, axis) and x.shape[axis - ndim] > 1
            if bare and label is not None and varies(label, axis) and bool(x.any()):
                label = t.labels.collapse_or_fix(label, axis, MIXED)
    return label


def join_weight(t: TracingMode, x: torch.Tensor, label: Label | None, ndim: int) -> Label | None:
    """Join a weight that is added or multiplied: one of its axes joins the units, the others cannot be sliced."""
    long = [a for a in range(x.ndim) if x.shape[a] > 1]
    best = next((a for a in long if varies(label, a + ndim - x.ndim)), long[-1] if long else 0)
    for axis in long:
        rows, place = align_label(t.row_label(x, axis), ndim), axis + ndim - x.ndim
        elsewhere = label is not None and any(varies(label, a) for a in range(ndim) if a != place)
        if axis == best and elsewhere and label is not None:  # the same for all units: a gain inside heads
            label = t.labels.collapse(label, [place])
            t.labels.fix(rows, "it is shared by all units")
        elif axis == best:
            label = t.labels.join(label, rows)
        else:
            t.labels.fix(rows, "it is indexed by position")
    return label


def align_label(label: Label | None, ndim: int) -> Label | None:
    """A label with axes of length one in front, so that it has this many."""
    return None if label is None else label.reshape([1] * (ndim - label.ndim) + list(label.shape))
