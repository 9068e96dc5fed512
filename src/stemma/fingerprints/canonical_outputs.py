"""Features of outputs that do not depend on labels, class order, scale or temperature.

They are equal for all heads that are invertible affine maps of one another, or depend only on the sizes of the
probabilities: leverage of an output, its change under input perturbations, distances to outputs for other inputs.
"""

from collections.abc import Sequence

import numpy as np

FEATURES_VERSION = 2
"""Version of the features: raised whenever their numbers change."""

MAX_RANK = 32
"""Largest number of output directions; further ones are noise with many classes and few probes."""

MIN_SINGULAR_RATIO = 1e-3
"""Singular values below this share of the largest are ignored."""

PARTNER_OFFSETS = (1, 7, 19, 41)
"""Offsets of the probes with which an output is compared."""

PERTURBATIONS = ("noise", "small noise", "mixture", "noise 2", "small noise 2", "noise 3", "small noise 3")
"""Perturbations of the inputs; what follows the mixture are further draws of the noise."""

FEATURES = (
    *(f"whitened move: {c}" for c in PERTURBATIONS),
    *(f"move of log-probabilities: {c}" for c in PERTURBATIONS),
    *(f"Hellinger move: {c}" for c in PERTURBATIONS),
    "leverage", "entropy", "margin", "largest",
    *(f"whitened distance to probe +{k}" for k in PARTNER_OFFSETS),
    *(f"Hellinger distance to probe +{k}" for k in PARTNER_OFFSETS),
)  # fmt: skip
"""Names of the features, in order."""


LOGITS, PROBABILITIES, LABELS, SCORES, ROUNDED = 0, 1, 2, 3, 10
"""Forms of outputs: unnormalised; normalised; one-hot; between 0 and 1 but not normalised; `ROUNDED + d` are
probabilities rounded to d decimals."""

MIN_PROBABILITY = 1e-6
"""Lower bound of probabilities."""

MIN_LOG_PROBABILITY = -200.0
"""Lower bound of log-probabilities: a masked class carries no information about the others."""


def output_form(answers: np.ndarray) -> int:
    """The form of outputs `[n, …]` (`LOGITS`, `PROBABILITIES`, …); only outputs of one form are comparable."""
    rows = np.asarray(answers, np.float64).reshape(len(answers), -1)
    if rows.shape[1] == 1 or rows.min(initial=0.0) < 0 or rows.max(initial=0.0) > 1:
        return LOGITS
    if np.isin(rows, (0.0, 1.0)).all() and (rows.sum(1) == 1).all():
        return LABELS
    for decimals in range(1, 5):
        if np.abs(rows - np.round(rows, decimals)).max() < 1e-7:
            sums_to_one = np.abs(rows.sum(1) - 1).max() <= 0.5 * 10.0**-decimals * rows.shape[1] + 1e-6
            return ROUNDED + decimals if sums_to_one else SCORES
    return PROBABILITIES if np.abs(rows.sum(1) - 1).max() < 0.01 else SCORES


def log_probabilities(answers: np.ndarray, form: int | None = None) -> np.ndarray:
    """Outputs as log-probabilities `float64 [n, classes]`, bounded below; a single score becomes two classes."""
    rows = np.asarray(answers, np.float64).reshape(len(answers), -1)
    form = output_form(rows) if form is None else form
    if rows.shape[1] == 1:
        rows = np.concatenate([rows, np.zeros_like(rows)], axis=1)
    if form not in (LOGITS, SCORES):
        rows = np.log(np.maximum(rows, MIN_PROBABILITY))
    top = rows.max(1, keepdims=True)
    return np.maximum(rows - top - np.log(np.exp(rows - top).sum(1, keepdims=True)), MIN_LOG_PROBABILITY)


def features(original: np.ndarray, perturbed: Sequence[np.ndarray]) -> np.ndarray:
    """Features `float32 [n, features]` from log-probabilities `[n, classes]`, standardised over the probes."""
    original, *perturbed = _without_masked(original, perturbed)
    centered = [x - x.mean(1, keepdims=True) for x in (original, *perturbed)]
    basis, mean = _whitening(centered[0])
    white = [(x - mean) @ basis for x in centered]
    roots = [np.exp(x / 2) for x in (original, *perturbed)]
    ordered = np.sort(centered[0], axis=1)
    size = np.linalg.norm(centered[0], axis=1)
    columns = [
        *(_log(np.linalg.norm(w - white[0], axis=1)) for w in white[1:]),
        *(_log(np.linalg.norm(x - centered[0], axis=1)) for x in centered[1:]),
        *(_log(np.linalg.norm(r - roots[0], axis=1)) for r in roots[1:]),
        _log(np.linalg.norm(white[0], axis=1)),
        -(np.exp(original) * original).sum(1),
        _log(ordered[:, -1] - ordered[:, -2]),
        np.divide(ordered[:, -1], size, out=np.zeros_like(size), where=size > 0),
        *(_log(np.linalg.norm(white[0] - np.roll(white[0], -k, axis=0), axis=1)) for k in PARTNER_OFFSETS),
        *(_log(np.linalg.norm(roots[0] - np.roll(roots[0], -k, axis=0), axis=1)) for k in PARTNER_OFFSETS),
    ]
    return standardise(np.stack(columns, axis=1)).astype(np.float32)


def _without_masked(original: np.ndarray, perturbed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs without the classes that never get probability."""
    used = (original > MIN_LOG_PROBABILITY).any(0)
    return [original, *perturbed] if used.sum() < 2 or used.all() else [x[:, used] for x in (original, *perturbed)]


def standardise(columns: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; constant columns are 0."""
    centered = columns - columns.mean(0)
    spread = centered.std(0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(columns).max(0, initial=0.0))
    return np.clip(np.divide(centered, spread, out=np.zeros_like(centered), where=varies), -6, 6)


def _whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whitening matrix of the outputs (leading directions only), and their mean."""
    mean = rows.mean(0)
    _, sizes, directions = np.linalg.svd(rows - mean, full_matrices=False)
    max_rank = max(1, min(MAX_RANK, len(rows) // 8))
    kept = (sizes > MIN_SINGULAR_RATIO * max(float(sizes[0]), 1e-300)) & (np.arange(len(sizes)) < max_rank)
    return directions[kept].T / sizes[kept] * np.sqrt(len(rows)), mean


def _log(sizes: np.ndarray) -> np.ndarray:
    """Logarithms of sizes, bounded below at a ten-thousandth of the median."""
    mean = float(np.median(sizes))
    return np.log(sizes + max(1e-4 * mean, 1e-9))
