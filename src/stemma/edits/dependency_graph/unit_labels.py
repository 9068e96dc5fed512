"""Which rows of which tensors carry the same hidden unit, noted while a network runs on example inputs.

Every row of every axis of every weight has a number. What an operation computes is labelled with the numbers of the
rows that it came from; where two labels meet, the numbers are joined. What is connected in the end is one unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

ANONYMOUS = -1
"""Where nothing can be removed: batches, positions, pixels."""

Label = torch.Tensor
"""Numbers `[…]` with the axes of the tensor that they label: 1 long where they do not vary along an axis."""


@dataclass(eq=False)
class Identities:
    """The numbers that were given, and what was learnt about them.

    Attributes:
        count: Numbers given so far.
        edges: Pairs of numbers that are one unit.
        fixed: Numbers of units that cannot be removed, with the reason.
    """

    count: int = 0
    edges: list[np.ndarray] = field(default_factory=list)
    fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def fresh(self, length: int) -> torch.Tensor:
        """New numbers.

        Returns:
            Integers `[length]`.
        """
        self.count += length
        return torch.arange(self.count - length, self.count)

    def fix(self, label: Label | None, why: str) -> None:
        """These units cannot be removed."""
        if label is not None:
            numbers = np.unique(label.numpy())
            self.fixed.append((numbers[numbers != ANONYMOUS], why))

    def join(self, a: Label | None, b: Label | None) -> Label | None:
        """Two labels of one tensor.

        Returns:
            A label of both; numbers that lie at the same place are one unit from now on.
        """
        if a is None or b is None:
            return b if a is None else a
        a, b = torch.broadcast_tensors(a, b)
        both = (a != ANONYMOUS) & (b != ANONYMOUS) & (a != b)
        if both.any():
            self.edges.append(np.unique(torch.stack([a[both], b[both]], 1).numpy(), axis=0))
        return torch.where(a == ANONYMOUS, b, a)

    def along(self, label: Label | None, axes: Iterable[int]) -> Label | None:
        """The label without some of its axes: what varies along them becomes one unit.

        Returns:
            A label that is 1 long on these axes.
        """
        if label is None:
            return None
        for axis in axes:
            if label.shape[axis] > 1:
                first = label.amax(axis, keepdim=True)
                self.join(label, first.expand_as(label))
                label = first
        return label

    def settle(self, label: Label, axis: int, why: str) -> Label:
        """Something varies along an axis that is not cut with the units.

        Rows of a block (`[heads, size]`) become one unit then; units that vary along this axis alone cannot be removed.

        Returns:
            The label, which varies along the axis no more unless it was its only one.
        """
        if any(varies(label, a) for a in range(label.ndim) if a != axis % label.ndim):
            found = self.along(label, [axis])
            assert found is not None
            return found
        self.fix(label, why)
        return label

    def components(self) -> tuple[np.ndarray, dict[int, str]]:
        """The units.

        Returns:
            The unit of every number `[count]`, and why a unit cannot be removed.
        """
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
    """Whether a label says something along an axis.

    Returns:
        True where it is longer than one there.
    """
    return label is not None and label.shape[axis] > 1


def reshaped(label: Label | None, old: Sequence[int], new: Sequence[int]) -> Label | None:
    """The label of a reshaped tensor.

    Where numbers repeat along one of the new axes (`[batch, heads]`) they say nothing along it.

    Args:
        label: Of the tensor before.
        old: Its shape before.
        new: Its shape after.

    Returns:
        The label afterwards.
    """
    if label is None:
        return None
    axes: list[tuple[list[int], list[int]]] = list(_matched(old, new))
    wide = [max((label.shape[a] for a in before), default=1) > 1 for before, _ in axes]
    middle: list[int] = []
    for (before, _), full in zip(axes, wide, strict=True):
        middle += [old[a] if full else 1 for a in before]
    label = label.expand(middle)
    target = [new[a] if full else 1 for (_, after), full in zip(axes, wide, strict=True) for a in after]
    label = label.reshape(target)
    for (_, after), full in zip(axes, wide, strict=True):
        if full and len([a for a in after if new[a] > 1]) > 1:
            label = _split(label, after)
    return label


def _split(label: Label, axes: Sequence[int]) -> Label:
    """A stretch of rows that now lies on several axes."""
    long = [a for a in axes if label.shape[a] > 1]
    for axis in list(long):
        first = label.narrow(axis, 0, 1)
        if len(long) > 1 and bool((label == first).all()):
            label = first
            long.remove(axis)
    return label


def _matched(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Stretches of old axes that became stretches of new ones, by equal products."""
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
