"""Weight sketch: a few kilobytes to find and recognise related models without their files."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.read_together import is_small, small_tensors
from stemma.checkpoints.tensor import Tensor, decode
from stemma.fingerprints.order_statistics import quantiles
from stemma.fingerprints.room import Room
from stemma.fingerprints.tensor_content import QUANTILES, features, long_axes, matrices, stacked_profiles
from stemma.types import Fingerprint, Spec

CODE = 1024
"""Bits of each of the two codes, a power of two."""

ENTRIES = 1 << 20
"""Leading entries of a tensor that the order-dependent code uses."""

ROOM = Room()
"""Memory of the sketch's own arrays, used again for every tensor."""


@dataclass(frozen=True)
class WeightSketch:
    """Two 1024-bit codes and a table of projected units; at most 32 KiB, whatever the model's size.

    `bits` holds two codes. The first (random signs, hashed into 1024 sums, one sign each) is similar for models whose
    units kept their order; the second (cells of random projections of sorted, scale-normalised contents) is similar for
    models that differ by permutations and positive scales. `units` holds, for the largest tensors, the first units of a
    hidden axis projected to a few numbers, for the test of units in place without the model. Both codes are independent
    of names and of the order of axes.
    Of a model that was read in part, both codes and the units are those of the leading rows that were read: the first
    code stays near that of the whole model, the second may not.
    Cost: one pass over the weights.

    Attributes:
        units: Units kept per axis.
        width: Projected coordinates per unit.
        axes: Axes kept.
        cell: Width of a cell of the second code, in units of normalised content.
        seed: Seed of all projections.

    Source: sign codes after Charikar 2002, cells after Datar et al. 2004; the hashed contents are this project's.
    """

    units: int = 64
    width: int = 24
    axes: int = 16
    cell: float = 0.05
    seed: int = 0

    name = "weight-sketch"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(self, model: Model, probes: None = None) -> Fingerprint:
        """Sketch a model.

        Args:
            model: Any model; one without matrices has an empty sketch.
            probes: Not used.

        Returns:
            A fingerprint with `bits` (uint8 [256]), `units` (int8 [axes, units, width]) and `owners` (int64 [axes, 4]:
            units kept, length of the axis, and checksums of the tensor's other sizes and of its name).
        """
        tensors = list(matrices(model).values())
        sums, contents = np.zeros(CODE), dict[tuple[int, ...], tuple[np.ndarray, int]]()
        for alike in _alike(tensors):
            shape, x = alike[0].shape, _stacked(alike)
            rescaled = _rescaled(x, ROOM)
            sizes = tuple(sorted(shape[i] for i in long_axes(shape)))
            total, count = contents.get(sizes, (np.zeros(2 * QUANTILES), 0))
            contents[sizes] = total + _content(alike, x, rescaled), count + len(alike)
            sums += self._order_sums(shape, rescaled)
        units, owners = self._units(model, sorted(tensors, key=_key))
        bits = np.packbits(np.concatenate([sums > 0, self._content_code(contents)]))
        return Fingerprint(model.digest, probes, self.spec, {"bits": bits, "units": units, "owners": owners})

    def _order_sums(self, shape: tuple[int, ...], rescaled: np.ndarray) -> np.ndarray:
        """Hash entries by the sum of their indices' hashes: an axis is identified by its length, not its position.

        Args:
            shape: Of each tensor.
            rescaled: Their entries, which are overwritten.

        Returns:
            Their sums together, `[CODE]`.
        """
        x = rescaled if rescaled.dtype == np.float32 else rescaled.astype(np.float32)
        squares = ROOM.array("squares", x.shape, np.float32)
        for axis in long_axes(shape):
            np.multiply(x, x, out=squares)
            rms = np.sqrt(np.mean(squares, axis=tuple(i for i in range(1, x.ndim) if i != axis + 1), keepdims=True))
            x /= np.where(rms > 0, rms, 1)
        x -= x.reshape(len(x), -1).mean(axis=1).reshape(-1, *(1,) * len(shape))
        bucket = self._signed(x, shape, CODE, 1)
        if len(x) > 1:
            entries = x.sum(axis=0, dtype=np.float64)
        else:
            entries = ROOM.array("wide", x.shape[1:], np.float64)
            entries[...] = x[0]
        return np.bincount(bucket.reshape(-1), entries.reshape(-1), CODE)

    def _content_code(self, contents: Mapping[tuple[int, ...], tuple[np.ndarray, int]]) -> np.ndarray:
        """Quantised random projections; each bit uses one class of sizes, so a new size changes few bits."""
        code, rank = np.zeros(CODE, bool), np.full(CODE, np.inf)
        for sizes, (total, count) in contents.items():
            draw, projections, offsets = _projections(self.seed, sizes)
            sums = np.concatenate([p @ total[i * QUANTILES :][:QUANTILES] for i, p in enumerate(projections)])
            cells = np.floor(sums / (self.cell * np.sqrt(count)) + offsets).astype(int) % 2 == 1
            code, rank = np.where(draw < rank, cells, code), np.minimum(rank, draw)
        return code

    def _units(self, model: Model, tensors: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Projected leading units of hidden axes, `int8 [axes, units, width]`, and their owners, `int64 [axes, 4]`."""
        from stemma.architectures.unit_groups import structure

        known, seen = structure(model).axes, dict[int, int | None]()
        units = np.zeros((self.axes, self.units, self.width), np.int8)
        owners = np.zeros((self.axes, 4), np.int64)
        kept = 0
        for t in tensors:
            if kept == self.axes:
                break
            labels = known.get(t.name, ())
            if id(labels) not in seen:  # tensors of one shape often share theirs
                seen[id(labels)] = next((k for k, x in enumerate(labels) if x.hidden and x.kind != "head"), None)
            label = seen[id(labels)]
            if label is None:
                continue
            u = self._projected(t, label)
            units[kept, : len(u)] = u
            other_sizes = sorted(s for i, s in enumerate(t.shape) if i != label and s > 1)
            owners[kept] = [len(u), t.shape[label], zlib.crc32(repr(other_sizes).encode()), zlib.crc32(t.name.encode())]
            kept += 1
        return units, owners

    def _projected(self, t: Tensor, axis: int) -> np.ndarray:
        """The first units of an axis, each hashed to `width` 8-bit numbers, independent of the order of other axes."""
        rows = _leading_rows(t)
        rows = min(rows, self.units) if axis == 0 else rows
        x = _rescaled(t.rows(0, rows)[None], ROOM)[0].astype(np.float32, copy=False)
        x = np.moveaxis(x, axis, 0)[: self.units].copy()
        shape = (t.shape[axis], *(s for i, s in enumerate(t.shape) if i != axis))
        where = self._signed(x, shape, self.width, 0).reshape(-1)
        where = (np.arange(len(x))[:, None] * self.width + where).reshape(-1)
        out = np.bincount(where, x.reshape(-1), len(x) * self.width).reshape(len(x), self.width)
        top = np.abs(out).max(axis=1, keepdims=True)
        return np.rint(out / np.where(top > 0, top, 1) * 127).astype(np.int8)

    def _signed(self, x: np.ndarray, lengths: tuple[int, ...], buckets: int, skipped: int) -> np.ndarray:
        """The bucket of an entry by its indices; entries are multiplied by the signs of the indices in place.

        Args:
            x: Entries; the first axis has no part in it.
            lengths: Full lengths of the axes.
            buckets: How many there are.
            skipped: How many axes `x` has more than there are lengths.

        Returns:
            The sums of the indices' hashes modulo the number of buckets, `[*x.shape[1:]]`; valid until the next call.
        """
        cut = x.shape[1:]
        bucket = ROOM.array("buckets", cut, np.int64)
        bucket[...] = 0
        for k, n in enumerate(cut):
            length = lengths[k if skipped else k + 1]
            if length > 1:
                across = [n if i == k else 1 for i in range(len(cut))]
                hashes, signs = _hashes(self.seed, length, buckets)
                bucket += hashes[:n].reshape(across)
                x *= signs[:n].reshape(across)
        if buckets & (buckets - 1):
            return np.remainder(bucket, buckets, out=bucket)
        return np.bitwise_and(bucket, buckets - 1, out=bucket)


@lru_cache(maxsize=512)
def _hashes(seed: int, length: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and sign of every index of an axis; an axis is identified by its length, not its position."""
    generator = np.random.default_rng([seed, length])
    return generator.integers(0, buckets, length), (generator.integers(0, 2, length) * 2 - 1).astype(np.float32)


@lru_cache(maxsize=64)
def _projections(seed: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Of one class of sizes: the priority of each bit, the projections of both halves, and offsets of the cells."""
    generator = np.random.default_rng([seed, *sizes])
    draw = generator.random(CODE)
    projections = [generator.standard_normal((CODE // 2, QUANTILES)) for _ in range(2)]
    return draw, projections, generator.random(CODE)


def _alike(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one shape and dtype, at most `ENTRIES` entries together."""
    groups: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.dtype, t.shape), []).append(t)
    for group in groups.values():
        step = max(1, ENTRIES // group[0].size) if is_small(group[0]) else 1
        yield from (group[i : i + step] for i in range(0, len(group), step))


def _stacked(alike: Sequence[Tensor]) -> np.ndarray:
    """The entries of tensors of one shape, the leading ones of a large tensor: `[tensors, *shape]`."""
    first = alike[0]
    if len(alike) == 1:
        return first.rows(0, _leading_rows(first))[None]
    raw = np.empty((len(alike), first.nbytes), np.uint8)
    for i, part in small_tensors(alike):
        raw[i] = part
    return decode(raw.reshape(-1), first.dtype).reshape(len(alike), *first.shape)


def _leading_rows(t: Tensor) -> int:
    return max(1, min(t.readable, ENTRIES // max(1, t.size // t.shape[0])))


def _key(t: Tensor) -> tuple[int, tuple[int, ...], str]:
    return -t.size, t.shape, t.name


def _content(alike: Sequence[Tensor], stack: np.ndarray, rescaled: np.ndarray) -> np.ndarray:
    """Sorted profiles as stored, and sorted entries after scales of units are normalised away; summed over tensors."""
    shape, cut = alike[0].shape, alike[0].cut()
    large = alike[0].size > ENTRIES or alike[0].leading is not None
    profiles = [p[None] for p in features(cut, entries=False).profiles] if large else stacked_profiles(stack, ROOM)
    number = QUANTILES // len(profiles)
    profile = np.concatenate([_evenly(p, number) for p in profiles], axis=1).sum(axis=0)
    profile = np.pad(profile, (0, QUANTILES - len(profile)))
    if large:
        return np.concatenate([profile, profile[::-1]])
    x = ROOM.array("wide", (len(stack), shape[0], alike[0].size // shape[0]), np.float64)
    x[...] = rescaled.reshape(x.shape)
    squares = np.multiply(x, x, out=ROOM.array("squares", x.shape, np.float64))
    rows, columns = np.ones(x.shape[:2]), np.ones((len(x), x.shape[2]))
    for _ in range(8):  # squared scales, so that the entries are multiplied only once
        mean = columns * np.matmul(rows[:, None], squares)[:, 0] / shape[0]
        columns = columns / np.where(mean > 0, mean, 1)
        mean = rows * np.matmul(squares, columns[:, :, None])[:, :, 0] / x.shape[2]
        rows = rows / np.where(mean > 0, mean, 1)
    x *= np.sqrt(rows)[:, :, None]
    x *= np.sqrt(columns)[:, None]
    return np.concatenate([profile, quantiles(x.reshape(len(x), -1), QUANTILES, ROOM).sum(axis=0) / 4])


def _evenly(ordered: np.ndarray, count: int) -> np.ndarray:
    """Evenly spaced entries of sorted rows."""
    return ordered[:, np.linspace(0, ordered.shape[1] - 1, count).astype(int)]


def _rescaled(stack: np.ndarray, room: Room) -> np.ndarray:
    """Tensors each scaled by a power of two to at most one, narrow floats in float32; non-finite entries are zero.

    Args:
        stack: The tensors, `[tensors, …]`.
        room: Memory for the answer.

    Returns:
        The tensors; the caller may change them, and keeps them until it asks for the next.
    """
    x = stack if stack.dtype.kind == "f" else stack.astype(np.float64)
    out = room.array("rescaled", x.shape, x.dtype)
    flat = np.abs(x, out=out).reshape(len(x), -1).max(axis=1, initial=0.0)
    if not np.isfinite(flat).all():
        x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        flat = np.abs(x, out=out).reshape(len(x), -1).max(axis=1, initial=0.0)
    exponents = -np.frexp(flat)[1]
    if np.abs(exponents).max(initial=0) < 100:
        scales = np.ldexp(x.dtype.type(1), exponents).reshape(-1, *(1,) * (x.ndim - 1))
        return np.multiply(x, scales, out=out)
    return np.ldexp(x.astype(np.float64), exponents.reshape(-1, *(1,) * (x.ndim - 1)))
