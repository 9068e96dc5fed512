"""Features of two related matrices that show which came first: what one has that the other lacks.

Between parent and child lies one training run, so that the child is the parent plus an increment; between siblings lie
two. Along the leading singular directions of the difference the parent has no more weight than in any other direction,
and the child has. Weight decay pulls all weights towards zero, also those that training does not use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model

NO_DECAY = 1e-5
"""Logarithm of a decay factor below which there is none."""

BLOCK_SIZE = 128
"""Rows and columns of a block whose spectrum is computed."""

RANK, OVERSAMPLING, POWER_ITERATIONS = 24, 8, 2
"""Singular directions of a difference, oversampling and power iterations of the randomised SVD."""

ANTISYMMETRIC = (
    "news", "news_undecayed", "log_news", "log_news_undecayed", "arrivals", "arrivals_undecayed",
    "decay", "decay_sharp", "decay_sign", "shift", "growth", "growth_undecayed", "growth_in_bulk", "row_scatter",
    "column_scatter", "cumulant", "norm", "kurtosis", "entropy", "top", "median", "largest", "row_spread",
)  # fmt: skip
"""Features that change their sign when the two models are swapped."""

SYMMETRIC = (
    "change", "evidence", "evidence_undecayed", "weaker_side", "weaker_side_undecayed", "sharpness", "sharpness_wide",
    "rank", "tensors",
)  # fmt: skip
"""Features that do not."""


@dataclass(frozen=True, eq=False)
class PairFeatures:
    """Features of a pair, named in `ANTISYMMETRIC` (mostly positive from parent to child) and `SYMMETRIC`."""

    antisymmetric: np.ndarray
    symmetric: np.ndarray

    def swapped(self) -> "PairFeatures":
        """The features of the same pair in the other order."""
        return PairFeatures(-self.antisymmetric, self.symmetric)


def block(x: np.ndarray) -> np.ndarray:
    """At most `BLOCK_SIZE` rows and columns, evenly spaced."""
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, BLOCK_SIZE)).astype(int)) for n in x.shape)
    return np.ascontiguousarray(x[np.ix_(rows, columns)], np.float32)


def training_statistics(x: np.ndarray) -> np.ndarray:
    """Statistics of one matrix that change with training: the last seven of `ANTISYMMETRIC`."""
    square = float(np.square(x).mean())
    singular = np.linalg.svd(x, compute_uv=False).astype(np.float64)
    power = np.maximum(singular**2 / max(float((singular**2).sum()), 1e-300), 1e-300)
    size = np.abs(x)
    rows = size.sum(axis=1)
    return np.array([
        np.log(max(square, 1e-300)), np.tanh(float(np.square(x * x).mean()) / max(square**2, 1e-300) - 3),
        -float((power * np.log(power)).sum()), np.log(max(singular[0], 1e-300)),
        np.log(max(float(np.median(size)), 1e-6 * square**0.5, 1e-300)), np.log(max(float(size.max()), 1e-300)),
        float(rows.std() / max(rows.mean(), 1e-300)),
    ])  # fmt: skip


def pair_features(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], weights: np.ndarray, statistics: np.ndarray
) -> PairFeatures:
    """The features of a pair.

    Args:
        x: Matrices of the first model, one per layer.
        y: Those of the second.
        weights: Of the layers; they add up to 1.
        statistics: `training_statistics` of the second less those of the first, weighted likewise.

    Returns:
        Features averaged over the layers.
    """
    decay, sharp, wide, shift = _decay(x, y)
    factor = np.exp(decay / 2)
    novelty, undecayed = np.zeros(4), np.zeros(4)
    rows = []
    for a, b in zip(x, y, strict=True):
        c, d = a * factor, b / factor
        change = b - a
        left, singular, right = _leading_singular(change)
        found = _novelty(left, right, a, b)
        novelty += found
        undecayed += found if abs(decay) < NO_DECAY else _novelty(*_leading_singular(d - c)[::2], c, d)
        rank = float(np.square(change, dtype=np.float64).sum() / max(singular[0] ** 2, 1e-300) / min(change.shape))
        rows.append([
            _norm_growth(a, b), _norm_growth(c, d), _norm_growth(*_without_leading(a, b, left, right)),
            _slope_scatter(a, b, 1), _slope_scatter(a, b, 0), _cumulant(a, b), _relative_change(a, b), rank,
        ])  # fmt: skip
    m = weights @ np.array(rows)
    balances = [_balance(novelty), _balance(undecayed), _log_ratio(novelty[:2]), _log_ratio(undecayed[:2]),
            _log_ratio(novelty[2:]), _log_ratio(undecayed[2:])]  # fmt: skip
    antisymmetric = np.array([*balances, -decay, -decay * wide, -np.tanh(decay / 0.02), shift, *m[:6], *statistics])
    symmetric = np.array([np.log(m[6] + 1e-9), np.log1p(novelty[:2].sum()), np.log1p(undecayed[:2].sum()),
                          np.log1p(novelty[:2].min()), np.log1p(undecayed[:2].min()), sharp, wide, m[7],
                          np.log(len(x))])  # fmt: skip
    return PairFeatures(antisymmetric, symmetric)


def _leading_singular(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading `RANK` singular directions and values, exactly for small matrices, else by randomised SVD.

    Returns:
        As `numpy.linalg.svd`.

    Source: Halko, Martinsson and Tropp 2011 (arXiv:0909.4061).
    """
    k = min(RANK, *z.shape)
    if min(z.shape) <= 2 * (k + OVERSAMPLING):
        left, values, right = np.linalg.svd(z, full_matrices=False)
        return left[:, :k], values[:k], right[:k]
    span = z @ np.random.default_rng(0).standard_normal((z.shape[1], k + OVERSAMPLING)).astype(z.dtype)
    for _ in range(POWER_ITERATIONS):
        span = z @ (z.T @ np.linalg.qr(span)[0])
    span = np.linalg.qr(span)[0]
    left, values, right = np.linalg.svd(span.T @ z, full_matrices=False)
    return (span @ left)[:, :k], values[:k], right[:k]


def _decay(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """Common factor of most entries (its logarithm), its sharpness at .003 and .03, and the most frequent step."""
    pairs = [(a.reshape(-1), b.reshape(-1), 0.3 * (a.std() + b.std()) / 2) for a, b in zip(x, y, strict=True)]
    valid = [(np.abs(a) + np.abs(b) > 2 * least) & (a * b > 0) for a, b, least in pairs]
    ratio = np.concatenate([np.log(b[k] / a[k]) for (a, b, _), k in zip(pairs, valid, strict=True)])
    ratio = ratio[np.abs(ratio) < 1]
    step = np.concatenate([np.abs(a[k]) - np.abs(b[k]) for (a, b, _), k in zip(pairs, valid, strict=True)])
    if len(ratio) < 32:
        return 0.0, 0.0, 0.0, 0.0
    mode = _mode(ratio)
    deviation = np.abs(ratio - mode)
    spread = max(float(np.median(np.abs(step - np.median(step)))), 1e-300)
    return (
        mode,
        float((deviation < 0.003).mean()),
        float((deviation < 0.03).mean()),
        float(np.tanh(_mode(step) / spread)),
    )


def _mode(values: np.ndarray) -> float:
    """Half-sample mode: where most values lie closest together (Bickel and Frühwirth 2006, arXiv:math/0505419)."""
    values = np.sort(values)
    while len(values) > 16:
        half = len(values) // 2
        at = int((values[half:] - values[: len(values) - half]).argmin())
        values = values[at : at + half]
    return float(np.median(values))


def _novelty(left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Log-likelihood evidence along the singular directions of the difference that one side has weight the other lacks.

    The reference is a Cauchy distribution of the width that most entries have: its heavy tails discount what both
    models learned before.

    Returns:
        Evidence that b has the increment, that a has it; amount new in b without a trace in a, and the reverse.
    """
    stacked = np.concatenate([a, b])
    width = float(np.median(np.abs(stacked))) / 0.6745
    width = max(width, 1e-6 * float(np.sqrt(np.square(stacked, dtype=np.float64).mean())), 1e-30)
    p, q = (((left.T @ z) * right).sum(axis=1) / width for z in (a, b))
    log_ratio = np.log1p(q * q) - np.log1p(p * p)
    new_in_b = ((np.abs(p) < 2) * np.maximum(np.abs(q) - 3, 0)).sum()
    new_in_a = ((np.abs(q) < 2) * np.maximum(np.abs(p) - 3, 0)).sum()
    return np.array([log_ratio[log_ratio > 0].sum(), -log_ratio[log_ratio < 0].sum(), new_in_b, new_in_a])


def _without_leading(
    a: np.ndarray, b: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both matrices without the leading half of the directions of their difference."""
    k = max(1, left.shape[1] // 2)
    out = []
    for z in (a, b):
        z = z - left[:, :k] @ (left[:, :k].T @ z)
        out.append(z - (z @ right[:k].T) @ right[:k])
    return out[0], out[1]


def _norm_growth(a: np.ndarray, b: np.ndarray) -> float:
    """Change of the squared norm over the squared change: 1 for an increment orthogonal to a, -1 for one of b."""
    change = float(np.square(b - a).sum())
    return float(np.tanh((float(np.square(b).sum()) - float(np.square(a).sum())) / max(change, 1e-300) / 2))


def _slope_scatter(a: np.ndarray, b: np.ndarray, axis: int) -> float:
    """How much more slopes of a's units on b's vary than those of b's on a's: noise in a regressor attenuates."""
    ab, aa, bb = (np.sum(z, axis=axis) for z in (a * b, a * a, b * b))
    valid = (aa > 1e-12 * max(float(aa.max()), 1e-300)) & (bb > 1e-12 * max(float(bb.max()), 1e-300))
    if valid.sum() < 3:
        return 0.0
    forward, backward = float((ab[valid] / aa[valid]).std()), float((ab[valid] / bb[valid]).std())
    return float(np.clip(np.log((backward + 1e-9) / (forward + 1e-9)), -3, 3))


def _cumulant(a: np.ndarray, b: np.ndarray) -> float:
    """Which side is the cause by fourth-order cross-cumulants (Hyvärinen and Smith 2013), near 0 where neither."""
    sa, sb = float(a.std()), float(b.std())
    if sa < 1e-300 or sb < 1e-300:
        return 0.0
    a, b = (a - a.mean()) / sa, (b - b.mean()) / sb
    ab = a * b
    c = float(ab.mean())
    first, second = float((a * a * ab).mean()) - 3 * c, float((b * b * ab).mean()) - 3 * c
    return float(np.tanh((first - second) / (1 - c * c + 1e-6) * np.sign(first + second) / 3))


def _relative_change(a: np.ndarray, b: np.ndarray) -> float:
    total = float(np.square(a).sum() + np.square(b).sum())
    return float(np.square(b - a).sum()) / max(total, 1e-300)


def _balance(novelty: np.ndarray) -> float:
    return float((novelty[0] - novelty[1]) / (novelty[0] + novelty[1] + 1))


def _log_ratio(two: np.ndarray) -> float:
    return float(np.log1p(two[0]) - np.log1p(two[1]))


BATCH_COUNTER = "num_batches_tracked"
"""Name of the counter of torch's batch normalisation."""


def trained_batches(model: Model) -> int:
    """Batches that batch normalisation counted in training, 0 without a counter; anybody can write another number."""
    found = [t for n, t in model.tensors.items() if n.endswith(BATCH_COUNTER) and t.size == 1 and not t.is_float]
    return max((int(t.array().reshape(-1)[0]) for t in found), default=0)
