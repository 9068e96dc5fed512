"""What matched units look like between independent networks: the null of `units-matched`, shipped with the package.

1,000 pairs per kind, every pair of two networks trained apart (MLP, CNN: a ring over 1,000 networks, each in two pairs;
ViT and language model: pairs drawn from 64 networks). Also the acceptance count: none may be taken for a disguise.

    python benchmarks/matched_null.py     writes benchmarks/results/matched_null.json and the one in the package
"""

import argparse
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import stemma
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.matched import UnitsMatched, is_exact
from stemma.models.load import from_arrays
from stemma.models.model import Model
from stemma.zoo import independents

SEED, DATE = 20261121, "2026-11-20"
SIZES = {"mlp": 1000, "cnn": 1000, "vit": 64, "lm": 64}
PAIRS = 1000


def pairs(kind: str) -> list[tuple[Model, Model]]:
    models = independents(kind, SIZES[kind], seed=SEED)
    if len(models) >= PAIRS:
        return [(models[i], models[(i + 1) % len(models)]) for i in range(PAIRS)]
    every = list(itertools.combinations(range(len(models)), 2))
    chosen = np.random.default_rng(SEED).choice(len(every), PAIRS, replace=False)
    return [(models[every[i][0]], models[every[i][1]]) for i in chosen]


def anonymous(model: Model, generator: np.random.Generator) -> Model:
    """The same weights under names that mean nothing, as a disguise would have them.

    Returns:
        A model.
    """
    code = generator.permutation(len(model.tensors))
    return from_arrays({f"t{c:04d}": t.array() for c, t in zip(code, model.tensors.values(), strict=True)}, "anonymous")


def study(kind: str, renamed_every: int) -> tuple[list[float], dict[str, Any]]:
    method, generator = UnitsMatched(), np.random.default_rng(SEED)
    cosines, exact, start = [], 0, time.perf_counter()
    for i, (a, b) in enumerate(pairs(kind)):
        found = method.search(a, anonymous(b, generator) if i % renamed_every == 0 else b)
        if found is None:
            cosines.append(0.0)
            continue
        unit_map, reference, target, _ = found
        cosines.append(unit_map.cosine)
        exact += is_exact(unit_map, reference, target)
    q = np.quantile(cosines, [0.5, 0.99, 1.0]).round(4).tolist()
    return cosines, {
        "pairs": len(cosines),
        "networks": SIZES[kind],
        "taken_for_a_disguise": exact,
        "median": q[0],
        "quantile_.99": q[1],
        "largest": q[2],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matched_null.json")
    parser.add_argument("--kinds", nargs="*", default=list(SIZES))
    args = parser.parse_args()
    shipped = Path(stemma.__file__).parent / "kinship" / "weights" / "matched_null.json"
    before = json.loads(shipped.read_text()) if shipped.exists() else {}
    cosines, sizes = before.get("cosines", {}), before.get("sizes", {})
    result = json.loads(args.out.read_text()) if args.out.exists() else {"kinds": {}}
    result |= {
        "version": stemma.__version__,
        "seed": SEED,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for kind in args.kinds:
        values, result["kinds"][kind] = study(kind, renamed_every=2)
        cosines[kind] = sorted(round(v, 4) for v in values)
        one = independents(kind, 1, seed=SEED, untrained=True)[0]
        sizes[kind] = sorted(sorted(s for s in t.shape if s > 1) for t in matrices(one).values())
        shipped.write_text(
            json.dumps(
                {
                    "made_by": "benchmarks/matched_null.py",
                    "date": DATE,
                    "seed": SEED,
                    "sizes": sizes,
                    "cosines": cosines,
                }
            )
            + "\n"
        )
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(kind, result["kinds"][kind], flush=True)


if __name__ == "__main__":
    main()
