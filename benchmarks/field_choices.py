"""Which gradient field tells students of a teacher from networks that learned alone: the choices behind the default.

Selection only: digits, two architectures, three teachers each; students learn the teacher's probabilities or labels on
data that the teacher never saw, negatives learn the true labels there. No error rate is quoted from this script.

    python benchmarks/field_choices.py     writes benchmarks/results/field_choices.json
"""

import itertools
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from stemma.checkpoints.model import Model
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.fingerprints.paths import baseline_inputs
from stemma.measures.label_disagreement import LabelDisagreement
from stemma.measures.softmax_difference import SoftmaxDifference
from stemma.probes import Probes
from stemma.zoo import independents
from stemma.zoo.data import Examples, examples
from stemma.zoo.kinds import KINDS
from stemma.zoo.memory import arrays_of, model_of
from stemma.zoo.training import initial, logits, seed_for, train
from testbeds.measured import write_result

KIND_NAMES, TEACHERS, STUDENTS, NEGATIVES, REFERENCES, STEPS, SEED = ("cnn", "mlp"), 3, 24, 32, 128, 8, 100
POTENTIALS = (("own-argmax", "none"), ("label", "truth"), ("label", "teacher"), ("log-softmax", "truth"),
              ("log-softmax", "teacher"), ("all-log-softmax", "none"))  # fmt: skip
BASELINES = ("zero", "mean", "probe")
RESULTS = Path(__file__).parent / "results" / "field_choices.json"


def students(kind: str, teacher: Model, seed: int, *, hard: bool) -> list[Model]:
    """Networks from starts of their own that learned a teacher's answers."""
    config, seen = KINDS[kind].config, examples(kind, "b").inputs
    told = torch.from_numpy(logits(config, [arrays_of(teacher)], seen)[0])
    targets = told.argmax(1).numpy() if hard else told.softmax(1).numpy()
    born = [initial(config, seed_for(SEED, seed, i)) for i in range(STUDENTS)]
    runs = train(config, born, Examples(seen, targets), KINDS[kind].schedule, list(range(STUDENTS)))
    return [model_of(f"student-{i}", run[-1], config) for i, run in enumerate(runs)]


def courses(slopes: np.ndarray, delta: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What can be made of weighted gradients along a path: integrated or not, times the input or not, end point."""
    running = slopes.cumsum(1)
    for name, curve in (("cumulative", running), ("per step", slopes), ("end point", running[:, -1:])):
        yield f"{name}, times input", curve * delta[:, None]
        yield name, curve


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of 1 - cosine over probes and steps."""
    lengths = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    dot = (a * b).sum(2)
    return float((1 - np.divide(dot, lengths, out=np.zeros_like(dot), where=lengths > 0)).mean())


def scored(kind: str, index: int) -> dict[str, dict[str, float]]:
    """AUC of every choice for one teacher, for students of probabilities and of labels."""
    teacher = independents(kind, TEACHERS, seed=SEED)[index]
    groups = {"probabilities": students(kind, teacher, index, hard=False),
              "labels": students(kind, teacher, index + TEACHERS, hard=True),
              "alone": independents(kind, NEGATIVES, seed=SEED + 1, part="b")}  # fmt: skip
    test = examples(kind, "test")
    truth = Probes.of(test.inputs[:REFERENCES], test.targets[:REFERENCES])
    answers = Outputs()(teacher, truth)
    labels = {"truth": truth, "none": truth.with_labels(None),
              "teacher": truth.with_labels(answers.values["outputs"].argmax(1), teacher.name)}  # fmt: skip
    out = {}
    for measure in (SoftmaxDifference(), LabelDisagreement()):
        found = {g: [measure(answers, Outputs()(m, truth)).value for m in ms] for g, ms in groups.items()}
        out[measure.name] = aucs(found)
    for (potential, whose), baseline in itertools.product(POTENTIALS, BASELINES):
        probes = labels[whose]
        method = GradientField(STEPS, potential=potential, baseline=baseline, cumulative=False, times_input=False)
        delta = (probes.inputs - baseline_inputs(probes, baseline, method.seed)[0][1]).reshape(REFERENCES, -1)
        own = dict(courses(method(teacher, probes).values["curve"], delta))
        found = {course: {g: [] for g in groups} for course in own}
        for group, models in groups.items():
            for model in models:
                for course, curve in courses(method(model, probes).values["curve"], delta):
                    found[course][group].append(far(own[course], curve))
        for course, distances in found.items():
            out[f"{potential} of {whose}; {baseline}; {course}"] = aucs(distances)
    return out


def aucs(distances: Mapping[str, list[float]]) -> dict[str, float]:
    alone = distances["alone"]
    return {
        g: float(roc_auc_score([1] * len(d) + [0] * len(alone), -np.array([*d, *alone])))
        for g, d in distances.items()
        if g != "alone"
    }


def main() -> None:
    torch.set_num_threads(1)
    runs = {f"{kind} {i}": scored(kind, i) for kind in KIND_NAMES for i in range(TEACHERS)}
    table: dict[str, Any] = {}
    for choice in next(iter(runs.values())):
        cells = [[r[choice][g] for name, r in runs.items() if name.startswith(kind)]
                 for kind in KIND_NAMES for g in ("probabilities", "labels")]  # fmt: skip
        table[choice] = {"mean": float(np.mean(cells)), "cells": [float(np.mean(c)) for c in cells],
                         "teachers": [[min(c), max(c)] for c in cells]}  # fmt: skip
    best = sorted(table, key=lambda c: -table[c]["mean"])
    by_baseline = {b: float(np.mean([t["mean"] for c, t in table.items() if f"; {b};" in c])) for b in BASELINES}
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
        "seed": SEED, "columns": [f"{k}, {g}" for k in KIND_NAMES for g in ("probabilities", "labels")],
        "by_baseline": by_baseline, "best": best[:10],
        "default": "log-softmax of truth; probe; cumulative, times input",
        "choices": {c: table[c] for c in best},
    }  # fmt: skip
    write_result(RESULTS, result)
    for choice in (*best[:12], result["default"], "softmax-difference", "label-disagreement"):
        print(f"{table[choice]['mean']:.3f}  {np.round(table[choice]['cells'], 3)}  {choice}")


if __name__ == "__main__":
    main()
