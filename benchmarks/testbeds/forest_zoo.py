"""The forest of published checkpoints with documented history, as they are and disguised."""

import json
import tempfile
from pathlib import Path
from typing import Any

from real_zoo import SEED, disguise, documented, key
from stemma.networks.load import load
from stemma.types import Lineage
from stemma.workspace.forest import lineage


def published(folder: Path) -> dict[str, Any]:
    truth = json.loads((folder / "truth.json").read_text())
    files = sorted(folder.glob("*/*.safetensors"))
    own = {str(f.relative_to(folder).with_suffix("")): f for f in files}
    out = {"as_published": judged(lineage([load(f, name=n) for n, f in own.items()]), truth, {n: n for n in own})}
    with tempfile.TemporaryDirectory() as home:
        names = disguise(folder, Path(home), SEED)
        models = [load(Path(home) / f"{new}.safetensors", name=new) for new in sorted(names.values())]
        out["disguised"] = judged(lineage(models), truth, {new: old for old, new in names.items()})
    return out


def judged(found: Lineage, truth: dict[str, Any], name: dict[str, str]) -> dict[str, Any]:
    edges = {(name.get(e.parent, e.parent), name.get(e.child, e.child)): e for e in found.edges}
    lost = {m["name"]: sorted(name.get(c, c) for c in m["children"]) for m in found.missing_ancestors}
    pairs = {e for e in edges if not set(e) & set(lost)}
    true = {(r["parent"], r["child"]) for r in truth["relations"]}
    same_init = [set(r["models"]) for r in truth["same_init"]]
    related = {e for e in pairs if documented(key(*e), truth)}
    out = {
        "models": len(found.models), "edges": len(edges), "documented": len(true),
        "directed": len(pairs & true), "reversed": sorted(e for e in pairs if e[::-1] in true),
        "not_documented_but_relatives": sorted(related - true - {t[::-1] for t in true}),
        "false": sorted(e for e in pairs - related if not any(set(e) <= s for s in same_init)),
        "same_init": sorted(e for e in pairs - related if any(set(e) <= s for s in same_init)),
        "not_found": sorted(true - pairs - {e[::-1] for e in pairs}),
        "missing_ancestors": lost,
        "refused": [sorted(name.get(m, m) for m in r["models"]) for r in found.refused],
    }  # fmt: skip
    listed = ("reversed", "not_documented_but_relatives", "false", "same_init", "not_found")
    return {**out, "counts": {k: len(out[k]) for k in listed}}
