"""Calibration of probabilities: a temperature and a shift, fitted on families that nothing was trained on."""

from collections.abc import Sequence

import numpy as np

BINS = 15
"""Bins of confidence for the calibration error."""


def fit(logits: Sequence[np.ndarray], labels: Sequence[int]) -> tuple[float, float]:
    """Temperature of all logits, and a shift of the last one (none), that minimise the cross-entropy.

    Args:
        logits: One row per question; the last entry is that of none.
        labels: The right entry of each.

    Returns:
        Temperature and shift.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; the shift is this project's.
    """
    from scipy.optimize import minimize

    if not logits:
        return 1.0, 0.0

    width = max(map(len, logits))
    padded = np.full((len(logits), width), -np.inf)
    for i, row in enumerate(logits):
        padded[i, : len(row) - 1], padded[i, -1] = row[:-1], row[-1]
    columns = [width - 1 if label == len(row) - 1 else label for row, label in zip(logits, labels, strict=True)]

    def cost(point: np.ndarray) -> float:
        x = padded / np.exp(point[0])
        x[:, -1] += point[1]
        x -= x.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(x).sum(1)) - np.maximum(x[np.arange(len(x)), columns], -30)))

    predicted = minimize(
        cost, np.zeros(2), method="Nelder-Mead", options={"maxiter": 400, "xatol": 1e-3, "fatol": 1e-6}
    )
    temperature = float(np.clip(np.exp(predicted.x[0]), 0.2, 10))
    return round(temperature, 4), round(float(np.clip(predicted.x[1], -10, 10)), 4)


def probabilities(logits: Sequence[np.ndarray], temperature: float = 1.0, shift: float = 0.0) -> list[np.ndarray]:
    """Softmax of each row, divided by the temperature and with the shift added to its last entry."""
    out = []
    for row in logits:
        x = np.asarray(row, np.float64) / temperature
        x[-1] += shift
        e = np.exp(x - x.max())
        out.append(e / e.sum())
    return out


def cross_entropy(predicted: Sequence[np.ndarray], labels: Sequence[int]) -> float:
    """Mean cross-entropy in nats."""
    return float(-np.mean([np.log(max(p[i], 1e-12)) for p, i in zip(predicted, labels, strict=True)]))


def calibration_error(predicted: Sequence[np.ndarray], labels: Sequence[int]) -> float:
    """Expected calibration error of the most probable entry, in `BINS` bins of equal width.

    Returns:
        Mean distance between confidence and accuracy, weighted by the bins' counts.

    Source: Naeini et al., AAAI 2015.
    """
    confidence = np.array([p.max() for p in predicted])
    right = np.array([int(np.argmax(p)) == i for p, i in zip(predicted, labels, strict=True)])
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))
