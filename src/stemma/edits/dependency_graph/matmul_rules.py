"""Rules of matrix products, attention and convolutions: units are read on one axis and written on another."""

from math import prod
from typing import Any

import torch

from stemma.edits.dependency_graph.elementwise_rules import MIXED, combine_labels, join_weight
from stemma.edits.dependency_graph.tracing_mode import MatrixProduct, TracingMode, tensors_in
from stemma.edits.dependency_graph.unit_labels import NO_UNIT, Label, varies


def matmul(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Matrix products, with a weight or between activations."""
    name = str(func.overloadpacket)
    bias, (a, b) = (args[0], args[1:3]) if "add" in name else (None, args[:2])
    if "mv" in name:
        return t.unknown(func, args, out)
    if a.ndim == 2 and t.origin(b) is not None:
        label = _with_matrix(t, a, b, out)
    else:
        label = _between(t, a, b)
        t.matrix_products.append(
            MatrixProduct("", prod(a.shape) * b.shape[-1] / t.batch, t.label(a) if a.ndim > 2 else None)
        )
    if bias is not None and bias.ndim:
        if t.origin(bias) is not None:
            label = join_weight(t, bias, label, out.ndim)
        else:
            t.set(out, label)
            label = combine_labels(t, [bias, out], out.ndim)
    return t.set(out, label)


def _with_matrix(t: TracingMode, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> Label | None:
    """`x [n, inputs] @ w [inputs, outputs]`."""
    label, found = t.label(x), t.origin(w)
    assert found is not None
    t.used(found[0], *found[1], "linear", out, len(x))
    rows = t.rows(w, 0)
    if label is not None or bool(x.any()):  # the first state of a recurrent layer is zero
        join_input_rows(t, label, 1, rows)
    if varies(label, 0):
        t.labels.fix(t.rows(w, 1), MIXED)
        return t.labels.collapse(label, [1])
    return t.rows(w, 1).reshape(1, -1)


def join_input_rows(t: TracingMode, label: Label | None, axis: int, rows: torch.Tensor) -> None:
    """Join the rows of a weight with the units on the axis of the input that they multiply."""
    if not varies(label, axis) or label is None:
        if len(rows) > 1:
            t.labels.fix(rows, "its inputs are not hidden units")
        return
    others = [a for a in range(label.ndim) if a != axis]
    flat_label = t.labels.collapse(label, others)
    assert flat_label is not None
    numbers = flat_label.reshape(-1)
    if bool((numbers == NO_UNIT).any()):
        t.labels.fix(rows[numbers == NO_UNIT], "its inputs are not hidden units")
    t.labels.join(numbers, rows)


def _between(t: TracingMode, a: torch.Tensor, b: torch.Tensor) -> Label | None:
    """`a [..., n, k] @ b [..., k, m]` between activations: batch axes are joined."""
    x, y = t.label(a), t.label(b)
    if varies(x, -1) or varies(y, -2):
        left = None if x is None else x.transpose(-1, -2)
        inner = t.labels.join(left, y) if varies(x, -1) and varies(y, -2) else (left if varies(x, -1) else y)
        if not (varies(x, -1) and varies(y, -2)):
            t.labels.fix(inner, MIXED)
    x, y = (t.labels.collapse(s, [d]) for s, d in ((x, -1), (y, -2)))
    if varies(x, -2) and varies(y, -1):
        t.labels.fix(y, MIXED)
        y = None
    return t.labels.join(x, y)


def attention(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Scaled dot products, a softmax, and a weighted mean, per head."""
    q, k, v = args[:3]
    shared = q.shape[-3] // k.shape[-3]  # query heads that read one key

    def labels(x: torch.Tensor) -> Label | None:
        label = t.label(x)
        wide = label is not None and x is not q and shared > 1 and varies(label, x.ndim - 3)
        return label.repeat_interleave(shared, x.ndim - 3) if wide and label is not None else label

    scores = t.labels.join(t.labels.collapse(labels(q), [-2, -1]), t.labels.collapse(labels(k), [-2, -1]))
    label = t.labels.join(scores, t.labels.collapse(labels(v), [-2]))
    per_input = prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1]) / t.batch
    t.matrix_products.append(MatrixProduct("", per_input, scores))
    t.set(tensors_in(out)[0], label)


def convolution(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Convolutions, also transposed, grouped and depthwise."""
    x, w, bias = args[:3]
    turned, groups = bool(args[6]), int(args[8])
    found = t.origin(w)
    if found is None:
        return t.unknown(func, args, out)
    label = t.labels.collapse(t.label(x), range(2, x.ndim))
    input_axis, output_axis = (0, 1) if turned else (1, 0)
    counted = x if turned else out
    t.used(found[0], input_axis, output_axis, "convolution", out, counted.numel() / counted.shape[1])
    if groups == 1:
        join_input_rows(t, label, 1, t.rows(w, input_axis))
        written = t.rows(w, output_axis)
    else:
        written = _grouped(t, x, w, label, groups, turned=turned)
    result = written.reshape([1, -1] + [1] * (x.ndim - 2))
    if bias is not None:
        result = t.labels.join(result, t.rows(bias, 0).reshape(result.shape))
    return t.set(out, result)


def _grouped(
    t: TracingMode, x: torch.Tensor, w: torch.Tensor, label: Label | None, groups: int, *, turned: bool
) -> torch.Tensor:  # fmt: skip
    """The channels of one group are one unit, with their kernels; a depthwise kernel is a group of one channel."""
    found = t.origin(w)
    assert found is not None
    t.uses[found[0]].kind = "grouped"  # it mixes no units, so it needs no refit
    rows = t.labels.collapse(t.rows(w, 0).reshape(groups, -1), [1])
    assert rows is not None
    if label is not None and varies(label, 1):
        t.labels.join(t.labels.collapse(label.reshape(groups, -1), [1]), rows)
    else:
        t.labels.fix(rows, "its inputs are not hidden units")
    if not turned:
        return t.rows(w, 0)
    t.labels.fix(t.rows(w, 1), "it is the same for all groups of a convolution")  # one axis for all groups
    return rows.expand(-1, w.shape[1]).reshape(-1)
