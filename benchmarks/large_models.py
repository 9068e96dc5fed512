"""What `stemma add`, `trace` and `compare` take for models of a billion to seventy billion parameters.

Generates sharded Hugging Face folders (Llama layout, bfloat16): 1.1 B and 6.7 B parameters with real content, 70 B as
sparse files of which two layers have content, 256 experts in 10 layers, and 10,000 tensors. The child of each is its
parent with noise in some layers; its other shards are links to those of the parent, so that 7 B take 15 GB of disk
together. Each command is a process of its own; wall and processor seconds and peak resident memory are those of the
process, beside the seconds that SHA-256 of the same bytes takes in one thread.

Growth is the exponent between the two sizes with content. Interruptions: `add` of a small folder is killed, or
interrupted by Ctrl-C, at moments drawn from a seed; afterwards `stemma check` must be clean and no file left over.

    python benchmarks/large_models.py [--work FOLDER] [--cases 1B 7B 70B experts tensors interrupts]
    python benchmarks/large_models.py --reduced      sizes for a look: a tenth of the layers

Writes benchmarks/results/large_models.json. Each case can be run alone with --cases and another --out.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 20
PIECE = 8 << 20
SHARD = 2_000_000_000
"""Bytes of a shard."""
LLAMA: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
           "intermediate_size": 5632, "vocab_size": 32000},
    "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
           "intermediate_size": 11008, "vocab_size": 32000},
    "70B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 28672, "vocab_size": 32000},
}  # fmt: skip
EXPERTS, EXPERT_LAYERS, TENSORS = 256, 10, 10_000
ATTEMPTS = 20
Shapes = dict[str, tuple[int, ...]]


def llama(c: dict[str, int]) -> Shapes:
    """Names and shapes of a Llama."""
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    k = d // c["num_attention_heads"] * c["num_key_value_heads"]
    out: Shapes = {"model.embed_tokens.weight": (v, d)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {
            f"{p}self_attn.{n}_proj.weight": s for n, s in (("q", (d, d)), ("k", (k, d)), ("v", (k, d)), ("o", (d, d)))
        }
        out |= {
            f"{p}mlp.gate_proj.weight": (f, d),
            f"{p}mlp.up_proj.weight": (f, d),
            f"{p}mlp.down_proj.weight": (d, f),
        }
        out |= {f"{p}input_layernorm.weight": (d,), f"{p}post_attention_layernorm.weight": (d,)}
    return out | {"model.norm.weight": (d,), "lm_head.weight": (v, d)}


def experts(layers: int) -> Shapes:
    """Names and shapes of a mixture of many small experts."""
    out: Shapes = {"model.embed_tokens.weight": (256, 32)}
    for i in range(layers):
        p = f"model.layers.{i}."
        out[f"{p}mlp.gate.weight"] = (EXPERTS, 32)
        for e in range(EXPERTS):
            q = f"{p}mlp.experts.{e}."
            out |= {f"{q}gate_proj.weight": (48, 32), f"{q}up_proj.weight": (48, 32), f"{q}down_proj.weight": (32, 48)}
    return out | {"lm_head.weight": (256, 32)}


def many(count: int) -> Shapes:
    """Names and shapes of many small matrices."""
    return {f"blocks.{i}.fc.weight": (24, 32) for i in range(count)}


def generate(
    folder: Path, shapes: Shapes, seed: int, config: dict[str, Any], parent: str = "", filled: str = ""
) -> None:
    """Write a folder in shards; a child links the shards in which nothing changes.

    Args:
        folder: Folder to make.
        shapes: Names and shapes, in order.
        seed: Of the content, or of the noise of a child.
        config: Content of config.json.
        parent: Folder whose child it is: every fourth tensor of the first third and last shard gets noise.
        filled: Prefixes, separated by commas, of the tensors with content; others are holes in the file.
    """
    import numpy as np

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    levels = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32) * np.float32(0.02)
    table = (levels.view(np.uint32) >> 16).astype("<u2")
    shards = list(_shards(shapes))
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        changed = {n for n in names if parent and _changes(n, number, len(shards))}
        if parent and not changed:
            os.link(Path(parent) / file, folder / file)
            continue
        header, at = {}, 0
        for name in names:
            size = 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + size]}
            at += size
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        rng = np.random.Generator(np.random.SFC64([seed, number]))
        source = (Path(parent) / file).open("rb") if parent else None
        with (folder / file).open("wb") as f:
            f.write(len(raw).to_bytes(8, "little") + raw)
            for name in names:
                size = 2 * math.prod(shapes[name])
                begin = 8 + len(raw) + header[name]["data_offsets"][0]
                if filled and not name.startswith(tuple(filled.split(","))):
                    continue
                f.seek(begin)
                for done in range(0, size, PIECE):
                    n = min(PIECE, size - done)
                    if source is None:
                        f.write(table[np.frombuffer(rng.bytes(n), "<u2")].tobytes())
                        continue
                    source.seek(begin + done)
                    old = source.read(n)
                    f.write(_noisy(old, table, rng) if name in changed else old)
            f.truncate(8 + len(raw) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _noisy(old: bytes, table: Any, rng: Any) -> bytes:
    import numpy as np

    noise = (table[np.frombuffer(rng.bytes(len(old)), "<u2")].astype(np.uint32) << 16).view(np.float32)
    values = (np.frombuffer(old, "<u2").astype(np.uint32) << 16).view(np.float32)
    moved = np.where(values == 0, 0, values + np.float32(0.1) * noise)
    return ((moved.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes()


def _shards(shapes: Shapes) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 2 * math.prod(shape) > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * math.prod(shape)
    yield names


def _changes(name: str, number: int, shards: int) -> bool:
    """Whether the child's tensor differs: of one shard in four where there are many, of every other one else."""
    return name.endswith("up_proj.weight") or name.endswith("fc.weight") if number % 8 == 0 or shards < 3 else False


def process(*command: str | Path, limit: float = 900) -> dict[str, Any]:
    """Run a command; what it printed, its exit code, wall and processor seconds and peak memory.

    Returns:
        These.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen([sys.executable, *map(str, command)], stdout=out, stderr=err)
        timer = time.monotonic() + limit
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > timer:
                child.kill()
            time.sleep(0.02)
        out.seek(0)
        err.seek(0)
        printed, said = out.read().decode(), err.read().decode()
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - begun, 2), "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": used.ru_maxrss // 1024, "exit": child.returncode, "printed": printed, "said": said[-400:],
    }  # fmt: skip


def stemma(*arguments: str | Path) -> dict[str, Any]:
    """One command, with the verdict where its document has one."""
    done = process("-m", "stemma", *arguments)
    printed = done.pop("printed")
    try:
        told = json.loads(printed)
    except ValueError:
        return {**done, "said": f"{printed[-200:]}{done['said']}"}
    done.pop("said")
    found = {"verdict": told.get("verdict"), "relation": told.get("relation"), "not_tested": told.get("not_tested"),
             "named": [m["name"] for k in ("copies", "parents", "relatives") for m in told.get(k) or ()]}  # fmt: skip
    return {**done, **{k: v for k, v in found.items() if v}}


def hashed(folder: Path) -> float:
    """Seconds of SHA-256 over the files of a folder, in one thread."""
    begun = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            hashlib.file_digest(f, "sha256")
    return time.perf_counter() - begun


def case(work: Path, name: str, shapes: Shapes, config: dict[str, Any], filled: str = "") -> dict[str, Any]:
    """A parent, its child and the commands on them."""
    base, child, registry = work / "base", work / "child", f"sqlite:///{work / 'registry.db'}"
    for folder, seed, parent in ((base, SEED, ""), (child, SEED + 1, str(base))):
        asked = {"folder": str(folder), "case": name, "seed": seed, "parent": parent, "filled": filled,
                 "config": config, "shapes": shapes}  # fmt: skip
        (work / "asked.json").write_text(json.dumps(asked))
        made = process(__file__, "--make", work / "asked.json")
        if made["exit"]:
            raise RuntimeError(made["said"])
    parameters = sum(math.prod(s) for s in shapes.values())
    reference = hashed(base)
    out: dict[str, Any] = {"parameters": parameters, "tensors": len(shapes), "hashing_seconds": round(reference, 2)}
    out["add"] = stemma("add", base, "--registry", registry, "--json")
    out["trace"] = stemma("trace", child, "--registry", registry, "--json")
    out["compare"] = stemma("compare", base, child, "--json")
    for command, models in (("add", 1), ("trace", 2), ("compare", 2)):
        out[command]["times_hashing"] = round(out[command]["seconds"] / max(models * reference, 1e-9), 2)
    return out


def interrupts(work: Path) -> dict[str, Any]:
    """`add` of a folder of small models, stopped at moments drawn from a seed; what the registry says afterwards."""
    hub = work / "hub"
    for i in range(12):
        asked = {"folder": str(hub / f"m{i}"), "case": "", "seed": i, "parent": "", "filled": "", "config": {"i": i},
                 "shapes": {f"l{j}.weight": [512, 512] for j in range(8)}}  # fmt: skip
        (work / "asked.json").write_text(json.dumps(asked))
        process(__file__, "--make", work / "asked.json")
    whole = stemma("add", hub, "--registry", f"sqlite:///{work / 'whole.db'}", "--keep-weights")["seconds"]
    rng, counts, bad = random.Random(SEED), {"SIGKILL": 0, "SIGINT": 0}, []
    for attempt in range(2 * ATTEMPTS):
        kind = (signal.SIGKILL, signal.SIGINT)[attempt % 2]
        place = work / f"r{attempt}"
        place.mkdir()
        registry = f"sqlite:///{place / 'registry.db'}"
        jobs = ["--jobs", "2"] if attempt % 4 > 1 else []
        child = subprocess.Popen(
            [sys.executable, "-m", "stemma", "add", str(hub), "--registry", registry, "--keep-weights", *jobs],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        time.sleep(rng.uniform(0.2, 1.1) * whole)
        done = child.poll() is not None
        if not done:
            os.killpg(child.pid, kind) if kind == signal.SIGINT else child.kill()
        said = child.communicate()[1]
        counts[kind.name] += not done
        if not done and kind == signal.SIGINT and child.returncode not in (0, 130):
            bad.append(f"attempt {attempt}: exit {child.returncode}: {said[-300:]}")
        if not done and kind == signal.SIGINT and "Traceback" in said:
            bad.append(f"attempt {attempt}: a traceback: {said[-300:]}")
        bad += _left(place, registry, attempt)
        again = stemma("add", hub, "--registry", registry, "--keep-weights", "--json")
        if again["exit"]:
            bad.append(f"attempt {attempt}: adding again exits {again['exit']}: {again.get('said')}")
        shutil.rmtree(place)
    return {"stopped": counts, "seconds_of_the_whole": whole, "bad": bad}


def _left(place: Path, registry: str, attempt: int) -> list[str]:
    if not (place / "registry.db").exists():
        return []
    check = process("-m", "stemma", "check", "--registry", registry)
    bad = [f"attempt {attempt}: check exits {check['exit']}: {check['printed'][-300:]}"] if check["exit"] else []
    return bad + [f"attempt {attempt}: {p.name} is left" for p in place.rglob("*.partial")]


def growth(small: dict[str, Any], large: dict[str, Any], command: str) -> dict[str, float]:
    """Exponents of seconds and memory between two sizes."""
    factor = math.log(large["parameters"] / small["parameters"])
    return {
        f"{key}_exponent": round(math.log(max(large[command][key], 1e-3) / max(small[command][key], 1e-3)) / factor, 2)
        for key in ("cpu_seconds", "peak_mb")
    }


def plan(reduced: bool) -> dict[str, tuple[Shapes, dict[str, Any], str]]:
    """Shapes, config and filled tensors by case."""
    found: dict[str, tuple[Shapes, dict[str, Any], str]] = {}
    for name, sizes in LLAMA.items():
        layers = max(2, sizes["num_hidden_layers"] // 10) if reduced else sizes["num_hidden_layers"]
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, "num_hidden_layers": layers,
                  "tie_word_embeddings": False}  # fmt: skip
        filled = "model.layers.0.,model.layers.1.,model.norm" if name == "70B" else ""
        found[name] = (llama({**sizes, "num_hidden_layers": layers}), config, filled)
    found["experts"] = (experts(2 if reduced else EXPERT_LAYERS), {"model_type": "mixture"}, "")
    found["tensors"] = (many(TENSORS // 10 if reduced else TENSORS), {"model_type": "many"}, "")
    return found


def main() -> None:
    """Run the cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="generate below this folder")
    parser.add_argument("--cases", nargs="*", default=["1B", "7B", "70B", "experts", "tensors", "interrupts"])
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--make", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large_models.json")
    args = parser.parse_args()
    if args.make is not None:
        asked = json.loads(args.make.read_text())
        generate(Path(asked["folder"]), {k: tuple(v) for k, v in asked["shapes"].items()}, asked["seed"],
                 asked["config"], asked["parent"], asked["filled"])  # fmt: skip
        return
    from testbeds.measured import methods, write_result

    result: dict[str, Any] = {
        "measured_with": methods(), "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": SEED, "reduced": args.reduced, "load_before": os.getloadavg()[0], "cases": {},
    }  # fmt: skip
    planned = plan(args.reduced)
    for name in args.cases:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            begun = time.perf_counter()
            found = interrupts(Path(folder)) if name == "interrupts" else case(Path(folder), name, *planned[name])
            result["cases"][name] = {**found, "whole_case_seconds": round(time.perf_counter() - begun, 1)}
        print(name, json.dumps(result["cases"][name]), flush=True)
    if {"1B", "7B"} <= result["cases"].keys():
        small, large = result["cases"]["1B"], result["cases"]["7B"]
        result["growth"] = {c: growth(small, large, c) for c in ("add", "trace", "compare")}
    result["load_after"] = os.getloadavg()[0]
    if not args.reduced:
        write_result(args.out, result)


if __name__ == "__main__":
    main()
