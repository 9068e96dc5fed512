"""The four kinds of zoo networks: their configurations and training schedules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.errors import UnknownNameError


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: Adam, linear warm-up over a tenth of the steps, then a cosine down to a twentieth.

    Attributes:
        steps: Updates.
        batch: Examples per update.
        rate: Highest learning rate.
    """

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Attributes:
        name: `mlp`, `cnn`, `vit` or `lm`.
        config: Configuration of the roots.
        other: Another architecture of the same kind.
        schedule: Training from scratch.
        tuning: Fine-tuning, distilling and repairing take these instead.
    """

    name: str
    config: Mapping[str, Any]
    other: Mapping[str, Any]
    schedule: Schedule
    tuning: Schedule


_IMAGE = {"input_shape": [1, 8, 8], "classes": 10}
_MLP = {"model_type": "stemma-mlp", **_IMAGE, "hidden": [64, 64, 48]}
_CNN = {"model_type": "stemma-cnn", **_IMAGE, "stem": 16, "widths": [16, 32, 32], "strides": [2, 2, 1]}
_VIT = {"model_type": "stemma-vit", **_IMAGE, "patch": 2, "width": 32, "depth": 3, "heads": 4, "inner": 64}
_LM = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}

_WIDE_MLP = {**_MLP, "hidden": [80, 56]}
_WIDE_CNN = {**_CNN, "stem": 24, "widths": [24, 40], "strides": [2, 2]}
_WIDE_VIT = {**_VIT, "width": 48, "inner": 96, "depth": 2}
_SMALL_LM = {**_LM, "hidden_size": 48, "intermediate_size": 128, "head_dim": 12, "num_hidden_layers": 2}

_ALL = (
    Kind("mlp", _MLP, _WIDE_MLP, Schedule(320, 32, 4e-3), Schedule(80, 32, 1e-3)),
    Kind("cnn", _CNN, _WIDE_CNN, Schedule(120, 32, 8e-3), Schedule(60, 32, 2e-3)),
    Kind("vit", _VIT, _WIDE_VIT, Schedule(500, 32, 4e-3), Schedule(80, 32, 1e-3)),
    Kind("lm", _LM, _SMALL_LM, Schedule(250, 16, 6e-3), Schedule(80, 16, 1.5e-3)),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ALL}
"""The kinds by name."""


def kind_of(name: str) -> Kind:
    """A kind by its name."""
    if name not in KINDS:
        raise UnknownNameError(f"no kind of zoo network is called {name!r}. There are: {', '.join(KINDS)}.")
    return KINDS[name]


def seed_for(seed: int, *path: int) -> int:
    """A seed of its own for each place in a recipe: an integer below 2^63 that depends on all arguments."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)
