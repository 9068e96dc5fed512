"""A pair of models as the operations see it: tensors side by side, how much of each difference is explained yet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.grids import Grid, grid_of
from stemma.kinship.relation.kept_units import KeptUnits, kept_units, restricted
from stemma.kinship.relation.measured import NOTHING, Measured, measure
from stemma.kinship.relation.tokens import Shared, shared_tokens
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.units_of_pair import Cuts, finite, rows_to_read
from stemma.kinship.weights.residual import SLACK, rounding

ENTRIES, LEAST = 1 << 16, 32
"""Where not all entries are wanted: entries of a tensor that are read, but at least so many rows."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance")
"""Endings of what a network gathers about its data: no training step changes it."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One tensor of the parent and its counterpart in the child.

    Attributes:
        a: Name in the parent.
        b: Name in the child.
        size: Entries of the child's tensor.
        matrix: Whether it has two axes longer than one; otherwise it is a bias, a gain or a statistic.
        floor: Relative rounding error of the narrower number format.
        measured: What the two versions show; None where sizes differ and no map of kept units reconciles them.
        left: Sum of squares of the difference that no operation has explained yet.
        noise: Sum of squares that rounding may leave.
        grown: Tokens that the child has more, negative where it has fewer; they are not compared.
        holes: Entries that are no numbers (NaN, infinite) in the parent, and in the child; they are not compared.
        marks: What operations have said of it, in words.
    """

    a: str
    b: str
    size: int
    matrix: bool
    floor: float
    measured: Measured | None
    left: float
    noise: float
    grown: int = 0
    holes: tuple[int, int] = (0, 0)
    marks: tuple[str, ...] = ()

    @property
    def sums(self) -> Measured:
        """What was measured; nothing at all where sizes differ."""
        return NOTHING if self.measured is None else self.measured

    @property
    def tolerance(self) -> float:
        """Relative difference that a rewrite which changes nothing may leave."""
        return self.floor if self.floor > 1e-5 else SLACK * self.floor

    @property
    def settled(self) -> bool:
        """Whether nothing larger than rounding is left to explain."""
        return self.left <= self.noise

    @property
    def relative(self) -> float | None:
        """Norm of the whole difference over the parent's norm; None where sizes differ."""
        return None if self.measured is None else self.measured.relative

    @property
    def statistic(self) -> bool:
        """Whether it is gathered from data, not learned."""
        return self.b.endswith(STATISTICS)

    def explained(self, mark: str, left: float = 0.0, noise: float = 0.0) -> "Layer":
        """The same layer after an operation has explained some of it.

        Args:
            mark: What the operation did to it.
            left: Sum of squares that it leaves.
            noise: Sum of squares that it adds to what rounding may leave.

        Returns:
            A new layer.
        """
        return replace(self, left=left, noise=self.noise + noise, marks=(*self.marks, mark))


@dataclass(frozen=True, eq=False)
class Pair:
    """A parent and a child, tensor by tensor.

    Attributes:
        parent: The one model.
        child: The other.
        layers: Their common tensors, matrices first.
        removed: Tensors that only the parent has.
        new: Tensors that only the child has.
        kept: The parent's units that the child kept, per group that became narrower.
        whole: Whether every entry was read, not the first rows of large tensors.
        taken: Names of the operations that have explained something already, the latest first.
    """

    parent: Model
    child: Model
    layers: tuple[Layer, ...]
    removed: tuple[str, ...]
    new: tuple[str, ...]
    kept: Mapping[str, KeptUnits]
    whole: bool
    taken: tuple[str, ...] = ()
    _grids: dict[tuple[str, str], Grid | None] = field(default_factory=dict, repr=False)
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def matrices(self) -> tuple[Layer, ...]:
        """The layers with two axes longer than one."""
        return tuple(layer for layer in self.layers if layer.matrix)

    @property
    def open(self) -> tuple[Layer, ...]:
        """Layers of which something is left to explain, statistics apart."""
        return tuple(layer for layer in self.layers if not layer.settled and not layer.statistic)

    @cached_property
    def known(self) -> Structure:
        """Which axes of the parent carry which hidden units."""
        return structure(self.parent)

    def with_layers(self, changed: Mapping[str, Layer], operation: str) -> "Pair":
        """The pair after an operation.

        Args:
            changed: New layers by the child's name; all others stay.
            operation: Its name.

        Returns:
            A new pair.
        """
        layers = tuple(changed.get(layer.b, layer) for layer in self.layers)
        return replace(self, layers=layers, taken=(operation, *self.taken))

    def grid(self, model: Model, name: str) -> Grid | None:
        """The grid on which a tensor of either model lies.

        Returns:
            The grid; None where there is none.
        """
        key = model.digest, name
        if key not in self._grids:
            tensor = model.weights[name]
            rows = tensor.rows(0, _rows_to_look_at(tensor)) if tensor.shape else tensor.array()
            self._grids[key] = grid_of(finite(rows), rounding(model, name))
        return self._grids[key]

    def seen(self, what: str, look: Callable[[], Any]) -> Any:
        """What an operation saw of these two models, looked at once whatever was explained in between.

        Args:
            what: A name of it.
            look: Looks; what it returns must not depend on what was explained before.

        Returns:
            What was seen.
        """
        if what not in self._seen:
            self._seen[what] = look()
        return self._seen[what]

    @classmethod
    def of(cls, parent: Model, child: Model, pairings: Sequence[Pairing], *, whole: bool = False) -> "Pair":
        """Put two models side by side.

        Args:
            parent: The one model.
            child: The other.
            pairings: Which matrix of the parent is which of the child.
            whole: Read every entry, in slices; otherwise the first rows of large tensors.

        Returns:
            The pair.
        """
        known = structure(parent)
        cuts = Cuts(parent, child, {p.a: p for p in pairings}, ENTRIES, LEAST)
        kept = kept_units(parent, child, pairings, known)
        tokens = shared_tokens(parent, child, pairings, known)
        layers = []
        for p in pairings:
            holes = _holes(parent.weights[p.a], whole=whole), _holes(child.weights[p.b], whole=whole)
            slices = partial(cuts.slices, p.a) if whole else partial(_cut, cuts, p.a)
            measured = None if any(holes) else measure(slices)
            if measured is None:
                pieces = restricted(parent, child, p, known, kept, tokens)
                measured = None if pieces is None else measure(lambda pieces=pieces: [pieces])
            layer = _layer(parent, child, p.a, p.b, measured, matrix=True)
            layers.append(replace(layer, grown=_grown(parent, child, p, known), holes=holes))
            cuts.drop(p.a)
        layers += list(_vectors(parent, child, pairings, known, kept, tokens))
        seen_a, seen_b = {layer.a for layer in layers}, {layer.b for layer in layers}
        removed = tuple(n for n in sorted(parent.weights) if n not in seen_a)
        new = tuple(n for n in sorted(child.weights) if n not in seen_b)
        return cls(parent, child, tuple(layers), removed, new, kept, whole)

    def turned(self, pairings: Sequence[Pairing]) -> "Pair":
        """The same pair with the child taken for the parent, before any operation; most are not read again.

        Args:
            pairings: As they were given for this pair.

        Returns:
            A new pair.
        """
        if self.kept or any(layer.grown or any(layer.holes) or layer.measured is None for layer in self.layers):
            turned = tuple(Pairing(p.b, p.a, p.axes_b, p.axes_a, p.cost) for p in pairings)
            return Pair.of(self.child, self.parent, turned, whole=self.whole)
        layers = tuple(_layer(self.child, self.parent, x.b, x.a, x.sums.turned(), matrix=x.matrix) for x in self.layers)
        return Pair(self.child, self.parent, layers, self.new, self.removed, {}, self.whole, _grids=self._grids)


def _rows_to_look_at(tensor: Tensor) -> int:
    return min(tensor.shape[0], max(LEAST, (1 << 18) // max(1, tensor.size // max(1, tensor.shape[0]))))


def _holes(tensor: Tensor, *, whole: bool) -> int:
    """Entries that are no numbers: of the rows that are compared, a few at a time."""
    if not tensor.shape or not tensor.size:
        return 0
    step = max(1, (1 << 20) // max(1, tensor.size // tensor.shape[0]))
    last = tensor.shape[0] if whole else rows_to_read(tensor, ENTRIES, LEAST)
    found = 0
    for start in range(0, last, step):
        x = np.asarray(tensor.rows(start, min(start + step, last)), np.float32)
        found += 0 if finite(x) is x else int((~np.isfinite(x)).sum())
    return found


def _grown(parent: Model, child: Model, p: Pairing, known: Structure) -> int:
    """Tokens that the child's tensor has more, negative where it has fewer."""
    x, y = parent.weights[p.a].shape, child.weights[p.b].shape
    tokens = [(i, j) for i, j in zip(p.axes_a, p.axes_b, strict=True) if known.axes[p.a][i].role == "token"]
    return max((y[j] - x[i] for i, j in tokens), default=0)


def _layer(parent: Model, child: Model, a: str, b: str, measured: Measured | None, *, matrix: bool) -> Layer:
    floor = max(rounding(parent, a), rounding(child, b))
    size = child.weights[b].size
    if measured is None:
        return Layer(a, b, size, matrix, floor, None, float("inf"), 0.0)
    layer = Layer(a, b, size, matrix, floor, measured, measured.difference, 0.0)
    return replace(layer, noise=layer.tolerance**2 * measured.norm_a)


def _vectors(
    parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure, kept: Mapping[str, KeptUnits],
    tokens: Shared,
) -> Iterator[Layer]:  # fmt: skip
    """Biases, gains and statistics: of one name, or beside matrices that were paired."""
    own = set(matrices(parent)) | set(matrices(child))
    beside = {stem(p.a): stem(p.b) for p in pairings}
    taken = {b: a for a, b in beside.items()}
    for name, tensor in parent.weights.items():
        if name in own or not tensor.is_float or not tensor.size:
            continue
        layer = stem(name)
        same_name = name in child.weights and beside.get(layer, layer) == layer and taken.get(layer, layer) == layer
        other = name if same_name else beside.get(layer, "") + name.removeprefix(layer)
        if other not in child.weights or other in own or not child.weights[other].is_float:
            continue
        axes = tuple(i for i, s in enumerate(tensor.shape) if s > 1)
        axes_b = tuple(i for i, s in enumerate(child.weights[other].shape) if s > 1)
        if len(axes) != len(axes_b):
            continue
        pieces = restricted(parent, child, Pairing(name, other, axes, axes_b, 0.0), known, kept, tokens)
        measured = None
        if pieces is not None:
            x, y = (piece.reshape(-1) for piece in pieces)
            measured = measure(lambda x=x, y=y: [(x, y)])
        holes = _holes(tensor, whole=True), _holes(child.weights[other], whole=True)
        yield replace(_layer(parent, child, name, other, measured, matrix=False), holes=holes)


def _cut(cuts: Cuts, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first rows of a pair of tensors; not kept."""
    cut = cuts[name]
    cuts.drop(name)
    yield cut.a, cut.b


def stem(name: str) -> str:
    """The layer that a tensor belongs to.

    Args:
        name: Its name.

    Returns:
        The name without its last part; empty where it has only one.
    """
    return name.rsplit(".", 1)[0] if "." in name else ""
