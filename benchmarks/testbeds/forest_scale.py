"""How long a forest takes: small trained networks, and simulated families up to ten thousand."""

import resource
import time
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.networks.load import from_arrays
from stemma.workspace.forest import lineage

SIZES, LARGEST = (100, 300, 1000, 3000), 10_000
FAMILY = 20
LAYERS = ((32, 32), (32, 32), (24, 32), (10, 24))


def simulated(count: int, seed: int = 0) -> tuple[list[Model], dict[str, str]]:
    """Families of twenty: a random root, and children that add what is at right angles to everything.

    Returns:
        Models, and each child's parent.
    """
    rng = np.random.default_rng([seed, count])
    models, parent = [], {}
    for family in range(-(-count // FAMILY)):
        made: list[dict[str, np.ndarray]] = []
        for i in range(min(FAMILY, count - family * FAMILY)):
            name = f"f{family:04d}/{i:02d}"
            if i:
                above = int(rng.integers(max(0, (i - 1) // 4), (i - 1) // 4 + 1))
                parent[name] = f"f{family:04d}/{above:02d}"
                base, change = made[above], rng.uniform(0.25, 0.5)
            else:
                base, change = {f"layers.{k}.weight": np.zeros(s, np.float32) for k, s in enumerate(LAYERS)}, 1.0
            own = {n: (w + change * rng.normal(size=w.shape) / 8).astype(np.float32) for n, w in base.items()}
            made.append(own)
            models.append(from_arrays(own, name))
    return models, parent


def scaling() -> dict[str, Any]:
    rows = [measured(size) for size in SIZES]
    first, last = rows[0], rows[-1]
    growth = np.log(last["cpu_seconds"] / first["cpu_seconds"]) / np.log(last["models"] / first["models"])
    return {"family": FAMILY, "sizes": rows, "exponent": round(float(growth), 3)}


def largest() -> dict[str, Any]:
    return measured(LARGEST)


def measured(size: int) -> dict[str, Any]:
    models, parent = simulated(size)
    start, cpu = time.perf_counter(), time.process_time()
    found = lineage(models, detailed=0)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    told = {(e.parent, e.child) for e in found.edges}
    right = len(told & {(p, c) for c, p in parent.items()})
    return {
        "models": size, "seconds": round(seconds, 2), "cpu_seconds": round(used, 2),
        "milliseconds_per_model": round(1000 * used / size, 2),
        "f1": round(2 * right / (len(told) + len(parent)), 4),
        "families": sum(len(f) > 1 for f in found.families),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
