"""What is said of pairs whose relation is known: kind by kind, with the zoo's equivalences and strictly.

Every case and its strength is fixed in `stemma.zoo.evaluation_pairs`; the families here were not used for
any choice. Probes
are given where function decides (unlearned, distilled). An abstention (`related`, `inconclusive`) is an error.

python benchmarks/relations.py     writes benchmarks/results/relations.json
"""

import argparse
import collections
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.kinship.compare import compare
from stemma.probes import Probes
from stemma.types import RelationKind as R
from stemma.zoo import data, independents
from stemma.zoo.collection import EQUIVALENCES
from stemma.zoo.evaluation_pairs import EvaluationPair, histories, relations
from stemma.zoo.recipe_builder import build_all
from testbeds.measured import write_result

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("mlp:301-310", "cnn:301-302", "vit:301-302", "lm:301-302")
NULLS_OF = ("mlp", "cnn")
"""Kinds for which enough independent models are trained to tell a distillate from a stranger; it is not asked of the
others."""
NETWORKS = {"mlp": "of perceptrons", "cnn": "of CNNs", "vit": "of vision transformers", "lm": "of language models"}
PROBED = (R.UNLEARNED, R.DISTILLED)
NULLS, NULL_SEED, PROBES, FEW, DRAWS, SEED = 99, 77, 397, 96, 1000, 20261125
KINDS = tuple(k for k in R if k is not R.RELATED)
"""`related` is a broader name, not a kind: cases whose truth it is (ancestors further away) are counted apart."""


def probes_of(kind: str) -> Probes:
    """Test digits with their labels; of text, windows of what was learnt, labelled by the tenth they are from."""
    if kind != "lm":
        found = data.examples(kind, "test")
        return Probes.of(found.inputs, labels=found.targets)
    found = data.examples("lm", "a")
    rows = np.sort(np.random.default_rng(SEED).choice(len(found.inputs), PROBES, replace=False))
    return Probes.of(found.inputs[rows], labels=rows * 10 // len(found.inputs))


def built(cases: Sequence[EvaluationPair]) -> dict[str, Any]:
    recipes = {r.digest: r for c in cases for r in (c.a, c.b)}
    return dict(zip(recipes, build_all(list(recipes.values())), strict=True))


def asked(
    kind: str, cases: Sequence[EvaluationPair], models: dict[str, Any], root: str, null: list[Any]
) -> list[dict[str, Any]]:
    out = []
    for c in cases:
        start = time.perf_counter()
        probed = c.relation in PROBED
        options: dict[str, Any] = {"probes": probes_of(kind), "null": ()} if probed else {}
        if c.relation is R.DISTILLED:
            options = {"probes": options["probes"].take(slice(0, FEW)), "null": null}
        found = compare(models[c.a.digest], models[c.b.digest], **options)
        out.append({
            "case": c.name.split("/")[1], "kind": kind, "root": root, "truth": c.relation.value,
            "said": found.relation.kind.value, "verdict": found.verdict, "steps": list(found.relation.steps),
            "expected": [s.value for s in c.steps], "seconds": time.perf_counter() - start,
        })  # fmt: skip
    return out


def of_root(kind: str, seed: int, keep: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is said of every case around one root."""
    kept = None if keep is None else keep / f"{kind}-{seed}.json"
    if kept is not None and kept.exists():
        found = json.loads(kept.read_text())
        return found["rows"], found["mixed"]
    asked_of = kind in NULLS_OF
    cases = [c for c in relations(kind, seed) if asked_of or c.relation is not R.DISTILLED]
    longer = histories(kind, seed)
    models = built([*cases, *longer])
    null = independents(kind, NULLS, seed=NULL_SEED) if asked_of else []
    rows, mixed = (asked(kind, some, models, f"{kind}-{seed}", null) for some in (cases, longer))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"rows": rows, "mixed": mixed}))
    return rows, mixed


def groups() -> list[set[str]]:
    return [{r.value for r in kinds} for kinds, _ in EQUIVALENCES]


def credited(truth: str, said: str, equal: Sequence[set[str]]) -> str:
    """What counts as said: the truth itself where the two cannot be told apart."""
    return truth if any({truth, said} <= g for g in equal) else said


def counts_of(rows: Sequence[dict[str, Any]], equal: Sequence[set[str]]) -> np.ndarray:
    """For every kind, cases rightly so called, and cases that only one of truth and name calls so, `[kinds, 2]`."""
    out = np.zeros((len(KINDS), 2))
    place = {k.value: i for i, k in enumerate(KINDS)}
    for r in rows:
        truth, said = r["truth"], credited(r["truth"], r["said"], equal)
        if truth == said:
            out[place[truth], 0] += 1
        else:
            out[place[truth], 1] += 1
            if said in place:
                out[place[said], 1] += 1
    return out


def f1_of(counts: np.ndarray, there: np.ndarray) -> np.ndarray:
    """F1 of every kind that has a case."""
    right, wrong = counts[there].T
    return 2 * right / np.maximum(1, 2 * right + wrong)


def summary(rows: Sequence[dict[str, Any]], equal: Sequence[set[str]]) -> dict[str, Any]:
    """Macro-F1 with an interval by resampling roots, every F1, the lowest."""
    roots = sorted({r["root"] for r in rows})
    by_root = np.stack([counts_of([r for r in rows if r["root"] == root], equal) for root in roots])
    truths = {r["truth"] for r in rows}
    there = np.array([k.value in truths for k in KINDS])
    f1 = dict(zip([k.value for k in KINDS if k.value in truths], f1_of(by_root.sum(0), there).tolist(), strict=True))
    generator = np.random.default_rng(SEED)
    drawn = [f1_of(by_root[generator.integers(len(roots), size=len(roots))].sum(0), there).mean() for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    lowest = min(f1, key=lambda k: f1[k])
    return {
        "macro_f1": float(np.mean(list(f1.values()))), "low": float(low), "high": float(high),
        "lowest": lowest, "lowest_f1": f1[lowest], "f1": f1,
        "accuracy": float(np.mean([credited(r["truth"], r["said"], equal) == r["truth"] for r in rows])),
    }  # fmt: skip


def in_words(rows: Sequence[dict[str, Any]]) -> str:
    counts = collections.Counter(root.split("-")[0] for root in sorted({r["root"] for r in rows}))
    return ", ".join(f"{n} {NETWORKS[kind]}" for kind, n in counts.items())


def confusion(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    out: dict[str, collections.Counter[str]] = {}
    for r in rows:
        out.setdefault(r["truth"], collections.Counter())[r["said"]] += 1
    return {truth: dict(said.most_common()) for truth, said in out.items()}


STEPS = {
    "weights pruned": "pruned", "units removed": "pruned", "layers removed": "pruned", "changed": "finetuned",
    "head replaced": "head-replaced", "part inherited": "part-inherited", "units permuted": "permuted",
    "units rescaled": "permuted", "siblings": "finetuned", "same-init": "finetuned",
}  # fmt: skip
"""Names of steps as the zoo calls them; a dense change inside a sequence is a training, whatever its geometry."""


def sequences(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many histories of two steps are told in full, in order; in which one step, and which not at all."""
    by_case: dict[str, dict[str, int]] = {}
    for r in rows:
        said = [STEPS.get(s.split(" and ")[0], s) for s in r["steps"]]
        said = [s for i, s in enumerate(said) if i == 0 or s != said[i - 1]]
        word = "in full" if said == r["expected"] else "in part" if set(said) & set(r["expected"]) else "not"
        by_case.setdefault(r["case"], collections.Counter())[word] += 1
    total: collections.Counter[str] = collections.Counter()
    for counts in by_case.values():
        total.update(counts)
    return {"cases": {k: dict(v) for k, v in by_case.items()}, "in_full": total["in full"], "in_part": total["in part"],
            "not": total["not"], "n": len(rows)}  # fmt: skip


def control(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What always saying the most frequent relation would score, and always `finetuned` for kin."""
    plain = [{**r, "said": "finetuned" if r["truth"] not in ("unrelated", "distilled") else "unrelated"} for r in rows]
    return {"macro_f1_always_finetuned": summary(plain, groups())["macro_f1"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=FAMILIES, help="KIND:FIRST-LAST")
    parser.add_argument("--out", type=Path, default=RESULTS / "relations.json")
    parser.add_argument("--keep", type=Path, help="A folder for what was said family by family, to go on from.")
    args = parser.parse_args()
    rows, mixed = [], []
    for family in args.families:
        kind, _, seeds = family.partition(":")
        first, _, last = seeds.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            named, longer = of_root(kind, seed, args.keep)
            rows += named
            mixed += longer
    named = [r for r in rows if r["truth"] != "related"]
    told_apart = [g for g in groups() if "siblings" not in g] + [{"merged", "finetuned"}, {"merged", "siblings"}]
    result = {
        "version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "families": list(args.families), "roots": len({r["root"] for r in rows}), "cases": len(named),
        "least_per_kind": min(collections.Counter(r["truth"] for r in named).values()),
        "cases_per_kind": dict(collections.Counter(r["truth"] for r in named)),
        "equivalences": summary(named, groups()),
        "siblings_told_apart": summary(named, told_apart),
        "strict": summary(named, []),
        "by_network": {k: summary([r for r in named if r["kind"] == k], groups()) for k in NETWORKS
                       if any(r["kind"] == k for r in named)},
        "control": control(named),
        "verdicts": {
            "kin": sum(r["truth"] not in ("unrelated", "distilled") for r in rows),
            "kin_found": sum(r["truth"] not in ("unrelated", "distilled") and r["verdict"] == "related" for r in rows),
            "unrelated": sum(r["truth"] == "unrelated" for r in rows),
            "unrelated_called_related": sum(r["truth"] == "unrelated" and r["verdict"] == "related" for r in rows),
        },
        "abstentions": sum(r["said"] == "related" for r in named),
        "confusion": confusion(named),
        "said": {truth: ", ".join(f"{n} {k}" for k, n in said.items()) for truth, said in confusion(named).items()},
        "families_in_words": in_words(rows),
        "ancestors_further_away": confusion([r for r in rows if r["truth"] == "related"]),
        "histories": sequences(mixed),
        "seconds_per_comparison": {
            "median": float(np.median([r["seconds"] for r in rows if r["truth"] not in ("unlearned", "distilled")])),
        },
        "wrong": [[r["root"], r["case"], r["truth"], r["said"]] for r in named
                  if credited(r["truth"], r["said"], groups()) != r["truth"]],
    }  # fmt: skip
    write_result(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "wrong"}, indent=1))


if __name__ == "__main__":
    main()
