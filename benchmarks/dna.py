"""Model DNA: does a code of less than a kilobyte tell a source's children from those of a source like it?

The headline is the table of provenance by training data: children against other sources of the same data, where only
the seed differs, and of other data. Encoder and classifier learn from TRAIN, settings were chosen on a third of its
sources that was left out, and the figures are of TEST, whose networks nothing else looked at. Beside DNA stand the
untrained code, its parts, pooling over probes as the paper is understood, and other measures of function; weights are
the white-box ceiling.

python benchmarks/dna.py            writes benchmarks/results/dna.json (10 minutes when the networks are cached)
python benchmarks/dna.py --ship     and the encoders that ship with the package
python benchmarks/dna.py --build    only trains the networks and looks at them
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma import __version__
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import embedding_distance, mean_embedding
from stemma.kinship.function.dna_closeness import ProvenanceClassifier
from stemma.kinship.function.dna_population import Population
from stemma.kinship.function.model_dna import DnaIndex
from stemma.probes import Probes
from stemma.training import PRETRAINED, dna, shipped_dna
from stemma.training.dna import TEXT_HIDDEN
from stemma.training.dna_groups import FEATURE_STEP, Group, GroupRecipe, measure_group
from stemma.zoo import data
from stemma.zoo.recipe_builder import build_all
from testbeds import set_pooling
from testbeds.dna_scores import BASELINES, DISTORTIONS, examined
from testbeds.dna_tables import (
    DISTILLED,
    Looked,
    Pairs,
    by_dna,
    by_nearness,
    cell,
    difference,
    hard,
    pairs_of,
    together,
    verdicts,
)
from testbeds.measured import write_result

TRAIN = (
    GroupRecipe("mlp", 1001, 24), GroupRecipe("mlp", 1002, 24, "mnist8"), GroupRecipe("mlp", 1003, 24, "fashion8"),
    GroupRecipe("mlp", 1004, 24, "fashion8", "rotated"), GroupRecipe("cnn", 1011, 20),
    GroupRecipe("cnn", 1012, 20, "mnist8"), GroupRecipe("cnn", 1013, 20, "fashion8"), GroupRecipe("vit", 1021, 12),
    GroupRecipe("vit", 1022, 12, "fashion8"),
)  # fmt: skip
TRAIN_TEXT = (GroupRecipe("lm", 1031, 8), GroupRecipe("lm", 1032, 8, "shakespeare"))
TEST = (
    GroupRecipe("mlp", 3001, 14), GroupRecipe("mlp", 3002, 14, "mnist8"), GroupRecipe("mlp", 3003, 14, "fashion8"),
    GroupRecipe("cnn", 3011, 12), GroupRecipe("cnn", 3012, 12, "fashion8"), GroupRecipe("vit", 3021, 8),
)  # fmt: skip
TEST_TEXT = (
    GroupRecipe("lm", 3031, 6), GroupRecipe("lm", 3032, 8, "dubois"), GroupRecipe("lm", 3033, 6, "bronte"),
    GroupRecipe("lm", 3034, 6, "darwin"),
)  # fmt: skip
PIECE = 2
"""Sources whose networks one process builds at a time."""


def built(recipe: GroupRecipe, sources: Sequence[int]) -> None:
    build_all([m.recipe for m in recipe.members() if m.source % recipe.sources in sources])


def looked(recipe: GroupRecipe, test: bool) -> None:
    _ = examined(recipe) if test else measure_group(recipe)


def build(jobs: int) -> None:
    """Train all networks and look at them, so that everything after is read from the cache."""
    tests = (*TEST, *TEST_TEXT)
    known = (*TRAIN, *TRAIN_TEXT)
    slowest = {"lm": 0, "vit": 1, "cnn": 2, "mlp": 3}
    pieces = [
        (r, range(at, min(at + PIECE, r.sources)))
        for r in sorted((*tests, *known), key=lambda r: slowest[r.kind]) for at in range(0, r.sources, PIECE)
    ]  # fmt: skip
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [(r, pool.submit(built, r, part)) for r, part in pieces]
        left = Counter(r for r, _ in waiting)
        looking = []
        for r, one in waiting:
            one.result()
            left[r] -= 1
            if not left[r]:
                looking.append(pool.submit(looked, r, r in tests))
        for one in looking:
            one.result()


VARIANTS = {
    "InfoNCE too": {"similarity": "infonce"}, "InfoNCE, no classifier": {"similarity": "infonce", "classify": False},
    "pair margin too": {"similarity": "pair-margin"}, "triplet too": {"similarity": "triplet"},
    "hidden layer": {"hidden": TEXT_HIDDEN}, "linear": {"hidden": 0},
}  # fmt: skip
"""What is left out or exchanged, one at a time."""


CHOSEN: dict[str, dict[str, Any]] = {"images": {}, "text": {"hidden": TEXT_HIDDEN}}
"""What the encoders that ship differ in from the defaults: texts gain by a hidden layer, pictures do not."""


def by_sample(other: Looked, home: Looked, children: np.ndarray) -> np.ndarray:
    """The data-driven part alone: how near the training samples of the two models are."""
    codes = {name: _sample(home.recipe.kind, name) for name in {*home.targets, other.recipe.data}}
    sources = sum(m.way == "source" for m in other.members)
    row = [
        -embedding_distance(codes[other.recipe.data], codes[home.targets[c] if home.targets[c] else None])
        for c in children
    ]
    return np.tile(np.array(row), (sources, 1))


def _sample(kind: str, name: str | None) -> np.ndarray:
    return mean_embedding(Probes.of(data.examples(kind, "a", data=name).inputs[:300]))


def by_set_pooling(model: set_pooling.SetPooling) -> Callable[..., np.ndarray]:
    def score(other: Looked, home: Looked, children: np.ndarray) -> np.ndarray:
        rows = other.group().rows("source")
        return set_pooling.scored(model, other.group().features[rows], home.group().features[children])

    return score


def confound(pairs: Pairs) -> dict[str, Any]:
    """The headline: provenance by training data."""
    near, far = pairs.same_data & pairs.backbone, ~pairs.same_data & pairs.backbone
    negatives = {"not provenance, same data": near & ~pairs.own, "not provenance, other data": far}
    positives = {"provenance, data kept": pairs.own & pairs.kept_data,
                 "provenance, other data since": pairs.own & ~pairs.kept_data}  # fmt: skip
    return {p: {n: cell(pairs, yes, no) for n, no in negatives.items()} for p, yes in positives.items()}


def scenarios(pairs: Pairs) -> dict[str, Any]:
    """Same backbones, and sources of all backbones as candidates."""
    return {
        "S1 one backbone, all data": cell(pairs, pairs.own, ~pairs.own & pairs.backbone),
        "S2 mixed backbones": cell(pairs, pairs.own, ~pairs.own),
        "S2 distilled to another architecture": cell(
            pairs, pairs.own & (pairs.way == DISTILLED[1]), ~pairs.own & (pairs.way == DISTILLED[1])
        ),
    }


def calibration(encoder: FragmentEncoder, pairs: Pairs) -> dict[str, Any]:
    """Stated and observed share of own sources, hard pairs weighted to as many kin as strangers."""
    judge = ProvenanceClassifier(encoder.classifier)
    near = pairs.where(pairs.same_data & pairs.backbone)
    p = np.array([judge.probability(float(v)) for v in near.value], float)
    weight = np.where(near.own, 0.5 / near.own.sum(), 0.5 / (~near.own).sum())
    bins = np.minimum((p * 10).astype(int), 9)
    gaps = [abs((weight[b] * (p[b] - near.own[b])).sum()) for b in (bins == i for i in range(10)) if b.any()]
    return {"expected calibration error": round(float(np.sum(gaps)), 4), "pairs": len(p)}


def fewer(encoder: FragmentEncoder, groups: Sequence[Looked], beside: Sequence[Group], rows: int) -> dict[str, Any]:
    chosen = np.sort(np.random.default_rng(rows).choice(384, rows, replace=False))
    less = [replace(g, found={**g.found, "soft answers": g.found["soft answers"][:, chosen]}) for g in groups]
    few = [replace(g, kept=g.kept[:, chosen]) for g in beside]
    return hard(pairs_of(less, by_dna(encoder, few)))["all"]


def searched(encoder: FragmentEncoder, groups: Sequence[Looked], count: int = 10_000) -> dict[str, Any]:
    """Ten thousand codes, the test sources among drawn ones that are distributed alike: time, and what is found."""
    rows = [(g, i) for g in groups if g.recipe.kind == "mlp" for i in g.group().rows("source")]
    codes = np.stack([encoder(g.found["soft answers"][i].astype(np.float32) * FEATURE_STEP) for g, i in rows])
    rng = np.random.default_rng(0)
    fill = []
    while len(fill) < count - len(codes):  # a third of each of three models, probe by probe
        three = codes[rng.integers(len(codes), size=3)]
        fill.append(np.take_along_axis(three, rng.integers(3, size=(1, codes.shape[1], 1)), 0)[0])
    everything = np.concatenate([codes, np.stack(fill)])
    start = time.perf_counter()
    shares = ProvenanceClassifier(encoder.classifier).channel_weights(codes.shape[2])
    index = DnaIndex.of(everything, Population.of(codes), shares)
    built = time.perf_counter() - start
    times, hits = [], []
    for g in groups:
        if g.recipe.kind != "mlp":
            continue
        for child in [i for i, m in enumerate(g.members) if m.way == "new head"]:
            code = encoder(g.found["soft answers"][child].astype(np.float32) * FEATURE_STEP)
            begin = time.perf_counter()
            near = index.nearest(code, 200)
            times.append(time.perf_counter() - begin)
            own = next(k for k, (h, i) in enumerate(rows) if h is g and g.members[i].source == g.members[child].source)
            hits.append(own in near)
    return {"codes": count, "median ms": round(1000 * float(np.median(times)), 3), "seconds to build": round(built, 2),
            "own source among the nearest 200": round(float(np.mean(hits)), 4), "queries": len(times)}  # fmt: skip


def told(name: str, train: Sequence[GroupRecipe], test: Sequence[GroupRecipe], ship: bool) -> dict[str, Any]:
    """All tables of pictures, or of texts."""
    learning = [measure_group(r) for r in train]
    groups = [Looked(r, r.members(), examined(r)) for r in test]
    made = {"command": "python benchmarks/dna.py --ship", "groups": [g.name for g in learning]}
    start = time.perf_counter()
    full = dna.train(learning, dna.Training(**CHOSEN[name]), made=made)
    took = time.perf_counter() - start
    pairs = pairs_of(groups, by_dna(full, learning))
    result: dict[str, Any] = {
        "test": {"groups": [g.recipe.name for g in groups], "models": sum(len(g.members) for g in groups)},
        "confound": confound(pairs), "hard": hard(pairs), "scenarios": scenarios(pairs),
        "calibration": calibration(full, pairs), "seconds to train": round(took, 1),
        "distortions": {how: hard(pairs_of(groups, by_dna(full, learning, how)))["all"] for how in DISTORTIONS},
        "fewer probes": {n: fewer(full, groups, learning, n) for n in (64, 128, 256)},
        "baselines": {b: hard(pairs_of(groups, by_nearness(i))) for i, b in enumerate(BASELINES)
                      if any(np.isfinite(g.found["nearness"][i]).any() for g in groups)},
    }  # fmt: skip
    beside = [
        pairs_of(groups, by_nearness(i)) for i, b in enumerate(BASELINES) if b not in ("weights", "gradient field")
    ]
    fields = [pairs_of(groups, by_nearness(BASELINES.index("gradient field")))] if name == "images" else []
    result["distilled, by controls of the same data"] = {
        "DNA": together([pairs]), "DNA and outputs": together([pairs, *beside]),
        "DNA, outputs and fields": together([pairs, *beside, *fields]), "outputs": together(beside),
    }  # fmt: skip
    others: dict[str, Pairs] = {"untrained": pairs_of(groups, by_dna(FragmentEncoder.untrained(), learning))}
    others |= {
        n: pairs_of(groups, by_dna(dna.train(learning, dna.Training(**CHOSEN[name] | v)), learning))
        for n, v in VARIANTS.items()
    }
    others["set pooling"] = pairs_of(groups, by_set_pooling(set_pooling.learnt(learning)))
    others["data part alone"] = pairs_of(groups, by_sample)
    result["ablations"] = {
        n: {
            "confound": confound(p),
            **{k: v for k, v in hard(p).items() if k != "ways"},
            "full beats it": difference(pairs, p),
        }
        for n, p in others.items()
    }
    result["seconds per model"] = {g.recipe.name: round(float(g.found["seconds"][0]), 4) for g in groups}
    result["bytes"] = sum(p.stat().st_size for p in (_file(name),)) if _file(name).exists() else None
    if name == "images":
        result["search"] = searched(full, groups)
    if ship:
        test_of = {"auroc": result["hard"]["all"]["auroc"], "confound": result["confound"]}
        replace(full, about={**full.about, "test": test_of}).save(_file(name))
        result["bytes"] = _file(name).stat().st_size
    return result


UNSEEN = "mnist8"


def unseen_target() -> dict[str, Any]:
    """Children that learnt a data set which no child, and no source, of the training had learnt."""
    learning = []
    for r in TRAIN:
        if r.data != UNSEEN:
            targets = [m.recipe.parameters.get("data") for m in r.members()]
            learning.append(measure_group(r).only(np.array([t != UNSEEN for t in targets])))
    groups = [Looked(r, r.members(), examined(r)) for r in TEST if r.data != UNSEEN]
    scores = by_dna(dna.train(learning), learning)
    pairs = pairs_of(groups, scores, lambda looked, child: looked.targets[child] == UNSEEN)
    near = pairs.same_data & pairs.backbone
    return {"same data": cell(pairs, pairs.own, near & ~pairs.own), "all": cell(pairs, pairs.own, ~pairs.own)}


def _file(name: str) -> Path:
    return PRETRAINED / f"dna_{name}.safetensors"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--build", action="store_true")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--ship", action="store_true", help="write the encoders that ship with the package")
    options.add_argument("--only", choices=("images", "text", "verdicts", "target"))
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.build:
        build(given.jobs)
        return
    path = Path(__file__).parent / "results" / "dna.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts = {"images": (TRAIN, TEST), "text": (TRAIN_TEXT, TEST_TEXT)}
    for name, (train, test) in parts.items():
        if given.only in (None, name):
            result[name] = told(name, train, test, given.ship)
            result["machine"] = {"processor": platform.machine(), "python": platform.python_version(),
                                 "stemma": __version__}  # fmt: skip
            write_result(path, result)
            print(json.dumps({k: result[name][k] for k in ("confound", "hard", "scenarios")}, indent=1))
    if given.only in (None, "target"):
        result["unseen target"] = unseen_target()
        write_result(path, result)
    if given.only in (None, "verdicts"):
        mlps = [r for r in TEST if r.kind == "mlp"]
        groups = [Looked(r, r.members(), examined(r)) for r in mlps]
        result["verdicts"] = verdicts(shipped_dna(), groups, [measure_group(r) for r in TRAIN if r.kind == "mlp"])
        write_result(path, result)


if __name__ == "__main__":
    main()
