"""Load the weights of a model into a torch module, all of them or none."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor_names import strip_prefix
from stemma.errors import UnreadableModelError

if TYPE_CHECKING:
    import torch

NAMES_SHOWN = 3
"""Names that an error lists of each kind."""


def torch_state(model: Model) -> "dict[str, torch.Tensor]":
    """Weights as torch tensors by canonical name: narrow floats in float32, codes dequantised."""
    import torch

    return {name: torch.from_numpy(t.array().copy()) for name, t in model.state.items()}


def load_strictly(module: "torch.nn.Module", model: Model) -> None:
    """Load the weights of a model into a module, in place; a tied tensor may be stored under any of its names."""
    import torch

    found = torch_state(model)
    if any(t.dtype == torch.float64 for t in found.values()):
        module.double()
    stored = module.state_dict(keep_vars=True)
    short = strip_prefix(list(stored))
    wanted = {short[name]: tensor for name, tensor in stored.items()}
    shared: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        shared.setdefault(id(tensor), []).append(name)
    for names in shared.values():
        stored_name = next((n for n in names if n in found), None)
        if stored_name is not None:
            found.update({n: found[stored_name] for n in names if n not in found})
    shapes = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    check_tensors(model.name, [n for n in wanted if n not in found], [n for n in found if n not in wanted], shapes)
    module.load_state_dict({name: found[short[name]] for name in stored}, strict=True)


def check_tensors(name: str, missing: Collection[str], unexpected: Collection[str], shapes: Collection[str]) -> None:
    """Raise if tensors are missing, unexpected or of the wrong shape."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
    parts = [f"{len(names)} {kind} ({_first_names(names)})" for kind, names in kinds if names]
    if parts:
        raise UnreadableModelError(
            f"the tensors of {name} do not fit its network: {', '.join(parts)}. "
            "Use the network that they were trained in"
        )


def _first_names(names: Collection[str]) -> str:
    shown = sorted(names)[:NAMES_SHOWN]
    return ", ".join(shown) + (", …" if len(names) > NAMES_SHOWN else "")
