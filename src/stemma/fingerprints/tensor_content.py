"""What a tensor's content shows when the order of its units is ignored: the search key of renamed tensors."""

from dataclasses import dataclass

import numpy as np

from stemma.models.model import Model, Tensor

QUANTILES = 65
EXACT_QUANTILES = 1 << 20
"""Largest tensor whose quantiles are part of its features; sorting more costs more than it tells."""


@dataclass(frozen=True)
class Features:
    """What a tensor's content shows when the order of its units is ignored.

    Attributes:
        shape: Axis lengths without axes of length one.
        axes: Position of each of those axes in the stored shape.
        profiles: Per axis: root mean square along all other axes over that of the tensor, sorted.
        scalars: Logarithm of the scale, then shape of the distribution of entries.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    profiles: tuple[np.ndarray, ...]
    scalars: np.ndarray


def matrices(model: Model) -> dict[str, Tensor]:
    """The tensors that weight tests look at: real numbers with at least two axes longer than one.

    Returns:
        Tensor by name; empty and one-dimensional ones are left out.
    """
    return {n: t for n, t in model.weights.items() if t.is_float and sum(s > 1 for s in t.shape) >= 2 and t.size > 0}


def features(tensor: Tensor) -> Features:
    """Read a tensor once, in slices, and keep what no permutation of units changes.

    Returns:
        The features; non-finite entries count as zero.
    """
    axes = long_axes(tensor.shape)
    shape = tuple(tensor.shape[i] for i in axes)
    squares = [np.zeros(s) for s in shape]
    moments = np.zeros(4)
    step = max(1, (1 << 20) // max(1, tensor.size // tensor.shape[0]))
    values = []
    for start in range(0, tensor.shape[0], step):
        stop = min(start + step, tensor.shape[0])
        part = np.nan_to_num(tensor.rows(start, stop).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if tensor.size <= EXACT_QUANTILES:
            values.append(part.reshape(-1))
        first_kept = axes and axes[0] == 0
        part = part.reshape(*((stop - start,) if first_kept else ()), *shape[1 if first_kept else 0 :])
        square = np.square(part, dtype=np.float32)
        for k in range(len(shape)):
            along = square.sum(axis=tuple(i for i in range(len(shape)) if i != k), dtype=np.float64)
            if k == 0 and first_kept:
                squares[0][start:stop] += along
            else:
                squares[k] += along
        moments += [part.sum(dtype=np.float64), square.sum(dtype=np.float64),
                    np.abs(part).sum(dtype=np.float64), np.square(square).sum(dtype=np.float64)]  # fmt: skip
    return _features(shape, axes, squares, moments / tensor.size, values)


def _features(
    shape: tuple[int, ...], axes: tuple[int, ...], squares: list[np.ndarray], m: np.ndarray, values: list[np.ndarray]
) -> Features:
    size = int(np.prod(shape))
    rms = float(np.sqrt(m[1]))
    if rms == 0 or not np.isfinite(rms):
        return Features(shape, axes, tuple(np.zeros(s) for s in shape), np.zeros(QUANTILES + 4))
    profiles = tuple(np.sort(np.sqrt(q * s / size)) / rms for q, s in zip(squares, shape, strict=True))
    entries = np.zeros(QUANTILES)
    if values:
        flat = np.sort(np.concatenate(values))
        entries = flat[np.linspace(0, size - 1, QUANTILES).astype(int)] / rms / np.sqrt(QUANTILES)
    shape_of_law = [0.3 * np.log(rms), m[0] / rms, m[2] / rms, 0.2 * np.log(max(m[3], 1e-300) / rms**4)]
    return Features(shape, axes, profiles, np.concatenate([shape_of_law, entries]))


def long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes that are longer than one.

    Returns:
        Their positions.
    """
    return tuple(i for i, s in enumerate(shape) if s > 1)
