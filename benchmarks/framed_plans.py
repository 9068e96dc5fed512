"""How often does a false plan beside a pruned network make a stranger its parent?

Networks of random numbers, three convolutions each; one is pruned, and its plan is written for another network: in
every layer the rows, in ascending order, whose kernels look most alike. About 20 seconds for 200 pairs on one core.

    python benchmarks/framed_plans.py [--pairs N] [--out FILE]      writes benchmarks/results/framed_plans.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stemma.kinship.claimed_units import check_claimed_units
from stemma.networks.load import load
from testbeds.measured import write_result

WIDTHS, KEPT, ALPHA = (16, 40, 56), 0.6, 0.01

Arrays = dict[str, np.ndarray]
Slices = dict[str, dict[str, list[int]]]


def plan_of(kept: Sequence[np.ndarray]) -> Slices:
    """The rows that a plan lists."""
    out: Slices = {}
    for i, rows in enumerate(kept):
        out.setdefault(f"layers.{i}.weight", {})["0"] = rows.tolist()
        out[f"layers.{i}.bias"] = {"0": rows.tolist()}
        out.setdefault(f"layers.{i + 1}.weight", {})["1"] = rows.tolist()
    return out


def random_network(seed: int) -> Arrays:
    draw, out = np.random.default_rng([11, seed]), Arrays()
    for i, (a, b) in enumerate(zip((3, *WIDTHS), (*WIDTHS, 10), strict=True)):
        shape = (b, a, 3, 3) if i < len(WIDTHS) else (b, a)
        out[f"layers.{i}.weight"] = draw.normal(size=shape).astype("f4")
        out[f"layers.{i}.bias"] = draw.normal(size=b).astype("f4")
    return out


def most_alike(child: np.ndarray, stranger: np.ndarray) -> np.ndarray:
    """The stranger's rows, ascending, that are most like the child's in their order, by dynamic programming."""
    flat = (x.reshape(len(x), -1) for x in (child, stranger))
    b, a = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat)
    alike, best = b @ a.T, np.full((len(b) + 1, len(a) + 1), -np.inf)
    best[0] = 0
    for j in range(1, len(b) + 1):
        for k in range(j, len(a) + 1):
            best[j, k] = max(best[j, k - 1], best[j - 1, k - 1] + alike[j - 1, k - 1])
    rows, j, k = list[int](), len(b), len(a)
    while j:
        k -= 1
        if best[j, k + 1] != best[j, k]:
            rows.append(k)
            j -= 1
    return np.array(rows[::-1])


def false_plan(child: Arrays, stranger: Arrays) -> list[np.ndarray]:
    """The rows of a stranger, layer by layer, that make it look most like the parent of the child."""
    kept = list[np.ndarray]()
    for i in range(len(WIDTHS)):
        x = stranger[f"layers.{i}.weight"]
        kept.append(most_alike(child[f"layers.{i}.weight"], x.take(kept[-1], 1) if kept else x))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "framed_plans.json")
    args = parser.parse_args()
    start, called = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.pairs):
            draw, child, stranger = np.random.default_rng(seed), random_network(2 * seed), random_network(2 * seed + 1)
            for name, axes in plan_of([np.sort(draw.permutation(n)[: round(KEPT * n)]) for n in WIDTHS]).items():
                for axis, rows in axes.items():
                    child[name] = child[name].take(rows, int(axis))
            at = [Path(folder) / f"{seed}-{k}" for k in ("stranger", "framed")]
            for place, arrays in zip(at, (stranger, child), strict=True):
                place.mkdir()
                save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, place / "model.safetensors")
            (at[1] / "plan.json").write_text(json.dumps({"slices": plan_of(false_plan(child, stranger))}))
            called += check_claimed_units(*(load(p / "model.safetensors") for p in at), ALPHA) is not None
    seconds = round(time.perf_counter() - start)
    print(f"{called} of {args.pairs} strangers were called a parent ({seconds} s)")
    write_result(args.out, {"pairs": args.pairs, "called a parent": called, "level": ALPHA, "seconds": seconds})


if __name__ == "__main__":
    main()
