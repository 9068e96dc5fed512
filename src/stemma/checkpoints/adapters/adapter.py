"""The content of an adapter folder, and the changes it makes to its base model."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.errors import UnreadableModelError

MERGE = "merge it with PEFT's merge_and_unload and use the merged model"
"""Advice for adapters that are not supported."""

CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""`model_type` of architectures whose linear layers are stored as `[in, out]`."""

CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

SAFE_PATTERN = re.compile(r"(?:[\w.\-|()^$]|\(\?:|\\[.dw]|\[[\w\-]+\]|(?<=[\w.\])])(?<!\))[*+?])*")
"""Regular expressions that are evaluated: no quantified groups, so that matching cannot take exponential time."""

Change = Callable[[str, Tensor], Tensor]
"""Computes the changed tensor from its name and the tensor in the base; raises if they do not fit."""


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter folder.

    Attributes:
        folder: The folder, named in errors.
        tensors: Its tensors by name, without PEFT's prefix.
        config: Its `adapter_config.json`.
        base_config: `config.json` of the base; empty without one.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    base_config: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, why: str, instead: str = MERGE) -> NoReturn:
        """Raise an UnreadableModelError that names the adapter, what is wrong (`why`) and what to do (`instead`)."""
        raise UnreadableModelError(f"{self.folder}: {why}; {instead}")

    def option_for(self, option: str, module: str, default: Any) -> Any:
        """Value of `rank_pattern` or `alpha_pattern` for a module; keys: names, suffixes or regular expressions."""
        patterns = self.config.get(option)
        for key, value in patterns.items() if isinstance(patterns, dict) else ():
            if len(key) > 200 or sum(key.count(c) for c in "*+") > 2 or not SAFE_PATTERN.fullmatch(key):
                self.refuse(f"'{key[:80]}' of its {option} is not a safe regular expression")
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            except re.error as e:
                self.refuse(f"'{key}' of its {option} is not a valid regular expression ({e})")
        return default

    def is_transposed(self, module: str) -> bool:
        """Whether the base stores the module's weight as `[in, out]`; PEFT keeps one flag for all modules."""
        conv1d = self.base_config.get("model_type") in CONV1D and module.rpartition(".")[2] in CONV1D_LAYERS
        return bool(self.config.get("fan_in_fan_out")) or conv1d


@dataclass(frozen=True)
class Tokens:
    """Embedding rows that were trained on their own: row numbers and values."""

    adapter: Adapter
    index: tuple[int, ...]
    rows: Tensor

    def apply(self, name: str, base: Tensor) -> Tensor:
        """The base's embedding with the trained rows written into it."""
        index = np.array(self.index, int)
        if self.rows.shape[1:] != base.shape[1:] or not base.is_float or index.max(initial=0) >= base.shape[0]:
            self.adapter.refuse(
                f"the trained token rows of '{name}' (shape {list(self.rows.shape)}, largest token id "
                f"{index.max(initial=0)}) do not fit the base's shape {list(base.shape)}",
                "use the base model that it was trained on",
            )

        def make(start: int, stop: int) -> np.ndarray:
            out = base.rows(start, stop).copy()
            selected = np.flatnonzero((index >= start) & (index < stop))
            if len(selected):
                out[index[selected] - start] = self.rows.array()[selected]
            return out

        return lazy_tensor(name, base, make)


@dataclass(frozen=True)
class Changes:
    """What an adapter does to its base.

    Attributes:
        changed: Functions that change a tensor, by its name.
        replaced: Tensors that replace the base's.
        optional: Functions for tensors that a base may lack (biases).
        tokens: Embedding rows that replace the base's.

    """

    changed: dict[str, Change] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    optional: dict[str, Change] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)


def lazy_tensor(name: str, base: Tensor, make: Callable[[int, int], np.ndarray]) -> Tensor:
    """A lazy tensor of the base's shape; `make(start, stop)` computes its rows, stored in the base's dtype."""
    dtype = merged_dtype(base)
    return Tensor(name, dtype, base.shape, RowStorage(make, base.shape, dtype))


def merged_dtype(base: Tensor) -> str:
    """The base's dtype, or `F32` where a changed tensor cannot be stored in it."""
    return base.dtype if base.dtype in ("F64", "F32", "F16", "BF16") else "F32"
