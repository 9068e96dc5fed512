"""Small residual networks with batch norm, under the names of torchvision or of the usual code for CIFAR-10.

A design has `stages` (widths), `blocks` per stage, `separable` (blocks whose second convolution is depthwise and then
pointwise), and `names`: `torchvision` (`downsample.0`, `fc`) or `cifar` (`shortcut.0`, `linear`).
"""

from typing import Any

import torch
import torch.nn.functional as F

from testbeds.varied.chains import drawn, fresh_norm, norm_axes, normed
from testbeds.varied.structure import Axis, BatchNorm, Structure, Units

Design = dict[str, Any]
Parameters = dict[str, torch.Tensor]

WORDS = {"torchvision": ("downsample", "fc"), "cifar": ("shortcut", "linear")}


def blocks(design: Design) -> list[tuple[str, int, int, int]]:
    """Prefix, width, stride and stage of each block."""
    out = []
    for s, (width, count) in enumerate(zip(design["stages"], design["blocks"], strict=True)):
        out += [(f"layer{s + 1}.{b}", width, 2 if s and not b else 1, s) for b in range(count)]
    return out


def start(design: Design, rng: torch.Generator) -> Parameters:
    """He's start for each convolution."""
    short, head = WORDS[design["names"]]
    width, channels = design["stages"][0], design["input"]["channels"]
    out: Parameters = {"conv1.weight": drawn((width, channels, 3, 3), "fan-out", rng), **fresh_norm("bn1", width)}
    before = width
    for name, width, stride, _ in blocks(design):
        out[f"{name}.conv1.weight"] = drawn((width, before, 3, 3), "fan-out", rng)
        out |= fresh_norm(f"{name}.bn1", width)
        if design["separable"]:
            out[f"{name}.depthwise.weight"] = drawn((width, 1, 3, 3), "default", rng)
            out |= fresh_norm(f"{name}.depthwise_bn", width)
        kernel = 1 if design["separable"] else 3
        out[f"{name}.conv2.weight"] = drawn((width, width, kernel, kernel), "fan-out", rng)
        out |= fresh_norm(f"{name}.bn2", width)
        if stride == 2 or before != width:
            out[f"{name}.{short}.0.weight"] = drawn((width, before, 1, 1), "fan-out", rng)
            out |= fresh_norm(f"{name}.{short}.1", width)
        before = width
    classes = design["input"]["classes"]
    out[f"{head}.weight"] = drawn((classes, before), "default", rng)
    out[f"{head}.bias"] = torch.zeros(classes)
    return out


def _conv(p: Parameters, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    w = p[f"{name}.weight"]
    groups = len(w) if w.shape[1] == 1 and x.shape[1] != 1 else 1
    return F.conv2d(x, w, p.get(f"{name}.bias"), stride, w.shape[-1] // 2, groups=groups)


def forward(design: Design, p: Parameters, x: torch.Tensor, learning: bool = False) -> torch.Tensor:
    """Logits `[n, classes]`; blocks that have no tensors are passed by."""
    short, head = WORDS[design["names"]]
    x = normed(p, "bn1", _conv(p, "conv1", x), learning).relu()
    for name, _, stride, _ in blocks(design):
        if f"{name}.conv1.weight" not in p:
            continue
        y = normed(p, f"{name}.bn1", _conv(p, f"{name}.conv1", x, stride), learning).relu()
        if design["separable"]:
            y = normed(p, f"{name}.depthwise_bn", _conv(p, f"{name}.depthwise", y), learning).relu()
        y = normed(p, f"{name}.bn2", _conv(p, f"{name}.conv2", y), learning)
        if f"{name}.{short}.0.weight" in p:
            x = normed(p, f"{name}.{short}.1", _conv(p, f"{name}.{short}.0", x, stride), learning)
        x = (x + y).relu()
    return F.linear(x.mean((2, 3)), p[f"{head}.weight"], p[f"{head}.bias"])


def structure(design: Design) -> Structure:
    """Units inside each block, and the stream of each stage."""
    short, head = WORDS[design["names"]]
    inside: list[Units] = []
    streams: list[list[Axis]] = [[] for _ in design["stages"]]
    norms, dropped = [BatchNorm("bn1", "conv1")], []
    projected = {n for n, w, stride, s in blocks(design) if stride == 2}

    def writes(stage: int, conv: str, norm: str) -> None:
        streams[stage] += [Axis(f"{conv}.weight", "before"), Axis(f"{conv}.bias", "before"), *norm_axes(norm)]

    writes(0, "conv1", "bn1")
    for name, _, _, s in blocks(design):
        entered = s - 1 if name in projected else s
        streams[entered].append(Axis(f"{name}.conv1.weight", "read", 1))
        axes = [Axis(f"{name}.conv1.weight", "before"), Axis(f"{name}.conv1.bias", "before"), *norm_axes(f"{name}.bn1")]
        norms += [BatchNorm(f"{name}.bn1", f"{name}.conv1"), BatchNorm(f"{name}.bn2", f"{name}.conv2")]
        last = Axis(f"{name}.conv2.weight", "read", 1)
        if design["separable"]:
            free = [Axis(a.tensor, "free") for a in norm_axes(f"{name}.depthwise_bn")]
            axes += [Axis(f"{name}.depthwise.weight", "read"), Axis(f"{name}.depthwise.bias", "free"), *free]
            norms.append(BatchNorm(f"{name}.depthwise_bn", f"{name}.depthwise"))
            last = Axis(f"{name}.conv2.weight", "free", 1)
        inside.append(Units(name, (*axes, last), "relu", layer=len(inside)))
        writes(s, f"{name}.conv2", f"{name}.bn2")
        if name in projected:
            streams[entered].append(Axis(f"{name}.{short}.0.weight", "read", 1))
            writes(s, f"{name}.{short}.0", f"{name}.{short}.1")
            norms.append(BatchNorm(f"{name}.{short}.1", f"{name}.{short}.0"))
        else:
            dropped.append(name)
    streams[-1].append(Axis(f"{head}.weight", "read", 1))
    groups = [Units(f"stage {s}", tuple(a), "relu", stream=True) for s, a in enumerate(streams)]
    return Structure((*inside, *groups), batch_norms=tuple(norms), blocks=tuple(dropped))
