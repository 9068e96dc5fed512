"""Real clusters on this machine for tests and benchmarks: started as anybody starts them, and always ended."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOURCES = os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("src", "tests"))
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": SOURCES,
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s",
}


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[str]:
    """A scheduler and its workers as processes of their own; yields the scheduler file."""
    file = folder / "scheduler.json"
    started: list[subprocess.Popen] = []

    def start(module: str, *words: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *words, "--no-dashboard"]
        with (folder / f"{module}{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        started.append(process)

    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        wait_until(lambda: file.exists() and bool(file.read_text()))
        address = json.loads(file.read_text())["address"]
        for i in range(workers):
            start("dask_worker", address, "--nthreads", "1", "--local-directory", str(folder / f"worker{i}"))
        yield str(file)
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # of its own session: nannies and workers are in it
            process.wait()


@contextlib.contextmanager
def ray_cluster(nodes: int = 2) -> Iterator[str]:
    """A Ray head and further nodes, one core each; yields the address."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = SOURCES
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster()
    try:
        for _ in range(nodes):
            _add_node(cluster, small)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")  # one connection for all of a test
        yield f"ray:{cluster.address}"
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _add_node(cluster: Any, options: dict[str, Any], tries: int = 3) -> None:
    """Add a node; a busy machine may need more than the half minute that Ray gives it, so it is tried again."""
    for left in reversed(range(tries)):
        try:
            cluster.add_node(**options)
            return
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise


def _end_with_parent() -> None:
    """A test that is killed leaves no cluster behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)
