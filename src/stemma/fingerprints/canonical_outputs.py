"""What is left of a network's answers once labels, order, scale and temperature are taken out of them.

Networks with different heads answer in different spaces. The features here are the same for all heads that are an
invertible affine map of one another (other labels, another order, logits or log-probabilities, another temperature), or
depend on the probabilities' sizes alone: how surprising an answer is among all answers, how far it moves when the input
is changed, how far apart the answers to two inputs lie.
"""

from collections.abc import Sequence

import numpy as np

CANONICAL = 1
"""Version of the features: raised whenever their numbers change."""

RANK = 32
"""Directions of the answers that count; further ones are noise where there are many classes and few probes."""

WEAK = 1e-3
"""Singular values below this share of the largest are no direction of the answers."""

PARTNERS = (1, 7, 19, 41)
"""How many probes further the partners lie that an answer is compared with."""

CHANGED = ("noise", "small noise", "mixture")
"""How inputs are changed."""

FEATURES = (
    *(f"whitened move: {c}" for c in CHANGED),
    *(f"move of log-probabilities: {c}" for c in CHANGED),
    *(f"Hellinger move: {c}" for c in CHANGED),
    "leverage", "entropy", "margin", "largest",
    *(f"whitened distance to probe +{k}" for k in PARTNERS),
    *(f"Hellinger distance to probe +{k}" for k in PARTNERS),
)  # fmt: skip
"""Names of the features, in order."""


LOGITS, PROBABILITIES, LABELS, SCORES, ROUNDED = 0, 1, 2, 3, 10
"""Forms of answers: as they are; normalised; one-hot; between 0 and 1 but not normalised; `ROUNDED + d` are
probabilities that were rounded to d decimals."""

LEAST = 1e-6
"""Probabilities are not taken for smaller."""

LOWEST = -200.0
"""Log-probabilities are not taken for lower: a class that is masked says nothing about the others."""


def form_of(answers: np.ndarray) -> int:
    """In which form a model answers; only models that answer in one form can stand for one another.

    Args:
        answers: `[n, …]`.

    Returns:
        One of the forms above.
    """
    rows = np.asarray(answers, np.float64).reshape(len(answers), -1)
    if rows.shape[1] == 1 or rows.min(initial=0.0) < 0 or rows.max(initial=0.0) > 1:
        return LOGITS
    if np.isin(rows, (0.0, 1.0)).all() and (rows.sum(1) == 1).all():
        return LABELS
    for decimals in range(1, 5):
        if np.abs(rows - np.round(rows, decimals)).max() < 1e-7:
            near = np.abs(rows.sum(1) - 1).max() <= 0.5 * 10.0**-decimals * rows.shape[1] + 1e-6
            return ROUNDED + decimals if near else SCORES
    return PROBABILITIES if np.abs(rows.sum(1) - 1).max() < 0.01 else SCORES


def log_probabilities(answers: np.ndarray, form: int | None = None) -> np.ndarray:
    """Answers as log-probabilities.

    Args:
        answers: Logits, probabilities or one-hot labels `[n, …]`; axes after the first are one vector.
        form: As `form_of` finds it in the answers to unchanged probes; in these answers unless given.

    Returns:
        `float64 [n, classes]`, every row normalised, nothing lower than `LOWEST`; a single score is one of two classes.
    """
    rows = np.asarray(answers, np.float64).reshape(len(answers), -1)
    form = form_of(rows) if form is None else form
    if rows.shape[1] == 1:
        rows = np.concatenate([rows, np.zeros_like(rows)], axis=1)
    if form not in (LOGITS, SCORES):
        rows = np.log(np.maximum(rows, LEAST))
    top = rows.max(1, keepdims=True)
    return np.maximum(rows - top - np.log(np.exp(rows - top).sum(1, keepdims=True)), LOWEST)


def features(asked: np.ndarray, changed: Sequence[np.ndarray]) -> np.ndarray:
    """The features of every probe, standardised within the model.

    Args:
        asked: Log-probabilities `[n, classes]` of the probes.
        changed: Those of the probes changed in each way of `CHANGED`.

    Returns:
        `float32 [n, features]`; every column has mean 0 and deviation 1 over the probes, or is 0 where it does not
        vary.
    """
    asked, *changed = _without_masked(asked, changed)
    plain = [x - x.mean(1, keepdims=True) for x in (asked, *changed)]
    basis, middle = _whitening(plain[0])
    white = [(x - middle) @ basis for x in plain]
    roots = [np.exp(x / 2) for x in (asked, *changed)]
    ordered = np.sort(plain[0], axis=1)
    size = np.linalg.norm(plain[0], axis=1)
    columns = [
        *(_log(np.linalg.norm(w - white[0], axis=1)) for w in white[1:]),
        *(_log(np.linalg.norm(x - plain[0], axis=1)) for x in plain[1:]),
        *(_log(np.linalg.norm(r - roots[0], axis=1)) for r in roots[1:]),
        _log(np.linalg.norm(white[0], axis=1)),
        -(np.exp(asked) * asked).sum(1),
        _log(ordered[:, -1] - ordered[:, -2]),
        np.divide(ordered[:, -1], size, out=np.zeros_like(size), where=size > 0),
        *(_log(np.linalg.norm(white[0] - np.roll(white[0], -k, axis=0), axis=1)) for k in PARTNERS),
        *(_log(np.linalg.norm(roots[0] - np.roll(roots[0], -k, axis=0), axis=1)) for k in PARTNERS),
    ]
    return standardised(np.stack(columns, axis=1)).astype(np.float32)


def _without_masked(asked: np.ndarray, changed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Answers without the classes that no probe is ever given."""
    used = (asked > LOWEST).any(0)
    return [asked, *changed] if used.sum() < 2 or used.all() else [x[:, used] for x in (asked, *changed)]


def standardised(columns: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1.

    Args:
        columns: `[n, features]`.

    Returns:
        The same shape; columns that do not vary are 0.
    """
    centred = columns - columns.mean(0)
    spread = centred.std(0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(columns).max(0, initial=0.0))
    return np.clip(np.divide(centred, spread, out=np.zeros_like(centred), where=varies), -6, 6)


def _whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map after which the answers have unit covariance in every direction that counts, and their middle."""
    middle = rows.mean(0)
    _, sizes, directions = np.linalg.svd(rows - middle, full_matrices=False)
    most = max(1, min(RANK, len(rows) // 8))
    kept = (sizes > WEAK * max(float(sizes[0]), 1e-300)) & (np.arange(len(sizes)) < most)
    return directions[kept].T / sizes[kept] * np.sqrt(len(rows)), middle


def _log(sizes: np.ndarray) -> np.ndarray:
    """Logarithms of sizes; below a ten-thousandth of the median they are no smaller."""
    middle = float(np.median(sizes))
    return np.log(sizes + max(1e-4 * middle, 1e-9))
