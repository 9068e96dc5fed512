"""A multimodal network as one that takes paired probes, so that all fingerprints and tests can run it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes.modalities import split_modalities
from stemma.probes.probes import Modality
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch


def side_by_side(model: Model, parts: tuple[Modality, ...]) -> Model:
    """The same model with a network that takes concatenated modalities `[n, entries]`; a black box is unchanged."""
    if model.black_box:
        return model

    def network_builder(request: Model) -> Network:
        network = model.network
        module = module_of(model)
        taken = names_taken(module)

        def forward(flat: "torch.Tensor") -> object:
            pieces = split_modalities(flat, parts)
            return module(**{n: x for n, x in pieces.items() if taken is None or n in taken})

        code = f"paired:{network.digest}"
        digest = network_digest(model.digest, code, [[p.name, list(p.shape), p.kind] for p in parts], None)
        return Network(request.name, digest, None, forward, module, tokenizer=network.tokenizer)

    made = replace(model, network_builder=network_builder)
    made.__dict__.update({k: v for k, v in model.__dict__.items() if k not in made.__dict__ and k != "network"})
    return made


def module_of(model: Model) -> "torch.nn.Module":
    """The torch module of a model; `MisuseError` if there is none."""
    module = None if model.black_box else model.network.module
    if module is None:
        raise MisuseError(
            f"{model.name} is not a torch module that takes modalities by name: build it with --network MODULE:FACTORY "
            "--allow-code, or give the module to stemma.from_module"
        )
    return module


def names_taken(module: "torch.nn.Module") -> set[str] | None:
    """Names that the forward of a module takes; None if it takes any."""
    import inspect

    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}
