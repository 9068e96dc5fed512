"""Candidate search: a scan over bit sketches, some milliseconds for 100,000 models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.errors import RegistryError
from stemma.types import Digest

SKETCH_BYTES = 256
"""Two codes of 1024 bits: one that depends on the order of units, one that no permutation or scaling changes."""

_HALF = SKETCH_BYTES // 2
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A model near a query.

    Attributes:
        digest: The model.
        rank: Number of models that are strictly nearer by the better of the two codes; 0 is nearest.
        ordered: Hamming distance of the order-dependent codes, 0 … 1024.
        invariant: Hamming distance of the invariant codes, 0 … 1024.
    """

    digest: Digest
    rank: int
    ordered: int
    invariant: int


class SketchIndex:
    """The bit sketches of a registry in one matrix.

    Unrelated models differ in about half of the bits of each code. A model whose units kept their order is near by the
    first code, a permuted or rescaled one by the second; so models are ranked by each code, and the better rank is
    used.
    """

    def __init__(self, digests: Sequence[Digest], bits: np.ndarray) -> None:
        """Build the index.

        Args:
            digests: One per model.
            bits: `uint8 [len(digests), 256]`.

        Raises:
            RegistryError: If the shapes do not fit.
        """
        if bits.dtype != np.uint8 or bits.shape != (len(digests), SKETCH_BYTES):
            raise RegistryError(
                f"sketches must be uint8 [{len(digests)}, {SKETCH_BYTES}], got {bits.dtype} {bits.shape}"
            )
        order = sorted(range(len(digests)), key=digests.__getitem__)
        self._digests = [digests[i] for i in order]
        self._words = np.ascontiguousarray(bits[order]).view(np.uint64).reshape(len(order), SKETCH_BYTES // 8)

    def __len__(self) -> int:
        """Number of models."""
        return len(self._digests)

    def distances(self, bits: np.ndarray) -> np.ndarray:
        """Hamming distances of both codes to all models.

        Cost: one pass over 256 bytes per model.

        Args:
            bits: `uint8 [256]`.

        Returns:
            `int64 [n, 2]`, in the order of the digests.

        Raises:
            RegistryError: If the query is not a sketch.
        """
        if bits.dtype != np.uint8 or bits.shape != (SKETCH_BYTES,):
            raise RegistryError(f"a sketch must be uint8 [{SKETCH_BYTES}], got {bits.dtype} {bits.shape}")
        query = np.ascontiguousarray(bits).view(np.uint64)
        out = np.empty((len(self), 2), np.int64)
        for start in range(0, len(self), _BLOCK):
            ones = _popcount(self._words[start : start + _BLOCK] ^ query)
            out[start : start + _BLOCK] = ones.reshape(len(ones), 2, _HALF // 8).sum(axis=2, dtype=np.int64)
        return out

    def nearest(self, bits: np.ndarray, n: int) -> tuple[Neighbour, ...]:
        """The nearest models.

        Ties are broken by the sum of both distances, then by digest.

        Args:
            bits: `uint8 [256]`.
            n: How many.

        Returns:
            At most `n`, nearest first.
        """
        distance = self.distances(bits)
        rank = np.minimum(_ranks(distance[:, 0]), _ranks(distance[:, 1]))
        key = rank * (16 * SKETCH_BYTES + 1) + distance.sum(axis=1)
        n = min(n, len(self))
        if n <= 0:
            return ()
        chosen = np.flatnonzero(key <= np.partition(key, n - 1)[n - 1])
        chosen = chosen[np.argsort(key[chosen], kind="stable")][:n]
        return tuple(
            Neighbour(self._digests[i], int(rank[i]), int(distance[i, 0]), int(distance[i, 1])) for i in chosen
        )


def _ranks(distance: np.ndarray) -> np.ndarray:
    """For each value, how many are strictly smaller."""
    counts = np.bincount(distance, minlength=8 * _HALF + 1)
    return (np.cumsum(counts) - counts)[distance]


_ONES_IN_BYTE = np.array([i.bit_count() for i in range(256)], np.uint8)


def _popcount(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _ONES_IN_BYTE[words.view(np.uint8)].reshape(*words.shape, 8).sum(axis=-1, dtype=np.uint8)
