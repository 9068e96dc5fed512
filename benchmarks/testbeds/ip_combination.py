"""The combination of measures, chosen on the calibration split: other victims, copies and negatives than are scored."""

import datetime
import json
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from stemma.kinship.function import combined
from testbeds.ip_models import GROUPS
from testbeds.ip_scores import NEED_CLASSES, OUTPUTS, Suspects
from testbeds.ip_tables import closer

FIELD = "field"
SHARES = (0.25, 0.5, 1.0)
"""None is so small that outputs could not convict a copy whose gradients were made useless."""
LEFT_OUT = ("prune-heavy",)
"""Copies that lost their function on the way: nothing is tuned for them."""

FILE = Path(combined.__file__).with_name("combination.json")


def choices() -> list[dict[str, float]]:
    """Weights to try: the field with one or two measures of outputs."""
    out = []
    for count in (1, 2):
        for names in combinations(OUTPUTS, count):
            for shares in product(SHARES, repeat=count):
                out.append({FIELD: 1.0, **dict(zip(names, shares, strict=True))})
    return out


def fitted(found: Suspects, victims: Sequence[int]) -> dict[str, Any]:
    """The choice whose worst group loses least against that group's best single measure, then the best on average.

    The even negatives of the calibration split are the null, the odd ones are what copies are told from.
    """
    tails = {(g, v): _tails(found, g, v) for g in GROUPS for v in victims if g not in LEFT_OUT}
    single = {g: max(np.mean([_area(t[0], t[1], {n: 1.0}) for (h, _), t in tails.items() if h == g])
                     for n in _applicable(g)) for g, _ in tails}  # fmt: skip
    tried = []
    for weights in choices():
        areas = {g: float(np.mean([_area(*t, weights) for (h, _), t in tails.items() if h == g])) for g in single}
        worst = min(areas[g] - single[g] for g in areas)
        tried.append((round(worst, 4), float(np.mean(list(areas.values()))), weights, areas))
    best = max(tried, key=lambda t: t[:2])
    return {"weights": best[2], "worst_loss": best[0], "mean_auc": best[1], "auc": best[3], "best_single": single,
            "tried": len(tried)}  # fmt: skip


def _applicable(group: str) -> list[str]:
    return [n for n in (FIELD, *OUTPUTS) if GROUPS[group] != "transfer" or n not in NEED_CLASSES]


def _tails(found: Suspects, group: str, victim: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Logarithms of tails of copies and of negatives, by measure."""
    rows = found.rows(split="calibration", group="negative", kind=GROUPS[group])
    null, apart = rows[::2], rows[1::2]
    own = found.rows(split="calibration", group=group, victim=victim)
    positives, negatives = {}, {}
    for name in _applicable(group):
        values = found.distances[name][:, victim]
        positives[name], negatives[name] = (combined.log_lower_tails(values[r], values[null]) for r in (own, apart))
    return positives, negatives


def _area(positives: dict[str, np.ndarray], negatives: dict[str, np.ndarray], weights: dict[str, float]) -> float:
    names = [n for n in weights if n in positives]
    total = [sum(weights[n] * side[n] for n in names) for side in (positives, negatives)]
    return float(closer(*(np.asarray(t) for t in total)).mean())


def write(found: dict[str, Any], tier: str) -> None:
    """Keep the choice beside the code that uses it, which has to name the same measures."""
    measures = [{"fingerprint": f.name, "measure": m.name} for f, m in combined.METHODS]
    names = [FIELD, *(n for n in found["weights"] if n != FIELD)]
    wanted = ["field-cosine", *(OUTPUTS[n].name for n in names[1:])]
    kept = {
        "made_by": "benchmarks/ip_protection.py --fit", "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": "Fashion-MNIST at 10 x 10 with noise, and MNIST for transfers", "tier": tier,
        "split": "calibration: 2 victims, none of them scored in benchmarks/results",
        "measures": [{**m, "weight": found["weights"][n]} for m, n in zip(measures, names, strict=True)],
        "shared_deviations": json.loads(FILE.read_text())["shared_deviations"],
        "calibration": {k: v for k, v in found.items() if k != "weights"},
    }  # fmt: skip
    if [m["measure"] for m in measures] != wanted:
        raise SystemExit(f"the chosen measures are {wanted}: list them in combined.METHODS, then fit again")
    FILE.write_text(json.dumps(kept, indent=1) + "\n")
