"""Unit labels: which rows of which tensors carry the same hidden unit, recorded while a network runs on example inputs.

Every row of every axis of every weight has a number. The result of an operation is labelled with the numbers of the
rows that it came from; where two labels are combined, their numbers are joined. Each connected component is one unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

NO_UNIT = -1
"""The label of entries that belong to no unit: batches, positions, pixels."""

Label = torch.Tensor
"""Numbers `[…]` with the axes of the tensor that they label: 1 long where they do not vary along an axis."""


@dataclass(eq=False)
class UnitLabels:
    """The numbers given so far, and the relations between them.

    Attributes:
        count: Numbers given so far.
        edges: Pairs of numbers that are one unit.
        fixed: Numbers of units that cannot be removed, with the reason.
    """

    count: int = 0
    edges: list[np.ndarray] = field(default_factory=list)
    fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def new_labels(self, length: int) -> torch.Tensor:
        """New numbers `[length]`."""
        self.count += length
        return torch.arange(self.count - length, self.count)

    def fix(self, label: Label | None, why: str) -> None:
        """Record that these units cannot be removed."""
        if label is not None:
            numbers = np.unique(label.numpy())
            self.fixed.append((numbers[numbers != NO_UNIT], why))

    def join(self, a: Label | None, b: Label | None) -> Label | None:
        """A label of both of two labels of one tensor; numbers at the same place become one unit."""
        if a is None or b is None:
            return b if a is None else a
        a, b = torch.broadcast_tensors(a, b)
        both = (a != NO_UNIT) & (b != NO_UNIT) & (a != b)
        if both.any():
            self.edges.append(np.unique(torch.stack([a[both], b[both]], 1).numpy(), axis=0))
        return torch.where(a == NO_UNIT, b, a)

    def collapse(self, label: Label | None, axes: Iterable[int]) -> Label | None:
        """The label made one long on some axes: units that vary along them become one unit."""
        if label is None:
            return None
        for axis in axes:
            if label.shape[axis] > 1:
                first = label.amax(axis, keepdim=True)
                self.join(label, first.expand_as(label))
                label = first
        return label

    def collapse_or_fix(self, label: Label, axis: int, why: str) -> Label:
        """Collapse an axis that is not sliced with the units, or fix units that vary along no other."""
        if any(varies(label, a) for a in range(label.ndim) if a != axis % label.ndim):
            found = self.collapse(label, [axis])
            assert found is not None
            return found
        self.fix(label, why)
        return label

    def connected_units(self) -> tuple[np.ndarray, dict[int, str]]:
        """The unit of every number `[count]`, and by unit why it cannot be removed."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate([*self.edges, np.zeros((0, 2), np.int64)])
        graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(self.count, self.count))
        unit = connected_components(graph, directed=False)[1]
        why: dict[int, str] = {}
        for numbers, reason in self.fixed:
            for u in np.unique(unit[numbers]):
                why.setdefault(int(u), reason)
        return unit, why


def varies(label: Label | None, axis: int) -> bool:
    """Whether a label is longer than one along an axis."""
    return label is not None and label.shape[axis] > 1


def reshape_label(label: Label | None, old: Sequence[int], new: Sequence[int]) -> Label | None:
    """The label of a reshaped tensor; numbers that repeat along a new axis (`[batch, heads]`) are dropped there."""
    if label is None:
        return None
    axes: list[tuple[list[int], list[int]]] = list(_matched(old, new))
    varying = [max((label.shape[a] for a in before), default=1) > 1 for before, _ in axes]
    middle: list[int] = []
    for (before, _), varies_here in zip(axes, varying, strict=True):
        middle += [old[a] if varies_here else 1 for a in before]
    label = label.expand(middle)
    target = [
        new[a] if varies_here else 1 for (_, after), varies_here in zip(axes, varying, strict=True) for a in after
    ]
    label = label.reshape(target)
    for (_, after), varies_here in zip(axes, varying, strict=True):
        if varies_here and len([a for a in after if new[a] > 1]) > 1:
            label = _split(label, after)
    return label


def _split(label: Label, axes: Sequence[int]) -> Label:
    """The label of rows that now lie on several axes."""
    long = [a for a in axes if label.shape[a] > 1]
    for axis in list(long):
        first = label.narrow(axis, 0, 1)
        if len(long) > 1 and bool((label == first).all()):
            label = first
            long.remove(axis)
    return label


def _matched(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Runs of old axes that became runs of new ones, by equal products."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after, p, q = [], [], 1, 1
        if i < len(old):
            before, p, i = [i], old[i], i + 1
        if j < len(new):
            after, q, j = [j], new[j], j + 1
        while p != q:
            if p < q:
                before, p, i = [*before, i], p * old[i], i + 1
            else:
                after, q, j = [*after, j], q * new[j], j + 1
        yield before, after
