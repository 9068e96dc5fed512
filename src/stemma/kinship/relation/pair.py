"""A pair of models for fitting operations: paired tensors, and how much of each difference is explained."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.grids import Grid
from stemma.kinship.relation.grids_of_many import grids_of
from stemma.kinship.relation.kept_units import KeptUnits, kept_units, restrict_to_common
from stemma.kinship.relation.tensor_difference import NOT_COMPARABLE, TensorDifference, tensor_difference
from stemma.kinship.relation.tokens import SharedTokens, shared_tokens
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.pair_reader import PairReader, finite, rows_to_read
from stemma.kinship.weights.residual import SLACK, rounding

ENTRIES, LEAST = 1 << 16, 32
"""Entries and least number of rows of a tensor that are read where not all entries are needed."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance")
"""Name endings of statistics that a network gathers from data; no gradient step changes them."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One tensor of the parent and its counterpart in the child.

    Attributes:
        a: Name in the parent.
        b: Name in the child.
        size: Entries of the child's tensor.
        matrix: Whether it has two axes longer than one; otherwise it is a bias, a gain or a statistic.
        floor: Relative rounding error of the narrower number format.
        measured: Difference of the two versions; None where sizes differ and no map of kept units reconciles them.
        residual: Sum of squares of the difference that no operation has explained yet.
        rounding_noise: Sum of squares that rounding may leave.
        added_tokens: Tokens that only the child has, negative for tokens that only the parent has; not compared.
        not_finite: NaN and infinite entries in the parent, and in the child; they are not compared.
        marks: Descriptions of what operations did to it.
    """

    a: str
    b: str
    size: int
    matrix: bool
    floor: float
    measured: TensorDifference | None
    residual: float
    rounding_noise: float
    added_tokens: int = 0
    not_finite: tuple[int, int] = (0, 0)
    marks: tuple[str, ...] = ()

    @property
    def sums(self) -> TensorDifference:
        """`measured`, or `NOT_COMPARABLE` where sizes differ."""
        return NOT_COMPARABLE if self.measured is None else self.measured

    @property
    def tolerance(self) -> float:
        """Relative difference that rewriting without a change may leave."""
        return self.floor if self.floor > 1e-5 else SLACK * self.floor

    @property
    def is_explained(self) -> bool:
        """Whether at most rounding is left to explain."""
        return self.residual <= self.rounding_noise

    @property
    def relative(self) -> float | None:
        """Norm of the whole difference over the parent's norm; None where sizes differ."""
        return None if self.measured is None else self.measured.relative

    @property
    def statistic(self) -> bool:
        """Whether it is a statistic of data, not a trained parameter."""
        return self.b.endswith(STATISTICS)

    def explained(self, mark: str, residual: float = 0.0, rounding_noise: float = 0.0) -> "Layer":
        """The layer after an operation, with the sum of squares that is left and what it adds to the rounding noise."""
        return replace(
            self, residual=residual, rounding_noise=self.rounding_noise + rounding_noise, marks=(*self.marks, mark)
        )


@dataclass(frozen=True, eq=False)
class Pair:
    """A parent and a child, tensor by tensor.

    Attributes:
        parent: The first model.
        child: The second model.
        layers: Their common tensors, matrices first.
        removed: Tensors that only the parent has.
        new: Tensors that only the child has.
        kept: The parent's units that the child kept, per group that became narrower.
        all_entries: Whether every entry was read, not only the first rows of large tensors.
        operations: Names of the operations that have explained something already, the latest first.
    """

    parent: Model
    child: Model
    layers: tuple[Layer, ...]
    removed: tuple[str, ...]
    new: tuple[str, ...]
    kept: Mapping[str, KeptUnits]
    all_entries: bool
    operations: tuple[str, ...] = ()
    _grids: dict[tuple[str, str], Grid | None] = field(default_factory=dict, repr=False)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def matrices(self) -> tuple[Layer, ...]:
        """The layers with two axes longer than one."""
        return tuple(layer for layer in self.layers if layer.matrix)

    @property
    def unexplained(self) -> tuple[Layer, ...]:
        """Layers with an unexplained difference, except statistics."""
        return tuple(layer for layer in self.layers if not layer.is_explained and not layer.statistic)

    @cached_property
    def structure_of_parent(self) -> Structure:
        """Which axes of the parent carry which hidden units."""
        return structure(self.parent)

    def with_layers(self, changed: Mapping[str, Layer], operation: str) -> "Pair":
        """The pair after an operation, with the changed layers by the child's name."""
        layers = tuple(changed.get(layer.b, layer) for layer in self.layers)
        return replace(self, layers=layers, operations=(operation, *self.operations))

    def grid(self, model: Model, name: str) -> Grid | None:
        """The quantisation grid on which a tensor of either model lies, or None."""
        self.find_grids(model, [name])
        return self._grids[model.digest, name]

    def find_grids(self, model: Model, names: Iterable[str]) -> None:
        """Look for the quantisation grids of several tensors of either model, which is quicker than one by one."""
        wanted = [n for n in names if (model.digest, n) not in self._grids]
        read = []
        for tensor in (model.weights[n] for n in wanted):
            read.append(finite(tensor.rows(0, _rows_for_grid(tensor)) if tensor.shape else tensor.array()))
        found = grids_of(read, [rounding(model, n) for n in wanted])
        self._grids.update(zip(((model.digest, n) for n in wanted), found, strict=True))

    def cached(self, key: str, compute: Callable[[], Any]) -> Any:
        """A value computed once for these two models; it must not depend on what was explained before."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    @classmethod
    def of(cls, parent: Model, child: Model, pairings: Sequence[Pairing], *, all_entries: bool = False) -> "Pair":
        """Compare paired tensors, by all entries (in slices) or by the first rows of large tensors."""
        known = structure(parent)
        cuts = PairReader(parent, child, {p.a: p for p in pairings}, ENTRIES, LEAST)
        kept = kept_units(parent, child, pairings, known)
        tokens = shared_tokens(parent, child, pairings, known)
        layers = []
        for p in pairings:
            not_finite = (
                _count_not_finite(parent.weights[p.a], all_entries=all_entries),
                _count_not_finite(child.weights[p.b], all_entries=all_entries),
            )
            slices = partial(cuts.slices, p.a) if all_entries else partial(_first_rows, cuts, p.a)
            measured = None if any(not_finite) else tensor_difference(slices)
            if measured is None:
                pieces = restrict_to_common(parent, child, p, known, kept, tokens)
                measured = None if pieces is None else tensor_difference(lambda pieces=pieces: [pieces])
            layer = _layer_of(parent, child, p.a, p.b, measured, matrix=True)
            layers.append(replace(layer, added_tokens=_added_tokens(parent, child, p, known), not_finite=not_finite))
            cuts.drop(p.a)
        layers += list(_vectors(parent, child, pairings, known, kept, tokens))
        seen_a, seen_b = {layer.a for layer in layers}, {layer.b for layer in layers}
        removed = tuple(n for n in sorted(parent.weights) if n not in seen_a)
        new = tuple(n for n in sorted(child.weights) if n not in seen_b)
        return cls(parent, child, tuple(layers), removed, new, kept, all_entries)

    def swapped(self, pairings: Sequence[Pairing]) -> "Pair":
        """The pair with parent and child exchanged, before any operation; most tensors are not read again."""
        if self.kept or any(
            layer.added_tokens or any(layer.not_finite) or layer.measured is None for layer in self.layers
        ):
            swapped = tuple(Pairing(p.b, p.a, p.axes_b, p.axes_a, p.cost) for p in pairings)
            return Pair.of(self.child, self.parent, swapped, all_entries=self.all_entries)
        layers = tuple(
            _layer_of(self.child, self.parent, x.b, x.a, x.sums.swapped(), matrix=x.matrix) for x in self.layers
        )
        return Pair(self.child, self.parent, layers, self.new, self.removed, {}, self.all_entries, _grids=self._grids)


def _rows_for_grid(tensor: Tensor) -> int:
    return min(tensor.readable, max(LEAST, (1 << 18) // max(1, tensor.size // max(1, tensor.shape[0]))))


def _count_not_finite(tensor: Tensor, *, all_entries: bool) -> int:
    """Number of NaN and infinite entries in the rows that are compared."""
    if not tensor.shape or not tensor.size:
        return 0
    step = max(1, (1 << 20) // max(1, tensor.size // tensor.shape[0]))
    last = tensor.readable if all_entries else rows_to_read(tensor, ENTRIES, LEAST)
    found = 0
    for start in range(0, last, step):
        x = np.asarray(tensor.rows(start, min(start + step, last)), np.float32)
        found += 0 if finite(x) is x else int((~np.isfinite(x)).sum())
    return found


def _added_tokens(parent: Model, child: Model, p: Pairing, known: Structure) -> int:
    """Tokens that only the child's tensor has; negative for tokens that only the parent's has."""
    x, y = parent.weights[p.a].shape, child.weights[p.b].shape
    tokens = [(i, j) for i, j in zip(p.axes_a, p.axes_b, strict=True) if known.axes[p.a][i].role == "token"]
    return max((y[j] - x[i] for i, j in tokens), default=0)


def _layer_of(parent: Model, child: Model, a: str, b: str, measured: TensorDifference | None, *, matrix: bool) -> Layer:
    floor = max(rounding(parent, a), rounding(child, b))
    size = child.weights[b].size
    if measured is None:
        return Layer(a, b, size, matrix, floor, None, float("inf"), 0.0)
    layer = Layer(a, b, size, matrix, floor, measured, measured.difference, 0.0)
    return replace(layer, rounding_noise=layer.tolerance**2 * measured.norm_a)


def _vectors(
    parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure, kept: Mapping[str, KeptUnits],
    tokens: SharedTokens,
) -> Iterator[Layer]:  # fmt: skip
    """Biases, gains and statistics, paired by name or by the matrices of their layers."""
    own = set(matrices(parent)) | set(matrices(child))
    beside = {layer_name(p.a): layer_name(p.b) for p in pairings}
    paired = {b: a for a, b in beside.items()}
    for name, tensor in parent.weights.items():
        if name in own or not tensor.is_float or not tensor.size:
            continue
        layer = layer_name(name)
        same_name = name in child.weights and beside.get(layer, layer) == layer and paired.get(layer, layer) == layer
        other = name if same_name else beside.get(layer, "") + name.removeprefix(layer)
        if other not in child.weights or other in own or not child.weights[other].is_float:
            continue
        axes = tuple(i for i, s in enumerate(tensor.shape) if s > 1)
        axes_b = tuple(i for i, s in enumerate(child.weights[other].shape) if s > 1)
        if len(axes) != len(axes_b):
            continue
        pieces = restrict_to_common(parent, child, Pairing(name, other, axes, axes_b, 0.0), known, kept, tokens)
        measured = None
        if pieces is not None:
            x, y = (piece.reshape(-1) for piece in pieces)
            measured = tensor_difference(lambda x=x, y=y: [(x, y)])
        not_finite = (
            _count_not_finite(tensor, all_entries=True),
            _count_not_finite(child.weights[other], all_entries=True),
        )
        yield replace(_layer_of(parent, child, name, other, measured, matrix=False), not_finite=not_finite)


def _first_rows(cuts: PairReader, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    cut = cuts[name]
    cuts.drop(name)
    yield cut.a, cut.b


def layer_name(name: str) -> str:
    """The layer of a tensor: its name without the last part; empty where it has only one."""
    return name.rsplit(".", 1)[0] if "." in name else ""
