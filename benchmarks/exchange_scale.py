"""Export and import registries of many models: seconds, bytes a model, and memory.

Models are made up: records, tensor lists and weight sketches of the sizes that enrolment gives, with random values (the
worst case for compression). Seed 0. Run: `python benchmarks/exchange_scale.py [MODELS...]`; 10,000 take about two minutes.
"""

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from stemma import __version__
from stemma.registry import Registry, blobs, records, rows, schema
from stemma.registry.exchange.merging import Acceptance
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord, TensorRecord
from stemma.types import Digest, Fingerprint

RESULTS = Path(__file__).parent / "results" / "exchange_scale.json"
SIZES = (1_000, 10_000)
TENSORS = 100
LARGE = (1_000, 10_000)
"""Tensors of single models whose export is measured."""


def made_up(i: int, tensors: int, rng: np.random.Generator) -> tuple[ModelRecord, list[TensorRecord], Fingerprint]:
    """A model that was never there."""
    listed = [
        TensorRecord(
            f"model.layers.{k // 10}.part{k % 10}.weight",
            "F16",
            (64, 64 + k % 7),
            Digest(f"sha256:{rng.bytes(32).hex()}"),
        )
        for k in range(tensors)
    ]
    digest, free = records.model_digests(listed)
    record = ModelRecord(f"org/model-{i}", digest, free, f"/data/model-{i}.safetensors", "safetensors", tensors, tensors * 4096,
                         {"F16": tensors}, {"model_type": "llama", "hidden_size": 64}, {"license": "mit"})  # fmt: skip
    values = {"bits": rng.integers(0, 256, 256, dtype=np.uint8), "units": rng.integers(-127, 127, (16, 64, 24)).astype("i1"),
              "owners": np.tile([64, 64, 64, 0], (16, 1)).astype("i8")}  # fmt: skip
    return record, listed, Fingerprint(digest, None, fingerprinters()[0].spec, values)


def fill(registry: Registry, n: int, tensors: int) -> None:
    """Enrol made-up models, a thousand in a transaction."""
    rng = np.random.default_rng(0)
    for start in range(0, n, 1000):
        with registry._database.writing() as connection:
            for i in range(start, min(n, start + 1000)):
                record, listed, sketch = made_up(i, tensors, rng)
                content = rows.put_content(connection, record, listed, records.manifest(listed), staged=False)
                rows.put_fingerprint(connection, content, sketch, blobs.pack(sketch.values), staged=False)
                rows.append_model(connection, rows.with_timestamp(record, None), content)


def timed(task: Callable[[], Any]) -> float:
    """Seconds that a task takes."""
    began = time.perf_counter()
    task()
    return round(time.perf_counter() - began, 2)


def main(sizes: tuple[int, ...]) -> None:
    """Measure, and write the results."""
    result: dict[str, Any] = {
        "version": __version__,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    result["rows"] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            source, target, path = (
                Registry(f"{folder}/{n}a.db"),
                Registry(f"{folder}/{n}b.db"),
                Path(folder) / f"{n}.reg",
            )
            fill(source, n, TENSORS)
            target.make_writable()
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            row = {
                "models": n,
                "tensors_each": TENSORS,
                "export_s": timed(lambda: source.exchange.export(path, name="acme")),
            }
            row |= {"import_s": timed(lambda: target.exchange.import_from(str(path), Acceptance()))}
            row |= {"again_s": timed(lambda: target.exchange.import_from(str(path), Acceptance()))}
            bits, none = np.zeros(256, np.uint8), Digest("sha256:" + "0" * 64)
            row |= {"search_s": timed(lambda: target.known.nearest(none, none, [], bits, 16))}
            row |= {"file_bytes": path.stat().st_size, "bytes_a_model": path.stat().st_size // n}
            row |= {"registry_bytes_a_model": target.path.stat().st_size // n,
                    "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024, 1)}  # fmt: skip
            with target._database.reading() as connection:
                assert connection.execute(sa.select(sa.func.count()).select_from(schema.known_model)).scalar_one() == n
            result["rows"].append(row)
            sys.stdout.write(f"{json.dumps(row)}\n")
        result["large"] = []
        for tensors in LARGE:
            source, path = Registry(f"{folder}/large{tensors}.db"), Path(folder) / "large.reg"
            fill(source, 1, tensors)
            section = source.exchange.export(path, name="acme")
            result["large"].append(
                {"tensors": tensors, "bytes": path.stat().st_size, "left_out": dict(section.left_out)}
            )
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result["large"]) + "\n")


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)
