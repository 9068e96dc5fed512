"""What is said of every member of every zoo family against its root: verdict, p-value, and the relation's name.

python benchmarks/relations.py     writes benchmarks/results/relations.json
"""

import argparse
import collections
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stemma import __version__
from stemma.kinship.compare import compare
from stemma.zoo import family

KINDS, SEEDS = ("mlp", "cnn", "vit", "lm"), (2, 3)
UNRELATED_IN_WEIGHTS = ("unrelated", "distilled")
NAMED_LATER = ("finetuned", "lora", "unlearned", "merged", "same-run", "same-init", "siblings")
"""Relations that weights without a direction test do not name yet: `related` is the right, broader answer."""


def member(kind: str, root: Any, m: Any, truth: str) -> dict[str, Any]:
    found = compare(root.model, m.model)
    independent = truth in UNRELATED_IN_WEIGHTS
    said = found.relation.kind.value
    return {
        "member": m.name, "truth": truth, "verdict": found.verdict, "relation": said, "log10_p": found.weights.log10_p,
        "effect": round(found.weights.effect, 4),
        "verdict_right": (found.verdict != "related") if independent else found.verdict == "related",
        "name_right": said == truth or (truth in (*NAMED_LATER, "related") and said == "related")
        or (independent and said == "unrelated"),
        "name_wrong": said not in (truth, "related", "unrelated") and truth != "related",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "relations.json")
    args = parser.parse_args()
    rows = []
    for kind in KINDS:
        for seed in SEEDS:
            zoo = family(kind, seed)
            root = zoo[f"{kind}/root"]
            rows += [member(kind, root, m, zoo.relation(root.name, m.name)) for m in zoo.members if m is not root]
    confusion: dict[str, dict[str, int]] = {}
    for r in rows:
        confusion.setdefault(r["truth"], collections.Counter())[r["relation"]] += 1
    related = [r for r in rows if r["truth"] not in UNRELATED_IN_WEIGHTS]
    result = {
        "version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seeds": list(SEEDS), "pairs": len(rows), "verdict_right": sum(r["verdict_right"] for r in rows),
        "kin": len(related), "kin_found": sum(r["verdict_right"] for r in related),
        "not_kin_called_related": sum(not r["verdict_right"] for r in rows if r not in related),
        "name_right_or_broader": sum(not r["name_wrong"] for r in rows),
        "name_right": sum(r["name_right"] for r in rows),
        "confusion": confusion, "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
