"""Tensors as rows of one length, and tensors gathered from rows of others."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.kinship.weights.order.pair_reader import finite

NUMBERS = 64
"""Least entries of a long row that are compared, enough to distinguish a million rows."""

FEW = 16
"""Rows up to which each is read by itself."""

SLICE = 1 << 18
"""Entries that are decoded at once where few of them are wanted."""

SHORTEST = 8
"""Least length of a row that is searched."""


@dataclass(frozen=True, eq=False)
class TensorRows:
    """A tensor as rows of one length.

    Attributes:
        tensor: The tensor.
        lead: Axes that number the rows; the others, one after the other, make a row.
        order: The order in which the axes are taken.
    """

    tensor: Tensor
    lead: int
    order: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether axes are taken in another order than they are stored in."""
        return self.order != tuple(range(len(self.order)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths in this order."""
        return tuple(self.tensor.shape[i] for i in self.order)

    @property
    def count(self) -> int:
        """Number of rows."""
        return math.prod(self.shape[: self.lead])

    @property
    def length(self) -> int:
        """Numbers of a row."""
        return math.prod(self.shape[self.lead :])

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Some or all rows, `[rows, length]`, non-finite entries zero."""
        if rows is None or not len(rows):
            return _whole(self) if rows is None else np.zeros((0, self.length), np.float32)
        if self.order[0]:  # rows run across the slices in which the tensor is stored
            return _whole(self)[rows]
        each = self.count // self.shape[0]
        if len(rows) <= FEW:
            return np.concatenate([self._stretch(r // each, r // each + 1)[[r % each]] for r in rows.tolist()])
        first = int(rows.min()) // each
        return self._stretch(first, int(rows.max()) // each + 1)[rows - first * each]

    def _stretch(self, first: int, last: int) -> np.ndarray:
        """The rows of some stored slices."""
        return finite(self.tensor.rows(first, last)).transpose(self.order).reshape(-1, self.length)

    def subsampled(self) -> np.ndarray:
        """Evenly spaced entries of every row, `[rows, at most 2 NUMBERS]`; reads slice by slice."""
        step, stored = max(1, self.length // NUMBERS), self.tensor.shape[0]
        if len(self.order) == 2 and self.order[0]:
            return np.concatenate([finite(self.tensor.rows(k, k + 1)) for k in range(0, stored, step)]).T
        if self.order[0]:
            return _whole(self)[:, ::step]
        several = max(1, SLICE // max(1, self.tensor.size // stored))
        slices = (self.tensor.rows(k, min(k + several, stored)) for k in range(0, stored, several))
        return np.concatenate(
            [finite(x.transpose(self.order).reshape(-1, self.length)[:, ::step].copy()) for x in slices]
        )


@lru_cache(maxsize=2)
def _whole(rows: TensorRows) -> np.ndarray:
    return finite(rows.tensor.array()).transpose(rows.order).reshape(rows.count, rows.length)


@dataclass(frozen=True, eq=False)
class GatheredTensor:
    """A tensor of the reference, made of the target's rows.

    Attributes:
        view: The reference's tensor as rows.
        sources: The target's tensors as rows.
        source: Which of them each row comes from.
        row: Which row of it.
    """

    view: TensorRows
    sources: tuple[TensorRows, ...]
    source: np.ndarray
    row: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the target's tensors that it is made of."""
        return tuple(s.tensor.name for s in self.sources)

    @property
    def whole(self) -> bool:
        """Whether it is one tensor as it stands, perhaps under another name."""
        same = len(self.sources) == 1 and self.sources[0].order == self.view.order
        rows = self.view.count == self.sources[0].count and np.array_equal(self.row, np.arange(len(self.row)))
        return same and rows

    def tensor(self, name: str) -> Tensor:
        """The tensor under the reference's name; rows are gathered when needed."""
        shape = tuple(self.view.tensor.shape)
        make = (
            self._rows
            if self.view.lead >= 1 and not self.view.transposed
            else partial(sliced, partial(_everything, self))
        )
        return Tensor(name, "F32", shape, RowStorage(make, shape))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        each = self.view.count // self.view.tensor.shape[0]
        return self.gather(np.arange(start * each, stop * each)).reshape(stop - start, *self.view.tensor.shape[1:])

    def gather(self, wanted: np.ndarray) -> np.ndarray:
        """Some rows, read from their sources."""
        out = np.empty((len(wanted), self.view.length), np.float32)
        for k, source in enumerate(self.sources):
            own = self.source[wanted] == k
            if own.any():
                out[own] = source.read(self.row[wanted[own]])
        return out


@lru_cache(maxsize=2)
def _everything(g: GatheredTensor) -> np.ndarray:
    x = g.gather(np.arange(g.view.count)).reshape(g.view.shape)
    return np.ascontiguousarray(x.transpose(np.argsort(g.view.order)))


@dataclass(eq=False)
class RowIndex:
    """The rows of the target's matrices, by length, as directions of few numbers."""

    tensors: Mapping[str, Tensor]
    _sketches: dict[tuple[str, int, tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    _forms: dict[int, list[TensorRows]] = field(default_factory=dict)

    def views_of_length(self, length: int) -> list[TensorRows]:
        """All row views of the target's tensors with rows of this length."""
        if length not in self._forms:
            every = (f for t in self.tensors.values() for f in row_views(t))
            self._forms[length] = [f for f in every if f.length == length]
        return self._forms[length]

    def sketch(self, rows: TensorRows) -> np.ndarray:
        """Rows as directions of few numbers, cached."""
        key = rows.tensor.name, rows.lead, rows.order
        if key not in self._sketches:
            self._sketches[key] = normal(rows.subsampled())
        return self._sketches[key]


def row_views(tensor: Tensor) -> Iterator[TensorRows]:
    """A tensor as rows: cut behind each axis, or along any one axis; as stored first."""
    axes = tuple(range(len(tensor.shape)))
    stored = ((lead, axes) for lead in axes[1:])
    along = ((len(axes) - 1, (*(i for i in axes if i != k), k)) for k in axes[:-1] if len(axes) > 1)
    for lead, order in (*stored, *along):
        rows = TensorRows(tensor, lead, order)
        if rows.length >= SHORTEST and rows.count >= 1:
            yield rows


def directions(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced entries of each row, at norm 1."""
    return normal(rows[:, :: max(1, rows.shape[1] // NUMBERS)].astype(np.float32))


def normal(x: np.ndarray) -> np.ndarray:
    """Rows at norm 1; zero rows stay zero."""
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def sliced(whole: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    """Rows of an array that is made as a whole."""
    return whole()[start:stop]
