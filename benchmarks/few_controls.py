"""Distilled or not, with ten, three and no control models; and what students are worth as controls.

python benchmarks/few_controls.py [--tier tiny|small|full] [--data DIR]     writes benchmarks/results/few_controls.json

A teacher's controls are networks of its architecture that learned the same data from other starts. Students of other
architectures learn its probabilities or labels on an attacker's inputs. Honest networks of those architectures learn
the true labels of the owner's or of the attacker's data. The weight of the shared deviations was chosen on beds of the
split `development`; nothing was chosen on those of the split `scored`.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma import __version__
from stemma.fingerprints.gradient_field import GradientField
from stemma.kinship.function import combined
from stemma.kinship.function.beyond_labels import beyond_labels
from stemma.kinship.function.closer_than_independent import CloserThanIndependent
from stemma.kinship.function.few_controls import normal_law
from stemma.kinship.function.observations import mean_distances, observe
from stemma.kinship.function.rank_test import rank_test, with_deviations
from stemma.measures.field_cosine import FieldCosine
from stemma.probes import Probes
from testbeds.few_controls_models import BEDS, SIZES, Bed, Made, Size, networks, students
from testbeds.few_controls_scores import area, interval_of_gap, rate
from testbeds.measured import write_result

ALPHA = 0.01
COUNTS = (3, 10)
PUBLISHED_PROBES = 64
"""The published method takes 50 steps; it and the default are compared on these probes."""

Table = np.ndarray


class Pairs:
    """Distances of every other network from the peers of a bed, by all methods, and tests on them."""

    def __init__(self, made: Sequence[Made], probes: Probes, size: Size):
        """Observe all networks once."""
        self.made, self.probes, self.size = made, probes, size
        labelled = probes.labels is not None
        self.seen = [observe(m.model, probes, combined.METHODS, labelled=labelled) for m in made]
        self.distances = np.array(
            [[mean_distances(s, p, combined.METHODS) for p in self.seen[: size.peers]] for s in self.seen]
        )

    def test(self, teacher: int, other: int, controls: Sequence[int]) -> tuple[float, float, float, float, bool]:
        """As `stemma compare` with these controls: t, the p of the normal law and of the rank, the rank, the call."""
        null = [(self.seen[c], self.distances[other, c]) for c in controls]
        found = rank_test(self.seen[teacher], self.seen[other], self.distances[other, teacher], null, self.probes, 99)
        if found.law is None or found.statistic is None:
            raise SystemExit("the controls of this bed do not differ")
        called = found.extrapolates(99) and found.law.p_value <= ALPHA
        return found.law.t, found.law.p_value, float(found.p_value or 1.0), found.statistic, called

    def single(self, teacher: int, other: int, controls: Sequence[int]) -> dict[str, float]:
        """The statistic t of each distance alone, with the same controls."""
        rows = [teacher, *controls]
        table = with_deviations(self.seen[other], [self.seen[i] for i in rows], self.distances[other, rows])
        return {n: _t(np.log(np.maximum(c, 1e-6))) for n, c in zip(NAMES, table.T, strict=True)}


STUDENTS = ("student of probabilities", "student of labels")
HONEST = ("honest, the same data", "honest, other data")
"""Groups of other architectures than the teacher's."""

NAMES = ("field", "label disagreement", "shared deviations")


def _t(logs: np.ndarray) -> float:
    null = logs[1:]
    return float((logs[0] - null.mean()) / max(null.std(ddof=1), 1e-9) / np.sqrt(1 + 1 / len(null)))


def kinds(made: Sequence[Made], size: Size) -> dict[str, list[tuple[int, int]]]:
    """Pairs of a teacher and another network, by what the other is; where both are honest, any peer is the first."""
    out: dict[str, list[tuple[int, int]]] = {}
    for t in range(size.peers):
        for i, m in enumerate(made):
            if m.role == "student" and t < size.teachers:
                name = f"student of {m.answers}" if m.teacher == t else "student of another teacher"
                out.setdefault(name, []).append((t, i))
            elif m.role == "honest":
                out.setdefault(HONEST[m.part != "owner"], []).append((t, i))
            elif m.role == "peer" and i != t:
                out.setdefault("honest, the same data and architecture", []).append((t, i))
    return out


def with_controls(pairs: Pairs, groups: dict[str, list[tuple[int, int]]], count: int) -> dict[str, Any]:
    """Areas, power and false calls with `count` controls, drawn anew for every pair."""
    draw, size = np.random.default_rng([count, 1]), pairs.size
    found: dict[str, list[tuple[Any, ...]]] = {}
    single: dict[str, list[dict[str, float]]] = {}
    for name, asked in groups.items():
        first = size.teachers if name.startswith("student") else 0  # no student's own teacher among its controls
        for t, i in asked:
            free = [c for c in range(first, size.peers) if c not in (t, i)]
            controls = draw.choice(free, count, replace=False).tolist()
            found.setdefault(name, []).append((t, *pairs.test(t, i, controls)))
            single.setdefault(name, []).append(pairs.single(t, i, controls))
    honest = [r for n in HONEST for r in found[n]]
    out: dict[str, Any] = {"controls": count, "exact floor": 1 / (count + 1)}
    for name, rows in found.items():
        calls = [bool(r[5]) for r in rows]
        out[name] = {"called": rate(calls), "normal_law_at_05": rate([r[2] <= 0.05 for r in rows])}
        if name in STUDENTS:
            out[name] |= {"area": area([-r[1] for r in rows], [-r[1] for r in honest])}
            for way in NAMES:
                sides = [-s[way] for s in single[name]], [-s[way] for n in HONEST for s in single[n]]
                out[name][f"area by {way} alone"] = area(*sides)["area"]
    return out


def without_controls(pairs: Pairs, groups: dict[str, list[tuple[int, int]]]) -> dict[str, Any] | None:
    """E-values from the true labels alone: areas, and how often they reach 1 / alpha."""
    values: dict[str, list[float]] = {}
    for name, asked in groups.items():
        for t, i in asked:
            found = beyond_labels(pairs.seen[t], pairs.seen[i], pairs.probes)
            if found is None:
                return None
            values.setdefault(name, []).append(found.e_value)
    out: dict[str, Any] = {n: {"e_at_least_100": rate([e >= 1 / ALPHA for e in v])} for n, v in values.items()}
    honest = [n for n in values if n.startswith("honest")]
    for name in STUDENTS:
        out[name] |= {f"area against {n}": area(values[name], values[n])["area"] for n in honest}
    return out


def students_as_controls(bed: Bed, pairs: Pairs, groups: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """How often honest pairs and students are called, were students of the first model its controls.

    They learn its answers to half of the probes, and all are compared on the other half.
    """
    half = len(pairs.probes) // 2
    asked = pairs.probes.take(slice(half, None))
    labelled = asked.labels is not None
    out: dict[str, list[bool]] = {}
    for t in range(min(2, pairs.size.teachers)):
        taught = students(bed, pairs.made[t].model, pairs.probes.inputs[:half], 10)
        pool = [observe(m, asked, combined.METHODS, labelled=labelled) for m in (pairs.made[t].model, *taught)]
        for name, members in groups.items():
            for i in [i for own, i in members if own == t and name in (*STUDENTS, *HONEST)][:8]:
                other = observe(pairs.made[i].model, asked, combined.METHODS, labelled=labelled)
                found = np.array([mean_distances(other, p, combined.METHODS) for p in pool])
                table = with_deviations(other, pool, found)
                law = normal_law(table[0], table[1:])
                out.setdefault(name, []).append(law is not None and law.p_value <= ALPHA)
    return {name: rate(calls) for name, calls in out.items()}


def published(pairs: Pairs, groups: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """The published method, the default field and the combination on the same probes, pairs and controls."""
    asked = pairs.probes.take(slice(PUBLISHED_PROBES))
    without = asked.with_labels(None)
    size = pairs.size
    ways = {"published": (GradientField.official(), FieldCosine.official(), without),
            "default field": (GradientField(), FieldCosine(), asked)}  # fmt: skip
    names = [n for n in groups if n in STUDENTS or n in HONEST]
    controls = list(range(size.teachers, min(size.peers, size.teachers + 10)))
    others = sorted({i for n in names for _, i in groups[n]})
    tables: dict[str, dict[int, Table]] = {}
    for way, (method, measure, given) in ways.items():
        peers = [method(pairs.made[p].model, given).values for p in [*range(size.teachers), *controls]]
        for i in others:
            own = method(pairs.made[i].model, given).values
            tables.setdefault(way, {})[i] = np.array([np.nanmean(measure.distances(own, p)) for p in peers])
    small = Pairs([pairs.made[i] for i in range(size.peers)] + [pairs.made[i] for i in others], asked, size)
    at = {i: size.peers + k for k, i in enumerate(others)}
    scores: dict[str, dict[str, list[float]]] = {}
    for name in names:
        for t, i in (pair for pair in groups[name] if pair[0] < size.teachers):
            for way in ways:
                row = tables[way][i]
                scores.setdefault(way, {}).setdefault(name, []).append(_t(np.log(np.r_[row[t], row[size.teachers :]])))
            scores.setdefault("combined", {}).setdefault(name, []).append(small.test(t, at[i], controls)[0])
    out: dict[str, Any] = {"probes": PUBLISHED_PROBES}
    for name in (n for n in names if n.startswith("student")):
        sides = {w: ([-x for x in s[name]], [-x for n in names if n.startswith("honest") for x in s[n]])
                 for w, s in scores.items()}  # fmt: skip
        out[name] = {w: area(*side)["area"] for w, side in sides.items()}
        for w in ("default field", "combined"):
            out[name][f"{w} minus published"] = interval_of_gap(sides[w], sides["published"])
    return out


def of_bed(bed: Bed, size: Size, data: Path) -> dict[str, Any]:
    """All tables of one bed."""
    start = time.process_time()
    made, probes = networks(bed, size, data)
    pairs = Pairs(made, probes, size)
    groups = kinds(made, size)
    accuracies = None
    if probes.labels is not None:
        right = [float((s.classes == probes.labels).mean()) for s in pairs.seen if s.classes is not None]
        accuracies = {r: float(np.mean([x for x, m in zip(right, made, strict=True) if m.role == r]))
                      for r in ("peer", "student", "honest")}  # fmt: skip
    out = {
        "split": bed.split, "networks": len(made), "probes": len(probes), "accuracy": accuracies,
        "with_controls": [with_controls(pairs, groups, n) for n in COUNTS if n < size.peers - size.teachers],
        "without_controls": without_controls(pairs, groups),
        "students_as_controls": students_as_controls(bed, pairs, groups),
        "published": None if probes.kind == "tokens" else published(pairs, groups),
    }  # fmt: skip
    return {**out, "cpu_seconds": round(time.process_time() - start)}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=tuple(SIZES), default="small")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--bed", action="append", help="only beds of this name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "few_controls.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA with the data sets")
    kept = json.loads(args.out.read_text())["beds"] if args.bed and args.out.exists() else {}
    for bed in BEDS:
        if args.bed and bed.name not in args.bed:
            continue
        kept[bed.name] = of_bed(bed, SIZES[args.tier], Path(args.data))
        print(bed.name, json.dumps(kept[bed.name], indent=1), file=sys.stderr)
        result = {
            "version": __version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "tier": args.tier,
            "machine": f"{os.cpu_count()} cores, one used, Python {platform.python_version()}, torch "
                       f"{torch.__version__}, numpy {np.__version__}",
            "measured_with": {CloserThanIndependent.name: CloserThanIndependent.version}, "alpha": ALPHA,
            "beds": kept,
        }  # fmt: skip
        write_result(args.out, result, default=float)


if __name__ == "__main__":
    main()
