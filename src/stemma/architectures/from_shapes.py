"""What shapes alone say about hidden units: little, and only what is sure.

Names and file order mean nothing here. What can still be concluded:

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
from stemma.architectures.structure import FIXED, AxisLabel, GroupRule, Segment, Structure, collect_groups, unknown

COLOURS = 4
"""A convolution's channel axis of at most this length is taken for an image's, or for one of depthwise kernels."""


@dataclass
class _Sides:
    """How often each size stands on the first and on the second channel axis, and with which partners."""

    first: Counter[int] = field(default_factory=Counter)
    second: Counter[int] = field(default_factory=Counter)
    partners: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    squares: Counter[int] = field(default_factory=Counter)


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Structure:
    """Find the axes that are surely hidden.

    Args:
        shapes: Shape by tensor.

    Returns:
        One group per hidden size, disjoint for sure; everything else fixed.
    """
    channels = _channels(shapes)
    kernels = {n: c for n, c in channels.items() if len(shapes[n]) == 4}
    sides = _sides(shapes, channels)
    squares = Counter(s[0] for s in shapes.values() if len(s) == 2 and s[0] == s[1])
    if not kernels and (path := _path(sides)):
        return _label(shapes, channels, path, None)
    if not kernels or max(squares.values(), default=0) >= 2:
        if kernels and not _accounted(shapes, kernels, sides):
            return _label(shapes, channels, set(), None)
        return _transformer(shapes, channels, sides, squares, image=bool(kernels))
    hidden = {s for s in sides.first if s in sides.second and s > COLOURS and not squares[s]}
    hidden -= _tied_rows(shapes, kernels, sides)
    return _label(shapes, channels, hidden if _accounted(shapes, kernels, sides) else set(), None)


def _channels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The two channel axes of every matrix and kernel.

    Returns:
        Axes by tensor.
    """
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


def _sides(shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]]) -> _Sides:
    out = _Sides()
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


def _accounted(shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], sides: _Sides) -> bool:
    """Whether input and output are recognised: each side has a size that is only there, or an image's channels.

    Returns:
        False if a size that looks hidden could be an interface.
    """
    image, pictures = [False, False], set()
    for name, axes in channels.items():
        for side in (0, 1):
            if shapes[name][axes[side]] <= COLOURS < shapes[name][axes[1 - side]]:
                image[side] = True
                pictures.add(shapes[name][axes[side]])
    first, second = set(sides.first) - set(sides.second), set(sides.second) - set(sides.first)
    # a size that stands on the other side multiplied is a feature map that is flattened there
    flat = {s for one, other in ((first, second), (second, first)) for s in one for t in other if t % s == 0}
    only_first, only_second = bool(first - flat), bool(second - flat)
    maps = {shapes[n][a] for n, pair in channels.items() for a in pair}
    single = {s for s in sides.partners if sides.first[s] + sides.second[s] == 1} - pictures - flat
    once = any(s < min(sides.partners[s]) and not any(s % m == 0 for m in maps if 1 < m < s) for s in single)
    # the image stands on one side; the other end is a second image, or a size that is nowhere else
    return (image[1] and (only_first or image[0])) or (image[0] and (only_second or image[1])) or (any(image) and once)


def _tied_rows(
    shapes: Mapping[str, tuple[int, ...]], kernels: Mapping[str, tuple[int, int]], sides: _Sides
) -> set[int]:
    """Sizes whose rows may be tied to one another: concatenations, grouped convolutions, padded shortcuts.

    Returns:
        Sizes to leave alone.
    """
    wide, point, tied = Counter(), set(), set()
    narrow = Counter(side for n, pair in kernels.items() for side in (0, 1) if 1 < shapes[n][pair[side]] <= COLOURS)
    for name, (a, b) in kernels.items():
        shape = shapes[name]
        window = [n for i, n in enumerate(shape) if i not in {a, b}]
        x, y = shape[a], shape[b]
        if max(window) > 1:
            wide[x, y] += 1
        else:
            point.add((x, y))
        for side, size, other in ((1, x, y), (0, y, x)):
            alone = other > COLOURS and other not in (sides.first, sides.second)[1 - side]
            if (
                other < size
                and size % other == 0
                and max(window) > 1
                and (alone or (1 < other <= COLOURS and narrow[side] > 1))
            ):
                tied.add(size)  # perhaps a grouped convolution
    if any((y, x) in wide for x, y in wide if x != y and (x == 2 * y or y == 2 * x)):
        tied |= {max(x, y) for x, y in wide if x != y and (y, x) in wide}
    for size in {s for s in sides.partners if s % 2 == 0 and s // 2 in sides.partners}:
        pair = {(size, size // 2), (size // 2, size)}
        direct = any(p in wide for p in pair)
        if not pair & point and (not direct or wide[size, size] % 2):
            tied.add(size)  # perhaps a padded shortcut: one convolution widens, then pairs keep the width
    doubling = {x for x, y in wide if x == 2 * y}
    halving = {y for x, y in wide if y == 2 * x}
    if doubling and halving:
        tied |= doubling | halving  # perhaps concatenated maps
    return tied


def _path(sides: _Sides) -> set[int]:
    """Hidden sizes of a plain multilayer perceptron whose widths all differ, so that its matrices make one path.

    Returns:
        Sizes; empty where the matrices make anything else.
    """
    ends = [s for s in sides.partners if sides.first[s] + sides.second[s] == 1]
    inside = {s for s in sides.partners if sides.first[s] == sides.second[s] == 1}
    whole = len(ends) == 2 and len(inside) == len(sides.partners) - 2 and not sides.squares
    opposite = sum(sides.first[s] for s in ends) == 1
    return inside if whole and opposite else set()


def _transformer(
    shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], sides: _Sides,
    squares: Mapping[int, int], *, image: bool,
) -> Structure:  # fmt: skip
    """Streams and feed-forward units, recognised together: many layers write and read the same two sizes.

    A feed-forward size stands opposite its stream only, as often written as read (or written twice as often, when
    gated). Projections around attention can look alike, so two candidates for one stream are none.

    Returns:
        The structure.
    """
    both = set(sides.first) & set(sides.second)
    opposite: dict[int, set[int]] = {}
    for stream in both:
        inner = {s for s in both if sides.partners[s] == {stream} and not sides.squares[s]}
        inner = {s for s in inner if min(sides.first[s], sides.second[s]) >= 2}
        tables = [s for s in set(sides.partners) - both if s > stream and sides.partners[s] == {stream}]
        tokens = {max(tables)} if tables else set()
        norms = sum(len(s) == 1 and s[0] == stream for s in shapes.values())
        often = {s: sorted((sides.first[s], sides.second[s])) for s in inner}
        gated = {s for s in inner if often[s][1] == 2 * often[s][0] >= 6 and s != 3 * stream}
        around = squares.get(stream, 0)  # four square projections per layer, or one beside a fused threefold one
        fused = sides.first[3 * stream] + sides.second[3 * stream] if 3 * stream not in both else 0
        plain = {s for s in inner if often[s][0] == often[s][1] and s > stream}
        plain = {s for s in plain if around >= 4 * often[s][0] or around == fused == often[s][0]}
        found = gated or plain
        if len(found) == 1 and norms >= 2 * often[min(found)][0] and (image or tokens):
            opposite[stream] = found | tokens
    hidden = set(opposite) | {s for found in opposite.values() for s in found if s in both}
    return _label(shapes, channels, hidden, opposite)


def _label(
    shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, int]], hidden: set[int],
    opposite: Mapping[int, set[int]] | None,
) -> Structure:  # fmt: skip
    """Label the axes of hidden sizes.

    Args:
        shapes: Shape by tensor.
        channels: Channel axes by tensor.
        hidden: Sizes.
        opposite: Of a transformer, the sizes opposite each stream in whose matrices the stream is sure. Vectors are
            left alone there, because those of attention have the stream's size too.

    Returns:
        The structure.
    """
    axes = {}
    matrices_only = all(len(s) < 3 for s in shapes.values())
    maps = {shapes[n][a] for n, pair in channels.items() for a in pair if len(shapes[n]) == 4} - {1}
    for name, shape in shapes.items():
        labels = list(unknown(shape))
        vector = (0,) if len(shape) == 1 and opposite is None and not matrices_only else ()
        mine = channels.get(name, vector)
        for axis in mine:
            n = shape[axis]
            if n in hidden and _sure(shape, axis, mine, opposite, maps):
                labels[axis] = AxisLabel((Segment("unit", f"size {n}", "", 0, n),))
        if name in channels:
            for axis in set(range(len(shape))) - set(mine):
                labels[axis] = AxisLabel((Segment(FIXED, "", "one" if shape[axis] == 1 else "kernel", 0, shape[axis]),))
        axes[name] = tuple(labels)
    rules = {f"size {n}": GroupRule(position=(n,), prunable=False) for n in hidden}
    return Structure("inferred:shapes", True, axes, collect_groups(axes, rules))


def _sure(
    shape: tuple[int, ...], axis: int, mine: tuple[int, ...], opposite: Mapping[int, set[int]] | None, maps: set[int]
) -> bool:
    """Whether an axis of a hidden size carries that size's units, and not something else of the same length.

    Returns:
        False for a matrix behind convolutions that may read flattened maps, and for matrices around attention.
    """
    if len(shape) != 2:
        return True
    if opposite is None:
        return not any(shape[axis] % s == 0 for s in maps if s < shape[axis])
    other = shape[mine[1] if axis == mine[0] else mine[0]]
    return other in opposite.get(shape[axis], set()) or shape[axis] in opposite.get(other, set())
