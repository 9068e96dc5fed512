"""What `compare --probes` costs beside the bare passes that its methods need: CPU time, passes and memory.

Two language models with words of a large vocabulary and two control models of the same kind, 32 probes of 64 tokens.
The bare passes of one model are: its outputs once, forward and backward once per node of the default field, and the
three perturbed inputs of Model DNA once, in the same batches and without anything else. Both are timed in one process,
alternately, so that their ratio does not depend on the machine; memory is that of a fresh process that only compares.

    python benchmarks/asked_once.py     writes benchmarks/results/asked_once.json
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import stemma
from stemma.checkpoints.model import Model
from stemma.fingerprints.gradient_field import GradientField
from stemma.networks import language_model
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.probes.augmentation import perturb
from testbeds.measured import machine, write_result

CONFIG = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 24, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip
PROBES, LENGTH, CONTROLS, REPEATS = 32, 64, 2, 3
RESULTS = Path(__file__).parent / "results" / "asked_once.json"


def made(seed: int) -> Model:
    """A language model of numbers drawn at random."""
    torch.manual_seed(seed)
    module = language_model.LanguageModel(CONFIG)
    return from_arrays({n: t.detach() for n, t in module.state_dict().items()}, f"net{seed}", config=CONFIG)


def asked() -> Probes:
    """Token probes."""
    return Probes.of(np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (PROBES, LENGTH)))


def compared(models: list[Model], probes: Probes) -> None:
    """What is measured."""
    stemma.compare(*models[:2], probes=probes, null=models[2:])


def bare(models: list[Model], probes: Probes) -> None:
    """The passes alone."""
    steps = GradientField().steps
    for model in models:
        network = model.network
        tokens = torch.from_numpy(np.array(probes.inputs))
        with torch.no_grad():
            for inputs in (tokens, *(torch.from_numpy(np.array(x)) for x in perturb(probes, 0))):
                for part in inputs.split(16):
                    network(part)
        for part in tokens.split(2):
            whole = torch.nn.functional.one_hot(part, CONFIG["vocab_size"]).float().repeat(steps, 1, 1)
            leaf = whole.requires_grad_()
            torch.autograd.grad(network.relaxed(leaf).log_softmax(-1)[..., 0].sum(), leaf)


def cpu(work, *given: object) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work(*given)
    return time.process_time() - start


def peak_kib() -> int:
    """Largest resident memory since this program began; `ru_maxrss` would count what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    torch.set_num_threads(1)
    probes = asked()
    if sys.argv[1:] == ["memory"]:
        models = [made(s) for s in range(2 + CONTROLS)]
        before = peak_kib()
        compared(models, probes)
        print(json.dumps([before, peak_kib()]))
        return
    one, other = [], []
    for _ in range(REPEATS):
        models = [made(s) for s in range(2 + CONTROLS)]
        one.append(cpu(compared, models, probes))
        other.append(cpu(bare, models, probes))
    fresh = subprocess.run([sys.executable, __file__, "memory"], capture_output=True, text=True, check=True)
    before, peak = json.loads(fresh.stdout.splitlines()[-1])
    result = {
        "machine": machine(),
        "models": 2 + CONTROLS, "parameters": made(0).parameters, "probes": PROBES, "length": LENGTH,
        "cpu_seconds": round(float(np.median(one)), 2), "bare_cpu_seconds": round(float(np.median(other)), 2),
        "ratio": round(float(np.median(np.array(one) / other)), 2),
        "ratios": [round(a / b, 2) for a, b in zip(one, other, strict=True)],
        "mib_before": before // 1024, "peak_mib": peak // 1024,
    }  # fmt: skip
    write_result(RESULTS, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
