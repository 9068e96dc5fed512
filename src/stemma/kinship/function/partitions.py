"""How much of one model's partition of the probes another model shares, per probe, from hard labels alone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

MAX_LABELS = 512
"""Largest number of distinct labels; rarer ones are merged."""

PRIOR_WEIGHT = 5.0
"""Weight, in probes, of a label's overall frequency as prior of its conditional frequency."""

PROBES_AT_ONCE = 4096
"""Probes per block."""


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two partitions, corrected for chance: 1 for the same partition, 0 on average for unrelated ones.

    Names of labels do not matter. Cost: linear in the number of probes.

    Args:
        a: Labels `[n]`.
        b: Labels `[n]` of the same probes.

    Returns:
        The adjusted Rand index; 0 where one of the two puts all probes, or each by itself, into one class.

    Source: Hubert and Arabie 1985, equation 5.
    """
    (rows, one), (columns, other) = _numbered(a), _numbered(b)
    both = _pairs(_numbered(rows * len(other) + columns)[1])
    one, other = _pairs(one), _pairs(other)
    expected = one * other / max(1.0, _pairs(np.array([len(a)])))
    max_labels = (one + other) / 2
    return float((both - expected) / (max_labels - expected)) if max_labels > expected else 0.0


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1.0)).sum() / 2)


def agreement(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """1 where a model of the pool `[m, n]` gives the observer's label, else 0; for heads with the same classes."""
    return (pool == observer).astype(np.float32)


def information(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Pointwise mutual information in nats between each model's label and the observer's, cross-validated.

    Frequencies are estimated from the other probes (leave one out), so an unrelated partition gains nothing on
    average; the mean over probes estimates the mutual information.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]` of the models; each may have labels of its own.

    Returns:
        `[m, n]`.
    """
    own = relabelled(observer)
    size, n = int(own.max()) + 1, len(own)
    prior = (np.bincount(own, minlength=size)[own] - 1 + 1 / size) / n
    out = np.empty(pool.shape, np.float32)
    for i, labels in enumerate(pool):
        other = relabelled(labels)
        width = int(other.max()) + 1
        table = np.bincount(own * width + other, minlength=size * width).reshape(size, width)
        seen, of = table[own, other] - 1, table.sum(0)[other] - 1
        out[i] = np.log((seen + PRIOR_WEIGHT * prior) / ((of + PRIOR_WEIGHT) * prior))
    return out


def common_errors(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How far each model's label predicts where the observer deviates from the consensus of all models.

    A label stands for the observer's labels that occur with it in the whole pool. The pool's mean prediction for a
    probe is subtracted: a probe on which all agree counts nothing, a deviation shared with the observer counts.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]` of models whose labels mean the same.

    Returns:
        `[m, n]`; all models are treated alike.

    Source: the covariance of two models' answers given the mean answer of the pool; this project's.
    """
    own = relabelled(observer)
    names = relabelled(pool.ravel()).reshape(pool.shape)
    size, width = int(own.max()) + 1, int(names.max()) + 1
    table = np.bincount((names * size + own).ravel(), minlength=width * size).reshape(width, size).astype(float)
    base = np.bincount(own, minlength=size) / len(own)
    profiles = (table + base) / (table.sum(1, keepdims=True) + 1)
    similarity = profiles @ profiles.T
    out = np.empty(pool.shape, np.float32)
    for start in range(0, len(own), PROBES_AT_ONCE):
        part = names[:, start : start + PROBES_AT_ONCE]
        columns = np.arange(part.shape[1])
        votes = np.bincount((columns * width + part).ravel(), minlength=part.shape[1] * width)
        expected = votes.reshape(-1, width) @ similarity / len(pool)
        out[:, start : start + PROBES_AT_ONCE] = (
            profiles[part, own[start : start + PROBES_AT_ONCE]] - expected[columns, part]
        )
    return out


PARTS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "agreement": agreement, "information": information, "common-errors": common_errors,
}  # fmt: skip
"""The statistics per probe, by name."""


def contributions(observer: np.ndarray, pool: np.ndarray, parts: Sequence[str]) -> np.ndarray:
    """Per-probe score of each model of the pool `[m, n]`; several parts are standardised over the pool and added."""
    total = np.zeros(pool.shape, np.float32)
    for part in parts:
        found = PARTS[part](observer, pool)
        spread = float(found.mean(1, dtype=float).std()) if len(parts) > 1 else 1.0
        total += found / spread if spread > 0 else 0.0
    return total


def paired_p_values(found: np.ndarray) -> np.ndarray:
    """One-sided paired t tests `[m]` that the first row of `[m + 1, n]` exceeds each other one."""
    from scipy.stats import t

    gaps = found[0].astype(float) - found[1:]
    n = gaps.shape[1]
    if n < 2:
        return np.ones(len(gaps))
    error = gaps.std(1, ddof=1) / np.sqrt(n)
    return np.where(error > 0, t.sf(gaps.mean(1) / np.where(error > 0, error, 1.0), n - 1), 1.0)


def vote_entropy(labels: np.ndarray) -> np.ndarray:
    """Entropy in nats of the labels that m models `[m, n]` give to each probe."""
    m, n = labels.shape
    names = np.unique(labels, return_inverse=True)[1].reshape(m, n)
    cells, counts = np.unique((np.arange(n) * (int(names.max()) + 1) + names).ravel(), return_counts=True)
    share = counts / m
    return np.bincount(cells // (int(names.max()) + 1), -share * np.log(share), minlength=n)


def relabelled(labels: np.ndarray, max_labels: int = MAX_LABELS) -> np.ndarray:
    """Labels `[n]` as whole numbers from 0; beyond `max_labels`, the rarest share one."""
    index, counts = _numbered(labels)
    if len(counts) <= max_labels:
        return index
    place = np.full(len(counts), max_labels - 1)
    place[np.argsort(-counts, kind="stable")[: max_labels - 1]] = np.arange(max_labels - 1)
    return place[index]


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels numbered in order from 0, and the count of each."""
    if labels.min() >= 0 and labels.max() <= 4 * len(labels):
        counts = np.bincount(labels.astype(np.int64))
        return (np.cumsum(counts > 0) - 1)[labels], counts[counts > 0]
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index.astype(np.int64), counts
