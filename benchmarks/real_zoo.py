"""The documented relations among 26 published checkpoints: found, and nothing else found.

Twice: as published, and after every tensor was renamed, every file name shuffled, every layout transposed and every
float cast to half precision. Needs the folder with the checkpoints and its truth.json:

    python benchmarks/real_zoo.py FOLDER      writes benchmarks/results/real_zoo.json
"""

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from stemma import __version__
from stemma.kinship.compare import compare
from stemma.networks.load import load
from stemma.registry import Registry
from stemma.workspace import Workspace
from testbeds.measured import write_result

SEED, ALPHA = 11, 0.01


def disguise(folder: Path, target: Path, seed: int) -> dict[str, str]:
    """Rewrite every checkpoint: names, file names, layouts, precision.

    Integer codes with a scale beside them are dequantised half of the time and kept otherwise, so that both occur.

    Returns:
        New name by old name.
    """
    generator = np.random.default_rng(seed)
    files = sorted(folder.glob("*/*.safetensors"))
    order = generator.permutation(len(files))
    names = {}
    for at, file in zip(order, files, strict=True):
        old = str(file.relative_to(folder).with_suffix(""))
        names[old] = f"m{at:03d}"
        save_file(rewritten(load_file(file), generator), target / f"m{at:03d}.safetensors")
    return names


def rewritten(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    keep_codes = bool(generator.integers(2))
    out = {}
    stems = sorted(n for n in arrays if not n.endswith(("::scale", "::zero_point")))
    for name, code in zip(stems, generator.permutation(len(stems)), strict=True):
        x, scale, zero = arrays[name], arrays.get(f"{name}::scale"), arrays.get(f"{name}::zero_point")
        new = f"t{code:04d}"
        if scale is not None and (not keep_codes or scale.size > 1):
            shape = [1] * x.ndim
            if scale.size > 1:
                shape[[i for i, s in enumerate(x.shape) if s == scale.size][-1 if x.shape[0] != scale.size else 0]] = -1
            x = (x.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
        elif scale is not None:
            out[f"{new}::scale"], out[f"{new}::zero_point"] = scale, zero
        x = np.ascontiguousarray(x.T) if x.ndim >= 2 else x
        with np.errstate(over="ignore"):
            out[new] = x.astype(np.float16) if x.dtype.kind == "f" else x
    return out


def study(folder: Path, truth: dict[str, Any], rename: dict[str, str]) -> dict[str, Any]:
    ids = sorted(rename)
    models = {i: load(folder / f"{rename[i]}.safetensors") for i in ids}
    start = time.perf_counter()
    pairs = {(a, b): compare(models[a], models[b], alpha=ALPHA) for a, b in itertools.combinations(ids, 2)}
    seconds = time.perf_counter() - start
    tested = sorted((c.weights.log10_p, k) for k, c in pairs.items() if c.weights.log10_p is not None)
    accepted = set()
    for rank, (log10_p, k) in enumerate(tested):
        if 10**log10_p * (len(tested) - rank) > ALPHA:
            break
        if pairs[k].verdict == "related":
            accepted.add(k)
    workspace = Workspace(Registry(":memory:"))
    return {
        "pairs": len(pairs),
        "pairs_tested": len(tested),
        "seconds_all_pairs": round(seconds, 1),
        "relations": [relation(r, pairs, accepted, models, ids, truth, workspace) for r in truth["relations"]],
        "not_related": [
            {"pair": [a, b], **decision(pairs[key(a, b)]), "given_an_edge": key(a, b) in accepted}
            for r in truth["not_related"]
            for a, b in itertools.combinations(r["models"], 2)
        ],
        "same_init": [
            {"pair": [a, b], **decision(pairs[key(a, b)]), "given_an_edge": key(a, b) in accepted}
            for r in truth["same_init"]
            for a, b in itertools.combinations(r["models"], 2)
        ],
        "other_edges": [list(k) for k in sorted(accepted) if not documented(k, truth)],
        "only_unrelated_enrolled": unrelated_only(folder, rename, truth, workspace),
    }


def key(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def decision(c: Any) -> dict[str, Any]:
    w = c.weights
    return {
        "verdict": c.verdict,
        "relation": c.relation.kind.value,
        "log10_p": None if w.log10_p is None else round(w.log10_p, 2),
        "effect": round(w.effect, 4),
        "statistic": w.statistic,
        "mode": w.details.get("mode"),
        "correspondence": w.details.get("correspondence"),
    }


def relation(
    r: dict, pairs: dict, accepted: set, models: dict, ids: list, truth: dict, workspace: Any
) -> dict[str, Any]:
    parent, child = r["parent"], r["child"]
    own = descendants(child, truth)
    effects = {
        i: pairs[key(i, child)].weights.effect for i in ids if i != child and i not in own and key(i, child) in accepted
    }
    best = max(effects.values(), default=0.0)
    found = workspace.trace(
        models[child], against=[Path(models[i].source) for i in ids if i != child and i not in own], alpha=ALPHA
    )
    named = [p["digest"] for p in found.parents if p["direction"] == "parent"]
    kin = {p["digest"] for p in (*found.parents, *found.relatives)}
    return {
        "parent": parent,
        "child": child,
        "kind": r["kind"],
        **decision(pairs[key(parent, child)]),
        "found": key(parent, child) in accepted and (pairs[key(parent, child)].weights.log10_p or 0) < -6,
        "parent_effect": round(effects.get(parent, 0.0), 4),
        "best_effect": round(best, 4),
        "parent_among_tied_best": effects.get(parent, -1.0) >= best - 0.005,
        "trace_verdict": found.verdict,
        "trace_lists_parent": models[parent].digest in kin,
        "trace_names_parent": models[parent].digest in named,
        "trace_names_another": bool(set(named) - {models[parent].digest}),
    }


def descendants(model: str, truth: dict) -> set[str]:
    out: set[str] = set()
    todo = [model]
    while todo:
        new = [r["child"] for r in truth["relations"] if r["parent"] == todo[-1] and r["child"] not in out]
        todo.pop()
        out.update(new)
        todo.extend(new)
    return out


def documented(k: tuple[str, str], truth: dict) -> bool:
    """Whether a path of documented relations (or a hidden ancestor) joins the two."""
    links = [{r["parent"], r["child"]} for r in truth["relations"]] + [
        set(h["children"]) for h in truth["hidden_ancestors"]
    ]
    group = {k[0]}
    while True:
        more = group.union(*[x for x in links if x & group])
        if more == group:
            return k[1] in group
        group = more


def unrelated_only(folder: Path, rename: dict[str, str], truth: dict, workspace: Any) -> list[dict[str, Any]]:
    out = []
    for child in sorted({r["child"] for r in truth["relations"]}):
        others = [i for i in rename if not documented(key(i, child), truth) and i != child]
        found = workspace.trace(
            load(folder / f"{rename[child]}.safetensors"),
            against=[folder / f"{rename[i]}.safetensors" for i in others],
            alpha=ALPHA,
        )
        out.append({"suspect": child, "enrolled": len(others), "verdict": found.verdict})
    return out


def summary(s: dict[str, Any]) -> dict[str, Any]:
    rel = s["relations"]
    return {
        "relations_found_below_1e-6": sum(r["found"] for r in rel),
        "relations": len(rel),
        "parent_among_tied_best": sum(r["parent_among_tied_best"] for r in rel),
        "listed_as_kin_by_trace": sum(r["trace_lists_parent"] for r in rel),
        "named_parent_by_trace": sum(r["trace_names_parent"] for r in rel),
        "another_named_by_trace": sum(r["trace_names_another"] for r in rel),
        "largest_log10_p_of_a_relation": max(r["log10_p"] for r in rel),
        "not_related_given_an_edge": sum(n["given_an_edge"] for n in s["not_related"]),
        "not_related": len(s["not_related"]),
        "same_init_given_an_edge": sum(n["given_an_edge"] for n in s["same_init"]),
        "other_edges": len(s["other_edges"]),
        "kin_named_among_unrelated": sum(
            u["verdict"] in ("copy", "descends", "related") for u in s["only_unrelated_enrolled"]
        ),
        "no_known_parent_among_unrelated": sum(u["verdict"] == "no-known-parent" for u in s["only_unrelated_enrolled"]),
        "suspects_among_unrelated": len(s["only_unrelated_enrolled"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real_zoo.json")
    args = parser.parse_args()
    truth = json.loads((args.folder / "truth.json").read_text())
    plain = {
        str(f.relative_to(args.folder).with_suffix("")): str(f.relative_to(args.folder).with_suffix(""))
        for f in sorted(args.folder.glob("*/*.safetensors"))
    }
    result: dict[str, Any] = {
        "version": __version__,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": SEED,
        "alpha": ALPHA,
    }
    result["as published"] = study(args.folder, truth, plain)
    with tempfile.TemporaryDirectory() as d:
        result["disguised"] = study(Path(d), truth, disguise(args.folder, Path(d), SEED))
    result["summary"] = {k: summary(result[k]) for k in ("as published", "disguised")}
    args.out.parent.mkdir(exist_ok=True)
    write_result(args.out, result)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
