"""Adapters that rescale or replace rows: IA3, trainable tokens, LN tuning.

Source: IA3, arXiv:2205.05638; LN tuning, arXiv:2312.11420; trainable tokens are PEFT's own.
"""

import functools
from typing import Any

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, Tokens, lazy_tensor
from stemma.checkpoints.tensor import Tensor

DELTA = "trainable_tokens_delta"


def ia3(adapter: Adapter) -> Changes:
    """IA3: each output of a layer (or each input of a feed-forward layer) is multiplied by a trained factor."""
    out = Changes()
    for name, t in adapter.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != "ia3_l":
            out.replaced[name] = t
            continue
        out.changed[f"{module}.weight"] = functools.partial(_rescaled, adapter, module, t)
        if t.shape[0] != 1:  # PEFT scales the bias where there is one
            out.optional[f"{module}.bias"] = functools.partial(_rescaled, adapter, module, t)
    return out


def _rescaled(adapter: Adapter, module: str, factors: Tensor, name: str, base: Tensor) -> Tensor:
    values = factors.array()
    if len(base.shape) == 1:
        values = values.reshape(-1)
    elif values.ndim == 2 and len(base.shape) == 2 and adapter.is_transposed(module):
        values = values.T
    fits = values.ndim == len(base.shape) and all(v in (1, s) for v, s in zip(values.shape, base.shape, strict=True))
    if not fits or not base.is_float or len(base.shape) > 2:
        adapter.refuse(
            f"the factors of '{name}' (shape {list(factors.shape)}) do not fit the base's shape {list(base.shape)}"
        )

    def make(start: int, stop: int) -> np.ndarray:
        return base.rows(start, stop) * (values if values.shape[0] == 1 else values[start:stop])

    return lazy_tensor(name, base, make)


def ln_tuning(adapter: Adapter) -> Changes:
    """LN tuning: trained normalisation layers replace the base's."""
    return Changes(replaced={n.replace(".ln_tuning_layers.", "."): t for n, t in adapter.tensors.items()})


def trainable_tokens(adapter: Adapter) -> Changes:
    """Trainable tokens: trained embedding rows replace the base's."""
    out = Changes()
    for name, t in adapter.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != DELTA:
            out.replaced[name] = t
            continue
        module = module.removesuffix(".token_adapter")
        found = _token_indices(adapter, module)
        whole = isinstance(found, list) and all(isinstance(i, int) and i >= 0 for i in found)
        if not whole or len(found) != t.shape[0] or len(set(found)) != len(found):
            adapter.refuse(f"its config does not list the {t.shape[0]} trained token ids of '{module}'")
        out.tokens[f"{module}.weight"] = Tokens(adapter, tuple(found), t)
    return out


def _token_indices(adapter: Adapter, module: str) -> Any:
    found = adapter.config.get("trainable_token_indices") or adapter.config.get("token_indices")
    if not isinstance(found, dict):
        return found
    return next((v for k, v in found.items() if module == k or module.endswith(f".{k}")), None)
