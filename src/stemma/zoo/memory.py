"""Models from arrays in memory, and their weights as arrays."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import ArrayStorage, Tensor, encode
from stemma.networks.load import from_arrays

FLOAT_TYPES: Mapping[str, str] = MappingProxyType(
    {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
)
"""Float types in which a model can be stored, with their codes."""


def model_of(name: str, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None, dtype: str = "") -> Model:
    """A model named `name` (source `python:NAME`) from arrays, its floats stored as `dtype`, one of `FLOAT_TYPES`."""
    if not dtype:
        return from_arrays(arrays, name, config)
    return from_arrays({n: _stored(n, a, FLOAT_TYPES[dtype]) for n, a in arrays.items()}, name, config)


def _stored(name: str, array: np.ndarray, code: str) -> Tensor | np.ndarray:
    if array.dtype.kind != "f":
        return array
    return Tensor(name, code, array.shape, ArrayStorage(partial(encode, array, code)))


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """Fresh arrays of a model's weights by tensor name, quantised ones dequantised; narrow floats as float32."""
    return {name: np.array(t.array()) for name, t in model.weights.items()}
