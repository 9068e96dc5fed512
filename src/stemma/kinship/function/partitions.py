"""How much of one model's partition of the probes is another model's: figures per probe, from hard labels alone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

MOST = 512
"""Labels that are told apart; the rarest beyond that count as one."""

STRENGTH = 5.0
"""How many probes the frequency of a label weighs, where what another label says of it is estimated."""

CHUNK = 4096
"""Probes at once."""


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
    most = (one + other) / 2
    return float((both - expected) / (most - expected)) if most > expected else 0.0


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1.0)).sum() / 2)


def agreement(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Whether each model names the observer's label: for heads whose labels mean the same.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]` of the models.

    Returns:
        `[m, n]`, 1 where the labels are equal.

    Source: Nikolic, Baluta and Saxena 2025, arXiv:2502.00706.
    """
    return (pool == observer).astype(np.float32)


def information(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How much better than its frequency each model's label predicts the observer's, in nats.

    What is expected of a label is learnt from the other probes (leave one out), so on average nothing is gained from a
    partition that has nothing to do with the observer's; the mean over probes estimates the mutual information.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]` of the models; each may have labels of its own.

    Returns:
        `[m, n]`.
    """
    own = compressed(observer)
    size, n = int(own.max()) + 1, len(own)
    prior = (np.bincount(own, minlength=size)[own] - 1 + 1 / size) / n
    out = np.empty(pool.shape, np.float32)
    for i, labels in enumerate(pool):
        other = compressed(labels)
        width = int(other.max()) + 1
        table = np.bincount(own * width + other, minlength=size * width).reshape(size, width)
        seen, of = table[own, other] - 1, table.sum(0)[other] - 1
        out[i] = np.log((seen + STRENGTH * prior) / ((of + STRENGTH) * prior))
    return out


def common_errors(observer: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How far each model's label predicts what the observer answers *otherwise than all models would*.

    A label stands for the observer's labels that go with it in the whole pool. What the pool's labels together predict
    of a probe is taken away from the observer's answer there: where all agree nothing counts, and a deviation that a
    model shares with the observer does. Copies of a text are recognised in the same way, by the errors they share.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]` of models whose labels mean the same.

    Returns:
        `[m, n]`; all models are treated alike.

    Source: the covariance of two models' answers given the mean answer of the pool; this project's.
    """
    own = compressed(observer)
    names = compressed(pool.ravel()).reshape(pool.shape)
    size, width = int(own.max()) + 1, int(names.max()) + 1
    table = np.bincount((names * size + own).ravel(), minlength=width * size).reshape(width, size).astype(float)
    base = np.bincount(own, minlength=size) / len(own)
    stands = (table + base) / (table.sum(1, keepdims=True) + 1)
    alike = stands @ stands.T
    out = np.empty(pool.shape, np.float32)
    for start in range(0, len(own), CHUNK):
        part = names[:, start : start + CHUNK]
        columns = np.arange(part.shape[1])
        votes = np.bincount((columns * width + part).ravel(), minlength=part.shape[1] * width)
        expected = votes.reshape(-1, width) @ alike / len(pool)
        out[:, start : start + CHUNK] = stands[part, own[start : start + CHUNK]] - expected[columns, part]
    return out


PARTS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "agreement": agreement, "information": information, "common-errors": common_errors,
}  # fmt: skip
"""What can be counted per probe, by name."""


def contributions(observer: np.ndarray, pool: np.ndarray, parts: Sequence[str]) -> np.ndarray:
    """What each probe says for each model of a pool; several parts are put in units of their spread over the pool.

    All models of the pool are treated alike, whichever of them is in question: ranks of their means are exact for
    exchangeable models.

    Args:
        observer: Labels `[n]`.
        pool: Labels `[m, n]`.
        parts: Names out of `PARTS`.

    Returns:
        `[m, n]`, larger for more of the observer's partition.
    """
    total = np.zeros(pool.shape, np.float32)
    for part in parts:
        found = PARTS[part](observer, pool)
        spread = float(found.mean(1, dtype=float).std()) if len(parts) > 1 else 1.0
        total += found / spread if spread > 0 else 0.0
    return total


def paired(found: np.ndarray) -> np.ndarray:
    """Whether the first model would beat each other one on further probes of the same kind, too.

    A one-sided t test of the differences per probe: probes are independent draws, whatever models share at one probe.

    Args:
        found: What each probe says `[m + 1, n]`, the model in question first.

    Returns:
        Uncorrected p-values `[m]`; 1 where two models never differ.
    """
    from scipy.stats import t

    gaps = found[0].astype(float) - found[1:]
    n = gaps.shape[1]
    if n < 2:
        return np.ones(len(gaps))
    error = gaps.std(1, ddof=1) / np.sqrt(n)
    return np.where(error > 0, t.sf(gaps.mean(1) / np.where(error > 0, error, 1.0), n - 1), 1.0)


def vote_entropy(labels: np.ndarray) -> np.ndarray:
    """How much models differ about each probe.

    Args:
        labels: `[m, n]`.

    Returns:
        Entropy of the m labels in nats, `[n]`: 0 where all are the same.
    """
    m, n = labels.shape
    names = np.unique(labels, return_inverse=True)[1].reshape(m, n)
    cells, counts = np.unique((np.arange(n) * (int(names.max()) + 1) + names).ravel(), return_counts=True)
    share = counts / m
    return np.bincount(cells // (int(names.max()) + 1), -share * np.log(share), minlength=n)


def compressed(labels: np.ndarray, most: int = MOST) -> np.ndarray:
    """Labels as whole numbers from 0 on.

    Args:
        labels: `[n]`, any integers.
        most: How many are told apart.

    Returns:
        `[n]`, int64; the rarest labels are one where there are more than `most`.
    """
    index, counts = _numbered(labels)
    if len(counts) <= most:
        return index
    place = np.full(len(counts), most - 1)
    place[np.argsort(-counts, kind="stable")[: most - 1]] = np.arange(most - 1)
    return place[index]


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels in their order from 0 on, and how many there are of each; small ones need no sorting."""
    if labels.min() >= 0 and labels.max() <= 4 * len(labels):
        counts = np.bincount(labels.astype(np.int64))
        return (np.cumsum(counts > 0) - 1)[labels], counts[counts > 0]
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index.astype(np.int64), counts
