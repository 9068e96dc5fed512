"""What reading a model on a server costs: bytes, requests and seconds, for enrolling and tracing it.

    python benchmarks/remote.py [--cases small 7B] [--out benchmarks/results/remote.json]

writes benchmarks/results/remote.json (a quarter of an hour, 30 GB of disk; needs the extra `hub`). A hub on this
machine serves the child of a model that lies on disk: `small` is a Llama of 300 million parameters, `7B` one of seven
billion, both with content everywhere. Sample and disk give a verdict each; the small one is also asked about a
stranger. A second trace shows what the cache saves.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from safetensors.numpy import save_file

import hub_server
from large_models import LLAMA, generate, llama
from sparse_models import LLAMA_7B, shapes_of
from testbeds.measured import methods, write_result

SEED, NOISE = 20261201, 0.2
SMALL = {**LLAMA_7B, "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 20, "num_attention_heads": 16,
         "num_key_value_heads": 16}  # fmt: skip


def dense(folder: Path, seed: int, base: Path | None = None) -> None:
    """A dense small Llama in float16, or a base with noise on it."""
    from safetensors.numpy import load_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMALL))
    draw = np.random.default_rng(seed)
    known = load_file(base / "model.safetensors") if base else {}
    arrays = {}
    for name, shape in shapes_of(SMALL).items():
        fresh = draw.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32(len(shape) == 1)
        x = known[name].astype(np.float32) + np.float32(NOISE) * fresh if base else fresh
        arrays[name] = x.astype(np.float16)
    save_file(arrays, folder / "model.safetensors")


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def measured(case: str, place: Path) -> dict[str, Any]:
    """Enrol and trace one child on the hub.

    Returns:
        Bytes, requests, seconds and verdicts.
    """
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    if case == "7B":
        generate(place / "parent", llama(LLAMA["7B"]), SEED, LLAMA_7B)
        generate(place / "child", llama(LLAMA["7B"]), SEED + 1, LLAMA_7B, parent=str(place / "parent"))
    else:
        dense(place / "parent", SEED)
        dense(place / "child", SEED + 1, place / "parent")
        dense(place / "stranger", SEED + 2)
    os.environ["STEMMA_CACHE"], os.environ["HF_HOME"] = str(place / "cache"), str(place / "hf")
    out: dict[str, Any] = {"bytes": size_of(place / "child")}
    with hub_server.serve(acme__child=place / "child") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        known = Workspace(Registry(place / "registry.db"))
        for step in ("add", "trace", "trace_again"):
            before, requests, begun = hub.total, len(hub.seen), time.perf_counter()
            if step == "add":
                (result,) = known.add(["hf:acme/child"])
                out["status"], out["error"] = result.status, result.error
            else:
                found = known.trace(known.resolve("hf:acme/child"), against=[place / "parent"])
                out["verdict"] = found.verdict
                out["found"] = [row["name"] for row in (*found.parents, *found.relatives)]
            out[step] = {
                "bytes": hub.total - before, "share": (hub.total - before) / out["bytes"],
                "requests": len(hub.seen) - requests, "seconds": round(time.perf_counter() - begun, 2),
            }  # fmt: skip
        whole = known.trace(known.resolve(str(place / "child")), against=[place / "parent"])
        out["verdict_from_disk"] = whole.verdict
        out["found_from_disk"] = [row["name"] for row in (*whole.parents, *whole.relatives)]
        if case == "small":
            out["stranger"] = known.trace(known.resolve("hf:acme/child"), against=[place / "stranger"]).verdict
            disk = known.trace(known.resolve(str(place / "child")), against=[place / "stranger"])
            out["stranger_from_disk"] = disk.verdict
    out["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return out


def main() -> None:
    """Measure the cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["small", "7B"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "remote.json")
    args = parser.parse_args()
    os.environ.pop("HF_HUB_OFFLINE", None)
    result: dict[str, Any] = {
        "measured_with": methods(), "seed": SEED, "cases": {},
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }  # fmt: skip
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            result["cases"][case] = measured(case, Path(folder))
            print(case, json.dumps(result["cases"][case]), file=sys.stderr)
    write_result(args.out, result)


if __name__ == "__main__":
    main()
