"""A network of one block, into which the weights of one stored block after another are put."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.arrays import from_arrays
from stemma.checkpoints.model import Model
from stemma.edits.editable_network import EditableNetwork, editable_copy
from stemma.edits.streaming.layout import Layout, token_rows
from stemma.errors import MisuseError, UnreadableModelError
from stemma.networks.load import runnable
from stemma.networks.unfilled import settings_of, unfilled_module


class _ReachedError(Exception):
    """Ends a forward pass at the block."""


@dataclass(frozen=True, eq=False)
class Template:
    """A network of one block of a model, with a table of only the tokens that the probes have.

    Attributes:
        layout: The model.
        tokens: Ids that the probes have, ascending.
        kind: Kind of attention of its block; empty where all blocks are alike.
        editable: The network of one block.
        arguments: What the block is given beside hidden states, by batch size.
    """

    layout: Layout
    tokens: np.ndarray
    kind: str
    editable: EditableNetwork
    arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of_block(cls, layout: Layout, tokens: np.ndarray, block: int, kind: str) -> tuple["Template", Model]:
        """The network of one block, with its weights, and the same as a model."""
        config = _short_config(layout, len(tokens), kind)
        name = layout.block(0)
        with torch.device("meta"):
            wanted = {n: tuple(t.shape) for n, t in unfilled_module(layout.model, config).state_dict().items()}
        arrays: dict[str, Any] = {}
        for n, shape in wanted.items():
            if n.startswith(f"{name}."):
                stored = layout.blocks[block].get(n.removeprefix(f"{name}."))
            else:
                stored = layout.stored(n)
            if stored is not None:
                arrays[n] = token_rows(stored, tokens, shape) if not n.startswith(f"{name}.") else stored.array()
        model = runnable(from_arrays(arrays, f"one block of {layout.model.name}", config))
        return cls(layout, tokens, kind, editable_copy(model)), model

    def ids(self, inputs: np.ndarray) -> np.ndarray:
        """Token ids as this network numbers them."""
        return np.searchsorted(self.tokens, inputs).astype(inputs.dtype)

    def fill(self, block: int) -> None:
        """Put the weights of a stored block into the network."""
        prefix = f"{self.layout.block(0)}."
        with torch.no_grad():
            for name, own in self.editable.module.named_parameters():
                if name.startswith(prefix):
                    stored = self.layout.blocks[block].get(name.removeprefix(prefix))
                    if stored is None:
                        raise UnreadableModelError(f"block {block} of {self.layout.model.name} no "
                                                   f"{name.removeprefix(prefix)}: give it as saved")  # fmt: skip
                    own.copy_(torch.from_numpy(stored.array()))

    def embedded(self, ids: np.ndarray) -> torch.Tensor:
        """What the first block reads for token ids of this network."""
        return self._reach(self.editable, torch.from_numpy(ids))[0][0]

    def block_of(self, editable: EditableNetwork) -> Callable[[torch.Tensor], torch.Tensor]:
        """The block of a copy of this network, as a function of hidden states `[n, length, width]`."""
        block = editable.module.get_submodule(self.layout.block(0))

        def run(x: torch.Tensor) -> torch.Tensor:
            given, named = self._beside(x)
            found = block(x, *given, **named)
            return found[0] if isinstance(found, (tuple, list)) else found

        return run

    def ends(self, ids: np.ndarray, states: torch.Tensor) -> torch.Tensor:
        """What the network makes of given outputs of its block: the normed states before a head, else its outputs."""
        module, places = self.editable.module, self.layout.places
        block = module.get_submodule(self.layout.block(0))
        seen: list[torch.Tensor] = []

        def instead(_: Any, given: Any, out: Any) -> Any:
            return (states, *out[1:]) if isinstance(out, (tuple, list)) else states

        handles = [block.register_forward_hook(instead)]
        if places.norm:
            norm = module.get_submodule(places.norm)
            handles.append(norm.register_forward_hook(lambda _, given, out: seen.append(out)))
        try:
            with torch.no_grad():
                out = self.editable.network(torch.from_numpy(ids))
        finally:
            for handle in handles:
                handle.remove()
        return seen[0] if places.norm else out

    def _beside(self, x: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        key = (len(x), x.shape[1])
        if key not in self.arguments:
            self.arguments[key] = self._reach(self.editable, torch.zeros(key, dtype=torch.int64), drop=True)
        return self.arguments[key]

    def _reach(
        self, editable: EditableNetwork, ids: torch.Tensor, *, drop: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(_: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            named = dict(named)
            if not given:  # the hidden states are given by name
                given = (named.pop("hidden_states"),)
            found.append((given, named))
            raise _ReachedError

        block = editable.module.get_submodule(self.layout.block(0))
        handle = block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                editable.forward(ids)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        if not found:
            raise MisuseError(f"{self.layout.model.name} does not run its blocks one after another, so it cannot be "
                              "pruned block by block (--no-stream)")  # fmt: skip
        given, named = found[0]
        return (given[1:], named) if drop else (given, named)

    def copy(self) -> EditableNetwork:
        """A copy of the network that may be cut."""
        import copy

        module = copy.deepcopy(self.editable.module)
        return replace(self.editable, module=module, like=next(module.parameters()))


def _short_config(layout: Layout, words: int, kind: str) -> dict[str, Any]:
    """The configuration of the network of one block."""
    config = layout.config | {layout.depth_key: 1, "vocab_size": words}
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):  # they may lie outside of the shorter table
        if config.get(key) is not None or layout.config["model_type"] == "bert":
            config[key] = None
    if kind:
        config["layer_types"] = [kind]
    config.pop("max_window_layers", None)
    return config


def block_kinds(layout: Layout) -> list[str]:
    """The kind of attention of every block."""
    from stemma.edits.streaming.layout import kinds

    settings = settings_of(layout.model, layout.config)
    return [""] * layout.depth if settings is None else kinds(layout, settings)
