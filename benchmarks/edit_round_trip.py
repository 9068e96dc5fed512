"""Are edited models traced to their parent, and is what was done named, after they were saved anew with units permuted?

Networks of the zoo are pruned and made to forget in different ways, disguised by a permutation of their units, and
traced among strangers of the same task and the true parent. The truth is the receipt. Probes hold the forgotten class.

    python benchmarks/edit_round_trip.py [--edits N] [--out FILE]      writes benchmarks/results/edit_round_trip.json
"""

import argparse
import os
import platform
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import stemma
from stemma.architectures.unit_groups import permute, structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.edits.artefacts.result import Edited
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.errors import StemmaError
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import RelationKind
from stemma.zoo import data
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build
from testbeds.measured import write_result

PARENTS = tuple((kind, seed) for seed in range(900, 906) for kind in ("mlp", "cnn"))
EDITS: dict[str, Any] = {
    "prune a third": Pruning(keep_ratio=0.67), "prune half": Pruning(keep_ratio=0.5),
    "prune to half the operations": Pruning(budget="macs", keep_ratio=0.5),
    "prune, factors": Pruning(keep_ratio=0.7, compensation="scalar"),
    "prune, no refit": Pruning(keep_ratio=0.7, compensation="none"),
    "forget, zero": Unlearning(action="zero"), "forget, negate": Unlearning(action="negate"),
    "forget, refit": Unlearning(),
    "forget, published": Unlearning.official("zero"), "forget, samples alone": Unlearning(),
}  # fmt: skip


def edits(home: Path, most: int) -> Iterator[tuple[str, Model, Edited | str]]:
    """Every edit of every parent, in turn."""
    count = 0
    for kind, seed in PARENTS:
        model = build(Recipe(kind, "train", seed=seed))
        save(model, home / f"{kind}-{seed}")
        learnt = data.examples(kind, "b")
        lost = learnt.targets == seed % 10
        whole = Probes.of(learnt.inputs[:256])
        for name, method in EDITS.items():
            if count == most:
                return
            count += 1
            try:
                if isinstance(method, Pruning):
                    yield name, model, method(model, whole)
                else:
                    others = None if "published" in name or "alone" in name else Probes.of(learnt.inputs[~lost])
                    yield name, model, method(model, Probes.of(learnt.inputs[lost]), others)
            except StemmaError as error:
                yield name, model, str(error)


def disguised(edited: Edited, seed: int) -> Model:
    """All hidden units in another order, under no name."""
    child = edited.model
    known, rng = structure(child), np.random.default_rng(seed)
    orders = {g.name: rng.permutation(g.size) for g in known.groups if g.exchangeable}
    arrays = permute({n: t.array() for n, t in child.tensors.items()}, known, orders)
    return from_arrays(arrays, "suspect", child.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=len(PARENTS) * len(EDITS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "edit_round_trip.json")
    args = parser.parse_args()
    start, rows = time.perf_counter(), []
    asked = {
        k: Probes.of(data.examples(k, "test").inputs, labels=data.examples(k, "test").targets) for k in ("mlp", "cnn")
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, parent, edited in edits(home / "parents", args.edits):
            if isinstance(edited, str):
                rows.append({"edit": name, "made": False, "why": edited[:80]})
                continue
            at = home / "suspect" / f"{len(rows)}"
            save(disguised(edited, len(rows)), at)
            kind = "mlp" if "hidden" in (parent.config or {}) else "cnn"
            with_probes = stemma.trace(str(at), against=[home / "parents"], probes=asked[kind])
            without = stemma.trace(str(at), against=[home / "parents"])
            rows.append({"edit": name, "made": True, **judged(parent, edited, with_probes, ""),
                         **judged(parent, edited, without, " without probes")})  # fmt: skip
            print(f"{time.perf_counter() - start:6.0f} s  {len(rows)} {name}: {rows[-1]}", flush=True)
            write_result(args.out, rows, start)
    write_result(args.out, rows, start)


def judged(parent: Model, edited: Edited, found: Any, suffix: str) -> dict[str, Any]:
    """Whether the parent stands first and its relation has the name of what was done."""
    wanted = {"prune": RelationKind.PRUNED, "unlearn": RelationKind.UNLEARNED}[edited.plan.operation]
    accepted = {wanted} if not suffix or wanted is RelationKind.PRUNED else {wanted, RelationKind.PRUNED}
    first = found.parents[0] if found.parents else {"digest": None, "relation": None}
    near = next((c for c in found.candidates if c["digest"] == parent.digest), None)
    right = first["digest"] == parent.digest
    return {
        f"parent{suffix}": right,
        f"named{suffix}": right and first["relation"] in {str(k) for k in accepted},
        f"related{suffix}": near is not None and found.verdict in ("descends", "related", "copy"),
        f"relation{suffix}": str(first["relation"] or (near or {}).get("relation")),
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]], start: float) -> None:
    made = [r for r in rows if r["made"]]
    by_edit: dict[str, Counter[str]] = defaultdict(Counter)
    for r in made:
        by_edit[r["edit"]].update(
            {"made": 1, **{k: int(v) for k, v in r.items() if isinstance(v, bool) and k != "made"}}
        )
    keys = [k for k, v in (made[0] if made else {}).items() if isinstance(v, bool) and k != "made"]
    total = {k: sum(r[k] for r in made) for k in keys}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"edits": len(made), "not made": len(rows) - len(made), "counts": total,
               "by edit": {k: dict(v) for k, v in by_edit.items()}, "rows": rows,
               "parents": [f"{k}-{s}" for k, s in PARENTS], "seconds": round(time.perf_counter() - start),
               "machine": f"{os.cpu_count()} cores, {platform.python_version()}"}  # fmt: skip
    write_result(path, content)


if __name__ == "__main__":
    main()
