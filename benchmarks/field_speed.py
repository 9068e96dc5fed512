"""What a gradient field costs: against captum's integrated gradients, against bare passes, and with many models.

All times are of one run on one thread, alternating, as medians over repeats with their range. The network is the
zoo's CNN for 3 x 32 x 32 inputs. Captum gets the same nodes; it returns the end point of the path only, the field
its whole course.

    python benchmarks/field_speed.py     writes benchmarks/results/field_speed.json
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum
import numpy as np
import torch
from captum.attr import IntegratedGradients
from sklearn.metrics import roc_auc_score

from stemma.checkpoints.model import Model
from stemma.fingerprints.gradient_field import GradientField
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.intervals import at_boundary
from stemma.measures.pairwise import pairwise
from stemma.networks import build
from stemma.networks.open import from_module
from stemma.probes import Probes
from stemma.zoo import independents
from stemma.zoo.data import Examples, examples
from stemma.zoo.kinds import KINDS
from stemma.zoo.training import initial, logits, seed_for, train
from testbeds.measured import write_result

CONFIG = {"model_type": "stemma-cnn", "input_shape": [3, 32, 32], "classes": 10, "stem": 16, "widths": [16, 32, 64],
          "strides": [1, 2, 2]}  # fmt: skip
SEED, REPEATS, STEPS, REFERENCES = 11, 7, 50, 48
CHUNKS = (32, 64, 128, 256, 512)
STUDENTS = 48
RESULTS = Path(__file__).parent / "results" / "field_speed.json"

MEMORY = """
import sys, torch, numpy as np
torch.set_num_threads(1)
from stemma.fingerprints.gradient_field import GradientField
from stemma.networks import build
from stemma.networks.open import from_module
from stemma.probes import Probes
import json
config, count = json.loads(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = from_module(build(config).eval(), "m")
probes = Probes.of(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8))
for block in GradientField().blocks(model, probes):
    pass
status = open("/proc/self/status").read()  # getrusage would also count the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def alternate(jobs: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, dict[str, Any]]:
    """Median seconds of each job and the range, the jobs taking turns so that a slow moment meets all of them."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {n: {"median_s": statistics.median(v), "range_s": [min(v), max(v)], "all_s": v} for n, v in seconds.items()}


def ratio(times: Mapping[str, Mapping[str, Any]], a: str, b: str) -> dict[str, Any]:
    """How many times longer a takes than b: median over turns, and the range."""
    each = [x / y for x, y in zip(times[a]["all_s"], times[b]["all_s"], strict=True)]
    return {"median": statistics.median(each), "range": [min(each), max(each)]}


def bare(network: torch.nn.Module, points: int, batch: int, shape: tuple[int, ...]) -> None:
    """Nothing but forward and backward passes down to the inputs."""
    for done in range(0, points, batch):
        x = torch.rand(min(batch, points - done), *shape).requires_grad_()
        torch.autograd.grad(network(x)[:, 0].sum(), x)


def against_captum() -> dict[str, Any]:
    torch.manual_seed(SEED)
    network = build(CONFIG).eval()
    x = np.random.default_rng(SEED).random((REFERENCES, 3, 32, 32), np.float32)
    model, probes = from_module(network, "m"), Probes.of(x)
    inputs, chosen = torch.from_numpy(x), network(torch.from_numpy(x)).argmax(1)

    def theirs(chunk: int | None) -> torch.Tensor:
        return IntegratedGradients(network).attribute(
            inputs, target=chosen, n_steps=STEPS, method="gausslegendre", internal_batch_size=chunk
        )

    def ours(steps: int) -> None:
        method = GradientField.official(steps=steps) if steps == STEPS else GradientField(steps=steps)
        for _ in method.blocks(model, probes):
            pass

    points = STEPS * REFERENCES
    jobs: dict[str, Callable[[], object]] = {
        "field": lambda: ours(STEPS),
        "field_default": lambda: ours(GradientField.steps),
    }
    jobs["captum_all_at_once"] = lambda: theirs(None)
    jobs |= {f"captum_chunk_{c}": lambda c=c: theirs(c) for c in CHUNKS}
    jobs |= {f"bare_{b}": lambda b=b: bare(network, points, b, (3, 32, 32)) for b in (STEPS, 64, 128)}
    times = alternate(jobs)
    best = min((f"captum_chunk_{c}" for c in CHUNKS), key=lambda n: times[n]["median_s"])
    floor = min((n for n in times if n.startswith("bare_")), key=lambda n: times[n]["median_s"])
    same = GradientField.official()(model, probes).values["curve"][:, -1]
    attributed = theirs(64).detach().flatten(1).numpy()
    return {
        "references": REFERENCES, "steps": STEPS, "times": times, "best_chunk": best, "best_floor": floor,
        "largest_difference_of_end_points": float(np.abs(same - attributed).max() / np.abs(attributed).max()),
        "captum_default_over_field": ratio(times, "captum_all_at_once", "field"),
        "captum_best_over_field": ratio(times, best, "field"),
        "captum_default_over_default_field": ratio(times, "captum_all_at_once", "field_default"),
        "captum_best_over_default_field": ratio(times, best, "field_default"),
        "field_over_bare": ratio(times, "field", floor),
    }  # fmt: skip


def same_power() -> dict[str, Any]:
    """Students of one teacher against independent networks: what few steps see, and what captum's end points see."""
    kind = KINDS["cnn"]
    teacher = independents("cnn", 1, seed=SEED)[0]
    arrays = {n: t.array() for n, t in teacher.tensors.items()}
    seen = examples("cnn", "b").inputs
    answers = torch.from_numpy(logits(kind.config, [arrays], seen)[0]).softmax(1).numpy()
    starts = [initial(kind.config, seed_for(SEED, 1, i)) for i in range(STUDENTS)]
    runs = train(kind.config, starts, Examples(seen, answers), kind.schedule, list(range(STUDENTS)))
    students = [from_module(loaded(run[-1]), f"student-{i}") for i, run in enumerate(runs)]
    others = [from_module(loaded({n: t.array() for n, t in m.tensors.items()}), m.name)
              for m in independents("cnn", STUDENTS, seed=SEED + 1, part="b")]  # fmt: skip
    test = examples("cnn", "test")
    probes = Probes.of(test.inputs[:128], test.targets[:128])
    truth = np.array([1] * STUDENTS + [0] * STUDENTS)
    suspects = [*students, *others]
    out: dict[str, Any] = {"students": STUDENTS, "independents": STUDENTS, "references": len(probes)}
    for name, method, measure in (
        ("official_50", GradientField.official(), FieldCosine.official()),
        ("default", GradientField(), FieldCosine()),
        ("default_4", GradientField(steps=4), FieldCosine()),
    ):
        own = method(teacher, probes)
        far = np.array([measure(own, method(s, probes)).value for s in suspects])
        out[name] = auc(truth, -far)
    x, label = torch.from_numpy(probes.inputs), torch.from_numpy(test.targets[:128])
    ends = [IntegratedGradients(m.network.module).attribute(x, target=label, n_steps=STEPS, method="gausslegendre",
                                                            internal_batch_size=64).detach().flatten(1)
            for m in (teacher, *suspects)]  # fmt: skip
    near = [torch.cosine_similarity(ends[0], e).mean().item() for e in ends[1:]]
    out["captum_end_points_50"] = auc(truth, np.array(near))
    return out


def auc(truth: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Area under the ROC curve with a bootstrap interval over models."""
    rng = np.random.default_rng(SEED)
    own, other = score[truth == 1], score[truth == 0]
    drawn = [roc_auc_score(truth, np.concatenate([rng.choice(own, len(own)), rng.choice(other, len(other))]))
             for _ in range(1000)]  # fmt: skip
    value = float(roc_auc_score(truth, score))
    interval = at_boundary(tuple(np.quantile(drawn, [0.025, 0.975])), value, min(len(own), len(other)))
    return {"auc": value, "interval": list(interval)}


def loaded(arrays: Mapping[str, np.ndarray]) -> torch.nn.Module:
    network = build(KINDS["cnn"].config)
    network.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()})
    return network.eval()


def memory() -> dict[str, float]:
    """Peak resident memory of a fresh process that streams a field, by number of references."""
    out = {}
    for count in (32, 128, 512, 2048):
        done = subprocess.run([sys.executable, "-c", MEMORY, json.dumps(CONFIG), str(count)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        out[str(count)] = float(done.stdout)
    return out


def many() -> dict[str, Any]:
    """100 networks on 256 references without storing a field."""
    models: list[Model] = independents("cnn", 100, seed=SEED + 2)
    rows = examples("cnn", "test")
    probes = Probes.of(rows.inputs[:256], rows.targets[:256])
    for model in models:
        _ = model.network
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = pairwise(models, probes, GradientField(), FieldCosine())
    seconds = time.perf_counter() - start
    stored = 100 * 256 * GradientField.steps * 64 * 4 / 2**20
    return {
        "models": 100, "references": 256, "seconds": seconds, "pairs": 4950,
        "peak_rise_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "stored_fields_would_take_mb": stored,
        "distances_mb": found.per_probe.nbytes / 2**20, "mean": float(np.nanmean(found.values)),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__,
                    "captum": captum.__version__, "python": platform.python_version()},
        "seed": SEED, "many": many(), "memory_mb": memory(), "same_power": same_power(), "captum": against_captum(),
    }  # fmt: skip
    write_result(RESULTS, result)
    print(json.dumps({k: v for k, v in result["captum"].items() if k != "times"}, indent=1))
    print(json.dumps({k: result[k] for k in ("many", "memory_mb", "same_power")}, indent=1))


if __name__ == "__main__":
    main()
