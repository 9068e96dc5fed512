"""The inputs of a layer while a network runs: hooked, unfolded into rows, as a matrix product."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
"""Layers whose inputs are unfolded into patches."""

TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
"""Layers that are a convolution of their input with zeros set between its entries."""

LINEAR_NAMES = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D")
"""Names of the classes of linear layers; the last is that of transformers, with the axes exchanged."""


def unfold_inputs(layer: torch.nn.Module, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """The inputs `[rows, inputs * kernel]` of a linear layer or convolution, one row per use of its weight."""
    # Of a convolution only some output positions are taken, all if None.
    if not isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return x.reshape(-1, x.shape[-1])
    x, size, stride, dilation = _plain_convolution(layer, x)
    if prod(size) == 1:
        patches = x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))].flatten(2)
    elif positions is not None or len(size) != 2:
        return _patches(x, size, stride, dilation, positions)
    else:
        patches = F.unfold(x, size, dilation=dilation, stride=stride)
    patches = patches if positions is None else patches[:, :, positions]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _plain_convolution(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any, Any, Any]:
    """A padded input with kernel size, stride and dilation of the unpadded convolution that the layer makes of it."""
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, TRANSPOSED):
        spread = [s * (n - 1) + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *spread)
        wide[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
        edges = [d * (k - 1) - p for d, k, p in zip(dilation, size, layer.padding, strict=True)]
        pads = [n for e, more in zip(edges, layer.output_padding, strict=True) for n in (e + more, e)]
        x, stride = F.pad(wide, pads[::-1]), (1,) * len(size)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    if len(size) == 1:
        return x[:, :, None], (1, *size), (1, *stride), (1, *dilation)
    return x, size, stride, dilation


def _patches(
    x: torch.Tensor, size: Any, stride: Any, dilation: Any, positions: torch.Tensor | None
) -> torch.Tensor:  # fmt: skip
    """Patches at some positions only, without making all of them; at all if None."""
    lengths = _output_lengths(x.shape[2:], size, stride, dilation)
    chosen = torch.arange(prod(lengths), device=x.device) if positions is None else positions
    index, below = [], prod(lengths)
    for axis, length in enumerate(lengths):
        below //= length
        offsets = dilation[axis] * torch.arange(size[axis], device=x.device)
        shape = [1] * (1 + len(size))
        shape[1 + axis] = -1
        starts = (chosen // below % length * stride[axis]).reshape(-1, *[1] * len(size))
        index.append(starts + offsets.reshape(shape))
    found = x[(slice(None), slice(None), *index)]  # [n, channels, positions, *kernel]
    return found.transpose(1, 2).reshape(len(x) * len(chosen), -1)


def _output_lengths(lengths: Sequence[int], size: Any, stride: Any, dilation: Any) -> list[int]:
    """Output positions of an unpadded convolution, by axis."""
    axes = zip(lengths, size, stride, dilation, strict=True)
    return [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes]


def weight_matrix(layer: Any, attribute: str = "weight") -> torch.Tensor:
    """A layer's weight as `[outputs, inputs * kernel]`, in the order of `unfold_inputs`; a view where possible."""
    weight = getattr(layer, attribute)
    if type(layer).__name__ == "Conv1D":  # transformers' linear layer with the axes exchanged
        return weight.t()
    if isinstance(layer, TRANSPOSED):
        return weight.transpose(0, 1).flip(list(range(2, weight.ndim))).flatten(1)
    return weight.reshape(len(weight), -1)


def set_weight_matrix(layer: Any, matrix: torch.Tensor, attribute: str = "weight") -> None:
    """Set a layer's weight, in place, to one given as `weight_matrix` gives it."""
    weight = getattr(layer, attribute)
    if isinstance(layer, TRANSPOSED):
        turned = matrix.reshape(weight.shape[1], weight.shape[0], *weight.shape[2:])
        matrix = turned.flip(list(range(2, weight.ndim))).transpose(0, 1)
    elif type(layer).__name__ == "Conv1D":
        matrix = matrix.T
    with torch.no_grad():
        weight.copy_(matrix.reshape(weight.shape).to(weight))


def is_linear_or_convolution(layer: torch.nn.Module) -> bool:
    """Whether statistics of a layer's inputs can be collected: linear layers and convolutions, also transposed ones."""
    plain = type(layer).__name__ in (*LINEAR_NAMES, *(c.__name__ for c in CONVOLUTIONS + TRANSPOSED))
    return plain and isinstance(getattr(layer, "weight", None), torch.Tensor)


def has_collectable_inputs(layer: torch.nn.Module, attribute: str) -> bool:
    """Whether statistics of what a weight multiplies can be collected: of recurrent layers, only the layer's input."""
    if isinstance(layer, torch.nn.RNNBase):
        return attribute in ("weight_ih_l0", "weight_ih_l0_reverse")
    return is_linear_or_convolution(layer)


def output_positions(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """The number of output positions of a convolution for one input; 0 for other layers."""
    if not isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return 0
    padded, size, stride, dilation = _plain_convolution(layer, torch.empty(1, 1, *x.shape[2:], device="meta"))
    return prod(_output_lengths(padded.shape[2:], size, stride, dilation))


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
