"""200 exact clones in disguise: found, named, and the map exhibited; none of 1,000 independent pairs taken for one.

Each clone is a zoo network under a random composition of permutation, positive rescaling, rotation (language model),
head shuffle, number format, renaming, vocabulary growth, written in a random file format (sharded or not), read back,
and compared with its original. Independent pairs are counted by benchmarks/verdicts_independent.py.

    python benchmarks/disguise.py      writes benchmarks/results/disguise.json
"""

import argparse
import collections
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stemma import __version__
from stemma.kinship.compare import compare
from stemma.networks.load import load
from stemma.zoo import independents, write_disguised
from testbeds.measured import write_result

SEED, CLONES = 31, {"mlp": 50, "cnn": 50, "vit": 50, "lm": 50}
EXACT = ("copy", "reformatted", "permuted")


def clone(kind: str, i: int, original: Any, folder: Path) -> dict[str, Any]:
    path, steps = write_disguised(original, folder, SEED * 1000 + i)
    start = time.perf_counter()
    found = compare(original, load(path))
    w = found.weights
    reordered = next((e for e in found.evidence if e.statistic == "units-matched"), None)
    p = found.relation.parameters
    change = p.get("residual", p.get("relative_change"))
    return {
        "kind": kind,
        "file": path.suffix or "folder",
        "steps": [s.name for s in steps],
        "verdict": found.verdict,
        "relation": found.relation.kind.value,
        "statistic": w.statistic,
        "log10_p": w.log10_p,
        "effect": w.effect,
        "order_intact": w.statistic != "units-matched",
        "residual": reordered.details["residual"] if reordered is not None else change,
        "exact_map": reordered.details["exact"] if reordered is not None else None,
        "seconds": round(time.perf_counter() - start, 2),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    intact = [r for r in rows if r["order_intact"]]
    return {
        "clones": len(rows),
        "named_copy_reformatted_or_permuted": sum(r["relation"] in EXACT for r in rows),
        "found": sum(r["verdict"] == "related" for r in rows),
        "effect_within_.001_of_1": sum(abs(r["effect"] - 1) <= 0.001 for r in rows),
        "order_intact": len(intact),
        "order_intact_below_1e-6": sum(r["log10_p"] < -6 for r in intact),
        "order_lost": len(rows) - len(intact),
        "largest_log10_p_where_order_is_lost": max((r["log10_p"] for r in rows if not r["order_intact"]), default=None),
        "largest_residual": max(r["residual"] or 0.0 for r in rows),
        "relations": dict(collections.Counter(r["relation"] for r in rows)),
        "files": dict(collections.Counter(r["file"] for r in rows)),
        "steps": dict(collections.Counter(s for r in rows for s in r["steps"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "disguise.json")
    args = parser.parse_args()
    rows = []
    for kind, count in CLONES.items():
        originals = independents(kind, 5, seed=SEED)
        for i in range(count):
            with tempfile.TemporaryDirectory() as d:
                rows.append(clone(kind, i, originals[i % len(originals)], Path(d)))
            if rows[-1]["relation"] not in EXACT:
                print("MISSED", json.dumps(rows[-1]), flush=True)
        print(kind, json.dumps(summary([r for r in rows if r["kind"] == kind])), flush=True)
    result = {
        "version": __version__,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": SEED,
        "summary": summary(rows),
        "by_kind": {k: summary([r for r in rows if r["kind"] == k]) for k in CLONES},
        "clones": rows,
    }
    args.out.parent.mkdir(exist_ok=True)
    write_result(args.out, result)


if __name__ == "__main__":
    main()
