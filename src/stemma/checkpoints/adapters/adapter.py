"""An adapter as its folder holds it, and what it does to the tensors of its base."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.errors import UnreadableModelError

MERGE = "merge it with PEFT's merge_and_unload and give the result"
"""What to do with an adapter that is not read."""

CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""What configs call the architectures whose linear layers keep `[in, out]`."""

CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

PLAIN = re.compile(r"(?:[\w.\-|()^$]|\(\?:|\\[.dw]|\[[\w\-]+\]|(?<=[\w.\])])(?<!\))[*+?])*")
"""Regular expressions that are run: no quantifier of a group, so that none can take for ever."""

Change = Callable[[str, Tensor], Tensor]
"""Makes the changed tensor from its name in the base and the base's tensor; raises where they do not fit."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds.

    Attributes:
        folder: The folder, for messages.
        tensors: Its tensors by name, without the prefix that PEFT puts before every name.
        config: Its `adapter_config.json`.
        base_config: The `config.json` of its base; empty without one.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    base_config: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, why: str, instead: str = MERGE) -> NoReturn:
        """Refuse it by name.

        Args:
            why: What is wrong, or not read.
            instead: What to do.

        Raises:
            UnreadableModelError: Always.
        """
        raise UnreadableModelError(f"{self.folder}: {why}; {instead}")

    def pattern(self, option: str, module: str, default: Any) -> Any:
        """What `rank_pattern` or `alpha_pattern` says of a module.

        Args:
            option: The option's name.
            module: The module's name.
            default: What holds where no pattern does.

        Returns:
            The value of the first key that is the module's name, its end, or a regular expression of either.

        Raises:
            UnreadableModelError: If a key is a regular expression that could take for ever.
        """
        patterns = self.config.get(option)
        for key, value in patterns.items() if isinstance(patterns, dict) else ():
            if len(key) > 200 or sum(key.count(c) for c in "*+") > 2 or not PLAIN.fullmatch(key):
                self.refuse(f"'{key[:80]}' of its {option} is a regular expression that is not run")
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            except re.error as e:
                self.refuse(f"'{key}' of its {option} is no regular expression ({e})")
        return default

    def transposed(self, module: str) -> bool:
        """Whether a square matrix of the base keeps `[in, out]`: its shape cannot tell.

        Args:
            module: The module's name.

        Returns:
            What the adapter says, or what the base's architecture has; PEFT keeps one flag for all modules.
        """
        conv1d = self.base_config.get("model_type") in CONV1D and module.rpartition(".")[2] in CONV1D_LAYERS
        return bool(self.config.get("fan_in_fan_out")) or conv1d


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that were trained by themselves.

    Attributes:
        adapter: Where they come from.
        index: Which rows.
        rows: What stands there.
    """

    adapter: Adapter
    index: tuple[int, ...]
    rows: Tensor

    def apply(self, name: str, base: Tensor) -> Tensor:
        """Put the rows into the base's tensor.

        Args:
            name: Its name in the base.
            base: The tensor.

        Returns:
            The tensor with its rows.

        Raises:
            UnreadableModelError: If they do not fit.
        """
        index = np.array(self.index, int)
        if self.rows.shape[1:] != base.shape[1:] or not base.is_float or index.max(initial=0) >= base.shape[0]:
            self.adapter.refuse(
                f"the trained tokens of '{name}' ({list(self.rows.shape)}, up to number {index.max(initial=0)}) do not "
                f"fit its base's {list(base.shape)}",
                "give the base that it was trained on",
            )

        def make(start: int, stop: int) -> np.ndarray:
            out = base.rows(start, stop).copy()
            here = np.flatnonzero((index >= start) & (index < stop))
            if len(here):
                out[index[here] - start] = self.rows.array()[here]
            return out

        return remade(name, base, make)


@dataclass(frozen=True)
class Changes:
    """What an adapter does to its base.

    Attributes:
        changed: Changes by the name of the tensor.
        whole: Tensors that stand in the place of the base's.
        optional: Changes of tensors that a base may lack: biases.
        tokens: Rows that stand in the place of the base's.
    """

    changed: dict[str, Change] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    optional: dict[str, Change] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)


def remade(name: str, base: Tensor, make: Callable[[int, int], np.ndarray]) -> Tensor:
    """A tensor of the base's shape whose rows are computed, rounded to the base's width as a stored merge would be.

    Args:
        name: Its name.
        base: The base's tensor.
        make: `make(start, stop)` returns those rows.

    Returns:
        The tensor.
    """
    dtype = width(base)
    return Tensor(name, dtype, base.shape, RowStorage(make, base.shape, dtype))


def width(base: Tensor) -> str:
    """The float type of a changed tensor.

    Returns:
        The base's own, or `F32` where that cannot be written.
    """
    return base.dtype if base.dtype in ("F64", "F32", "F16", "BF16") else "F32"
