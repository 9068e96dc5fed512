"""Looking into a network: modules by name, what passes through them, and which one is the head."""

import difflib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError, StemmaError
from stemma.types.network import Network, main_output

if TYPE_CHECKING:
    import torch


def opened(network: Network, method: str) -> "torch.nn.Module":
    """The module inside a network.

    Args:
        network: The network.
        method: Who asks, for errors.

    Returns:
        The module.

    Raises:
        MisuseError: If it is a black box.
    """
    if network.module is None:
        raise MisuseError(
            f"{network.name} is a black box: {method} looks inside. Compare outputs instead (--method outputs)"
        )
    return network.module


def named(network: Network, module: "torch.nn.Module", layer: str) -> "torch.nn.Module":
    """A module inside by its name.

    Args:
        network: Whose it is, for errors.
        module: The module around it.
        layer: As in `named_modules`.

    Returns:
        The module.

    Raises:
        MisuseError: If there is none, with the nearest names.
    """
    modules = dict(module.named_modules())
    if layer in modules:
        return modules[layer]
    names = [name for name in modules if name]
    near = difflib.get_close_matches(layer, names, 4, 0.3) or names[-4:]
    raise MisuseError(f"{network.name} has no layer '{layer}'. Nearest are: {', '.join(near) or 'none'}")


def head(network: Network, module: "torch.nn.Module", inputs: "torch.Tensor") -> "torch.nn.Module":
    """The last linear or convolution module that is run.

    Args:
        network: The network.
        module: Its module.
        inputs: A probe, to see the order in which modules are run.

    Returns:
        The head.

    Raises:
        MisuseError: If there is no such module.
    """
    import torch

    ran: list[torch.nn.Module] = []
    handles = [
        part.register_forward_pre_hook(lambda part, _: ran.append(part)) for part in module.modules() if maps(part)
    ]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise MisuseError(f"{network.name} runs no linear or convolution module: name a layer with -P layer=NAME")
    return ran[-1]


@contextmanager
def watching(
    module: "torch.nn.Module", change: "Callable[[torch.Tensor], torch.Tensor] | None" = None, *, entering: bool = False
) -> "Generator[list[torch.Tensor]]":
    """See what leaves (or enters) a module while the network runs.

    Args:
        module: The module.
        change: Makes what goes on in its place, so that it can be differentiated; nothing is changed without.
        entering: See its first input instead of its output.

    Yields:
        A list that every run of the module appends to. The hook is gone afterwards.
    """
    seen: list[torch.Tensor] = []

    def see(given: Any) -> Any:
        found = main_output(given)
        if found is None:
            raise StemmaError(f"{type(module).__name__} gives no tensor: name another layer")
        new = found if change is None else change(found)
        seen.append(new)
        return None if change is None else _replaced(given, found, new.clone())  # what follows may write into it

    if entering:
        handle = module.register_forward_pre_hook(lambda _, given: see(given))
    else:
        handle = module.register_forward_hook(lambda _, __, given: see(given))
    try:
        yield seen
    finally:
        handle.remove()


def channels_last(module: "torch.nn.Module", seen: "torch.Tensor") -> bool:
    """Whether the channels are the last axis of what passes through a module, and not the one after the batch."""
    name = type(module).__name__
    if name.endswith(("1d", "2d", "3d")):
        return False
    return seen.ndim == 3 or "Linear" in name or "LayerNorm" in name


def maps(part: "torch.nn.Module") -> bool:
    """Linear and convolution modules, also those of other libraries (quantised, LoRA, GPT-2's `Conv1D`)."""
    name = type(part).__name__
    return any(word in name for word in ("Linear", "Conv")) and any(p.ndim > 1 for p in part.parameters(recurse=False))


def _replaced(given: Any, found: "torch.Tensor", new: "torch.Tensor") -> Any:
    """The same answer with one tensor exchanged."""
    if isinstance(given, tuple):
        return tuple(new if part is found else part for part in given)
    if given is found:
        return new
    raise StemmaError("this layer answers with an object that cannot be differentiated: name a layer inside it")
