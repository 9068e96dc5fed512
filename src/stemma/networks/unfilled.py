"""Networks without weights: what a configuration builds, for shapes, input spaces and tokens, at no memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.model import Model
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


def settings_of(model: Model, config: Mapping[str, Any]) -> Any:
    """The configuration as transformers reads it; None where the network is Stemma's own."""
    from stemma.networks.hugging_face import read_settings
    from stemma.networks.open import is_native

    return None if is_native(config) else read_settings(model, config)


def unfilled_module(model: Model, config: Mapping[str, Any]) -> "torch.nn.Module":
    """The module that a configuration builds, on torch's meta device, in evaluation mode."""
    import torch

    from stemma import networks
    from stemma.networks.hugging_face import build_unfilled
    from stemma.networks.open import is_native

    with torch.device("meta"):
        return networks.build(config).eval() if is_native(config) else build_unfilled(model, config).eval()


def described(model: Model) -> Model:
    """The model with a network that has no weights: it tells the input space and the tokenizer, but cannot be run."""
    from dataclasses import replace

    return replace(model, network_builder=_described_network)


def _described_network(model: Model) -> Network:
    from pathlib import Path

    from stemma.networks.hugging_face import describe_tokens
    from stemma.networks.open import is_native, native_token_spec

    config = model.config or {}
    if is_native(config):
        return native_token_spec(model, config)
    source = Path(model.source)
    return describe_tokens(model, unfilled_module(model, config), source if source.is_dir() else source.parent)
