"""The inputs of a layer while a network runs: hooked, unfolded into rows, as a matrix product."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def unfold_inputs(layer: torch.nn.Module, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """The inputs `[rows, inputs * kernel]` of a linear layer or convolution, one row per use of its weight."""
    # Of a convolution only some output positions are taken, all if None.
    if not isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if x.ndim == 3:
        x, size, stride, dilation = x[:, :, None], (1, *size), (1, *stride), (1, *dilation)
    pads = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, [*pads, *([0, 0] * (len(pads) == 2))], mode=mode)
    if prod(size) == 1:
        patches = x[:, :, :: stride[0], :: stride[1]].flatten(2)
    elif positions is not None:
        return _patches(x, size, stride, dilation, positions)
    else:
        patches = F.unfold(x, size, dilation=dilation, stride=stride)
    patches = patches if positions is None else patches[:, :, positions]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _patches(x: torch.Tensor, size: Any, stride: Any, dilation: Any, positions: torch.Tensor) -> torch.Tensor:
    """Patches at some positions only, without making all of them."""
    width = (x.shape[3] - dilation[1] * (size[1] - 1) - 1) // stride[1] + 1
    top, left = (positions // width) * stride[0], (positions % width) * stride[1]
    rows = top[:, None, None] + dilation[0] * torch.arange(size[0], device=x.device)[None, :, None]
    columns = left[:, None, None] + dilation[1] * torch.arange(size[1], device=x.device)[None, None, :]
    found = x[:, :, rows, columns]  # [n, channels, positions, height, width]
    return found.permute(0, 2, 1, 3, 4).reshape(len(x) * len(positions), -1)


def weight_matrix(layer: Any) -> torch.Tensor:
    """A layer's weight as `[outputs, inputs * kernel]`, in the order of `unfold_inputs`; a view where possible."""
    weight = layer.weight
    if type(layer).__name__ == "Conv1D":  # transformers' linear layer with the axes exchanged
        return weight.t()
    return weight.reshape(len(weight), -1)


def is_linear_or_convolution(layer: torch.nn.Module) -> bool:
    """Whether statistics of a layer's inputs can be collected: linear layers, convolutions of one or two dimensions."""
    plain = type(layer).__name__ in ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D", "Conv2d", "Conv1d")
    return plain and isinstance(getattr(layer, "weight", None), torch.Tensor)


def output_positions(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """The number of output positions of a convolution for one input; 0 for other layers."""
    if not isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        return 0
    with torch.no_grad():
        shape = torch.empty(1, *x.shape[1:], device="meta", dtype=x.dtype)
        weight = layer.weight.to("meta")
        pads = layer._reversed_padding_repeated_twice
        conv = F.conv2d if x.ndim == 4 else F.conv1d
        return prod(conv(F.pad(shape, pads), weight, None, layer.stride, 0, layer.dilation, layer.groups).shape[2:])


@contextmanager
def watch_inputs(
    module: torch.nn.Module, layers: Sequence[str], callback: Callable[[str, torch.nn.Module, torch.Tensor], None]
) -> Generator[None]:
    """Call a function with name, layer and input each time that one of the named layers runs."""

    def hook(name: str) -> Any:
        return lambda layer, given, named: callback(name, layer, single_input(given, named))

    handles = [module.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision made single, so that sums neither overflow nor lose small terms."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def single_input(given: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor:
    """The input of a layer that takes one, positional or by name."""
    return (given[0] if given else next(iter(named.values()))).detach()


def as_tensor(inputs: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Raw inputs in the precision and on the device of a parameter; token ids stay integers."""
    x = torch.from_numpy(np.require(inputs, requirements="CW"))
    return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
