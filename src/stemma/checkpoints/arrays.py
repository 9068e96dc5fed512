"""Models from NumPy arrays or torch tensors in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.assemble import canonicalize, make_model
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import ArrayStorage, Tensor, dtype_code
from stemma.errors import MisuseError, UnreadableModelError


def from_arrays(
    arrays: Mapping[str, Any],
    name: str,
    config: Mapping[str, Any] | None = None,
    claims: Mapping[str, str] | None = None,
) -> Model:
    """A model made in memory.

    Args:
        arrays: NumPy arrays or torch tensors by name; names are made canonical like those of a file. Torch tensors are
            copied when first read, NumPy arrays are not: do not change them afterwards.
        name: Name of the model.
        config: Architecture configuration.
        claims: Metadata to show.

    Returns:
        The model; its source is `python:NAME`.

    Raises:
        MisuseError: If the config is not a mapping.
        UnreadableModelError: If a name is not a string, or an array is not numeric.
    """
    if config is not None and not isinstance(config, Mapping):
        raise MisuseError(
            f"the config of '{name}' is a {type(config).__name__}, not a mapping. Pass a dict like the content of "
            "config.json"
        )
    tensors = {n: _in_memory(n, a) for n, a in arrays.items()}
    found, notes = canonicalize(tensors, (), Path(f"python:{name}"))
    return make_model(name, f"python:{name}", found, config, claims or {}, notes)


def _in_memory(name: str, array: Any) -> Tensor:
    if hasattr(array, "detach"):
        return _from_torch(name, array)
    if isinstance(array, Tensor):
        return Tensor(name, array.dtype, array.shape, array.storage)
    array = np.asarray(array)
    code = dtype_code(array.dtype)
    if code is None:
        raise UnreadableModelError(
            f"array '{name}' has dtype {array.dtype}, which is not supported. Convert it to a number type"
        )
    return Tensor(
        name, code, array.shape, ArrayStorage(lambda: array.astype(array.dtype.newbyteorder("<"), copy=False))
    )


def _from_torch(name: str, tensor: Any) -> Tensor:
    import torch

    tensor = tensor.detach()
    special = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    code = special.get(tensor.dtype) or dtype_code(tensor.new_empty(0).cpu().numpy().dtype)
    if code is None:
        raise UnreadableModelError(
            f"tensor '{name}' has dtype {tensor.dtype}, which is not supported. Convert it, for example to float32"
        )

    def make() -> np.ndarray:
        plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        return plain.reshape(-1).view(torch.uint8).numpy() if code in special.values() else plain.numpy()

    return Tensor(name, code, tuple(tensor.shape), ArrayStorage(make))
