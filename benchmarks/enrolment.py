"""What enrolment costs beside reading and hashing, per model and per tensor.

    python benchmarks/enrolment.py [--models 1000] [--tensors 100000]

writes benchmarks/results/enrolment.json (three minutes). `throughput` adds that many checkpoints of 1 MB to an empty
registry, in one process, and compares with reading and hashing the files (SHA-256) in one process; `tensors` adds one
file of that many tensors of 64 bytes. Both wall-clock and processor time are given, the median of three runs; the files
are in the page cache.
"""

import argparse
import hashlib
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from safetensors.numpy import save_file

from stemma import __version__
from stemma.registry import Registry
from stemma.workspace import Workspace
from testbeds.measured import write_result

SEED, RUNS = 20261130, 3
LAYERS = ((784, 256), (256, 128), (128, 64), (64, 64), (64, 64), (64, 10))


def checkpoints(folder: Path, count: int) -> None:
    """Perceptrons of 1 MB with weights of their own."""
    for i in range(count):
        rng = np.random.default_rng([SEED, i])
        arrays: dict[str, np.ndarray] = {}
        for k, (inputs, outputs) in enumerate(LAYERS):
            weight = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
            arrays[f"net.{2 * k}.weight"] = weight.astype(np.float32)
            arrays[f"net.{2 * k}.bias"] = (0.01 * rng.standard_normal(outputs)).astype(np.float32)
        save_file(arrays, folder / f"m{i:05d}.safetensors")


def many_tensors(file: Path, count: int) -> None:
    """One file of tensors of 64 bytes."""
    rng = np.random.default_rng(SEED)
    arrays = {f"layers.{i // 8}.part{i % 8}.weight": x for i, x in enumerate(rng.standard_normal((count, 4, 4)))}
    save_file({n: x.astype(np.float32) for n, x in arrays.items()}, file)


def typical(work: Callable[[int], int]) -> tuple[float, float]:
    """The median wall-clock and processor seconds of some runs.

    Returns:
        Both.
    """
    wall, cpu = [], []
    for run in range(RUNS):
        start, used = time.perf_counter(), time.process_time()
        work(run)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return median(wall), median(cpu)


def measured(path: Path, files: list[Path], home: Path) -> dict[str, Any]:
    """Seconds of hashing and of adding.

    Returns:
        Both, wall-clock and processor, with the ratios.
    """
    hashing = typical(lambda run: sum(len(hashlib.sha256(f.read_bytes()).digest()) for f in files))

    def add(run: int) -> int:
        with Registry(home / f"{path.name}-{run}.db") as registry:
            added = Workspace(registry, jobs=1).add([path])
        assert all(r.status == "added" for r in added), added
        return len(added)

    adding = typical(add)
    return {
        "hash_seconds": round(hashing[0], 3), "hash_cpu_seconds": round(hashing[1], 3),
        "add_seconds": round(adding[0], 3), "add_cpu_seconds": round(adding[1], 3),
        "ratio": round(adding[0] / hashing[0], 2), "cpu_ratio": round(adding[1] / hashing[1], 2),
        "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "enrolment.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "models").mkdir()
        checkpoints(home / "models", options.models)
        many_tensors(home / "many.safetensors", options.tensors)
        warm = home / "warm.safetensors"
        many_tensors(warm, 100)
        with Registry(home / "warm.db") as registry:  # what is loaded on first use is no cost of a model
            Workspace(registry, jobs=1).add([warm])
        throughput = measured(home / "models", sorted((home / "models").iterdir()), home)
        tensors = measured(home / "many.safetensors", [home / "many.safetensors"], home)
    result = {
        "seed": SEED, "version": __version__,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}",
        "throughput": {"models": options.models, **throughput,
                       "add_ms_per_model": round(1e3 * throughput["add_seconds"] / options.models, 2)},
        "tensors": {"tensors": options.tensors, **tensors,
                    "us_per_tensor": round(1e6 * tensors["add_seconds"] / options.tensors, 1),
                    "cpu_us_per_tensor": round(1e6 * tensors["add_cpu_seconds"] / options.tensors, 1)},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    write_result(options.out, result)


if __name__ == "__main__":
    main()
