"""What edits cost: statistics of a ResNet-50-sized network, scores for twenty ratios, and the speed of what is left.

Weights are random: neither time nor memory depends on them. Memory is the peak of this process, torch included.

    python benchmarks/edit_cost.py [--part statistics|ratios|speed] [--out FILE]

Writes benchmarks/results/edit_cost.json.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stemma.checkpoints.model import Model
from stemma.edits.artefacts.measured_effect import latency
from stemma.edits.editable_network import editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec
from testbeds import edited_networks as bed
from testbeds.measured import write_result

IMAGES, RATIOS = 2000, 20


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """For images of 32 by 32 pixels: 23.5 million parameters, 1.3 thousand million multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            for i in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not i else 1))
                inputs = 4 * width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


def model(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Model:
    torch.manual_seed(0)
    return from_module(make().eval(), "net", InputSpec("image", shape, 0, 1))


def images(count: int, shape: tuple[int, ...]) -> Probes:
    return Probes.of(np.random.default_rng(0).random((count, *shape), dtype=np.float32))


def memory() -> float:
    """Peak of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def statistics() -> dict[str, Any]:
    net, asked = model(ResNet50, (3, 32, 32)), images(IMAGES, (3, 32, 32))
    start, busy = time.perf_counter(), time.process_time()
    found = Pruning(positions=16, batch=50).collect(net, asked, lambda what, done, total: print(done, flush=True))
    return {
        "images": IMAGES, "positions": 16, "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - busy, "gigabytes": memory(), "layers": len(found.layers),
        "parameters": net.parameters,
    }  # fmt: skip


def ratios() -> dict[str, Any]:
    net, asked = model(bed.MAKERS["resnet20"], (3, 32, 32)), images(512, (3, 32, 32))
    method, out = Pruning(budget="macs", keep_ratio=0.5, allocation="dynamic"), {}
    start = time.perf_counter()
    seen = method.collect(net, asked)
    out["seconds of one pass"] = time.perf_counter() - start
    start = time.perf_counter()
    curves = method.curves(net, asked, seen)
    out["seconds of scores and curves"] = time.perf_counter() - start
    start = time.perf_counter()
    for share in np.linspace(0.3, 0.95, RATIOS):
        Pruning(budget="macs", keep_ratio=float(share), allocation="dynamic").plan(net, asked, seen, curves=curves)
    return {**out, "seconds of twenty plans": time.perf_counter() - start, "ratios": RATIOS}


def speed() -> dict[str, Any]:
    """A ResNet-18 at half the multiplications, one thread: which units go does not matter for time."""
    torch.set_num_threads(1)
    net, asked = model(bed.MAKERS["resnet18"], (3, 32, 32)), images(48, (3, 32, 32))
    out: dict[str, Any] = {}
    for multiple in (1, 16):
        method = Pruning(budget="macs", keep_ratio=0.5, score="l2", allocation="uniform", compensation="none",
                         positions=4, round_to=multiple, recalibrate=False)  # fmt: skip
        edited = method.apply(net, method.plan(net, asked), asked)
        whole, macs = editable_copy(net), edited.receipt.measured["macs"]
        for batch in (1, 32):
            a, b = (latency(n, asked.inputs, batch, 7) for n in (whole, edited.editable))
            out[f"multiple {multiple} batch {batch}"] = {
                "before": a,
                "after": b,
                "times": a / b,
                "macs": macs[1] / macs[0],
            }
    return out


PARTS = {"ratios": ratios, "speed": speed, "statistics": statistics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one part; the others stay as they are in the file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "edit_cost.json")
    args = parser.parse_args()
    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name, part in PARTS.items():
        if args.part in (None, name):
            content[name] = part()
            content["machine"] = f"{os.cpu_count()} cores, {platform.python_version()}, torch {torch.__version__}"
            write_result(args.out, content)
            print(name, content[name], flush=True)


if __name__ == "__main__":
    main()
