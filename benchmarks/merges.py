"""Merges taken apart: parents, weights, rule, and a parent that is missing; and what is no merge.

Families of 18 experts fine-tuned from one base on tasks of their own. Each family gives merges by every rule with 2 to
5 parents, which are taken apart straight after merging, after training on, and with one parent left out of the
candidates. Controls are children of one parent. No figure comes from a family on which something was chosen: the form
of the evidence was chosen on those of `CHOSEN_ON["selection"]`, its threshold on those of `CHOSEN_ON["calibration"]`.
They have the tasks in common with the families that are scored; bases, experts, merges and further training are others.

    python benchmarks/merges.py [--families 101 201]           updates benchmarks/results/merges.json
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.ancestry.merges.regression import Merge, MergeRegression
from stemma.ancestry.merges.task_vectors import Span
from stemma.checkpoints.model import Model
from stemma.kinship.weights.entries import entries
from stemma.measures.intervals import at_boundary
from stemma.types import RelationKind as R
from stemma.zoo.kinds import kind_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all
from testbeds.measured import stamp

FAMILIES = {"mlp": (101, 102, 103, 104, 105, 106), "cnn": (201, 202)}
CHOSEN_ON = {
    "selection": {"mlp": (*range(301, 306), *range(401, 411))},
    "calibration": {"mlp": (411, 412, 413, 414), "cnn": (501,)},
}
OPERATIONS = ("merge", "task-arithmetic", "ties", "dare", "slerp", "layerwise", "franken")
RULE = {"merge": "linear", "layerwise": "layer-wise"}
TASKS = (
    "digit", "inverted", "rotated", "rotated+rotated", "inverted+rotated", "rotated+rotated+rotated",
    *(f"shuffled:{i}" for i in range(1, 9)), "shuffled:9+rotated", "shuffled:10+inverted",
    "shuffled:11+rotated+rotated", "shuffled:12+inverted+rotated",
)  # fmt: skip
NEW = tuple(f"shuffled:{i}" for i in range(40, 60))
STEPS = {"mlp": 300, "cnn": 300}
CONTROLS = 10
METHOD = MergeRegression()


def tuned(parent: Recipe, task: str, seed: int, steps: int, rate: float = 1.0, part: str = "b") -> Recipe:
    how = {"task": task, "steps": steps, "rate": kind_of(parent.kind).tuning.rate * rate}
    return Recipe(parent.kind, "finetune", R.FINETUNED, (parent,), how, seed, part)


def family(kind: str, seed: int) -> tuple[Recipe, list[Recipe]]:
    rng = np.random.default_rng(seed)
    base = Recipe(kind, "train", seed=seed)
    rates = rng.choice([1.0, 1.5, 2.0], len(TASKS))
    return base, [tuned(base, t, seed * 100 + i, 200, rates[i], "ab"[i % 2]) for i, t in enumerate(TASKS)]


def merged(base: Recipe, experts: Sequence[Recipe], operation: str, count: int, seed: int) -> dict[str, Any]:
    """A merge with its truth: parents and, where a rule gives each parent one number for all layers, weights."""
    rng = np.random.default_rng(seed)
    layers = 4 if base.kind == "mlp" else 5
    count = 2 if operation == "slerp" else min(count, layers) if operation == "franken" else count
    chosen = sorted(rng.choice(len(experts), count, replace=False).tolist())
    parents, how, truth = tuple(experts[i] for i in chosen), {}, None
    match operation:
        case "merge":
            w = rng.dirichlet(np.full(count, 4.0)) * 0.6 + 0.4 / count
            how, truth = {"weights": w.tolist()}, w
        case "task-arithmetic":
            w = rng.uniform(0.15, 0.6, count)
            how, truth = {"scales": w.tolist()}, w
        case "ties":
            how = {"density": float(rng.choice([0.1, 0.2, 0.3, 0.5, 0.7])), "scale": float(rng.uniform(0.5, 1.2))}
            truth = np.full(count, how["scale"] / count)
        case "dare":
            w = rng.uniform(0.2, 0.7, count)
            how, truth = {"weights": w.tolist(), "drop": float(rng.choice([0.3, 0.5, 0.7, 0.9]))}, w
        case "slerp":
            how = {"t": float(rng.uniform(0.2, 0.8))}
            truth = np.array([1 - how["t"], how["t"]])
    if operation in ("task-arithmetic", "ties", "dare"):
        parents = (base, *parents)
    recipe = Recipe(base.kind, operation, R.MERGED, parents, how, seed)
    return {"recipe": recipe, "rule": RULE.get(operation, operation), "parents": chosen,
            "weights": None if truth is None else truth.tolist()}  # fmt: skip


def controls(base: Recipe, experts: Sequence[Recipe], seed: int) -> dict[str, list[Recipe]]:
    """Children of one parent: on a task of their own, on the task of another candidate, and the like."""
    steps, rng = STEPS[base.kind], np.random.default_rng([seed, 1])
    some = rng.permutation(len(experts))[:CONTROLS].tolist()
    after = {i: TASKS[(i + 1 + int(rng.integers(16))) % len(TASKS)] for i in some}
    short = [replace(experts[i], parameters={**experts[i].parameters, "steps": 120}) for i in some[:5]]
    return {
        "finetuned on a new task": [tuned(experts[i], NEW[i], seed * 7 + i, steps) for i in some],
        "finetuned on its own task": [tuned(experts[i], TASKS[i], seed * 7 + i, steps, part="a") for i in some],
        "finetuned on another candidate's task": [tuned(experts[i], after[i], seed * 7 + i, steps) for i in some],
        "sibling with a new task": [tuned(base, NEW[i], seed * 8 + i, 200) for i in some],
        "sibling with a candidate's task": [tuned(base, TASKS[i], seed * 8 + i, 200) for i in some],
        "shorter run of a candidate": short,
        "child of a shorter run": [tuned(s, NEW[-1 - i], seed * 6 + i, 200) for i, s in enumerate(short)],
        "8-bit copy": [Recipe(base.kind, "int8", R.QUANTIZED, (experts[i],)) for i in some[:5]],
        "pruned": [Recipe(base.kind, "prune-weights", R.PRUNED, (experts[i],), {"ratio": 0.4}) for i in some[:5]],
        "trained apart": [Recipe(base.kind, "train", seed=seed * 9 + i) for i in range(3)],
    }  # fmt: skip


def later(truth: dict[str, Any], number: int, seed: int) -> tuple[str, Recipe]:
    """The same merge trained on: a third each on a new task, on a parent's own, and on the base's task."""
    recipe = truth["recipe"]
    which, task = [
        ("new task", NEW[number % len(NEW)]), ("a parent's task", TASKS[truth["parents"][0]]),
        ("the base's task", "digit"),
    ][number % 3]  # fmt: skip
    return which, tuned(recipe, task, seed, STEPS[recipe.kind], part="ab"[number % 2])


class Read:
    """Entries of a family and its children, and the answers about them."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.base, self.read = models[0], entries(models, reference=0, per_tensor=1 << 16)
        weights = models[0].weights
        self.spans = [
            Span(t.name, t.start, t.stop, weights[t.name].shape[0] if t.stop - t.start == t.size else 1)
            for t in self.read.tensors
        ]

    def ask(
        self, child: int, candidates: Sequence[int], method: MergeRegression = METHOD, base: bool = True
    ) -> Merge | None:
        values = self.read.values
        return method.decompose(
            values[child], values[list(candidates)], values[0] if base else None, tensors=self.spans,
            names=[str(c) for c in candidates],
        )  # fmt: skip


def f1(found: set[int], truth: set[int]) -> float:
    return 2 * len(found & truth) / (len(found) + len(truth)) if found or truth else 1.0


def baselines(read: Read, child: int, candidates: Sequence[int], truth: set[int]) -> dict[str, float]:
    """The two nearest candidates, and every candidate to which non-negative least squares gives over a twentieth."""
    from scipy.optimize import nnls

    values = read.read.values.astype(np.float64)
    y, x = values[child] - values[0], values[list(candidates)] - values[0]
    nearest = np.argsort(np.square(x - y).sum(1))[:2]
    triangle = np.linalg.cholesky(x @ x.T)
    w = nnls(triangle.T, np.linalg.solve(triangle, x @ y))[0]
    return {
        "nearest_two": f1({candidates[i] for i in nearest}, truth),
        "least_squares": f1({candidates[i] for i in np.flatnonzero(w > 0.05)}, truth),
    }


def row(answer: Merge | None, truth: dict[str, Any], there: set[int]) -> dict[str, Any]:
    found = {int(p.name) for p in answer.parents} if answer else set()
    error = None
    if answer and truth["weights"] is not None:
        weights = dict(zip(truth["parents"], truth["weights"], strict=True))
        error = max(abs(p.coefficient - weights.get(int(p.name) - 1, 0.0)) for p in answer.parents)
    return {
        "rule": truth["rule"], "parents": len(truth["parents"]), "f1": round(f1(found, there), 4),
        "called": answer is not None,
        "error": None if error is None else round(error, 4), "named": bool(answer and answer.method == truth["rule"]),
        "certain": bool(answer and answer.certain), "missing": bool(answer and answer.missing_parent),
        "remainder": answer.remainder if answer else None,
        "residual": round(answer.residual, 4) if answer else None,
        "base_weight": round(answer.base_weight, 4) if answer else None,
    }  # fmt: skip


def measure(kind: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one family."""
    base, experts = family(kind, seed)
    truths = [
        merged(base, experts, operation, count, seed * 1000 + 10 * i + count)
        for i, operation in enumerate(OPERATIONS) for count in (2, 3, 4, 5)
    ]  # fmt: skip
    more = [
        merged(base, experts, operation, count, seed * 1000 + 100 + 10 * i + count)
        for i, operation in enumerate(OPERATIONS) for count in (3, 5)
    ]  # fmt: skip
    trained = [later(t, i, seed * 2000 + i) for i, t in enumerate(truths)]
    others = [(name, r) for name, recipes in controls(base, experts, seed).items() for r in recipes]
    made = (
        [t["recipe"] for t in truths] + [r for _, r in trained] + [r for _, r in others] + [t["recipe"] for t in more]
    )
    read, n = Read(build_all([base, *experts, *made])), len(experts)
    pool, first = list(range(1, n + 1)), 1 + n
    rows: list[dict[str, Any]] = []
    sure, listed = METHOD, replace(METHOD, assume=True)
    for i, truth in enumerate(truths):
        there, child, after = {p + 1 for p in truth["parents"]}, first + i, first + len(truths) + i
        rows.append(
            {"state": "straight", **row(read.ask(child, pool), truth, there), **baselines(read, child, pool, there)}
        )
        answer = read.ask(after, pool, sure)
        full = answer or read.ask(after, pool, listed)
        called = {
            "called": answer is not None,
            "f1_called": round(f1({int(p.name) for p in answer.parents}, there), 4) if answer else 0.0,
        }
        rows.append(
            {
                "state": "trained on",
                "on": trained[i][0],
                **row(full, truth, there),
                **called,
                **baselines(read, after, pool, there),
            }
        )
        gone = sorted(there)[i % len(there)]
        rest = [c for c in pool if c != gone]
        rows.append(
            {"state": "parent missing", "left": len(there) - 1, **row(read.ask(child, rest), truth, there - {gone})}
        )
        if seed == FAMILIES[kind][0]:
            rows.append(
                {"state": "base among candidates", **row(read.ask(child, [0, *pool], base=False), truth, there)}
            )
    for i, (name, _) in enumerate(others):
        answer = read.ask(first + 2 * len(truths) + i, pool)
        rows.append({"state": "control", "control": name, "called": answer is not None})
    for i, truth in enumerate(more):
        there, child = {p + 1 for p in truth["parents"]}, first + 2 * len(truths) + len(others) + i
        answer = read.ask(child, pool)
        rows.append({"state": "straight", **row(answer, truth, there), **baselines(read, child, pool, there)})
    return [{"kind": kind, "family": seed, **r} for r in rows]


def interval(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float], seed: int = 0) -> dict[str, Any]:
    """Mean and 95 % interval: families are drawn with replacement, then cases within each."""
    if not rows:
        return {"n": 0, "mean": 0.0, "low": 0.0, "high": 0.0}
    groups: dict[int, list[float]] = {}
    for r in rows:
        groups.setdefault(r["family"], []).append(float(value(r)))
    lists, rng, means = [np.array(g) for g in groups.values()], np.random.default_rng(seed), []
    for _ in range(1000):
        drawn = [lists[i] for i in rng.integers(len(lists), size=len(lists))]
        means.append(np.mean(np.concatenate([rng.choice(g, len(g)) for g in drawn])))
    mean = float(np.mean(np.concatenate(lists)))
    low, high = at_boundary(tuple(np.quantile(means, [0.025, 0.975])), mean, len(lists))
    return {"n": len(rows), "families": len(lists), "mean": round(mean, 4), "low": round(float(low), 4),
            "high": round(float(high), 4)}  # fmt: skip


def area(some: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    """How well one figure separates merges that lack a parent from merges that were trained on: .5 is not at all."""
    a, b = (np.array([r[what] for r in rows if r.get(what) is not None]) for rows in (some, others))
    if not len(a) or not len(b):
        return {"n": 0}
    above = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    return {"n": [len(a), len(b)], "area": round(float(above), 3)}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def of(state: str, **also: Any) -> list[dict[str, Any]]:
        return [r for r in rows if r["state"] == state and all(r.get(k) == v for k, v in also.items())]

    def error(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        known = [r for r in some if r["error"] is not None]
        worst = {"worst": max((r["error"] for r in known), default=None)}
        return {**interval(known, lambda r: r["error"]), **worst}

    def by_task(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"f1": interval(some, lambda r: r["f1"]), "called": interval(some, lambda r: r["called"])}

    straight, trained, missing = of("straight"), of("trained on"), of("parent missing")
    rules = sorted({r["rule"] for r in straight})
    names = sorted({r["control"] for r in of("control")})
    return {
        "straight": {
            "f1": interval(straight, lambda r: r["f1"]), "error": error(straight),
            "named": interval(straight, lambda r: r["named"]),
            "called_missing": interval(straight, lambda r: r["missing"]),
            "nearest_two": interval(straight, lambda r: r["nearest_two"]),
            "least_squares": interval(straight, lambda r: r["least_squares"]),
            "by_rule": {rule: {"f1": interval(s := of("straight", rule=rule), lambda r: r["f1"]), "error": error(s),
                               "named": interval(s, lambda r: r["named"])} for rule in rules},
        },
        "trained_on": {
            "f1": interval(trained, lambda r: r["f1"]), "called": interval(trained, lambda r: r["called"]),
            "f1_called": interval(trained, lambda r: r["f1_called"]), "error": error(trained),
            "nearest_two": interval(trained, lambda r: r["nearest_two"]),
            "least_squares": interval(trained, lambda r: r["least_squares"]),
            "by_rule": {rule: interval(of("trained on", rule=rule), lambda r: r["f1"]) for rule in rules},
            "called_by_rule": {rule: interval(of("trained on", rule=rule), lambda r: r["called"]) for rule in rules},
            "by_task": {on: by_task(of("trained on", on=on)) for on in sorted({r["on"] for r in trained})},
        },
        "missing": {
            "noticed": interval(missing, lambda r: r["missing"]),
            "noticed_two_left": interval([r for r in missing if r["left"] >= 2], lambda r: r["missing"]),
            "noticed_one_left": interval(of("parent missing", left=1), lambda r: r["missing"]),
            "f1_two_left": interval([r for r in missing if r["left"] >= 2], lambda r: r["f1"]),
            "by_rule": {rule: interval(of("parent missing", rule=rule), lambda r: r["missing"]) for rule in rules},
        },
        "told_apart": {
            what: area([r for r in missing if r["remainder"] == "either"], trained, what)
            for what in ("residual", "base_weight")
        },
        "base_among_candidates": {
            rule: interval(of("base among candidates", rule=rule), lambda r: r["f1"]) for rule in rules
        },
        "controls": {name: interval(of("control", control=name), lambda r: r["called"]) for name in names},
        "controls_all": interval(of("control"), lambda r: r["called"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", type=int, help="all of those that are scored unless given")
    parser.add_argument("--out", type=Path, help="where to write instead")
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / "merges.json"
    families = args.families or [seed for seeds in FAMILIES.values() for seed in seeds]
    rows, seconds = kept(out, families)
    for kind, seeds in [item for some in (FAMILIES, *CHOSEN_ON.values()) for item in some.items()]:
        for seed in (s for s in seeds if s in families):
            start = time.perf_counter()
            rows += measure(kind, seed)
            seconds[str(seed)] = round(time.perf_counter() - start)
            write(out, rows, seconds)


def kept(out: Path, families: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What was measured before on other families."""
    if not out.exists():
        return [], {}
    before = json.loads(out.read_text())
    rows = [{k: v for k, v in zip(before["columns"], r, strict=True) if v is not None} for r in before["rows"]]
    rows = [{"error": None, "remainder": None, **r} for r in rows if r["family"] not in families]
    return rows, {k: v for k, v in before["seconds"].items() if int(k) not in families}


def short(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else round(value, 3) if isinstance(value, float) else value


def write(out: Path, rows: Sequence[dict[str, Any]], seconds: dict[str, int]) -> None:
    columns = list(dict.fromkeys(k for r in rows for k in r))
    families: dict[str, list[int]] = {}
    for r in rows:
        if r["family"] not in families.setdefault(r["kind"], []):
            families[r["kind"]].append(r["family"])
    result = {
        **stamp("merges"),
        "version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": seconds, "method": {"name": METHOD.name, "version": METHOD.version, **METHOD.spec.params},
        "families": families, "chosen_on": CHOSEN_ON, "experts": len(TASKS), "steps_on": STEPS,
        "all": summary(rows), "kinds": {k: summary([r for r in rows if r["kind"] == k]) for k in families},
        "columns": columns,
    }  # fmt: skip
    plain = [[short(r.get(k)) for k in columns] for r in rows]
    body = ",\n".join(json.dumps(r, separators=(",", ":")) for r in plain)
    text = re.sub(
        r"\{\s*([^{}]*?)\s*\}", lambda m: "{" + re.sub(r"\s*\n\s*", " ", m[1]) + "}", json.dumps(result, indent=1)
    )
    out.write_text(text[: text.rindex("}")].rstrip() + ',\n "rows": [\n' + body + "\n ]\n}\n")


if __name__ == "__main__":
    main()
