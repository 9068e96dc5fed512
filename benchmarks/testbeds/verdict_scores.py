"""What `stemma compare` says of pairs, and how often, with exact intervals; shared by the verdict suites."""

import argparse
import collections
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from testbeds.measured import methods, write_result
from testbeds.varied import data
from testbeds.varied.training import default_cache

ALPHA = 0.01
LEVEL = 0.001
VERDICTS = ("related", "independent", "inconclusive")
NOT_DESCENT = ("same-init", "unrelated")
"""Relations that say nothing about where the weights come from."""


def judged(a: Any, b: Any) -> dict[str, Any]:
    """The verdict on two models made by `stemma.from_arrays`, with its evidence and its time."""
    import stemma

    start = time.perf_counter()
    found = stemma.compare(a, b, alpha=ALPHA)
    w = found.weights
    return {
        "verdict": found.verdict,
        "relation": found.relation.kind.value,
        "relation_steps": list(found.relation.steps),
        "statistic": w.statistic,
        "effect": None if w.effect is None else round(float(w.effect), 4),
        "log10_p": None if w.log10_p is None else round(float(w.log10_p), 2),
        "not_tested": [str(x) for x in getattr(found, "not_tested", ())],
        "seconds": round(time.perf_counter() - start, 3),
    }


def model(name: str, arrays: Mapping[str, Any], config: Mapping[str, Any] | None) -> Any:
    import stemma

    return stemma.from_arrays(dict(arrays), name=name, config=config)


def is_descent(row: Mapping[str, Any]) -> bool:
    """Whether a row says that the one network comes from the other, or both from a third."""
    return row["verdict"] == "related" and row["relation"] not in NOT_DESCENT


def interval(k: int, n: int) -> list[float]:
    """Clopper and Pearson, 95 %."""
    ci = binomtest(k, n).proportion_ci(0.95, "exact")
    return [round(float(ci.low), 5), round(float(ci.high), 5)]


def share(k: int, n: int) -> dict[str, Any]:
    return {"count": k, "of": n, "rate": round(k / n, 5) if n else None, "interval": interval(k, n) if n else None}


def counted(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How often each verdict was given."""
    rows = list(rows)
    found = collections.Counter(r["verdict"] for r in rows)
    return {
        **{v: share(found[v], len(rows)) for v in VERDICTS},
        "relations": dict(collections.Counter(r["relation"] for r in rows if r["verdict"] == "related")),
        "median_seconds": round(float(np.median([r["seconds"] for r in rows])), 3) if rows else None,
    }


def counted_by(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for r in rows:
        groups.setdefault(str(r[key]), []).append(r)
    return {name: counted(group) for name, group in groups.items()}


def at_most(k: int, n: int, rate: float) -> dict[str, Any]:
    """Whether a count is no more than a rate allows: exact binomial, rejected at .001."""
    p = float(binomtest(k, n, rate, alternative="greater").pvalue) if n else 1.0
    return {**share(k, n), "allowed": rate, "binomial_p": p, "rejected_at_.001": p < LEVEL}


def print_table(title: str, table: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"\n{title:34s}{'pairs':>6s}{'related':>9s}{'indep.':>8s}{'inconcl.':>9s}  seconds  relations")
    for name, row in table.items():
        relations = ", ".join(f"{k} {v}" for k, v in sorted(row["relations"].items(), key=lambda kv: -kv[1]))
        n = [row[v]["count"] for v in VERDICTS]
        print(f"{name:34s}{sum(n):6d}{n[0]:9d}{n[1]:8d}{n[2]:9d}{row['median_seconds']:9.2f}  {relations}")


def arguments(about: str, result: str) -> argparse.ArgumentParser:
    """The options that the suites share."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("STEMMA_DATA")
    parser.add_argument("--data", type=Path, default=Path(given) if given else None, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where trained networks are kept")
    parser.add_argument("--out", type=Path, default=None, help=f"default: {result} under benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="two minutes: a little of everything, nothing written")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser


def ready(args: argparse.Namespace) -> bool:
    """Whether the data is there; says why not. Comparisons leave the user's registry alone."""
    os.environ["STEMMA_REGISTRY"] = ":memory:"
    if (why := data.missing(args.data)) is not None:
        print(f"skipped: {why}", file=sys.stderr)
        return False
    return True


def written(args: argparse.Namespace, result: str, found: dict[str, Any]) -> None:
    """The result as JSON; a quick run is only written where a file was asked for."""
    if args.quick and args.out is None:
        return
    out = args.out or Path(__file__).parents[1] / "results" / result
    out.parent.mkdir(exist_ok=True)
    write_result(out, found)


def about(args: argparse.Namespace, seeds: Mapping[str, int]) -> dict[str, Any]:
    """What every result starts with."""
    import scipy
    import torch

    import stemma

    return {
        "version": stemma.__version__,
        "measured_with": methods(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, torch {torch.__version__}",
        "quick": args.quick,
        "alpha": ALPHA,
        "seeds": dict(seeds),
    }


def mapped(work: Callable[[Any], Any], items: list[Any], jobs: int, word: str) -> Iterator[Any]:
    """Results in order, from a few processes; progress on stderr."""
    start = time.perf_counter()

    def shown(results: Iterable[Any]) -> Iterator[Any]:
        for i, found in enumerate(results, 1):
            if i % max(1, len(items) // 20) == 0:
                print(f"{word}: {i} of {len(items)}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            yield found

    if jobs < 2:
        yield from shown(map(work, items))
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from shown(pool.map(work, items, chunksize=max(1, min(8, len(items) // (4 * jobs)))))
