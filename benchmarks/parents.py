"""Who is the parent, among fifty candidates, one query in five without it: what `trace` says, kind by kind of child.

Every query sees the parent (or not), some of the siblings, and strangers of the same architecture trained on the
same data, with children of theirs. A refusal where the parent is enrolled counts as an error; so does any relative
called the parent where it is not. Beside it stands the nearest candidate by weights, which never refuses. In the part
of sibling candidates eight fine-tunes of one root are enrolled, and the suspect was made from one of them.

python benchmarks/parents.py              writes benchmarks/results/parents.json
python benchmarks/parents.py --roots mlp=20 cnn=20    fewer roots; each takes about forty seconds of one core
"""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.ancestry.geometry import Geometry
from stemma.ancestry.trace import trace
from stemma.checkpoints.model import Model
from stemma.kinship.compare import compare_weights
from stemma.measures.intervals import at_boundary
from stemma.training import shipped_parent_model
from stemma.workspace.candidates import candidate_from_model
from stemma.workspace.role_assignment import RoleAssignment
from stemma.zoo import lineages
from stemma.zoo.recipe_builder import build_all
from testbeds.measured import stamp

ROOTS = {"mlp": 100, "cnn": 100, "vit": 12, "lm": 12}
"""Roots of each kind; a twelfth as many families in the part of sibling candidates."""

SEED = 7300
OPERATIONS = ("finetune", "lora", "prune", "int8", "int4", "longer", "few-shot", "imbalanced")
SIBLING_CANDIDATES = "sibling candidates"
ROUND = 10
"""Roots that are asked about before what is known is written."""

CHILDREN, CANDIDATES, SIBLINGS, ORPHANS = 2, 50, 3, 5
"""Children of each root by each operation, candidates of a query, siblings among them, and of how many queries one has
no parent enrolled."""


def models(kind: str, roots: int, children: int, operation: str) -> dict[str, Model]:
    plan = lineages.flat(kind, SEED, roots=roots, children=children, operation=operation)
    return dict(zip(plan, build_all(plan), strict=True))


def siblings_of(kind: str, families: int) -> dict[str, dict[str, Model]]:
    """Families of eight fine-tunes of one root and four children of each, by the root's name."""
    plans = [lineages.sibling_candidates(kind, SEED + i) for i in range(families)]
    made = build_all({n: r for plan in plans for n, r in plan.items()})
    by_name = {m.ref.name: m for m in made}
    return {next(iter(plan)): {n: by_name[n] for n in plan} for plan in plans}


def asked(kind: str, operation: str, roots: int, piece: range) -> list[dict[str, Any]]:
    """The queries of some roots, answered."""
    tuned = models(kind, roots, SIBLINGS + 1, "finetune")
    made = tuned if operation == "finetune" else models(kind, roots, CHILDREN, operation)
    out = []
    for r in piece:
        root = f"{kind}-flat-{SEED}/root-{r + 1}"
        own = [n for n in made if n.startswith(f"{root}-{operation}-")][:CHILDREN]
        for j, name in enumerate(own):
            rng = np.random.default_rng([SEED, r, j, len(operation)])
            turn = r + j + OPERATIONS.index(operation)
            orphan, alone = turn % ORPHANS == 0, turn % (2 * ORPHANS) == 0
            kin = [n for n in tuned if n.startswith(f"{root}-finetune-") and n != name][:SIBLINGS]
            enrolled = ([] if orphan else [root]) + ([] if alone else kin)
            others = [n for n in tuned if n != root and not n.startswith(f"{root}-")]
            enrolled += drawn(rng, others, CANDIDATES - len(enrolled))
            about = {"orphan": orphan, "alone": alone, "family": root}
            out.append(about | answered(made[name], {n: tuned[n] for n in enrolled}, root))
    return out


def asked_siblings(kind: str, families: int, roots: int, piece: range) -> list[dict[str, Any]]:
    """Children of candidates that are siblings; the root of all is enrolled in half of the queries."""
    whole, strangers = siblings_of(kind, families), models(kind, roots, SIBLINGS + 1, "finetune")
    out = []
    for f in piece:
        root, members = list(whole.items())[f]
        candidates = [n for n in members if n != root and "-" not in n.split("/")[-1]]
        for j, name in enumerate(n for n in members if n != root and n not in candidates):
            parent, orphan = name.rsplit("-", 1)[0], j % ORPHANS == 0
            rng = np.random.default_rng([SEED, f, j])
            enrolled = [n for n in candidates if not (orphan and n == parent)] + ([root] if j % 2 else [])
            enrolled += drawn(rng, list(strangers), CANDIDATES - len(enrolled))
            about = {"orphan": orphan, "alone": False, "family": root, "root enrolled": bool(j % 2)}
            row = about | answered(members[name], {n: (members | strangers)[n] for n in enrolled}, parent)
            out.append(
                row
                | {"false": row["false"] and not (orphan and row["said"] == root), "root named": row["said"] == root}
            )
    return out


def drawn(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    return [names[i] for i in rng.choice(len(names), min(len(names), count), replace=False)]


def answered(child: Model, enrolled: Mapping[str, Model], parent: str) -> dict[str, Any]:
    candidates = [candidate_from_model(m) for m in enrolled.values()]
    found = trace(
        child,
        candidates,
        lambda c: compare_weights(c.load(), child),
        assign_roles=RoleAssignment(child, shipped_parent_model),
    )
    named = [p for p in found.parents if p["direction"] == "parent"]
    said = named[0]["name"] if named else None
    geometry = Geometry.of([child, *enrolled.values()])
    distance = [geometry.squared_distance(0, i + 1) for i in range(len(enrolled))]
    nearest = list(enrolled)[int(np.argmin(distance))]
    return {
        "said": said, "verdict": found.verdict, "right": said == parent, "false": said is not None and said != parent,
        "related": found.verdict in ("related", "descends"), "nearest right": nearest == parent,
        "best is right": _best(found) == parent, "confidence": named[0]["confidence"] if named else None,
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
    low, high = at_boundary(tuple(np.quantile(means, [0.025, 0.975])), float(hits.mean()), len(families))
    return {"n": len(rows), "families": len(families), "rate": round(float(hits.mean()), 4),
            "interval": [round(float(low), 4), round(float(high), 4)]}  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    there, gone = [r for r in rows if not r["orphan"]], [r for r in rows if r["orphan"]]
    beside = [r for r in gone if not r["alone"]]
    out = {
        "children": len(rows), "parent named": share(there, "right"), "another named": share(there, "false"),
        "likeliest is the parent": share(there, "best is right"), "nearest by weights": share(there, "nearest right"),
        "orphans given a parent, siblings enrolled": share(beside, "false"),
        "orphans given a parent, no kin enrolled": share([r for r in gone if r["alone"]], "false"),
        "orphans whose siblings are enrolled, called related": share(beside, "related"),
        "calibration": reliability(there),
    }  # fmt: skip
    if any("root named" in r for r in rows):
        out["orphans given the root, where it is enrolled"] = share(
            [r for r in gone if r["root enrolled"]], "root named"
        )
    return out


def reliability(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How sure a named parent was, and how often it was the parent."""
    told = [r for r in rows if r["confidence"] is not None]
    if not told:
        return {"n": 0}
    return {"n": len(told), "mean confidence": round(float(np.mean([r["confidence"] for r in told])), 4),
            "right": round(float(np.mean([r["right"] for r in told])), 4)}  # fmt: skip


def operations_of(kind: str) -> tuple[str, ...]:
    """Texts have no classes to count examples of."""
    return tuple(o for o in OPERATIONS if kind != "lm" or o not in ("few-shot", "imbalanced"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--roots", nargs="+", metavar="KIND=N", help="roots of each kind, instead of the default")
    options.add_argument("--jobs", type=int, default=2)
    given = options.parse_args()
    counts = {k: int(n) for k, n in (r.split("=") for r in given.roots)} if given.roots else ROOTS
    families = {kind: max(1, n // 12) for kind, n in counts.items()}
    made = [(kind, o, n) for kind, n in counts.items() for o in operations_of(kind)]
    waves = [
        [(asked, kind, o, counts[kind], range(at, min(at + ROUND, counts[kind])))
         for kind, o, n in made if at < n]
        for at in range(0, max(counts.values()), ROUND)
    ]  # fmt: skip
    for f in range(max(families.values())):
        brothers = [(asked_siblings, k, n, counts[k], range(f, f + 1)) for k, n in families.items() if f < n]
        waves[f % len(waves)] += brothers
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {o: {} for o in (*OPERATIONS, SIBLING_CANDIDATES)}
    with ProcessPoolExecutor(given.jobs) as pool:
        building = [pool.submit(built, kind, n, o) for kind, o, n in sorted(made, key=lambda m: m[1] != "finetune")]
        building += [pool.submit(built, kind, n, None) for kind, n in families.items()]
        for one in building:
            one.result()
        waiting = [[(w[2], w[1], pool.submit(*w)) for w in wave] for wave in waves]
        for i, wave in enumerate(waiting):
            for what, kind, one in wave:
                what = what if isinstance(what, str) else SIBLING_CANDIDATES
                rows[what].setdefault(kind, []).extend(one.result())
            answered_of = {kind: min(n, (i + 1) * ROUND) for kind, n in counts.items()}
            write(rows, answered_of, families)


def built(kind: str, count: int, operation: str | None) -> None:
    """Put into the cache what workers read from it."""
    if operation is None:
        siblings_of(kind, count)
    else:
        models(kind, count, SIBLINGS + 1 if operation == "finetune" else CHILDREN, operation)


def write(
    rows: Mapping[str, Mapping[str, list[dict[str, Any]]]], counts: Mapping[str, int], families: Mapping[str, int]
) -> None:
    """What is known so far; after the last round, all of it."""
    main_kinds = ("mlp", "cnn")
    everything = [r for o in OPERATIONS for kind, part in rows[o].items() if kind in main_kinds for r in part]
    result = {
        "candidates": CANDIDATES, "roots": dict(counts), "seed": SEED,
        "families of sibling candidates": dict(families),
        "children": {o: {"all": table([r for kind, part in kinds.items() if kind in main_kinds for r in part]),
                         **{k: table(part) for k, part in kinds.items()}} for o, kinds in rows.items()},
        "all": table(everything),
        "named from": round(shipped_parent_model().parent_threshold(8), 4),
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "stemma": __version__},
    }  # fmt: skip
    text = json.dumps({**result, **stamp("parents")}, indent=1)
    (Path(__file__).parent / "results" / "parents.json").write_text(text + "\n")
    print(json.dumps({k: result[k] for k in ("roots", "all")}), flush=True)


if __name__ == "__main__":
    main()
