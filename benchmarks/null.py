"""Is the p-value of `units-in-place` a p-value? All pairs of independently trained networks, every seed fixed.

For each kind of network: rates of rejection of the randomised and of the conservative p-value with their exact
binomial tests, and a Kolmogorov-Smirnov test. For every other test (single axes by e-values, the sketch, the order of
units between networks of different width): that it does not exceed its level, with its power on known descendants
beside it. Then the verdicts of the whole comparison, trained against trained and trained against untrained.

    python benchmarks/null.py            writes benchmarks/results/null.json
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
from scipy.stats import binomtest, kstest

from stemma import __version__
from stemma.architectures.structure import AxisLabel, Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.kinship.compare import compare
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.contents.sketched import SketchedUnitsAlike
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.order.counts import Counts
from stemma.kinship.weights.order.units_in_place import UnitsInPlace
from stemma.zoo import family, independents
from testbeds.measured import methods, write_result

COUNTS = {"mlp": 142, "cnn": 142, "vit": 64, "lm": 64}
ZOO_SEED, U_SEED, LEVEL = 20261120, 7, 0.001


def single_axes(known: Structure) -> Structure:
    """The same axes without the knowledge of which belong together: what an unknown architecture gives.

    Returns:
        A structure that only permits the mean-e variant.
    """
    axes: dict[str, tuple[AxisLabel, ...]] = dict(known.axes)
    return Structure("benchmark:single-axes", False, axes, ())


def all_pairs(models: list[Model], kind: str) -> dict[str, Any]:
    method, known = UnitsInPlace(), structure(models[0])
    loose = single_axes(known)
    uniform = np.random.default_rng(U_SEED).random(len(models) * (len(models) - 1) // 2)
    rand, conservative, mean_e, effects = [], [], [], []
    start = time.perf_counter()
    for (a, b), u in zip(itertools.combinations(models, 2), uniform, strict=True):
        pairings = by_name(a, b)
        counts = method.count(a, b, pairings, known)
        rand.append(counts.randomised_p(u))
        conservative.append(np.exp(counts.log_p() or 0.0))
        effects.append(counts.effect)
        mean_e.append(np.exp(method.count(a, b, pairings, loose).log_p() or 0.0))
    n = len(rand)
    out: dict[str, Any] = {
        "models": len(models),
        "pairs": n,
        "groups": len(known.groups),
        "seconds": round(time.perf_counter() - start, 1),
    }
    out["units_of_a_pair"] = counts.units
    for name, p in (("randomised", rand), ("conservative", conservative), ("mean_e", mean_e)):
        out[name] = {str(a): rejected(np.array(p), a, two_sided=name == "randomised") for a in (0.05, 0.01)}
    ks = kstest(rand, "uniform")
    out["randomised_quantiles"] = np.quantile(rand, np.linspace(0, 1, 101)).round(4).tolist()
    out["kolmogorov_smirnov"] = {
        "statistic": round(float(ks.statistic), 5),
        "p": float(ks.pvalue),
        "rejected_at_.001": bool(ks.pvalue < LEVEL),
    }
    out["largest_effect"] = round(max(effects), 4)
    out["smallest_conservative_p"] = float(min(conservative))
    print(kind, json.dumps({k: v for k, v in out.items() if k != "randomised_quantiles"}), flush=True)
    return out


OTHER_WIDTHS = {
    "mlp": {"hidden": [56, 52, 40]},
    "cnn": {"stem": 16, "widths": [12, 28, 24]},
    "vit": {"inner": 48},
    "lm": {"intermediate_size": 144},
}


def other_tests(models: list[Model], kind: str) -> dict[str, Any]:
    """Size on pairs of independent networks and power on descendants, of the tests that need not be exact."""
    from stemma.zoo.kinds import KINDS

    narrow = independents(kind, 24, seed=ZOO_SEED + 2, config={**KINDS[kind].config, **OTHER_WIDTHS[kind]})
    method, sketch, sketched = UnitsInPlace(), WeightSketch(), SketchedUnitsAlike()
    known, loose = structure(models[0]), single_axes(structure(models[0]))
    chosen = list(itertools.combinations(models[:64], 2))
    taken = {id(m): sketch(m) for m in models[:64]}

    def unequal(a: Model, b: Model) -> float:
        counts = method.count(a, b, by_name(a, b), structure(a))
        only = Counts(counts.mode, counts.unequal)
        return float(np.exp(only.log_p() or 0.0))

    def by_axis(a: Model, b: Model) -> float:
        return float(np.exp(method.count(a, b, by_name(a, b), loose).log_p() or 0.0))

    def by_group(a: Model, b: Model) -> float:
        return float(np.exp(method.count(a, b, by_name(a, b), known).log_p() or 0.0))

    def by_sketch(a: Model, b: Model) -> float:
        x, y = taken.get(id(a)) or sketch(a), taken.get(id(b)) or sketch(b)
        return sketched.evidence(x, y, a).p_value or 1.0

    def by_contents(a: Model, b: Model) -> float:
        return contents_in_place(a, b, by_name(a, b), 0.01).p_value or 1.0

    zoo = family(kind)
    root = zoo[f"{kind}/root"].model
    kin = [m.model for m in zoo.members if m.name.split("/")[1] in DESCENDANTS]
    cut = [zoo[f"{kind}/{n}"].model for n in ("units-pruned", "units-pruned-finetuned")]
    size_pairs = {
        "single_axes": (by_axis, chosen),
        "contents": (by_contents, chosen),
        "sketched": (by_sketch, chosen),
        "order_of_units": (unequal, list(itertools.product(models[:64], narrow))),
    }
    power_pairs = {
        "units_in_place": (by_group, kin),
        "single_axes": (by_axis, kin),
        "contents": (by_contents, kin),
        "sketched": (by_sketch, kin),
        "order_of_units": (unequal, cut),
    }
    out: dict[str, Any] = {}
    for name, (test, pairs) in size_pairs.items():
        p = np.array([test(a, b) for a, b in pairs])
        out[name] = {"pairs": len(p), **{str(a): rejected(p, a, two_sided=False) for a in (0.05, 0.01)}}
    for name, (test, children) in power_pairs.items():
        found = [test(root, c) for c in children]
        out.setdefault(name, {})["power"] = {"descendants": len(found), "below_1e-6": sum(v < 1e-6 for v in found)}
    print(kind, json.dumps(out), flush=True)
    return out


DESCENDANTS = (
    "half",
    "finetuned",
    "finetuned-twice",
    "finetuned-other-data",
    "finetuned-other-data-twice",
    "finetuned-third",
    "lora",
    "unlearned",
    "weights-pruned",
    "weights-pruned-finetuned",
    "int8",
    "int4",
    "merged-two",
    "merged-three",
    "head-replaced",
    "part-inherited",
)


def rejected(p: np.ndarray, alpha: float, *, two_sided: bool) -> dict[str, Any]:
    k = int((p <= alpha).sum())
    side = "two-sided" if two_sided else "greater"
    test = binomtest(k, len(p), alpha, alternative=side)
    return {
        "rate": round(k / len(p), 5),
        "binomial_p": float(test.pvalue),
        "rejected_at_.001": bool(test.pvalue < LEVEL),
    }


def verdicts(pairs: list[tuple[Model, Model]], alpha: float = 0.01) -> dict[str, Any]:
    counted = {"related": 0, "independent": 0, "inconclusive": 0}
    for a, b in pairs:
        counted[compare(a, b, alpha=alpha).verdict] += 1
    n = len(pairs)
    test = binomtest(counted["related"], n, alpha, alternative="greater")
    high = binomtest(counted["related"], n).proportion_ci(0.95, "exact").high
    return {
        "pairs": n,
        **counted,
        "alpha": alpha,
        "binomial_p": float(test.pvalue),
        "upper_95": round(float(high), 5),
        "rejected_at_.001": bool(test.pvalue < LEVEL),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "null.json")
    parser.add_argument("--kinds", nargs="*", default=list(COUNTS))
    parser.add_argument(
        "--verdict-pairs", type=int, default=300, help="per kind, trained-trained and trained-untrained"
    )
    args = parser.parse_args()
    result: dict[str, Any] = {
        "version": __version__,
        "measured_with": methods(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}",
        "seeds": {"zoo": ZOO_SEED, "randomisation": U_SEED},
        "level": LEVEL,
        "kinds": {},
    }
    if args.out.exists():
        result["kinds"] = json.loads(args.out.read_text())["kinds"]
    for kind in args.kinds:
        models = independents(kind, COUNTS[kind], seed=ZOO_SEED)
        fresh = independents(kind, 32, seed=ZOO_SEED + 1, untrained=True)
        entry = all_pairs(models, kind)
        generator = np.random.default_rng(ZOO_SEED)
        trained = [tuple(generator.choice(len(models), 2, replace=False)) for _ in range(args.verdict_pairs)]
        mixed = [
            (int(generator.integers(len(models))), int(generator.integers(len(fresh))))
            for _ in range(args.verdict_pairs)
        ]
        entry["verdict_trained_against_trained"] = verdicts([(models[i], models[j]) for i, j in trained])
        entry["verdict_trained_against_untrained"] = verdicts([(models[i], fresh[j]) for i, j in mixed])
        entry["other_tests"] = other_tests(models, kind)
        print(kind, entry["verdict_trained_against_trained"], entry["verdict_trained_against_untrained"], flush=True)
        result["kinds"][kind] = entry
        args.out.parent.mkdir(exist_ok=True)
        write_result(args.out, result)


if __name__ == "__main__":
    main()
