"""What a step of modulation costs, as a ratio to a step of joint training.

python benchmarks/multimodal_overhead.py [--device cuda] [--repeats N]
writes benchmarks/results/multimodal_overhead.json (on cuda: multimodal_overhead_cuda.json)

Whole steps are timed: passes, backward, optimiser. On processors, it is the processor time of one thread, which is the
time that passes if nothing else runs. Plans take turns within a repeat, so that what else the machine does falls on all
of them; a ratio is that of two neighbouring times, and its median and quartiles are over repeats. What else runs still
empties caches, which the fixed cost of a step feels most: the load of the machine at the start is kept.
"""

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stemma import __version__
from stemma.multimodal import AdaptiveGradientModulation
from testbeds.measured import write_result
from testbeds.multimodal_networks import built, convolutional, perceptron, places

LIMITS = {"exact": 3.3, "batched": 3.3, "late-fast": 1.3, "late-fast, batch norm or dropout": 1.6}


def dropped(inputs: int, width: int) -> nn.Sequential:
    """A perceptron with dropout."""
    return nn.Sequential(*(part for layer in perceptron(inputs, width) for part in (layer, nn.Dropout(0.1))))


def networks(wide: int) -> dict[str, tuple[dict[str, Callable[[], nn.Module]], tuple[int, ...], int]]:
    """By name: encoders, the shape of one input of both modalities, width of the features."""
    pair = ("image", "audio")
    return {
        "perceptrons, small": (dict.fromkeys(pair, lambda: perceptron(1024, wide // 4, 3)), (1024,), wide // 4),
        "perceptrons": (dict.fromkeys(pair, lambda: perceptron(1024, wide, 3)), (1024,), wide),
        "perceptrons, dropout": (dict.fromkeys(pair, lambda: dropped(1024, wide)), (1024,), wide),
        "convolutional": (dict.fromkeys(pair, lambda: convolutional(16)), (1, 32, 32), 64),
        "convolutional, batch norm": (dict.fromkeys(pair, lambda: convolutional(16, norm=True)), (1, 32, 32), 64),
    }


def _step(name: str, made: tuple[Any, tuple[int, ...], int], plan: str, batch: int, device: str) -> Callable[[], None]:
    encoders, shape, width = made
    model = built(encoders, width, 10, "late", 0).to(device)
    draw = torch.Generator().manual_seed(0)
    inputs = {m: torch.randn(batch, *shape, generator=draw).to(device) for m in encoders}
    target = torch.randint(0, 10, (batch,), generator=draw).to(device)
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    agm = None
    if plan != "joint":
        agm = AdaptiveGradientModulation(model, list(encoders), plan=plan, encoders=places(encoders))

    def step() -> None:
        sgd.zero_grad()
        loss = cross_entropy(model(**inputs), target) if agm is None else agm(inputs, target).loss
        assert loss is not None
        loss.backward()
        sgd.step()

    return step


def timed(step: Callable[[], None], many: int, device: str) -> float:
    """Seconds per step."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(many):
        step()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / many


def measured(name: str, made: Any, batch: int, repeats: int, device: str) -> dict[str, Any]:
    """Seconds of a joint step, and the ratio of every plan."""
    plans = ("joint", "exact", "batched", "late-fast")
    steps = {plan: _step(name, made, plan, batch, device) for plan in plans}
    for step in steps.values():
        timed(step, 3, device)
    many = max(2, int(0.15 / max(timed(steps["joint"], 3, device), 1e-4)))
    times = {plan: [] for plan in plans}
    for _ in range(repeats):
        for plan in plans:
            times[plan].append(timed(steps[plan], many, device))
    joint = np.array(times["joint"])
    out: dict[str, Any] = {"batch": batch, "joint_ms": float(1000 * np.median(joint)), "plans": {}}
    for plan in plans[1:]:
        low, middle, high = np.quantile(np.array(times[plan]) / joint, [0.25, 0.5, 0.75])
        moody = "norm" in name or "dropout" in name
        limit = LIMITS["late-fast, batch norm or dropout" if plan == "late-fast" and moody else plan]
        out["plans"][plan] = {"ratio": float(middle), "quartiles": [float(low), float(high)], "limit": limit,
                              "within": bool(middle <= limit)}  # fmt: skip
    return out


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    on = "multimodal_overhead" if args.device == "cpu" else "multimodal_overhead_cuda"
    out = args.out or Path(__file__).parent / "results" / f"{on}.json"
    batch, wide = (128, 512) if args.device == "cpu" else (1024, 4096)
    name = platform.processor() or "cpu" if args.device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, Any] = {
        "version": __version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": name,
        "torch": torch.__version__, "load": os.getloadavg()[0],
        "cores": os.cpu_count(), "repeats": args.repeats, "modalities": 2, "networks": {},
    }  # fmt: skip
    for label, made in networks(wide).items():
        found["networks"][label] = measured(label, made, batch, args.repeats, args.device)
        write_result(out, found)
        for plan, row in found["networks"][label]["plans"].items():
            low, high = row["quartiles"]
            print(f"{label}, {plan}: {row['ratio']:.2f} [{low:.2f}, {high:.2f}], at most {row['limit']}")


if __name__ == "__main__":
    main()
