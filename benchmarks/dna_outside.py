"""Model DNA outside the zoo: what is told of networks that nothing was learned on, by kind of input.

Nine groups of `testbeds.dna_kinds` (tables, sounds, pictures, tokens; perceptrons, convolutions, batch norm, attention)
with 22 sources each and six ways of making a child. Each question has 20 control models: the other sources. An encoder
is learned with one kind of input left out and compared on that kind with the code without weights; the calibration of
probabilities is fitted without the kind that it is tested on.

    STEMMA_DATA=FOLDER python benchmarks/dna_outside.py          25 minutes on one core, 8 when the networks are cached
    python benchmarks/dna_outside.py --choose                    chooses the features again, one after another

Seeds are in `testbeds.dna_kinds.KINDS`. Writes benchmarks/results/dna_outside.json.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import rankdata

from stemma import __version__
from stemma.fingerprints.canonical_outputs import FEATURES
from stemma.fingerprints.dna import DNA, describe_outputs, pack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.dna_closeness import standardised_closeness
from stemma.kinship.function.dna_population import Population, channel_correlations
from stemma.kinship.function.model_dna import CloserDnaThanIndependent
from stemma.measures.intervals import at_boundary
from stemma.training import dna
from stemma.training.dna_groups import FEATURE_STEP, Group
from stemma.types import Fingerprint
from testbeds.dna_kinds import KINDS, TARGET_CLASSES, Kind, measured
from testbeds.measured import write_result

CONTROLS, DRAWS, SEED = 20, 500, 20261201
FIRST_CODE = ("whitened move: noise", "entropy", "leverage", "whitened distance to probe +1")
"""The untrained code of the first version of Model DNA."""

Table = dict[str, np.ndarray]


def features(kind: Kind) -> Table:
    """Features `[models, probes, features]` by way."""
    found, _ = measured(kind)
    kept = (0, 1, 2, 3, 4, 5, 7, 8)  # the mixture of the further draws is the first one's
    return {w: np.stack([describe_outputs([m[i].astype(np.float64) for i in kept])[0] for m in x])
            for w, x in found.items()}  # fmt: skip


def of_names(names: Sequence[str]) -> FragmentEncoder:
    """An encoder of some features as they are."""
    linear = np.zeros((len(FEATURES), len(names)), np.float32)
    linear[[FEATURES.index(n) for n in names], range(len(names))] = 1
    return FragmentEncoder.of(linear)


def fingerprints(table: Table, encoder: FragmentEncoder, name: str) -> dict[str, list[Fingerprint]]:
    """DNAs as `DNA` makes them, from features."""
    spec = DNA(encoder=encoder).spec
    out: dict[str, list[Fingerprint]] = {}
    for way, rows in table.items():
        classes = TARGET_CLASSES if way.startswith("new head") else 10
        for i, row in enumerate(rows):
            values = {"code": pack(encoder(row)), "scalars": np.zeros(8, np.float16), "sample": np.zeros(0, np.int8),
                      "head": np.array([classes, 0], np.int64), "architecture": np.zeros(0, np.uint8)}  # fmt: skip
            out.setdefault(way, []).append(Fingerprint(f"{name} {way} {i}", f"sha256:{name}", spec, values))
    return out


def asked(found: dict[str, list[Fingerprint]], encoder: FragmentEncoder) -> list[dict[str, Any]]:
    """One row for each child and each source that children were made of."""
    test, sources, rows = CloserDnaThanIndependent(0.05, encoder), found["source"], []
    for way, children in found.items():
        for c, child in enumerate(children if way != "source" else []):
            for a in range(len(children)):
                null = [s for i, s in enumerate(sources) if i not in (a, c)][:CONTROLS]
                e = test(sources[a], child, null)
                value = e.details["channels"]
                z = standardised_closeness(*_score(e))
                rows.append({"way": way, "child": c, "own": a == c, "p": e.p_value, "z": z,
                             "chance": e.details["probability"], "value": float(np.mean(value))})  # fmt: skip
    return rows


def _score(evidence: Any) -> tuple[float, list[float]]:
    return evidence.details["score"], list(evidence.null.values)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the curve."""
    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def calibration_error(chance: np.ndarray, own: np.ndarray) -> float:
    """Expected calibration error in ten bins at even odds."""
    weight = np.where(own, 0.5 / own.sum(), 0.5 / (~own).sum())
    bins = np.minimum((chance * 10).astype(int), 9)
    return float(sum(abs((weight[bins == b] * (chance[bins == b] - own[bins == b])).sum()) for b in range(10)))


def fitted(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Intercept and slope of log-odds at even odds, by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    z, own = np.array([r["z"] for r in rows])[:, None], np.array([r["own"] for r in rows])
    model = LogisticRegression(C=1e3, class_weight="balanced").fit(z, own)
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Areas, and how often a source is supported at .05, by way and over all."""
    out = {}
    for way in ("all", *dict.fromkeys(r["way"] for r in rows)):
        some = [r for r in rows if way in ("all", r["way"])]
        own, z, p = (np.array([r[k] for r in some]) for k in ("own", "z", "p"))
        rate = {name: float((p[rows] <= 0.05).mean()) for name, rows in (("own", own), ("other", ~own))}
        out[way] = {"auroc": round(auroc(z[own], z[~own]), 4), "own supported": round(rate["own"], 3),
                    "other supported": round(rate["other"], 4)}  # fmt: skip
    return out


def intervals(by_kind: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean area over kinds by way, with an interval by resampling children's families."""
    rng, out = np.random.default_rng(SEED), {}
    for way in dict.fromkeys(r["way"] for rows in by_kind.values() for r in rows):
        per_kind, families = [], 0
        for rows in by_kind.values():
            some = [r for r in rows if r["way"] == way]
            count = max(r["child"] for r in some) + 1
            families += count
            parts = [[r for r in some if r["child"] == c] for c in range(count)]
            own = [np.array([r["z"] for r in part if r["own"]]) for part in parts]
            other = [np.array([r["z"] for r in part if not r["own"]]) for part in parts]
            draws = [range(count), *(rng.integers(count, size=count) for _ in range(DRAWS))]
            per_kind.append([auroc(*(np.concatenate([x[i] for i in d]) for x in (own, other))) for d in draws])
        means = np.mean(per_kind, 0)
        low, high = at_boundary(tuple(np.quantile(means[1:], [0.025, 0.975])), float(means[0]), families)
        out[way] = {"auroc": round(float(means[0]), 4), "interval": [round(float(low), 4), round(float(high), 4)]}
    return out


def group_of(kind: Kind, table: Table) -> Group:
    """The table as a training group."""
    parts = [(w, x, range(len(x))) for w, x in table.items()]
    kept = np.clip(np.round(np.concatenate([x for _, x, _ in parts]) / FEATURE_STEP), -127, 127).astype(np.int8)
    source, way = np.concatenate([list(r) for *_, r in parts]), np.concatenate([[w] * len(x) for w, x, _ in parts])
    return Group(kind.name, kept, source, way)


def choose(tables: dict[str, Table], count: int = 8) -> list[dict[str, Any]]:
    """Features one after another, each the best beside those chosen: mean area over kinds and ways."""
    found = []
    for table in tables.values():
        sources = table["source"].astype(float)
        population = Population.plain(sources)
        for way, rows in table.items():
            if way not in ("source", "4-bit"):
                found.append(channel_correlations(population(rows.astype(float)), population(sources)))

    def area(chosen: list[int]) -> float:
        areas = []
        for correlations in found:
            v = correlations[..., chosen].mean(-1)
            z = (v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True)
            own = np.eye(*v.shape, dtype=bool)
            areas.append(auroc(z[own], z[~own]))
        return float(np.mean(areas))

    chosen: list[int] = []
    out = []
    for _ in range(count):
        chosen.append(max((f for f in range(len(FEATURES)) if f not in chosen), key=lambda f: area([*chosen, f])))
        out.append({"feature": FEATURES[chosen[-1]], "auroc": round(area(chosen), 4)})
    return out


def input_of(name: str) -> str:
    """Kind of input of a group."""
    return "picture" if name.split("-")[0] in ("digits", "mnist") else name.split("-")[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--choose", action="store_true")
    options.add_argument("--kinds", nargs="*", default=[k.name for k in KINDS])
    options.add_argument("--steps", type=int, default=1000, help="updates of the learned encoder; 0 learns none")
    given = options.parse_args()
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "dna_outside.json"
    kinds = [k for k in KINDS if k.name in given.kinds]
    tables = {k.name: features(k) for k in kinds}
    if given.choose:
        print(json.dumps(choose(tables), indent=1))
        return
    result: dict[str, Any] = {"controls": CONTROLS, "accuracy": {k.name: measured(k)[1] for k in kinds}}
    codes = {"code": FragmentEncoder.untrained(), "first untrained code": of_names(FIRST_CODE)}
    every: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, encoder in codes.items():
        every[name] = {k: asked(fingerprints(t, encoder, k), encoder) for k, t in tables.items()}
    if given.steps:
        groups = [group_of(k, tables[k.name]) for k in kinds]
        every["learned without the kind"] = {}
        for left_out in dict.fromkeys(input_of(k.name) for k in kinds):
            learning = [g for g in groups if input_of(g.name) != left_out]
            encoder = dna.train(learning, dna.Training(steps=given.steps))
            for k, t in tables.items():
                if input_of(k) == left_out:
                    every["learned without the kind"][k] = asked(fingerprints(t, encoder, k), encoder)
    for name, by_kind in every.items():
        result[name] = {"kinds": {k: summary(rows) for k, rows in by_kind.items()}, "ways": intervals(by_kind)}
    code, errors = every["code"], {}
    for k, rows in code.items():
        others = [r for other, some in code.items() if input_of(other) != input_of(k) for r in some]
        intercept, slope = fitted(others or rows)
        z, own = np.array([r["z"] for r in rows]), np.array([r["own"] for r in rows])
        errors[k] = round(calibration_error(1 / (1 + np.exp(-(intercept + slope * z))), own), 4)
    shipped = [r for rows in code.values() for r in rows]
    result["calibration"] = {
        "error, fitted without the kind": errors, "mean": round(float(np.mean(list(errors.values()))), 4),
        "fitted on all": [round(x, 3) for x in fitted(shipped)],
        "error as shipped": round(calibration_error(np.array([r["chance"] for r in shipped]),
                                                    np.array([r["own"] for r in shipped])), 4),
    }  # fmt: skip
    result["machine"] = {"processor": platform.machine(), "python": platform.python_version(), "stemma": __version__}
    write_result(path, result)
    print(json.dumps({n: result[n]["ways"] for n in every} | {"calibration": result["calibration"]}, indent=1))


if __name__ == "__main__":
    main()
