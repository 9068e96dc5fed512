"""Submodules of a network: find them by name, find the head, capture their tensors."""

import difflib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError, StemmaError
from stemma.types.network import Network, main_output

if TYPE_CHECKING:
    import torch


def module_of(network: Network, method: str) -> "torch.nn.Module":
    """The torch module of a network; raises for a black box."""
    if network.module is None:
        raise MisuseError(
            f"{network.name} is a black box, but {method} needs its layers. Compare outputs instead (--method outputs)"
        )
    return network.module


def find_layer(network: Network, module: "torch.nn.Module", layer: str) -> "torch.nn.Module":
    """A submodule by name (as in `named_modules`); raises with similar names if there is none."""
    modules = dict(module.named_modules())
    if layer in modules:
        return modules[layer]
    names = [name for name in modules if name]
    similar = difflib.get_close_matches(layer, names, 4, 0.3) or names[-4:]
    raise MisuseError(f"{network.name} has no layer '{layer}'. Similar names: {', '.join(similar) or 'none'}")


def find_head(network: Network, module: "torch.nn.Module", inputs: "torch.Tensor") -> "torch.nn.Module":
    """The last linear or convolution module that runs on a probe."""
    import torch

    ran: list[torch.nn.Module] = []
    handles = [
        part.register_forward_pre_hook(lambda part, _: ran.append(part))
        for part in module.modules()
        if is_linear_or_convolution(part)
    ]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise MisuseError(
            f"{network.name} has no linear or convolution module (a .pt2 program has none): give bare weights with "
            "--network MODULE:FACTORY, or name a layer where -P layer=NAME is taken"
        )
    return ran[-1]


@contextmanager
def capture(
    module: "torch.nn.Module", change: "Callable[[torch.Tensor], torch.Tensor] | None" = None, *, entering: bool = False
) -> "Generator[list[torch.Tensor]]":
    """Capture the outputs (or first inputs) of a module in a list; `change` may replace the tensor by a leaf."""
    captured: list[torch.Tensor] = []

    def hook(value: Any) -> Any:
        tensor = main_output(value)
        if tensor is None:
            raise StemmaError(f"{type(module).__name__} returns no tensor. Name another layer")
        new = tensor if change is None else change(tensor)
        captured.append(new)
        return (
            None if change is None else _with_tensor(value, tensor, new.clone())
        )  # later layers may modify it in place

    if entering:
        handle = module.register_forward_pre_hook(lambda _, value: hook(value))
    else:
        handle = module.register_forward_hook(lambda _, __, value: hook(value))
    try:
        yield captured
    finally:
        handle.remove()


def channels_last(module: "torch.nn.Module", captured: "torch.Tensor") -> bool:
    """Whether the channels of a captured tensor are its last axis, not the one after the batch."""
    name = type(module).__name__
    if name.endswith(("1d", "2d", "3d")):
        return False
    return captured.ndim == 3 or "Linear" in name or "LayerNorm" in name


def is_linear_or_convolution(part: "torch.nn.Module") -> bool:
    """Whether a module is linear or a convolution, also of other libraries (quantised, LoRA, GPT-2's `Conv1D`)."""
    name = type(part).__name__
    return any(word in name for word in ("Linear", "Conv")) and any(p.ndim > 1 for p in part.parameters(recurse=False))


def _with_tensor(value: Any, tensor: "torch.Tensor", new: "torch.Tensor") -> Any:
    """The same output with one tensor replaced."""
    if isinstance(value, tuple):
        return tuple(new if part is tensor else part for part in value)
    if value is tensor:
        return new
    raise StemmaError("this layer returns an object that cannot be differentiated. Name a layer inside it")
