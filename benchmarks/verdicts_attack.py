"""Are copies in disguise still recognised? Forty-two attacks on fifteen architectures that nothing was fitted to.

A victim is trained, copied and disguised: other order, scale, coordinates, names, layout or number format, all of which
keep the function (checked with the network itself), compositions of them, and after a permutation of everything noise,
few bits, pruning, further training, fewer layers, units or words. `related` is right; `independent` never is.

Measured: verdicts by attack and by architecture; beside them the cosine of the weights, as they lie and after weight
matching with all names known, with the best threshold of one half of the pairs, on the other half.

    python benchmarks/verdicts_attack.py --data DIR      writes benchmarks/results/verdicts_attack.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import collections
import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbeds import verdict_scores as scores
from testbeds.disguises import baselines
from testbeds.disguises.alignment import whole_cosine
from testbeds.disguises.catalogue import ATTACKS, LOSSY, Attack, disguise
from testbeds.varied import training
from testbeds.varied.training import Bed, Network
from testbeds.varied_networks import FORMS, group

SEED, PAIRS_EACH = 20261411, 5
ARCHITECTURES, TRAININGS = 2, 3
"""Of each form: drawn architectures, and networks trained apart of each."""

QUICK = (1, 2)
RESULT = "verdicts_attack.json"
GOAL = 0.97


def kind_of(form: str) -> str:
    return next(k for k, forms in FORMS.items() if form in forms)


@lru_cache(maxsize=128)
def victim(form: str, architecture: int, training_: int, data: Path, cache: Path) -> Network:
    """A trained network of a form."""
    drawn = group(kind_of(form), FORMS[kind_of(form)].index(form) + 100 * architecture, SEED, TRAININGS, form)
    return Bed(data, cache).network(drawn.recipes[training_])


def planned(bed: Bed, each: int, sizes: tuple[int, int]) -> list[tuple[int, str, int, int]]:
    """Attack, form and victim of each pair: every attack on different forms, all forms about as often."""
    every = [f for forms in FORMS.values() for f in forms]
    used: collections.Counter[str] = collections.Counter()
    plan = []
    for i, attack in enumerate(ATTACKS):
        rng = np.random.default_rng([SEED, i])
        able = [f for f in every if all(applies(attack, f, a, bed) for a in range(sizes[0]))]
        taken: collections.Counter[str] = collections.Counter()
        for _ in range(each):
            form = min(able, key=lambda f: (taken[f], used[f], rng.random()))
            plan.append((i, form, used[form] % sizes[0], used[form] // sizes[0] % sizes[1]))
            taken[form] += 1
            used[form] += 1
    return plan


def applies(attack: Attack, form: str, architecture: int, bed: Bed) -> bool:
    """Whether an architecture has what the attack changes."""
    one = victim(form, architecture, 0, bed.folder, bed.cache)
    known, rng = training.structure(one.design), np.random.default_rng(0)
    if any(c(one.arrays, known, rng) is None for c in attack.changes):
        return False
    if any(s(one.arrays, known, rng) is None for s in attack.stores):
        return False
    if attack.damage is None or attack.name.startswith("train on"):
        return True
    return attack.damage(one.design, one.arrays, one, bed, rng) is not None


def examined(task: tuple[int, int, str, int, int, Path, Path]) -> dict[str, Any]:
    at, which, form, architecture, number, data, cache = task
    torch.set_num_threads(1)
    attack, one, bed = ATTACKS[which], victim(form, architecture, number, data, cache), Bed(data, cache)
    found = disguise(attack, one, bed, np.random.default_rng([SEED, 1, at]))
    if found is None:
        raise RuntimeError(f"{attack.name} has nothing to change in {form}")
    row = scores.judged(
        scores.model("victim", one.arrays, one.config), scores.model("suspect", found.stored, found.config)
    )
    rng = np.random.default_rng([SEED, 2, at])
    return {
        "attack": attack.name, "group": attack.group, "steps": list(found.steps), "form": form,
        "victim": [architecture, number], "parameters": int(sum(x.size for x in one.arrays.values())),
        "quality": round(one.quality, 3), "output_difference": float(f"{found.difference:.3g}"),
        "with_config": found.config is not None, **row, "cosine": round(whole_cosine(one.arrays, found.stored), 4),
        "matched": baselines.after_matching(one.arrays, found.plain, one.design, rng),
    }  # fmt: skip


def strangers(bed: Bed, sizes: tuple[int, int]) -> list[tuple[float, float]]:
    """Cosines of victims of one architecture that were trained apart, as they lie and aligned."""
    out = []
    for form, at in itertools.product((f for forms in FORMS.values() for f in forms), range(sizes[0])):
        members = [victim(form, at, i, bed.folder, bed.cache) for i in range(sizes[1])]
        for a, b in itertools.combinations([m.arrays for m in members], 2):
            rng = np.random.default_rng([SEED, 4, len(out)])
            out.append((whole_cosine(a, b), baselines.after_matching(a, b, members[0].design, rng)))
    return out


def exact(row: dict[str, Any]) -> bool:
    """Whether the outputs should be the same up to rounding."""
    lossy = any(x in (row["attack"], *row["steps"]) for x in LOSSY)
    return (row["group"] != "damaged" or row["attack"] == "trim vocabulary") and not lossy


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    related = sum(r["verdict"] == "related" for r in rows)
    independent = sum(r["verdict"] == "independent" for r in rows)
    kept = {r["attack"]: max(x["output_difference"] for x in rows if x["attack"] == r["attack"]) for r in rows}
    return {
        "pairs": len(rows),
        "related": scores.share(related, len(rows)),
        "independent": scores.share(independent, len(rows)),
        "goal": {"related": GOAL, "independent": 0, "met": related >= GOAL * len(rows) and independent == 0},
        "largest_output_difference_of_exact_ones": max(r["output_difference"] for r in rows if exact(r)),
        "largest_output_difference": kept,
        "by_group": scores.counted_by(rows, "group"),
        "by_attack": scores.counted_by(rows, "attack"),
        "by_architecture": scores.counted_by(rows, "form"),
    }


def main() -> None:
    parser = scores.arguments(__doc__, RESULT)
    args: argparse.Namespace = parser.parse_args()
    if not scores.ready(args):
        return
    torch.set_num_threads(1)
    bed, sizes = Bed(args.data, args.cache), QUICK if args.quick else (ARCHITECTURES, TRAININGS)
    plan = planned(bed, 1 if args.quick else PAIRS_EACH, sizes)
    tasks = [(at, *one, args.data, args.cache) for at, one in enumerate(plan)]
    rows = list(scores.mapped(examined, tasks, args.jobs, "pairs"))
    apart = strangers(bed, sizes)
    result = {
        **scores.about(args, {"networks and attacks": SEED}),
        "summary": summary(rows),
        "baselines": {
            "cosine": baselines.in_halves([r["cosine"] for r in rows], [x for x, _ in apart], SEED),
            "after weight matching": baselines.in_halves([r["matched"] for r in rows], [x for _, x in apart], SEED),
        },
        "pairs": rows,
    }
    s = result["summary"]
    scores.print_table("attack", s["by_attack"])
    scores.print_table("architecture", s["by_architecture"])
    print("\nrelated", s["related"], "independent", s["independent"], "goal met:", s["goal"]["met"])
    print("largest difference of the outputs, exact attacks:", s["largest_output_difference_of_exact_ones"])
    print("baselines", result["baselines"])
    scores.written(args, RESULT, result)


if __name__ == "__main__":
    main()
