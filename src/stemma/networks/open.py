"""Open the network of a model: native configurations, Hugging Face folders, torch.export programs, ONNX files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints import folders
from stemma.checkpoints.model import Model
from stemma.errors import UnreadableModelError
from stemma.networks import MODEL_TYPES, build_with_weights, input_spec, tokenizer
from stemma.networks.from_factory import network_from_factory
from stemma.networks.from_module import from_module
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch

__all__ = ["from_module", "network_from_factory", "open_network"]

LLAMA_KEYS = frozenset(
    {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
     "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "max_position_embeddings"}
)  # fmt: skip
"""Required fields of a Llama configuration for the native network; others go to transformers."""

BYTE_VALUES = 256
"""Vocabulary of a byte-level network without tokenizer."""


def open_network(model: Model) -> Network:
    """The network of a model, in evaluation mode; raises if nothing says how to run its weights."""
    file = _file(model)
    if file is not None and file.suffix.lower() == ".onnx":
        from stemma.networks.onnx_graph import open_onnx

        return open_onnx(model, file)
    if file is not None and file.suffix.lower() == ".pt2":
        from stemma.networks.torch_export import open_exported

        return open_exported(model, file)
    config = model.config or {}
    if is_native(config):
        return _native_network(model, config)
    if config.get("model_type"):
        from stemma.networks.hugging_face import open_hugging_face

        return open_hugging_face(model)
    raise UnreadableModelError(
        f"{model.name} has weights but no network definition, so it cannot be run. Use a folder with config.json, or "
        "--network MODULE:FACTORY --allow-code"
    )


def _file(model: Model) -> Path | None:
    # the file with the weights, None if there are several or none
    path = Path(model.source)
    if model.source.startswith("python:") or not path.exists():
        return None
    return folders.weight_file(path) if path.is_dir() else path


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a configuration describes a network of Stemma's own code."""
    if config.get("model_type") != "llama":
        return config.get("model_type") in MODEL_TYPES
    plain = not any(config.get(k) for k in ("attention_bias", "mlp_bias", "rope_scaling", "rope_parameters"))
    silu = config.get("hidden_act", "silu") == "silu"
    named = config.get("architectures") in (None, ["LlamaForCausalLM"])
    return plain and silu and named and config.keys() >= LLAMA_KEYS


def _native_network(model: Model, config: Mapping[str, Any]) -> Network:
    module = build_with_weights(model)
    spec = input_spec(config)
    digest = network_digest(model.digest, f"stemma:{config['model_type']}", dict(config), spec)
    if spec.kind != "tokens":
        return Network(model.name, digest, spec, module, module)
    folder = Path(model.source).parent if Path(model.source).is_file() else Path(model.source)
    tokenizer_digest = tokenizer.vocabulary_digest(folder) or ("bytes" if spec.high == BYTE_VALUES - 1 else None)
    return Network(
        model.name, digest, spec, module, module, from_one_hot=_one_hot_forward(module), tokenizer=tokenizer_digest
    )


def native_token_spec(model: Model, config: Mapping[str, Any]) -> Network:
    """The network of Stemma's own code as far as it is known without weights: it cannot be run."""
    spec = input_spec(config)
    folder = Path(model.source).parent if Path(model.source).is_file() else Path(model.source)
    digest = network_digest(model.digest, f"stemma:{config['model_type']}", dict(config), spec)
    return Network(model.name, digest, spec, lambda x: x, tokenizer=tokenizer.vocabulary_digest(folder))


def _one_hot_forward(module: Any) -> "Callable[[torch.Tensor], torch.Tensor]":
    def forward(one_hot: "torch.Tensor") -> "torch.Tensor":
        table = module.model.embed_tokens.weight
        return module.from_embeddings(one_hot.to(table.dtype) @ table[: one_hot.shape[-1]])

    return forward
