"""Features of a pair of related models that show which came first, and angles between several of them.

Between parent and child lies one training run, so that the child is the parent plus an increment; between siblings lie
two. Along the leading singular directions of the difference the parent has no more weight than in any other direction,
and the child has. Weight decay pulls all weights towards zero, also those that training does not use. Both effects are
measured, together with statistics that others have proposed as clocks (norm, kurtosis, spectral entropy). A trained
classifier weighs them (`stemma.ancestry.direction`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.increments import ANTISYMMETRIC as ANTISYMMETRIC
from stemma.kinship.increments import SYMMETRIC as SYMMETRIC
from stemma.kinship.increments import PairFeatures, block, pair_features, trained_batches, training_statistics
from stemma.kinship.weights.entries import Entries, entries

VERSION = 2
"""Raised whenever features of a pair change: models trained on other features do not fit."""

SHARED_COSINE = 0.3
"""Cosine of two tensors below which one of them was replaced, so that they are not compared."""

LARGEST_TENSORS = 16
"""Tensors of a pair whose spectra are computed, the largest first."""

WIDE_SAMPLE = 1 << 14
"""Sampled entries of each of the largest tensors, for spectra; of other tensors fewer are sampled."""

CHANGED_SHARE = 0.01
"""Share of a tensor's entries that must differ for it to count as trained."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Distances, angles and pair features of related models, each computed once.

    Cost: about ten milliseconds per pair of small networks; sampled entries bound it for larger ones.

    Attributes:
        entries: The same entries of all models.
        batch_counts: Batches each was trained on, as its file claims (`trained_batches`); 0 where it does not.
    """

    entries: Entries
    batch_counts: Sequence[int] = ()
    _pairs: dict[tuple[int, int], PairFeatures | None] = field(default_factory=dict)
    _statistics: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _inner_products: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(models: Sequence[Model]) -> "Geometry":
        """The geometry of some models, in the tensor names and axis order of the first."""
        return Geometry(
            entries(models, reference=0, wide=(LARGEST_TENSORS, WIDE_SAMPLE)), [trained_batches(m) for m in models]
        )

    def __len__(self) -> int:
        """Number of relatives."""
        return len(self.entries)

    def inner_products(self, i: int, j: int) -> np.ndarray:
        """Inner products of two models, tensor by tensor, `float64 [tensors]`."""
        key = (i, j) if i <= j else (j, i)
        if key not in self._inner_products:
            x, y = (self.entries.values[k] for k in key)
            self._inner_products[key] = (
                np.add.reduceat(x * y, self._starts, dtype=np.float64) if len(x) else np.zeros(0)
            )
        return self._inner_products[key]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([slot.start for slot in self.entries.tensors])

    def shared_tensors(self, i: int, j: int) -> np.ndarray:
        """Which tensors both models have and neither has replaced, `bool [tensors]`."""
        both_present = self.entries.present[i] & self.entries.present[j]
        norm = np.sqrt(self.inner_products(i, i) * self.inner_products(j, j))
        return both_present & (self.inner_products(i, j) >= SHARED_COSINE * norm) & (norm > 0)

    def squared_distance(self, i: int, j: int, over: np.ndarray | None = None) -> float:
        """Squared distance over the shared tensors (or `over`), relative to norms: near 2 for independent models."""
        tensors = self.shared_tensors(i, j) if over is None else over
        if not tensors.any():
            return float("inf")
        xx, yy, xy = (
            self.inner_products(i, i)[tensors],
            self.inner_products(j, j)[tensors],
            self.inner_products(i, j)[tensors],
        )
        relative = np.maximum(xx + yy - 2 * xy, 0) / np.maximum(np.sqrt(xx * yy), 1e-300)
        return float(np.average(relative, weights=self._sizes[tensors]))

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([slot.size for slot in self.entries.tensors], float)

    def cosine_at(self, corner: int, j: int, k: int) -> float | None:
        """Cosine at one model between two others, 0 for independent children; None without shared tensors."""
        tensors = self.shared_tensors(corner, j) & self.shared_tensors(corner, k) & self.shared_tensors(j, k)
        if not tensors.any():
            return None
        a, b, c = (self.squared_distance(*pair, tensors) for pair in ((corner, j), (corner, k), (j, k)))
        return float(np.clip((a + b - c) / (2 * np.sqrt(a * b)), -1, 1)) if a > 0 and b > 0 else None

    def pair_features(self, i: int, j: int) -> PairFeatures | None:
        """The features of an ordered pair; None where no shared tensor changed in more than a few entries."""
        if (i, j) not in self._pairs:
            first, second = sorted((i, j))
            found = self._measure(first, second)
            self._pairs[first, second] = found
            self._pairs[second, first] = None if found is None else found.swapped()
        return self._pairs[i, j]

    def _measure(self, i: int, j: int) -> PairFeatures | None:
        if i == j:
            raise MisuseError("a model cannot be paired with itself: give two positions")
        tensors = [t for t in np.flatnonzero(self.shared_tensors(i, j)) if not self._unchanged(t, i, j)]
        tensors = sorted(sorted(tensors, key=lambda t: -self._sizes[t])[:LARGEST_TENSORS])
        if not tensors:
            return None
        x, y = ([block(self._block(t, k)) for t in tensors] for k in (i, j))
        weights = np.sqrt(self._sizes[tensors])
        weights /= weights.sum()
        statistics = weights @ np.stack(
            [self._training_statistics(t, j) - self._training_statistics(t, i) for t in tensors]
        )
        return pair_features(x, y, weights, statistics)

    def _unchanged(self, t: int, i: int, j: int) -> bool:
        columns = self.entries.tensors[t].columns
        changed = self.entries.values[i, columns] != self.entries.values[j, columns]
        return float(changed.mean()) < CHANGED_SHARE

    def _block(self, t: int, k: int) -> np.ndarray:
        slot = self.entries.tensors[t]
        return slot.blocks(self.entries.values[k : k + 1])[0]

    def _training_statistics(self, t: int, k: int) -> np.ndarray:
        """Statistics of one tensor that change with training: the last seven of `ANTISYMMETRIC`."""
        if (t, k) not in self._statistics:
            self._statistics[t, k] = training_statistics(block(self._block(t, k)))
        return self._statistics[t, k]
