"""Networks that are a chain of layers: perceptrons, plain, VGG-like and depthwise-separable convolutional networks.

A design is a list of steps: `["linear", name, out]`, `["conv", name, out, kernel, stride]`, `["depthwise", name,
kernel]`, `["norm", name]`, `["act"]`, `["pool"]`, `["mean"]`, `["flatten"]`. Sizes are read from the tensors, so that a
network with units taken out runs too.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from testbeds.varied.structure import Axis, BatchNorm, Structure, Units

Design = dict[str, Any]
Parameters = dict[str, torch.Tensor]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu}


def start(design: Design, rng: torch.Generator) -> Parameters:
    """A random start, drawn layer after layer as torch does: with `default`, what its layers would be."""
    side, channels = design["input"]["side"], design["input"]["channels"]
    out: Parameters = {}
    for step in design["steps"]:
        kind = step[0]
        if kind == "flatten":
            channels, side = channels * side * side, 1
        elif kind == "pool":
            side //= 2
        elif kind == "mean":
            side = 1
        elif kind == "norm":
            out |= fresh_norm(step[1], channels)
        elif kind == "depthwise":
            out[f"{step[1]}.weight"] = drawn((channels, 1, step[2], step[2]), "default", rng)
            if not _normed(design, step[1]):
                out[f"{step[1]}.bias"] = _offsets(channels, step[2] ** 2, rng)
        elif kind in ("linear", "conv"):
            shape = (step[2], channels) if kind == "linear" else (step[2], channels, step[3], step[3])
            out[f"{step[1]}.weight"] = drawn(shape, design["start"], rng)
            if kind == "linear" or not _normed(design, step[1]):
                out[f"{step[1]}.bias"] = _offsets(step[2], int(np.prod(shape[1:])), rng)
            channels = step[2]
            side = -(-side // step[4]) if kind == "conv" else side
    return out


def _normed(design: Design, name: str) -> bool:
    """Whether a batch norm follows at once; such convolutions have no offset."""
    names = [s[:2] for s in design["steps"]]
    at = next(i for i, s in enumerate(names) if len(s) > 1 and s[1] == name)
    return at + 1 < len(names) and names[at + 1][0] == "norm"


def fresh_norm(name: str, width: int) -> Parameters:
    return {
        f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width),
        f"{name}.running_mean": torch.zeros(width), f"{name}.running_var": torch.ones(width),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }  # fmt: skip


def drawn(shape: tuple[int, ...], law: str, rng: torch.Generator) -> torch.Tensor:
    w = torch.empty(shape)
    if law == "kaiming":
        return torch.nn.init.kaiming_normal_(w, nonlinearity="relu", generator=rng)
    if law == "xavier":
        return torch.nn.init.xavier_uniform_(w, generator=rng)
    if law == "orthogonal":
        return torch.nn.init.orthogonal_(w, 2**0.5, generator=rng)
    if law == "fan-out":
        return torch.nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=rng)
    return torch.nn.init.kaiming_uniform_(w, 5**0.5, generator=rng)


def _offsets(width: int, fan: int, rng: torch.Generator) -> torch.Tensor:
    return torch.empty(width).uniform_(-(fan**-0.5), fan**-0.5, generator=rng)


def forward(design: Design, p: Parameters, x: torch.Tensor, learning: bool = False) -> torch.Tensor:
    """Logits `[n, classes]` of pictures `[n, channels, side, side]`."""
    act = ACTIVATIONS[design["act"]]
    for step in design["steps"]:
        kind, name = step[0], step[1] if len(step) > 1 else ""
        if kind == "flatten":
            x = x.flatten(1)
        elif kind == "pool":
            x = F.max_pool2d(x, 2)
        elif kind == "mean":
            x = x.mean((2, 3))
        elif kind == "act":
            x = act(x)
        elif kind == "norm":
            x = normed(p, name, x, learning)
        elif kind == "linear":
            x = F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
        else:
            w, stride = p[f"{name}.weight"], step[4] if kind == "conv" else 1
            groups = 1 if kind == "conv" else len(w)
            x = F.conv2d(x, w, p.get(f"{name}.bias"), stride, w.shape[-1] // 2, groups=groups)
    return x


def normed(p: Parameters, name: str, x: torch.Tensor, learning: bool) -> torch.Tensor:
    """Batch norm, where there is one; while learning, its running numbers are changed in place."""
    if f"{name}.weight" not in p:
        return x
    return F.batch_norm(
        x, p[f"{name}.running_mean"], p[f"{name}.running_var"], p[f"{name}.weight"], p[f"{name}.bias"],
        learning, 0.1, 1e-5,
    )  # fmt: skip


def norm_axes(name: str) -> list[Axis]:
    return [
        Axis(f"{name}.weight", "write"), Axis(f"{name}.bias", "write"), Axis(f"{name}.running_mean", "mean"),
        Axis(f"{name}.running_var", "var"),
    ]  # fmt: skip


def structure(design: Design) -> Structure:
    """Units between each map and the next one."""
    groups: list[Units] = []
    norms: list[BatchNorm] = []
    axes: list[Axis] = []
    side, passed, writer, activation = design["input"]["side"], False, "", "linear"
    flat = 1
    for step in design["steps"]:
        kind, name = step[0], step[1] if len(step) > 1 else ""
        if kind == "flatten":
            flat = side * side
        elif kind == "pool":
            side //= 2
            activation = "pooled-" + activation if activation == "tanh" else activation
        elif kind == "act":
            activation = design["act"]
        elif kind == "norm" and axes:
            norms.append(BatchNorm(name, writer))
            if passed:
                axes += [Axis(a.tensor, "free") for a in norm_axes(name)]
            else:
                axes = [Axis(a.tensor, "before", a.axis) for a in axes] + norm_axes(name)
        elif kind == "depthwise":
            axes += [Axis(f"{name}.weight", "free" if passed else "read"), Axis(f"{name}.bias", "free")]
            passed, writer = True, name
        elif kind in ("linear", "conv"):
            if axes:
                axes.append(Axis(f"{name}.weight", "free" if passed else "read", 1, flat))
                groups.append(Units(writer or name, tuple(axes), activation, layer=len(groups)))
            side = -(-side // step[4]) if kind == "conv" else side
            axes = [Axis(f"{name}.weight", "write"), Axis(f"{name}.bias", "write")]
            passed, writer, activation, flat = False, name, "linear", 1
    return Structure(tuple(groups), batch_norms=tuple(norms))
