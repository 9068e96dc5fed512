"""How much a small language model loses when units of its feed-forward layers go, beside baselines with the same refit.

Three networks of the zoo (Llama architecture, 171 thousand parameters) learn one author's text, byte by byte. The
figures are perplexities per byte on text that was not learnt, as ratios to those of the whole network.

    python benchmarks/pruned_language.py [--data DIR] [--out FILE]      writes benchmarks/results/pruned_language.json
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

from stemma.edits.asking import own_network
from stemma.edits.pruning import Pruning
from stemma.probes import Probes
from stemma.zoo import data
from stemma.zoo.recipe import Recipe, build_all

AUTHOR, SEEDS, GONE = "shakespeare", (31, 32, 33), (0.1, 0.2, 0.3, 0.5)
SCORES, UNSEEN = ("elimination", "energy", "wanda", "l2", "random"), 600


def perplexity(network: Any, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Exponential of the mean cross-entropy of the next byte."""
    scores = network.answers(inputs).double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, torch.from_numpy(targets)[..., None]).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pruned_language.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA with text_authors.npz")
    os.environ["STEMMA_DATA"] = str(args.data)
    recipes = [Recipe("lm", "train", parameters={"data": AUTHOR}, seed=s) for s in SEEDS]
    unseen, learnt = (data.examples("lm", part, data=AUTHOR) for part in ("test", "b"))
    some = np.random.default_rng(1).permutation(len(unseen.inputs))[:UNSEEN]
    unseen = data.Examples(unseen.inputs[some], unseen.targets[some])
    rows = np.random.default_rng(0).permutation(len(learnt.inputs))[:256]
    asked = Probes.of(learnt.inputs[rows])
    found: dict[str, Any] = {}
    dense = []
    for model in build_all(recipes):
        whole = perplexity(own_network(model), unseen.inputs, unseen.targets)
        dense.append(whole)
        seen = Pruning().collect(model, asked)
        for score in SCORES:
            base = Pruning(score=score)
            curves = base.curves(model, asked, seen)
            for kind in ("kernel", "none"):
                for gone in GONE if kind == "kernel" else (0.3,):
                    method = replace(base, share=1 - gone, compensation=kind)
                    plan = method.plan(model, asked, seen, curves=curves)
                    edited = method.apply(model, plan, asked, seen)
                    ratio = perplexity(edited.asked, unseen.inputs, unseen.targets) / whole
                    cell = found.setdefault(kind, {}).setdefault(score, {}).setdefault(f"{gone:g}", {"ratios": []})
                    cell["ratios"].append(ratio)
                    cell["mean"], cell["worst"] = float(np.mean(cell["ratios"])), float(np.max(cell["ratios"]))
        print(f"{len(dense)} networks, perplexity {whole:.3f}", flush=True)
        content = {"author": AUTHOR, "seeds": SEEDS, "perplexity": dense, "probes": len(rows), "refit": found,
                   "machine": f"{os.cpu_count()} cores, {platform.python_version()}"}  # fmt: skip
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
