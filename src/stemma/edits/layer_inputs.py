"""What a layer is given while a network runs: watched, unfolded into rows, in its own precision."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def unfolded(layer: torch.nn.Module, x: torch.Tensor, spots: torch.Tensor | None = None) -> torch.Tensor:
    """The inputs of a layer, one row for each time that its weight is used.

    Args:
        layer: A linear layer or a convolution.
        x: What it is given.
        spots: Positions of the output to look at, all if None; convolutions only.

    Returns:
        `[rows, inputs * kernel]`.
    """
    if not isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if x.ndim == 3:
        x, size, stride, dilation = x[:, :, None], (1, *size), (1, *stride), (1, *dilation)
    pads = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, [*pads, *([0, 0] * (len(pads) == 2))], mode=mode)
    if prod_of(size) == 1:
        patches = x[:, :, :: stride[0], :: stride[1]].flatten(2)
    elif spots is not None:
        return _patches(x, size, stride, dilation, spots)
    else:
        patches = F.unfold(x, size, dilation=dilation, stride=stride)
    patches = patches if spots is None else patches[:, :, spots]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _patches(x: torch.Tensor, size: Any, stride: Any, dilation: Any, spots: torch.Tensor) -> torch.Tensor:
    """Patches at some positions only, without making all of them."""
    width = (x.shape[3] - dilation[1] * (size[1] - 1) - 1) // stride[1] + 1
    top, left = (spots // width) * stride[0], (spots % width) * stride[1]
    rows = top[:, None, None] + dilation[0] * torch.arange(size[0], device=x.device)[None, :, None]
    columns = left[:, None, None] + dilation[1] * torch.arange(size[1], device=x.device)[None, None, :]
    found = x[:, :, rows, columns]  # [n, channels, spots, height, width]
    return found.permute(0, 2, 1, 3, 4).reshape(len(x) * len(spots), -1)


def prod_of(sizes: Sequence[int]) -> int:
    """Product of some lengths."""
    out = 1
    for n in sizes:
        out *= int(n)
    return out


def matrix(layer: Any) -> torch.Tensor:
    """A layer's weight as `[outputs, inputs * kernel]`, in the order of `unfolded`.

    Returns:
        A view where possible, in the layer's own precision.
    """
    weight = layer.weight
    if type(layer).__name__ == "Conv1D":  # transformers' linear layer with the axes exchanged
        return weight.t()
    return weight.reshape(len(weight), -1)


def scorable(layer: torch.nn.Module) -> bool:
    """Whether a layer's inputs can be watched: linear layers and convolutions of one and two dimensions.

    Returns:
        False for any other module.
    """
    plain = type(layer).__name__ in ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D", "Conv2d", "Conv1d")
    return plain and isinstance(getattr(layer, "weight", None), torch.Tensor)


def outputs_at(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """How many positions one input of a convolution gives; 0 for other layers."""
    if not isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        return 0
    with torch.no_grad():
        shape = torch.empty(1, *x.shape[1:], device="meta", dtype=x.dtype)
        weight = layer.weight.to("meta")
        pads = layer._reversed_padding_repeated_twice
        conv = F.conv2d if x.ndim == 4 else F.conv1d
        return prod_of(conv(F.pad(shape, pads), weight, None, layer.stride, 0, layer.dilation, layer.groups).shape[2:])


@contextmanager
def watching(module: torch.nn.Module, layers: Sequence[str], seen: Callable[[str, torch.nn.Module, torch.Tensor], None]
             ) -> Generator[None]:  # fmt: skip
    """Call a function with what some layers are given.

    Args:
        module: Holds the layers.
        layers: Their names.
        seen: Called with name, layer and input, each time that a layer is used.

    Yields:
        While the layers are watched.
    """

    def hook(name: str) -> Any:
        return lambda layer, given, named: seen(name, layer, only_input(given, named))

    handles = [module.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def wide(x: torch.Tensor) -> torch.Tensor:
    """Half precision made single, so that sums neither overflow nor lose what is small."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def only_input(given: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor:
    """What a layer with one input is given, by place or by name."""
    return (given[0] if given else next(iter(named.values()))).detach()


def batch_of(inputs: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Some inputs in the network's precision and on its device; token ids stay integers."""
    x = torch.from_numpy(np.require(inputs, requirements="CW"))
    return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
