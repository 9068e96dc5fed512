"""What belongs together in a network's tensors, written by hand for each architecture, and what may be done to it.

`Units` are hidden units and the tensor axes along which they lie; `Attention`, `Norm` and `Stream` say where the parts
of a transformer lie. `permuted`, `scaled` and `turned` change arrays along such axes. Arrays are never changed in
place: each function returns a dictionary of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

SMALL = 1e-5
"""What torch's batch norm adds to a variance."""


@dataclass(frozen=True)
class Axis:
    """Where units lie in one tensor.

    Attributes:
        tensor: Its name.
        role: `write` (scaled with the unit), `read` (scaled against it), `before`, `mean`, `var` (before and inside a
            batch norm), `free` (moved along, not scaled).
        axis: Axis of the tensor.
        inner: How many neighbours on the axis belong to one unit (pixels of a flattened channel).
    """

    tensor: str
    role: str
    axis: int = 0
    inner: int = 1


@dataclass(frozen=True)
class Units:
    """A group of units that may be exchanged for one another.

    Attributes:
        name: For reports.
        axes: Everything that moves with them.
        activation: What their values go through: `relu`, `tanh`, `gelu`, `linear`; `pooled-…` where the largest of
            several is taken after it.
        stream: Whether several layers write into them.
        layer: Running number of the layer, for "one layer only".
    """

    name: str
    axes: tuple[Axis, ...]
    activation: str
    stream: bool = False
    layer: int = 0

    def size(self, arrays: Arrays) -> int:
        first = self.axes[0]
        return arrays[first.tensor].shape[first.axis] // first.inner


@dataclass(frozen=True)
class Linear:
    """A linear map in a tensor: `[out, in]`, or its transpose, or some rows of it."""

    weight: str
    bias: str | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def get(self, p: dict[str, Any]) -> Any:
        w = p[self.weight].T if self.transposed else p[self.weight]
        return w if self.rows is None else w[self.rows[0] : self.rows[1]]

    def offset(self, p: dict[str, Any]) -> Any:
        if self.bias is None or self.bias not in p:
            return None
        return p[self.bias] if self.rows is None else p[self.bias][self.rows[0] : self.rows[1]]

    def put(self, arrays: Arrays, weight: np.ndarray, offset: np.ndarray | None = None) -> None:
        """Write into a dictionary; the tensors are copied first."""
        if self.rows is None:
            new = weight
        else:
            new = np.array(arrays[self.weight].T if self.transposed else arrays[self.weight])
            new[self.rows[0] : self.rows[1]] = weight
        arrays[self.weight] = np.ascontiguousarray(new.T if self.transposed else new, np.float32)
        if offset is not None and self.bias is not None:
            whole = np.array(arrays[self.bias])
            whole[slice(*self.rows) if self.rows else slice(None)] = offset
            arrays[self.bias] = whole.astype(np.float32)


@dataclass(frozen=True)
class Attention:
    """The four maps of one attention layer."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    rotary: bool


@dataclass(frozen=True)
class Norm:
    """A norm over the stream: names of gain and offset, and the maps that read it (none where others read it too)."""

    gain: str
    offset: str | None
    readers: tuple[Linear, ...]


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm right after a map: prefixes of both."""

    norm: str
    writer: str


@dataclass(frozen=True)
class Structure:
    """Everything that a network's symmetries need.

    Attributes:
        units: Hidden units, and streams of convolutional networks.
        stream: Which norm reads the residual stream of a transformer: `rms`, `layer`, `post` (norm after the sum), or
            empty.
        gated: Pairs (up, down) of gated feed-forward layers.
        blocks: Prefixes of the layers that can be left out, in order; `{i}` is their number.
        vocabulary: Tensors and axes that run over the vocabulary.
        tied: Name of the head that equals the embedding, where there is one, and of the embedding.
    """

    units: tuple[Units, ...]
    stream: str = ""
    attentions: tuple[Attention, ...] = ()
    norms: tuple[Norm, ...] = ()
    batch_norms: tuple[BatchNorm, ...] = ()
    gated: tuple[tuple[Linear, Linear, Linear], ...] = ()
    blocks: tuple[str, ...] = ()
    vocabulary: tuple[Axis, ...] = ()
    tied: tuple[str, str] | None = None

    @property
    def hidden(self) -> tuple[Units, ...]:
        return tuple(u for u in self.units if not u.stream)

    @property
    def streams(self) -> tuple[Units, ...]:
        return tuple(u for u in self.units if u.stream)


def _present(units: Units, arrays: Arrays) -> Iterable[Axis]:
    return (a for a in units.axes if a.tensor in arrays)


def chosen(arrays: Arrays, units: Units, index: np.ndarray) -> Arrays:
    """The units at `index`, in this order, on every axis of theirs: a permutation, or fewer units."""
    out = dict(arrays)
    for a in _present(units, arrays):
        x = out[a.tensor]
        at = (index[:, None] * a.inner + np.arange(a.inner)).ravel()
        out[a.tensor] = np.ascontiguousarray(np.take(x, at, axis=a.axis))
    return out


def scaled(arrays: Arrays, units: Units, factor: np.ndarray, before: np.ndarray | None = None) -> Arrays:
    """Scale each unit, and undo it where it is read.

    Args:
        arrays: The tensors.
        units: The units.
        factor: One factor per unit, positive unless the activation is odd.
        before: One positive factor per unit before a batch norm, which takes it out again.

    Returns:
        Tensors of the same function.
    """
    out = dict(arrays)
    if before is not None:  # a variance must stay above 0 once the small number beside it is scaled as well
        variances = [arrays[a.tensor] for a in _present(units, arrays) if a.role == "var"]
        before = np.maximum.reduce([before, *(np.sqrt(1.01 * SMALL / (v + SMALL)) for v in variances)])
    for a in _present(units, arrays):
        by = {"write": factor, "read": 1 / factor}.get(a.role)
        if before is not None and a.role in ("before", "mean"):
            by = before
        if before is not None and a.role == "var":
            out[a.tensor] = (before**2 * (out[a.tensor].astype(np.float64) + SMALL) - SMALL).astype(np.float32)
        if by is not None:
            out[a.tensor] = (out[a.tensor] * spread(by, a, out[a.tensor].ndim)).astype(np.float32)
    return out


def spread(values: np.ndarray, a: Axis, ndim: int) -> np.ndarray:
    """One value per unit in a shape that multiplies a tensor along the axis."""
    shape = [1] * ndim
    shape[a.axis] = -1
    return np.repeat(values, a.inner).reshape(shape)


def turned(arrays: Arrays, units: Units, matrix: np.ndarray) -> Arrays:
    """An orthogonal map of the whole space of the units, on everything that writes them and reads them."""
    out = dict(arrays)
    for a in _present(units, arrays):
        if a.role == "free":
            continue
        x = np.moveaxis(out[a.tensor].astype(np.float64), a.axis, 0)
        out[a.tensor] = np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, x, 1), 0, a.axis), np.float32)
    return out


def unit_rows(arrays: Arrays, units: Units) -> list[np.ndarray]:
    """What each tensor says of each unit: matrices `[units, numbers]`, one per axis."""
    out = []
    for a in _present(units, arrays):
        x = np.moveaxis(np.asarray(arrays[a.tensor], np.float64), a.axis, 0)
        out.append(x.reshape(len(x) // a.inner, -1))
    return out
