"""Shared deviations: whether two models depart from the consensus of independent models in the same way."""

from collections.abc import Sequence

import numpy as np

from stemma.fingerprints.outputs import Outputs
from stemma.kinship.function.observations import Observation

MAX_SCORES = 1 << 18
"""Scores per model that are used; of more answers, evenly spaced ones."""

MAX_CLASSES = 1024
"""Classes from which on scores are added up in this many sums of random sign, which keep inner products on average."""

BLOCK = 1 << 22
"""Scores whose probabilities are computed at once."""

FEWEST_ALIKE = 3
"""Fewest control models whose likeness among themselves is measured."""

SMALLEST_APART = 1e-9
"""Mean squared distances below this are rounding."""

LARGEST_Z = 12.0
"""Bound of Fisher's z: two deviations that agree to rounding count as a correlation of 1 - 1e-10."""


def shared_deviations(observer: Observation, models: Sequence[Observation]) -> np.ndarray | None:
    """How far each model's deviation from the common answer is from the observer's, `[m]`; small is close.

    The common answer of a probe is the mean over all models, of square roots of probabilities (so that small
    probabilities count). What the task teaches everybody is in it, and goes; what remains of two models is correlated
    over all probes and classes. The distance is (1 - r) / (1 + r), whose logarithm is Fisher's z times minus two. All
    models are treated alike.

    Args:
        observer: The model from which distances are measured.
        models: The model in question and its controls, in any order.

    Returns:
        The distances; None where answers are not scores of the same classes, or fewer than two models are given.

    Source: the covariance of two models' answers given the mean answer of the pool; this project's.
    """
    given = [roots(o) for o in (observer, *models)]
    if len(models) < 2 or any(g is None or g.shape != given[0].shape for g in given):  # ty: ignore
        return None
    own, pool = given[0], np.stack(given[1:])  # ty: ignore
    return deviation_distances(own, pool)  # ty: ignore


def deviation_distances(own: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Distances of the deviations of `pool` `[m, …]` from those of one model `[…]`, see `shared_deviations`."""
    middle = pool.mean(0, dtype=np.float64)
    apart = (own - middle).ravel()
    others = (pool - middle).reshape(len(pool), -1)
    length = np.linalg.norm(others, axis=1) * np.linalg.norm(apart)
    r = np.divide(others @ apart, length, out=np.zeros(len(pool)), where=length > 0)
    z = np.arctanh(np.clip(r, -1, 1) * (1 - 1e-15))
    return np.exp(-2 * np.clip(z, -LARGEST_Z, LARGEST_Z))


def unlikeness(model: Observation, controls: Sequence[Observation]) -> float | None:
    """Whether a model answers as its controls do among themselves, so that they can stand in for it; without labels.

    The statistic is the mean squared Hellinger distance of a model to all others. The logarithm of the model's own,
    compared with those of the controls, follows about Student's law of m - 1 degrees of freedom where all are alike.
    Controls that were trained less, on other data, or from one another differ in this from the model they stand for.

    Args:
        model: The model that the controls stand for.
        controls: The control models.

    Returns:
        The two-sided p-value; None with fewer than three controls, or where answers are not scores of the same classes.
    """
    given = [roots(o) for o in (model, *controls)]
    if len(controls) < FEWEST_ALIKE or any(g is None or g.shape != given[0].shape for g in given):  # ty: ignore
        return None
    from scipy.stats import t as student

    flat = np.stack(given).reshape(len(given), -1)  # ty: ignore
    apart = 1 - (flat @ flat.T).astype(np.float64) / len(given[0])  # ty: ignore
    np.fill_diagonal(apart, 0)
    logs = np.log(np.maximum(apart.sum(1) / len(controls), SMALLEST_APART))
    own, others, m = logs[0], logs[1:], len(controls)
    error = max(float(others.std(ddof=1)), SMALLEST_APART) * np.sqrt(1 + 1 / m)
    return float(2 * student.sf(abs(own - others.mean()) / error, m - 1))


def roots(observation: Observation) -> np.ndarray | None:
    """Square roots of the probabilities `[n, classes]` that a model gives; None where its answers are no scores."""
    if observation.roots is not None:
        return observation.roots
    found = observation.fingerprints.get(Outputs().spec.digest)
    if found is None or observation.classes is None:
        return None
    scores = np.asarray(found.values["outputs"])
    return square_roots(scores) if np.isfinite(scores).all() else None


def square_roots(scores: np.ndarray) -> np.ndarray:
    """Square roots of the softmax of scores `[…, classes]`, of evenly spaced answers where there are many."""
    flat = scores.reshape(-1, scores.shape[-1])
    classes = flat.shape[1]
    rows = max(1, MAX_SCORES // min(classes, MAX_CLASSES))
    if len(flat) > rows:
        flat = flat[np.linspace(0, len(flat) - 1, rows).round().astype(int)]
    at_once = max(1, BLOCK // classes)
    return np.concatenate([_summed(_softmax(flat[i : i + at_once])) for i in range(0, len(flat), at_once)])


def _softmax(scores: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return np.sqrt(softmax(scores.astype(np.float64), axis=-1)).astype(np.float32)


def _summed(roots: np.ndarray) -> np.ndarray:
    """At most `MAX_CLASSES` columns: sums of random classes with random signs, the same for all models."""
    classes = roots.shape[1]
    if classes <= MAX_CLASSES:
        return roots
    draw = np.random.default_rng(classes)
    order = draw.permutation(classes)
    signed = roots[:, order] * draw.choice(np.array([-1, 1], np.float32), classes)
    starts = np.linspace(0, classes, MAX_CLASSES, endpoint=False).astype(int)
    return np.add.reduceat(signed, starts, axis=1)
