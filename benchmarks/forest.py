"""Family trees of many models: how much of them is recovered, with and without all ancestors; and what it costs.

    python benchmarks/forest.py [--part NAME]... [--zoo FOLDER]

writes benchmarks/results/forest.json, part by part: those that are not asked for stay as they were. `selection` scores
the choices that were made, on families of its own; `trees` draws one forest from all test trees at once, whole and with
inner models removed, beside simpler methods; `light` repeats that where children were hardly trained, on few tasks;
`real` draws the published checkpoints in FOLDER (with its truth.json), as they are and disguised; `scale` and
`scale_10000` measure the time by the number of models, simulated ones.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stemma import __version__
from testbeds.forest_scale import largest, scaling
from testbeds.forest_trees import light, selected, whole_and_cut
from testbeds.forest_zoo import published
from testbeds.measured import stamp

RESULTS = Path(__file__).parent / "results" / "forest.json"


def parts(zoo: Path | None) -> dict[str, Callable[[], dict[str, Any]]]:
    out: dict[str, Callable[[], dict[str, Any]]] = {
        "selection": selected, "trees": whole_and_cut, "light": light, "scale": scaling,
        "scale_10000": largest,
    }  # fmt: skip
    if zoo is not None:
        out["real"] = lambda: published(zoo)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", action="append", choices=["selection", "trees", "light", "real", "scale", "scale_10000"]
    )
    parser.add_argument("--zoo", type=Path, help="the folder of published checkpoints, for `real`")
    options = parser.parse_args()
    known = parts(options.zoo)
    for name in options.part or known:
        if name not in known:
            parser.error(f"--part {name} needs --zoo FOLDER")
        start = time.perf_counter()
        part = {**known[name](), "seconds": round(time.perf_counter() - start, 1)}
        result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        RESULTS.write_text(
            json.dumps({**result, **stamp("forest"), "machine": machine, "version": __version__, name: part}, indent=1)
            + "\n"
        )
        sys.stderr.write(f"{name}: {part['seconds']} s\n")


if __name__ == "__main__":
    main()
