"""Speed-up of enrolment on one and two workers of a real Dask and a real Ray cluster on this machine.

    python benchmarks/cluster.py [--models 96] [--megabytes 8] [--repeats 3] [--kinds dask ray]
                                 [--out benchmarks/results/cluster.json]

Models are random float32 matrices (seed 20261130) in a temporary folder. Each run enrols all of them into a new
registry; the first run on a cluster is not counted, for its workers import Stemma then. Digests are compared with those
of a run without a cluster. The least time of the repeats counts. Needs two idle cores at least: with the command itself
there are three processes. About four minutes; with `--models 12 --repeats 1` half a minute.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from stemma import __version__
from stemma.registry import Registry
from stemma.workspace import Workspace
from testbeds.measured import write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from clusters import dask_cluster, ray_cluster

SEED = 20261130


def make_models(folder: Path, models: int, megabytes: float) -> None:
    """Write checkpoints of one matrix shape."""
    rng = np.random.default_rng(SEED)
    rows = max(64, int(megabytes * 1e6 / 4 / 4 / 512))
    for k in range(models):
        tensors = {f"layer{i}.weight": rng.standard_normal((rows, 512), dtype=np.float32) for i in range(4)}
        save_file(tensors, folder / f"m{k:04d}.safetensors")


def enrolled(folder: Path, cluster: str | None) -> tuple[float, list[str]]:
    """Seconds to enrol all models into a new registry, and their digests."""
    with tempfile.TemporaryDirectory() as where, Registry(Path(where) / "registry.db") as registry:
        os.environ["STEMMA_CACHE"] = where  # nothing is known from an earlier run
        start = time.perf_counter()
        results = Workspace(registry, cluster=cluster).add([folder])
        seconds = time.perf_counter() - start
        assert all(result.status == "added" for result in results)
        return seconds, [str(result.digest) for result in results]


@contextlib.contextmanager
def started(kind: str, workers: int) -> Iterator[str]:
    """A cluster of one kind."""
    if kind == "ray":
        with ray_cluster(workers) as address:
            yield address
    else:
        with tempfile.TemporaryDirectory() as where, dask_cluster(Path(where), workers) as address:
            yield address


def measured(folder: Path, kind: str, workers: int, repeats: int, truth: list[str]) -> dict[str, Any]:
    """Times on a cluster of so many workers."""
    with started(kind, workers) as address:
        enrolled(folder, address)
        runs = [enrolled(folder, address) for _ in range(repeats)]
    return {
        "seconds": [round(seconds, 3) for seconds, _ in runs],
        "same_digests": all(digests == truth for _, digests in runs),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=96)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["dask", "ray"], choices=["dask", "ray"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cluster.json")
    given = parser.parse_args()
    found: dict[str, Any] = {
        "version": __version__, "seed": SEED, "models": given.models, "megabytes": given.megabytes,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}", "clusters": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        make_models(folder, given.models, given.megabytes)
        runs = sorted(enrolled(folder, None) for _ in range(given.repeats))
        alone, truth = runs[len(runs) // 2]
        found["alone_seconds"] = round(alone, 3)
        for kind in given.kinds:
            times = {n: measured(folder, kind, n, given.repeats, truth) for n in (1, 2)}
            speed_up = median(times[1]["seconds"]) / median(times[2]["seconds"])
            found["clusters"][kind] = {"workers": times, "speed_up": round(speed_up, 2)}
            print(kind, json.dumps(found["clusters"][kind]), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(given.out, found)


if __name__ == "__main__":
    main()
