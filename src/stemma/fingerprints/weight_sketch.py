"""Weight sketch: a few kilobytes to find and recognise related models without their files."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import QUANTILES, Features, features, long_axes, matrices
from stemma.types import Fingerprint, Spec

CODE = 1024
"""Bits of each of the two codes."""

ENTRIES = 1 << 20
"""Leading entries of a tensor that the order-dependent code uses."""


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
        sums, content = np.zeros(CODE), np.zeros((0, 2 * QUANTILES))
        for t in tensors:
            sums += self._order_sums(t)
        table = np.array([_content(features(t.cut()), t) for t in tensors]) if tensors else content
        units, owners = self._units(model, sorted(tensors, key=_key))
        bits = np.packbits(np.concatenate([sums > 0, self._content_code(table, tensors)]))
        return Fingerprint(model.digest, probes, self.spec, {"bits": bits, "units": units, "owners": owners})

    def _order_sums(self, t: Tensor) -> np.ndarray:
        """Hash entries by the sum of their indices' hashes: an axis is identified by its length, not its position."""
        rows = max(1, min(t.readable, ENTRIES // max(1, t.size // t.shape[0])))
        x = _rescaled(t.rows(0, rows)).astype(np.float32)
        for axis in long_axes(t.shape):
            rms = np.sqrt(np.mean(x * x, axis=tuple(i for i in range(x.ndim) if i != axis), keepdims=True))
            x = x / np.where(rms > 0, rms, 1)
        bucket, sign = self._hashed(t.shape, x.shape, CODE, 0)
        return np.bincount(bucket.reshape(-1), ((x - x.mean()) * sign).reshape(-1), CODE)

    def _content_code(self, table: np.ndarray, tensors: list[Tensor]) -> np.ndarray:
        """Quantised random projections; each bit uses one class of sizes, so a new size changes few bits."""
        classes: dict[tuple[int, ...], list[np.ndarray]] = {}
        for t, row in zip(tensors, table, strict=True):
            classes.setdefault(tuple(sorted(t.shape[i] for i in long_axes(t.shape))), []).append(row)
        code, rank = np.zeros(CODE, bool), np.full(CODE, np.inf)
        for sizes, rows in classes.items():
            generator = np.random.default_rng([self.seed, *sizes])
            draw = generator.random(CODE)
            total = np.zeros(CODE)
            for half in range(2):
                part = np.sum(rows, axis=0)[half * QUANTILES : (half + 1) * QUANTILES]
                at = slice(half * CODE // 2, (half + 1) * CODE // 2)
                total[at] = generator.standard_normal((CODE // 2, QUANTILES)) @ part
            cells = np.floor(total / (self.cell * np.sqrt(len(rows))) + generator.random(CODE)).astype(int) % 2 == 1
            code, rank = np.where(draw < rank, cells, code), np.minimum(rank, draw)
        return code

    def _units(self, model: Model, tensors: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Projected leading units of hidden axes, `int8 [axes, units, width]`, and their owners, `int64 [axes, 4]`."""
        from stemma.architectures.unit_groups import structure

        known = structure(model).axes
        units = np.zeros((self.axes, self.units, self.width), np.int8)
        owners = np.zeros((self.axes, 4), np.int64)
        kept = 0
        for t in tensors:
            label = next((k for k, x in enumerate(known.get(t.name, ())) if x.hidden and x.kind != "head"), None)
            if kept == self.axes or label is None:
                continue
            u = self._projected(t, label)
            units[kept, : len(u)] = u
            other_sizes = sorted(s for i, s in enumerate(t.shape) if i != label and s > 1)
            owners[kept] = [len(u), t.shape[label], zlib.crc32(repr(other_sizes).encode()), zlib.crc32(t.name.encode())]
            kept += 1
        return units, owners

    def _projected(self, t: Tensor, axis: int) -> np.ndarray:
        """The first units of an axis, each hashed to `width` 8-bit numbers, independent of the order of other axes."""
        rows = max(1, min(t.readable, ENTRIES // max(1, t.size // t.shape[0])))
        rows = min(rows, self.units) if axis == 0 else rows
        x = _rescaled(t.rows(0, rows)).astype(np.float32)
        x = np.moveaxis(x, axis, 0)[: self.units]
        shape = [t.shape[axis], *(s for i, s in enumerate(t.shape) if i != axis)]
        bucket, sign = self._hashed(shape, x.shape, self.width, 1)
        x = (x * sign).reshape(len(x), -1)
        where = np.broadcast_to(bucket, (1, *bucket.shape[1:])).reshape(-1)
        out = np.stack([np.bincount(where, row, self.width) for row in x])
        top = np.abs(out).max(axis=1, keepdims=True)
        return np.rint(out / np.where(top > 0, top, 1) * 127).astype(np.int8)

    def _hashed(
        self, lengths: Sequence[int], cut: Sequence[int], buckets: int, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and sign of every entry from its indices; an axis is identified by its length, not its position."""
        bucket, sign = np.zeros((1,) * len(cut), np.int64), np.ones((1,) * len(cut), np.float32)
        for axis in range(first, len(cut)):
            if lengths[axis] == 1:
                continue
            generator = np.random.default_rng([self.seed, lengths[axis]])
            across = [1] * len(cut)
            across[axis] = cut[axis]
            bucket = bucket + generator.integers(0, buckets, lengths[axis])[: cut[axis]].reshape(across)
            sign = sign * (generator.integers(0, 2, lengths[axis])[: cut[axis]] * 2 - 1).reshape(across)
        full = (1, *cut[1:]) if first else tuple(cut)
        return np.broadcast_to(bucket % buckets, full), sign


def _key(t: Tensor) -> tuple[int, tuple[int, ...], str]:
    return -t.size, t.shape, t.name


def _content(f: Features, t: Tensor) -> np.ndarray:
    """Sorted profiles as stored, and sorted entries after scales of units are normalised away."""
    profile = np.concatenate([_quantiles(p, QUANTILES // len(f.profiles)) for p in f.profiles])
    profile = np.pad(profile, (0, QUANTILES - len(profile)))
    if t.size > ENTRIES or t.leading is not None:
        return np.concatenate([profile, profile[::-1]])
    x = _rescaled(t.array()).reshape(t.shape[0], -1)
    for _ in range(8):
        for axis in (0, 1):
            rms = np.sqrt(np.mean(x * x, axis=axis, keepdims=True))
            x = x / np.where(rms > 0, rms, 1)
    return np.concatenate([profile, _quantiles(x.reshape(-1), QUANTILES) / 4])


def _rescaled(x: np.ndarray) -> np.ndarray:
    """A tensor scaled by a power of two to at most one, in float64; non-finite entries become zero."""
    x = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.ldexp(x, -int(np.frexp(np.abs(x).max(initial=0.0))[1]))


def _quantiles(x: np.ndarray, count: int) -> np.ndarray:
    x = np.sort(x)
    return x[np.linspace(0, len(x) - 1, count).astype(int)] if len(x) else np.zeros(count)
