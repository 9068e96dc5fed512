"""What two models and a third show about descent: measured layer by layer, pooled so that no layer outvotes the others.

Before anything is compared, each layer is tested for kinship on its own. The statistic is the inner product of two
matrices without the means of their rows and columns. Were the models strangers, the order of the units in one would
mean nothing in the other, and the statistic's mean and variance over all orders are known exactly (Hoeffding's
combinatorial theorem). A layer that is not related (a fresh head, a replaced part) takes no further part; of the
others every number is pooled by its median and by the mean of its middle half.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import ndtr

from stemma.kinship.increments import ANTISYMMETRIC, SYMMETRIC, pair_features, training_statistics
from stemma.kinship.learned.heads import learned_with
from stemma.kinship.learned.weight_samples import WeightSamples

LAYER_Z = 4.5
"""Standard deviations from which a layer counts as related: one in 300,000 layers of strangers by the normal law."""

LEAST_ENTRIES = 64
"""Degrees of freedom below which a layer is too small to be tested."""

LEAST_SHARE = 0.5
"""Least share of the child's testable layers in which a candidate must be related."""

RELATED = 0.95
"""Probability from which a candidate counts as related."""

NEAREST = 8
"""Related candidates that are weighed as parents, the nearest first."""

ODD = (*ANTISYMMETRIC, "zeros", "grid", "largest weight", "heads")
"""Numbers of a pair that change their sign with its order."""

EVEN = (*SYMMETRIC, "distance", "cosine", "equal", "tails", "zeros of either", "unchanged layers",
        "related layers", "weaker head", "stronger head", "heads differ")  # fmt: skip
"""Numbers of a pair that do not."""

PER_PAIR = 2 * (len(ODD) + len(EVEN))
PER_TRIANGLE, PER_CANDIDATE = 9, 4
UNCHANGED = 0.01
"""Share of entries that differ below which a layer counts as not trained."""


def related_z(x: np.ndarray, y: np.ndarray) -> float:
    """How much better two matrices fit in place than in a random order of units, in standard deviations.

    The smaller value of the two axes' counts: only one of them need be exchangeable for the test to hold.

    Returns:
        The statistic; NaN where the matrices are too small to test.
    """
    if min(x.shape) < 2 or (x.shape[0] - 1) * (x.shape[1] - 1) < LEAST_ENTRIES:
        return float("nan")
    x, y = (_centred(z.astype(np.float64)) for z in (x, y))
    product, found = float((x * y).sum()), []
    for a, b in ((x, y), (x.T, y.T)):
        if len(a) >= 4 and (variance := float(np.square(a @ b.T).sum()) / (len(a) - 1)) > 0:
            found.append(product / np.sqrt(variance))
    return min(found, default=float("nan"))


def alike(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two matrices of one shape are related, by the test or, where they are too small for it, by cosine."""
    z = related_z(x, y)
    if np.isnan(z):
        return float((x * y).sum()) > 0.5 * float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return z >= LAYER_Z


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()


def pooled(values: np.ndarray) -> np.ndarray:
    """Median, and mean of the middle half, of each column of `[layers, numbers]`: no few rows move them far."""
    ordered = np.sort(values, 0)
    cut = max(1, len(values) // 4) if len(values) > 2 else 0
    return np.concatenate([np.median(values, 0), ordered[cut : len(values) - cut].mean(0)])


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence about pairs and triples of some models, each measured once.

    Cost: about a millisecond per layer and pair of related models, much less per stranger.

    Attributes:
        samples: The same entries of all.
    """

    samples: WeightSamples
    _z: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _pairs: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _statistics: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def block(self, model: int, layer: int) -> np.ndarray:
        """The entries of a layer as a matrix, one row per unit."""
        samples = self.samples
        return samples.values[model, layer, : self._widths[layer]].reshape(samples.rows[layer], -1)

    @cached_property
    def _size(self) -> np.ndarray:
        return self.samples.lengths.sum(0)

    @cached_property
    def _widths(self) -> np.ndarray:
        return self.samples.valid.sum(1)

    def layers_z(self, i: int, j: int) -> np.ndarray:
        """`related_z` of each layer, NaN where one model lacks it."""
        key = (min(i, j), max(i, j))
        if key not in self._z:
            there = self.samples.present[i] & self.samples.present[j]
            self._z[key] = np.array(
                [related_z(self.block(i, n), self.block(j, n)) if t else np.nan for n, t in enumerate(there)]
            )
        return self._z[key]

    def related_layers(self, i: int, j: int) -> np.ndarray:
        """Whether each layer is related: the others are left out of all that follows."""
        return np.nan_to_num(self.layers_z(i, j), nan=-1.0) >= LAYER_Z

    def related(self, child: int, others: np.ndarray) -> np.ndarray:
        """Probability of each candidate to be related to the child in half of its layers.

        Args:
            child: Position of the child.
            others: Positions of the candidates.

        Returns:
            `float64 [candidates]`: one less the chance of so related a layer among strangers, corrected for the number
            of tests. No minority of unrelated layers changes it.
        """
        rows = np.stack([self.layers_z(child, int(k)) for k in others])
        needed = max(1, int(np.ceil(LEAST_SHARE * self._testable[child].sum())))
        best = np.sort(np.where(np.isnan(rows), -np.inf, rows), 1)[:, ::-1]
        if best.shape[1] < needed:
            return np.zeros(len(others))
        return 1 - np.minimum(1, ndtr(-best[:, needed - 1]) * max(1, rows.size))

    @cached_property
    def _testable(self) -> np.ndarray:
        columns = self._widths // np.maximum(self.samples.rows, 1)
        return self.samples.present & ((self.samples.rows - 1) * (columns - 1) >= LEAST_ENTRIES)[None]

    def pair(self, a: int, b: int) -> np.ndarray:
        """What related layers show about a before b: `ODD` and `EVEN` numbers, pooled, `float32 [PER_PAIR]`."""
        if (a, b) not in self._pairs:
            first, second = sorted((a, b), key=lambda k: (self._size[k], k))  # whatever order the models are given in
            odd, even = self._measured(first, second)
            self._pairs[first, second] = np.concatenate([odd, even]).astype(np.float32)
            self._pairs[second, first] = np.concatenate([-odd, even]).astype(np.float32)
        return self._pairs[a, b]

    def _measured(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        layers = np.flatnonzero(self.related_layers(a, b))
        shared = max(1, int((self._testable[a] & self._testable[b]).sum()))
        changed = [n for n in layers if (self.block(a, n) != self.block(b, n)).mean() >= UNCHANGED]
        rows = [self._layer(a, b, n) for n in changed] or [np.zeros(len(ODD) + len(EVEN) - 6)]
        order, weaker, stronger, differ = self._heads(a, b)
        table, whole = np.stack(rows), (1 - len(changed) / max(1, len(layers)), len(layers) / shared)
        odd, even = table[:, : len(ODD) - 1], table[:, len(ODD) - 1 :]
        same = np.tile([order, *whole, weaker, stronger, differ], (len(table), 1))
        table = np.hstack([odd, same[:, :1], even, same[:, 1:]])
        both = pooled(table).reshape(2, -1)
        return both[:, : len(ODD)].reshape(-1), both[:, len(ODD) :].reshape(-1)

    def _heads(self, a: int, b: int) -> tuple[float, float, float, float]:
        heads = self.samples.heads
        if heads is None:
            return 0.0, 0.0, 0.0, 0.0
        return learned_with(heads.of(a), heads.of(b), heads.pairs, alike)

    def _layer(self, a: int, b: int, n: int) -> np.ndarray:
        x, y = self.block(a, n), self.block(b, n)
        found = pair_features([x], [y], np.ones(1), self._training(b, n) - self._training(a, n))
        d = y - x
        dd, xx, yy = (float(np.square(z, dtype=np.float64).sum()) for z in (d, x, y))
        gone, new = float(((y == 0) & (x != 0)).mean()), float(((x == 0) & (y != 0)).mean())
        tails = float(np.square(np.square(d, dtype=np.float64)).sum()) * d.size / max(dd**2, 1e-30)
        odd = [gone - new, float(self.samples.distinct[a, n] - self.samples.distinct[b, n]),
               np.log(max(np.abs(y).max(), 1e-20) / max(np.abs(x).max(), 1e-20))]  # fmt: skip
        even = [np.log10(dd / (xx + yy) + 1e-8) / 2, float((x * y).sum()) / np.sqrt(max(xx * yy, 1e-30)),
                float((d == 0).mean()), np.log(tails + 1e-3) / 3, gone + new]  # fmt: skip
        return np.clip(np.concatenate([found.antisymmetric, odd, found.symmetric, even]), -12, 12)

    def _training(self, model: int, n: int) -> np.ndarray:
        if (model, n) not in self._statistics:
            self._statistics[model, n] = training_statistics(self.block(model, n))
        return self._statistics[model, n]

    def triangles(self, child: int, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Angles and lengths of child, candidate and each other one: medians over the layers that all three share.

        Returns:
            `float32 [n, n, PER_TRIANGLE]`, and whether the three share a related layer.
        """
        n = len(near)
        out, mask = np.zeros((n, n, PER_TRIANGLE), np.float32), np.zeros((n, n), bool)
        with_child = [self.related_layers(child, int(k)) for k in near]
        for i in range(n):
            for j in range(i):
                layers = np.flatnonzero(with_child[i] & with_child[j] & self.related_layers(int(near[i]), int(near[j])))
                if len(layers):
                    rows = np.stack([self._corners(child, int(near[i]), int(near[j]), m) for m in layers])
                    out[i, j], out[j, i] = np.median(rows, 0), np.median(rows[:, _SWAPPED] * _SIGN, 0)
                    mask[i, j] = mask[j, i] = True
        return out, mask

    def _corners(self, c: int, k: int, j: int, layer: int) -> np.ndarray:
        ck, cj, kj = (self._square(*p, layer) for p in ((c, k), (c, j), (k, j)))
        size = self.samples.lengths[layer, c] + 1e-30

        def angle(x: float, y: float, opposite: float) -> float:
            return float(np.clip((x + y - opposite) / (2 * np.sqrt(x * y) + 1e-20), -1, 1)) if x * y > 0 else 0.0

        def along(x: float, y: float, opposite: float) -> float:
            return float(np.clip((x + y - opposite) / (2 * y + 1e-20), -2, 2)) if y > 0 else 0.0

        return np.array([
            angle(ck, kj, cj), angle(cj, kj, ck), angle(ck, cj, kj),
            along(kj, ck, cj), along(kj, cj, ck),
            np.log10(ck / size + 1e-8) / 2, np.log10(cj / size + 1e-8) / 2, np.log10(kj / size + 1e-8) / 2,
            np.clip(np.log((ck + 1e-12) / (cj + 1e-12)), -6, 6) / 2,
        ])  # fmt: skip

    def _square(self, i: int, j: int, layer: int) -> float:
        difference = self.samples.values[i, layer] - self.samples.values[j, layer]
        return float(difference @ difference)


_SWAPPED = np.array([1, 0, 2, 4, 3, 6, 5, 7, 8])
_SIGN = np.array([1, 1, 1, 1, 1, 1, 1, 1, -1.0])
