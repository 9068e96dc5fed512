"""Candidate search: an exact scan over bit sketches, some milliseconds for 100,000 models."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stemma.errors import RegistryError
from stemma.types import Digest

SKETCH_BYTES = 256
"""Two codes of 1024 bits: one that depends on the order of units, one that no permutation or scaling changes."""

_HALF = SKETCH_BYTES // 2
_BLOCK = 4096
_WORTH_THREADS = 1 << 17
_THREADS = 4


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
    """The bit sketches of a registry in one matrix, in memory or mapped from a file.

    Unrelated models differ in about half of the bits of each code. A model whose units kept their order is near by the
    first code, a permuted or rescaled one by the second; so models are ranked by each code, and the better rank is
    used. The search is exact: every sketch is looked at.
    """

    def __init__(
        self,
        digests: Sequence[Digest] | Callable[[Sequence[int]], list[Digest | None]],
        bits: np.ndarray,
        live: int | None = None,
    ) -> None:
        """Build the index.

        Args:
            digests: One per model; or a function from rows to digests, None for a model that was removed.
            bits: `uint8 [models, 256]`.
            live: Number of models that were not removed; all unless given.

        Raises:
            RegistryError: If the shapes do not fit.
        """
        n = len(digests) if isinstance(digests, Sequence) else len(bits)
        if bits.dtype != np.uint8 or bits.shape != (n, SKETCH_BYTES):
            raise RegistryError(f"sketches must be uint8 [{n}, {SKETCH_BYTES}], got {bits.dtype} {bits.shape}")
        self._digests = digests
        bits = bits if bits.strides[-1] == 1 else np.ascontiguousarray(bits)  # rows may lie apart, as in a file
        self._words = bits.view(np.uint64)
        self._live = n if live is None else live

    def __len__(self) -> int:
        """Number of models."""
        return self._live

    def distances(self, bits: np.ndarray) -> np.ndarray:
        """Hamming distances of both codes to all models, in the order they were given in.

        Cost: one pass over 256 bytes per model, in several threads.

        Args:
            bits: `uint8 [256]`.

        Returns:
            `uint16 [n, 2]`.

        Raises:
            RegistryError: If the query is not a sketch.
        """
        if bits.dtype != np.uint8 or bits.shape != (SKETCH_BYTES,):
            raise RegistryError(f"a sketch must be uint8 [{SKETCH_BYTES}], got {bits.dtype} {bits.shape}")
        query = np.ascontiguousarray(bits).view(np.uint64)
        out = np.empty((len(self._words), 2), np.uint16)

        def scan(first: int, last: int) -> None:
            buffer = np.empty((_BLOCK, SKETCH_BYTES // 8), np.uint64)
            for start in range(first, last, _BLOCK):
                words = self._words[start : min(start + _BLOCK, last)]
                differing = np.bitwise_xor(words, query, out=buffer[: len(words)])
                ones = _popcount(differing).reshape(len(words), 2, _HALF // 8)
                # eight counts of at most 64 in each number: two are added without a carry, then all by multiplication
                pairs = ones.view(np.uint64)
                pairs = pairs[..., 0] + pairs[..., 1]
                out[start : start + len(words)] = (pairs & _EVEN) * _ONES + ((pairs >> 8) & _EVEN) * _ONES >> 48

        n = len(out)
        if n < _WORTH_THREADS:
            scan(0, n)
            return out
        step = -(-n // (_THREADS * _BLOCK)) * _BLOCK
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(scan, range(0, n, step), [min(s + step, n) for s in range(0, n, step)]))
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
        n = min(n, len(self))
        if n <= 0:
            return ()
        wanted = n
        while True:  # until enough of the nearest were not removed
            rows = _nearest_rows(distance, wanted)
            found = self._digests_of(rows.tolist())
            kept = [k for k, digest in enumerate(found) if digest is not None]
            if len(rows) == len(distance) or _has_enough(distance[rows], kept, wanted, n):
                break
            wanted *= 2
        digests, near = [Digest(str(found[k])) for k in kept], distance[rows[kept]].astype(np.int64)
        rank = np.minimum(_ranks(near[:, 0]), _ranks(near[:, 1]))
        order = sorted(range(len(near)), key=lambda k: (rank[k], near[k].sum(), digests[k]))[:n]
        return tuple(Neighbour(digests[k], int(rank[k]), int(near[k, 0]), int(near[k, 1])) for k in order)

    def _digests_of(self, at: Sequence[int]) -> Sequence[Digest | None]:
        known = self._digests
        return [known[i] for i in at] if isinstance(known, Sequence) else known(at)


def _nearest_rows(distance: np.ndarray, n: int) -> np.ndarray:
    """Rows that are among the `n` nearest by one of the codes, with all ties."""
    near = np.zeros(len(distance), bool)
    for code in distance.T:
        near |= code <= _limit(code, n)
    return np.flatnonzero(near)


def _limit(distance: np.ndarray, n: int) -> int:
    """The `n`-th smallest distance."""
    below = np.cumsum(np.bincount(distance, minlength=8 * _HALF + 1))
    return int(np.searchsorted(below, min(n, len(distance))))


def _has_enough(near: np.ndarray, kept: list[int], wanted: int, n: int) -> bool:
    """Whether the ranks of `n` models follow from these: by each code, `n` that were kept are among the nearest."""
    limits = [_limit(code, wanted) for code in near.T]
    return all(int((near[kept][:, k] <= limit).sum()) >= n for k, limit in enumerate(limits))


def _ranks(distance: np.ndarray) -> np.ndarray:
    """For each value, how many are strictly smaller."""
    counts = np.bincount(distance, minlength=8 * _HALF + 1)
    return (np.cumsum(counts) - counts)[distance]


_ONES_IN_BYTE = np.array([i.bit_count() for i in range(256)], np.uint8)
_EVEN, _ONES = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001)


def _popcount(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _ONES_IN_BYTE[words.view(np.uint8)].reshape(*words.shape, 8).sum(axis=-1, dtype=np.uint8)
