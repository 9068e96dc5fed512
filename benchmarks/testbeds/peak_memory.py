"""Peak memory and time of one child under one form, beside an explicit Jacobian: each in a process of its own.

python benchmarks/testbeds/peak_memory.py FORM PROBES      prints megabytes above the idle process, and seconds
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

FORMS = ("plain", "taylor", "linear", "linear-16", "explicit")
"""`linear-16` takes sixteen children at once, as many as the library does; the others one."""
CONFIG = {"model_type": "stemma-cnn", "input_shape": [1, 8, 8], "classes": 10, "stem": 16, "widths": [16, 32, 32],
          "strides": [2, 2, 1]}  # fmt: skip
"""The zoo's CNN: about 40,000 parameters, 32 features."""


def measured(form: str, probes: int) -> dict[str, Any]:
    """One form in a fresh process."""
    done = subprocess.run([sys.executable, __file__, form, str(probes)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(form: str, count: int) -> dict[str, Any]:
    """Peak resident memory above what the process held before, in MB, and the time of all pairs."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import numpy as np

    from stemma.kinship.function.finetuning_approximation import FineTuningApproximation
    from stemma.kinship.function.network_body import body_up_to
    from stemma.probes import Probes
    from stemma.zoo.memory import model_of
    from stemma.zoo.training import initial

    parent, child = (model_of(f"m{i}", initial(CONFIG, i), CONFIG) for i in (0, 1))
    probes = Probes.of(np.random.default_rng(0).random((count, 1, 8, 8)).astype(np.float32))

    def run(asked: Probes) -> None:
        if form == "explicit":
            _explicit(parent, child, asked)
        else:
            name, _, children = form.partition("-")
            FineTuningApproximation(name)(parent, [child] * int(children or 1), asked)

    run(probes.take(range(2)))  # what is imported and built once
    idle, start = highest(), time.perf_counter()
    run(probes)
    seconds, peak = time.perf_counter() - start, highest()
    made = body_up_to(parent, probes)
    parameters = sum(t.numel() for t in made.parameters.values())
    features = int(made.features_of_all(probes.take(range(2)), 2).shape[1])
    return {
        "megabytes": round((peak - idle) / 1024, 1), "seconds": round(seconds, 3), "parameters": parameters,
        "features": features,
    }  # fmt: skip


def highest() -> int:
    """Peak resident memory of this process in KiB.

    Where the system tells it, that since the program was loaded: the other figure begins with the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _explicit(parent: Any, child: Any, probes: Any) -> Any:
    """The linear step by way of the whole Jacobian, filled 64 rows at a time."""
    import torch
    from torch.func import jacrev

    from stemma.kinship.function.network_body import body_up_to, difference

    p = body_up_to(parent, probes)
    added = difference(p, body_up_to(child, probes))
    inputs = p.inputs(probes, 0, len(probes))
    jacobian = jacrev(lambda w: p.features(inputs, w), chunk_size=64)(p.parameters)
    return sum(torch.tensordot(jacobian[n], added[n], dims=added[n].ndim) for n in added)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
