"""Where the blocks of a stored transformer lie, and which transformers can be pruned block by block."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.errors import MisuseError
from stemma.networks.open import is_native

STORED = ("F32", "F16", "BF16")
"""Types of weights that are read and written block by block."""


@dataclass(frozen=True)
class Places:
    """Names of modules of an architecture.

    Attributes:
        blocks: The list of blocks.
        norm: What runs behind the last block; empty where the head is more than one product.
        trunk: The part that checkpoints of the trunk alone leave out of names.
        head: The layer that makes logits of what the norm returns, and the embedding that it may be tied to.
    """

    blocks: str
    norm: str
    trunk: str
    head: tuple[str, ...] = ()


_LLAMA = Places("model.layers", "model.norm", "model", ("lm_head", "model.embed_tokens"))

PLACES: Mapping[str, Places] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "olmo2"), _LLAMA),
    "phi": Places("model.layers", "model.final_layernorm", "model", ("lm_head",)),
    "gpt2": Places("transformer.h", "transformer.ln_f", "transformer", ("lm_head", "transformer.wte")),
    "bert": Places("bert.encoder.layer", "", "bert"),
}
"""Architectures that can be pruned block by block."""

HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
"""Ends of the names of classes whose blocks read token ids and nothing else."""

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
"""Entries of configurations that number the blocks."""

PER_LAYER = ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_encoder_decoder")
"""Entries that make blocks of one kind differ from each other, or read more than hidden states."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The stored tensors of a transformer, divided into blocks.

    Attributes:
        model: The model.
        places: Names of its modules.
        depth: Number of blocks.
        depth_key: Entry of the configuration that holds it.
    """

    model: Model
    places: Places
    depth: int
    depth_key: str

    @cached_property
    def blocks(self) -> list[dict[str, Tensor]]:
        """The tensors of each block, by name inside the block."""
        out: list[dict[str, Tensor]] = [{} for _ in range(self.depth)]
        for name, tensor in self.model.tensors.items():
            found = self._pattern.fullmatch(name)
            if found and int(found[1]) < self.depth:
                out[int(found[1])][found[2]] = tensor
        return out

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """The tensors outside of all blocks, by stored name."""
        inside = {t.name for block in self.blocks for t in block.values()}
        return {n: t for n, t in self.model.tensors.items() if n not in inside}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the model."""
        return dict(self.model.config or {})

    def block(self, i: int) -> str:
        """The name of a block's module."""
        return f"{self.places.blocks}.{i}"

    def stored(self, name: str) -> Tensor | None:
        """The stored tensor of a weight outside of the blocks, by its name in the module."""
        return self.others.get(name) or self.others.get(name.removeprefix(f"{self.places.trunk}."))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        inner = self.places.blocks.removeprefix(f"{self.places.trunk}.")
        return re.compile(rf"(?:{re.escape(self.places.trunk)}\.)?{re.escape(inner)}\.(\d+)\.(.+)")


def why_not(model: Model) -> str | None:
    """Why a model cannot be pruned block by block, as a sentence without end; None if it can."""
    config = model.config or {}
    kind = str(config.get("model_type"))
    if kind not in PLACES:
        known = ", ".join(sorted(PLACES))
        return f"blocks are known of the architectures {known}, not of {config.get('model_type')!r:.60}"
    named = config.get("architectures")
    if not (isinstance(named, (list, tuple)) and named) and not is_native(config):
        return "the configuration names no class under 'architectures'"
    name = str(named[0]) if named else HEADS[0]
    if not (name.endswith(HEADS) or kind == "bert"):
        return f"the class {name:.60} is none with a language modelling head"
    for key in PER_LAYER:
        if config.get(key):
            return f"the configuration sets {key}"
    key = next((k for k in DEPTHS if isinstance(config.get(k), int)), None)
    if key is None or not 0 < config[key] <= len(model.tensors):
        return "the configuration does not say how many blocks there are"
    odd = sorted({t.dtype for t in model.tensors.values() if t.is_float or len(t.shape) > 1} - {*STORED, "BOOL", "U8"})
    if odd:
        return f"weights are stored as {', '.join(odd)}, not as {', '.join(STORED)}"
    return None


def layout_of(model: Model) -> Layout:
    """The blocks of a model; `MisuseError` if it cannot be pruned block by block."""
    why = why_not(model)
    if why is None:
        config = model.config or {}
        key = next(k for k in DEPTHS if isinstance(config.get(k), int))
        layout = Layout(model, PLACES[str(config["model_type"])], int(config[key]), key)
        why = _unequal(layout)
        if why is None:
            return layout
    raise MisuseError(f"{model.name} cannot be pruned block by block: {why}. Prune it in memory (--no-stream)")


def _unequal(layout: Layout) -> str | None:
    """Why the blocks are not all alike; None if they are."""
    shapes = [{n: t.shape for n, t in block.items() if t.is_float} for block in layout.blocks]
    for i, block in enumerate(shapes):
        if not block:
            return f"block {i} of {layout.depth} has no weights"
        if block != shapes[0]:
            name = sorted(n for n in block.keys() | shapes[0].keys() if block.get(n) != shapes[0].get(n))[0]
            return f"block {i} differs from the first in {name:.80}"
    return None


def kinds(layout: Layout, settings: Any) -> list[str]:
    """The kind of attention of every block, such as `sliding_attention`; empty words where all are alike."""
    found = getattr(settings, "layer_types", None)
    if found is None or len(found) != layout.depth:
        return [""] * layout.depth
    return [str(k) for k in found]


def token_rows(tensor: Tensor, rows: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """A tensor outside of the blocks, of a table of tokens only some rows."""
    if tensor.shape == wanted:
        return tensor.array()
    return tensor.take(rows)
