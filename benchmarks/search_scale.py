"""Candidate search in large registries: time to open the index, time per query, and who is found.

    python benchmarks/search_scale.py [--sizes 1000 10000 100000] [--out benchmarks/results/search_scale.json]

Sketches are synthetic: random bits, and queries that differ from one enrolled model in a stated share of the bits of
one code while the other code is unrelated (a permuted or rescaled relative, or one whose contents changed). Unrelated
models differ in half of the bits. The scan is compared with an exact count over unpacked bits.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from stemma.registry import Registry, SketchIndex, rows, schema
from stemma.registry.search import SKETCH_BYTES
from stemma.types import Digest, Spec, jsonable
from stemma.workspace import LIMIT

SEED = 20261120
QUERIES = 200
SHARES = (0.05, 0.2, 0.3, 0.35, 0.4, 0.45)
SPEC = Spec("weight-sketch")


def filled(path: Path, bits: np.ndarray) -> Registry:
    """A registry with synthetic models, written in bulk.

    Returns:
        The registry.
    """
    registry = Registry(path)
    registry.make_writable()
    digests = [f"sha256:{i * 2654435761 % 2**32:064x}" for i in range(len(bits))]
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as c:
        c.execute(schema.spec.insert().values(id=1, digest=SPEC.digest, content=json.dumps(jsonable(SPEC))))
        named = [{"id": i, "digest": d, "names_free_digest": d, "manifest": d} for i, d in enumerate(digests)]
        c.execute(schema.content.insert(), named)
        record = rows.encode({"name": "synthetic"})
        models = [{"id": i, "name": f"m{i}", "digest": d, "removed": False, **record} for i, d in enumerate(digests)]
        c.execute(schema.model.insert(), models)
        c.execute(schema.live.insert(), [{"name": f"m{i}", "model_id": i, "content_id": i} for i in range(len(bits))])
        coded = [{"spec_id": 1, "content_id": i, "bits": b.tobytes()} for i, b in enumerate(bits)]
        c.execute(schema.sketch_bits.insert(), coded)
    return registry


def queries(rng: np.random.Generator, bits: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Relatives of random models.

    Returns:
        Which models, and their relatives' sketches.
    """
    chosen = rng.integers(0, len(bits), QUERIES)
    out = rng.integers(0, 256, (QUERIES, SKETCH_BYTES), dtype=np.uint8)
    flips = np.packbits(rng.random((QUERIES, SKETCH_BYTES // 2, 8)) < share, axis=2)[..., 0]
    half = SKETCH_BYTES // 2
    for i, model in enumerate(chosen):
        at = slice(0, half) if i % 2 else slice(half, None)
        out[i, at] = bits[model, at] ^ flips[i]
    return chosen, out


def exact(bits: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Hamming distances by counting unpacked bits.

    Returns:
        `[n, 2]`.
    """
    differing = np.unpackbits(bits ^ query, axis=1)
    return differing.reshape(len(bits), 2, -1).sum(axis=2, dtype=np.int64)


def measure(n: int, home: Path) -> dict[str, Any]:
    """All figures for one size.

    Returns:
        Times in milliseconds, recall by share of changed bits.
    """
    rng = np.random.default_rng([SEED, n])
    bits = rng.integers(0, 256, (n, SKETCH_BYTES), dtype=np.uint8)
    registry = filled(home / f"{n}.db", bits)
    start = time.perf_counter()
    index = registry.sketch_index(SPEC)
    opened = time.perf_counter() - start
    recall, times = {}, []
    for share in SHARES:
        chosen, asked = queries(rng, bits, share)
        found = 0
        for model, query in zip(chosen, asked, strict=True):
            start = time.perf_counter()
            near = index.nearest(query, LIMIT)
            times.append(time.perf_counter() - start)
            found += Digest(f"sha256:{int(model) * 2654435761 % 2**32:064x}") in {x.digest for x in near}
        recall[str(share)] = found / QUERIES
    plain = SketchIndex([Digest(f"{i:09}") for i in range(n)], bits)
    same = all(np.array_equal(plain.distances(q), exact(bits, q)) for q in asked[:5])
    registry.close()
    return {
        "models": n,
        "open_index_ms": round(1e3 * opened, 1),
        "query_ms_median": round(1e3 * float(np.median(times)), 2),
        "query_ms_p99": round(1e3 * float(np.quantile(times, 0.99)), 2),
        "equals_exact_count": same,
        "recall_at": LIMIT,
        "queries_per_share": QUERIES,
        "recall_by_share_of_changed_bits": recall,
    }


def main() -> None:
    """Measure every size and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_scale.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        figures = [measure(n, Path(home)) for n in options.sizes]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"seed": SEED, "machine": machine, "sizes": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
