"""Changes of whole rows: units rescaled (IA3), rows of trained tokens, gains trained by themselves (LN tuning).

Source: IA3, arXiv:2205.05638; LN tuning, arXiv:2312.11420; trainable tokens are PEFT's own.
"""

import functools
from typing import Any

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, Tokens, remade
from stemma.checkpoints.tensor import Tensor

DELTA = "trainable_tokens_delta"


def rescaling(adapter: Adapter) -> Changes:
    """IA3: the outputs of a layer, or the inputs of a feed-forward one, are each multiplied by a number.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.
    """
    out = Changes()
    for name, t in adapter.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != "ia3_l":
            out.whole[name] = t
            continue
        out.changed[f"{module}.weight"] = functools.partial(_rescaled, adapter, module, t)
        if t.shape[0] != 1:  # PEFT scales the bias where there is one
            out.optional[f"{module}.bias"] = functools.partial(_rescaled, adapter, module, t)
    return out


def _rescaled(adapter: Adapter, module: str, factors: Tensor, name: str, base: Tensor) -> Tensor:
    values = factors.array()
    if len(base.shape) == 1:
        values = values.reshape(-1)
    elif values.ndim == 2 and len(base.shape) == 2 and adapter.transposed(module):
        values = values.T
    fits = values.ndim == len(base.shape) and all(v in (1, s) for v, s in zip(values.shape, base.shape, strict=True))
    if not fits or not base.is_float or len(base.shape) > 2:
        adapter.refuse(f"the factors of '{name}' ({list(factors.shape)}) do not fit {list(base.shape)}")

    def make(start: int, stop: int) -> np.ndarray:
        return base.rows(start, stop) * (values if values.shape[0] == 1 else values[start:stop])

    return remade(name, base, make)


def gains(adapter: Adapter) -> Changes:
    """LN tuning: normalisation layers stand in the place of the base's.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.
    """
    return Changes(whole={n.replace(".ln_tuning_layers.", "."): t for n, t in adapter.tensors.items()})


def tokens(adapter: Adapter) -> Changes:
    """Trained tokens: rows of an embedding stand in the place of the base's.

    Args:
        adapter: An adapter of nothing else, or one whose low-rank part was taken away.

    Returns:
        What it changes.

    Raises:
        UnreadableModelError: If the config does not say which rows they are.
    """
    out = Changes()
    for name, t in adapter.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != DELTA:
            out.whole[name] = t
            continue
        module = module.removesuffix(".token_adapter")
        found = _indices(adapter, module)
        whole = isinstance(found, list) and all(isinstance(i, int) and i >= 0 for i in found)
        if not whole or len(found) != t.shape[0] or len(set(found)) != len(found):
            adapter.refuse(f"its config does not say which {t.shape[0]} tokens of '{module}' were trained")
        out.tokens[f"{module}.weight"] = Tokens(adapter, tuple(found), t)
    return out


def _indices(adapter: Adapter, module: str) -> Any:
    found = adapter.config.get("trainable_token_indices") or adapter.config.get("token_indices")
    if not isinstance(found, dict):
        return found
    return next((v for k, v in found.items() if module == k or module.endswith(f".{k}")), None)
