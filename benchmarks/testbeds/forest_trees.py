"""Trees with known history, whole and with inner models removed, and how much of them a method recovers."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import kurtosis

from stemma.ancestry.trees.additive_tree import spanning_tree
from stemma.ancestry.trees.arborescence import minimum_arborescence
from stemma.ancestry.trees.distances import squared_distances
from stemma.checkpoints.model import Model
from stemma.kinship.weights.entries import entries
from stemma.measures.intervals import at_boundary
from stemma.types import Lineage
from stemma.workspace.forest import lineage
from stemma.zoo.lineages import FinetuningRecipe, tree
from stemma.zoo.recipe_builder import build_all

SELECTION = {"mlp": range(700, 724), "cnn": range(700, 706)}
TEST = {"mlp": range(820, 836), "cnn": range(800, 812)}
LIGHT = {"mlp": range(900, 908)}
REMOVED = 0.3
DRAWS = 2
BOOTSTRAPS = 2000

LIGHTLY = (FinetuningRecipe("hardly", steps=0.5), FinetuningRecipe("short", rate=0.5), FinetuningRecipe("once"))
"""Fine-tuning so short that children of one parent have moved in one direction only: away from what it had learnt."""

Edge = tuple[str, str]


@dataclass(frozen=True)
class Known:
    """A tree with known history.

    Attributes:
        name: Kind and seed.
        models: By name.
        parent: Of every model but the root.
    """

    name: str
    models: Mapping[str, Model]
    parent: Mapping[str, str]

    @property
    def inner(self) -> list[str]:
        return sorted(set(self.parent.values()))


def built(seeds: Mapping[str, Iterable[int]], **options: Any) -> list[Known]:
    out = []
    for kind, own in seeds.items():
        recipes = {s: tree(kind, s, **options) for s in own}
        flat = [(n, r) for t in recipes.values() for n, r in t.items()]
        made = dict(zip([n for n, _ in flat], build_all([r for _, r in flat]), strict=True))
        for s, t in recipes.items():
            names = {r.digest: n for n, r in t.items()}
            parent = {n: names[r.parents[0].digest] for n, r in t.items() if r.parents}
            out.append(Known(f"{kind}-{s}", {n: replace(made[n], name=n) for n in t}, parent))
    return out


def removed(known: Known, draw: int) -> set[str]:
    """30 % of the inner models: one or two of five, so that it is 30 % on average."""
    rng = np.random.default_rng([draw, sum(map(ord, known.name))])
    count = int(REMOVED * len(known.inner) + rng.random())
    return set(rng.choice(known.inner, count, replace=False).tolist())


def score(known: Known, gone: set[str], edges: Sequence[Edge]) -> dict[str, float]:
    """Directed edges right and wrong.

    A missing ancestor stands for a removed model if it has exactly its children; those may be missing in their turn.
    """
    below: dict[str, set[str]] = {}
    for p, c in edges:
        below.setdefault(p, set()).add(c)
    true: dict[str, set[str]] = {}
    for c, p in known.parent.items():
        true.setdefault(p, set()).add(c)
    stands = {n: n for n in known.models if n not in gone}
    for _ in gone:
        for lost in sorted(set(below) - set(known.models)):
            named = {stands.get(c) for c in below[lost]}
            match = [g for g in gone if true[g] == named and g not in stands.values()]
            if lost not in stands and match:
                stands[lost] = match[0]
    told = {(stands.get(p, f"?{p}"), stands.get(c, f"?{c}")) for p, c in edges}
    truth = {(p, c) for c, p in known.parent.items()}
    right = len(told & truth)
    undirected = {frozenset(e) for e in told} & {frozenset(e) for e in truth}
    return {
        "right": right, "told": len(told), "true": len(truth), "undirected": len(undirected),
        "missing_told": len(set(below) - set(known.models)),
        "missing_right": sum(n not in known.models for n in stands), "missing_true": len(gone),
        "root": float(not gone & {root(known)} and not any(c == root(known) for _, c in edges)),
    }  # fmt: skip


def root(known: Known) -> str:
    return next(n for n in known.models if n not in known.parent)


def f1(rows: Sequence[Mapping[str, float]], of: str = "right") -> float:
    return 2 * sum(r[of] for r in rows) / max(1, sum(r["told"] + r["true"] for r in rows))


def summary(rows: Sequence[Mapping[str, float]], trees: Sequence[str]) -> dict[str, Any]:
    """F1 over all edges, with an interval over trees."""
    names = sorted(set(trees))
    own = {n: [r for r, t in zip(rows, trees, strict=True) if t == n] for n in names}
    rng = np.random.default_rng(5)
    drawn = [f1([r for n in rng.choice(names, len(names)) for r in own[n]]) for _ in range(BOOTSTRAPS)]
    total = {k: int(sum(r[k] for r in rows)) for k in rows[0]}
    return {
        "trees": len(names), "drawings": len(rows), "f1": round(f1(rows), 4),
        "f1_interval": [
            round(q, 4) for q in at_boundary(tuple(np.quantile(drawn, [0.025, 0.975])), f1(rows), len(names))
        ],
        "f1_undirected": round(f1(rows, "undirected"), 4),
        "lowest_tree": round(min(f1(o) for o in own.values()), 3),
        "precision": round(total["right"] / max(1, total["told"]), 4),
        "recall": round(total["right"] / total["true"], 4), "counts": total,
    }  # fmt: skip


def forest_edges(found: Lineage, known: Sequence[Known]) -> dict[str, list[Edge]]:
    """Edges by tree; one between two trees counts against both."""
    whose = {m: k.name for k in known for m in k.models}
    missing = {m["name"]: m["children"] for m in found.missing_ancestors}

    def trees(node: str) -> set[str]:
        return {whose[node]} if node in whose else {t for c in missing[node] for t in trees(c)}

    out: dict[str, list[Edge]] = {k.name: [] for k in known}
    for e in found.edges:
        for t in trees(e.parent) | trees(e.child):
            out[t].append((e.parent, e.child))
    return out


def one_forest(known: Sequence[Known], gone: Mapping[str, set[str]]) -> tuple[dict[str, list[Edge]], Lineage]:
    """All trees drawn at once, their models in random order under random names."""
    models = [m for k in known for n, m in k.models.items() if n not in gone[k.name]]
    rng = np.random.default_rng(11)
    order = rng.permutation(len(models))
    hidden = {f"m{at:05d}": models[i].name for at, i in enumerate(order)}
    found = lineage([replace(models[i], name=f"m{at:05d}") for at, i in enumerate(order)], detailed=0)
    edges = [replace(e, parent=hidden.get(e.parent, e.parent), child=hidden.get(e.child, e.child)) for e in found.edges]
    lost = [{**m, "children": [hidden.get(c, c) for c in m["children"]]} for m in found.missing_ancestors]
    named = replace(found, edges=tuple(edges), missing_ancestors=tuple(lost))
    return forest_edges(named, known), named


def mother(models: Mapping[str, Model], sign: int = 1) -> list[Edge]:
    """MoTHer's rule: distances, kurtosis as a clock, a minimum arborescence.

    With `sign` 1 the clock runs as in its fine-tuning stage: a child's weights have the lower kurtosis; with -1 the
    other way round. The method has to be told which.
    """
    names = list(models)
    family = entries([models[n] for n in names])
    d = np.sqrt(squared_distances(family).squared)
    clock = np.array([np.mean([kurtosis(row[s.columns]) for s in family.tensors]) for row in family.values])
    cost = d + 0.3 * d.mean() * (sign * clock[:, None] < sign * clock[None])
    n = len(names)
    i, j = np.nonzero(~np.eye(n, dtype=bool))
    best = None
    for start in range(n):
        chosen = minimum_arborescence(n, i, j, cost[i, j], start)
        total = float(cost[i, j][chosen[chosen >= 0]].sum())
        if best is None or total < best[0]:
            best = total, [(names[i[e]], names[j[e]]) for e in chosen if e >= 0]
    return best[1] if best else []


def spanning(models: Mapping[str, Model]) -> list[Edge]:
    """A minimum spanning tree of distances, rooted at the model of the smallest norm."""
    names = list(models)
    d = squared_distances(entries([models[n] for n in names]))
    around: dict[int, list[int]] = {i: [] for i in range(len(names))}
    for a, b in spanning_tree(d.squared):
        around[a].append(b)
        around[b].append(a)
    todo = [int(np.argmin(np.diag(d.norms)))]
    seen, out = set(todo), []
    while todo:
        v = todo.pop()
        for w in around[v]:
            if w not in seen:
                seen.add(w)
                out.append((names[v], names[w]))
                todo.append(w)
    return out


BASELINES: Mapping[str, Callable[[Mapping[str, Model]], list[Edge]]] = {
    "mother": mother, "mother_reversed": partial(mother, sign=-1), "spanning_tree": spanning,
}  # fmt: skip


def scored(known: Sequence[Known], draws: Sequence[int | None]) -> dict[str, Any]:
    """Every method on the same trees; the baselines are told which models are of one tree."""
    rows: dict[str, list[dict[str, float]]] = {"stemma": [], **{b: [] for b in BASELINES}}
    trees, extra = [], []
    for draw in draws:
        gone = {k.name: set() if draw is None else removed(k, draw) for k in known}
        start, cpu = time.perf_counter(), time.process_time()
        found, whole = one_forest(known, gone)
        extra.append({
            "models": len(whole.models), "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "families": sum(len(f) > 1 for f in whole.families), "refused": len(whole.refused),
        })  # fmt: skip
        for k in known:
            trees.append(k.name)
            left = {n: m for n, m in k.models.items() if n not in gone[k.name]}
            rows["stemma"].append(score(k, gone[k.name], found[k.name]))
            for name, method in BASELINES.items():
                rows[name].append(score(k, gone[k.name], method(left)))
    by_kind = {}
    for kind in sorted({t.split("-")[0] for t in trees}):
        own = [i for i, t in enumerate(trees) if t.startswith(kind)]
        by_kind[kind] = summary([rows["stemma"][i] for i in own], [trees[i] for i in own])
    return {**{n: summary(r, trees) for n, r in rows.items()}, "by_kind": by_kind, "forests": extra}


def whole_and_cut() -> dict[str, Any]:
    known = built(TEST)
    return {"models_per_tree": 21, "whole": scored(known, [None]), "cut": scored(known, range(DRAWS))}


def selected() -> dict[str, Any]:
    known = built(SELECTION)
    return {"whole": scored(known, [None]), "cut": scored(known, range(DRAWS))}


def light() -> dict[str, Any]:
    known = built(LIGHT, tunings=LIGHTLY)
    return {"whole": scored(known, [None])}
