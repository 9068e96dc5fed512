"""Native networks: build a torch module from a configuration and load the weights of a `Model` into it.

The modules need torch, so they are imported when a network is built, not with this package.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, UnreadableModelError
from stemma.networks.loading import check_tensors
from stemma.types import InputSpec

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("stemma-mlp", "stemma-cnn", "stemma-vit", "llama")
"""The values of `model_type` for which `build` makes a network."""


def build(config: Mapping[str, Any]) -> "torch.nn.Module":
    """Build a network from its configuration with fresh weights from torch's global generator, in training mode."""
    maker = _maker(config)
    try:
        return maker(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise UnreadableModelError(
            f"the configuration does not describe a valid {config['model_type']} network: {error!r}. Correct "
            "config.json"
        ) from error


def build_with_weights(model: Model) -> "torch.nn.Module":
    """Build the network of a model with its weights (dequantised), float32 or float64, in evaluation mode."""
    if model.config is None:
        raise UnreadableModelError(
            f"{model.name} has no configuration, so its network cannot be built. Add a config.json"
        )
    module = build(model.config)
    import torch

    state = {name: torch.from_numpy(t.array().copy()) for name, t in model.state.items()}
    if any(t.dtype == torch.float64 for t in state.values()):
        module = module.double()
    wanted = module.state_dict()
    state = {n: t.view(()) if t.shape == (1,) and n in wanted and wanted[n].ndim == 0 else t for n, t in state.items()}
    shapes = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    check_tensors(model.name, wanted.keys() - state.keys(), state.keys() - wanted.keys(), shapes)
    module.load_state_dict(state, strict=True)
    return module.eval()


def input_spec(config: Mapping[str, Any]) -> InputSpec:
    """The raw inputs that a network of this configuration takes."""
    if config["model_type"] == "llama":
        return InputSpec("tokens", (int(config["max_position_embeddings"]),), 0, int(config["vocab_size"]) - 1)
    return InputSpec("image", tuple(config["input_shape"]), 0.0, 1.0)


def _maker(config: Mapping[str, Any]) -> Any:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("building a network", "torch", "networks") from error
    match config.get("model_type"):
        case "stemma-mlp":
            from stemma.networks.mlp import Mlp

            return Mlp
        case "stemma-cnn":
            from stemma.networks.cnn import Cnn

            return Cnn
        case "stemma-vit":
            from stemma.networks.vit import Vit

            return Vit
        case "llama":
            from stemma.networks.language_model import LanguageModel

            return LanguageModel
        case other:
            raise UnreadableModelError(
                f"there is no built-in network for model_type {other!r}. Supported: {', '.join(MODEL_TYPES)}"
            )
