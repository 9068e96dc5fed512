"""Who is the parent, among fifty candidates, one query in five without it: what `trace` says, kind by kind of child.

Every query sees the parent (or not), some of the siblings, and strangers of the same architecture trained on the
same data, with children of theirs. A refusal where the parent is enrolled counts as an error; so does any relative
called the parent where it is not. Beside it stands the nearest candidate by weights, which never refuses.

python benchmarks/parents.py              writes benchmarks/results/parents.json
python benchmarks/parents.py --roots 100  more roots of each kind
"""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.kinship.compare import compare_weights
from stemma.kinship.weights.entries import entries
from stemma.lineage.geometry import Geometry
from stemma.lineage.trace import trace
from stemma.models.model import Model
from stemma.training import shipped_parenthood
from stemma.workspace.candidates import of_model
from stemma.workspace.standings import Standings
from stemma.zoo import lineages
from stemma.zoo.recipe import build_all

KINDS = ("mlp", "cnn")
SEED = 7100
OPERATIONS = ("finetune", "lora", "prune", "int8", "int4", "longer", "few-shot", "imbalanced")
CANDIDATES, SIBLINGS, ORPHANS = 50, 3, 5
"""Candidates of a query, siblings among them, and of how many queries one has no parent enrolled."""


def models(kind: str, roots: int, children: int, operation: str) -> dict[str, Model]:
    plan = lineages.flat(kind, SEED, roots=roots, children=children, operation=operation)
    return dict(zip(plan, build_all(plan), strict=True))


def asked(kind: str, operation: str, roots: int, children: int, piece: range) -> list[dict[str, Any]]:
    """The queries of some roots, answered."""
    tuned = models(kind, roots, SIBLINGS + 1, "finetune")
    made = tuned if operation == "finetune" else models(kind, roots, children, operation)
    out = []
    for r in piece:
        root = f"{kind}-flat-{SEED}/root-{r + 1}"
        own = [n for n in made if n.startswith(f"{root}-{operation}-")][:children]
        for j, name in enumerate(own):
            rng = np.random.default_rng([SEED, r, j, len(operation)])
            orphan = (r + j) % ORPHANS == 0
            alone = orphan and (r + j) % (2 * ORPHANS) == 0
            kin = [n for n in tuned if n.startswith(f"{root}-finetune-") and n != name][:SIBLINGS]
            enrolled = ([] if orphan else [root]) + ([] if alone else kin)
            others = [n for n in tuned if n != root and not n.startswith(f"{root}-")]
            drawn = rng.choice(len(others), min(len(others), CANDIDATES - len(enrolled)), replace=False)
            enrolled += [others[i] for i in drawn]
            out.append(answered(made[name], {n: tuned[n] for n in enrolled}, root, orphan, alone))
    return out


def answered(child: Model, enrolled: Mapping[str, Model], root: str, orphan: bool, alone: bool) -> dict[str, Any]:
    candidates = [of_model(m) for m in enrolled.values()]
    found = trace(
        child, candidates, lambda c: compare_weights(c.load(), child), standings=Standings(child, shipped_parenthood)
    )
    named = [p for p in found.parents if p["direction"] == "parent"]
    said = named[0]["name"] if named else None
    geometry = Geometry(entries([child, *enrolled.values()], reference=0))
    distance = [geometry.squared_distance(0, i + 1) for i in range(len(enrolled))]
    nearest = list(enrolled)[int(np.argmin(distance))]
    return {
        "orphan": orphan, "alone": alone, "family": root, "said": said, "verdict": found.verdict,
        "right": said == root, "false": said is not None and said != root, "nearest right": nearest == root,
        "best is right": _best(found) == root, "confidence": named[0]["confidence"] if named else None,
    }  # fmt: skip


def _best(found: Any) -> str | None:
    """The likeliest parent whether or not it was sure enough."""
    if found.parents:
        return found.parents[0]["name"]
    likely = [(1 - r["confidence"], r["name"]) for r in found.relatives if r["confidence"] and r["role"] == "relative"]
    return max(likely)[1] if likely else None


def share(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    if not rows:
        return {"n": 0}
    hits = np.array([bool(r[key]) for r in rows], float)
    families = sorted({r["family"] for r in rows})
    groups = [hits[[r["family"] == f for r in rows]] for f in families]
    rng = np.random.default_rng(0)
    means = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean()
             for _ in range(2000)]  # fmt: skip
    low, high = np.quantile(means, [0.025, 0.975])
    return {"n": len(rows), "families": len(families), "rate": round(float(hits.mean()), 4),
            "interval": [round(float(low), 4), round(float(high), 4)]}  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    there, gone = [r for r in rows if not r["orphan"]], [r for r in rows if r["orphan"]]
    return {
        "parent named": share(there, "right"), "another named": share(there, "false"),
        "likeliest is the parent": share(there, "best is right"), "nearest by weights": share(there, "nearest right"),
        "orphans given a parent, siblings enrolled": share([r for r in gone if not r["alone"]], "false"),
        "orphans given a parent, no kin enrolled": share([r for r in gone if r["alone"]], "false"),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--roots", type=int, default=20)
    options.add_argument("--children", type=int, default=2)
    options.add_argument("--jobs", type=int, default=2)
    given = options.parse_args()
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {o: {} for o in OPERATIONS}
    for kind in KINDS:
        for operation in ("finetune", *OPERATIONS[1:]):
            models(kind, given.roots, SIBLINGS + 1 if operation == "finetune" else given.children, operation)
    with ProcessPoolExecutor(given.jobs) as pool:
        work = partial(asked, roots=given.roots, children=given.children)
        waiting = {
            (o, k, at): pool.submit(work, k, o, piece=range(at, min(at + 10, given.roots)))
            for o in OPERATIONS for k in KINDS for at in range(0, given.roots, 10)
        }  # fmt: skip
        for (o, k, _), one in waiting.items():
            rows[o].setdefault(k, []).extend(one.result())
    everything = [r for kinds in rows.values() for part in kinds.values() for r in part]
    result = {
        "candidates": CANDIDATES, "roots of each kind": given.roots, "kinds": list(KINDS),
        "children": {o: {"all": table([r for part in kinds.values() for r in part]),
                         **{k: table(part) for k, part in kinds.items()}} for o, kinds in rows.items()},
        "all": table(everything),
        "threshold": round(shipped_parenthood().threshold, 4),
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "stemma": __version__},
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    (Path(__file__).parent / "results" / "parents.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
