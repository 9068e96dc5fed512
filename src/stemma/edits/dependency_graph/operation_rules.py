"""The rule of each tensor operation: how it changes unit labels."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from stemma.edits.dependency_graph.elementwise_rules import MIXED, align_label, combine_labels, join_weight
from stemma.edits.dependency_graph.matmul_rules import attention, convolution, matmul
from stemma.edits.dependency_graph.tracing_mode import Rule, TracingMode, tensors_in
from stemma.edits.dependency_graph.unit_labels import NO_UNIT, Label, reshape_label, varies

STATISTIC = "it enters a statistic over all units (a mean, a norm, a softmax)"


@lru_cache(maxsize=1024)
def rule_of(func: Any) -> Rule:
    """The rule of an operation: a function of the tracing mode, the operation, its arguments and its result."""
    name = str(func.overloadpacket).removeprefix("aten.")
    if name in ("max", "min") and torch.Tag.pointwise in func.tags:
        return pointwise
    for names, rule in RULES:
        if name.removesuffix("_") in names or name in names:
            return rule
    if torch.Tag.pointwise in func.tags:
        return pointwise
    return unknown_operation


def unknown_operation(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operation without a rule: harmless where no unit reaches it."""
    if any(t.label(x) is not None for x in tensors_in((args, kwargs))):
        t.unknown(func, (args, kwargs), out)


def pointwise(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Elementwise operations: units that are combined at one place become one unit."""
    for result in tensors_in(out):
        given = [x for x in tensors_in((args, kwargs)) if x.ndim]
        t.set(result, combine_labels(t, given, result.ndim))


def passthrough(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A copy, a cast, dropout in evaluation: the label stays."""
    found, result = t.origin(args[0]), tensors_in(out)[0]
    if found is not None and result is not args[0]:
        t.reorder(result, *found)
    else:
        t.set(result, t.label(args[0]))
        t.passed_on(args[0], result)


def reshape(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The same entries with other axes."""
    if t.origin(args[0]) is not None and tuple(args[0].shape) == tuple(out.shape):
        return passthrough(t, func, args, kwargs, out)
    label = t.label(args[0])
    t.set(out, None if label is None or not out.numel() else reshape_label(label, args[0].shape, out.shape))
    return t.passed_on(args[0], out)


def permute(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Axes in another order."""
    x = args[0]
    order = torch.empty([2 + i for i in range(x.ndim)], device="meta")
    axes = tuple(n - 2 for n in func(order, *args[1:], **kwargs).shape)
    found = t.origin(x)
    if found is not None:
        t.reorder(out, found[0], tuple(found[1][a] for a in axes))
    else:
        label = t.label(x)
        t.set(out, None if label is None else label.permute(axes))
        t.passed_on(x, out)


def squeeze(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Axes of length one are added or removed."""
    label = t.label(args[0])
    t.set(out, None if label is None else reshape_label(label, args[0].shape, out.shape))
    t.passed_on(args[0], out)


def select(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Entries are selected, repeated or moved along an axis: the same is done to the labels."""
    x, label = args[0], t.label(args[0])
    results = list(tensors_in(out))
    if label is None or not all(r.numel() for r in results):
        return
    wide = label.expand(x.shape)
    plain = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args[1:]]
    done = tensors_in(func(wide, *plain, **{k: v for k, v in kwargs.items() if k == "dim"}))
    for result, numbers in zip(results, done, strict=True):
        t.set(result, _narrowed(numbers))


def _narrowed(label: Label) -> Label:
    """The label with axes along which nothing varies made one long; an axis of one unit stays."""
    for axis in range(label.ndim):
        first = label.narrow(axis, 0, 1)
        if label.shape[axis] > 1 and bool((label == first).all()) and label.unique().numel() > 1:
            label = first
    return label


def pad(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Zeros around axes that carry no units."""
    label = t.label(args[0])
    if label is None:
        return t.set(out, None)
    pads = args[1]
    touched = [args[0].ndim - 1 - i for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    if any(varies(label, a) for a in touched):
        return t.unknown(func, args, out)
    return t.set(out, label)


def expand(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Axes of length one are repeated: nothing varies along them."""
    t.set(out, align_label(t.label(args[0]), out.ndim))


def concatenate(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Tensors side by side (`cat`), or on a new axis (`stack`)."""
    parts = list(args[0])
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    if "stack" in str(func):
        labels = [t.label(x) for x in parts]
        labels = [None if s is None else s.unsqueeze(axis) for s in labels]
        sizes = [1] * len(parts)
    else:
        parts = [x for x in parts if x.numel() or x.ndim == out.ndim]
        labels, sizes = [t.label(x) for x in parts], [x.shape[axis] for x in parts]
    if all(s is None for s in labels):
        return t.set(out, None)
    if not any(varies(s, axis) for s in labels):
        label = None
        for s in labels:
            label = t.labels.join(label, s)
        bare = [s for s in labels if s is None]
        if bare:
            t.labels.fix(label, MIXED)
        return t.set(out, label)
    shape = [max(1 if s is None else s.shape[a] for s in labels) for a in range(out.ndim)]
    wide = []
    for s, size in zip(labels, sizes, strict=True):
        shape[axis] = size
        wide.append(torch.full(shape, NO_UNIT) if s is None else s.expand(shape))
    return t.set(out, torch.cat(wide, axis))


def embedding(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Rows of a table by index: rows are tokens or positions, columns may be units."""
    table = args[0]
    indices = [args[1]] if "embedding" in str(func) else list(args[1])
    plain = len(indices) == 1 and indices[0] is not None
    if t.origin(table) is None or table.ndim != 2 or not plain:
        return unknown_operation(t, func, args, kwargs, out)
    t.labels.fix(t.row_label(table, 0), "it is a row of a table")
    return t.set(out, t.rows(table, 1).reshape([1] * (out.ndim - 1) + [-1]))


def reduce(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Sums, means, maxima: along units, only a sum stays the same when units that are zero are removed."""
    x, label = args[0], t.label(args[0])
    results = tensors_in(out)
    if label is None:
        return
    at = 2 if "norm" in str(func) else 1  # behind the order of a norm
    dims = args[at] if len(args) > at else kwargs.get("dim")
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % x.ndim for d in dims]
    for d in dims if str(func.overloadpacket) != "aten.sum" else ():
        if varies(label, d):
            label = t.labels.collapse_or_fix(label, d, STATISTIC)
    label = t.labels.collapse(label, dims)
    rest = [d for d in range(x.ndim) if d not in dims]
    for r in results:
        found = label if r.ndim == x.ndim or label is None else label.permute(rest + dims).reshape(
            [label.shape[d] for d in rest])  # fmt: skip
        t.set(r, found if found is not None and any(n > 1 for n in found.shape) else None)


def softmax(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Normalisation along an axis."""
    at = 2 if "topk" in str(func) else 1  # behind the number of entries
    label, dim = t.label(args[0]), kwargs.get("dim", -1)
    dim = args[at] if len(args) > at and isinstance(args[at], int) else dim
    if label is not None and varies(label, dim):
        label = t.labels.collapse_or_fix(label, dim, STATISTIC)
    chosen = at == 2 and varies(label, dim)  # entries in another order, and fewer
    for r in tensors_in(out):
        t.set(r, None if chosen or label is None or r.ndim != label.ndim else label)


def pool(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Pixels are combined channel by channel."""
    x = args[0]
    axes = range(x.ndim - (2 if "2d" in str(func) else 1 if "1d" in str(func) else 3), x.ndim)
    for r in tensors_in(out):
        t.set(r, t.labels.collapse(t.label(x), axes))


def batch_norm(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Each channel on its own, with gain, offset and running statistics."""
    x = args[0]
    label = t.labels.collapse(t.label(x), [a for a in range(2, x.ndim)])
    for w in tensors_in(args[1:]):
        if w.ndim == 1 and len(w) == x.shape[1] and (own := t.label(w)) is not None:
            label = t.labels.join(label, own.reshape([1, -1] + [1] * (x.ndim - 2)))
    t.set(tensors_in(out)[0], label)


def layer_norm(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A statistic over the last axes, then a gain and an offset per entry."""
    x, label = args[0], t.label(args[0])
    result = tensors_in(out)[0]
    sizes = len(args[1]) if len(args) > 1 and isinstance(args[1], (tuple, list)) else 1
    inside = label is not None and any(varies(label, a) for a in range(x.ndim - sizes))
    for axis in range(x.ndim - sizes, x.ndim) if inside else ():
        label = t.labels.collapse_or_fix(label, axis, STATISTIC) if label is not None and varies(label, axis) else label
    for w in tensors_in((args[1:], kwargs)):
        if t.origin(w) is not None and w.ndim:
            label = join_weight(t, w, label, x.ndim)
    if not inside:
        t.labels.fix(label, STATISTIC)
    t.set(result, label)


def group_norm(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Statistics over groups of channels: those of one group are one unit."""
    batch_norm(t, func, (args[0], [a for a in args[1:] if isinstance(a, torch.Tensor)]), kwargs, out)
    label, groups = t.label(tensors_in(out)[0]), int(args[6] if len(args) > 6 else args[1])
    if label is None or not varies(label, 1) or groups == 1:
        t.labels.fix(label, STATISTIC)
    else:
        t.labels.collapse(label.reshape(groups, -1), [1])


def pixel_shuffle(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Channels become pixels, or pixels channels: those that one channel consists of are one unit."""
    x, label = args[0], t.label(args[0])
    if label is None:
        return
    if any(varies(label, a) for a in range(label.ndim) if a != 1):
        return t.unknown(func, args, out)
    if x.shape[1] < out.shape[1]:
        return t.set(out, label.repeat_interleave(out.shape[1] // x.shape[1], 1))
    whole = t.labels.collapse(label.reshape(out.shape[1], -1), [1])
    return t.set(out, None if whole is None else whole.reshape(1, -1, 1, 1))


def glu(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The second half of an axis gates the first."""
    label, dim = t.label(args[0]), args[1] if len(args) > 1 else kwargs.get("dim", -1)
    if label is None or not varies(label, dim):
        return t.set(out, label)
    return t.set(out, t.labels.join(*label.chunk(2, dim)))


def prelu(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A slope for each channel, or one for all."""
    x, slope = args[:2]
    label, own = t.label(x), t.label(slope) if slope.numel() > 1 else None
    if own is not None and own.ndim == 1:
        own = own.reshape([1, -1] + [1] * (x.ndim - 2))
    t.set(out, t.labels.join(label, own))


def copy_into(t: TracingMode, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Writing into a tensor."""
    target, source = args[:2]
    if target._is_view():
        t.labels.fix(t.label(source), "it is written into a part of another tensor")
        t.labels.fix(t.label(target), "it is written into a part of another tensor")
    else:
        t.set(target, align_label(t.label(source), target.ndim))


RULES: tuple[tuple[frozenset[str], Callable[..., Any]], ...] = (
    (frozenset({"clone", "contiguous", "_to_copy", "detach", "alias", "lift_fresh", "native_dropout", "dropout",
                "_conj", "resolve_conj", "to"}), passthrough),
    (frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten"}), reshape),
    (frozenset({"t", "transpose", "permute", "swapaxes", "movedim"}), permute),
    (frozenset({"squeeze", "unsqueeze"}), squeeze),
    (frozenset({"pixel_shuffle", "pixel_unshuffle"}), pixel_shuffle),
    (frozenset({"glu"}), glu),
    (frozenset({"prelu", "_prelu_kernel"}), prelu),
    (frozenset({"slice", "select", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes",
                "unsafe_chunk", "chunk", "unbind", "index_select", "flip", "roll", "repeat", "narrow",
                "repeat_interleave", "diagonal"}), select),
    (frozenset({"constant_pad_nd", "pad"}), pad),
    (frozenset({"expand", "expand_as"}), expand),
    (frozenset({"cat", "stack", "concat"}), concatenate),
    (frozenset({"embedding", "index"}), embedding),
    (frozenset({"mean", "sum", "var", "var_mean", "std", "amax", "amin", "max", "min", "argmax", "argmin", "any",
                "all", "prod", "logsumexp", "linalg_vector_norm", "norm", "native_norm"}), reduce),
    (frozenset({"_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "topk", "sort", "_safe_softmax",
                "cumprod"}), softmax),
    (frozenset({"max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d",
                "max_pool1d_with_indices", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
                "max_pool2d", "adaptive_avg_pool2d", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
                "upsample_nearest3d", "upsample_trilinear3d", "upsample_linear1d", "max_pool3d_with_indices",
                "upsample_nearest1d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"}), pool),
    (frozenset({"native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                "cudnn_batch_norm", "_batch_norm_with_update", "batch_norm"}), batch_norm),
    (frozenset({"native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"}), layer_norm),
    (frozenset({"native_group_norm", "group_norm"}), group_norm),
    (frozenset({"mm", "addmm", "bmm", "baddbmm", "_addmm_activation"}), matmul),
    (frozenset({"convolution", "_convolution", "mkldnn_convolution"}), convolution),
    (frozenset({"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
                "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
                "_scaled_dot_product_attention_math"}), attention),
    (frozenset({"copy"}), copy_into),
)  # fmt: skip
