"""Calibrates the geometry that tells fine-tuned models, siblings and trainings from one start apart.

Families here are used for nothing else: pairs of the zoo's cases, and of trees with several tunings and initialisers.
The networks are chosen and their temperature is set with whole families left out; the result is written beside the
code that uses it, and how well it does with each family left out into benchmarks/results.

python benchmarks/relation_geometry.py     writes src/stemma/kinship/relation/geometry.json
"""

import argparse
import datetime
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.checkpoints.model import Model
from stemma.kinship.relation.geometry import FEATURES, KINDS, features, nearest_calibration, probabilities
from stemma.kinship.relation.pair import Pair
from stemma.kinship.weights.correspondence import by_name
from stemma.types import RelationKind as R
from stemma.zoo.evaluation_pairs import models as all_models
from stemma.zoo.evaluation_pairs import relations
from stemma.zoo.lineages import tree
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all
from testbeds.measured import stamp, write_result

ROOT = Path(__file__).parents[1]
CASES = {"mlp": range(101, 111), "cnn": range(101, 107), "vit": range(101, 104), "lm": range(101, 104)}
TREES = {"mlp": (range(201, 206), (4, 4)), "cnn": (range(201, 203), (3, 3)), "vit": (range(201, 203), (3, 2)),
         "lm": (range(201, 203), (3, 2))}  # fmt: skip
STARTS = ("torch", "orthogonal", "xavier", "normal")
TRUTH = {R.FINETUNED: 0, R.SAME_RUN: 0, R.UNLEARNED: 0, R.RELATED: 0, R.SIBLINGS: 1, R.SAME_INIT: 2}
HIDDEN, PENALTY, NETWORKS, SEED = 12, 1.0, 5, 0
SHRINK, WITHIN = 0.2, 0.95
"""Share of independence in a covariance; share of left-out pairs that count as like the calibration."""
PAIRS = {R.FINETUNED: 14, R.RELATED: 6, R.SIBLINGS: 16, R.SAME_INIT: 5}
"""Pairs of each relation that a tree gives; `related` are models and what was trained on twice or more often."""

ASKED = {R.FINETUNED: 0.95, R.SIBLINGS: 0.9, R.SAME_INIT: 0.9}
"""Share of left-out pairs that must be right above the probability from which a relation is said."""
GRID, FEWEST = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95), 8
"""Probabilities to choose from, and left-out pairs that such a choice rests on at least."""

LATER = (
    ("finetuned-other-data", "finetuned-twice"), ("finetuned-task", "finetuned-twice-other-task"),
    ("finetuned-other-data", "cousin"), ("root", "finetuned-twice"), ("root", "finetuned-twice-other-task"),
    ("root", "cousin"), ("three-quarters", "finetuned-task"),
)  # fmt: skip
"""Models of the cases and their descendants whose training was not the first, or not the last."""


def measured(a: Model, b: Model) -> np.ndarray:
    return features(Pair.of(a, b, by_name(a, b)))


def from_cases(kind: str, seed: int) -> Iterator[tuple[str, R, np.ndarray]]:
    named = {n.rsplit("/", 1)[1]: r for n, r in all_models(kind, seed).items()}
    pairs = [(c.relation, c.a, c.b) for c in relations(kind, seed) if c.relation in TRUTH and c.relation != R.RELATED]
    pairs += [(R.RELATED, named[a], named[b]) for a, b in LATER]
    recipes = {r.digest: r for _, *two in pairs for r in two}
    models = dict(zip(recipes, build_all(list(recipes.values())), strict=True))
    for relation, a, b in pairs:
        yield f"{kind}-{seed}", relation, measured(models[a.digest], models[b.digest])


def from_tree(kind: str, seed: int, branching: Sequence[int]) -> Iterator[tuple[str, R, np.ndarray]]:
    recipes = tree(kind, seed, branching, init=STARTS[seed % len(STARTS)])
    paths = {n: n.rsplit("/", 1)[1] for n in recipes}
    root = next(iter(recipes))
    start = {**recipes[root].parameters, "start": recipes[root].seed}
    twins = {f"twin-{p}": Recipe(kind, "train", None, (), start, recipes[root].seed + 1 + i, p)
             for i, p in enumerate("ab")}  # fmt: skip
    models = dict(zip([*recipes, *twins], build_all([*recipes.values(), *twins.values()]), strict=True))

    def above(name: str) -> set[str]:
        parts = paths[name].split("-")
        return {"root", *("-".join(parts[:i]) for i in range(1, len(parts)))} if paths[name] != "root" else set()

    edges = [(parent, n) for n, r in recipes.items() for parent in recipes if recipes[parent] in r.parents]
    others = [n for n in recipes if n != root]
    further = [(a, n) for n in others for a in recipes if paths[a] in above(n) and (a, n) not in edges]
    apart = [(a, b) for a, b in itertools.combinations(others, 2)
             if paths[a] not in above(b) and paths[b] not in above(a)]  # fmt: skip
    started = [("twin-a", root), ("twin-b", root), ("twin-a", "twin-b"), ("twin-a", others[0]), ("twin-b", others[-1])]
    generator = np.random.default_rng(seed)
    for relation, pairs in ((R.FINETUNED, edges), (R.RELATED, further), (R.SIBLINGS, apart), (R.SAME_INIT, started)):
        for i in generator.permutation(len(pairs))[: PAIRS[relation]]:
            a, b = pairs[i] if generator.random() < 0.5 else pairs[i][::-1]
            yield f"{kind}-tree-{seed}", relation, measured(models[a], models[b])


def neighbourhood(z: np.ndarray) -> dict[str, Any]:
    """Mean and inverse covariance, shrunk towards independent features."""
    c = np.cov(z.T)
    c = (1 - SHRINK) * c + SHRINK * np.diag(np.diag(c)) + 1e-3 * np.eye(len(c))
    return {"mean": np.round(z.mean(0), 4).tolist(), "precision": np.round(np.linalg.inv(c), 3).tolist()}


def fitted(x: np.ndarray, y: np.ndarray, kind: np.ndarray) -> dict[str, Any]:
    """Standardise and fit a few small networks, every class of equal weight by repetition."""
    from sklearn.neural_network import MLPClassifier

    mean, scale = x.mean(0), np.maximum(x.std(0), 0.05)
    z = np.clip((x - mean) / scale, -4, 4)
    rows = [np.flatnonzero(y == c) for c in range(len(KINDS))]
    most = max(len(r) for r in rows)
    index = np.concatenate([np.resize(r, most) for r in rows])
    networks = []
    for i in range(NETWORKS):
        net = MLPClassifier((HIDDEN,), activation="tanh", alpha=PENALTY, solver="lbfgs", max_iter=400,
                            random_state=SEED + i).fit(z[index], y[index])  # fmt: skip
        parts = (net.coefs_[0], net.intercepts_[0], net.coefs_[1], net.intercepts_[1])
        names = ("hidden", "hidden_bias", "output", "output_bias")
        networks.append({n: np.round(p, 4).tolist() for n, p in zip(names, parts, strict=True)})
    near = [{"network": str(k), "kind": KINDS[c].value, **neighbourhood(((x - mean) / scale)[(kind == k) & (y == c)])}
            for k in np.unique(kind) for c in range(len(KINDS)) if ((kind == k) & (y == c)).sum() > 2]  # fmt: skip
    return {"features": list(FEATURES), "neighbourhoods": near, "kinds": [k.value for k in KINDS],
            "mean": np.round(mean, 5).tolist(),
            "scale": np.round(scale, 5).tolist(), "networks": networks, "temperature": 1.0}  # fmt: skip


def loss(p: np.ndarray, y: np.ndarray) -> float:
    weight = np.array([1 / max(1, (y == c).sum()) for c in range(len(KINDS))])[y]
    return float(-(weight * np.log(np.maximum(p[np.arange(len(y)), y], 1e-12))).sum() / weight.sum())


def left_out(
    x: np.ndarray, y: np.ndarray, family: np.ndarray, kind: np.ndarray, folds: int = 10
) -> tuple[np.ndarray, float, np.ndarray]:
    """Probabilities for every family from the others, the temperature that suits them best, and their unlikeness."""
    names = np.unique(family)
    fold = {n: i % folds for i, n in enumerate(np.random.default_rng(SEED).permutation(names))}
    at = np.array([fold[f] for f in family])
    models = [fitted(x[at != k], y[at != k], kind[at != k]) for k in range(folds)]

    def predicted(temperature: float) -> np.ndarray:
        return np.array([probabilities(row, {**models[k], "temperature": temperature})
                         for row, k in zip(x, at, strict=True)])  # fmt: skip

    best = min((0.7, 1.0, 1.5, 2.0, 3.0), key=lambda t: loss(predicted(t), y))
    return (
        predicted(best),
        best,
        np.array([nearest_calibration(row, models[k])[1] for row, k in zip(x, at, strict=True)]),
    )


def thresholds(p: np.ndarray, y: np.ndarray, kind: np.ndarray, near: np.ndarray) -> dict[str, dict[str, float]]:
    """The lowest probability above which enough left-out pairs are right; 2, which is never reached, where none is."""
    out: dict[str, dict[str, float]] = {}
    for k in np.unique(kind):
        for c, relation in enumerate(KINDS):
            told = {t: near & (kind == k) & (p.argmax(1) == c) & (p.max(1) >= t) for t in GRID}
            enough = [t for t, m in told.items() if m.sum() >= FEWEST and np.mean(y[m] == c) >= ASKED[relation]]
            out.setdefault(str(k), {})[relation.value] = min(enough, default=2.0)
    return out


def said_of(
    p: np.ndarray, y: np.ndarray, kind: np.ndarray, near: np.ndarray, sure: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What is told of left-out pairs under these thresholds: how many of each relation, how many rightly."""
    least = np.array([[sure[k][r.value] for r in KINDS] for k in kind])[np.arange(len(y)), p.argmax(1)]
    told, right = near & (p.max(1) >= least), p.argmax(1) == y
    out: dict[str, Any] = {"told": float(told.mean()), "right": float(right[told].mean())}
    out["descendants"], out["descendants_called_siblings"] = (
        int((y == 0).sum()),
        int((told & (y == 0) & (p.argmax(1) == 1)).sum()),
    )
    for k in np.unique(kind):
        m = kind == k
        found = {r.value: float((told & right)[m & (y == c)].mean()) for c, r in enumerate(KINDS)}
        rates = {"told": float(told[m].mean()), "right": float(right[told & m].mean())}
        out[str(k)] = {"pairs": int(m.sum()), **rates, "found": found}
    return out


def other_architectures(x: np.ndarray, y: np.ndarray, kind: np.ndarray, reach: float) -> dict[str, Any]:
    """What is said of a kind of network that was not calibrated on: how much is refused, how much would be right."""
    out = {}
    for k in np.unique(kind):
        model = fitted(x[kind != k], y[kind != k], kind[kind != k])
        p = np.array([probabilities(row, model) for row in x[kind == k]])
        refused = np.array([nearest_calibration(row, model)[1] > reach for row in x[kind == k]])
        out[str(k)] = {"pairs": len(p), "refused": float(refused.mean()),
                       "right_if_it_were_not": float(np.mean(p.argmax(1) == y[kind == k]))}  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src/stemma/kinship/relation/geometry.json")
    parser.add_argument("--report", type=Path, default=ROOT / "benchmarks/results/relation_geometry.json")
    args = parser.parse_args()
    found = [row for kind, seeds in CASES.items() for s in seeds for row in from_cases(kind, s)]
    found += [row for kind, (seeds, width) in TREES.items() for s in seeds for row in from_tree(kind, s, width)]
    family = np.array([f for f, _, _ in found])
    truth = np.array([TRUTH[r] for _, r, _ in found])
    x = np.array([v for _, _, v in found])
    kind = np.array([f.split("-")[0] for f in family])
    p, temperature, away = left_out(x, truth, family, kind)
    seen = np.array([len(set(family[kind == k])) > 1 for k in kind])  # a kind with one family has none left
    reach = float(np.quantile(away[seen], WITHIN))
    said = p.argmax(1)
    sure = thresholds(p, truth, kind, away <= reach)
    told = said_of(p, truth, kind, away <= reach, sure)
    p, said, truth, family, all_truth = p[seen], said[seen], truth[seen], family[seen], truth
    table = [[int(((truth == i) & (said == j)).sum()) for j in range(len(KINDS))] for i in range(len(KINDS))]
    made = {**stamp("relation_geometry"),
            "version": __version__, "date": datetime.date.today().isoformat(), "pairs": len(found),
            "families": sorted({f for f, _, _ in found})}  # fmt: skip
    args.out.write_text(
        json.dumps(
            {**fitted(x, all_truth, kind), "temperature": temperature, "reach": reach, "sure": sure, "made": made}
        )
        + "\n"
    )
    report = {
        **made, "kinds": [k.value for k in KINDS], "temperature": temperature,
        "accuracy_with_families_left_out": float(np.mean(said == truth)), "confusion": table,
        "recall": [row[i] / max(1, sum(row)) for i, row in enumerate(table)], "loss": loss(p, truth),
        "asked_probability": sure, "left_out": told, "reach": reach,
        "kinds_left_out": other_architectures(x, all_truth, kind, reach),
        "by_kind_of_network": {k: float(np.mean((said == truth)[np.char.startswith(family, k)]))
                               for k in sorted({f.split("-")[0] for f in family})},
    }  # fmt: skip
    write_result(args.report, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
