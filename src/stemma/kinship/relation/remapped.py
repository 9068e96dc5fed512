"""A model brought into another one's coordinates by a map of units, so that what else was done shows."""

from collections.abc import Iterator

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.pair import stem
from stemma.kinship.weights.unit_map import AxisMap, UnitMap, key, labels
from stemma.models.arrays import from_arrays
from stemma.models.model import Model
from stemma.models.structure import Structure
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
    if found.lost or found.left or not found.tensors:
        return None
    known = structure(reference)
    arrays = dict(_matrices(reference, target, found, known)) | dict(_vectors(reference, target, found, known))
    return from_arrays(arrays, reference.name, dict(target.config) if target.config else None)


def _matrices(reference: Model, target: Model, found: UnitMap, known: Structure) -> Iterator[tuple[str, np.ndarray]]:
    own, other = matrices(reference), matrices(target)
    for name, t in found.tensors.items():
        x = own[name].array().astype(np.float32)
        x = x.reshape([s for s in x.shape if s > 1])
        for axis, label in enumerate(labels(known, name)):
            x = _moved(x, axis, found.axes.get(key(name, axis, label) or ""))
        yield t.target, _laid_out(x, t.axes, other[t.target].shape)


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
    order = np.arange(x.shape[axis])
    if len(m.columns) != len(order):
        return x
    order[m.columns] = m.rows
    return np.take(x, order, axis=axis)


def _vectors(reference: Model, target: Model, found: UnitMap, known: Structure) -> Iterator[tuple[str, np.ndarray]]:
    beside = {stem(n): stem(t.target) for n, t in found.tensors.items()}
    own = matrices(reference)
    shared = {(stem(n), label): key(n, i, label) for n in found.tensors for i, label in enumerate(labels(known, n))}
    for name, tensor in reference.weights.items():
        if name in own or not tensor.is_float:
            continue
        layer = stem(name)
        other = name if name in target.weights else beside.get(layer, layer) + name.removeprefix(layer)
        if other not in target.weights or target.weights[other].size != tensor.size:
            continue
        x = tensor.array().astype(np.float32)
        for axis, label in enumerate(known.axes.get(name, ())):
            if x.shape[axis] > 1:
                x = _moved(x, axis, found.axes.get(shared.get((layer, label)) or label.group))
        yield other, x.reshape(target.weights[other].shape)
