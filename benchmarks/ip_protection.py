"""Whose model is this? Copies of a victim against networks that were trained apart.

python benchmarks/ip_protection.py [--tier small|full] [--data DIR]     writes benchmarks/results/ip_protection.json

With --fit the combination of measures is chosen anew, on the calibration split alone, and written into the library.
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
from stemma.zoo.training import accuracy
from testbeds.ip_answers import OFFICIAL_PROBES, Questions
from testbeds.ip_combination import fitted, write
from testbeds.ip_models import GROUPS, PROBES, RATIOS, REGIMES, SIZES, Batch, Data, Testbed
from testbeds.ip_scores import Suspects, fields_asked, suspects
from testbeds.ip_tables import ALPHA, DRAWS, Scored, regime_table
from testbeds.measured import write_result


def batches(bed: Testbed, splits: tuple[str, ...]) -> Iterator[Batch]:
    """All models of some splits but the victims, the negatives first."""
    for kind, counts in bed.size.negatives.items():
        for split in (s for s in counts if s in splits):
            yield from bed.negatives(split, kind)
    for split in (s for s in bed.size.copies if s in splits):
        for victim in bed.victims(split):
            for group in bed.size.groups:
                yield from bed.copies(split, group, victim)


def collected(data: Data, tier: str, *splits: str) -> tuple[Testbed, Questions, Suspects]:
    """Everything of one regime, made or taken from the cache."""
    bed, start = Testbed(data, SIZES[tier, data.regime.name]), time.time()
    questions = Questions.of(data, [*bed.victims("calibration"), *bed.victims("test")])

    def told(what: str) -> None:
        print(f"{data.regime.name}: {time.time() - start:.0f} s, {what}", file=sys.stderr)

    return bed, questions, suspects(questions, batches(bed, splits), told)


def regime(data: Data, tier: str) -> dict[str, Any]:
    """The tables of one regime."""
    bed, questions, found = collected(data, tier, "selection", "calibration", "test")
    scored = Scored.of(found, questions.scored)
    held = data.part("held-out")
    victims = []
    for v in bed.victims("test"):
        i = v.recipe["victim"]
        apart = found.agreement[scored.negatives("same"), i]
        victims.append({"architecture": v.recipe["architecture"],
                        "accuracy": float(accuracy(v.config, v.models, held)[0]),
                        "agreement_with_negatives": float(apart.mean())})  # fmt: skip
    return {
        "data": data.regime.source, "transfer": data.regime.other, "examples": data.regime.examples,
        "noise": data.regime.noise, "victims": victims,
        "victim_accuracy": float(np.mean([v["accuracy"] for v in victims])),
        "victim_agreement": float(np.mean([v["agreement_with_negatives"] for v in victims])),
        "negative_accuracy": float(found.accuracy[scored.negatives("same")].mean()),
        "negatives": bed.size.negatives, "copies": bed.size.copies, "victims_of": bed.size.victims,
        **regime_table(scored, bed.size.groups),
    }  # fmt: skip


def reached(table: dict[str, Any]) -> dict[str, Any]:
    """The figures that decide, of the combination."""
    false = table["false_positives"]
    return {
        "pooled_auc": table["pooled"]["not_extracted"]["combined"]["auc"],
        "false_positive_lower": max(f["combined"]["lower"] for f in false.values()),
        "false_positive_rate": {k: f["combined"]["rate"] for k, f in false.items()},
        "more_than_two_points_behind": [g for g, t in table["groups"].items() if not t["within_two_points"]],
    }


def result(data: Path, tier: str) -> dict[str, Any]:
    """The whole study."""
    start = time.process_time()
    regimes = {r.name: regime(Data(data, r), tier) for r in REGIMES}
    return {
        "version": __version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "tier": tier,
        "machine": f"{os.cpu_count()} cores, one used, Python {platform.python_version()}, torch {torch.__version__}, "
                   f"numpy {np.__version__}",
        "cpu_seconds_of_this_run": round(time.process_time() - start), "alpha": ALPHA, "probes": PROBES,
        "official_probes": OFFICIAL_PROBES, "bootstrap_draws": DRAWS, "fields": fields_asked(), "groups": GROUPS,
        "pruned": RATIOS, "reached": {n: reached(r) for n, r in regimes.items()}, "regimes": regimes,
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--fit", action="store_true", help="choose the combination anew before anything is scored")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ip_protection.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA with fashion_mnist_*.npz and mnist_*.npz")
    if args.fit:
        _, questions, found = collected(Data(args.data, REGIMES[0]), args.tier, "selection", "calibration")
        write(fitted(found, [i for i in range(len(questions.logits)) if i not in questions.scored]), args.tier)
    found = result(args.data, args.tier)
    write_result(args.out, found, default=float)
    for name, r in found["regimes"].items():
        for group, g in r["groups"].items():
            print(name, group, g["best_single"], round(g["combined_minus_best"], 3),
                  {n: round(m["auc"], 3) for n, m in g["measures"].items()})  # fmt: skip


if __name__ == "__main__":
    main()
