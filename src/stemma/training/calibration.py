"""Probabilities that mean what they say: two numbers fitted on families that nothing was trained on."""

from collections.abc import Sequence

import numpy as np

BINS = 15
"""Bins of confidence that the calibration error is taken over."""


def fit(logits: Sequence[np.ndarray], labels: Sequence[int]) -> tuple[float, float]:
    """Temperature of all logits, and a shift of the last one (none), of least cross-entropy.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; the shift is this project's.

    Args:
        logits: One row per question; the last entry is that of none.
        labels: The right entry of each.

    Returns:
        Temperature and shift.
    """
    from scipy.optimize import minimize

    if not logits:
        return 1.0, 0.0

    width = max(map(len, logits))
    padded = np.full((len(logits), width), -np.inf)
    for i, row in enumerate(logits):
        padded[i, : len(row) - 1], padded[i, -1] = row[:-1], row[-1]
    columns = [width - 1 if at == len(row) - 1 else at for row, at in zip(logits, labels, strict=True)]

    def cost(point: np.ndarray) -> float:
        x = padded / np.exp(point[0])
        x[:, -1] += point[1]
        x -= x.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(x).sum(1)) - np.maximum(x[np.arange(len(x)), columns], -30)))

    found = minimize(cost, np.zeros(2), method="Nelder-Mead", options={"maxiter": 400, "xatol": 1e-3, "fatol": 1e-6})
    temperature = float(np.clip(np.exp(found.x[0]), 0.2, 10))
    return round(temperature, 4), round(float(np.clip(found.x[1], -10, 10)), 4)


def probabilities(logits: Sequence[np.ndarray], temperature: float = 1.0, shift: float = 0.0) -> list[np.ndarray]:
    """Softmax of each row.

    Args:
        logits: Rows of any length.
        temperature: They are divided by it.
        shift: Added to the last entry of each afterwards.

    Returns:
        Rows that sum to 1.
    """
    out = []
    for row in logits:
        x = np.asarray(row, np.float64) / temperature
        x[-1] += shift
        e = np.exp(x - x.max())
        out.append(e / e.sum())
    return out


def cross_entropy(found: Sequence[np.ndarray], labels: Sequence[int]) -> float:
    """Mean of minus the logarithm of what the right entry was given.

    Returns:
        Nats.
    """
    return float(-np.mean([np.log(max(p[i], 1e-12)) for p, i in zip(found, labels, strict=True)]))


def calibration_error(found: Sequence[np.ndarray], labels: Sequence[int]) -> float:
    """Expected calibration error of the likeliest entry, in `BINS` bins of equal width.

    Source: Naeini et al., AAAI 2015.

    Args:
        found: Probabilities, one row per question.
        labels: The right entry of each.

    Returns:
        Mean distance between confidence and the share that is right, weighted by the bins' counts.
    """
    confidence = np.array([p.max() for p in found])
    right = np.array([int(np.argmax(p)) == i for p, i in zip(found, labels, strict=True)])
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))
