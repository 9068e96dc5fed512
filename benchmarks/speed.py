"""How long a comparison takes, how much memory it needs, and how fast the command starts.

Generates Hugging Face folders (Llama layout, bfloat16) of 134 M and 1.1 B parameters: a base, a child (base plus
noise), a child whose units were reordered (noise on top) and an independent one. Each figure is taken in a fresh
process, beside what hashing both files takes in the same run; "decided" is the verdict before the relation is named.
Peak is resident memory as the system reports it.

Beside them, by processor time: a reordered text encoder, models of more than a thousand tensors without namesakes, a
trace among a hundred enrolled networks and the lineage of a hundred small ones (a few minutes; `--sizes` alone, without
a size, measures only these).

    python benchmarks/speed.py [--work FOLDER]     writes benchmarks/results/speed.json
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from testbeds.measured import methods, write_result
from testbeds.speed_cases import ALL as CASES

SHAPES = {
    "134M": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1.1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}
SEED, REPEATS = 5, 3

COMPARE = """
import json, resource, sys, time
start = time.perf_counter()
from stemma.checkpoints.load import load
from stemma.kinship.compare import compare
from pathlib import Path
c = compare(load(Path(sys.argv[1])), load(Path(sys.argv[2])))
print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time(),
                  "verdict": c.verdict, "log10_p": c.weights.log10_p,
                  "effect": c.weights.effect, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
DECIDE = """
import json, resource, sys, time
start = time.perf_counter()
from pathlib import Path
from stemma.checkpoints.load import load
from stemma.kinship.by_weights import compare_in_place, find_unit_map
from stemma.kinship.weights.shared_tensors import same_weights
from stemma.kinship.weights.decision import decide
a, b = (load(Path(p)) for p in sys.argv[1:3])
found, _ = compare_in_place(a, b, same_weights(a, b))
row, deciding = decide(found)
if row.name not in ("same digest", "contents in place"):
    deciding = find_unit_map(a, b).evidence
print(json.dumps({"seconds": time.perf_counter() - start, "decided_by": deciding.statistic,
                  "verdict": deciding.verdict.value, "effect": deciding.effect,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
DIGEST = """
import json, resource, sys, time
start = time.perf_counter()
from stemma.checkpoints.load import load
from pathlib import Path
load(Path(sys.argv[1])).digest
print(json.dumps({"seconds": time.perf_counter() - start,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def generate(folder: Path, config: dict[str, Any], seed: int, base: Path | None = None, noise: float = 0.3) -> None:
    """Write one model; a child is its base plus relative noise."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config})
    )
    names = shapes(config)
    header, at = {}, 0
    for name, shape in names.items():
        n = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    generator = np.random.default_rng(seed)
    source = None if base is None else (base / "model.safetensors").open("rb")
    if source is not None:
        source.seek(8 + len(raw))
    with (folder / "model.safetensors").open("wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for shape in names.values():
            size, scale = int(np.prod(shape)), 0.02
            for start in range(0, size, 1 << 22):
                n = min(1 << 22, size - start)
                x = generator.standard_normal(n, dtype=np.float32) * np.float32(scale)
                if source is not None:
                    old = (np.frombuffer(source.read(2 * n), "<u2").astype(np.uint32) << 16).view(np.float32)
                    x = old + np.float32(noise) * x
                f.write(((x.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes())


def reorder(
    source: Path, folder: Path, config: dict[str, Any], seed: int, noise: float = 0.03, scale: float = 1.0
) -> None:
    """Write a model with its stream and gated units in another order, and relative noise on top.

    The stream before every norm may have another scale: the norms divide it out again.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((source / "config.json").read_text())
    raw = np.memmap(source / "model.safetensors", dtype=np.uint8, mode="r")
    length = int(raw[:8].view("<u8")[0])
    rng, gated = np.random.default_rng(seed), {}
    stream = rng.permutation(config["hidden_size"])
    with (folder / "model.safetensors").open("wb") as f:
        f.write(bytes(raw[: 8 + length]))
        for name, entry in json.loads(bytes(raw[8 : 8 + length])).items():
            first, last = entry["data_offsets"]
            x = raw[8 + length + first : 8 + length + last].view("<u2").reshape(entry["shape"])
            if "mlp" in name:
                layer = name.split(".")[2]
                units = gated.setdefault(layer, rng.permutation(config["intermediate_size"]))
                x = x[:, units] if "down" in name else x[units]
            x = x[stream] if x.ndim == 1 or name.endswith(("o_proj.weight", "down_proj.weight")) else x[:, stream]
            for rows in np.array_split(x, max(1, x.size // (1 << 22))):
                y = (rows.astype(np.uint32) << 16).view(np.float32)
                if y.ndim > 1:
                    y = y + np.float32(noise * 0.02) * rng.standard_normal(y.shape, dtype=np.float32)
                if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                    y = y * np.float32(scale)
                f.write(((np.ascontiguousarray(y).view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes())


def shapes(c: dict[str, Any]) -> dict[str, list[int]]:
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    k = d // c["num_attention_heads"] * c["num_key_value_heads"]
    out = {"model.embed_tokens.weight": [v, d]}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {
            p + name: shape
            for name, shape in {
                "input_layernorm.weight": [d],
                "mlp.down_proj.weight": [d, f],
                "mlp.gate_proj.weight": [f, d],
                "mlp.up_proj.weight": [f, d],
                "post_attention_layernorm.weight": [d],
                "self_attn.k_proj.weight": [k, d],
                "self_attn.o_proj.weight": [d, d],
                "self_attn.q_proj.weight": [d, d],
                "self_attn.v_proj.weight": [k, d],
            }.items()
        }
    out["model.norm.weight"] = [d]
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": [v, d]}


def hashing(*folders: Path) -> float:
    """Seconds to hash the files one after the other, as `sha256sum` does."""
    start = time.perf_counter()
    for folder in folders:
        with (folder / "model.safetensors").open("rb", buffering=0) as f:
            hashlib.file_digest(f, "sha256")
    return time.perf_counter() - start


def fresh(code: str, *args: Path | str) -> dict[str, Any]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # as the command line sets it
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def start_up(command: list[str]) -> float:
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


def size_study(work: Path, name: str) -> dict[str, Any]:
    config, out = SHAPES[name], {}
    base, child, other, moved = (work / name / part for part in ("base", "child", "independent", "reordered"))
    if not moved.exists():
        generate(base, config, SEED)
        generate(child, config, SEED + 1, base)
        generate(other, config, SEED + 2)
        reorder(base, moved, config, SEED + 3)
    hashing(base, child, other, moved)  # warm the page cache
    for label, code, pair in (
        ("decided in place", DECIDE, (base, child)), ("decided reordered", DECIDE, (base, moved)),
        ("related", COMPARE, (base, child)), ("reordered", COMPARE, (base, moved)),
        ("independent", COMPARE, (base, other)),
    ):  # fmt: skip
        runs = []
        for _ in range(REPEATS if code is DECIDE else 1):  # naming takes a minute and is not what is compared
            spent, reference = time.process_time(), hashing(*pair)
            spent = time.process_time() - spent
            run = fresh(code, *pair)
            ratios = {"ratio": run["seconds"] / reference}
            if "cpu_seconds" in run:
                ratios["cpu_ratio"] = run["cpu_seconds"] / spent
            runs.append({**run, "hashing_both_seconds": reference, **ratios})
        out[label] = median(runs)
    runs = []
    for _ in range(REPEATS):
        reference = hashing(base)
        run = fresh(DIGEST, base)
        runs.append({**run, "hashing_seconds": reference, "speed_against_hashing": reference / run["seconds"]})
    out["read_and_digest"] = median(runs)
    out["parameters"] = sum(int(np.prod(s)) for s in shapes(config).values())
    print(name, json.dumps(out), flush=True)
    return out


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        k: round(statistics.median([r[k] for r in runs]), 3) if isinstance(runs[0][k], float) else runs[0][k]
        for k in runs[0]
    } | {"runs": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=None, help="keep the generated models here")
    parser.add_argument("--sizes", nargs="*", default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    args = parser.parse_args()
    from stemma import __version__

    result: dict[str, Any] = {
        "version": __version__,
        "measured_with": methods(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": SEED,
        "load_before": os.getloadavg()[0],
        "sizes": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for name in args.sizes:
            result["sizes"][name] = size_study(work, name)
        result["cases"] = {name: case(work / name.replace(" ", "_")) for name, case in CASES.items()}
    if args.out.exists() and set(args.sizes) < set(SHAPES):  # what was not measured again is kept
        result["sizes"] = {**json.loads(args.out.read_text())["sizes"], **result["sizes"]}
    bin = Path(sys.executable).parent / "stemma"
    result["help_seconds"] = start_up([str(bin), "--help"])
    result["import_seconds"] = start_up([sys.executable, "-c", "import stemma"])
    result["python_seconds"] = start_up([sys.executable, "-c", "pass"])
    result["load_after"] = os.getloadavg()[0]
    result["own_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    write_result(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "sizes"}))


if __name__ == "__main__":
    main()
