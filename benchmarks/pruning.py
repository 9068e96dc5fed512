"""How much accuracy is left when a network is pruned without labels or training, beside baselines with the same refit?

Every score orders the units; allocation, refit and recalibration are the same for all, so a difference is the score's.
Budgets are shares of the multiplications. `small` is Fashion-MNIST at 14 by 14 pixels on the processor; `full` is
CIFAR-10 with a ResNet-18 and a ResNet-20 on a GPU.

    python benchmarks/pruning.py [--tier small|full] [--device D] [--data DIR] [--seconds N] [--out FILE]

Writes benchmarks/results/pruning_TIER.json after every cell, so that what was measured stays if it is stopped.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.artefacts.measured_effect import latency
from stemma.edits.editable_network import checked_dependency_graph, editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.probes import Probes
from stemma.types import Plan
from testbeds import edited_networks as bed
from testbeds.measured import write_result

BUDGETS = (0.7, 0.6, 0.5, 0.4)
SCORES = ("elimination", "l2", "random", "wanda", "alignment", "left-out", "union-alignment", "fidelity", "energy",
          "bn-scale", "alpha")  # fmt: skip
BASELINES = ("l2", "random", "wanda", "bn-scale")
TIERS: dict[str, dict[str, Any]] = {
    "small": {"networks": {"wide": 5, "cnn": 6}, "seeds": (0, 1, 2), "train": 12_000, "test": 5000, "probes": 256},
    "full": {"networks": {"resnet18": 24, "resnet20": 40}, "seeds": (0,), "train": None, "test": None, "probes": 2000},
    "tiny": {"networks": {"cnn": 2, "resnet20": 0.2}, "seeds": (0,), "train": 2000, "test": 500, "probes": 64},
}  # fmt: skip


class Result:
    """What is known so far, on disk after every change."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.content = path, head

    def has(self, key: list[str]) -> bool:
        here = self.content
        for word in key:
            if word not in here:
                return False
            here = here[word]
        return True

    def resume(self, *same: str) -> None:
        """Go on with what is on disk, where it was measured with the same settings."""
        if self.path.exists():
            before, head = json.loads(self.path.read_text()), json.loads(json.dumps(self.content))
            if all(before.get(k) == head[k] for k in same):
                self.content = before

    def put(self, key: list[str], value: Any) -> None:
        here = self.content
        for word in key[:-1]:
            here = here.setdefault(word, {})
        here[key[-1]] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        write_result(partial, self.content)
        partial.replace(self.path)


def read(tier: dict[str, Any], name: str, folder: Path) -> tuple[bed.Data, bed.Data]:
    if name.startswith("resnet"):
        return bed.cifar(folder, "train", tier["train"]), bed.cifar(folder, "test", tier["test"])
    return bed.fashion(folder, "train", count=tier["train"]), bed.fashion(folder, "test", count=tier["test"])


def synthetic(data: bed.Data, seed: int) -> bed.Data:
    """Two images of a class mixed half and half, shifted and with noise: no original image is among them."""
    rng = np.random.default_rng(seed)
    partner = np.arange(len(data.labels))
    for label in np.unique(data.labels):
        rows = np.flatnonzero(data.labels == label)
        partner[rows] = np.roll(rng.permutation(rows), 1)
    share = rng.uniform(0.3, 0.7, (len(partner), 1, 1, 1)).astype(np.float32)
    mixed = share * data.images + (1 - share) * data.images[partner]
    moved = np.roll(mixed, (int(rng.integers(-2, 3)), int(rng.integers(-2, 3))), (2, 3))
    noisy = np.clip(moved + rng.normal(0, 0.03, mixed.shape), 0, 1).astype(np.float32)
    return bed.Data(noisy, data.labels)


def elsewhere(data: bed.Data, folder: Path, count: int) -> bed.Data:
    """Images of another data set in this one's shape."""
    digits = bed.fashion(folder, "train", "mnist", count)
    channels, side = data.images.shape[1:3]
    x = digits.images
    if side != bed.SIDE:
        x = np.kron(x, np.ones((1, 1, 2, 2), np.float32))
        x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))).repeat(channels, 1)
    return bed.Data(x.astype(np.float32), digits.labels)


def cell(
    method: Pruning, model: Model, plan: Plan, probes: Probes, known: Any, test: bed.Data, device: str
) -> dict[str, Any]:
    edited = method.apply(model, plan, probes, known)
    m = edited.receipt.measured
    return {
        "accuracy": bed.right(edited.editable.network, test, device), "macs": m["macs"][1] / m["macs"][0],
        "parameters": m["parameters"][1] / m["parameters"][0], "error": m["error"], "same": m.get("same_top_answer"),
    }  # fmt: skip


def cells(budgets: tuple[float, ...], multiple: int) -> Iterator[tuple[list[str], Pruning, str]]:
    """Key, method and inputs of everything that is measured of one network, the most wanted first."""
    base = Pruning(budget="macs", keep_ratio=0.5, batch=250, round_to=multiple)
    for score in SCORES[:4]:
        for share in budgets:
            yield ["scores", score, f"{share:g}"], replace(base, score=score, keep_ratio=share), "real"
    for kind in ("none", "scalar", "kernel"):
        for norm in (False, True):
            key = ["refit", f"{kind}{' and norm' if norm else ''}"]
            yield key, replace(base, compensation=kind, recalibrate=norm), "real"
    yield ["refit", "kernel in one pass"], replace(base, sequential=False), "real"
    for how in ("uniform", "greedy", "dynamic"):
        yield ["allocation", how], replace(base, allocation=how), "real"
    for share in budgets:
        yield (
            ["published, five rounds", f"{share:g}"],
            replace(Pruning.official(share), batch=250, round_to=multiple),
            "real",
        )
    yield ["published"], replace(Pruning.official(0.5), batch=250, rounds=1, round_to=multiple), "real"
    same = replace(Pruning.official(0.5), batch=250, round_to=multiple, allocation="uniform")
    yield ["published, five rounds, the same of every layer"], same, "real"
    for source in ("synthetic", "elsewhere"):
        for score in ("elimination", "l2"):
            yield ["probes", source, score], replace(base, score=score), source
    for score in SCORES[4:]:
        for share in budgets if multiple > 1 else (0.5,):
            yield ["scores", score, f"{share:g}"], replace(base, score=score, keep_ratio=share), "real"


def study(result: Result, key: list[str], model: Model, probes: dict[str, Probes], test: bed.Data, device: str,
          clock: bed.Clock, *, brief: bool = False) -> None:  # fmt: skip
    statistics: dict[str, Any] = {}
    curves: dict[tuple[str, str, bool], Any] = {}
    for name, method, source in cells(BUDGETS, 8 if key[1] == "resnet18" else 1):
        if brief and (name[0] != "scores" or name[1] not in SCORES[:4] or name[2] not in ("0.5", "0.4")):
            continue
        if result.has([*key, *name]):
            continue
        if clock.over(8):
            clock.say(f"no time for {'/'.join(name)} and what follows")
            return
        if source not in statistics:
            before = clock.gone
            statistics[source] = method.collect(model, probes[source])
            result.put([*key, "seconds", f"statistics of {source}"], round(clock.gone - before, 2))
        known = statistics[source]
        asked = source, method.score, method.allocation == "union"  # it takes no rescaled curves
        if asked not in curves:
            before = clock.gone
            curves[asked] = method.curves(model, probes[source], known)
            result.put([*key, "seconds", f"curves of {method.score}"], round(clock.gone - before, 2))
        plan = method.plan(model, probes[source], known, curves=curves[asked])
        found = cell(method, model, plan, probes[source], known, test, device)
        result.put([*key, *name], found)
        result.put([*key[:2], "summary"], summary(result.content["networks"][key[1]]))
        clock.say(f"{'/'.join([*key, *name])}: {found['accuracy']:.4f} at {found['macs']:.3f}")


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Accuracy lost by score and budget: mean and most over seeds, and how much more than with `elimination`."""
    out: dict[str, Any] = {}
    done = {k: v for k, v in seeds.items() if k.startswith("seed") and "scores" in v}
    for score in SCORES:
        for share in (f"{b:g}" for b in BUDGETS):
            have = [v for v in done.values() if share in v["scores"].get(score, {})]
            if not have:
                continue
            own = [v["scores"][score][share]["accuracy"] for v in have]
            best = [v["scores"].get("elimination", {}).get(share, {}).get("accuracy") for v in have]
            lost = np.array([v["dense"] for v in have]) - own
            part = {"networks": len(have), "lost": float(lost.mean()), "most": float(lost.max())}
            if None not in best:
                part["more"] = float(np.mean(np.array(best) - own))
            out.setdefault(score, {})[share] = part
    return out


def speed(model: Model, probes: Probes) -> dict[str, Any]:
    """Measured on the processor, one thread, at half the multiplications: medians, and the ratio."""
    torch.set_num_threads(1)
    out = {}
    for multiple in (1, 8):
        method = Pruning(budget="macs", keep_ratio=0.5, sequential=False, round_to=multiple, positions=16)
        few = probes.take(slice(0, 128))
        edited = method.apply(model, method.plan(model, few), few)
        whole = editable_copy(model)
        for batch in (1, 64):
            a, b = (latency(n, probes.inputs, batch, 9) for n in (whole, edited.editable))
            out[f"multiple {multiple} batch {batch}"] = {"before": a, "after": b, "times": a / b}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--brief", action="store_true", help="the four scores of the comparison, at two budgets")
    parser.add_argument("--only", choices=sorted(bed.MAKERS), help="one network of the tier, in a file of its own")
    parser.add_argument("--networks", type=Path, help="folder in which trained networks are kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA")
    tier, clock = TIERS[args.tier], bed.Clock(args.seconds)
    out = (
        args.out
        or Path(__file__).parent / "results" / f"pruning_{args.tier}{'_' + args.only if args.only else ''}.json"
    )
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else "processor"
    result = Result(out, {"tier": args.tier, "settings": {k: v for k, v in tier.items()}, "device": card,
                          "torch": torch.__version__, "machine": f"{os.cpu_count()} cores, {platform.python_version()}",
                          "budgets": list(BUDGETS),
                          "method": dict(Pruning(budget="macs", keep_ratio=0.5).spec.params),
                          "version": Pruning.version})  # fmt: skip
    result.resume("settings", "method", "version", "device")
    for seed in tier["seeds"]:
        for name, epochs in tier["networks"].items():
            if args.only not in (None, name):
                continue
            train, test = read(tier, name, args.data)
            before = clock.gone
            net = bed.trained(name, train, seed, epochs, args.device, args.networks)
            model = bed.as_model(net, f"{name}-{seed}", train)
            dense = bed.right(net, test, args.device)
            key = ["networks", name, f"seed {seed}"]
            result.put([*key, "dense"], dense)
            result.put([*key, "seconds", "training"], round(clock.gone - before, 1))
            clock.say(f"{name}-{seed} is trained: {dense:.4f}")
            real = train.some(tier["probes"], 1)
            probes = {
                "real": real,
                "synthetic": synthetic(real, 2),
                "elsewhere": elsewhere(real, args.data, tier["probes"]),
            }
            given = {k: Probes.of(d.images, source=k) for k, d in probes.items()}
            net_ = checked_dependency_graph(model, given["real"].inputs)
            result.put([*key, "macs"], net_.macs())
            result.put([*key, "parameters"], net_.parameters())
            if args.device == "cpu" and seed == tier["seeds"][0]:
                result.put([*key, "speed"], speed(model, given["real"]))
            study(result, key, model, given, test, args.device, clock, brief=args.brief)
    result.put(["seconds"], round(clock.gone))


if __name__ == "__main__":
    main()
