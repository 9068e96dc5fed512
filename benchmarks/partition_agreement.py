"""What labels alone show of kinship: power and false alarms of the black-box test at level .01.

    python benchmarks/partition_agreement.py [--part NAME]... [--data DIR] [--seed N]

writes benchmarks/results/partition_agreement.json, part by part: those that are not asked for stay as they were.
Families of one data set: a candidate, what was made of it (fine-tuned, a new head, distilled into another
architecture), and strangers, that is candidates of other families on the same data. Controls are further networks on
the data of the candidates. Seed 1 is where the test was designed; what is written down is of another seed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.fingerprints.evaluation import compute_outputs
from stemma.kinship.function.multiple_testing import holm
from stemma.kinship.function.null_models import NullModels
from stemma.kinship.function.observations import Observation
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.kinship.function.partitions import adjusted_rand, agreement, paired_p_values, vote_entropy
from stemma.measures.intervals import at_boundary
from stemma.probes import Probes
from stemma.probes.out_of_distribution import blend_and_shuffle
from stemma.probes.parameters import Parameters
from stemma.types import Evidence, RelationKind, Verdict
from stemma.zoo.data import examples
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all
from testbeds.measured import write_result

RESULTS = Path(__file__).parent / "results" / "partition_agreement.json"
SEED, ALPHA, LEVELS = 20_261_126, 0.01, (0.01, 0.05, 0.1, 0.2, 0.5)
CONFOUNDED = "strangers, suspect's data", "the same, controls on that data"
UNUSUAL, STRANGERS, CHOOSERS = 4000, 2, 10

OPERATIONS: Mapping[str, tuple[str, RelationKind, dict[str, Any], str]] = {
    "fine-tuned": ("finetune", RelationKind.FINETUNED, {}, "b"),
    "fine-tuned far": ("finetune", RelationKind.FINETUNED, {"steps": 300, "rate": 4e-3}, "b"),
    "new head, other names": ("replace-head", RelationKind.HEAD_REPLACED, {"task": "shuffled:3"}, "b"),
    "new head, odd or even": ("replace-head", RelationKind.HEAD_REPLACED, {}, "b"),
    "distilled, own data": ("distill", RelationKind.DISTILLED, {"other": True}, "a"),
    "distilled, other data": ("distill", RelationKind.DISTILLED, {"other": True}, "b"),
    "new head, same tokens": ("replace-head", RelationKind.HEAD_REPLACED, {}, "b"),
    "fine-tuned, Shakespeare": ("finetune", RelationKind.FINETUNED, {"data": "shakespeare"}, "b"),
}
"""What was made of a candidate: the operation, what that makes of it, parameters, which half of the data."""

IMAGES = tuple(OPERATIONS)[:6]
TEXTS = "fine-tuned", "fine-tuned far", "fine-tuned, Shakespeare", "new head, same tokens", "distilled, other data"


@dataclass(frozen=True)
class Setting:
    """One kind of network on one data set.

    Attributes:
        kind: Of network.
        data: What they learn.
        families: How many.
        controls: Independent networks that test.
        alpha: Level.
        operations: Names out of `OPERATIONS`.
    """

    kind: str
    data: str
    families: int = 24
    controls: int = 99
    alpha: float = ALPHA
    operations: tuple[str, ...] = IMAGES


SETTINGS = {
    "mlp digits": Setting("mlp", "digits"),
    "mlp mnist8": Setting("mlp", "mnist8"),
    "mlp fashion8": Setting("mlp", "fashion8"),
    "cnn fashion8": Setting("cnn", "fashion8"),
    "lm text": Setting("lm", "text", 8, 19, 0.05, TEXTS),
}


def told(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def family_recipes(s: Setting, seed: int) -> dict[str, Recipe]:
    """Every network of a setting by name: `family i`, `OPERATION i`, `control i`, `chooser i`, `other data i`."""
    given = {} if s.data in ("digits", "text") else {"data": s.data}

    def root(i: int, part: str = "a") -> Recipe:
        return Recipe(s.kind, "train", None, (), given, seed=seed * 1000 + i, part=part)

    found = {f"family {i}": root(i) for i in range(s.families)}
    found |= {f"control {i}": root(200 + i) for i in range(s.controls)}
    found |= {f"chooser {i}": root(400 + i) for i in range(CHOOSERS if s.kind != "lm" else 0)}
    found |= {f"other data {i}": root(600 + i, "b") for i in range(s.families)}
    for name in s.operations:
        operation, relation, more, part = OPERATIONS[name]
        for i in range(s.families):
            parent = (found[f"family {i}"],)
            found[f"{name} {i}"] = Recipe(s.kind, operation, relation, parent, {**given, **more}, seed * 77 + i, part)
    return found


def questions(s: Setting) -> dict[str, np.ndarray]:
    """What is asked: test inputs as they are, and unusual ones made of them."""
    x = examples(s.kind, "test", "digit", None if s.data in ("digits", "text") else s.data).inputs
    if s.kind == "lm":
        return {"plain": x[:400], "unusual": blend_and_shuffle(Probes.of(x), Parameters(n=400)).inputs}
    return {"plain": x, "unusual": blend_and_shuffle(Probes.of(x), Parameters(n=4 * UNUSUAL)).inputs}


class Answered:
    """All networks of a setting, by the labels that they give."""

    def __init__(self, s: Setting, seed: int) -> None:
        self.setting = s
        recipes = family_recipes(s, seed)
        self.models = dict(zip(recipes, build_all(recipes), strict=True))
        told(f"{s.kind} {s.data}: {len(recipes)} networks")
        asked = {name: Probes.of(x) for name, x in questions(s).items()}
        self.labels = {
            probes: {n: compute_outputs(m, p).argmax(-1) for n, m in self.models.items()} for probes, p in asked.items()
        }
        self.shapes = {
            n: compute_outputs(m, next(iter(asked.values())).take([0])).shape[1:] for n, m in self.models.items()
        }

    def seen(self, name: str, probes: str, rows: np.ndarray | slice) -> Observation:
        labels, model = self.labels[probes][name][rows], self.models[name]
        return Observation(name, model.network.digest, self.shapes[name], labels, {}, {}, model.architecture)

    def test(self, candidate: str, suspect: str, probes: str, rows: Any, controls: Any = None, **how: Any) -> Evidence:
        a, b, *null = [self.seen(n, probes, rows) for n in (candidate, suspect, *(controls or self.controls))]
        asked = Probes.of(np.zeros((len(np.asarray(a.classes)), 1), np.float32))
        return PartitionAgreement(**{"alpha": self.setting.alpha, **how}).evidence(
            a, b, null, asked, NullModels("networks on the same data")
        )

    @property
    def controls(self) -> list[str]:
        return [f"control {i}" for i in range(self.setting.controls)]


def decisions(all_: Answered, candidate: str, suspect: str, probes: str, rows: Any) -> dict[str, float]:
    """Whether each method says that the suspect comes from the candidate, and the p-value of the test."""
    alpha, found = all_.setting.alpha, all_.test(candidate, suspect, probes, rows)
    either = all_.test(candidate, suspect, probes, rows, stands_for="either")
    further = [v["p_value_of_probes"] <= alpha for v in found.details["views"]]
    labels = {n: all_.labels[probes][n][rows] for n in (candidate, suspect, *all_.controls)}
    own, pool = labels[suspect], np.array([labels[n] for n in (candidate, *all_.controls)])
    alike = agreement(own, pool).reshape(len(pool), len(own), -1).mean(2, dtype=float)
    adjusted_rands = [adjusted_rand(own.ravel(), p.ravel()) for p in pool]
    few = alike[: 1 + min(20, len(alike) - 1)]
    return {
        "test": found.verdict is Verdict.SUPPORTED,
        "further probes, too": found.verdict is Verdict.SUPPORTED and all(further),
        "both observe": either.verdict is Verdict.SUPPORTED,
        "agreement, ranks": bool((alike[0].mean() > alike[1:].mean(1)).all()),
        "adjusted Rand, ranks": adjusted_rands[0] > max(adjusted_rands[1:]),
        "published, all controls": holm(paired_p_values(alike)).max() <= alpha,
        "published, 20 controls": holm(paired_p_values(few)).max() <= alpha,
        "p": found.p_value if found.p_value is not None else 1.0,
        "above": _above(found.details["views"][0]["p_value_of_models"], len(all_.controls)),
        "above by agreement": float((alike[0].mean() > alike[1:].mean(1)).mean()),
    }


def _above(p: float, controls: int) -> float:
    """Share of controls that a rank leaves behind: over families its mean is the area under the ROC curve."""
    return 1 - (p * (controls + 1) - 1) / controls


def areas(found: list[dict[str, float]]) -> dict[str, Any]:
    """Area under the ROC curve, parents against controls on the same data, with families resampled."""
    out, rng = {}, np.random.default_rng(0)
    for name in ("above", "above by agreement"):
        values = np.array([f[name] for f in found])
        draws = values[rng.integers(0, len(values), (4000, len(values)))].mean(1)
        low, high = at_boundary(tuple(np.quantile(draws, [0.025, 0.975])), float(values.mean()), len(values))
        out[name] = {"mean": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    return {**out, "values": [[round(f["above"], 4), round(f["above by agreement"], 4)] for f in found]}


def rate(found: list[float], families: int) -> dict[str, Any]:
    """A share with Wilson's 95 % interval at the number of families: pairs of one family count as one draw."""
    p, z = float(np.mean(found)), 1.96
    middle, spread = p + z * z / (2 * families), z * np.sqrt(p * (1 - p) / families + z * z / (4 * families**2))
    scale = 1 + z * z / families
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return {"rate": round(p, 4), "low": round(float(low), 4), "high": round(float(high), 4),
            "hits": int(sum(found)), "n": len(found), "families": families}  # fmt: skip


def tabled(found: list[dict[str, float]], families: int) -> dict[str, Any]:
    return {m: rate([float(f[m]) for f in found], families) for m in found[0] if m != "p" and "above" not in m}


def setting_table(s: Setting, seed: int) -> dict[str, Any]:
    """Power on children and false alarms on strangers, operation by operation."""
    all_, probes, rows = Answered(s, seed), "unusual", slice(0, UNUSUAL)
    n, p_values = s.families, []
    out: dict[str, Any] = {"families": n, "controls": s.controls, "alpha": s.alpha, "operations": {}}
    for name in s.operations:
        children = [decisions(all_, f"family {i}", f"{name} {i}", probes, rows) for i in range(n)]
        strangers = [
            decisions(all_, f"family {(i + k) % n}", f"{name} {i}", probes, rows)
            for i in range(n)
            for k in range(1, STRANGERS + 1)
        ]
        out["operations"][name] = {"children": tabled(children, n), "strangers": tabled(strangers, n),
                                   "area": areas(children)}  # fmt: skip
        p_values += [f["p"] for f in strangers]
        confound = [decisions(all_, f"other data {i}", f"{name} {i}", probes, rows) for i in range(n)]
        out["operations"][name]["strangers, suspect's data"] = tabled(confound, n)
        if s.kind != "lm":
            out["operations"][name]["the same, controls on that data"] = {"test": same_data(all_, name, probes, rows)}
        told(f"{s.kind} {s.data}: {name}")
    out["null"] = {str(t): rate([float(p <= t + 1e-9) for p in p_values], n) for t in LEVELS}
    out["probes"] = probes_table(all_)
    return out


def same_data(all_: Answered, name: str, probes: str, rows: Any) -> dict[str, Any]:
    """False alarms at .05 on candidates trained on the suspect's data, where controls were trained on it, too."""
    n, found = all_.setting.families, []
    for i in range(n):
        controls = [f"other data {j}" for j in range(n) if j != i]
        e = all_.test(f"other data {i}", f"{name} {i}", probes, rows, controls, alpha=0.05)
        found.append(float(e.verdict is Verdict.SUPPORTED))
    return rate(found, n)


def probes_table(all_: Answered) -> dict[str, Any]:
    """Power by what is asked: plain inputs, one half of the unusual ones or the other, fewer, a choice."""
    s = all_.setting
    sets: dict[str, tuple[str, Any]] = {
        "test inputs": ("plain", slice(None)), "blends": ("unusual", slice(0, UNUSUAL, 2)),
        "out of order": ("unusual", slice(1, UNUSUAL, 2)), "1000 unusual": ("unusual", slice(0, 1000)),
        "4000 unusual": ("unusual", slice(0, UNUSUAL)),
    }  # fmt: skip
    if s.kind != "lm":
        votes = np.array([all_.labels["unusual"][f"chooser {i}"] for i in range(CHOOSERS)])
        best = np.sort(np.argsort(-vote_entropy(votes), kind="stable")[:UNUSUAL])
        sets["4000 of 16000 by entropy"] = ("unusual", best)
    out: dict[str, Any] = {}
    for label, (probes, rows) in sets.items():
        out[label] = {}
        for name in s.operations:
            found = [all_.test(f"family {i}", f"{name} {i}", probes, rows) for i in range(s.families)]
            out[label][name] = rate([float(f.verdict is Verdict.SUPPORTED) for f in found], s.families)
    told(f"{s.kind} {s.data}: probes")
    return out


def confound_by_probes(seed: int) -> dict[str, Any]:
    """False alarms on candidates of the suspect's data where suspects were fine-tuned far, by what is asked."""
    rows = {"blends": slice(0, UNUSUAL, 2), "out of order": slice(1, UNUSUAL, 2), "unusual": slice(0, UNUSUAL)}
    found: dict[str, list[float]] = {label: [] for label in rows}
    for name in ("mlp digits", "mlp mnist8", "mlp fashion8"):
        s = replace(SETTINGS[name], operations=("fine-tuned far",))
        all_ = Answered(s, seed)
        for label, chosen in rows.items():
            for i in range(s.families):
                e = all_.test(f"other data {i}", f"fine-tuned far {i}", "unusual", chosen)
                found[label].append(float(e.verdict is Verdict.SUPPORTED))
    return {label: rate(values, len(values)) for label, values in found.items()}


def random_answers(seed: int) -> dict[str, Any]:
    """Power and false alarms where the suspect gives a random label now and then."""
    found: dict[str, list[float]] = {}
    for setting in ("mlp digits", "mlp mnist8", "mlp fashion8"):
        s = replace(SETTINGS[setting], operations=("fine-tuned", "distilled, other data"))
        all_, rng = Answered(s, seed), np.random.default_rng(seed)
        truth = all_.labels["unusual"]
        for share in (0.1, 0.3):
            for name in (f"{o} {i}" for o in s.operations for i in range(s.families)):
                given = truth[name]
                hidden = np.where(rng.random(len(given)) < share, rng.integers(0, 10, len(given)), given)
                all_.labels["unusual"] = {**truth, name: hidden}
                operation, i = name.rsplit(" ", 1)
                for who, parent in (("children", int(i)), ("strangers", (int(i) + 1) % s.families)):
                    e = all_.test(f"family {parent}", name, "unusual", slice(0, UNUSUAL))
                    found.setdefault(f"{share:.0%} {operation} {who}", []).append(float(e.verdict is Verdict.SUPPORTED))
    return {label: rate(values, len(values)) for label, values in found.items()}


def pooled(results: Mapping[str, Any]) -> dict[str, Any]:
    """All vision settings together, family by family."""
    found = [results[name] for name, s in SETTINGS.items() if s.kind != "lm" and name in results]
    if not found:
        return {}
    families = sum(f["families"] for f in found)
    out: dict[str, Any] = {"families": families, "settings": len(found), "operations": {}}
    for name in IMAGES:
        out["operations"][name] = {who: _joined([f["operations"][name][who] for f in found], families)
                                   for who in ("children", "strangers", *CONFOUNDED)}  # fmt: skip
        values = [v for f in found for v in f["operations"][name]["area"]["values"]]
        out["operations"][name]["area"] = areas([{"above": a, "above by agreement": b} for a, b in values])
    for who in ("strangers", *CONFOUNDED):
        every = [f["operations"][name][who] for f in found for name in IMAGES]
        out[who] = _joined(every, families)
    out["null"] = {t: _one([f["null"][t] for f in found], families) for t in map(str, LEVELS)}
    out["probes"] = {label: {name: _one([f["probes"][label][name] for f in found], families) for name in row}
                     for label, row in found[0]["probes"].items()}  # fmt: skip
    return out


def _joined(tables: list[Mapping[str, Any]], families: int) -> dict[str, Any]:
    return {m: _one([t[m] for t in tables], families) for m in tables[0]}


def _one(rates: list[Mapping[str, Any]], families: int) -> dict[str, Any]:
    hits, n = sum(r["hits"] for r in rates), sum(r["n"] for r in rates)
    return rate([1.0] * hits + [0.0] * (n - hits), families)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", action="append", help=f"{', '.join(SETTINGS)} confound or random; all by default")
    options.add_argument("--data", help="folder of data sets, else STEMMA_DATA; without it only digits and text")
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    if given.data:
        os.environ["STEMMA_DATA"] = given.data
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name, s in SETTINGS.items():
        if given.part and name not in given.part:
            continue
        if s.data.endswith("8") and not os.environ.get("STEMMA_DATA"):
            told(f"{name} is left out: no data sets (--data)")
            continue
        if s.kind == "lm" and not os.environ.get("STEMMA_DATA"):
            s = replace(s, operations=tuple(o for o in s.operations if "data" not in OPERATIONS[o][2]))
        start = time.perf_counter()
        found = setting_table(s, given.seed)
        found["seconds"] = round(time.perf_counter() - start, 1)
        results |= {"version": __version__, "seed": given.seed, name: found}
        write_result(given.out, results)
    if os.environ.get("STEMMA_DATA") and (not given.part or "confound" in given.part):
        results["confound by probes"] = confound_by_probes(given.seed)
    if os.environ.get("STEMMA_DATA") and (not given.part or "random" in given.part):
        results["random answers"] = random_answers(given.seed)
    results["vision"] = pooled(results)
    write_result(given.out, results)


if __name__ == "__main__":
    main()
