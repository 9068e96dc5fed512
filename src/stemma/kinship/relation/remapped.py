"""A model brought into another one's coordinates by a map of units, so that what else was done shows."""

from collections.abc import Iterator, Sequence

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.pair import stem
from stemma.kinship.weights.maps.axis_map import AxisMap, PairedAxis, PartMap, UnitMap
from stemma.models.arrays import from_arrays
from stemma.models.model import Model
from stemma.models.units import structure


def remapped(reference: Model, target: Model, found: UnitMap) -> Model | None:
    """The reference with its units where the target has them, under the target's names and in its layout.

    Factors between units are not undone, and vectors without a group stay where they are.

    Args:
        reference: The model that the map starts from.
        target: The other one.
        found: Map of units from the reference to the target.

    Returns:
        A model in memory; None where the map does not cover every matrix.
    """
    if found.lost or found.left or not found.parts:
        return None
    by_tensor: dict[str, list[PartMap]] = {}
    for p in found.parts.values():
        by_tensor.setdefault(p.part.pairing.a, []).append(p)
    arrays = dict(_matrices(reference, target, by_tensor)) | dict(_vectors(reference, target, by_tensor, found))
    return from_arrays(arrays, reference.name, dict(target.config) if target.config else None)


def _matrices(reference: Model, target: Model, by_tensor: dict[str, list[PartMap]]) -> Iterator[tuple[str, np.ndarray]]:
    own, other = matrices(reference), matrices(target)
    for name, parts in by_tensor.items():
        p = parts[0].part.pairing
        x = own[name].array().astype(np.float32)
        rest = [i for i in range(x.ndim) if i not in p.axes_a]
        x = x.transpose(*p.axes_a, *rest).reshape([x.shape[i] for i in p.axes_a])
        for k in range(len(p.axes_a)):
            x = _along(x, k, [(part.part.axes[k], part.maps[k]) for part in parts])
        yield p.b, _laid_out(x, p.axes_b, other[p.b].shape)


def _along(x: np.ndarray, k: int, pieces: Sequence[tuple[PairedAxis, AxisMap]]) -> np.ndarray:
    """One axis moved, stretch by stretch where it is cut."""
    whole = {(axis.start, axis.a): (axis, m) for axis, m in pieces}
    if len(whole) == 1 and next(iter(whole))[1] == x.shape[k]:
        return _moved(x, k, next(iter(whole.values()))[1])
    moved = [_moved(np.take(x, np.arange(a) + s, axis=k), k, m) for (s, a), (_, m) in sorted(whole.items(), key=_first)]
    return np.concatenate(moved, axis=k)


def _first(piece: tuple[tuple[int, int], object]) -> int:
    return piece[0][0]


def _laid_out(x: np.ndarray, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Axes in the target's order, axes of length one back in their places; a grown axis stays shorter."""
    x = x.transpose(np.argsort(axes))
    sizes = iter(x.shape)
    return x.reshape([next(sizes) if s > 1 else 1 for s in shape])


def _moved(x: np.ndarray, axis: int, m: AxisMap | None) -> np.ndarray:
    if m is None:
        return x
    if m.rotation is not None:
        return np.moveaxis(np.tensordot(x, m.rotation, axes=(axis, 0)), -1, axis)
    if m.signs is not None:
        x = x * m.sign_of(np.arange(m.of[0])).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    if not m.whole:
        return x if m.in_place else np.take(x, m.rows[np.argsort(m.columns)], axis=axis)
    order = np.empty(x.shape[axis], int)
    order[m.columns] = m.rows
    return np.take(x, order, axis=axis)


def _vectors(
    reference: Model, target: Model, by_tensor: dict[str, list[PartMap]], found: UnitMap
) -> Iterator[tuple[str, np.ndarray]]:
    beside = {stem(n): stem(parts[0].part.pairing.b) for n, parts in by_tensor.items()}
    own, known = matrices(reference), structure(reference)
    shared = {
        (stem(n), axis.label): m
        for n, parts in by_tensor.items() for p in parts for axis, m in zip(p.part.axes, p.maps, strict=True)
    }  # fmt: skip
    for name, tensor in reference.weights.items():
        if name in own or not tensor.is_float:
            continue
        layer = stem(name)
        other = name if name in target.weights else beside.get(layer, layer) + name.removeprefix(layer)
        if other not in target.weights or target.weights[other].size != tensor.size:
            continue
        x = tensor.array().astype(np.float32)
        for axis, label in enumerate(known.axes.get(name, ())):
            m = shared.get((layer, label)) or found.units.get(label.group)
            if x.shape[axis] > 1 and m is not None and m.of[0] == x.shape[axis]:
                x = _moved(x, axis, m)
        yield other, x.reshape(target.weights[other].shape)
