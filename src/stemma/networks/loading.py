"""Weights of a model into a module, all of them or none."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor_names import strip_prefix
from stemma.errors import UnreadableModelError

if TYPE_CHECKING:
    import torch

SHOWN = 3
"""Names that an error lists of each kind."""


def state(model: Model) -> "dict[str, torch.Tensor]":
    """The weights as torch tensors: narrow floats in float32, quantised ones dequantised.

    Cost: memory for all of them.

    Returns:
        Tensors by canonical name; they own their memory.
    """
    import torch

    return {name: torch.from_numpy(t.array().copy()) for name, t in model.state.items()}


def load_strictly(module: "torch.nn.Module", model: Model) -> None:
    """Put the weights of a model into a module.

    A tied tensor that the module knows under several names may be stored under any one of them.

    Args:
        module: Changed in place; it becomes float64 where the weights are.
        model: Its weights.

    Raises:
        UnreadableModelError: If names or shapes do not fit.
    """
    import torch

    found = state(model)
    if any(t.dtype == torch.float64 for t in found.values()):
        module.double()
    stored = module.state_dict(keep_vars=True)
    short = strip_prefix(list(stored))
    wanted = {short[name]: tensor for name, tensor in stored.items()}
    shared: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        shared.setdefault(id(tensor), []).append(name)
    for names in shared.values():
        here = next((n for n in names if n in found), None)
        if here is not None:
            found.update({n: found[here] for n in names if n not in found})
    shapes = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    refuse_misfits(model.name, [n for n in wanted if n not in found], [n for n in found if n not in wanted], shapes)
    module.load_state_dict({name: found[short[name]] for name in stored}, strict=True)


def refuse_misfits(name: str, missing: Collection[str], unexpected: Collection[str], shapes: Collection[str]) -> None:
    """One sentence on weights that do not fit their network.

    Args:
        name: The model's.
        missing: Tensors that the network has and the file lacks.
        unexpected: Tensors of the file that the network lacks.
        shapes: Tensors of another shape.

    Raises:
        UnreadableModelError: If there is any.
    """
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]
    if parts:
        raise UnreadableModelError(
            f"the tensors of {name} do not fit its network: {', '.join(parts)}. "
            "Is this the network that they were trained in?"
        )


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (", …" if len(names) > SHOWN else "")
