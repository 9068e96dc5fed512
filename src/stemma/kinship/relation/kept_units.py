"""Which of the parent's hidden units a narrower child kept."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from stemma.architectures.structure import AxisLabel, Structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.relation.tokens import SharedTokens
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.pair_reader import finite
from stemma.kinship.weights.order.similarity import assign

LARGEST = 1 << 26
"""Entries of a tensor up to which it is read to find kept units."""

WIDEST = 4096
"""Largest number of units of a group that is matched."""

SURE, AHEAD = 0.9, 0.3
"""Mean cosine from which a group of unchanged width counts as reordered, and by how much a lower one has to exceed the
cosine of the units in place."""

COORDINATES = 1024
"""Coordinates of a unit that are used per tensor."""


@dataclass(frozen=True, eq=False)
class KeptUnits:
    """One group of hidden units that became narrower.

    Attributes:
        group: Its name in the parent.
        size: The parent's units.
        kept: The parent's unit for each of the child's, in the child's order.
        cosine: Mean cosine of those pairs.
    """

    group: str
    size: int
    kept: np.ndarray
    cosine: float


def kept_units(parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure) -> dict[str, KeptUnits]:
    """Match the units of every group that is narrower in the child, in causal order; unmatched groups are omitted."""
    narrowed = _narrowed_groups(parent, child, pairings, known)
    found: dict[str, KeptUnits] = {}
    visited: set[str] = set()
    for group in known.groups:
        visited.add(group.name)
        if group.name not in narrowed or max(narrowed[group.name]) > WIDEST:
            continue
        size, count = narrowed[group.name]
        similarity = np.zeros((size, count))
        views = 0
        for p in pairings:
            if size == count and not _other_axes_known(known.axes[p.a], p, group.name, visited):
                continue  # axes that may be reordered too show nothing about a group of unchanged width
            view = _unit_rows(parent, child, p, known, found, group.name)
            if view is not None and view[0].shape == (size, view[0].shape[1]) and len(view[1]) == count:
                similarity += view[0] @ view[1].T
                views += 1
        if views:
            rows, columns = assign(similarity, np.random.default_rng(0))
            order = rows[np.argsort(columns)]
            cosine = float(similarity[order, np.arange(count)].mean()) / views
            if size > count or _is_reordered(similarity / views, order, cosine):
                found[group.name] = KeptUnits(group.name, size, order, cosine)
    return found


def _is_reordered(similarity: np.ndarray, order: np.ndarray, cosine: float) -> bool:
    """Whether units of a group of unchanged width stand in another order."""
    if np.array_equal(order, np.arange(len(order))):
        return False
    return cosine > SURE or cosine > float(similarity.diagonal().mean()) + AHEAD


def _other_axes_known(labels: Sequence[AxisLabel], p: Pairing, group: str, visited: Set[str]) -> bool:
    """Whether all other axes of a tensor carry no units, or units of groups that were matched before."""
    return all(labels[i].kind == "fixed" or labels[i].group == group or labels[i].group in visited for i in p.axes_a)


def _narrowed_groups(
    parent: Model, child: Model, pairings: Sequence[Pairing], known: Structure
) -> dict[str, tuple[int, int]]:
    """Units of the parent and of the child for every group, if any group became narrower."""
    out: dict[str, tuple[int, int]] = {}
    for p in pairings:
        x, y = parent.weights[p.a].shape, child.weights[p.b].shape
        for i, j in zip(p.axes_a, p.axes_b, strict=True):
            label = known.axes[p.a][i]
            if x[i] >= y[j] and label.group and len(label.segments) == 1:
                block = label.segments[0].block
                if x[i] % block == 0 and y[j] % block == 0:
                    out[label.group] = x[i] // block, y[j] // block
    return out if any(before > after for before, after in out.values()) else {}


def _unit_rows(
    parent: Model, child: Model, p: Pairing, known: Structure, found: Mapping[str, KeptUnits], group: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Units of a group in one tensor, as rows of norm 1, for both models; None where other axes do not fit."""
    labels = known.axes[p.a]
    own_axes = [k for k, i in enumerate(p.axes_a) if labels[i].group == group and len(labels[i].segments) == 1]
    if len(own_axes) != 1 or parent.weights[p.a].size > LARGEST:
        return None
    x, y = _ordered(parent.weights[p.a], p.axes_a), _ordered(child.weights[p.b], p.axes_b)
    for k, i in enumerate(p.axes_a):
        if k != own_axes[0] and x.shape[k] != y.shape[k] and labels[i].group not in found:
            return None
        if k != own_axes[0] and labels[i].group in found:
            x = np.take(x, _rows(labels[i], found[labels[i].group].kept), axis=k)
    if any(k != own_axes[0] and x.shape[k] != y.shape[k] for k in range(len(p.axes_a))):
        return None  # one group in the parent, cut to several widths in the child
    block = labels[p.axes_a[own_axes[0]]].segments[0].block
    if y.shape[own_axes[0]] % block or not all(x.shape) or not all(y.shape):
        return None
    return _units(x, own_axes[0], block), _units(y, own_axes[0], block)


def _units(x: np.ndarray, axis: int, block: int) -> np.ndarray:
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis] // block, -1).astype(np.float64)
    rows = rows[:, :: max(1, rows.shape[1] // COORDINATES)]
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def _rows(label: AxisLabel, units: np.ndarray) -> np.ndarray:
    return label.segments[0].index()[units].reshape(-1)


def _ordered(tensor: Tensor, axes: tuple[int, ...]) -> np.ndarray:
    return finite(_as_stored(tensor, axes))


def _as_stored(tensor: Tensor, axes: tuple[int, ...]) -> np.ndarray:
    """The tensor with the given axes in that order; NaN and infinities stay."""
    array = tensor.array()
    rest = [i for i in range(array.ndim) if i not in axes]
    array = array.transpose(*axes, *rest)
    return np.asarray(array.reshape(array.shape[: len(axes)]), np.float32)


def restrict_to_common(
    parent: Model, child: Model, p: Pairing, known: Structure, kept: Mapping[str, KeptUnits], tokens: SharedTokens
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both tensors cut down to kept units and common tokens, zero where not finite; None if sizes differ."""
    if parent.weights[p.a].size > LARGEST:
        return None
    x, y = _as_stored(parent.weights[p.a], p.axes_a), _as_stored(child.weights[p.b], p.axes_b)
    for k, i in enumerate(p.axes_a):
        label = known.axes[p.a][i]
        if label.group in kept and len(label.segments) == 1:
            x = np.take(x, _rows(label, kept[label.group].kept), axis=k)
        elif (x.shape[k], y.shape[k]) in tokens and label.role == "token":
            rows, columns = tokens[x.shape[k], y.shape[k]]
            x, y = np.take(x, rows, axis=k), np.take(y, columns, axis=k)
    if x.shape != y.shape:
        return None
    usable = np.isfinite(x) & np.isfinite(y)
    return (x, y) if usable.all() else (np.where(usable, x, 0), np.where(usable, y, 0))
