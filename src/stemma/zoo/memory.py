"""Models made in memory, and their weights as plain arrays."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from stemma.models.model import ArrayStorage, Model, Tensor

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8",
}  # fmt: skip

FLOAT_TYPES = ("float32", "float16", "bfloat16", "float64")
"""Float types in which a model can be stored."""


def model_of(name: str, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None, dtype: str = "") -> Model:
    """A model from arrays.

    Args:
        name: Its name.
        arrays: Weights by tensor name.
        config: The architecture, or None to hide it.
        dtype: Float type of all float tensors, one of `FLOAT_TYPES`; as they are unless given.

    Returns:
        The model; its source is `python:NAME`.
    """
    tensors = [_tensor(n, arrays[n], dtype) for n in sorted(arrays)]
    return Model(name, f"python:{name}", {t.name: t for t in tensors}, config)


def _tensor(name: str, array: np.ndarray, dtype: str) -> Tensor:
    shape, is_float = array.shape, array.dtype.kind == "f"
    if is_float and dtype == "bfloat16":
        return Tensor(name, "BF16", shape, ArrayStorage(partial(_bfloat16, array)))
    stored = array.astype(dtype) if is_float and dtype else array
    return Tensor(name, _CODES[str(stored.dtype)], shape, ArrayStorage(lambda: stored))


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even.

    Returns:
        The upper halves of the float32 patterns (uint16); finite inputs only.
    """
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """A model's weights as numbers, quantised ones dequantised.

    Returns:
        Fresh arrays by tensor name; floats narrower than 64 bits as float32.
    """
    return {name: np.array(t.array()) for name, t in model.weights.items()}
