"""A few kilobytes of a model's weights: enough to find its relatives, and to recognise them when the file is gone."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from stemma.fingerprints.tensor_content import QUANTILES, Features, features, long_axes, matrices
from stemma.models.model import Model, Tensor
from stemma.types import Fingerprint, Spec

CODE = 1024
"""Bits of each of the two codes."""

ENTRIES = 1 << 20
"""Leading entries of a tensor that the order-dependent code looks at."""


@dataclass(frozen=True)
class WeightSketch:
    """Two 1024-bit codes and a table of projected units; at most 32 KiB, whatever the model's size.

    `bits` holds two codes. The first (random signs, hashed into 1024 sums, one sign each) is near for models whose
    units kept their order; the second (cells of random projections of sorted, scale-normalised contents) is near for
    models that differ by permutations and positive scales. `units` holds, for the largest tensors, the first units
    of each outer axis projected to a few numbers, for the test of units in place when the model itself is gone.
    Neither names nor the order of axes matter to either code.
    Cost: one pass over the weights.

    Attributes:
        units: Units kept per axis.
        width: Projected coordinates per unit.
        axes: Axes kept.
        cell: Width of a cell of the second code, in units of normalised content.
        seed: Seed of all projections.

    Source: sign codes after Charikar 2002, cells after Datar et al. 2004; the contents hashed are this project's.
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
            A fingerprint with `bits` (uint8 [256]), `units` (int8 [axes, units, width]) and `shapes` (int32 [axes, 4]:
            units kept, entries, first axis and rank of the tensors of `units`).
        """
        tensors = list(matrices(model).values())
        sums, content = np.zeros(CODE), np.zeros((0, 2 * QUANTILES))
        for t in tensors:
            sums += self._order_sums(t)
        table = np.array([_content(features(t), t) for t in tensors]) if tensors else content
        units, shapes = self._units(sorted(tensors, key=_key)[: self.axes])
        bits = np.packbits(np.concatenate([sums > 0, self._content_code(table, tensors)]))
        return Fingerprint(model.digest, probes, self.spec, {"bits": bits, "units": units, "shapes": shapes})

    def _order_sums(self, t: Tensor) -> np.ndarray:
        """Hash entries by the sum of their indices' hashes: an axis counts by its length, not by its place."""
        rows = max(1, min(t.shape[0], ENTRIES // max(1, t.size // t.shape[0])))
        x = np.nan_to_num(t.rows(0, rows).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        bucket, sign = np.zeros((1,) * x.ndim, np.int64), np.ones((1,) * x.ndim, np.float32)
        for axis in long_axes(t.shape):
            generator = np.random.default_rng([self.seed, t.shape[axis]])
            across = [1] * x.ndim
            across[axis] = x.shape[axis]
            bucket = bucket + generator.integers(0, CODE, t.shape[axis])[: x.shape[axis]].reshape(across)
            sign = sign * (generator.integers(0, 2, t.shape[axis])[: x.shape[axis]] * 2 - 1).reshape(across)
            rms = np.sqrt(np.mean(x * x, axis=tuple(i for i in range(x.ndim) if i != axis), keepdims=True))
            x = x / np.where(rms > 0, rms, 1)
        x = (x - x.mean()) * sign
        return np.bincount((bucket % CODE).reshape(-1), x.reshape(-1), CODE)

    def _content_code(self, table: np.ndarray, tensors: list[Tensor]) -> np.ndarray:
        """Cells of random projections; each bit looks at one class of sizes, so that a new size spoils few bits.

        Returns:
            Booleans, half of them from contents as stored, half from contents without scales.
        """
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

    def _units(self, tensors: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        units = np.zeros((self.axes, self.units, self.width), np.int8)
        shapes = np.zeros((self.axes, 4), np.int32)
        for i, (x, t) in enumerate(self._leading(tensors)):
            u = x / np.where((n := np.linalg.norm(x, axis=1)) > 0, n, 1)[:, None]
            generator = np.random.default_rng([self.seed, x.shape[1]])
            sign = generator.integers(0, 2, x.shape[1], dtype=np.int8) * 2 - 1
            padded = np.pad(u * sign, ((0, 0), (0, -x.shape[1] % self.width)))
            projected = padded.reshape(len(u), -1, self.width).sum(axis=1)
            top = np.abs(projected).max() or 1.0
            units[i, : len(u)] = np.rint(projected / top * 127).astype(np.int8)
            shapes[i] = [len(u), t.size, t.shape[0], len(t.shape)]
        return units, shapes

    def _leading(self, tensors: list[Tensor]) -> Iterator[tuple[np.ndarray, Tensor]]:
        for t in tensors:
            rows = t.rows(0, min(self.units, t.shape[0])).astype(np.float32)
            yield np.nan_to_num(rows.reshape(len(rows), -1), nan=0.0, posinf=0.0, neginf=0.0), t


def _key(t: Tensor) -> tuple[int, tuple[int, ...], str]:
    return -t.size, t.shape, t.name


def _content(f: Features, t: Tensor) -> np.ndarray:
    """Sorted profiles as stored, and sorted entries after scales of units are normalised away."""
    plain = np.concatenate([_quantiles(p, QUANTILES // len(f.profiles)) for p in f.profiles])
    plain = np.pad(plain, (0, QUANTILES - len(plain)))
    if t.size > ENTRIES:
        return np.concatenate([plain, plain[::-1]])
    x = t.array().astype(np.float64).reshape(t.shape[0], -1)
    x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    for _ in range(8):
        for axis in (0, 1):
            rms = np.sqrt(np.mean(x * x, axis=axis, keepdims=True))
            x = x / np.where(rms > 0, rms, 1)
    return np.concatenate([plain, _quantiles(x.reshape(-1), QUANTILES) / 4])


def _quantiles(x: np.ndarray, count: int) -> np.ndarray:
    x = np.sort(x)
    return x[np.linspace(0, len(x) - 1, count).astype(int)] if len(x) else np.zeros(count)
