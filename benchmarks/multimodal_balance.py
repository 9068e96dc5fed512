"""Audio-visual digits: what modulation gains over joint training and over other ways to balance, late and early.

STEMMA_DATA=DIR python benchmarks/multimodal_balance.py [--jobs N] [--device cuda] [--minutes M]
writes benchmarks/results/multimodal_balance.json while it goes, and goes on where it stopped

MNIST, degraded to 25 % of its variance, is paired by label with spoken digits as log-mel spectrograms: official test
images and sounds, everything else from the training parts. The learning rate (of joint training) and the parameters
of every method are chosen on validation pairs of seeds that are not scored; the last epoch counts. Scored: accuracy on
test pairs.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma import __version__
from testbeds.multimodal_networks import FUSIONS
from testbeds.multimodal_runs import Ledger, Run, mean_of, paired

CHOSEN_ON = (100, 101)
"""Seeds that parameters are chosen on."""

RATES = (0.01, 0.03, 0.1)
EPOCHS = 25

CONDITIONS = {
    "clean": "standardised inputs, sounds as recorded",
    "noisy": "standardised inputs, white noise as strong as the sound",
    "three": "as noisy, with row and column sums of another image of the same digit as third modality",
    "raw": "pixels and spectrograms from 0 to 1, as in the public set, white noise as strong as the sound",
    "convolutional": "as noisy, convolutional encoders",
    "no competition": "the control: two views of scikit-learn's digits alike, limited by noise, 500 pairs",
}
CONTROL = "no competition"
FULL = "clean"
"""The condition in which modulation is compared with everything."""

FEW = ("three", "raw", "convolutional")
"""Conditions in which it is compared with joint training and single modalities alone."""

OURS = "agm and losses alone"
ABLATED = "losses alone"
LEFT_OUT_OF_BEST = ("joint", "agm", "agm, as published", "agm, sign flipped", OURS, ABLATED)


def _grid(condition: str, names: Sequence[str]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """By label: the strategy, and the parameters among which it is chosen."""
    kinds = ("running", "parity")
    alphas = [{"alpha": a, "reference": r} for a, r in product((0.25, 0.5, 1.0, 2.0), kinds)]
    plain = [o for o in alphas if o["reference"] == "running"]
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {"agm": ("agm", alphas), "agm, as published": ("agm", plain)}
    if condition in FEW:
        return found
    found[OURS] = ("agm", [{"alpha": 0.5, "reference": "parity", "alone": w} for w in (0.3, 1.0)])
    damped = [{"alpha": a} for a in (0.3, 0.8)]
    rates = [{"factors": {one: f}} for one in names for f in (0.25, 4.0)]
    found |= {"ogm": ("ogm", damped), "encoder rates": ("encoder-rates", rates)}
    if condition in (FULL, CONTROL):
        found["gradient blending"] = ("gradient-blending", [{}])
    if condition != FULL:
        return found
    return {**found, "ogm-ge": ("ogm-ge", damped), "mslr": ("mslr", [{}]), "mses": ("mses", [{}])}


def _names(condition: str) -> tuple[str, ...]:
    named = {"three": ("image", "audio", "sums"), CONTROL: ("a", "v")}
    return named.get(condition, ("image", "audio"))


def _run(
    condition: str, fusion: str, method: str, options: Mapping[str, Any], seed: int, rate: float, score: str
) -> Run:
    network = "convolutional" if condition == "convolutional" else "perceptron"
    task = "noisy" if condition == "convolutional" else condition
    return Run(task, fusion, method, options, seed, {"epochs": EPOCHS, "rate": rate}, score, network)


def _choosing(condition: str, fusion: str, method: str, options: Mapping[str, Any], rate: float) -> list[Run]:
    return [_run(condition, fusion, method, options, s, rate, "valid") for s in CHOSEN_ON]


def _mean(ledger: Ledger, runs: Sequence[Run]) -> float:
    found = [ledger[r] for r in runs]
    return float(np.mean([f["accuracy"]["fused"] if f else 0.0 for f in found]))


def rate_of(ledger: Ledger, condition: str, fusion: str) -> float:
    """The learning rate with which joint training validates best."""
    return max(RATES, key=lambda r: _mean(ledger, _choosing(condition, fusion, "joint", {}, r)))


def chosen(ledger: Ledger, condition: str, fusion: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By label, the strategy and the parameters with which it validates best."""
    rate = rate_of(ledger, condition, fusion)
    out: dict[str, tuple[str, Mapping[str, Any]]] = {"joint": ("joint", {})}
    for label, (method, grid) in _grid(condition, _names(condition)).items():
        best = max(grid, key=lambda o: _mean(ledger, _choosing(condition, fusion, method, o, rate)))
        out[label] = (method, best)
    if condition not in FEW:
        out[ABLATED] = ("agm", {"alpha": 0.0, "alone": out[OURS][1]["alone"]})
        flipped = dict(out["agm"][1])
        out["agm, sign flipped"] = ("agm", {**flipped, "alpha": -flipped["alpha"]})
    return {**out, **{f"single {m}": ("single", {"modality": m}) for m in _names(condition)}}


def scored(ledger: Ledger, condition: str, fusion: str, seeds: int) -> dict[str, list[Run]]:
    """By label, the runs that are scored."""
    rate = rate_of(ledger, condition, fusion)
    return {
        label: [_run(condition, fusion, method, options, s, rate, "test") for s in range(seeds)]
        for label, (method, options) in chosen(ledger, condition, fusion).items()
    }


def table(ledger: Ledger, condition: str, fusion: str, seeds: int) -> dict[str, Any]:
    """Accuracies, paired differences from joint training, and from the best other method by its mean."""
    runs = scored(ledger, condition, fusion, seeds)
    done = {label: [f for f in (ledger[r] for r in rs) if f] for label, rs in runs.items()}
    fused = {k: [f["accuracy"]["fused"] for f in rows] for k, rows in done.items() if len(rows) == seeds}
    if "joint" not in fused:
        return {}
    rows: dict[str, Any] = {}
    for label, values in fused.items():
        parts = done[label]
        rows[label] = {
            "options": runs[label][0].options, "fused": mean_of(values), "gain": paired(values, fused["joint"]),
            "responses": {m: float(np.mean([p["accuracy"][m] for p in parts])) for m in _names(condition)},
            "seconds": float(np.mean([p["seconds"] for p in parts])),
        }  # fmt: skip
    others = [k for k in fused if k not in LEFT_OUT_OF_BEST]
    out = {"what": CONDITIONS[condition], "rate": rate_of(ledger, condition, fusion), "methods": rows}
    if "agm" in fused and others:
        best = max(others, key=lambda k: float(np.mean(fused[k])))
        over = paired(fused["agm"], fused["joint"])
        out["agm_over_joint"] = over
        out["agm_above_joint"] = over["low"] > 0
        out["best_other"] = best
        out["agm_over_best_other"] = paired(fused["agm"], fused[best])
        if OURS in fused and ABLATED in fused:
            out["ours_over_best_other"] = paired(fused[OURS], fused[best])
            out["ours_over_ablated"] = paired(fused[OURS], fused[ABLATED])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of convolutional networks; perceptrons stay on processors")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then, with what is done")
    parser.add_argument("--conditions", nargs="+", default=["clean", "noisy", "three", CONTROL], choices=CONDITIONS)
    parser.add_argument("--fusions", nargs="+", default=list(FUSIONS), choices=FUSIONS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multimodal_balance.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA with mnist_*.npz and spoken_digits_mulaw8k.npz")
    about = {
        "version": __version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "epochs": EPOCHS,
        "machine": f"{os.cpu_count()} cores, {args.jobs} used, convolutional networks on {args.device}, "
                   f"Python {platform.python_version()}, torch {torch.__version__}",
        "seeds": args.seeds, "chosen_on": CHOSEN_ON, "rates": RATES,
    }  # fmt: skip
    ledger, until, whole = Ledger(args.out, about), time.monotonic() + 60 * args.minutes, True

    def carry_out(runs: list[Run], device: str) -> bool:
        return ledger.carry_out(runs, args.data, device, args.jobs, until)

    for condition, fusion in product(args.conditions, args.fusions):
        device = args.device if condition == "convolutional" else "cpu"
        rates = [r for rate in RATES for r in _choosing(condition, fusion, "joint", {}, rate)]
        whole = whole and carry_out(rates, device)
        rate = rate_of(ledger, condition, fusion)
        grid = [
            run
            for method, options in _grid(condition, _names(condition)).values()
            for o in options
            for run in _choosing(condition, fusion, method, o, rate)
        ]
        whole = whole and carry_out(grid, device)
        runs = [r for rs in scored(ledger, condition, fusion, args.seeds).values() for r in rs]
        whole = whole and carry_out(runs, device)
        print(f"{condition}, {fusion}: {'done' if whole else 'not whole'}", file=sys.stderr)
    tables = {c: {f: table(ledger, c, f, args.seeds) for f in FUSIONS} for c in CONDITIONS}
    ledger.summary = {"whole": whole, "tables": tables}
    ledger.write()
    for condition, fusions in tables.items():
        for fusion, found in fusions.items():
            for label, row in found.get("methods", {}).items():
                low, high = (100 * row["gain"].get(k, 0.0) for k in ("low", "high"))
                print(f"{condition}, {fusion}, {label} {dict(row['options'])}: {100 * row['fused']['mean']:.1f}, "
                      f"gain {100 * row['gain']['mean']:+.2f} [{low:+.2f}, {high:+.2f}]")  # fmt: skip


if __name__ == "__main__":
    main()
