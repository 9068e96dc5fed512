"""Fixed tables stored among the weights (sinusoidal positions, Fourier and cosine bases), which models share."""

import numpy as np

ROWS = 24
"""Rows that are checked."""

SHARE = 0.9
"""Share of rows that must be waves."""


def is_table(array: np.ndarray) -> bool:
    """Whether a tensor's rows, along some axis, are sampled sine waves, plain or under a window.

    A wave satisfies x[t+1] + x[t-1] = c x[t] with one c for the whole row; a windowed one has its energy in a few
    neighbouring frequencies. Trained rows of at least 16 entries do neither. Only one model is used, so a test that
    omits such tensors keeps its distribution.

    Args:
        array: A cut through one model's tensor.

    Returns:
        True for a table.
    """
    for axis in range(array.ndim):
        rows = np.moveaxis(array, axis, -1)
        length = rows.shape[-1]
        if length < 16:
            continue
        rows = rows.reshape(-1, length)
        rows = rows[:: max(1, len(rows) // ROWS)][:ROWS].astype(np.float64)
        rows = rows[np.ptp(rows, axis=1) > 0]
        if len(rows) >= 4 and waves(rows[1:3]).any() and waves(rows).mean() >= SHARE:
            return True
    return False


def waves(rows: np.ndarray) -> np.ndarray:
    """Which rows are sampled waves, plain or under a window."""
    middle, around = rows[:, 1:-1], rows[:, 2:] + rows[:, :-2]
    energy = np.maximum((middle**2).sum(axis=1), 1e-300)
    c = (middle * around).sum(axis=1) / energy
    error = np.sqrt(((around - c[:, None] * middle) ** 2).sum(axis=1) / energy)
    power = np.abs(np.fft.rfft(rows, axis=1)) ** 2
    padded = np.zeros((len(power), power.shape[1] + 4))
    padded[:, 2:-2] = power
    near = np.max(sum((padded[:, k : k + power.shape[1]] for k in range(5)), np.zeros_like(power)), axis=1)
    return (error < 0.02) | (near >= 0.995 * np.maximum(power.sum(axis=1), 1e-300))
