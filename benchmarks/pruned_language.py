"""How much a small language model loses when units of its feed-forward layers go, beside baselines with the same refit.

Networks of the Llama architecture with narrow feed-forward layers learn one author's text, byte by byte, until few
units idle. The figures are perplexities per byte on text that was not learnt, as ratios to those of the whole network.

    python benchmarks/pruned_language.py [--data DIR] [--seeds N] [--networks DIR] [--out FILE]

Writes benchmarks/results/pruned_language.json after every network; networks that are there are not measured again.
"""

import argparse
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F

from stemma import networks
from stemma.edits.editable_network import editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.zoo import data
from stemma.zoo.kinds import KINDS
from testbeds.measured import write_result

AUTHOR, SEEDS, GONE = "shakespeare", (31, 32, 33), (0.1, 0.2, 0.3, 0.5)
SCORES, UNSEEN, ASKED = ("elimination", "energy", "wanda", "l2", "random"), 400, 256
CONFIG = {**KINDS["lm"].config, "intermediate_size": 64, "num_hidden_layers": 2}
STEPS, BATCH, RATE = 4000, 32, 4e-3


def trained(seed: int, learnt: data.Examples, kept: Path | None) -> torch.nn.Module:
    """AdamW, one cycle, weight decay .01."""
    torch.manual_seed(seed)
    net = networks.build(CONFIG)
    file = None if kept is None else kept / f"language-{seed}-{STEPS}.pt"
    if file is not None and file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    draw = np.random.default_rng(seed)
    for step in range(STEPS):
        rows = draw.integers(0, len(learnt.inputs), BATCH)
        x, y = (torch.from_numpy(a[rows]) for a in (learnt.inputs, learnt.targets))
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"seed {seed} step {step}: loss {loss.item():.3f}", flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)
    return net.eval()


def perplexity(network: Any, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Exponential of the mean cross-entropy of the next byte."""
    scores = network.outputs(inputs).double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, torch.from_numpy(targets)[..., None]).mean()))


def measured(net: torch.nn.Module, asked: Probes, unseen: data.Examples) -> dict[str, Any]:
    """Ratios of perplexities, by refit, score and share that goes."""
    model = from_arrays({n: t.numpy() for n, t in net.state_dict().items()}, "language", CONFIG)
    whole = perplexity(editable_copy(model), unseen.inputs, unseen.targets)
    found: dict[str, Any] = {"whole": whole}
    seen = Pruning().collect(model, asked)
    for score in SCORES:
        base = Pruning(score=score)
        curves = base.curves(model, asked, seen)
        for kind in ("kernel", "none"):
            for gone in GONE:
                method = replace(base, keep_ratio=1 - gone, compensation=kind)
                plan = method.plan(model, asked, seen, curves=curves)
                edited = method.apply(model, plan, asked, seen)
                ratio = perplexity(edited.editable, unseen.inputs, unseen.targets) / whole
                found.setdefault(kind, {}).setdefault(score, {})[f"{gone:g}"] = ratio
    return found


def summary(cases: dict[str, Any]) -> dict[str, Any]:
    """Mean and worst over networks, and for other scores by how much `elimination` is better, pair by pair."""
    out: dict[str, Any] = {}
    for kind in ("kernel", "none"):
        for score in SCORES:
            for gone in (f"{g:g}" for g in GONE):
                ratios = np.array([c[kind][score][gone] for c in cases.values()])
                over = ratios - np.array([c[kind]["elimination"][gone] for c in cases.values()])
                out.setdefault(kind, {}).setdefault(score, {})[gone] = {
                    "mean": float(ratios.mean()), "worst": float(ratios.max()), "best": float(ratios.min()),
                    "over elimination": [float(over.min()), float(over.max())],
                }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--networks", type=Path, help="folder in which trained networks are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pruned_language.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA with text_authors.npz")
    os.environ["STEMMA_DATA"] = str(args.data)
    torch.set_num_threads(1)
    parts = [data.examples("lm", part, data=AUTHOR) for part in ("a", "b")]
    learnt = data.Examples(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("inputs", "targets")))
    unseen = data.examples("lm", "test", data=AUTHOR)
    some = np.random.default_rng(1).permutation(len(unseen.inputs))[:UNSEEN]
    unseen = data.Examples(unseen.inputs[some], unseen.targets[some])
    asked = Probes.of(learnt.inputs[np.random.default_rng(0).permutation(len(learnt.inputs))[:ASKED]])
    head = {"author": AUTHOR, "config": CONFIG, "steps": STEPS, "batch": BATCH, "probes": ASKED, "unseen": UNSEEN,
            "method": Pruning().spec.digest}  # fmt: skip
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    cases = before.get("cases", {}) if all(before.get(k) == v for k, v in head.items()) else {}
    for seed in SEEDS[: args.seeds]:
        if f"seed {seed}" not in cases:
            cases[f"seed {seed}"] = measured(trained(seed, learnt, args.networks), asked, unseen)
        content = {**head, "cases": cases, "refit": summary(cases),
                   "parameters": sum(t.numel() for t in networks.build(CONFIG).parameters()),
                   "perplexity": [c["whole"] for c in cases.values()],
                   "machine": f"{os.cpu_count()} cores, {platform.python_version()}"}  # fmt: skip
        write_result(args.out, content)
        print(f"{len(cases)} networks, perplexity {cases[f'seed {seed}']['whole']:.3f}", flush=True)


if __name__ == "__main__":
    main()
