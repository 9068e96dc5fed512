"""Feed damaged files of every format to the readers: none may crash, hang, or be accepted against its own structure.

Each input is a small valid file with some bytes changed, cut, doubled or overwritten with extreme numbers, from a fixed
seed. Where a reference library exists, what both accept must hold the same numbers. One worker process at a time, so
that even a crash of a C library is counted and survived. Run: `python benchmarks/fuzz_formats.py [INPUTS]`.

Then files that are small on disk and would cost minutes or gigabytes (`testbeds/expanding_files.py`), each read in a
process of its own under a limit of memory: what became of it, processor seconds and peak memory. With `0` inputs only
these are measured, about three minutes, and the rest of the result file is kept.
"""

import collections
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints import load
from stemma.checkpoints.save import save
from stemma.errors import StemmaError
from testbeds.measured import write_result

LIMIT = 5.0
"""Seconds that one input may take."""
INPUTS = 22_000
MOST_SECONDS, MOST_MB = 5.0, 500.0
"""Processor seconds and peak memory that a file which would expand may take."""
RESULTS = Path(__file__).parent / "results" / "fuzz_formats.json"
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]

Reference = Callable[[Path], dict[str, np.ndarray] | None]


def arrays() -> dict[str, np.ndarray]:
    """The weights in every file.

    Returns:
        Arrays by name.
    """
    rng = np.random.default_rng(1)
    return {
        "a.weight": rng.standard_normal((4, 3, 2)).astype("f4"),
        "b.weight": rng.standard_normal((5, 8)).astype("f2"),
        "b.bias": np.arange(5.0),
        "n": np.array(3, "i8"),
    }


def seeds(folder: Path) -> dict[str, tuple[Path, Path]]:
    """A valid file per format: the checkpoint to open, and the file to damage.

    Returns:
        Paths by format name.
    """
    from tests.test_formats import WRITERS, build_tflite

    made: dict[str, tuple[Path, Path]] = {}
    for file, write in WRITERS.items():
        (folder / file.replace(".", "_")).mkdir()
        path = write(folder / file.replace(".", "_") / file, arrays())
        made[file] = (path, path)
    np.save(folder / "a.npy", arrays()["a.weight"].T)
    made["a.npy"] = (folder / "a.npy", folder / "a.npy")
    codes = np.arange(-12, 12, dtype="i1").reshape(4, 6)
    tflite = build_tflite(
        folder / "a.tflite", [("w", codes, 9, [0.5] * 4, [0] * 4), ("b", np.ones(4, "f4"), 0, None, None)]
    )
    made["a.tflite"] = (tflite, tflite)
    packed = _gguf(folder / "a.gguf")
    made["a.gguf"] = (packed, packed)
    shards = save(load.from_arrays(arrays(), "m"), folder / "shards", config={"a": 1}, max_shard_bytes=100)
    made["shard index"] = (shards, shards / "model.safetensors.index.json")
    adapter = folder / "adapter"
    save(load.from_arrays({"fc.weight": np.ones((6, 4), "f4")}, "m"), folder / "base", config={})
    save(load.from_arrays({"base_model.model.fc.lora_A.weight": np.ones((2, 4), "f4"),
                           "base_model.model.fc.lora_B.weight": np.ones((6, 2), "f4")}, "m"), adapter)  # fmt: skip
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "../base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    made["adapter config"] = (adapter, adapter / "adapter_config.json")
    return made


def _gguf(path: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "bb"])
    writer.add_tensor("plain", np.arange(12, dtype="f4").reshape(3, 4))
    kind = gguf.GGMLQuantizationType.Q4_0
    raw = gguf.quants.quantize(np.ones((2, 64), "f4"), kind)
    writer.add_tensor("packed", raw, raw_shape=raw.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A changed copy.

    Args:
        data: A valid file.
        rng: Decides how it is changed.

    Returns:
        The copy, at times cut or longer.
    """
    out = bytearray(data)
    # headers are where structure is: half of the changes go to the first or last part
    part = rng.choice([len(out), min(len(out), 256), -min(len(out), 512)])

    def place() -> int:
        return rng.randrange(part) if part > 0 else len(out) - 1 - rng.randrange(min(-part, len(out)))

    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        kind = rng.randrange(8)
        if not out:
            break
        at = place() % len(out)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind in (2, 3):
            width = rng.choice([1, 2, 4, 8])
            value = rng.choice(EXTREMES) % 2 ** (8 * width)
            out[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            del out[at : at + rng.choice([1, 4, 8, 64])]
        elif kind == 6:
            out[at:at] = out[at : at + rng.choice([1, 4, 8, 64])]
        else:
            end = rng.randrange(len(out))
            n = rng.choice([4, 8, 32])
            out[at : at + n] = out[end : end + n]
    return bytes(out)


def references() -> dict[str, Reference]:
    """What the libraries that own the formats read from a file; None where they refuse it.

    Returns:
        A reader by format name.
    """
    import h5py
    import onnx
    import torch
    from safetensors.numpy import load_file

    def of_torch(path: Path) -> dict[str, np.ndarray]:
        loaded = torch.load(path, weights_only=True)
        return {k: v.numpy() for k, v in loaded.items() if isinstance(v, torch.Tensor)}

    def of_h5(path: Path) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        with h5py.File(path) as f:
            f["model_weights"].visititems(lambda n, d: out.update({n: d[()]}) if isinstance(d, h5py.Dataset) else None)
        return out

    def of_onnx(path: Path) -> dict[str, np.ndarray]:
        return {t.name: onnx.numpy_helper.to_array(t, str(path.parent)) for t in onnx.load(path).graph.initializer}

    def of_numpy(path: Path) -> dict[str, np.ndarray]:
        found = np.load(path, allow_pickle=False)
        return {"array": found} if isinstance(found, np.ndarray) else {k: found[k] for k in found.files}

    return {
        "a.safetensors": load_file, "a.pt": of_torch, "legacy.pth": of_torch, "a.npz": of_numpy, "a.npy": of_numpy,
        "packed.npz": of_numpy, "a.onnx": of_onnx, "a.h5": of_h5, "chunked.h5": of_h5,
    }  # fmt: skip


class OverLimitError(BaseException):
    """An input took too long."""


def _alarm(*_: Any) -> None:
    raise OverLimitError


def outcome(checkpoint: Path, file: Path, original: Any, reference: Reference | None) -> tuple[str, str]:
    """Read one damaged checkpoint.

    Returns:
        What happened, and a sentence for those that must not happen.
    """
    try:
        models = load.open_models(checkpoint)
        digests = [m.digest for m in models]
        _ = [dict(m.weights) for m in models]
    except StemmaError as e:
        return ("refused", "") if str(e) else ("crash", "an error without a sentence")
    except OverLimitError:
        return "hang", "over the time limit"
    except BaseException as e:  # anything else is what this benchmark looks for
        return "crash", f"{type(e).__name__}: {e}"[:200]
    wrong = _inconsistent(models[0], file) or _differs(models[0], file, reference)
    if wrong:
        return "wrong acceptance", wrong
    return ("same digest" if digests == original else "other content"), ""


def _inconsistent(model: Any, file: Path) -> str:
    stored = sum(t.nbytes for t in model.tensors.values())
    if file.suffix in (".safetensors", ".npy", ".pt", ".pth", ".tflite", ".msgpack") and stored > file.stat().st_size:
        return f"{stored} bytes of tensors from a file of {file.stat().st_size}"
    for t in model.tensors.values():
        if t.size < 1 << 20 and t.array().shape != t.shape:
            return f"'{t.name}' has another shape than it says"
    return ""


def _differs(model: Any, file: Path, reference: Reference | None) -> str:
    if reference is None:
        return ""
    try:
        expected = reference(file)
    except (KeyboardInterrupt, OverLimitError):
        return ""
    except BaseException:  # stricter than ours in what is no matter of weights (versions, checksums, device names)
        return ""
    for name, values in (expected or {}).items():
        tensor = model.tensors.get(name)
        if tensor is not None and values is not None and values.dtype.kind in "fiub":
            if tensor.shape != values.shape:
                return f"'{name}' has the shape {tensor.shape}, the reference reads {values.shape}"
            ours = tensor.array()
            if not np.array_equal(ours, values.astype(ours.dtype), equal_nan=values.dtype.kind == "f"):
                return f"'{name}' has other values than the reference reads"
    return ""


def work(name: str, first: int, count: int, folder: str, report: Any) -> None:
    """Read inputs `first:count` of a format; tell the parent after each.

    Args:
        name: The format.
        first: First input.
        count: Input after the last.
        folder: Where the valid files lie.
        report: Where outcomes go.
    """
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _alarm)
    checkpoint, file = seeds(Path(folder))[name]
    data = file.read_bytes()
    original = [m.digest for m in load.open_models(checkpoint)]
    reference = references().get(name)
    for i in range(first, count):
        rng = random.Random(f"{name} {i}")
        changed = data
        while changed == data:
            changed = damaged(data, rng)
        file.write_bytes(changed)
        report.send((i, "begun", "", 0.0))
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        begun = time.perf_counter()
        kind, why = outcome(checkpoint, file, original, reference)
        signal.setitimer(signal.ITIMER_REAL, 0)
        report.send((i, kind, why, time.perf_counter() - begun))
    report.send((count, "done", "", 0.0))


def fuzz(name: str, count: int) -> dict[str, Any]:
    """All inputs of one format.

    Returns:
        Counts by outcome, the slowest input, and the sentences of what must not happen.
    """
    counts: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    slowest, first = 0.0, 0
    while first < count:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("fork").Process(
                target=work, args=(name, first, count, folder, theirs)
            )
            process.start()
            theirs.close()
            at, ended = first, False
            while not ended:
                try:
                    if not ours.poll(LIMIT * 4):
                        raise TimeoutError
                    i, kind, why, seconds = ours.recv()
                except (EOFError, TimeoutError) as e:
                    kind = "crash" if isinstance(e, EOFError) else "hang"
                    counts[kind] += 1
                    bad.append(f"input {at}: the process {'died' if kind == 'crash' else 'did not answer'}")
                    first, ended = at + 1, True
                    process.kill()
                    continue
                at = i
                if kind == "done":
                    first, ended = count, True
                elif kind != "begun":
                    counts[kind] += 1
                    slowest = max(slowest, seconds)
                    if why:
                        bad.append(f"input {i}: {kind}: {why}")
            process.join()
    return {
        "inputs": sum(counts.values()),
        **dict(sorted(counts.items())),
        "slowest_s": round(slowest, 3),
        "bad": bad[:50],
    }


READ = """
import json, re, sys, time
from pathlib import Path
from stemma.checkpoints import load
from stemma.errors import StemmaError
begun = time.process_time()
try:
    for model in load.open_models(Path(sys.argv[1])):
        model.digest, dict(model.weights)
    said = "read"
except StemmaError as e:
    said = "refused" if len(str(e)) < 1000 else "a sentence without end"
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(json.dumps([said, round(time.process_time() - begun, 2), int(peak[1]) // 1024]))
"""


def expanding() -> dict[str, Any]:
    """Files that would expand, each read in a process of its own.

    Returns:
        What became of each, and the worst of them.
    """
    from testbeds.expanding_files import ALL

    found, here = {}, Path.cwd()
    for name, make in ALL.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder))
            os.chdir(here)
            try:
                done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True,
                                      timeout=120, preexec_fn=_limited)  # fmt: skip
                what, seconds, peak = json.loads(done.stdout) if done.stdout else ["crash", 0.0, 0]
            except subprocess.TimeoutExpired:
                what, seconds, peak = "hang", 120.0, 0
            size = path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*.safetensors"))
        found[name] = {"became": what, "cpu_s": seconds, "peak_mb": peak, "bytes": size}
        sys.stderr.write(f"{name:32} {json.dumps(found[name])}\n")
    bad = [n for n, f in found.items() if f["became"] not in ("read", "refused")
           or f["cpu_s"] > MOST_SECONDS or f["peak_mb"] > MOST_MB]  # fmt: skip
    return {
        "files": len(found), "refused": sum(f["became"] == "refused" for f in found.values()),
        "read": sum(f["became"] == "read" for f in found.values()), "bad": bad,
        "slowest_cpu_s": max(f["cpu_s"] for f in found.values()),
        "largest_mb": max(f["peak_mb"] for f in found.values()), "cases": found,
    }  # fmt: skip


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))


def main(total: int) -> int:
    """Run everything and write the result.

    Args:
        total: Inputs over all formats.

    Returns:
        Exit code: 1 if anything happened that must not.
    """
    if not total:
        kept = json.loads(RESULTS.read_text()) | {"expanding": expanding()}
        write_result(RESULTS, kept)
        return 1 if kept["expanding"]["bad"] else 0
    with tempfile.TemporaryDirectory() as folder:
        names = list(seeds(Path(folder)))
    each = -(-total // len(names))
    results, begun = {}, time.perf_counter()
    for name in names:
        results[name] = fuzz(name, each)
        sys.stderr.write(f"{name:16} {json.dumps(results[name])[:300]}\n")
    bad = sum(results[n].get(k, 0) for n in names for k in ("crash", "hang", "wrong acceptance"))
    summary = {
        "what": "damaged files of every format, fixed seeds",
        "date": time.strftime("%Y-%m-%d"),
        "inputs": sum(r["inputs"] for r in results.values()),
        "crashes, hangs and wrong acceptances": bad,
        "seconds": round(time.perf_counter() - begun, 1),
        "limit_s": LIMIT,
        "formats": results,
        "expanding": expanding(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_result(RESULTS, summary)
    return 1 if bad or summary["expanding"]["bad"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS))
