"""Candidate search in large registries: is the true parent of a child found, how fast, and in how much memory?

    python benchmarks/search_recall.py [--kinds mlp cnn] [--families 25] [--sizes 10000 100000] [--speed 100000 1000000]

writes benchmarks/results/search_recall.json (with the defaults about two hours on one core: 100,000 sketches of a
kind take 20 minutes, and a family is trained in 5 to 10 seconds).

*Recall*: whole families are trained (`stemma.zoo`); each member is looked for among its family and `--sizes`
distractors of the same architecture whose sketches are really computed (`testbeds.distractors`). A parent is found if
it is among the candidates that `stemma trace` compares in full: the nearest sketches, the same matrices, the same
hidden units. Members that were made by several steps from the root (permuted and fine-tuned, pruned and fine-tuned, …)
are looked for without what lies between. *Speed*: a registry of `--speed` models is written with these sketches, both
codes drawn from them independently where there are more models than sketches; then a fresh registry object opens the
index and searches. Times are wall-clock, of the machine named in the result. The search is exact: its answer is
compared with a plain count.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sqlalchemy as sa

from stemma import __version__
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.fingerprints.unit_keys import UnitKeys
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.registry import Registry, rows, schema
from stemma.registry.search import SketchIndex
from stemma.types import Digest, jsonable
from stemma.workspace import LIMIT
from stemma.zoo import family, independents
from testbeds.distractors import combined, compound_children, distractors, fingerprints
from testbeds.measured import write_result

SEED = 20261130
NOT_IN_WEIGHTS = ("distilled", "distilled-other-architecture")
"""Children whose weights are their own: no search by weights can find their parents."""


def recall(kind: str, families: int, sizes: Sequence[int], bits: np.ndarray, keys: np.ndarray) -> dict[str, Any]:
    """Share of parents found, by relation and number of distractors.

    Returns:
        Counts by member name.
    """
    sketch, units = WeightSketch(), UnitKeys()
    found: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    holders: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(keys):
        for key in set(row.tolist()) - {0}:
            holders[key].append(i)
    for seed in range(families):
        zoo = family(kind, SEED % 1000 + seed, keep=False)
        members = {m.name: m.model for m in zoo.members}
        asked: list[tuple[str, Model, str]] = [
            (m.name.partition("/")[2], m.model, p) for m in zoo.members for p in m.parents
        ]
        asked += [(name, child, f"{kind}/root") for name, child in compound_children(kind, members, seed)]
        made = {n: (sketch(m).values["bits"], set(units(m).values["unit_keys"].tolist())) for n, m in members.items()}
        for name, child, parent in asked:
            own, own_keys = sketch(child).values["bits"], set(units(child).values["unit_keys"].tolist())
            others = [n for n in members if members[n].digest != child.digest or n == parent]
            digests = {n: {m_digest(members[n], t) for t in matrices(members[n])} for n in {parent}}
            shared = bool(digests[parent] & {m_digest(child, t) for t in matrices(child)})
            for size in sizes:
                table = np.concatenate([np.stack([made[n][0] for n in others]), bits[:size]])
                index = SketchIndex([Digest(n) for n in others] + [Digest(f"~{i}") for i in range(size)], table)
                near = {x.digest for x in index.nearest(own, LIMIT + 1)}
                by_units = sharing(own_keys, {n: made[n][1] for n in others}, holders, size)
                found[name][size].append(parent in near or shared or parent in by_units)
    out: dict[str, Any] = {}
    for name, by_size in found.items():
        out[name] = {
            "n": len(by_size[sizes[0]]),
            "made_from_weights": name not in NOT_IN_WEIGHTS,
            **{str(s): round(float(np.mean(v)), 4) for s, v in by_size.items()},
        }
    return out


def summary(by_kind: dict[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
    """Parents found among the most distractors, over all kinds and relations that are made from the weights.

    Returns:
        Counts, and the relation that is found least often.
    """
    size = str(max(sizes))
    rows = [(r[size], r["n"], f"{kind}: {name}") for kind, found in by_kind.items() for name, r in found.items()
            if r["made_from_weights"]]  # fmt: skip
    found, asked = sum(round(share * n) for share, n, _ in rows), sum(n for _, n, _ in rows)
    share, n, name = min(rows)
    return {"models": max(sizes), "found": found, "of": asked, "least": {"relation": name, "share": share, "n": n}}


def m_digest(model: Model, name: str) -> str:
    return str(model.tensor_digests.get(name, name))


def sharing(own: set[int], near: dict[str, set[int]], holders: dict[int, list[int]], size: int) -> set[str]:
    """The models with the most of these hidden units, as `Registry.by_unit_keys` finds them.

    Returns:
        Their names; of distractors none.
    """
    counts = {n: len(own & keys) for n, keys in near.items()}
    others: dict[int, int] = defaultdict(int)
    for key in own:
        for i in holders.get(key, ()):
            others[i] += i < size
    ranked = sorted([*counts.items(), *others.items()], key=lambda c: -c[1])[: LIMIT // 2]
    return {str(n) for n, count in ranked if count > 1}


def filled(path: Path, bits: np.ndarray) -> None:
    """A registry with these sketches, written in bulk."""
    registry = Registry(path)
    registry.make_writable()
    registry.close()
    spec = WeightSketch().spec
    engine = sa.create_engine(f"sqlite:///{path}")
    record = rows.encode({"name": "bulk"})
    with engine.begin() as c:
        c.execute(schema.spec.insert().values(id=1, digest=spec.digest, content=json.dumps(jsonable(spec))))
        for start in range(0, len(bits), 50_000):
            part = range(start + 1, min(start + 50_000, len(bits)) + 1)
            digests = {i: f"sha256:{i * 2654435761 % 2**32:064x}" for i in part}
            named = [{"id": i, "digest": d, "names_free_digest": d, "manifest": d} for i, d in digests.items()]
            c.execute(schema.content.insert(), named)
            models = [{"id": i, "name": f"m{i}", "digest": d, "removed": False, **record} for i, d in digests.items()]
            c.execute(schema.model.insert(), models)
            c.execute(schema.live.insert(), [{"name": f"m{i}", "model_id": i, "content_id": i} for i in part])
            stored = {"spec_digest": spec.digest, "blob_digest": "none", "record": "{}"}
            c.execute(schema.fingerprint.insert(), [
                {"id": i, "model_digest": digests[i], "record_digest": f"row {i}", **stored} for i in part
            ])  # fmt: skip
            coded = [{"spec_id": 1, "content_id": i, "bits": bits[i - 1].tobytes()} for i in part]
            c.execute(schema.sketch_bits.insert(), coded)
    engine.dispose()


def speed(n: int, sketches: np.ndarray, home: Path, queries: int = 50) -> dict[str, Any]:
    """Times of opening and searching a registry of `n` models.

    Returns:
        Milliseconds, and the memory of this process.
    """
    rng = np.random.default_rng([SEED, n])
    bits = combined(sketches, n, rng)
    filled(home / f"{n}.db", bits)
    spec, opened, counted, times = WeightSketch().spec, [], [], []
    for _ in range(4):
        registry = Registry(home / f"{n}.db")
        start = time.perf_counter()
        index = registry.sketch_index(spec)
        opened.append(time.perf_counter() - start)
        start = time.perf_counter()
        registry.count()
        counted.append(time.perf_counter() - start)
    same = True
    for i in rng.integers(0, n, queries).tolist():
        query = bits[i] ^ np.packbits(rng.random(2048) < 0.1)
        start = time.perf_counter()
        near = index.nearest(query, 10)
        times.append(time.perf_counter() - start)
        if len(times) <= 3:
            parts = (np.unpackbits(bits[k : k + 20_000] ^ query, axis=1) for k in range(0, n, 20_000))
            plain = np.concatenate([p.reshape(-1, 2, 1024).sum(axis=2) for p in parts])
            order = np.argsort(plain[:, 0], kind="stable")[:2]
            same &= {int(plain[order[0], 0])} <= {x.ordered for x in near}
    return {
        "models": n, "first_opening_ms": round(1e3 * opened[0]),
        "opening_ms": round(1e3 * float(np.median(opened[1:])), 1),
        "count_ms": round(1e3 * float(np.median(counted)), 1),
        "top_10_ms_median": round(1e3 * float(np.median(times)), 1),
        "top_10_ms_p95": round(1e3 * float(np.quantile(times, 0.95)), 1),
        "nearest_equals_plain_count": same, "recall_against_exact": 1.0 if same else 0.0,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--families", type=int, default=25)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--speed", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_recall.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "seed": SEED, "version": __version__, "limit": LIMIT,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}",
        "recall": {}, "speed": [],
    }  # fmt: skip
    bits = np.zeros((0, 256), np.uint8)
    for kind in options.kinds:
        trained, count = independents(kind, 64, seed=SEED % 977, keep=False), max(options.sizes)
        bits, keys = fingerprints(distractors(trained, count, SEED), count)
        result["recall"][kind] = recall(kind, options.families, options.sizes, bits, keys)
        result["summary"] = summary(result["recall"], options.sizes)
        write_result(options.out, result)
    with tempfile.TemporaryDirectory() as home:
        for n in options.speed:
            result["speed"].append(speed(n, bits, Path(home)))
            result["largest"] = result["speed"][-1]
            write_result(options.out, result)


if __name__ == "__main__":
    main()
