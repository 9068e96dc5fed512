"""Hidden units inferred from layer names where no family matches: a chain in which each layer reads the previous one.

The chain is an assumption: two layers of the same width may write into one residual stream. So a structure with two
groups of one size is not `certain`; `merge_equal_sizes` merges such groups, which are exchangeable either way (the same
permutation applied to both is a symmetry whether or not they are tied).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stemma.architectures.layer_names import (  # fmt: skip
    RANKS,
    Layer,
    flattens_channels_last,
    have_paired_vectors,
    layer_sort_key,
    letters,
    natural_key,
    numbers_give_order,
    pieces,
    shapes_give_order,
    split_name,
)
from stemma.architectures.structure import GroupRule, MisfitError, Part, Structure, assemble

_NOT_A_CHAIN = re.compile(
    r"attn|attention|quer|q_proj|qkv|_ih|_hh|lstm|gru|rnn|group_?norm|(^|[._/])gn\d*([._/]|$)|embed|expert|gate|router"
)
"""Words in tensor names of networks that are not a chain, or whose rows are not free units."""

FEW = 64
"""Tensors whose names are looked at before all are."""

UNKNOWN = "unknown"
"""Role of an axis with unknown order."""


def from_names(shapes: Mapping[str, tuple[int, ...]]) -> Structure | None:
    """The structure read from layer names as a chain; None if the tensors do not form a chain."""
    if any(_NOT_A_CHAIN.search(n.lower()) for n in shapes):
        return None
    try:
        layers = _layers(shapes)
        if layers is None or len(layers) < 2:
            return None
        draft, rules = _chain(layers, shapes)
        _attach(draft, layers, shapes)
        labels, groups = assemble(shapes, draft, rules, {})
    except MisfitError:
        return None
    sizes = [g.size for g in groups]
    return Structure("inferred:names", len(set(sizes)) == len(sizes), labels, groups)


def kernel_axes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
    """Window axes of four-axis kernels: (2, 3) torch, (0, 1) TensorFlow, (1, 2) TFLite; None if none is plausible."""
    best, cost = None, 0.0
    for a, b in ((2, 3), (0, 1), (1, 2)):
        if any(max(s[a], s[b]) > 32 or max(s[a], s[b]) > 3 * min(s[a], s[b]) for s in shapes):
            continue
        area = float(sum(s[a] * s[b] for s in shapes))
        if best is None or area < cost:
            best, cost = (a, b), area
    return best


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> list[Layer] | None:
    weights = {n: s for n, s in shapes.items() if len(s) >= 2 and max(s) > 1}
    if any(len(s) not in {2, 3, 4} for s in weights.values()):
        return None
    four = [s for s in weights.values() if len(s) == 4]
    window = kernel_axes(four) if four else (2, 3)
    if window is None:
        return None
    _refuse_unknown_words(list(weights)[:FEW])
    found = []
    for name, shape in weights.items():
        module, leaf = split_name(name)
        inputs_first = "kernel" in leaf or (len(shape) == 4 and window == (0, 1))
        ins, outs = _in_out(shape, window, inputs_first or (window == (0, 1) and len(shape) == 2))
        pointwise = len(shape) == 4 and shape[window[0]] == shape[window[1]] == 1
        found.append(Layer(name, module, ins, outs, pointwise, flattens_channels_last(leaf, window if four else None)))
    if len({layer.module for layer in found}) < len(found):
        return None
    shared = _shared_parts([layer.module for layer in found])
    if any(layer.module.isdigit() and "." not in layer.tensor for layer in found) and not have_paired_vectors(
        found, shapes
    ):
        return None
    ordered = sorted(found, key=lambda layer: layer_sort_key(layer, shared))
    return ordered if numbers_give_order(ordered, shapes) or shapes_give_order(ordered, shapes) else None


def _shared_parts(modules: Sequence[str]) -> set[str]:
    """Name parts that all inner layers have."""
    ends = RANKS[-1] | RANKS[2]
    parts = [set(pieces(module)) for module in modules]
    inner = [p for p in parts if not any(letters(x) in ends for x in p)]
    return set.intersection(*inner) if inner else set()


def _refuse_unknown_words(names: Sequence[str]) -> None:
    """Raise if some of the names are enough to see that there is a word of unknown rank."""
    layers = [Layer(n, split_name(n)[0], 0, 0, False, None) for n in names]
    shared = _shared_parts([layer.module for layer in layers])  # what all layers share is among these
    if shared or any(not _is_end(layer.module) for layer in layers):
        for layer in layers:
            layer_sort_key(layer, shared)


def _is_end(module: str) -> bool:
    return any(letters(x) in RANKS[-1] | RANKS[2] for x in pieces(module))


def _in_out(shape: tuple[int, ...], window: tuple[int, int], inputs_first: bool) -> tuple[int, int]:
    if len(shape) == 4:
        a, b = (i for i in range(4) if i not in window)
    elif len(shape) == 3:
        a, b = (1, 2) if inputs_first else (0, 1)
    else:
        a, b = 0, 1
    if shape[a] == 1 or (shape[b] == 1 and len(shape) == 4):
        channel_axis = b if shape[a] == 1 else a
        depthwise = (window, channel_axis) in {((1, 2), 3), ((0, 1), 2), ((2, 3), 0)}
        if depthwise:
            return channel_axis, channel_axis
    return (a, b) if inputs_first else (b, a)


def _chain(
    layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, list[list[Part]]], dict[str, GroupRule]]:
    """Axis parts by tensor and rules by group for a chain in which each layer reads the previous one."""
    draft: dict[str, list[list[Part]]] = {}
    rules: dict[str, GroupRule] = {}
    written: list[tuple[str, int]] = []
    flattened: set[str] = set()  # groups that are flattened in an unknown order
    for i, layer in enumerate(layers):
        shape = shapes[layer.tensor]
        parts = [[Part("one" if n == 1 else "kernel", fixed=True)] for n in shape]
        after_map = i > 0 and len(shapes[layers[i - 1].tensor]) > 2
        source, ins, outs = _source(layer, shape, written, first=i == 0, after_map=after_map)
        if i and source[0].fixed:
            flattened.add(written[-1][0])
        group = f"unit@{i}"
        previous = written[-1] if written else ("", 0)
        if layer.ins == layer.outs and written:
            group = source[0].name
        elif i == len(layers) - 1:
            parts[outs] = [Part("class" if len(shape) == 2 else "pixel", fixed=True)]
            group = ""
        elif layer.pointwise and source[0].name != previous[0] and shape[outs] == previous[1]:
            group = previous[0]
        if group:
            parts[outs] = [Part(group)]
            rules.setdefault(group, GroupRule(position=(i,)))
            written.append((group, shape[outs]))
        if ins != outs:
            parts[ins] = source
        draft[layer.tensor] = parts
    read = {draft[layer.tensor][layer.ins][0].name for layer in layers[1:]} | {
        draft[layer.tensor][layer.outs][0].name for layer in layers[-1:]
    }
    if unread := set(rules) - read - flattened:
        raise MisfitError(f"no layer reads {sorted(unread)}")
    return draft, rules


def _source(
    layer: Layer, shape: tuple[int, ...], written: Sequence[tuple[str, int]], *, first: bool, after_map: bool
) -> tuple[list[Part], int, int]:
    """What a layer reads, its input axis and its output axis (swapped for a transposed convolution)."""
    ins, outs = layer.ins, layer.outs
    if first and ins == outs:
        ins = next(a for a, n in enumerate(shape) if n == 1)
    if first:
        role = "pixel" if len(shape) == 2 else "one" if shape[ins] == 1 else "colour"
        return [Part(role, fixed=True)], ins, outs
    group, size = written[-1]
    if shape[ins] == size:
        return [Part(group)], ins, outs
    if layer.pointwise:
        for earlier, width in reversed(written[:-1]):
            if shape[ins] == width:
                return [Part(earlier)], ins, outs
    if len(shape) > 2 and shape[outs] == size:
        return [Part(group)], outs, ins
    if len(shape) == 2 and shape[ins] % size == 0 and after_map:
        if layer.channels_last is None:
            return [Part(UNKNOWN, fixed=True)], ins, outs
        return [Part(group, interleaved=layer.channels_last)], ins, outs
    raise MisfitError(f"no layer before {layer.tensor} has {shape[ins]} units")


def _attach(draft: dict[str, list[list[Part]]], layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Assign bias and norm vectors to the output group of their module's layer, or of the nearest previous one."""
    written: list[tuple[str, str, Part, int]] = []
    for layer in layers:
        outs = layer.outs if draft[layer.tensor][layer.outs][0].name != draft[layer.tensor][layer.ins][0].name else None
        axis = layer.outs if outs is None else outs
        candidates = [a for a, p in enumerate(draft[layer.tensor]) if p[0].name == draft[layer.tensor][axis][0].name]
        part = draft[layer.tensor][candidates[0]][0]
        written.append((layer.tensor, layer.module, replace(part, interleaved=False), shapes[layer.tensor][axis]))
    vectors: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1 and name not in draft:
            vectors.setdefault(split_name(name)[0], []).append(name)
    after = 0
    for module in sorted(vectors, key=natural_key):
        sizes = {shapes[n][0] for n in vectors[module]}
        size = sizes.pop() if len(sizes) == 1 else -1
        same = [w for w in written if _same_module(w[1], module) and w[3] == size]
        if "batch_normalization" in module:
            hits = [i for i, w in enumerate(written) if i >= after and w[3] == size]
            if hits:
                same, after = [written[hits[0]]], hits[0] + 1
        elif not same:
            same = [w for w in written if natural_key(w[1]) <= natural_key(module) and w[3] == size][-1:]
        if same:
            for name in vectors[module]:
                draft[name] = [[same[0][2]]]


def _same_module(layer: str, module: str) -> bool:
    if layer == module:
        return True
    a, b = (re.sub(r"\dd(?=_|$)", "", x).rpartition(".") for x in (layer, module))
    digits = [re.findall(r"\d+", x[2]) for x in (a, b)]
    return a[0] == b[0] and bool(digits[0]) and digits[0] == digits[1] and not a[2].isdigit()
