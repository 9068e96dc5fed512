"""How good is the lineage detector on families that it was not trained on?

Parts, each of which can be run alone:

- `closed`: the parent is among the candidates: independent parents and sibling candidates; perceptrons, CNNs, language
  models;
- `dense`: the same for segmentation and detection networks, kinds that the shipped detector never saw;
- `generations`: candidates of one generation and children of a later one, the published table;
- `open`: orphans of families that nobody enrolled, orphans whose siblings are enrolled, and children with a parent;
- `calibration`: do the probabilities mean what they say?
- `real`, with `--zoo DIR`: published checkpoints with documented history;
- `bed`: networks of kinds and code that no training saw: fresh heads, roots asked among their descendants, orphans with
  0 to 5 siblings (about five minutes; `--sources N` for fewer or more);
- `splits`: the published split (children apart, parents shared) against whole families apart, both presets.

The preset `paper` stands beside the shipped `v3`, trained on the same zoo; plain weight distance and cosine, and the
learning-free forms, stand beside both.

    python benchmarks/lineage_detector.py [PART...]      writes benchmarks/results/lineage_detector.json
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma.kinship.learned.detector import LineageDetector
from stemma.networks.load import load
from stemma.training import calibration, detector_zoo, shipped_detector
from stemma.training.detector import PAPER, PARTS, Training, draw_many, train
from stemma.training.detector_questions import Drawing, Pool, Question, pools
from stemma.training.relatives import Relative
from stemma.zoo.cache import folder
from stemma.zoo.lineages import Recipes, flat, tree
from testbeds import dense_networks, detector_bed
from testbeds.detector_settings import (
    Setting,
    by_detector,
    by_features,
    closed,
    generations,
    independent,
    made,
    rate,
    read,
    right,
    siblings,
    table,
    weight_cosine,
    weight_l2,
)
from testbeds.measured import write_result

SEED = 7
"""Of everything tested here: no zoo that a detector was trained on has it."""

PAPER_ZOO = (("mlp", 24, 1), ("cnn", 12, 1))
"""Families that the preset `paper` is trained on: kind, number, seed. They are among those of the shipped one."""

PAPER_TRAINING = replace(PAPER, steps=150, batch=8, check=50, questions=96, drawing=Drawing(most=16))


def paper() -> LineageDetector:
    """The published architecture, trained on the first families of the shipped detector's zoo; kept in the cache."""
    path = folder().parent / f"paper-detector-{PAPER_TRAINING.steps}.safetensors"
    if not path.exists():
        relatives = [r for kind, n, seed in PAPER_ZOO for r in detector_zoo.build_families([kind], n, seed)]
        found = pools(relatives, cap=1, per_layer=1, probes=detector_zoo.probes_for, matrix=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        train(found, LineageDetector(preset="paper", width=32), PAPER_TRAINING).save(path)
    return LineageDetector.load(path)


def methods(kind: str, *, features: bool = True, more: Sequence[str] = ()) -> dict[str, Any]:
    """The methods that are asked for, of those that can see this kind of network."""
    plain = {"weight distance": lambda: weight_l2, "weight cosine": lambda: weight_cosine}
    known: dict[str, Any] = {"detector v3": lambda: by_detector(shipped_detector()), **plain}
    if features:
        known |= {
            "detector paper": lambda: by_detector(paper()),
            **{
                f"{s} {f}": partial(by_features, f, s.split()[0].lower())
                for s in ("l1", *more)
                for f in ("plain", "linear")
            },
        }
    return {name: make() for name, make in known.items() if any(name.startswith(w) for w in WANTED)}


WANTED: list[str] = [""]
"""How the names of the methods begin that are measured."""


def merged(old: Any, new: Any) -> Any:
    """New figures over old ones, key by key, so that a run of some methods keeps what others found."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{k: merged(old.get(k), v) for k, v in new.items()}}
    return new


def closed_part() -> dict[str, Any]:
    out: dict[str, Any] = {"independent": {}, "siblings": {}}
    for kind, roots, children, families in (("mlp", 20, 10, 6), ("cnn", 20, 10, 6), ("lm", 3, 4, 0)):
        start = time.perf_counter()
        out["independent"][kind] = table(independent(kind, SEED, roots, children), methods(kind))
        if families:
            out["siblings"][kind] = table(siblings(kind, SEED, families), methods(kind))
        print(kind, round(time.perf_counter() - start), "s", flush=True)
    return out


def dense_part() -> dict[str, Any]:
    out: dict[str, Any] = {"independent": {}, "siblings": {}}
    for task in dense_networks.TASKS:
        relatives, quality = dense_networks.families(task, 8, SEED, children=3, below=1)
        pool = read(relatives)
        depth = [len(a) for a in pool.ancestors]
        at = [[i for i, d in enumerate(depth) if d == g] for g in range(3)]
        first = closed(pool, at[1], lambda _, at=at: at[0])
        second = closed(pool, at[2], lambda _, at=at: at[1])
        out["independent"][task] = {**table(first, methods(task, features=False)), "quality": quality}
        out["siblings"][task] = table(second, methods(task, features=False))
        print(task, quality, flush=True)
    return out


def generations_part() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, forests in (("mlp", 4), ("cnn", 2)):
        pool, rows = generations(kind, SEED, forests)
        tried = methods(kind, more=("CKA",))
        cells: dict[str, Any] = {}
        for g in range(3):
            for h in range(g + 1, 4):
                parts = [closed(pool, row[h], lambda _, row=row, g=g: row[g]) for row in rows]
                whole = Setting(pool, sum((p.questions for p in parts), ()), sum((p.family for p in parts), ()))
                cells[f"G{g + 1} to G{h + 1}"] = table(whole, tried)
        out[kind] = {"forests": forests, "trees": 5 * forests, "models": len(pool), "cells": cells}
    return out


def open_part() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, enrolled, left_out in (("mlp", 60, 100), ("cnn", 15, 15)):
        out[kind] = open_kind(kind, enrolled, left_out)
        print(kind, json.dumps(out[kind]), flush=True)
    return out


def open_kind(kind: str, enrolled: int, left_out: int) -> dict[str, Any]:
    """Families of a root and five children; of the enrolled ones the last child is kept as a query."""
    recipes: Recipes = {}
    for i in range(enrolled + left_out):
        recipes |= tree(kind, 10_000 * SEED + i, (5,), name=f"tree-{i}")
    pool = read(made(recipes, lambda n: n.split("/")[0]))
    number = [int(r.family.split("tree-")[1]) for r in pool.relatives]
    root = [not a for a in pool.ancestors]
    children = [i for i in range(len(pool)) if not root[i]]
    last = {n: max(c for c in children if number[c] == n) for n in set(number)}
    here = [i for i in range(len(pool)) if number[i] < enrolled and i not in last.values()]
    fewer = here[:: max(1, len(here) // 60)]
    queries = [last[n] for n in range(enrolled)]

    def beside(child: int, keep: Any) -> list[int]:
        strangers = [i for i in fewer if number[i] != number[child]][:40]
        return [i for i in here if number[i] == number[child] and keep(i)] + strangers

    return {
        "enrolled": len(fewer),
        "unrelated orphans": _asked(pool, [c for c in children if number[c] >= enrolled], lambda c: fewer),
        "orphans with siblings": _asked(pool, queries, lambda c: beside(c, lambda i: not root[i])),
        "with parent and siblings": _asked(pool, queries, lambda c: beside(c, lambda i: True)),
        "with parent alone": _asked(
            pool, [c for c in children if number[c] < enrolled], lambda c: beside(c, lambda i: root[i])
        ),
    }


def _asked(pool: Pool, children: list[int], candidates: Any) -> dict[str, Any]:
    """What the shipped detector answers: the right candidate, none, or a wrong one."""
    setting = closed(pool, children, candidates)
    found = by_detector(shipped_detector())(pool, setting.questions)
    said = [int(np.argmax(p)) for p in found]
    good = np.array([s == q.label for s, q in zip(said, setting.questions, strict=True)])
    named = np.array([s < len(q.others) and s != q.label for s, q in zip(said, setting.questions, strict=True)])
    sure = np.array([p[:-1].max() >= 0.99 for p in found]) & named
    return {
        "candidates": int(np.median([len(q.others) for q in setting.questions])),
        "right": rate(good, setting.family),
        "wrong parent named": rate(named, setting.family),
        "wrong parent named at .99": rate(sure, setting.family),
    }


def calibration_part() -> dict[str, Any]:
    out: dict[str, Any] = {}
    detector, drawing = shipped_detector(), Training().drawing
    everything: tuple[list[np.ndarray], list[int]] = ([], [])
    for kind, count in (("mlp", 20), ("cnn", 8)):
        pool = read_large(detector_zoo.build_families([kind], count, SEED))
        families, rng = sorted({r.family for r in pool.relatives}), np.random.default_rng([SEED, 3])
        drawn = [q for _ in range(80) for q in draw_many(pool, families, rng, drawing, 12)]
        found = [_probabilities(detector, pool, q) for q in drawn]
        labels = [q.label for q in drawn]
        out[kind] = _calibrated(found, labels)
        everything[0].extend(found)
        everything[1].extend(labels)
        plain = replace(detector, temperature=1.0, shift=0.0)
        before = [_probabilities(plain, pool, q) for q in drawn]
        out[kind]["before calibration"] = round(calibration.calibration_error(before, labels), 4)
    out["all"] = _calibrated(*everything)
    return out


def _probabilities(detector: LineageDetector, pool: Pool, question: Question) -> np.ndarray:
    return detector.probabilities(detector.logits([pool.arrays(question, detector.preset)]))[0]


def _calibrated(found: list[np.ndarray], labels: list[int]) -> dict[str, Any]:
    confidence = np.array([p.max() for p in found])
    good = np.array([int(np.argmax(p)) == i for p, i in zip(found, labels, strict=True)])
    drawn = [np.random.default_rng([1, i]).integers(len(found), size=len(found)) for i in range(200)]
    errors = [calibration.calibration_error([found[i] for i in rows], [labels[i] for i in rows]) for rows in drawn]
    edges = (0, 0.5, 0.8, 0.95, 0.99, 1.01)
    return {
        "questions": len(labels),
        "right": round(float(good.mean()), 4),
        "calibration error": round(calibration.calibration_error(found, labels), 4),
        "interval": [round(float(x), 4) for x in np.quantile(errors, [0.025, 0.975])],
        "cross entropy": round(calibration.cross_entropy(found, labels), 4),
        "bins": [
            {
                "from": low,
                "n": int(here.sum()),
                "confidence": round(float(confidence[here].mean()), 4) if here.any() else None,
                "right": round(float(good[here].mean()), 4) if here.any() else None,
            }
            for low, high in itertools.pairwise(edges)
            for here in [(confidence >= low) & (confidence < high)]
        ],
    }


def read_large(relatives: list[Relative]) -> Pool:
    """The largest pool of a zoo, without features."""
    return pools(relatives, cap=12, per_layer=4096)[0]


def splits_part() -> dict[str, Any]:
    """Children of shared parents against children of parents never seen, for detectors trained in the published way."""
    roots, children, kept = 10, 16, 10
    out: dict[str, Any] = {"roots": roots, "children": children, "trained on children": kept}
    for kind in ("mlp",):
        pool = read(made(flat(kind, 10 * SEED, roots, children), lambda n: n.split("-finetune-")[0]))
        unseen = independent(kind, 10 * SEED + 1, roots, children - kept - 2)
        number = [
            0 if not a else int(r.name.rsplit("-", 1)[1]) for a, r in zip(pool.ancestors, pool.relatives, strict=True)
        ]
        parts = {"train": range(1, kept + 1), "selection": (kept + 1,), "calibration": (kept + 2,)}
        by_part: dict[str, list[Pool]] = {p: [_only(pool, number, parts.get(p, ()))] for p in PARTS[:3]}
        parents = [i for i in range(len(pool)) if not pool.ancestors[i]]
        shared = closed(pool, [i for i in range(len(pool)) if number[i] > kept + 2], lambda _, p=parents: p)
        out[kind] = {"chance": 1 / roots, "weight distance": {}}
        for name, start, training in (
            ("paper", LineageDetector(preset="paper", width=32), replace(PAPER_TRAINING, steps=150)),
            ("v3", LineageDetector(), Training(steps=300, check=50, questions=200)),
        ):
            drawing = Drawing(most=roots, closed=True)
            trained = train(by_part, start, replace(training, drawing=drawing))
            out[kind][name] = _both(shared, unseen, by_detector(trained))
        out[kind]["weight distance"] = _both(shared, unseen, weight_l2)
        print(kind, json.dumps(out[kind]), flush=True)
    return out


def _only(pool: Pool, number: list[int], wanted: Any) -> Pool:
    rows = [replace(r, child=n in wanted, candidate=not n) for r, n in zip(pool.relatives, number, strict=True)]
    return replace(pool, relatives=tuple(rows))


def _both(shared: Setting, unseen: Setting, scores: Any) -> dict[str, Any]:
    return {
        "parents shared": rate(right(shared, scores), shared.family),
        "parents held out": rate(right(unseen, scores), unseen.family),
    }


def real_part(zoo: Path) -> dict[str, Any]:
    """Published checkpoints with documented history: each one asked about among all others."""
    truth = json.loads((zoo / "truth.json").read_text())
    parent = {r["child"]: r["parent"] for r in truth["relations"]}
    models = [load(p, str(p.relative_to(zoo).with_suffix(""))) for p in sorted(zoo.rglob("*.safetensors"))]
    rows, detector = [], shipped_detector()
    for model in models:
        answer = detector(model, [m for m in models if m is not model])
        said = None if answer.parent is None else answer.parent.name
        best = max(answer.probabilities)
        rows.append({"child": model.name, "parent": parent.get(model.name), "said": said, "none": round(answer.none, 4),
                     "most": round(best, 4)})  # fmt: skip
    known = [r for r in rows if r["parent"]]
    rest = [r for r in rows if not r["parent"]]
    return {
        "with a parent": len(known),
        "right": sum(r["said"] == r["parent"] for r in known),
        "refused": sum(r["said"] is None for r in known),
        "without a parent": len(rest),
        "accepted": sum(r["said"] is not None for r in rest),
        "answers": rows,
    }


SOURCES = [5]
"""Of each network in the part `bed`."""


def bed_part() -> dict[str, Any]:
    """Every question of the bed, by its group: what was named, refused, and wrong with confidence."""
    detector, rows = shipped_detector(), []
    for network in detector_bed.NETWORKS:
        sources = [detector_bed.source(network, i) for i in range(SOURCES[0])]
        for q in detector_bed.questions(sources):
            found = detector(q.child, q.candidates)
            rows.append(detector_bed.judged(network, q, found))
        print(network, flush=True)
    return detector_bed.summary(rows)


RUN: Mapping[str, Any] = {
    "bed": bed_part,
    "closed": closed_part,
    "dense": dense_part,
    "generations": generations_part,
    "open": open_part,
    "calibration": calibration_part,
    "splits": splits_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(RUN), choices=[*RUN, "real"], metavar="PART")
    parser.add_argument("--methods", nargs="+", default=[""], metavar="START", help="only methods whose names begin so")
    path = Path(__file__).parent / "results" / "lineage_detector.json"
    parser.add_argument("--zoo", type=Path, metavar="DIR", help="published checkpoints with a truth.json, for `real`")
    parser.add_argument("--sources", type=int, default=SOURCES[0], metavar="N", help="sources of each network in `bed`")
    given = parser.parse_args()
    SOURCES[:] = [given.sources]
    run = dict(RUN) if given.zoo is None else {**RUN, "real": lambda: real_part(given.zoo)}
    WANTED[:] = given.methods
    for part in given.parts:
        start = time.perf_counter()
        found = run[part]()
        known = json.loads(path.read_text()) if path.exists() else {}
        detector = shipped_detector()
        known["detector"] = {"digest": detector.weights_digest, "made": dict(detector.made), "tested on seed": SEED}
        known[part] = merged(known.get(part), found)
        write_result(path, known)
        print(part, round(time.perf_counter() - start), "s", flush=True)


if __name__ == "__main__":
    main()
