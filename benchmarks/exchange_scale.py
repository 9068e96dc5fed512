"""Export and import registries of many models: seconds, bytes a model, and memory.

Models are made up: records, tensor lists and weight sketches of the sizes that enrolment gives, with random values (the
worst case for compression). Seed 0. Run: `python benchmarks/exchange_scale.py [MODELS...]`; 10,000 take two minutes.
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
from testbeds.measured import write_result

RESULTS = Path(__file__).parent / "results" / "exchange_scale.json"
SIZES = (1_000, 10_000)
TENSORS = 100
LARGE = (1_000, 10_000)
"""Tensors of single models whose export is measured."""


def made_up(i: int, tensors: int, rng: np.random.Generator) -> tuple[ModelRecord, list[TensorRecord], Fingerprint]:
    """A model that was never there."""
    listed = []
    for k in range(tensors):
        name, digest = f"model.layers.{k // 10}.part{k % 10}.weight", Digest(f"sha256:{rng.bytes(32).hex()}")
        listed.append(TensorRecord(name, "F16", (64, 64 + k % 7), digest))
    digest, free = records.model_digests(listed)
    record = ModelRecord(
        f"org/model-{i}", digest, free, f"/data/model-{i}.safetensors", "safetensors", tensors, tensors * 4096,
        {"F16": tensors}, {"model_type": "llama", "hidden_size": 64}, {"license": "mit"},
    )  # fmt: skip
    values = {"bits": rng.integers(0, 256, 256, dtype=np.uint8), "units": rng.integers(-127, 127, (16, 64, 24), "i1"),
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


def measured(n: int, folder: str) -> dict[str, Any]:
    """Export, import, import again and search, for one number of models."""
    source, target, path = Registry(f"{folder}/{n}a.db"), Registry(f"{folder}/{n}b.db"), Path(folder) / f"{n}.reg"
    fill(source, n, TENSORS)
    target.make_writable()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bits, none = np.zeros(256, np.uint8), Digest("sha256:" + "0" * 64)
    tasks: dict[str, Callable[[], Any]] = {
        "export_s": lambda: source.exchange.export(path, name="acme"),
        "import_s": lambda: target.exchange.import_from(str(path), Acceptance()),
        "again_s": lambda: target.exchange.import_from(str(path), Acceptance()),
        "search_s": lambda: target.known.nearest(none, none, [], bits, 16),
    }
    row: dict[str, Any] = {"models": n, "tensors_each": TENSORS}
    for name, task in tasks.items():
        began = time.perf_counter()
        task()
        row[name] = round(time.perf_counter() - began, 2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    with target._database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.known_model)).scalar_one() == n
    size = path.stat().st_size
    return {**row, "file_bytes": size, "bytes_a_model": size // n, "memory_mb": round(grown / 1024, 1),
            "registry_bytes_a_model": target.path.stat().st_size // n}  # fmt: skip


def main(sizes: tuple[int, ...]) -> None:
    """Measure, and write the results."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    result: dict[str, Any] = {"version": __version__, "machine": machine, "rows": [], "large": []}
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            result["rows"].append(measured(n, folder))
            sys.stdout.write(f"{json.dumps(result['rows'][-1])}\n")
        for tensors in LARGE:
            source, path = Registry(f"{folder}/large{tensors}.db"), Path(folder) / "large.reg"
            fill(source, 1, tensors)
            section = source.exchange.export(path, name="acme")
            size = path.stat().st_size
            result["large"].append({"tensors": tensors, "bytes": size, "left_out": dict(section.left_out)})
    write_result(RESULTS, result, indent=2)
    sys.stdout.write(json.dumps(result["large"]) + "\n")


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)
