"""Build named tensors from the records of a pickle, each checked against its storage."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats import pickle_records, pickles
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.formats.pickle_records import shown
from stemma.checkpoints.formats.views import ByteSwappedStorage, strided_storage
from stemma.checkpoints.tensor import ITEMSIZE, AbstractStorage, ArrayStorage, Tensor, dtype_code
from stemma.checkpoints.tensor_names import unwrap
from stemma.errors import NotAModelError, UnreadableModelError

MAX_NODES = 500_000
MAX_EXPANDED = 64 << 20
"""Bytes to which a view that repeats its elements may expand."""

_PACKED = re.compile(r"(^|\.)(?:_packed_params\.)+(?:\d+\.)*([01])(?=$|::)")
"""Names of weight (0) and bias (1) in torch's quantised layers."""

OpenStorage = Callable[[pickle_records.StorageRef], tuple[AbstractStorage, int]]
"""Returns a storage of a file, and its number of bytes."""


def contents(
    path: Path, tree: Any, open_storage: OpenStorage, *, swapped: bool, foreign: Iterable[str] = ()
) -> Contents:
    """Tensors of a file, from the records in its pickle; `swapped`: big-endian; `foreign`: unknown class names."""
    builder = TensorBuilder(path, open_storage, swapped)
    if isinstance(tree, (pickle_records.TensorView, pickle_records.NumpyArray, pickle_records.QuantizedTensor)):
        tree = {"tensor": tree}
    if isinstance(tree, pickle_records.UnknownObject):
        refuse_other_models(path, tree.label)
    if not isinstance(tree, (dict, list, tuple, pickle_records.UnknownObject)):
        raise NotAModelError(f"{path} contains no tensors: its content is a {type(tree).__name__}")
    if isinstance(tree, dict) and {"state", "param_groups"} == set(tree):
        raise NotAModelError(f"{path} holds optimizer state, not weights. Use the file with the weights")
    built = builder.build(tree, "", 0)
    parts, notes = unwrap(built if isinstance(built, Mapping) else {})
    parts = {p: {_PACKED.sub(_unpacked, n): t for n, t in found.items()} for p, found in parts.items()}
    named = sorted(foreign)
    if named:
        shown = ", ".join(named[:4]) + (" …" if len(named) > 4 else "")
        notes.append(f"{len(named)} classes or functions were not run; only their tensors were read: {shown}")
    if builder.ignored:
        left = "1 entry that is not a tensor was" if builder.ignored == 1 else (
            f"{builder.ignored} entries that are not tensors were")  # fmt: skip
        notes.append(f"{left} left out")
    tensors = {p: tuple(Tensor(n, t.dtype, t.shape, t.storage) for n, t in found.items()) for p, found in parts.items()}
    return Contents(tensors, {}, tuple(notes), _aliases(parts, builder.places))


def refuse_other_models(path: Path, label: str) -> None:
    """Raise if a pickle holds a model of scikit-learn, XGBoost, LightGBM or CatBoost."""
    library = {"sklearn": "scikit-learn", "xgboost": "XGBoost", "lightgbm": "LightGBM", "catboost": "CatBoost"}
    known = library.get(label.partition(".")[0])
    if known is not None:
        raise NotAModelError(
            f"{path} is a pickled {known} model ({label.rpartition('.')[2]}), which is not supported. "
            "If it is a neural network, save its arrays as .npz"
        )


def _unpacked(found: re.Match[str]) -> str:
    return found[1] + ("weight", "bias")[int(found[2])]


def _members(node: pickle_records.UnknownObject) -> dict[Any, Any]:
    """Members of an unknown object by name; of a torch module, what its `state_dict` would list."""
    state = node.state
    if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
        state = {**(state[0] or {}), **(state[1] or {})}  # attributes and slots
    if isinstance(state, (list, tuple)):
        return dict(enumerate(state))
    if not isinstance(state, dict):
        return node.items or dict(enumerate(node.arguments))
    kinds = [k for k in (state.get(n) for n in ("_parameters", "_buffers", "_modules")) if isinstance(k, dict)]
    if len(kinds) < 3:
        return {**state, **node.items}
    transient = state.get("_non_persistent_buffers_set")
    left_out = {n for n in transient if isinstance(n, str)} if isinstance(transient, list) else set()
    packed = {n: state[n] for n in ("_packed_params",) if n in state}  # quantised layers store their weights separately
    return {n: v for k in (*kinds, packed) for n, v in k.items() if v is not None and n not in left_out}


def _aliases(
    parts: Mapping[str, Mapping[str, Tensor]], places: Mapping[int, tuple[Any, ...]]
) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for found in parts.values():
        for name, t in found.items():
            if id(t) in places and t.size:
                groups.setdefault((id(found), *places[id(t)]), []).append(name)
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


class TensorBuilder:
    """Builds nested tensors from the records of a pickle, checking each against its storage."""

    def __init__(self, path: Path, open_storage: OpenStorage, swapped: bool) -> None:
        self.path, self.open_storage, self.swapped = path, open_storage, swapped
        self.ignored = 0
        self.nodes = 0
        self.places: dict[int, tuple[Any, ...]] = {}
        self._tensors: list[Tensor] = []
        self._in_progress: set[int] = set()

    def build(self, node: Any, name: str, depth: int) -> Any:
        """A tensor, a mapping of tensors, or None for anything else."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > pickles.MAX_DEPTH:
            raise UnreadableModelError(f"{self.path} has too many nested entries for a checkpoint")
        budget.current().entries()
        if isinstance(node, (list, tuple)):
            node = dict(enumerate(node))
        if isinstance(node, dict):
            return self._branch(node, depth)
        if isinstance(node, pickle_records.TensorView):
            return self.tensor(node, name)
        if isinstance(node, pickle_records.UnknownObject):
            return self._object(node, depth)
        if isinstance(node, pickle_records.NumpyArray):
            return self._array(node, name)
        self.ignored += 1
        return None

    def _object(self, node: pickle_records.UnknownObject, depth: int) -> Any:
        if id(node) in self._in_progress:  # a module that refers to its parent
            self.ignored += 1
            return None
        self._in_progress.add(id(node))
        try:
            return self._branch(_members(node), depth)
        finally:
            self._in_progress.discard(id(node))

    def _branch(self, node: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.items():
            name = str(key) if isinstance(key, (str, int)) else None
            if name is None:
                self.ignored += 1
                continue
            if name in out:
                raise UnreadableModelError(f"{self.path}: two tensors have the same name '{name}'")
            if isinstance(value, pickle_records.QuantizedTensor):
                out.update(self._quantized(name, value))
                continue
            built = self.build(value, name, depth + 1)
            if built is not None:
                out[name] = built
        return out

    def tensor(self, view: pickle_records.TensorView, name: str) -> Tensor:
        """A tensor, checked against its storage."""
        path, code = self.path, view.code
        shape, strides = view.shape, view.strides
        fits = (
            isinstance(shape, (tuple, list)) and isinstance(strides, (tuple, list)) and len(shape) == len(strides) <= 64
        )
        numbers = (view.offset, *shape, *strides) if fits else (-1,)
        if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
            raise UnreadableModelError(
                f"{path}: the tensor '{name}' has an invalid shape {shown(shape)} or strides {shown(strides)}"
            )
        if isinstance(view.flags, dict) and any(view.flags.get(k) for k in ("conj", "neg")):
            raise UnreadableModelError(f"{path}: the tensor '{name}' is a lazy conjugate. Resolve it before saving")
        shape, strides, width = tuple(shape), tuple(strides), ITEMSIZE[code]
        storage, length = self.open_storage(view.stored)
        count = math.prod(shape)
        last = view.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if count and (last + 1) * width > min(length, view.stored.count * ITEMSIZE[view.stored.code]):
            raise UnreadableModelError(f"{path}: the tensor '{name}' reaches beyond its storage")
        if count * width > max(length, MAX_EXPANDED):
            raise UnreadableModelError(
                f"{path}: the tensor '{name}' expands {length} bytes to {count * width}, which is not allowed"
            )
        if self.swapped and width > 1:
            storage = ByteSwappedStorage(storage, width // 2 if code.startswith("C") else width)
        tensor = Tensor(
            name, code, shape, strided_storage(storage, width, view.offset, shape, strides) if count else storage
        )
        budget.current().count(len(self._tensors))
        self._tensors.append(tensor)  # keeps the id in `places` its own
        self.places[id(tensor)] = (view.stored.key, view.offset, shape, strides, code)
        return tensor

    def _quantized(self, name: str, value: pickle_records.QuantizedTensor) -> dict[str, Any]:
        out: dict[str, Any] = {name: self.tensor(value.codes, name)}
        for label, number, kind in (("scale", value.scale, np.float64), ("zero_point", value.zero_point, np.int64)):
            if isinstance(number, pickle_records.TensorView):
                out[f"{name}::{label}"] = self.tensor(number, name)
            elif isinstance(number, (int, float)):
                made = np.array([number], kind) if abs(number) < 2**53 else np.zeros(1, kind)
                code = "F64" if kind is np.float64 else "I64"
                out[f"{name}::{label}"] = Tensor(f"{name}::{label}", code, (1,), ArrayStorage(lambda made=made: made))
        return out

    def _array(self, node: pickle_records.NumpyArray, name: str) -> Tensor | None:
        state = node.state
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], pickle_records.NumpyDtype):
            self.ignored += 1
            return None
        _, shape, kind, fortran, raw = state
        try:
            dtype = np.dtype(kind.order.replace("|", "=") + kind.text) if kind.text[:1] in "fiubc" else None
        except TypeError:
            dtype = None
        code = dtype_code(dtype) if dtype is not None else None
        if dtype is None or code is None or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            self.ignored += 1
            return None
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(raw):
            raise UnreadableModelError(f"{self.path}: the array '{name}' of shape {shown(shape)} has {len(raw)} bytes")
        array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
        return Tensor(name, code, shape, ArrayStorage(lambda: array.astype(dtype.newbyteorder("<"), copy=False)))
