"""A model with its units moved into another model's order, so that other changes can be measured."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.pair import layer_name
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import AxisMap, PartMap, UnitMap
from stemma.kinship.weights.maps.blocks import TensorReader
from stemma.networks.load import from_arrays


def remap(reference: Model, target: Model, found: UnitMap) -> Model | None:
    """The reference with its units in the target's order, names and layout (lazy); None if the map is incomplete."""
    if found.unmapped_in_reference or found.unmapped_in_target or not found.parts:
        return None
    by_tensor: dict[str, list[PartMap]] = {}
    for p in found.parts.values():
        by_tensor.setdefault(p.part.pairing.a, []).append(p)
    reader, tensors = TensorReader(reference), {}
    for name, parts in by_tensor.items():
        view = _RemappedTensor(reader, name, parts[0].part.pairing, tuple(_axes(parts)))
        shape = view.shape(matrices(target)[view.pairing.b].shape)
        tensors[view.pairing.b] = Tensor(view.pairing.b, "F32", shape, RowStorage(view.rows(shape), shape))
    vectors = from_arrays(dict(_vectors(reference, target, by_tensor, found)), "vectors").tensors
    view = from_arrays({**tensors, **vectors}, reference.name, dict(target.config) if target.config else None)
    return replace(view, view=_identity(reference, target, found))


def _identity(reference: Model, target: Model, found: UnitMap) -> str:
    """Digest of the view: both models and the map."""
    h = hashlib.sha256(f"{reference.digest} {target.digest}".encode())
    for name, p in found.parts.items():
        h.update(f"{name} {p.part.pairing}".encode())
        for m in p.maps:
            for values in (m.rows, m.columns, m.signs, m.rotation):
                h.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return h.hexdigest()


@dataclass(frozen=True, eq=False)
class _Axis:
    """How the target's rows of one axis follow from the reference's: source rows, with signs or a rotation."""

    source: np.ndarray
    signs: np.ndarray | None = None
    rotation: np.ndarray | None = None


def _axes(parts: Sequence[PartMap]) -> Iterator[_Axis]:
    """The axes of a tensor; an axis that the map splits is put together again."""
    for k in range(len(parts[0].maps)):
        pieces = {p.part.axes[k].start: (p.part.axes[k], p.maps[k]) for p in parts}
        if len(pieces) == 1:
            yield _axis(next(iter(pieces.values()))[1])
            continue
        axes = [(start, axis.a, _axis(m)) for start, (axis, m) in sorted(pieces.items())]
        source = np.concatenate([start + one.source for start, _, one in axes])
        signs = [np.ones(a, np.float32) if one.signs is None else one.signs for _, a, one in axes]
        rotation = None
        if any(one.rotation is not None for _, _, one in axes):
            total = sum(a for _, a, _ in axes)
            rotation = np.zeros((total, total), np.float32)
            for start, a, one in axes:
                block = np.eye(a, dtype=np.float32)[:, np.argsort(np.argsort(one.source))]
                rotation[start : start + a, start : start + a] = block if one.rotation is None else one.rotation
        yield _Axis(source, np.concatenate(signs), rotation)


def _axis(m: AxisMap) -> _Axis:
    if m.rotation is not None:
        return _Axis(np.arange(m.rotation.shape[1]), None, m.rotation)
    signs = None if m.signs is None else m.sign_of(np.arange(m.of[0]))
    if m.whole:
        source = np.empty(m.of[1], int)
        source[m.columns] = m.rows
        return _Axis(source, signs)
    return _Axis(np.arange(m.of[0]) if m.in_place else m.rows[np.argsort(m.columns)], signs)


@dataclass(frozen=True, eq=False)
class _RemappedTensor:
    """One tensor of the reference in the target's order and layout, read some rows at a time."""

    reader: TensorReader
    name: str
    pairing: Pairing
    axes: tuple[_Axis, ...]

    def shape(self, like: Sequence[int]) -> tuple[int, ...]:
        """Shape in the target's layout; an axis that the target has grown stays shorter."""
        sizes = {j: len(axis.source) for j, axis in zip(self.pairing.axes_b, self.axes, strict=True)}
        return tuple(sizes.get(i, 1) for i in range(len(like)))

    def rows(self, shape: tuple[int, ...]):
        """A function that reads rows of the first axis."""

        def make(start: int, stop: int) -> np.ndarray:
            p, picks = self.pairing, {}
            taken = [
                axis.source[start:stop] if j == 0 else axis.source for j, axis in zip(p.axes_b, self.axes, strict=True)
            ]
            for i, axis, rows in zip(p.axes_a, self.axes, taken, strict=True):
                if axis.rotation is None:
                    picks[i] = rows
            x = self.reader.take(self.name, p.axes_a, picks)
            for k, (axis, rows) in enumerate(zip(self.axes, taken, strict=True)):
                if axis.rotation is not None:
                    x = np.moveaxis(np.tensordot(x, axis.rotation[:, rows], axes=(k, 0)), -1, k)
                elif axis.signs is not None:
                    x = x * axis.signs[rows].reshape([-1 if i == k else 1 for i in range(x.ndim)])
            return x.transpose(np.argsort(p.axes_b)).reshape(stop - start, *shape[1:])

        return make


def _vectors(
    reference: Model, target: Model, by_tensor: dict[str, list[PartMap]], found: UnitMap
) -> Iterator[tuple[str, np.ndarray]]:
    beside = {layer_name(n): layer_name(parts[0].part.pairing.b) for n, parts in by_tensor.items()}
    own, known = matrices(reference), structure(reference)
    shared = {
        (layer_name(n), axis.label): m
        for n, parts in by_tensor.items()
        for p in parts
        for axis, m in zip(p.part.axes, p.maps, strict=True)
    }
    for name, tensor in reference.weights.items():
        if name in own or not tensor.is_float:
            continue
        layer = layer_name(name)
        other = name if name in target.weights else beside.get(layer, layer) + name.removeprefix(layer)
        if other not in target.weights or target.weights[other].size != tensor.size:
            continue
        x = tensor.array().astype(np.float32)
        for k, label in enumerate(known.axes.get(name, ())):
            m = shared.get((layer, label)) or found.units.get(label.group)
            if x.shape[k] > 1 and m is not None and m.of[0] == x.shape[k]:
                x = _vector(x, k, _axis(m))
        yield other, x.reshape(target.weights[other].shape)


def _vector(x: np.ndarray, k: int, axis: _Axis) -> np.ndarray:
    if axis.rotation is not None:
        return np.moveaxis(np.tensordot(x, axis.rotation, axes=(k, 0)), -1, k)
    if axis.signs is not None:
        x = x * axis.signs.reshape([-1 if i == k else 1 for i in range(x.ndim)])
    return np.take(x, axis.source, axis=k)
