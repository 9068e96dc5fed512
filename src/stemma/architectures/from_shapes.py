"""Hidden units inferred from shapes alone, without names or file order: only what is certain.

What can be concluded:

- A layer's two channel axes are one read and one written. A size that is read somewhere and written elsewhere is
  hidden, provided that the network's input and output are accounted for by other sizes: a size that occurs on one side
  only, or 1 to 4 channels of a convolution. If they are not, any size could be pixels or classes, and nothing is
  claimed.
- Axes of equal size may or may not be one stream. Permuting them all alike is a symmetry either way, so they make
  one group; groups of different sizes are disjoint.
- Rows inside attention heads, of fused gates, of concatenated maps and of padded shortcuts are no free units. Sizes
  that could be such are left fixed.

Not visible from shapes: group normalisation (units are then free only inside norm groups) and fixed position tables.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from stemma.architectures.from_names import kernel_axes
from stemma.architectures.structure import FIXED, AxisLabel, GroupRule, Segment, Structure, collect_groups, unknown_axes

COLOURS = 4
"""Longest channel axis that is treated as image channels, or as that of depthwise kernels."""


@dataclass
class _AxisCounts:
    """How often each size occurs on the first and the second channel axis, and with which partner sizes."""

    first: Counter[int] = field(default_factory=Counter)
    second: Counter[int] = field(default_factory=Counter)
    partners: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    squares: Counter[int] = field(default_factory=Counter)


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Structure:
    """The structure that shapes alone imply: one group per hidden size; everything else is fixed."""
    channels = _channels(shapes)
    kernels = {n: c for n, c in channels.items() if len(shapes[n]) == 4}
    sides = _sides(shapes, channels)
    squares = Counter(s[0] for s in shapes.values() if len(s) == 2 and s[0] == s[1])
    if not kernels and (path := _mlp_sizes(sides)):
        return _label(shapes, channels, path, None)
    if not kernels or max(squares.values(), default=0) >= 2:
        if kernels and not _ends_identified(shapes, kernels, sides):
            return _label(shapes, channels, set(), None)
        return _transformer(shapes, channels, sides, squares, image=bool(kernels))
    hidden = {s for s in sides.first if s in sides.second and s > COLOURS and not squares[s]}
    hidden -= _possibly_tied_sizes(shapes, kernels, sides)
    return _label(shapes, channels, hidden if _ends_identified(shapes, kernels, sides) else set(), None)


def _channels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The two channel axes of every matrix and kernel, by tensor."""
    four = [s for s in shapes.values() if len(s) == 4]
    window = kernel_axes(four) if four else None
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and min(shape) > 1:
            found[name] = (0, 1)
        elif len(shape) == 4 and window is not None:
            a, b = (i for i in range(4) if i not in window)
            found[name] = (a, b)
    return found


def _sides(shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]]) -> _AxisCounts:
    out = _AxisCounts()
    for name, (a, b) in channels.items():
        x, y = shapes[name][a], shapes[name][b]
        if len(shapes[name]) == 4 and 1 in {x, y}:  # depthwise, or the only channel of an image
            out.first[max(x, y)] += 1
            out.second[max(x, y)] += 1
            continue
        if x == y:
            out.squares[x] += 1
        else:
            out.partners[x].add(y)
            out.partners[y].add(x)
        out.first[x] += 1
        out.second[y] += 1
    return out


def _ends_identified(
    shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], sides: _AxisCounts
) -> bool:
    """Whether network input and output are identified: each end has a size found only there, or image channels."""
    image, pictures = [False, False], set()
    for name, axes in channels.items():
        for side in (0, 1):
            if shapes[name][axes[side]] <= COLOURS < shapes[name][axes[1 - side]]:
                image[side] = True
                pictures.add(shapes[name][axes[side]])
    first, second = set(sides.first) - set(sides.second), set(sides.second) - set(sides.first)
    # a size with a multiple on the other side is a feature map that is flattened there
    flat = {s for one, other in ((first, second), (second, first)) for s in one for t in other if t % s == 0}
    only_first, only_second = bool(first - flat), bool(second - flat)
    maps = {shapes[n][a] for n, pair in channels.items() for a in pair}
    single = {s for s in sides.partners if sides.first[s] + sides.second[s] == 1} - pictures - flat
    once = any(s < min(sides.partners[s]) and not any(s % m == 0 for m in maps if 1 < m < s) for s in single)
    # one side is the image; the other end is a second image or a size that occurs nowhere else
    return (image[1] and (only_first or image[0])) or (image[0] and (only_second or image[1])) or (any(image) and once)


def _possibly_tied_sizes(
    shapes: Mapping[str, tuple[int, ...]], kernels: Mapping[str, tuple[int, int]], sides: _AxisCounts
) -> set[int]:
    """Sizes whose rows may be tied: concatenations, grouped convolutions, padded shortcuts."""
    convolutions, pointwise, tied = Counter(), set(), set()
    narrow_sides = Counter(
        side for n, pair in kernels.items() for side in (0, 1) if 1 < shapes[n][pair[side]] <= COLOURS
    )
    for name, (a, b) in kernels.items():
        shape = shapes[name]
        window = [n for i, n in enumerate(shape) if i not in {a, b}]
        x, y = shape[a], shape[b]
        if max(window) > 1:
            convolutions[x, y] += 1
        else:
            pointwise.add((x, y))
        for side, size, other in ((1, x, y), (0, y, x)):
            one_sided = other > COLOURS and other not in (sides.first, sides.second)[1 - side]
            if (
                other < size
                and size % other == 0
                and max(window) > 1
                and (one_sided or (1 < other <= COLOURS and narrow_sides[side] > 1))
            ):
                tied.add(size)  # perhaps a grouped convolution
    if any((y, x) in convolutions for x, y in convolutions if x != y and (x == 2 * y or y == 2 * x)):
        tied |= {max(x, y) for x, y in convolutions if x != y and (y, x) in convolutions}
    for size in {s for s in sides.partners if s % 2 == 0 and s // 2 in sides.partners}:
        pair = {(size, size // 2), (size // 2, size)}
        direct = any(p in convolutions for p in pair)
        if not pair & pointwise and (not direct or convolutions[size, size] % 2):
            tied.add(size)  # perhaps a padded shortcut: one convolution widens, then pairs keep the width
    doubling = {x for x, y in convolutions if x == 2 * y}
    halving = {y for x, y in convolutions if y == 2 * x}
    if doubling and halving:
        tied |= doubling | halving  # perhaps concatenated feature maps
    return tied


def _mlp_sizes(sides: _AxisCounts) -> set[int]:
    """Hidden sizes of a multilayer perceptron whose widths all differ; empty if the matrices form anything else."""
    ends = [s for s in sides.partners if sides.first[s] + sides.second[s] == 1]
    inside = {s for s in sides.partners if sides.first[s] == sides.second[s] == 1}
    whole = len(ends) == 2 and len(inside) == len(sides.partners) - 2 and not sides.squares
    opposite = sum(sides.first[s] for s in ends) == 1
    return inside if whole and opposite else set()


def _transformer(
    shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], sides: _AxisCounts,
    squares: Mapping[int, int], *, image: bool,
) -> Structure:  # fmt: skip
    """Residual stream and feed-forward units, identified together: many layers read and write the same two sizes."""
    both = set(sides.first) & set(sides.second)
    opposite: dict[int, set[int]] = {}
    for stream in both:
        inner = {s for s in both if sides.partners[s] == {stream} and not sides.squares[s]}
        inner = {s for s in inner if min(sides.first[s], sides.second[s]) >= 2}
        tables = [s for s in set(sides.partners) - both if s > stream and sides.partners[s] == {stream}]
        tokens = {max(tables)} if tables else set()
        norms = sum(len(s) == 1 and s[0] == stream for s in shapes.values())
        counts = {s: sorted((sides.first[s], sides.second[s])) for s in inner}
        gated = {s for s in inner if counts[s][1] == 2 * counts[s][0] >= 6 and s != 3 * stream}
        square_count = squares.get(stream, 0)  # four per layer, or one with a fused threefold one
        fused = sides.first[3 * stream] + sides.second[3 * stream] if 3 * stream not in both else 0
        ungated = {s for s in inner if counts[s][0] == counts[s][1] and s > stream}
        ungated = {s for s in ungated if square_count >= 4 * counts[s][0] or square_count == fused == counts[s][0]}
        found = gated or ungated
        if len(found) == 1 and norms >= 2 * counts[min(found)][0] and (image or tokens):
            opposite[stream] = found | tokens
    hidden = set(opposite) | {s for found in opposite.values() for s in found if s in both}
    return _label(shapes, channels, hidden, opposite)


def _label(
    shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], hidden: set[int],
    opposite: Mapping[int, set[int]] | None,
) -> Structure:  # fmt: skip
    """Label the axes of hidden sizes; `opposite`: for a transformer, the sizes that certainly face each stream."""
    axes = {}
    matrices_only = all(len(s) < 3 for s in shapes.values())
    maps = {shapes[n][a] for n, pair in channels.items() for a in pair if len(shapes[n]) == 4} - {1}
    alike: dict[tuple[tuple[int, ...], tuple[int, int] | None], tuple[AxisLabel, ...]] = {}
    for name, shape in shapes.items():
        kind = shape, channels.get(name)
        if kind in alike:
            axes[name] = alike[kind]
            continue
        labels = list(unknown_axes(shape))
        vector = (0,) if len(shape) == 1 and opposite is None and not matrices_only else ()
        channel_axes = channels.get(name, vector)
        for axis in channel_axes:
            n = shape[axis]
            if n in hidden and _certainly_units(shape, axis, channel_axes, opposite, maps):
                labels[axis] = AxisLabel((Segment("unit", f"size {n}", "", 0, n),))
        if name in channels:
            for axis in set(range(len(shape))) - set(channel_axes):
                labels[axis] = AxisLabel((Segment(FIXED, "", "one" if shape[axis] == 1 else "kernel", 0, shape[axis]),))
        axes[name] = alike[kind] = tuple(labels)
    rules = {f"size {n}": GroupRule(position=(n,), prunable=False) for n in hidden}
    return Structure("inferred:shapes", True, axes, collect_groups(axes, rules))


def _certainly_units(
    shape: tuple[int, ...],
    axis: int,
    channel_axes: tuple[int, ...],
    opposite: Mapping[int, set[int]] | None,
    maps: set[int],
) -> bool:
    """Whether an axis of a hidden size certainly carries that size's units, not another axis of the same length."""
    if len(shape) != 2:
        return True
    if opposite is None:
        return not any(shape[axis] % s == 0 for s in maps if s < shape[axis])
    other = shape[channel_axes[1] if axis == channel_axes[0] else channel_axes[0]]
    return other in opposite.get(shape[axis], set()) or shape[axis] in opposite.get(other, set())
