"""How often are strangers taken for kin, and how often cleared? Networks trained apart, 10,000 pairs by default.

Perceptrons, convolutional networks, vision transformers and language models; architectures, widths, training and data
drawn at random. Two pairs in five have the same shapes, the hard case; the others differ in widths or depth. A tenth is
judged a second time with names that mean nothing and no configuration.

Measured: each verdict by kind and by form, with exact intervals over pairs and a bootstrap over networks (pairs share
networks); beside them the cosine of the weights, as they lie and after weight matching, with the threshold that parts
disguised copies from strangers best in one half of the networks, on strangers of the other half.

    python benchmarks/verdicts_independent.py --data DIR     writes benchmarks/results/verdicts_independent.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbeds import verdict_scores as scores
from testbeds.disguises import baselines
from testbeds.disguises.alignment import whole_cosine
from testbeds.varied.training import Bed, Network
from testbeds.varied_networks import FORMS, KINDS, Group, form_of, group

SEED, PAIRS, MEMBERS, ALIKE = 20261206, 10_400, 16, 0.4
"""ALIKE: share of the pairs whose shapes are the same; the others are of one kind."""

RENAMED, MATCHED, DRAWS = 0.1, 0.1, 1000
"""Shares of the pairs that are judged again under other names, and that are matched for the baseline."""

GOAL = 0.9
"""Share of `independent` that is hoped for where Stemma knows the architecture."""

KNOWN = ("mlp-relu", "mlp-gelu", "mlp-tanh", "mlp-norm", "plain", "vgg", "resnet", "vit", "llama", "llama-tied", "gpt2",
         "bert")  # fmt: skip
RESULT = "verdicts_independent.json"
At = tuple[str, int, int]
"""A network: kind, group, member."""


@lru_cache(maxsize=64)
def drawn(kind: str, number: int) -> Group:
    """The forms of a kind take turns; everything else is drawn."""
    return group(kind, number, SEED, MEMBERS, FORMS[kind][number % len(FORMS[kind])])


@lru_cache(maxsize=64)
def network(at: At, data: Path, cache: Path) -> Network:
    return Bed(data, cache).network(drawn(*at[:2]).recipes[at[2]])


@lru_cache(maxsize=64)
def model(at: At, data: Path, cache: Path) -> Any:
    one = network(at, data, cache)
    return scores.model("-".join(map(str, at)), one.arrays, one.config)


def trained(task: tuple[At, Path, Path]) -> tuple[At, str, int, float]:
    """Train one network, if it is not in the cache."""
    torch.set_num_threads(1)
    one = network(*task)
    return task[0], form_of(one.design), int(sum(x.size for x in one.arrays.values())), one.quality


def planned(pairs: int, kinds: tuple[str, ...] = KINDS, members: int = MEMBERS) -> list[tuple[At, At]]:
    """Pairs of the same shapes, all of a group; and pairs of two groups of a kind, drawn."""
    own = list(itertools.combinations(range(members), 2))
    groups = math.ceil(ALIKE * pairs / len(kinds) / len(own))
    rng, out = np.random.default_rng(SEED), []
    for kind in kinds:
        alike = [((kind, g, i), (kind, g, j)) for g in range(groups) for i, j in own]
        other = []
        while len(other) < round((1 - ALIKE) / ALIKE * len(alike)):
            a, b = rng.choice(groups, 2, replace=False) if groups > 1 else (0, 0)
            other.append(((kind, int(a), int(rng.integers(members))), (kind, int(b), int(rng.integers(members)))))
        out += alike + [p for p in other if p[0] != p[1]]
    return out


def is_known(one: Network) -> bool:
    """Whether its names and layers are of a family: chains of layers, torchvision's ResNets, transformers' models."""
    return form_of(one.design) in KNOWN and one.design.get("names", "torchvision") == "torchvision"


def opaque(at: At, data: Path, cache: Path, seed: int) -> Any:
    one = network(at, data, cache)
    order = np.random.default_rng([SEED, 3, seed]).permutation(len(one.arrays))
    return scores.model("x", {f"t{i:04d}": x for i, x in zip(order, one.arrays.values(), strict=True)}, None)


def examined(task: tuple[int, At, At, float, Path, Path]) -> dict[str, Any]:
    which, a, b, share, data, cache = task
    torch.set_num_threads(1)
    rng = np.random.default_rng([SEED, 2, which])
    first, second = network(a, data, cache), network(b, data, cache)
    row = scores.judged(model(a, data, cache), model(b, data, cache))
    alike = a[:2] == b[:2]
    out = {
        "a": a, "b": b, "kind": a[0], "form": form_of(first.design), "same_shapes": alike,
        "known": is_known(first) and is_known(second),
        "same_data": first.recipe.data == second.recipe.data, **row,
        "cosine": round(whole_cosine(first.arrays, second.arrays), 4),
    }  # fmt: skip
    if rng.random() < (RENAMED if share < 1 else 1):
        out["renamed"] = scores.judged(opaque(a, data, cache, 2 * which), opaque(b, data, cache, 2 * which + 1))
    if alike and rng.random() < share:
        out |= baselines.beside(first.arrays, second.arrays, first.design, rng)
    return out


def over_networks(rows: list[dict[str, Any]], verdict: str) -> list[float]:
    """95 % interval of the share of a verdict when networks are drawn again: a pair counts as often as both do."""
    names = sorted({r[k] for r in rows for k in ("a", "b")})
    number = {n: i for i, n in enumerate(names)}
    first, second = (np.array([number[r[k]] for r in rows]) for k in ("a", "b"))
    said, rng, found = np.array([r["verdict"] == verdict for r in rows]), np.random.default_rng(SEED), []
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = times[first] * times[second]
        found.append(float((weight * said).sum() / max(weight.sum(), 1)))
    return [round(float(q), 5) for q in np.quantile(found, (0.025, 0.975))]


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Verdicts of some pairs, and how many networks were ever called related to a stranger."""
    if not rows:
        return {}
    wrong = {r[k] for r in rows if r["verdict"] == "related" for k in ("a", "b")}
    networks = {r[k] for r in rows for k in ("a", "b")}
    descent = sum(scores.is_descent(r) for r in rows)
    effects = [r["effect"] for r in rows if r["effect"] is not None]
    return {
        **scores.counted(rows),
        "effect": [round(float(q), 4) for q in np.quantile(effects, (0.5, 0.99, 1))] if effects else None,
        "smallest_log10_p": min((r["log10_p"] for r in rows if r["log10_p"] is not None), default=None),
        "bootstrap": {v: over_networks(rows, v) for v in scores.VERDICTS},
        "false_related": scores.at_most(sum(r["verdict"] == "related" for r in rows), len(rows), scores.ALPHA),
        "false_descent": scores.at_most(descent, len(rows), scores.ALPHA),
        "networks_ever_wrong": scores.share(len(wrong), len(networks)),
        "cleared_as_hoped": sum(r["verdict"] == "independent" for r in rows) >= GOAL * len(rows),
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, Any]:
    renamed = [{**r, **r["renamed"]} for r in rows if "renamed" in r]
    out = {"all": table(rows), "same shapes": table([r for r in rows if r["same_shapes"]])}
    out["other shapes"] = table([r for r in rows if not r["same_shapes"]])
    out |= {k: table([r for r in rows if r["kind"] == k]) for k in KINDS}
    known = [r for r in rows if r["known"]]
    out["known, same shapes"] = table([r for r in known if r["same_shapes"]])
    out |= {f"known, {k}": table([r for r in known if r["kind"] == k]) for k in KINDS}
    forms = sorted({r["form"] for r in rows})
    return {
        "kinds": out,
        "forms of the same shapes": {f: table([r for r in rows if r["form"] == f and r["same_shapes"]]) for f in forms},
        "renamed": {"all": table(renamed)} | {k: table([r for r in renamed if r["kind"] == k]) for k in KINDS},
    }


def thresholds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Thresholds from pairs of groups of even number, rates on the others."""
    out = {}
    for name, word in (("cosine", "cosine"), ("matched", "after weight matching")):
        known = [r for r in rows if "matched" in r]
        halves = [[r for r in known if r["a"][1] % 2 == odd] for odd in (0, 1)]
        cosines = [([r[f"{name}_of_a_copy"] for r in half], [r[name] for r in half]) for half in halves]
        out[word] = baselines.measured(*cosines)
    return out


def main() -> None:
    parser = scores.arguments(__doc__, RESULT)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    args = parser.parse_args()
    if not scores.ready(args):
        return
    plan = planned(24, members=3) if args.quick else planned(args.pairs)
    every = sorted({at for pair in plan for at in pair})
    made = list(scores.mapped(trained, [(at, args.data, args.cache) for at in every], args.jobs, "networks"))
    share = 1.0 if args.quick else MATCHED
    tasks = [(i, a, b, share, args.data, args.cache) for i, (a, b) in enumerate(plan)]
    rows = list(scores.mapped(examined, tasks, args.jobs, "pairs"))
    found = tables(rows)
    result = {
        **scores.about(args, {"networks and pairs": SEED}),
        "goal": {"false_related": scores.ALPHA, "independent": GOAL},
        "networks": {
            "count": len(made),
            "groups": len({at[:2] for at, *_ in made}),
            "parameters": [int(q) for q in np.quantile([m[2] for m in made], (0, 0.5, 1))],
            "median_right": {k: round(float(np.median([m[3] for m in made if m[0][0] == k])), 3) for k in KINDS},
        },
        **found,
        "baselines": thresholds(rows),
        "wrong": [r for r in rows if r["verdict"] == "related" or r.get("renamed", r)["verdict"] == "related"],
    }
    for word in ("kinds", "forms of the same shapes", "renamed"):
        scores.print_table(word, {k: v for k, v in found[word].items() if v})
    print("\nfalse related", found["kinds"]["all"]["false_related"], "\nbaselines", result["baselines"])
    scores.written(args, RESULT, result)


if __name__ == "__main__":
    main()
