"""What the weights of two relatives show about which came first: statistics of the difference, per pair.

Between parent and child lies one training, so the child is the parent and something new; between siblings lie two.
What is new shows where the difference points: along the leading singular directions of the difference the parent has
no more weight than anywhere else, the child has. A training that decays weights pulls all of them towards zero, also
those that it does not use. Both are looked at, beside the figures that others have proposed as clocks (norm, kurtosis,
spectral entropy), and none of them is given a sign by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.weights.entries import Entries, entries

VERSION = 2
"""Raised whenever features of a pair change: what was learnt from other ones does not fit."""

SHARED = 0.3
"""Cosine of two tensors below which one of them was replaced, and says nothing about the other."""

MOST = 16
"""Tensors of a pair whose spectra are looked at, the largest first."""

WIDE = 1 << 14
"""Entries of each of the largest tensors that spectra are taken of; of others the fewer that distances need."""

NO_DECAY = 1e-5
"""Logarithm of a factor that is none."""

TOUCHED = 0.01
"""Share of a tensor's entries that training changes at least; a few odd ones were not trained."""

SIDE = 128
"""Rows and columns of a block whose spectrum is looked at."""

LEADING, SPARE, ROUNDS = 24, 8, 2
"""Directions of a difference that are looked at, further ones that are carried along, and rounds of iteration."""

ANTISYMMETRIC = (
    "news", "news_undecayed", "log_news", "log_news_undecayed", "arrivals", "arrivals_undecayed",
    "decay", "decay_sharp", "decay_sign", "shift", "growth", "growth_undecayed", "growth_in_bulk", "row_scatter",
    "column_scatter", "cumulant", "norm", "kurtosis", "entropy", "top", "median", "largest", "row_spread",
)  # fmt: skip
"""Features that change their sign when the two models change places."""

SYMMETRIC = (
    "change", "evidence", "evidence_undecayed", "weaker_side", "weaker_side_undecayed", "sharpness", "sharpness_wide",
    "rank", "tensors",
)  # fmt: skip
"""Features that do not."""


@dataclass(frozen=True, eq=False)
class PairFeatures:
    """What the weights of a pair show.

    Attributes:
        antisymmetric: As named in `ANTISYMMETRIC`: positive values are the more usual from parent to child.
        symmetric: As named in `SYMMETRIC`.
    """

    antisymmetric: np.ndarray
    symmetric: np.ndarray

    def turned(self) -> "PairFeatures":
        """The features of the same pair in the other order."""
        return PairFeatures(-self.antisymmetric, self.symmetric)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Pairs of relatives, measured once each.

    Cost: some ten milliseconds per pair of small networks; the sampled entries bound it for larger ones.

    Attributes:
        entries: The same entries of all relatives.
        counters: Batches that each was trained on so far, as far as its file tells (`counted`); 0 where it does not.
    """

    entries: Entries
    counters: Sequence[int] = ()
    _pairs: dict[tuple[int, int], PairFeatures | None] = field(default_factory=dict)
    _models: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _products: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(models: Sequence[Model]) -> "Geometry":
        """The geometry of some models; the first one's names and order of axes count.

        Returns:
            The geometry.
        """
        return Geometry(entries(models, reference=0, wide=(MOST, WIDE)), [counted(m) for m in models])

    def __len__(self) -> int:
        """Number of relatives."""
        return len(self.entries)

    def products(self, i: int, j: int) -> np.ndarray:
        """Inner products of two models, tensor by tensor.

        Returns:
            `float64 [tensors]`.
        """
        key = (i, j) if i <= j else (j, i)
        if key not in self._products:
            x, y = (self.entries.values[k] for k in key)
            self._products[key] = np.add.reduceat(x * y, self._starts, dtype=np.float64) if len(x) else np.zeros(0)
        return self._products[key]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([slot.start for slot in self.entries.tensors])

    def shared(self, i: int, j: int) -> np.ndarray:
        """Which tensors both models have, neither of them replaced.

        Returns:
            `bool [tensors]`.
        """
        both = self.entries.present[i] & self.entries.present[j]
        norm = np.sqrt(self.products(i, i) * self.products(j, j))
        return both & (self.products(i, j) >= SHARED * norm) & (norm > 0)

    def squared_distance(self, i: int, j: int, over: np.ndarray | None = None) -> float:
        """Squared distance of two models, each tensor relative to its own size, averaged by the tensors' sizes.

        Args:
            i: One model.
            j: Another.
            over: Tensors that count; those that both share unless given.

        Returns:
            0 for equal weights, near 2 for strangers; infinite where they share nothing.
        """
        kept = self.shared(i, j) if over is None else over
        if not kept.any():
            return float("inf")
        xx, yy, xy = self.products(i, i)[kept], self.products(j, j)[kept], self.products(i, j)[kept]
        relative = np.maximum(xx + yy - 2 * xy, 0) / np.maximum(np.sqrt(xx * yy), 1e-300)
        return float(np.average(relative, weights=self._sizes[kept]))

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([slot.size for slot in self.entries.tensors], float)

    def cosine_at(self, corner: int, j: int, k: int) -> float | None:
        """Cosine of the angle at one model between two others: 0 where its descendants left it independently.

        Returns:
            The cosine over the tensors that all three share; None where there are none, or no angle.
        """
        kept = self.shared(corner, j) & self.shared(corner, k) & self.shared(j, k)
        if not kept.any():
            return None
        a, b, c = (self.squared_distance(*pair, kept) for pair in ((corner, j), (corner, k), (j, k)))
        return float(np.clip((a + b - c) / (2 * np.sqrt(a * b)), -1, 1)) if a > 0 and b > 0 else None

    def pair(self, i: int, j: int) -> PairFeatures | None:
        """The features of an ordered pair.

        Returns:
            The features; None where the two share no tensor that changed in more than a few entries.
        """
        if (i, j) not in self._pairs:
            first, second = sorted((i, j))
            found = self._measured(first, second)
            self._pairs[first, second] = found
            self._pairs[second, first] = None if found is None else found.turned()
        return self._pairs[i, j]

    def _measured(self, i: int, j: int) -> PairFeatures | None:
        if i == j:
            raise MisuseError("a model and itself are no pair")
        kept = [t for t in np.flatnonzero(self.shared(i, j)) if not self._equal(t, i, j)]
        kept = sorted(sorted(kept, key=lambda t: -self._sizes[t])[:MOST])
        if not kept:
            return None
        x, y = ([_block(self._block(t, k)) for t in kept] for k in (i, j))
        weights = np.sqrt(self._sizes[kept])
        weights /= weights.sum()
        clocks = weights @ np.stack([self._clocks(t, j) - self._clocks(t, i) for t in kept])
        return _features(x, y, weights, clocks)

    def _equal(self, t: int, i: int, j: int) -> bool:
        columns = self.entries.tensors[t].columns
        changed = self.entries.values[i, columns] != self.entries.values[j, columns]
        return float(changed.mean()) < TOUCHED

    def _block(self, t: int, k: int) -> np.ndarray:
        slot = self.entries.tensors[t]
        return slot.blocks(self.entries.values[k : k + 1])[0]

    def _clocks(self, t: int, k: int) -> np.ndarray:
        """Figures of one tensor of one model that change as it is trained: the last seven of `ANTISYMMETRIC`."""
        if (t, k) not in self._models:
            self._models[t, k] = _clocks(_block(self._block(t, k)))
        return self._models[t, k]


COUNTER = "num_batches_tracked"
"""How torch calls what batch normalisation counts."""


def counted(model: Model) -> int:
    """Batches that batch normalisation saw in training, as torch counts them. Anybody can write another number.

    Args:
        model: Any model.

    Returns:
        The largest count; 0 where the file has none.
    """
    found = [t for n, t in model.tensors.items() if n.endswith(COUNTER) and t.size == 1 and not t.is_float]
    return max((int(t.array().reshape(-1)[0]) for t in found), default=0)


def _block(x: np.ndarray) -> np.ndarray:
    """At most `SIDE` rows and columns, evenly spaced."""
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, SIDE)).astype(int)) for n in x.shape)
    return np.ascontiguousarray(x[np.ix_(rows, columns)], np.float32)


def _clocks(x: np.ndarray) -> np.ndarray:
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


def _features(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], weights: np.ndarray, clocks: np.ndarray
) -> PairFeatures:
    decay, sharp, wide, shift = _decay(x, y)
    factor = np.exp(decay / 2)
    news, undecayed = np.zeros(4), np.zeros(4)
    rows = []
    for a, b in zip(x, y, strict=True):
        c, d = a * factor, b / factor
        change = b - a
        left, singular, right = _leading(change)
        found = _news(left, right, a, b)
        news += found
        undecayed += found if abs(decay) < NO_DECAY else _news(*_leading(d - c)[::2], c, d)
        rank = float(np.square(change, dtype=np.float64).sum() / max(singular[0] ** 2, 1e-300) / min(change.shape))
        rows.append([
            _growth(a, b), _growth(c, d), _growth(*_bulk(a, b, left, right)), _scatter(a, b, 1), _scatter(a, b, 0),
            _cumulant(a, b), _change(a, b), rank,
        ])  # fmt: skip
    m = weights @ np.array(rows)
    told = [_balance(news), _balance(undecayed), _log_ratio(news[:2]), _log_ratio(undecayed[:2]),
            _log_ratio(news[2:]), _log_ratio(undecayed[2:])]  # fmt: skip
    antisymmetric = np.array([*told, -decay, -decay * wide, -np.tanh(decay / 0.02), shift, *m[:6], *clocks])
    symmetric = np.array([np.log(m[6] + 1e-9), np.log1p(news[:2].sum()), np.log1p(undecayed[:2].sum()),
                          np.log1p(news[:2].min()), np.log1p(undecayed[:2].min()), sharp, wide, m[7],
                          np.log(len(x))])  # fmt: skip
    return PairFeatures(antisymmetric, symmetric)


def _leading(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular directions and values: whole where it is small, else by random projection and iteration.

    Returns:
        As `numpy.linalg.svd`, of `LEADING` directions at most.

    Source: Halko, Martinsson and Tropp 2011 (arXiv:0909.4061).
    """
    k = min(LEADING, *z.shape)
    if min(z.shape) <= 2 * (k + SPARE):
        left, values, right = np.linalg.svd(z, full_matrices=False)
        return left[:, :k], values[:k], right[:k]
    span = z @ np.random.default_rng(0).standard_normal((z.shape[1], k + SPARE)).astype(z.dtype)
    for _ in range(ROUNDS):
        span = z @ (z.T @ np.linalg.qr(span)[0])
    span = np.linalg.qr(span)[0]
    left, values, right = np.linalg.svd(span.T @ z, full_matrices=False)
    return (span @ left)[:, :k], values[:k], right[:k]


def _decay(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """What most entries have in common: a factor from x to y (its logarithm), how sharp it is, and an equal step.

    Returns:
        Logarithm of the factor, the share of entries within .003 and within .03 of it, and the commonest change of
        size as a multiple of the spread of changes.
    """
    pairs = [(a.reshape(-1), b.reshape(-1), 0.3 * (a.std() + b.std()) / 2) for a, b in zip(x, y, strict=True)]
    used = [(np.abs(a) + np.abs(b) > 2 * least) & (a * b > 0) for a, b, least in pairs]
    ratio = np.concatenate([np.log(b[k] / a[k]) for (a, b, _), k in zip(pairs, used, strict=True)])
    ratio = ratio[np.abs(ratio) < 1]
    step = np.concatenate([np.abs(a[k]) - np.abs(b[k]) for (a, b, _), k in zip(pairs, used, strict=True)])
    if len(ratio) < 32:
        return 0.0, 0.0, 0.0, 0.0
    mode = _mode(ratio)
    off = np.abs(ratio - mode)
    spread = max(float(np.median(np.abs(step - np.median(step)))), 1e-300)
    return mode, float((off < 0.003).mean()), float((off < 0.03).mean()), float(np.tanh(_mode(step) / spread))


def _mode(values: np.ndarray) -> float:
    """The half-sample mode (Bickel and Frühwirth 2006, arXiv:math/0505419).

    Returns:
        Where most values lie closest together.
    """
    values = np.sort(values)
    while len(values) > 16:
        half = len(values) // 2
        at = int((values[half:] - values[: len(values) - half]).argmin())
        values = values[at : at + half]
    return float(np.median(values))


def _news(left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the singular directions of the difference: how much likelier each side's weight is as nothing special.

    The law of nothing special is a Cauchy law of the width that most entries have: heavy enough that what both learned
    before does not count.

    Returns:
        Evidence that b has the news, that a has; arrivals in b of what a has no trace of, and the reverse.
    """
    both = np.concatenate([a, b])
    width = float(np.median(np.abs(both))) / 0.6745
    width = max(width, 1e-6 * float(np.sqrt(np.square(both, dtype=np.float64).mean())), 1e-30)
    p, q = (((left.T @ z) * right).sum(axis=1) / width for z in (a, b))
    log_ratio = np.log1p(q * q) - np.log1p(p * p)
    arrived = ((np.abs(p) < 2) * np.maximum(np.abs(q) - 3, 0)).sum()
    left_behind = ((np.abs(q) < 2) * np.maximum(np.abs(p) - 3, 0)).sum()
    return np.array([log_ratio[log_ratio > 0].sum(), -log_ratio[log_ratio < 0].sum(), arrived, left_behind])


def _bulk(a: np.ndarray, b: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the leading half of the directions of the difference that are at hand."""
    k = max(1, left.shape[1] // 2)
    out = []
    for z in (a, b):
        z = z - left[:, :k] @ (left[:, :k].T @ z)
        out.append(z - (z @ right[:k].T) @ right[:k])
    return out[0], out[1]


def _growth(a: np.ndarray, b: np.ndarray) -> float:
    """Change of the squared norm over the squared change: 1 for an increment at right angles to a, -1 for one of b."""
    change = float(np.square(b - a).sum())
    return float(np.tanh((float(np.square(b).sum()) - float(np.square(a).sum())) / max(change, 1e-300) / 2))


def _scatter(a: np.ndarray, b: np.ndarray, axis: int) -> float:
    """How much more slopes of a's units on b's scatter than those of b's on a's: noise in a regressor attenuates."""
    ab, aa, bb = (np.sum(z, axis=axis) for z in (a * b, a * a, b * b))
    used = (aa > 1e-12 * max(float(aa.max()), 1e-300)) & (bb > 1e-12 * max(float(bb.max()), 1e-300))
    if used.sum() < 3:
        return 0.0
    forward, backward = float((ab[used] / aa[used]).std()), float((ab[used] / bb[used]).std())
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


def _change(a: np.ndarray, b: np.ndarray) -> float:
    total = float(np.square(a).sum() + np.square(b).sum())
    return float(np.square(b - a).sum()) / max(total, 1e-300)


def _balance(news: np.ndarray) -> float:
    return float((news[0] - news[1]) / (news[0] + news[1] + 1))


def _log_ratio(two: np.ndarray) -> float:
    return float(np.log1p(two[0]) - np.log1p(two[1]))
