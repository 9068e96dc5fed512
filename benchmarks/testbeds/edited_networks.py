"""Networks that the benchmarks of edits change, and what they are trained on.

`small` is Fashion-MNIST averaged to 14 by 14 pixels and the zoo's own networks; `full` is CIFAR-10 (JPEG) with a
ResNet-18 of full width and a ResNet-20, trained here in minutes on a GPU. Trained weights are kept in a folder.
"""

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stemma import networks
from stemma.checkpoints.model import Model
from stemma.networks.from_module import from_module
from stemma.types import InputSpec

SIDE = 14
SMALL = {
    "cnn": {"model_type": "stemma-cnn", "input_shape": [1, SIDE, SIDE], "classes": 10, "stem": 16,
            "widths": [32, 48, 64], "strides": [1, 2, 2]},
    "vit": {"model_type": "stemma-vit", "input_shape": [1, SIDE, SIDE], "classes": 10, "patch": 2, "width": 48,
            "depth": 4, "heads": 4, "inner": 192},
}  # fmt: skip
"""Configurations of the small tier; `cnn` is compact, `wide` half as wide again."""
SMALL["wide"] = {**SMALL["cnn"], "stem": 24, "widths": [48, 72, 96]}


@dataclass(frozen=True, eq=False)
class Data:
    """Images in [0, 1], `[n, channels, height, width]`, and their classes."""

    images: np.ndarray
    labels: np.ndarray

    def of(self, label: int, *, other: bool = False) -> "Data":
        rows = (self.labels != label) if other else (self.labels == label)
        return Data(self.images[rows], self.labels[rows])

    def some(self, count: int, seed: int) -> "Data":
        rows = np.random.default_rng(seed).permutation(len(self.labels))[:count]
        return Data(self.images[rows], self.labels[rows])


def fashion(folder: Path, part: str, name: str = "fashion_mnist", count: int | None = None) -> Data:
    with np.load(folder / f"{name}_{part}.npz") as file:
        images, labels = file["images"][:count], file["labels"][:count].astype(np.int64)
    small = images.reshape(-1, SIDE, 28 // SIDE, SIDE, 28 // SIDE).mean((2, 4), dtype=np.float32) / 255
    return Data(small[:, None].astype(np.float32), labels)


def cifar(folder: Path, part: str, count: int | None = None) -> Data:
    """The images are JPEG bodies that share one header; they are stored by class, so a part is drawn at random."""
    from PIL import Image

    with np.load(folder / f"cifar10_jpeg_{part}.npz") as file:
        header, bodies = file["jpeg_header"].tobytes(), file["jpeg_bodies"].tobytes()
        ends = np.cumsum(file["body_lengths"].astype(np.int64))
        labels = file["labels"].astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    rows = np.random.default_rng(0).permutation(len(labels))[:count]
    read = [np.array(Image.open(io.BytesIO(header + bodies[starts[i] : ends[i]])).convert("RGB")) for i in rows]
    return Data(np.stack(read).transpose(0, 3, 1, 2).astype(np.float32) / 255, labels[rows])


class Basic(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """For images of 32 by 32 pixels in [0, 1]; the normalisation is inside."""

    def __init__(self, widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.247, 0.2435, 0.2616]).reshape(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(Basic(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem((x - self.mean) / self.std)))
        return self.head(self.blocks(x).mean((2, 3)))


MAKERS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet((64, 128, 256, 512), 2),
    "resnet20": lambda: ResNet((16, 32, 64), 3),
    **{name: lambda config=config: networks.build(config) for name, config in SMALL.items()},
}
RATES = {"resnet18": 0.1, "resnet20": 0.1, "cnn": 0.1, "wide": 0.1, "vit": 2e-3}


def augmented(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Shifted by up to four pixels (one of 14) and mirrored, each image on its own."""
    n, _, height, width = x.shape
    most = max(1, height // 8)
    if height > SIDE:
        flip = torch.rand(n, generator=draw, device=x.device) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, [most] * 4)
    top, left = (torch.randint(0, 2 * most + 1, (n,), generator=draw, device=x.device) for _ in range(2))
    rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[torch.arange(n, device=x.device)[:, None, None, None], channels, rows, columns]


def trained(
    name: str, data: Data, seed: int, epochs: float, device: str, kept: Path | None = None, tag: str = "",
) -> nn.Module:  # fmt: skip
    """A network from its random start: SGD with momentum (Adam for the ViT), one cycle, weight decay 5e-4."""
    file = None if kept is None else kept / f"{name}-{seed}-{epochs:g}-{len(data.labels)}{tag}.pt"
    torch.manual_seed(seed)
    net = MAKERS[name]().to(device)
    if file is not None and file.exists():
        net.load_state_dict(torch.load(file, map_location=device, weights_only=True))
        return net.eval()
    fast = device.startswith("cuda")
    net = net.to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    draw = torch.Generator(device=device).manual_seed(seed)
    batch = 512 if fast else 128
    steps = max(1, round(epochs * len(x) / batch))
    groups: Any = net.parameters()
    rate = RATES[name] * (batch / 128 if name != "vit" else 1)
    optimizer = (torch.optim.AdamW(groups, rate, weight_decay=1e-2) if name == "vit"
                 else torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=5e-4, nesterov=True))  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.25)
    net.train()
    order = torch.randperm(len(x), generator=draw, device=device)
    at = 0
    for _ in range(steps):
        if at + batch > len(x):
            order, at = torch.randperm(len(x), generator=draw, device=device), 0
        rows = order[at : at + batch]
        at += batch
        with torch.autocast("cuda", torch.bfloat16, enabled=fast):
            out = net(augmented(x[rows], draw).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(out.float(), y[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net = net.eval().to(memory_format=torch.contiguous_format)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(net.state_dict(), partial)
        partial.replace(file)
    return net


def as_model(net: nn.Module, name: str, data: Data) -> Model:
    """The network as a model, with the configuration of the zoo's own where it has one."""
    return from_module(net, name, InputSpec("image", tuple(data.images.shape[1:]), 0.0, 1.0))


def answers(net: Callable[[torch.Tensor], torch.Tensor], data: Data, device: str, batch: int = 500) -> np.ndarray:
    with torch.no_grad():
        parts = [
            net(torch.from_numpy(data.images[i : i + batch]).to(device)) for i in range(0, len(data.labels), batch)
        ]
    return torch.cat(parts).float().cpu().numpy()


def right(net: Any, data: Data, device: str) -> float:
    return float((answers(net, data, device).argmax(1) == data.labels).mean())


class Clock:
    """Seconds since the start, and whether there is time for more."""

    def __init__(self, limit: float) -> None:
        self.start, self.limit = time.perf_counter(), limit

    @property
    def gone(self) -> float:
        return time.perf_counter() - self.start

    def say(self, what: str) -> None:
        print(f"{self.gone:7.1f} s  {what}", flush=True)

    def over(self, reserve: float = 0.0) -> bool:
        return self.gone + reserve > self.limit
