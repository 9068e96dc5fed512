"""Which of two came first, by weights alone: accuracy and coverage, each recipe of training left out in turn.

The model of pairs is fitted on some families without the recipe in question and asked about pairs of other families
that were tuned by it. Pairs of which neither descends from the other are asked too: `unknown` is right for them. Beside
it stand the signs that others have proposed as clocks, each with the sign that suits the fitting families best.

python benchmarks/direction.py            writes benchmarks/results/direction.json
python benchmarks/direction.py --small    a run of some minutes, not written
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.lineage.direction import FORWARD, Direction
from stemma.lineage.geometry import ANTISYMMETRIC
from stemma.training import shipped_parenthood
from stemma.training.direction import Pair, fit_direction
from stemma.training.parentage import pairs_of
from stemma.training.pedigrees import RECIPES

FIT = {"mlp": range(3000, 3080), "cnn": range(3000, 3024)}
"""Families that the shipped model learnt from too."""

TEST = {"mlp": range(5000, 5044), "cnn": range(5000, 5024)}
"""Families that nothing else in the project looks at."""

CLOCKS = ("norm", "kurtosis", "entropy", "growth")
"""Baselines: squared norm, kurtosis, spectral entropy, and the norm's change over the change."""


def measured(families: dict[str, range], jobs: int) -> list[Pair]:
    pieces = [(k, s[i : i + 8]) for k, s in families.items() for i in range(0, len(s), 8)]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [pool.submit(pairs_of, kind, seeds, False, (None,), 0) for kind, seeds in pieces]
        return [pair for one in waiting for pair in one.result()]


def interval(right: np.ndarray, families: Sequence[Any], seed: int = 0) -> list[float]:
    """95 % interval of a mean, by bootstrap over families."""
    groups = [right[[f == g for f in families]] for g in sorted(set(families))]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(2000):
        drawn = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        means.append(float(drawn.mean()) if len(drawn) else 0.0)
    return [round(float(q), 4) for q in np.quantile(means, [0.025, 0.975])]


def summary(p: np.ndarray, asked: Sequence[Pair]) -> dict[str, Any]:
    """Accuracy forced, and of the surest 80 and 60 %."""
    right, sure = p[:, 0] > p[:, 1], p[:, :2].max(axis=1)
    order = np.argsort(-sure, kind="stable")
    families = [pair.family for pair in asked]
    out: dict[str, Any] = {"pairs": len(asked), "families": len(set(families))}
    for name, share in (("forced", 1.0), ("at 80% coverage", 0.8), ("at 60% coverage", 0.6)):
        chosen = order[: max(1, round(share * len(order)))]
        out[name] = round(float(right[chosen].mean()), 4)
        out[f"{name}, interval"] = interval(right[chosen].astype(float), [families[i] for i in chosen])
    return out


def clock(fit: Sequence[Pair], test: Sequence[Pair], name: str) -> dict[str, Any]:
    column = ANTISYMMETRIC.index(name)

    def values(pairs: Sequence[Pair]) -> np.ndarray:
        return np.array([pair.features.antisymmetric[column] for pair in pairs])

    sign = np.sign(np.median(values(fit))) or 1.0
    v = sign * values(test)
    return summary(np.stack([np.maximum(v, 0), np.maximum(-v, 0), np.zeros(len(v))], axis=1), test)


def at_threshold(model: Direction, descended: Sequence[Pair], apart: Sequence[Pair]) -> dict[str, Any]:
    p, q = (model.of_features([pair.features for pair in pairs]) for pairs in (descended, apart))
    decided = p[:, :2].max(axis=1) >= model.threshold
    right = p[decided, 0] > p[decided, 1]
    false = q[:, :2].max(axis=1) >= model.threshold
    families = [pair.family for pair in apart]
    return {
        "threshold": round(model.threshold, 4), "pairs": len(p), "decided": round(float(decided.mean()), 4),
        "accuracy of the decided": round(float(right.mean()), 4), "pairs without descent": len(q),
        "given a direction all the same": round(float(false.mean()), 4),
        "given a direction all the same, interval": interval(false.astype(float), families),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true")
    options.add_argument("--jobs", type=int, default=2)
    given = options.parse_args()
    size = 4 if given.small else 1
    fit, test = ({k: s[: len(s) // size] for k, s in part.items()} for part in (FIT, TEST))
    known, asked = measured(fit, given.jobs), measured(test, given.jobs)
    descended = [p for p in asked if p.label == FORWARD]
    apart = [p for p in asked if p.label != FORWARD]
    recipes, told, pairs = {}, [], []
    for recipe in RECIPES:
        without = [p for p in known if recipe not in p.recipes]
        these = [p for p in descended if p.recipes == (recipe,) and p.nearest]
        if not these:
            continue
        p = fit_direction(without).of_features([pair.features for pair in these])
        recipes[recipe] = summary(p, these)
        told.append(p)
        pairs += these
    shipped = shipped_parenthood().direction
    fitted_on = [p for p in known if p.label == FORWARD and p.nearest]
    result = {
        "what": "direction of pairs, no hint given, each recipe left out of the fit in turn",
        "families": {k: len(s) for k, s in test.items()},
        "overall": summary(np.concatenate(told), pairs),
        "recipes": recipes,
        "lowest at 60% coverage": min(r["at 60% coverage"] for r in recipes.values()),
        "by kind": {
            k: summary(np.concatenate(told)[[p.family[0] == k for p in pairs]], [p for p in pairs if p.family[0] == k])
            for k in test
        },
        "shipped": {k: at_threshold(shipped, [p for p in descended if p.family[0] == k],
                                    [p for p in apart if p.family[0] == k]) for k in test},
        "clocks": {name: clock(fitted_on, pairs, name) for name in CLOCKS},
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "stemma": __version__},
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if not given.small:
        (Path(__file__).parent / "results" / "direction.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
