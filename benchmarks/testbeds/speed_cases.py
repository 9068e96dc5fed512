"""Pairs and collections whose cost is kept: what a comparison, a trace and a lineage of them take of the processor."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from stemma.architectures.unit_groups import permute, structure
from stemma.networks.load import from_arrays

ENCODER = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip
SEARCHED, SMALL = (784, 2048, 2048, 1536, 10), (64, 96, 64, 10)
MANY, FAMILY, SEED = 1200, 4, 7

COMPARE = """
import json, resource, sys
from pathlib import Path
from stemma.checkpoints.load import load
from stemma.kinship.compare import compare
c = compare(load(Path(sys.argv[1])), load(Path(sys.argv[2])))
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next((int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")), 0)
print(json.dumps({"cpu_seconds": used.ru_utime + used.ru_stime, "verdict": c.verdict,
                  "relation": c.relation.kind.value, "peak_mb": peak / 1024}))
"""

Arrays = dict[str, np.ndarray]


def encoder(seed: int, c: dict[str, Any] = ENCODER) -> Arrays:
    """Random weights of a small text encoder."""
    rng, d, inner = np.random.default_rng(seed), c["hidden_size"], c["intermediate_size"]

    def linear(name: str, rows: int, columns: int) -> Arrays:
        weight = (0.02 * rng.standard_normal((rows, columns))).astype(np.float32)
        return {f"{name}.weight": weight, f"{name}.bias": (0.02 * rng.standard_normal(rows)).astype(np.float32)}

    def norm(name: str) -> Arrays:
        found = linear(name, d, 1)
        return {f"{name}.weight": 1 + found[f"{name}.weight"][:, 0], f"{name}.bias": found[f"{name}.bias"]}

    out: Arrays = {}
    sizes = {"word": c["vocab_size"], "position": c["max_position_embeddings"], "token_type": 2}
    for name, rows in sizes.items():
        out[f"embeddings.{name}_embeddings.weight"] = linear("x", rows, d)["x.weight"]
    out |= norm("embeddings.LayerNorm") | linear("pooler.dense", d, d)
    for i in range(c["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            out |= linear(f"{p}attention.self.{part}", d, d)
        out |= linear(f"{p}attention.output.dense", d, d) | norm(f"{p}attention.output.LayerNorm")
        out |= linear(f"{p}intermediate.dense", inner, d) | linear(f"{p}output.dense", d, inner)
        out |= norm(f"{p}output.LayerNorm")
    return out


def perceptron(seed: int, sizes: tuple[int, ...]) -> Arrays:
    """Random weights of a perceptron."""
    rng, out = np.random.default_rng(seed), {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        out[f"layers.{i}.weight"] = (rng.standard_normal((m, n)) / n**0.5).astype(np.float32)
        out[f"layers.{i}.bias"] = (0.1 * rng.standard_normal(m)).astype(np.float32)
    return out


def noisy(arrays: Arrays, noise: float, seed: int) -> Arrays:
    """The same with noise relative to each tensor's spread."""
    rng = np.random.default_rng(seed)
    return {n: (x + noise * x.std() * rng.standard_normal(x.shape)).astype(np.float32) for n, x in arrays.items()}


def nameless(seed: int, count: int, side: int) -> Arrays:
    """Many small matrices that no name of another model fits, and few sizes."""
    rng = np.random.default_rng(seed)
    widths = [24] if side == 0 else [40, 32]
    return {f"{'ab'[side]}{i}": rng.standard_normal((16, widths[i % len(widths)])).astype(np.float32)
            for i in range(count)}  # fmt: skip


def kept(folder: Path, arrays: Arrays, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, str(folder / "model.safetensors"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder if config is not None else folder / "model.safetensors"


def used(code: str, *args: Path | str) -> dict[str, Any]:
    """What a fresh process prints, which is one JSON document."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True,
                          env=environment)  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def command(*args: Path | str) -> dict[str, Any]:
    """Processor seconds of one command, and the verdict that it prints, where it prints one."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", "from stemma.cli import main; main()", *map(str, args)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    told = json.loads(done.stdout) if "--json" in args else {}
    return {"cpu_seconds": round(spent, 2)} | ({"verdict": told["verdict"]} if "verdict" in told else {})


def reordered(work: Path) -> dict[str, Any]:
    """A text encoder of 22 million parameters with its heads, units and stream in another order, and renamed."""
    arrays = encoder(SEED)
    known = structure(from_arrays(arrays, "base", ENCODER))
    rng = np.random.default_rng(SEED)
    moved = permute(arrays, known, {g.name: rng.permutation(g.size) for g in known.groups if g.exchangeable})
    base = kept(work / "encoder", arrays, ENCODER)
    lost = {f"t{i}": x for i, x in enumerate(moved.values())}
    return {
        "names kept": used(COMPARE, base, kept(work / "moved", noisy(moved, 0.03, 1), ENCODER)),
        "names lost": used(COMPARE, base, kept(work / "lost", lost)),
    }


def many_tensors(work: Path) -> dict[str, Any]:
    """Two models of many tensors without namesakes; and two of a quarter as many, which should cost a quarter."""
    out = {}
    for count in (MANY // 4, MANY):
        a, b = (kept(work / f"{side}{count}", nameless(side, count, side)) for side in (0, 1))
        out[str(count)] = used(COMPARE, a, b)
    return out


def searched(work: Path) -> dict[str, Any]:
    """A network of ten million parameters among a hundred enrolled ones: its parent is there, or is not."""
    hub, registry = work / "hub", f"sqlite:///{work / 'registry.db'}"
    hub.mkdir(parents=True, exist_ok=True)
    for i in range(100):
        save_file(perceptron(i, SEARCHED), str(hub / f"m{i:03}.safetensors"))
    child = kept(work / "child", noisy(perceptron(SEED, SEARCHED), 0.02, 1))
    stranger = kept(work / "stranger", perceptron(1000, SEARCHED))
    return {
        "enrol 100": command("add", hub, "--registry", registry),
        "child": command("trace", child, "--registry", registry, "--json"),
        "stranger": command("trace", stranger, "--registry", registry, "--json"),
    }


def families(work: Path) -> dict[str, Any]:
    """The lineage of a hundred small networks in families of four."""
    folder = work / "small"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(100):
        base = perceptron(i - i % FAMILY, SMALL)
        save_file(noisy(base, 0.05, i) if i % FAMILY else base, str(folder / f"s{i:03}.safetensors"))
    return command("lineage", folder, "--json")


ALL: dict[str, Callable[[Path], dict[str, Any]]] = {
    "reordered encoder of 22 M": reordered, "tensors without namesakes": many_tensors, "trace among 100": searched,
    "lineage of 100": families,
}  # fmt: skip
