"""Permutation-invariant features of tensors: search keys for renamed tensors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import ArrayStorage, Tensor
from stemma.errors import StemmaError
from stemma.fingerprints.room import Room

QUANTILES = 65
EXACT_QUANTILES = 1 << 20
"""Largest tensor whose quantiles are computed."""

SAMPLED_ROWS = 64
"""Rows that must be zero for a matrix to count as empty."""

TINY = 1e-30
"""Mean square below which float32 may have lost small squares."""


@dataclass(frozen=True)
class Features:
    """Features of a tensor that do not depend on the order of its units.

    Attributes:
        shape: Axis lengths without axes of length one.
        axes: Position of each of those axes in the stored shape.
        profiles: Per axis: root mean square over all other axes, relative to that of the tensor, sorted.
        scalars: Logarithm of the scale, then shape of the distribution of entries.

    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    profiles: tuple[np.ndarray, ...]
    scalars: np.ndarray


def matrices(model: Model) -> dict[str, Tensor]:
    """Tensors that weight tests use, by name: real numbers with at least two axes longer than one."""
    key = "matrices"
    if key not in model.__dict__:
        tensors = model.weights
        wide = {s for s in {t.shape for t in tensors.values()} if sum(n > 1 for n in s) >= 2}
        model.__dict__[key] = {
            n: t for n, t in tensors.items() if t.shape in wide and t.is_float and t.size > 0 and t.readable
        }
    return dict(model.__dict__[key])


def entries_with_content(model: Model) -> int:
    """Entries of the matrices that are not all zeros, judged by some of their rows: zeros tell of no origin."""
    key = "entries_with_content"
    if key not in model.__dict__:
        model.__dict__[key] = sum(t.size for t in matrices(model).values() if not _looks_empty(t))
    return model.__dict__[key]


def has_content(model: Model) -> bool:
    """Whether any tensor holds something but zeros: equal zeros are no evidence of a common origin.

    Args:
        model: Any model; one whose weights are missing counts as having content.

    Returns:
        False only if its tensors could be read and hold nothing.
    """
    try:
        return not model.tensors or any(t.size and not _looks_empty(t) for t in model.tensors.values())
    except StemmaError:
        return True


def _looks_empty(tensor: Tensor) -> bool:
    if not tensor.shape:
        return not tensor.array().any()
    n = tensor.readable
    if not n or tensor.rows(0, 1).any():
        return not n
    return not tensor.take(np.unique(np.linspace(0, n - 1, min(n, SAMPLED_ROWS)).round().astype(int))).any()


def features(tensor: Tensor, *, entries: bool = True) -> Features:
    """Permutation-invariant features of a tensor, read once in slices; the scalars lack the law of entries if told so.

    Args:
        tensor: Read once in slices; non-finite entries count as zero.
        entries: Whether the distribution of entries is among the scalars.

    Returns:
        The features.
    """
    # float64 can hold what float32 cannot; of other tensors the sums show whether squares left float32's range
    scale = _scale(tensor) if tensor.dtype == "F64" else 1.0
    found = _sums(tensor, scale, entries)
    if not np.isfinite(found[2]).all() or (scale == 1.0 and found[2][1] < TINY and found[2][2] > 0):
        scale = _scale(tensor)
        found = _sums(tensor, scale, entries)
    return _features(*found, scale)


def _scale(tensor: Tensor) -> float:
    """A power of two near the largest finite entry; 1 if squares and fourth powers fit float32."""
    top = 0.0
    for start, stop in _slices(tensor):
        part = np.abs(tensor.rows(start, stop).reshape(-1))
        top = max(top, float(part[np.isfinite(part)].max(initial=0.0)))
    return 2.0 ** float(np.floor(np.log2(top))) if top and not 1e-4 < top < 1e8 else 1.0


def _slices(tensor: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, (1 << 20) // max(1, tensor.size // tensor.shape[0]))
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])


def _sums(
    tensor: Tensor, scale: float, entries: bool
) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Long sizes, long axes, moments, sums of squares per axis, and entries of small tensors, scaled."""
    axes = long_axes(tensor.shape)
    shape = tuple(tensor.shape[i] for i in axes)
    squares = [np.zeros(s) for s in shape]
    moments = np.zeros(4)
    values = []
    first_kept = bool(axes) and axes[0] == 0
    for start, stop in _slices(tensor):
        part = tensor.rows(start, stop)
        if tensor.size > EXACT_QUANTILES and not part.any():
            continue  # zeros add nothing, and a file with holes may have billions of them
        part = np.asarray(part if scale == 1.0 else part.astype(np.float64) / scale, np.float32)
        part = np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)
        if entries and tensor.size <= EXACT_QUANTILES:
            values.append(part.reshape(-1))
        part = part.reshape(*((stop - start,) if first_kept else ()), *shape[1 if first_kept else 0 :])
        with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are computed again with scaled values
            square = np.square(part, dtype=np.float32)
            for k in range(len(shape)):
                along = square.sum(axis=tuple(i for i in range(len(shape)) if i != k), dtype=np.float64)
                if k == 0 and first_kept:
                    squares[0][start:stop] += along
                else:
                    squares[k] += along
            moments += [part.sum(dtype=np.float64), square.sum(dtype=np.float64),
                        np.abs(part).sum(dtype=np.float64), np.square(square).sum(dtype=np.float64)]  # fmt: skip
    return shape, axes, moments / tensor.size, squares, values


def _features(
    shape: tuple[int, ...], axes: tuple[int, ...], m: np.ndarray, squares: list[np.ndarray],
    values: list[np.ndarray], scale: float,
) -> Features:  # fmt: skip
    size = int(np.prod(shape))
    rms = float(np.sqrt(m[1]))
    if rms == 0 or not np.isfinite(rms):
        return Features(shape, axes, tuple(np.zeros(s) for s in shape), np.zeros(QUANTILES + 4))
    profiles = tuple(np.sort(np.sqrt(q * s / size)) / rms for q, s in zip(squares, shape, strict=True))
    entries = np.zeros(QUANTILES)
    if values:
        flat = np.sort(np.concatenate(values))
        entries = flat[np.linspace(0, size - 1, QUANTILES).astype(int)] / rms / np.sqrt(QUANTILES)
    size_of_entries = 0.3 * (np.log(rms) + np.log(scale))
    shape_of_law = [size_of_entries, m[0] / rms, m[2] / rms, 0.2 * np.log(max(m[3], 1e-300) / rms**4)]
    return Features(shape, axes, profiles, np.concatenate([shape_of_law, entries]))


def stacked_profiles(stack: np.ndarray, room: Room | None = None) -> list[np.ndarray]:
    """The `profiles` of tensors of one shape, `[tensors, *shape]`: per long axis `[tensors, length]`.

    Args:
        stack: The tensors.
        room: Memory for their squares, where the caller has some.

    Returns:
        The profiles.
    """
    axes = [i + 1 for i in long_axes(stack.shape[1:])]
    square = (room or Room()).array("squares", stack.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(stack, np.float32)
        top = np.abs(x, out=square).reshape(len(stack), -1).max(axis=1, initial=0.0)
        if not np.isfinite(top).all():
            x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            top = np.abs(stack).reshape(len(stack), -1).max(axis=1, initial=0.0)
        np.square(x, out=square)
        sums = [square.sum(axis=tuple(i for i in range(1, x.ndim) if i != k), dtype=np.float64) for k in axes]
    size = float(math.prod(stack.shape[1:]))
    mean = sums[0].sum(axis=1) / size
    out = [np.zeros(s.shape) for s in sums]
    unusual = (mean < TINY) & (top > 0) | ~np.isfinite(mean) | ~np.isfinite(top) | (stack.dtype == np.float64)
    for k, s in enumerate(sums):
        usual = ~unusual & (mean > 0)
        out[k][usual] = np.sort(np.sqrt(s[usual] * s.shape[1] / size), axis=1) / np.sqrt(mean[usual])[:, None]
    for i in np.flatnonzero(unusual):  # squares that float32 cannot hold
        tensor = Tensor("", "F64", stack.shape[1:], ArrayStorage(lambda i=i: stack[i].astype(np.float64)))
        for k, profile in enumerate(features(tensor, entries=False).profiles):
            out[k][i] = profile
    return out


def long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of axes longer than one."""
    return tuple(i for i, s in enumerate(shape) if s > 1)


def unit_axis(shape: tuple[int, ...]) -> int:
    """The axis of a kernel's output units (units first, or kernel axes first): 0, last or longest."""
    n = len(shape)
    if n < 3:
        return 0
    if n == 3:
        return 2 if shape[0] < shape[-1] and shape[0] < shape[1] else 0
    front, back = shape[0] == shape[1], shape[-1] == shape[-2]
    if front and back:
        return n - 1 if shape[0] < shape[-1] else 0
    return n - 1 if front else 0 if back else int(np.argmax(shape))
