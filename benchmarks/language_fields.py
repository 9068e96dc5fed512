"""How far language models are apart in the relaxed one-hot space: kin, students and strangers.

Byte-level models on English text, one family per seed; distances of every member to the family's root on text that
none has seen. Two fields: the default, and the plain gradient without the factor x - b.

    python benchmarks/language_fields.py     writes benchmarks/results/language_fields.json
"""

import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.label_disagreement import LabelDisagreement
from stemma.probes import Probes
from stemma.zoo import family
from stemma.zoo.data import examples
from testbeds.measured import write_result

SEEDS, REFERENCES = (0, 1, 2, 3), 32
KIN = ("lora", "int4", "finetuned", "finetuned-other-data")
STUDENTS = ("distilled", "distilled-other-architecture")
STRANGERS = ("independent-1", "independent-2", "independent-3", "independent-other-data",
             "independent-other-architecture")  # fmt: skip
MEMBERS = (*KIN, *STUDENTS, "same-init", *STRANGERS, "untrained")
METHODS = {
    "field": (GradientField(), FieldCosine()),
    "field without x - b": (GradientField(times_input=False), FieldCosine()),
    "Jensen-Shannon": (Outputs(), JensenShannon()),
    "label disagreement": (Outputs(), LabelDisagreement()),
}
RESULTS = Path(__file__).parent / "results" / "language_fields.json"


def main() -> None:
    torch.set_num_threads(1)
    probes = Probes.of(examples("lm", "test").inputs[:REFERENCES])
    found: dict[str, dict[str, list[float]]] = {m: {n: [] for n in MEMBERS} for m in METHODS}
    for seed in SEEDS:
        members = family("lm", seed)
        for method, (fingerprinter, measure) in METHODS.items():
            root = fingerprinter(members["lm/root"].model, probes)
            for name in MEMBERS:
                found[method][name].append(measure(root, fingerprinter(members[f"lm/{name}"].model, probes)).value)
    separation = {
        m: {
            "kin_over_strangers": [
                max(d[n][i] for n in KIN) / min(d[n][i] for n in STRANGERS) for i in range(len(SEEDS))
            ],
            "students_nearer_than_all_strangers": [
                [d[n][i] < min(d[s][i] for s in STRANGERS) for n in STUDENTS] for i in range(len(SEEDS))
            ],
        }
        for m, d in found.items()
    }
    table = {
        m: {n: {"mean": float(np.mean(v)), "range": [min(v), max(v)]} for n, v in d.items()} for m, d in found.items()
    }
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
        "seeds": SEEDS, "references": REFERENCES, "distance_to_root": table, "separation": separation,
    }  # fmt: skip
    write_result(RESULTS, result)
    for method, row in table.items():
        print(method, {n: round(v["mean"], 3) for n, v in row.items()})
    print(json.dumps(separation, indent=1))


if __name__ == "__main__":
    main()
