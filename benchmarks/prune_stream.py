"""What pruning block by block costs: memory by depth, and time beside one forward pass over the same samples.

Generates Llama-like folders with grouped queries (bfloat16, 1.1 B parameters at 22 blocks), prunes each to .8 of the
units of its feed-forward layers by `stemma prune --stream` in a process of its own, and runs one plain forward pass
over the same samples in another, block by block too. Memory is the peak of the process (VmHWM), and that of its own
pages without those of files. Times are wall and processor seconds.

Unit costs (seconds for a multiplication in float32 and float64, of one block) are taken from the same run, and give the
time and memory at 7 B on paper: 32 blocks of width 4096 and 11008 hidden units. Weights are random: neither time nor
memory depends on them.

    python benchmarks/prune_stream.py [--depths 8 16 22] [--samples 16] [--length 128] [--work FOLDER] [--out FILE]
    python benchmarks/prune_stream.py --small        a look: width 256

Writes benchmarks/results/prune_stream.json. About an hour on two free cores, and 7 GB of disk.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from large_models import generate, llama
from testbeds.measured import machine, write_result

SIZE = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
        "vocab_size": 32000}  # fmt: skip
SMALL = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 704,
         "vocab_size": 2000}  # fmt: skip
LARGE = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_key_value_heads": 32,
         "num_attention_heads": 32, "vocab_size": 32000}  # fmt: skip
SEED, KEEP = 22, 0.8
SQUARES = 5
"""Square matrices in float64 that a refit holds at once, by its code."""


def config(size: dict[str, int], depth: int) -> dict[str, Any]:
    """The configuration of a Llama."""
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": depth, **size,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16"}  # fmt: skip


def measured(*command: str) -> dict[str, Any]:
    """Run a command; wall and processor seconds, and the largest memory of the process, in all and without files."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    highest = {"VmHWM": 0, "RssAnon": 0}

    def watch() -> None:
        while child.poll() is None:
            try:
                for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                    name = line.partition(":")[0]
                    if name in highest:
                        highest[name] = max(highest[name], int(line.split()[1]) * 1024)
            except OSError:
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, error = child.communicate()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: {error[-2000:]}")
    return {"seconds": time.perf_counter() - began,
            "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "highest": highest["VmHWM"], "own": highest["RssAnon"], "answer": out}  # fmt: skip


def forward(folder: Path, inputs: Path) -> None:
    """One plain forward pass over the samples, block after block, and what one multiplication costs."""
    import numpy as np
    import torch

    from stemma.edits.streaming.layout import layout_of
    from stemma.edits.streaming.template import Template, block_kinds
    from stemma.networks.load import load

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    x = np.load(inputs)["inputs"]
    began, busy = time.perf_counter(), time.process_time()
    layout = layout_of(load(folder))
    template, _ = Template.of_block(layout, np.unique(x), 0, block_kinds(layout)[0])
    ids = template.ids(x)
    ready = time.perf_counter() - began
    began, busy = time.perf_counter(), time.process_time()
    states = [template.embedded(ids[i : i + 16]) for i in range(0, len(ids), 16)]
    run = template.block_of(template.editable)
    reading = 0.0
    for i in range(layout.depth):
        start = time.perf_counter()
        template.fill(i)
        reading += time.perf_counter() - start
        with torch.no_grad():
            states = [run(s) for s in states]
    head = layout.stored("lm_head.weight")
    assert head is not None
    for s, start in zip(states, range(0, len(ids), 16), strict=True):
        rows = template.ends(ids[start : start + 16], s).reshape(-1, s.shape[-1])
        for word in range(0, head.shape[0], 4096):
            _ = rows @ torch.from_numpy(head.rows(word, min(head.shape[0], word + 4096))).T
    found = {"ready": ready, "seconds": time.perf_counter() - began, "processor": time.process_time() - busy,
             "reading": reading}  # fmt: skip
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        a = torch.randn(2048, 2048, dtype=dtype)
        busy = time.process_time()
        for _ in range(4):
            a @ a
        found[name] = 4 * 2048**3 / (time.process_time() - busy)
    print(json.dumps(found))


def on_paper(runs: dict[str, Any], size: dict[str, int], tokens: int) -> dict[str, Any]:
    """Processor seconds and memory at 7 B, from the cost of one block in this run, term by term."""
    deep, flat = (runs[str(d)] for d in (max(map(int, runs)), min(map(int, runs))))
    blocks = max(map(int, runs)) - min(map(int, runs))
    base = (deep["prune"]["processor"] - flat["prune"]["processor"]) / blocks
    plain = deep["forward"]["processor"] / max(map(int, runs))
    speed32, speed64 = deep["forward"]["float32"], deep["forward"]["float64"]

    def expected(s: dict[str, int]) -> float:
        d, f = s["hidden_size"], s["intermediate_size"]
        kv = d // s["num_attention_heads"] * s["num_key_value_heads"]
        weights = 2 * d * d + 2 * d * kv + 3 * d * f
        passes = 5 * weights * tokens
        moments = tokens * (f * f + (KEEP * f) ** 2 + d * KEEP * f + d * f)
        solved = f**3 + 2 * (1 - KEEP) * f * f * (f + d) + (KEEP * f) ** 3 / 3 + 2 * d * (KEEP * f) ** 2 + d * f * f
        return (passes + moments) / speed32 + solved / speed64

    scale = base / expected(size)
    d, f = LARGE["hidden_size"], LARGE["intermediate_size"]
    seconds = scale * expected(LARGE) * LARGE["num_hidden_layers"]
    forward_seconds = plain * LARGE["num_hidden_layers"] * (4 * d * d + 3 * d * f) / (
        2 * size["hidden_size"] ** 2 * (1 + size["num_key_value_heads"] / size["num_attention_heads"])
        + 3 * size["hidden_size"] * size["intermediate_size"])  # fmt: skip
    constant = max(0.0, deep["prune"]["own"] - terms(size))  # torch, transformers and whatever else has one size
    return {"processor_per_block_here": base, "expected_of_unit_costs_here": expected(size), "processor": seconds,
            "forward_processor": forward_seconds, "times_forward": seconds / forward_seconds,
            "memory_terms_here": terms(size), "memory_constant_here": constant,
            "memory": constant + terms(LARGE)}  # fmt: skip


def terms(size: dict[str, int]) -> float:
    """Bytes that grow with the width: two blocks in float32, and `SQUARES` square matrices of the widest inputs."""
    d, f = size["hidden_size"], size["intermediate_size"]
    kv = d // size["num_attention_heads"] * size["num_key_value_heads"]
    return 2 * 4 * (2 * d * d + 2 * d * kv + 3 * d * f) + SQUARES * 8 * f * f


def main() -> None:
    """Measure all depths."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 22])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", default=None)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "prune_stream.json"))
    parser.add_argument("--forward", nargs=2, default=None)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if args.forward:
        forward(Path(args.forward[0]), Path(args.forward[1]))
        return
    import numpy as np

    size = SMALL if args.small else SIZE
    work = Path(tempfile.mkdtemp(prefix="prune-stream-", dir=args.work))
    runs: dict[str, Any] = {}
    try:
        probes = work / "probes.npz"
        tokens = np.random.default_rng(SEED).integers(0, size["vocab_size"], (args.samples, args.length))
        np.savez(probes, inputs=tokens)
        for depth in args.depths:
            folder, out = work / f"depth-{depth}", work / f"pruned-{depth}"
            generate(folder, llama({**size, "num_hidden_layers": depth}), SEED, config(size, depth))
            plain = measured(__file__, "--forward", str(folder), str(probes))
            plain |= {"process": plain["seconds"], **json.loads(plain.pop("answer"))}
            pruned = measured("-m", "stemma", "prune", str(folder), "--keep", str(KEEP), "--probes", str(probes),
                              "--out", str(out), "--stream")  # fmt: skip
            pruned.pop("answer")
            runs[str(depth)] = {"bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
                                "forward": plain, "prune": pruned,
                                "times_forward": pruned["processor"] / plain["processor"],
                                "times_forward_wall": pruned["seconds"] / plain["seconds"]}  # fmt: skip
            print(depth, json.dumps(runs[str(depth)]), flush=True)
            shutil.rmtree(folder)
            shutil.rmtree(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result = {"size": size, "samples": args.samples, "length": args.length, "keep": KEEP, "runs": runs}
    if len(runs) > 1:
        result["on_paper_7B"] = on_paper(runs, size, args.samples * args.length)
    print(json.dumps(result.get("on_paper_7B")))
    write_result(Path(args.out), {"machine": machine(), **result})


if __name__ == "__main__":
    main()
