"""Two views of a digit that compete, and two that do not: what modulation gains, and what becomes of competition.

python benchmarks/multimodal_competition.py [--seeds N] [--jobs N] [--minutes M]
writes benchmarks/results/multimodal_competition.json after every run, and goes on where it stopped

View `a` is noisy and large: learnt at once, right three times in five. View `v` is cleaner and eight times smaller:
learnt slowly, right nine times in ten. The noise was chosen on networks of one view alone, nothing on fused ones. The
control without competition has two views alike. Learning rates of encoders are tuned, and references of modulation are
compared for the choice of a default, on other seeds than those scored.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma import __version__
from testbeds.multimodal_networks import FUSIONS
from testbeds.multimodal_runs import Ledger, Run, mean_of, paired

FIT = {"epochs": 60, "decay_at": 1.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "joint": ("joint", {}),
    "agm, alpha 0.5": ("agm", {"alpha": 0.5}),
    "agm, alpha 1": ("agm", {"alpha": 1.0}),
    "agm, alpha 2": ("agm", {"alpha": 2.0}),
    "agm, alpha 4": ("agm", {"alpha": 4.0}),
    "agm, alpha 2, moving average": ("agm", {"alpha": 2.0, "reference": "average"}),
    "agm, alpha 2, parity": ("agm", {"alpha": 2.0, "reference": "parity"}),
    "agm, sign flipped": ("agm", {"alpha": -2.0}),
    "agm, parity, sign flipped": ("agm", {"alpha": -2.0, "reference": "parity"}),
    "ogm, alpha 0.3": ("ogm", {"alpha": 0.3}),
    "ogm, alpha 0.8": ("ogm", {"alpha": 0.8}),
    "ogm-ge, alpha 0.3": ("ogm-ge", {"alpha": 0.3}),
    "mslr": ("mslr", {}),
    "mses": ("mses", {}),
    "gradient blending": ("gradient-blending", {}),
    "single a": ("single", {"modality": "a"}),
    "single v": ("single", {"modality": "v"}),
}
ADAM = {**FIT, "optimizer": "adam", "rate": 0.001}
UNDER_ADAM: dict[str, tuple[str, dict[str, Any]]] = {
    "joint, Adam": ("joint", {}),
    "agm, alpha 2, Adam": ("agm", {"alpha": 2.0}),
    "agm, alpha 2, parity, Adam": ("agm", {"alpha": 2.0, "reference": "parity"}),
}
FACTORS = ((1.0, 4.0), (1.0, 16.0), (1.0, 64.0), (0.25, 4.0), (0.25, 16.0), (0.0625, 16.0))
ACCURACY_ALONE = ("agm, parity, sign flipped",)
"""Of which no competition strength is measured: a control of the gain."""

TASKS = ("competition", "no competition")
JUDGED = {
    "running": ("agm, alpha 2", "agm, sign flipped"),
    "parity": ("agm, alpha 2, parity", "agm, parity, sign flipped"),
}
"""By reference: modulation at alpha 2, and with its sign flipped."""
TUNED = "encoder rates, tuned"
CHOSEN_ON = (100, 101)
"""Seeds that learning rates of encoders are tuned on."""


def _rates(task: str, fusion: str) -> Iterator[tuple[tuple[float, float], list[Run]]]:
    for a, v in FACTORS:
        options = {"factors": {"a": a, "v": v}}
        yield (a, v), [Run(task, fusion, "encoder-rates", options, s, FIT, "valid") for s in CHOSEN_ON]


def _tuned(ledger: Ledger, task: str, fusion: str) -> dict[str, Any]:
    def score(runs: list[Run]) -> float:
        return float(np.mean([(ledger[r] or {"accuracy": {"fused": 0}})["accuracy"]["fused"] for r in runs]))

    best = max(_rates(task, fusion), key=lambda pair: score(pair[1]))[0]
    return {"factors": dict(zip("av", best, strict=True))}


def _scored(ledger: Ledger, task: str, fusion: str, seeds: int) -> dict[str, list[Run]]:
    methods = {**METHODS, TUNED: ("encoder-rates", _tuned(ledger, task, fusion)), **UNDER_ADAM}
    out = {}
    for label, (name, options) in methods.items():
        adam = label in UNDER_ADAM
        measured = name != "single" and not adam and label not in ACCURACY_ALONE
        out[label] = [
            Run(task, fusion, name, options, s, ADAM if adam else FIT, strength=measured) for s in range(seeds)
        ]
    return out


def _references(task: str, fusion: str) -> dict[str, list[Run]]:
    """By reference: runs on the seeds that are chosen on, scored on what readouts are fitted on."""
    return {
        reference: [
            Run(task, fusion, "agm", {"alpha": a, "reference": reference}, s, FIT, "valid")
            for a in (1.0, 2.0)
            for s in CHOSEN_ON
        ]
        for reference in JUDGED
    }


def references(ledger: Ledger) -> dict[str, Any]:
    """Which reference validates better, on seeds that are not scored: by task and fusion, mean accuracy of each."""
    out: dict[str, Any] = {}
    for task in TASKS:
        for fusion in FUSIONS:
            found = {name: [ledger[r] for r in runs] for name, runs in _references(task, fusion).items()}
            if all(r for rows in found.values() for r in rows):
                means = {n: float(np.mean([r["accuracy"]["fused"] for r in rows if r])) for n, rows in found.items()}
                out.setdefault(task, {})[fusion] = means
    return out


def summary(ledger: Ledger, seeds: int) -> dict[str, Any]:
    """The tables: by task, fusion and method, accuracies and strengths, and the differences from joint training."""
    out: dict[str, Any] = {}
    for task in TASKS:
        for fusion in FUSIONS:
            runs = _scored(ledger, task, fusion, seeds)
            found = {label: [ledger[r] for r in rs] for label, rs in runs.items()}
            found = {label: rs for label, rs in found.items() if all(r is not None for r in rs)}
            table = {
                label: _row(rs, found.get("joint, Adam" if label in UNDER_ADAM else "joint"))
                for label, rs in found.items()
            }
            if TUNED in table:
                table[TUNED]["options"] = runs[TUNED][0].options
            out.setdefault(task, {})[fusion] = table
    return out


def _row(rows: list[Any], joint: list[Any] | None) -> dict[str, Any]:
    out = {"accuracy": {m: mean_of([r["accuracy"][m] for r in rows]) for m in rows[0]["accuracy"]}}
    if "strength" in rows[0]:
        out["strength"] = {m: mean_of([r["strength"][m]["whitened"] for r in rows]) for m in rows[0]["strength"]}
        for kind in ("plain", "published"):
            out[kind] = {m: mean_of([r["strength"][m][kind] for r in rows]) for m in rows[0]["strength"]}
    if joint:
        out["gain"] = paired(*([r["accuracy"]["fused"] for r in side] for side in (rows, joint)))
        if "strength" in rows[0]:
            for kind, name in (("whitened", "strength_change"), ("published", "published_change")):
                out[name] = {
                    m: paired(*([r["strength"][m][kind] for r in side] for side in (rows, joint)))
                    for m in rows[0]["strength"]
                }
    return out


def reached(tables: dict[str, Any]) -> dict[str, Any]:
    """The figures that decide."""
    out: dict[str, Any] = {}
    for fusion, table in tables["competition"].items():
        for reference, (method, other) in JUDGED.items():
            if method not in table or other not in table:
                continue
            ours, flipped = table[method], table[other]
            fall = {k: -ours["strength_change"]["v"][k] for k in ("mean", "low", "high")}
            out.setdefault(reference, {})[fusion] = {
                "gain": ours["gain"],
                "gain_of_at_least_5_points": ours["gain"]["lower_one_sided"] >= 0.05,
                "strength_falls": fall["mean"],
                "strength_falls_between": [fall["high"], fall["low"]],
                "published_strength_falls": -ours["published_change"]["v"]["mean"],
                "strength_falls_by_0.15": fall["mean"] >= 0.15,
                "flipped_gain": flipped["gain"]["mean"],
                "flipped_gains_at_most_half": flipped["gain"]["mean"] <= ours["gain"]["mean"] / 2,
                "all_of_it": ours["gain"]["lower_one_sided"] >= 0.05 and fall["mean"] >= 0.15
                and flipped["gain"]["mean"] <= ours["gain"]["mean"] / 2,
            }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then, with what is done")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multimodal_competition.json")
    args = parser.parse_args()
    about = {
        "version": __version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "fit": FIT,
        "machine": f"{os.cpu_count()} cores, {args.jobs} used, {args.device}, Python {platform.python_version()}, "
                   f"torch {torch.__version__}", "seeds": args.seeds, "chosen_on": CHOSEN_ON,
    }  # fmt: skip
    ledger, until = Ledger(args.out, about), time.monotonic() + 60 * args.minutes
    tuning = [r for t in TASKS for f in FUSIONS for _, runs in _rates(t, f) for r in runs]
    tuning += [r for t in TASKS for f in FUSIONS for runs in _references(t, f).values() for r in runs]
    whole = ledger.carry_out(tuning, Path(), args.device, args.jobs, until)
    for task in TASKS if whole else ():
        rows = [runs for fusion in FUSIONS for runs in _scored(ledger, task, fusion, args.seeds).values()]
        whole = whole and ledger.carry_out([r for rs in rows for r in rs], Path(), args.device, args.jobs, until)
    tables = summary(ledger, args.seeds)
    ledger.summary = {"whole": whole, "reached": reached(tables), "references": references(ledger), "tables": tables}
    ledger.write()
    for task, fusions in tables.items():
        for fusion, table in fusions.items():
            for label, row in table.items():
                gain, strength = row.get("gain", {}), row.get("strength", {})
                words = [f"{m} {100 * a['mean']:.1f}" for m, a in row["accuracy"].items()]
                words += [f"d_{m} {s['mean']:.2f}" for m, s in strength.items()]
                print(f"{task}, {fusion}, {label}: {', '.join(words)}, gain {100 * (gain.get('mean') or 0):+.1f}")
    print("whole" if whole else "not whole: run it again", file=sys.stderr)


if __name__ == "__main__":
    main()
