"""Which of two related models came first? Codes of the two beside codes of reference models of either task.

A pair is a model of task A and one of task B with a head of its own, one of them made from the other. Whatever a child
keeps of its source's task should make it more alike to independent models of that task than a model of its own task
alone is. So each is compared with independent reference models of the other's task, in units of what the references
of its own task show; the sign of the difference is the order. Half of the pairs are A to B, half B to A.

    python benchmarks/dna_order.py          2 minutes on one core

Seeds are in `testbeds.dna_kinds.KINDS`. Writes benchmarks/results/dna_order.json.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stemma import __version__
from stemma.fingerprints.canonical_outputs import log_probabilities
from stemma.fingerprints.dna import DRAWS, describe_outputs, pack, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.dna_order import order_by_references
from stemma.probes.augmentation import perturb
from testbeds.dna_kinds import KINDS, TARGET_CLASSES, Kind, answers, fit, probes, start
from testbeds.measured import write_result

USED, PAIRS, REFERENCES = ("table-relu", "table-tanh", "sound-tanh"), 10, 10
STEPS = {"short": 150, "long": 600}


def codes(kind: Kind, stack: dict[str, torch.Tensor]) -> np.ndarray:
    """Codes `[m, probes, channels]`."""
    selected = probes(kind)
    inputs = [selected.inputs, *perturb(selected, 0), *(x for d in range(1, DRAWS) for x in perturb(selected, d)[:2])]
    found = [answers(kind, stack, x).numpy() for x in inputs]
    encode = FragmentEncoder.untrained()
    of_each = (describe_outputs([log_probabilities(x[i]) for x in found])[0] for i in range(len(found[0])))
    return np.stack([unpack(pack(encode(f))) for f in of_each]).astype(float)


def measured_order(kind: Kind) -> dict[str, Any]:
    """Share of pairs whose order is told, by length of the training."""
    (xa, ya), (xb, yb) = kind.data(kind.seed)
    tasks = [(xa[: len(xa) * 4 // 5], ya[: len(xa) * 4 // 5]), (xb[: len(xb) * 4 // 5], yb[: len(xb) * 4 // 5])]
    classes, g = (10, TARGET_CLASSES), torch.Generator().manual_seed(kind.seed + 7)
    first = [fit(kind, start(kind.config, c, PAIRS + REFERENCES, g), t, kind.steps, kind.seed + 70 + i)
             for i, (c, t) in enumerate(zip(classes, tasks, strict=True))]  # fmt: skip
    seen = [codes(kind, stack) for stack in first]
    own, references = [x[:PAIRS] for x in seen], [x[PAIRS:] for x in seen]
    out = {}
    for name, steps in STEPS.items():
        values = []
        for a in (0, 1):
            b = 1 - a
            half = {n: t[:PAIRS] for n, t in first[a].items()}
            fresh = start(kind.config, classes[b], PAIRS, g)
            half |= {n: fresh[n] for n in ("head.weight", "head.bias")}
            children = codes(kind, fit(kind, half, tasks[b], steps, kind.seed + 90 + a))
            for source, child in zip(own[a], children, strict=True):
                told = order_by_references(source, child, references[a], references[b])
                values.append(told)
        hits = np.array(values) > 0
        out[name] = {"right": round(float(hits.mean()), 3), "A to B": round(float(hits[:PAIRS].mean()), 3),
                     "B to A": round(float(hits[PAIRS:].mean()), 3), "pairs": len(hits)}  # fmt: skip
    return out


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {k.name: measured_order(k) for k in KINDS if k.name in USED}
    rows = [v for by in result.values() for v in by.values()]
    count, hits = sum(r["pairs"] for r in rows), sum(round(r["right"] * r["pairs"]) for r in rows)
    result["all"] = {"right": round(hits / count, 4), "pairs": count}
    result["machine"] = {"processor": platform.machine(), "python": platform.python_version(), "stemma": __version__}
    path = Path(__file__).parent / "results" / "dna_order.json"
    write_result(path, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
