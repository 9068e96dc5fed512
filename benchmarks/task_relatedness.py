"""Task relatedness on our own networks: which distance ranks source tasks as measured transfer does?

python benchmarks/task_relatedness.py [--data DIR] [--tier small|full] [--device cpu|cuda]

Tasks of four kinds on one image set, several networks per task, every one from a random start of its own. The truth is
measured: a small readout is trained on each frozen encoder from few images of each target task, and sources are ranked
per target by how often they win on test images (analytic hierarchy process). Distances are taken between encoders, on
other test images. Nothing is chosen on what is scored: the one configuration that is chosen at all is chosen on another
data set. Networks, transfer losses and distances are kept in Stemma's cache, so an interrupted run goes on.

small: 16 tasks on Fashion-MNIST, three networks each (the last narrower and deeper), chosen on 32 MNIST networks.
full: 13 tasks on CIFAR-10, five larger networks each, chosen on the 48 Fashion-MNIST networks; needs a GPU.
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import sklearn
import torch

from stemma import __version__
from stemma.fingerprints.evaluation import compute_outputs
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.jacobian import JacobianSketch
from stemma.fingerprints.outputs import Outputs
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.linear_cka import LinearCka
from stemma.measures.relatedness import similarity_tree, transfer_agreement
from stemma.probes import Probes
from testbeds import task_methods
from testbeds.measured import stamp
from testbeds.task_methods import CHOSEN, DEFAULT, OFFICIAL, Encoders
from testbeds.task_networks import Form, trained
from testbeds.task_scores import Truth, ceilings, chance, over_seeds, scored
from testbeds.task_transfer import Readout, transfer_losses, wins
from testbeds.tasks import read_images, tasks_of

Say = Callable[[str], None]
READOUT = Readout()


@dataclass(frozen=True)
class Study:
    """One data set and the networks on it.

    Attributes:
        data_set: Which images.
        forms: Architecture and training, one entry per network of a task.
        readout: What is trained for a transfer.
        test: Test images on which transfer is measured.
        probes: Further test images, which the methods ask.
    """

    data_set: str
    forms: tuple[Form, ...]
    readout: Readout = READOUT
    test: int = 1000
    probes: int = 256


SMALL = Form()
DEEP = Form(width=12, extra=3)
LARGE = Form(width=64, extra=4, images=45000, epochs=30)
FASHION = Study("fashion_mnist", (SMALL, SMALL, DEEP))
TIERS = {
    "small": (Study("mnist", (SMALL, SMALL), probes=96), FASHION),
    "full": (FASHION, Study("cifar10", (LARGE,) * 4 + (Form(width=96, extra=6, images=45000, epochs=30),), test=4000)),
    "smoke": (
        Study("cifar10", (Form(width=4, images=256, epochs=1),) * 2, Readout(64, 8, 5, 32), 64, 8),
        Study("cifar10", (Form(width=4, extra=2, images=256, epochs=1),) * 2, Readout(64, 8, 5, 32), 64, 8),
    ),
}
"""For each tier: where a configuration is chosen, and where all are scored. `smoke` only shows that the code runs."""


def built(study: Study, data: Path, device: str, say: Say) -> tuple[Encoders, Truth, list[dict[str, Any]]]:
    """Train (or recall) every network of a study and measure every transfer."""
    tasks = tasks_of(study.data_set)
    seen = max(f.images for f in study.forms)
    train = read_images(data, study.data_set, "train", seen + study.readout.images)
    test = read_images(data, study.data_set, "test", max(study.test + study.probes, 2 * study.test))
    nets, names, quality = [], [], []
    for task in tasks:
        for seed, form in enumerate(study.forms):
            net, found = trained(task, form, seed, train.part(0, form.images), test.part(0, 2 * study.test), device)
            nets.append(net.to(device))
            names.append(f"{task.name}/{seed}")
            quality.append({"task": task.name, "kind": task.kind, "seed": seed, **found})
        say(f"{study.data_set}: {task.name} trained")
    asked = test.part(study.test, study.test + study.probes)
    models = task_methods.opened(nets, names, tuple(asked.pixels.shape[1:]))
    digests = [m.digest for m in models]
    shares = []
    few = train.part(seen, seen + study.readout.images)
    for task in tasks:
        losses = transfer_losses(nets, digests, task, study.readout, few, test.part(0, study.test), device)
        shares.append(wins(losses.reshape(len(tasks), len(study.forms), -1)))
        say(f"{study.data_set}: transfer to {task.name} measured")
    truth = Truth(tuple(t.name for t in tasks), tuple(t.kind for t in tasks), tuple(shares))
    probes = Probes.of(asked.pixels.numpy())
    maps = np.stack([compute_outputs(m, probes) for m in models])
    return Encoders(len(tasks), len(study.forms), models, probes, maps), truth, quality


def chosen(encoders: Encoders, truth: Truth, say: Say) -> tuple[GradientField, list[dict[str, Any]]]:
    """The gradient field that agrees best with transfer on the data set meant for choosing, diagonal out."""
    rows = []
    for method in task_methods.CANDIDATES:
        distance = task_methods.field_distances(encoders, method, FieldCosine())
        rows.append({
            **{k: getattr(method, k) for k in ("potential", "baseline", "cumulative", "times_input")},
            **agreed({"": distance}, truth)[""],
        })  # fmt: skip
        say(f"candidate {rows[-1]}")
    best = int(np.argmax([r["diagonal_out"] for r in rows]))
    return task_methods.CANDIDATES[best], rows


def agreed(distances: Mapping[str, np.ndarray], truth: Truth) -> dict[str, dict[str, float]]:
    """Agreement with transfer of several methods, without intervals."""
    everyone = range(truth.seeds)
    real = truth.affinities(everyone)
    return {
        name: {
            f"diagonal_{'in' if d else 'out'}": float(
                transfer_agreement(over_seeds(m, everyone), real, diagonal=d).mean()
            )
            for d in (True, False)
        }
        for name, m in distances.items()
    }


def compared(
    encoders: Encoders, truth: Truth, choice: GradientField, say: Say
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Distances of every method, and which of them are baselines."""
    out = {}
    for name, (method, measure) in {**task_methods.FIELDS, CHOSEN: (choice, FieldCosine())}.items():
        out[name] = task_methods.field_distances(encoders, method, measure)
        say(name)
    if np.allclose(out[CHOSEN], out[DEFAULT]):
        del out[CHOSEN]  # what was chosen is the default
    sketch = JacobianSketch(directions=8)
    out |= task_methods.whole_set_distances(encoders, sketch, {task_methods.JACOBIAN: LinearCka()})
    say(task_methods.JACOBIAN)
    baselines = task_methods.whole_set_distances(encoders, Outputs(), task_methods.REPRESENTATIONS)
    say("representations")
    return {**out, **baselines, **task_methods.trivial_distances(encoders, truth.kinds)}, list(baselines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.data is None:
        parser.error("say where the data sets lie: --data DIR, or the environment variable STEMMA_DATA")
    torch.set_num_threads(1)
    begun = time.time()

    def say(what: str) -> None:
        print(f"{time.time() - begun:7.1f} s  {what}", flush=True)

    result = study(args.tier, Path(args.data), args.device, say)
    result["seconds_beyond_the_cache"] = round(time.time() - begun, 1)
    suffix = "" if args.tier == "small" else f"_{args.tier}"
    out = args.out or Path(__file__).parent / "results" / f"task_relatedness{suffix}.json"
    rows = re.sub(r"\[\s+([-+.\de,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(result, indent=1))
    out.write_text(rows + "\n")
    for name, row in sorted(result["methods"].items(), key=lambda kv: -kv[1]["diagonal_out"]["mean"]):
        both = [f"{row[d]['mean']:.3f} [{row[d]['interval'][0]:.3f}, {row[d]['interval'][1]:.3f}]"
                for d in ("diagonal_in", "diagonal_out")]  # fmt: skip
        print(f"{name:52s} {both[0]}  {both[1]}")


def study(tier: str, data: Path, device: str, say: Say) -> dict[str, Any]:
    """The whole comparison as a JSON document."""
    choosing, scoring = TIERS[tier]
    first, first_truth, first_quality = built(choosing, data, device, say)
    choice, candidates = chosen(first, first_truth, say)
    others = task_methods.whole_set_distances(first, Outputs(), task_methods.REPRESENTATIONS)
    others[DEFAULT] = task_methods.field_distances(first, GradientField(), FieldCosine())
    there = agreed({**others, **task_methods.trivial_distances(first, first_truth.kinds)}, first_truth)
    encoders, truth, quality = built(scoring, data, device, say)
    distances, baselines = compared(encoders, truth, choice, say)
    against = [*baselines, DEFAULT, OFFICIAL]
    methods = scored(distances, truth, against)
    everyone = range(truth.seeds)
    real = truth.affinities(everyone)
    mean = {name: over_seeds(d, everyone) for name, d in distances.items()}
    return {
        **stamp("task_relatedness"), "version": __version__, "tier": tier,
        "machine": f"{os.cpu_count()} cores, {device}, Python {platform.python_version()}",
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__,
                     "scikit-learn": sklearn.__version__},
        "studies": [asdict(choosing), asdict(scoring)],
        "networks": {s.data_set: e.tasks * e.seeds for s, e in ((choosing, first), (scoring, encoders))},
        "tasks": list(truth.tasks), "kinds": list(truth.kinds),
        "chosen": {"on": choosing.data_set, "by": "agreement with transfer, diagonal out",
                   "field": dict(choice.spec.params), "is_the_default": CHOSEN not in distances,
                   "count": len(candidates), "candidates": candidates,
                   "others": there, "best_of_all": max(there, key=lambda name: there[name]["diagonal_out"]),
                   "reliability": first_truth.reliability()},
        "reliability": truth.reliability(), "ceilings": ceilings(truth), "chance": chance(truth),
        "baselines": baselines, "best_baseline": _best(methods, baselines),
        "methods": methods,
        "affinity": np.round(real, 8).tolist(),
        "distances": {n: np.round(mean[n], 8).tolist() for n in (OFFICIAL, DEFAULT, *baselines)},
        "trees": {n: {"linkage": t.linkage.tolist(), "order": [truth.tasks[i] for i in t.order]}
                  for n in (OFFICIAL, DEFAULT) for t in (similarity_tree(mean[n]),)},
        "quality": [*first_quality, *quality],
    }  # fmt: skip


def _best(methods: dict[str, Any], baselines: list[str]) -> dict[str, str]:
    return {d: max(baselines, key=lambda b: methods[b][d]["mean"]) for d in ("diagonal_in", "diagonal_out")}


if __name__ == "__main__":
    main()
