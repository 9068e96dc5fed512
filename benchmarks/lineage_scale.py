"""How the lineage of a registry grows with the number of models, and what a few new models cost.

    python benchmarks/lineage_scale.py [--sizes 1000 3000 10000] [--new 20]

writes benchmarks/results/lineage_scale.json (with the defaults about half an hour on one core). The models are
simulated families of twenty (`testbeds.forest_scale`), in memory. Per size: the whole lineage, then the lineage with
`--new` more models that was brought up to date (`update_lineage`), beside the one that was drawn from scratch with
them (not beyond `--compare` models). The growth exponent is the slope between the first and the last size in
processor time.
"""

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.types import Lineage
from stemma.workspace.forest import lineage
from stemma.workspace.incremental_forest import update_lineage
from testbeds.forest_scale import simulated
from testbeds.measured import write_result


def outline(found: Lineage) -> tuple[Any, ...]:
    """What two lineages must agree in.

    Returns:
        Edges with their relations, roots, families, what is missing and what was not tested.
    """
    edges = [(e.parent, e.child, e.relation) for e in found.edges]
    missing = [m["children"] for m in found.missing_ancestors]
    return edges, found.roots, found.families, missing, found.not_tested


def measured(size: int, new: int, *, compare: bool) -> dict[str, Any]:
    """Seconds of one size.

    Returns:
        Processor seconds of the whole, of the update, and whether both agree.
    """
    models, _ = simulated(size + new)
    start = time.process_time()
    before = lineage(models[:size], detailed=0)
    whole = time.process_time() - start
    start = time.process_time()
    after = update_lineage(before, models, detailed=0)
    update = time.process_time() - start
    row = {
        "models": size, "new": new, "cpu_seconds": round(whole, 2), "ms_per_model": round(1e3 * whole / size, 2),
        "update_cpu_seconds": round(update, 2), "kept": len(after.kept),
    }  # fmt: skip
    if compare:
        row["update_equals_whole"] = outline(after.lineage) == outline(lineage(models, detailed=0))
    return row


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--compare", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lineage_scale.json")
    options = parser.parse_args()
    sizes: list[dict[str, Any]] = []
    for size in options.sizes:
        sizes.append(measured(size, options.new, compare=size <= options.compare))
        first, last = sizes[0], sizes[-1]
        times, ratio = last["cpu_seconds"] / first["cpu_seconds"], last["models"] / first["models"]
        growth = np.log(times) / np.log(ratio) if ratio > 1 else 0.0
        result = {
            "version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
            "sizes": sizes, "last": last, "exponent": round(float(growth), 3) if len(sizes) > 1 else None,
        }  # fmt: skip
        write_result(options.out, result)


if __name__ == "__main__":
    main()
