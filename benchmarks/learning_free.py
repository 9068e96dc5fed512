"""Which candidate is the parent? Learning-free rankings on families with known history.

    python benchmarks/learning_free.py [--part NAME]... [--data DIR] [--method LABEL=MODULE:FUNCTION]...

writes benchmarks/results/learning_free.json, part by part: those that are not asked for stay as they were.
`selection` chooses the length of the step on families of its own; `mlp`, `cnn` and `vit` score every similarity and
form on independent candidates; `fashion` repeats that on Fashion-MNIST after MNIST and needs the data sets; `siblings`
takes candidates that are fine-tunes of one root, `close` those that kept its task; `generations` fills the
cross-generation table; `memory` compares with an explicit Jacobian. A method given by `--method`, a function from
candidates, children and probes to scores `[k, c]`, gets a row in `siblings`, `close` and `generations`;
`siblings_table` and `generations_table` take such functions too. The detector that the package ships is
`--method detector=testbeds.parent_scores:shipped_detector`.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from testbeds.measured import write_result
from testbeds.parent_scores import (
    LINEAR,
    SIMILARITIES,
    TAYLOR,
    Scorer,
    agreement,
    all_scores,
    default_form,
    hits,
    interval,
    relative_change,
    right,
    table,
)
from testbeds.parent_zoos import PROBES, SELECTION, SETTINGS, TEST, close_siblings, generations, independent, siblings
from testbeds.peak_memory import FORMS, measured

RESULTS = Path(__file__).parent / "results" / "learning_free.json"
NORMS, CORRELATIONS = ("l1", "l2", "lp", "lse"), ("cka", "dc")
PARTS = ("mlp", "cnn", "vit", "fashion mlp", "fashion cnn")
CHOSEN = ("standard", "heavy", "5 shots", "head kept", "labels exchanged")
STEPS, SMALL = (0.1, 0.25, 0.5, 1.0), (0.001, 0.01, 0.1, 1.0)


def told(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def selection() -> dict[str, Any]:
    """Top-1 by length of the step, on families that nothing else is measured on."""
    out: dict[str, Any] = {"roots": 10, "children_per_root": 4}
    totals: dict[str, dict[str, list[float]]] = {}
    for kind in ("mlp", "cnn"):
        for setting in CHOSEN:
            q = independent(kind, setting, SELECTION, 10, 4)
            found, _ = hits([q], [all_scores(q, STEPS, SMALL)])
            out[f"{kind} {setting}"] = {
                s: {f: round(float(v.mean()), 3) for f, v in r.items()} for s, r in found.items()
            }
            for s, forms in found.items():
                for form, v in forms.items():
                    totals.setdefault(s, {}).setdefault(form, []).append(float(v.mean()))
            told(f"selection {kind} {setting}")
    out["mean"] = {s: {f: round(float(np.mean(v)), 3) for f, v in forms.items()} for s, forms in totals.items()}
    out["worst"] = {s: {f: round(min(v), 3) for f, v in forms.items()} for s, forms in totals.items()}
    return out


def settings(kind: str, names: tuple[str, ...], source: str = "digits", roots: int = 20, children: int = 10) -> Any:
    """Every similarity and form on independent candidates, setting by setting."""
    out: dict[str, Any] = {"roots": roots, "children": roots * children, "chance": 1 / roots}
    for setting in names:
        q = independent(kind, setting, TEST, roots, children, source)
        scores = all_scores(q, LINEAR, TAYLOR)
        out[setting] = {
            "relative_change": relative_change(q), "largest_disagreement": agreement(q, scores),
            **table(*hits([q], [scores])),
        }  # fmt: skip
        told(f"{kind} {source} {setting}")
    return out


def siblings_table(kind: str, methods: Mapping[str, Scorer], *, close: bool = False) -> dict[str, Any]:
    """Top-1 where all candidates are fine-tunes of one root.

    Args:
        kind: `mlp` or `cnn`.
        methods: Further methods by label.
        close: Take candidates that went on with their root's task, in place of those with tasks of their own.

    Returns:
        Rows by label: of similarities by form, of methods one interval each.
    """
    asked = list((close_siblings if close else siblings)(kind, TEST))
    found, family = hits(asked, [all_scores(q, LINEAR, TAYLOR) for q in asked])
    out = {"families": len(asked), "children": len(family), "chance": 1 / len(asked[0].candidates)}
    out |= table(found, family)
    for label, method in methods.items():
        out[label] = interval(np.concatenate([right(_scores(method, q), q.truth) for q in asked]), family)
    told(f"{'close ' * close}siblings {kind}")
    return out


def generations_table(kind: str, methods: Mapping[str, Scorer]) -> dict[str, Any]:
    """The cross-generation table: earlier generations as candidates for later ones.

    Args:
        kind: `mlp` or `cnn`.
        methods: Further methods by label.

    Returns:
        `G1`, `G2`, `G3` for the candidates; in each the methods; in each `G2`, `G3`, `G4` for the children.
    """
    placed: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {}
    families: dict[tuple[str, str], list[np.ndarray]] = {}
    counts: dict[str, set[int]] = {}
    for above, below, q in generations(kind, TEST):
        scores = all_scores(q, LINEAR, (0.01, 1.0), ("l1", "cka"))
        rows = {f"{s} {label}": scores[s][form] for s in ("l1", "cka") for label, form in _shown(s).items()}
        rows |= {n: scores[n]["plain"] for n in ("direction", "combined", "weights", "step")}
        rows |= {label: _scores(method, q) for label, method in methods.items()}
        for label, found in rows.items():
            cells = placed.setdefault(f"G{above}", {}).setdefault(label, {})
            cells.setdefault(f"G{below}", []).append(right(found, q.truth))
        families.setdefault((f"G{above}", f"G{below}"), []).append(q.family)
        counts.setdefault(f"G{above}", set()).add(len(q.candidates))
    out: dict[str, Any] = {"candidates": {g: max(c) for g, c in counts.items()}}
    out["children"] = {b: sum(map(len, v)) for (a, b), v in families.items() if a == "G1"}
    for above, rows in placed.items():
        out[above] = {
            label: {b: interval(np.concatenate(v), np.concatenate(families[above, b])) for b, v in cells.items()}
            for label, cells in rows.items()
        }
    told(f"generations {kind}")
    return out


def _shown(name: str) -> dict[str, str]:
    return {"plain": "plain", "linear": default_form(name), "taylor 0.01": "taylor 0.01", "taylor 1": "taylor 1"}


def _scores(method: Scorer, q: Any) -> np.ndarray:
    found = np.asarray(method(q.candidates, q.children, q.probes))
    if found.shape != (len(q.candidates), len(q.children)):
        raise SystemExit(f"a method gives one score per candidate and child, but gave the shape {found.shape}")
    return found


def memory() -> dict[str, Any]:
    """Peak memory and time of one pair."""
    out: dict[str, Any] = {}
    for count in (16, 32, 64):
        rows = {form: measured(form, count) for form in FORMS}
        size = {k: rows["plain"].pop(k) for k in ("parameters", "features")}
        rows |= {form: {k: v for k, v in row.items() if k not in size} for form, row in rows.items()}
        peak = {form: max(row["megabytes"], 1.0) for form, row in rows.items()}
        more = {form: round(peak["explicit"] / peak[form], 1) for form in ("taylor", "linear", "linear-16")}
        entries = count * size["features"] * size["parameters"]
        bare = round(entries * 4 / 2**20, 1)
        least = {form: round(bare / peak[form], 1) for form in more}
        out[f"{count} probes"] = {
            **size, "jacobian_megabytes": bare, **rows, "explicit_over": more, "jacobian_over": least,
        }  # fmt: skip
        told(f"memory {count}")
    return out


def claims(results: Mapping[str, Any]) -> dict[str, Any]:
    """In how many cells a form is better or worse than plain, beyond its 95 % interval, and how norms compare."""
    cells = [
        (s, row)
        for part in PARTS
        for setting, found in results.get(part, {}).items()
        if setting in SETTINGS
        for s, row in found.items()
        if s in SIMILARITIES
    ]
    weights = [
        row["weights"]["plain"]["mean"]
        for part in PARTS
        for setting, row in results.get(part, {}).items()
        if setting in SETTINGS
    ]
    out: dict[str, Any] = {"cells": len(cells), "weights top-1": {"lowest": min(weights)}}
    for form in ("linear", "taylor 0.01"):
        for group, names in (("norms", NORMS), ("correlations", CORRELATIONS)):
            gaps = [row[f"{form} - plain"] for s, row in cells if s in names]
            out[f"{form} {group}"] = {
                "better": sum(g["low"] > 0 for g in gaps), "worse": sum(g["high"] < 0 for g in gaps),
                "cells": len(gaps), "lowest_mean_difference": min(g["mean"] for g in gaps),
            }  # fmt: skip
    for form in ("plain", "linear", "linear unbounded", "taylor 0.01", "taylor 0.1", "taylor 1"):
        for group, names in (("norms", NORMS), ("correlations", CORRELATIONS)):
            found = [row[form]["mean"] for s, row in cells if s in names and form in row]
            if not found:
                continue
            out[f"{form} {group} top-1"] = {"mean": round(float(np.mean(found)), 4), "lowest": min(found)}
    return out


def method_of(text: str) -> tuple[str, Scorer]:
    label, _, where = text.partition("=")
    module, _, name = where.partition(":")
    return label, getattr(importlib.import_module(module), name)


def parts(methods: Mapping[str, Scorer]) -> dict[str, Callable[[], Any]]:
    every, fewer = tuple(SETTINGS), ("standard", "10 shots", "imbalanced 50")
    return {
        "selection": selection,
        "mlp": lambda: settings("mlp", every),
        "cnn": lambda: settings("cnn", every),
        "vit": lambda: settings("vit", ("standard",), roots=10, children=20),
        "fashion mlp": lambda: settings("mlp", fewer, "fashion"),
        "fashion cnn": lambda: settings("cnn", ("standard",), "fashion"),
        "siblings mlp": lambda: siblings_table("mlp", methods),
        "siblings cnn": lambda: siblings_table("cnn", methods),
        "close siblings mlp": lambda: siblings_table("mlp", methods, close=True),
        "close siblings cnn": lambda: siblings_table("cnn", methods, close=True),
        "generations mlp": lambda: generations_table("mlp", methods),
        "generations cnn": lambda: generations_table("cnn", methods),
        "memory": memory,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", action="append", help="one part (first word of its name is enough); all by default")
    options.add_argument("--data", help="folder of data sets, else STEMMA_DATA; without it `fashion` is left out")
    options.add_argument("--method", action="append", default=[], type=method_of, metavar="LABEL=MODULE:FUNCTION")
    given = options.parse_args()
    if given.data:
        os.environ["STEMMA_DATA"] = given.data
    for name, run in parts(dict(given.method)).items():
        if given.part and not any(name == p or name.split()[0] == p for p in given.part):
            continue
        if name.startswith("fashion") and not os.environ.get("STEMMA_DATA"):
            told(f"{name} is left out: no data sets (--data)")
            continue
        found = run()
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results |= {"version": __version__, "probes": PROBES, name: found}
        results["claims"] = claims(results) if "mlp" in results else {}
        write_result(RESULTS, results)


if __name__ == "__main__":
    main()
