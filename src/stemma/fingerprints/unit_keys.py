"""Keys of hidden units: what a model keeps of another after its units were reordered, or some of them removed."""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from stemma.architectures.structure import AxisLabel
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.types import Fingerprint, Spec

UNITS, LENGTH = 1024, 256
"""Units of an axis, and weights of a unit, that are looked at."""

TENSORS = 16
"""Tensors that are looked at."""


@dataclass(frozen=True)
class UnitKeys:
    """At most 64 keys of hidden units, each from the signs of random projections of the unit's own weights.

    A unit of a first layer reads the network's inputs, and one before the last layer feeds its outputs: these have a
    fixed order, whatever the units' own order is. So a child whose units were reordered, scaled, thinned out and
    lightly trained still has many of its parent's keys; independent networks have next to none. Of many keys those
    with the smallest hashes are kept, so that two models keep the same ones.
    Cost: a few megabytes of the weights are read.

    Attributes:
        keys: Most keys kept.
        bits: Signs per key.
        seed: Seed of the projections.

    Source: signs of random projections after Charikar 2002, smallest hashes after Broder 1997; their use for units is
    this project's.
    """

    keys: int = 64
    bits: int = 24
    seed: int = 0

    name = "unit-keys"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(self, model: Model, probes: None = None) -> Fingerprint:
        """The keys of a model.

        Args:
            model: Any model.
            probes: Not used.

        Returns:
            A fingerprint with `unit_keys` (int64, ascending; none for a model without known hidden units).
        """
        fixed, beside = ({k for place in places for k in self._single(*place)} for places in _axes(model))
        kept = sorted(fixed)[: max(self.keys // 2, self.keys - len(beside))]
        kept += sorted(beside - set(kept))[: self.keys - len(kept)]
        return Fingerprint(model.digest, probes, self.spec, {"unit_keys": np.array(sorted(kept), np.int64)})

    def _single(self, t: Tensor, axis: int) -> list[int]:
        """The keys of an axis that occur once, hashed so that their order says nothing: a key per unit.

        Args:
            t: The tensor.
            axis: Whose units are meant.

        Returns:
            The keys without those that repeat, which tell no unit from others; of a sample, of the units that it holds.
        """
        wanted = min(t.shape[0], LENGTH if axis else UNITS)
        if axis and t.readable < wanted:  # of each unit only a part was read, which has other signs than the whole
            return []
        x = np.moveaxis(t.rows(0, min(t.readable, wanted)), axis, 0)[:UNITS]
        x = x.reshape(len(x), -1)[:, :LENGTH].astype(np.float64)
        tops = np.abs(x).max(axis=1, initial=0.0)
        if not np.isfinite(tops).all():
            x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            tops = np.abs(x).max(axis=1, initial=0.0)
        others = [s for i, s in enumerate(t.shape) if i != axis and s > 1]
        x = x[tops > 0]
        signs = np.packbits(x @ _directions(self.seed, x.shape[1], self.bits) > 0, axis=1)
        start, length, raw = f"{self.version} {sorted(others)} ".encode(), signs.shape[1], signs.tobytes()
        units = (start + raw[i : i + length] for i in range(0, len(raw), length))
        hashes = b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in units])
        keys, counts = np.unique(np.frombuffer(hashes, ">i8"), return_counts=True)
        return keys[counts == 1].tolist()


@lru_cache(maxsize=64)
def _directions(seed: int, length: int, bits: int) -> np.ndarray:
    return np.random.default_rng([seed, length]).standard_normal((length, bits))


def _axes(model: Model) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    """Axes of units whose other axes have a fixed order, and those beside a residual stream; small tensors first."""
    known = structure(model).axes
    fixed, beside = list[tuple[Tensor, int]](), list[tuple[Tensor, int]]()
    seen: dict[int, tuple[list[int], list[int]]] = {}
    for name, t in matrices(model).items():
        labels = known.get(name, ())
        kinds = seen.get(id(labels)) or seen.setdefault(id(labels), _kinds(labels))
        fixed += [(t, axis) for axis in kinds[0]]
        beside += [(t, axis) for axis in kinds[1]]
    first, second = (
        heapq.nsmallest(TENSORS, of, key=lambda c: (c[0].size, c[0].shape, c[0].name)) for of in (fixed, beside)
    )
    return first, second


def _kinds(labels: Sequence[AxisLabel]) -> tuple[list[int], list[int]]:
    """Axes of units of a tensor whose other axes have a fixed order, and those beside a residual stream."""
    fixed, beside = list[int](), list[int]()
    for axis, label in enumerate(labels):
        others = [o for i, o in enumerate(labels) if i != axis]
        if label.kind not in {"unit", "stream"} or len(label.segments) > 1 or label.segments[0].block > 1:
            continue
        if not any(o.hidden for o in others):
            fixed.append(axis)
        elif label.kind == "unit" and all(not o.hidden or o.kind == "stream" for o in others):
            beside.append(axis)
    return fixed, beside
