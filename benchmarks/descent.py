"""Direction and parents on networks of eleven kinds that Stemma did not train: every kind left out of the fit in turn.

Histories of real training (`testbeds/histories`): a root with checkpoints, children by every usual way of fine-tuning,
grandchildren, siblings that learnt the same. For each kind of network the models of pairs and of parenthood are fitted
on the other kinds (and on zoo families of other kinds), and asked about this one: which of two came first, who is the
parent among relatives, and what set of candidates holds the parent. The sets are calibrated on the other kinds too. In
every other draw of who is enrolled nobody is there whom weights hardly tell from others: checkpoints of one run, a
child that learnt the same, that went back, that hardly moved or moved in its head alone. Orphans beside a sibling that
moved less than half as far as they did are counted apart. Family trees are drawn of random parts of every history, the
first ancestor missing in a quarter of them, with the same models; what their probabilities mean is taken from other
kinds. Beside it stand rules without any fit: the larger norm is later; the nearest is the parent; a spanning tree. What
the model of parenthood learns from other kinds was said of them by models of pairs that had seen this kind; the answers
about this kind come from models that had not.

python benchmarks/descent.py --data DIR            writes benchmarks/results/descent.json
python benchmarks/descent.py --data DIR --ship     fits on all kinds and writes what ships with the package
"""

import argparse
import json
import os
import pickle
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stemma import __version__
from stemma.ancestry.direction import FORWARD, DirectionModel
from stemma.ancestry.geometry import ANTISYMMETRIC, VERSION, Geometry
from stemma.ancestry.parent_model import FEATURE_NAMES, ParentModel
from stemma.measures.intervals import at_boundary
from stemma.networks.load import from_arrays
from stemma.training import PRETRAINED
from stemma.training.direction import Pair, Query, fit_direction, fit_parent_model, geometry_of, pairs, queries
from stemma.training.histories import Family, Member
from stemma.training.lineage_families import pedigrees
from stemma.training.parent_model import Answer, ScoredQuery, calibrate, right_by_probability, score_queries
from testbeds.histories.networks import KINDS
from testbeds.histories.trees import OF, ROOTLESS, Scored, drawn, part
from testbeds.measured import write_result

SEED = 71
DRAWS, DRAWS_OF_ZOO = 8, 2
"""Draws of who is enrolled, per family."""

COVERAGE = 0.95
"""Asked of the sets."""

ODD = ("alike", "first-back", "light", "probe")
"""Members that weights hardly tell from others."""

ZOO = {("mlp", True): range(3000, 3120), ("cnn", True): range(3000, 3040), ("mlp", False): range(3000, 3064),
       ("cnn", False): range(3000, 3024)}  # fmt: skip
"""Families of the zoo that are learnt from as well: kind, whether mixed, and seeds."""

LIKE = {"mlp": ("mlp",), "cnn": ("cnn", "cnn-norm", "resnet", "separable")}
"""Kinds of histories that zoo families of a kind are left out for."""

Key = tuple[str, int]
Measured = tuple[Family, Geometry]


def whole(family: Family) -> Measured:
    """A family with every pair of it measured; the weights are let go."""
    geometry = geometry_of(family)
    for i in range(len(geometry)):
        for j in range(i):
            geometry.pair_features(i, j)
    return replace(family, members=tuple(replace(m, model=None) for m in family.members)), geometry


def kept(cache: Path, name: str, make: Callable[[], Measured]) -> Measured:
    """What was measured once is kept beside the trained networks."""
    path = cache / f"geometry-{VERSION}-{name}.pkl"
    if not path.exists():
        made = make()
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(made))
        part.replace(path)
    return pickle.loads(path.read_bytes())


def history_of(kind: str, number: int, data: Path, cache: Path) -> Measured:
    def make() -> Measured:
        import torch

        from testbeds.histories.growing import history

        torch.set_num_threads(1)
        h = history(kind, number, SEED, data, cache)
        members = [Member(n, from_arrays(a, n, None), tuple(h.ancestors(n))) for n, a in h.arrays.items()]
        return whole(Family(kind, number, tuple(members)))

    return kept(cache, f"history-{SEED}-{kind}-{number}", make)


def zoo_of(kind: str, seed: int, mixed: bool, cache: Path) -> Measured:
    def make() -> Measured:
        import torch

        torch.set_num_threads(1)
        [pedigree] = pedigrees(kind, [seed], mixtures=mixed)
        return whole(pedigree.family)

    return kept(cache, f"zoo-{kind}-{'mixed' if mixed else 'tree'}-{seed}", make)


def others(kind: str, given: dict[Key, list[Any]]) -> list[Any]:
    """What is not of this kind of network, nor of the zoo's that is like it."""
    left_out = {kind, *(f"zoo {z}" for z, like in LIKE.items() if kind in like)}
    return [x for (k, _), some in given.items() if k not in left_out for x in some]


def of_pairs(known: dict[Key, list[Pair]], models: dict[str, DirectionModel]) -> dict[str, Any]:
    """Which of two came first, forced and by how sure it is, and how many of no descent are given one."""
    rows = [(key, p, q) for key, ps in known.items()
            for p, q in zip(ps, models[key[0]].from_features([x.features for x in ps]), strict=True)]  # fmt: skip
    descends = np.array([p.label == FORWARD for _, p, _ in rows])
    said = np.array([q[0] > q[1] for *_, q in rows])
    sure = np.array([q[:2].max() for *_, q in rows])
    norm = np.array([p.features.antisymmetric[ANTISYMMETRIC.index("norm")] > 0 for _, p, _ in rows])
    kinds = np.array([key[0] for key, *_ in rows])
    families = [key for key, *_ in rows]
    out: dict[str, Any] = {}
    for kind in ("all", *sorted(set(kinds))):
        at = descends & ((kinds == kind) | (kind == "all"))
        out[kind] = {
            "pairs": int(at.sum()), "forced": rate(said[at], [families[i] for i in np.flatnonzero(at)]),
            "larger norm is later": round(float(norm[at].mean()), 4),
        }  # fmt: skip
    right = descends & said
    out["reliability"] = [
        {"from": float(lo), "pairs": int(b.sum()), "right": round(float(right[b].mean()), 4),
         "said": round(float(sure[b].mean()), 4)}
        for lo in np.arange(0.3, 1.0, 0.1).round(1) if (b := (sure >= lo) & (sure < lo + 0.1)).any()
    ]  # fmt: skip
    return out


def rate(values: np.ndarray, families: list[Key]) -> dict[str, Any]:
    """A mean with its 95 % interval by bootstrap over families."""
    values = np.asarray(values, float)
    groups = [values[[f == g for f in families]] for g in sorted(set(families))]
    rng = np.random.default_rng(0)
    means = [float(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean())
             for _ in range(1000)] if groups else [0.0]  # fmt: skip
    mean = float(values.mean()) if len(values) else 0.0
    interval = at_boundary(tuple(np.quantile(means, [0.025, 0.975])), mean, len(groups))
    return {
        "rate": round(mean, 4), "n": len(values), "families": len(groups), "interval": [round(q, 4) for q in interval],
    }  # fmt: skip


def is_odd(name: str) -> bool:
    """Whether weights hardly tell a member from another."""
    return "@" in name or name in ODD


def company(family: Family, draw: int) -> Family:
    """Who may be enrolled: in every other draw nobody whom weights hardly tell from others."""
    if draw % 2 == 0:
        return family
    return replace(family, members=tuple(replace(m, leaf=is_odd(m.name)) for m in family.members))


def suspects(family: Family, direction: DirectionModel, geometry: Geometry) -> list[Query]:
    """Every child of a family beside random parts of it."""
    out = []
    for draw in range(DRAWS_OF_ZOO if family.number >= min(map(min, ZOO.values())) else DRAWS):
        some = company(family, draw)
        leaves = {m.name for m in some.members if m.leaf}
        out += [q for q in queries(some, direction, draw, geometry=geometry) if q.suspect not in leaves]
    return out


def of_sets(answers: list[tuple[Answer, ParentModel]]) -> dict[str, Any]:
    """What sets and names say of the suspects of one kind."""
    held, sizes, named, wrong, orphans, nearest, likeliest = [], [], [], [], [], [], []
    where, with_parent, without = [], [], []
    for a, model in answers:
        chosen, unknown = model.parent_set(list(a.probabilities), COVERAGE)
        held.append(unknown if a.query.parent is None else a.query.parent in chosen)
        sizes.append(len(chosen) + unknown)
        alone = (
            chosen[0]
            if len(chosen) == 1
            and not unknown
            and a.probabilities[chosen[0]] >= model.parent_threshold(len(a.probabilities))
            else None
        )
        where.append(a.query.family)
        wrong.append(alone is not None and not a.comes_from(alone))
        if a.query.parent is None:
            orphans.append(alone is not None and not a.comes_from(alone))
            without.append(a.query.family)
        else:
            named.append(alone == a.query.parent)
            likeliest.append(int(a.probabilities.argmax()) == a.query.parent)
            nearest.append(a.query.parent == int(np.argmin(a.query.rows[:, FEATURE_NAMES.index("distance")])))
            with_parent.append(a.query.family)
    return {
        "suspects": len(answers), "coverage": rate(np.array(held), where), "size": round(float(np.mean(sizes)), 3),
        "parent named": rate(np.array(named), with_parent), "another named": rate(np.array(wrong), where),
        "likeliest is the parent": rate(np.array(likeliest), with_parent),
        "nearest is the parent": rate(np.array(nearest), with_parent),
        "orphans given a parent": rate(np.array(orphans), without),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("STEMMA_DATA", "data")))
    options.add_argument("--cache", type=Path, default=None)
    options.add_argument("--numbers", type=int, default=8, help="Histories of every kind.")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "descent.json")
    options.add_argument("--ship", action="store_true")
    given = options.parse_args()
    if given.cache is None:
        from testbeds.varied.training import default_cache

        given.cache = default_cache()
    families = measured(given.numbers, given.data, given.cache, given.jobs)
    known = {k: [p for s in (0, 1) for p in pairs(f, s, geometry=g)] for k, (f, g) in families.items()}
    directions = {kind: fit_direction(others(kind, known)) for kind in KINDS}
    of_zoo = {z: directions[like[0]] for z, like in LIKE.items()}
    by = {**directions, **{f"zoo {z}": d for z, d in of_zoo.items()}}
    asked = {k: suspects(f, by[k[0]], g) for k, (f, g) in families.items()}
    held: dict[str, list[ScoredQuery]] = {}
    fitted: dict[str, ParentModel] = {}
    for kind in KINDS:
        fitted[kind] = fit_parent_model(others(kind, asked), directions[kind])
        held[kind] = score_queries(fitted[kind], [q for k, qs in asked.items() if k[0] == kind for q in qs])
    everyone = [h for kind in KINDS for h in held[kind]]
    sets = scored(held, directions[KINDS[0]])
    histories = {k: ps for k, ps in known.items() if k[0] in KINDS}
    grown = trees(held, families, fitted, given.jobs)
    result = {
        "version": __version__, "machine": platform.machine(), "seed": SEED,
        "families": {"histories": len(histories), "zoo, learnt from alone": len(families) - len(histories)},
        "coverage asked": COVERAGE, "pairs": of_pairs(histories, directions), "parents": sets,
        "trees": of_trees(grown),
    }  # fmt: skip
    print(
        json.dumps({**{k: result["parents"][k] for k in ("plain company", "all")}, "trees": result["trees"]}, indent=1)
    )
    write_result(given.out, result)
    if given.ship:
        ship(
            known,
            asked,
            everyone,
            table(list(grown.values())),
            {**result["families"], "kinds": list(KINDS), "seed": SEED},
        )


def trees(
    held: dict[str, list[ScoredQuery]], families: dict[Key, Measured], fitted: dict[str, ParentModel], jobs: int
) -> dict[tuple[str, int, int], Scored]:
    """Drawings of parts of every history, by kind, number and draw."""
    waiting = {}
    with ProcessPoolExecutor(jobs) as pool:
        for kind in KINDS:
            model = calibrate(fitted[kind], [h for k in KINDS if k != kind for h in held[k]])
            for (k, number), (family, geometry) in families.items():
                if k == kind:
                    waiting[kind, number] = pool.submit(drawings, family, geometry, model)
        return {(*key, draw): s for key, one in waiting.items() for draw, s in enumerate(one.result())}


def drawings(family: Family, geometry: Geometry, model: ParentModel) -> list[Scored]:
    """Drawings of parts of one history."""
    left_out = [m.name for m in family.members if is_odd(m.name)]
    return [drawn(part(family, geometry, draw, left_out if draw % 2 else ()), model) for draw in range(DRAWS)]


def table(some: Iterable[Scored]) -> list[list[float]]:
    """How often edges are right by the probability that they were drawn with."""
    lines = [line for s in some for line in s.lines if line.said is not None]
    return right_by_probability([line.said for line in lines], [line.right for line in lines])


def of_trees(grown: dict[tuple[str, int, int], Scored]) -> dict[str, Any]:
    """What family trees hold, kind by kind, with probabilities calibrated on the other kinds."""
    calibration_tables = {kind: table(o for k, o in grown.items() if k[0] != kind) for kind in KINDS}
    sure = {
        k: np.interp([x.said for x in s.lines if x.said is not None], *calibration_tables[k[0]])
        for k, s in grown.items()
    }
    out: dict[str, Any] = {}
    for what in (*KINDS, "all", "odd members left out", "with the first ancestor", "without it"):
        keys = [k for k in grown if what in (k[0], "all") or (what == "odd members left out" and k[2] % 2)
                or (what == "with the first ancestor" and k[2] % OF not in ROOTLESS)
                or (what == "without it" and k[2] % OF in ROOTLESS)]  # fmt: skip
        lines = [(k[:2], x) for k in keys for x in grown[k].lines]
        true, right = sum(grown[k].true for k in keys), sum(x.right for _, x in lines)
        plain = [grown[k].baseline for k in keys]
        clear = [grown[k].clear for k in keys]
        out[what] = {
            "drawings": len(keys), "edges": true, "drawn": len(lines),
            "right of drawn": rate(np.array([x.right for _, x in lines]), [k for k, _ in lines]),
            "f1": round(2 * right / max(1, true + len(lines)), 4),
            "f1 of a spanning tree": round(2 * sum(r for r, _ in plain) / max(1, true + sum(n for _, n in plain)), 4),
            "reversed": sum(x.reversed for _, x in lines),
            "clear edges": sum(n for n, _ in clear), "clear edges drawn": sum(r for _, r in clear),
        }  # fmt: skip
    told = [(float(p), x) for k, s in grown.items()
            for p, x in zip(sure[k], [x for x in s.lines if x.said is not None], strict=True)]  # fmt: skip
    out["reliability"] = []
    for lo in np.arange(0, 1, 0.1).round(1):
        some = [(p, x) for p, x in told if lo <= p < lo + 0.1 + (lo == 0.9)]
        means = np.mean([(p, x.right, x.reversed) for p, x in some], axis=0).round(4).tolist() if some else [0.0] * 3
        shares = dict(zip(("said", "right", "reversed"), means, strict=True))
        out["reliability"] += [{"from": float(lo), "edges": len(some), **shares}] if some else []
    return out


def scored(held: dict[str, list[ScoredQuery]], direction: DirectionModel) -> dict[str, Any]:
    """Sets and names by kind, each calibrated on the others, and by company."""
    empty, out, answers = ParentModel(direction, direction.trees), {}, []
    for kind in KINDS:
        model = calibrate(empty, [h for k in KINDS if k != kind for h in held[k]])
        told = [(h.answer(model.trees.about["choice"]), model) for h in held[kind]]
        out[kind] = of_sets([x for x in told if not x[0].query.ambiguous])
        answers += told
    told = [x for x in answers if not x[0].query.ambiguous]
    for low, high in ((1, 1), (2, 3), (4, 99)):
        out[f"{low} to {high} candidates"] = of_sets([x for x in told if low <= len(x[0].probabilities) <= high])
    out["plain company"] = of_sets([x for x in told if plain(x[0].query)])
    out["all"] = of_sets(told)
    out["a sibling stands for the parent"] = of_sets([x for x in answers if x[0].query.ambiguous])
    return out


def plain(query: Query) -> bool:
    """Whether nobody is there whom weights hardly tell from others."""
    return not any(map(is_odd, (query.suspect, *query.candidates)))


def measured(numbers: int, data: Path, cache: Path, jobs: int) -> dict[Key, Measured]:
    """All families by kind and number; those of the zoo under kinds of their own."""
    cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {(kind, n): pool.submit(history_of, kind, n, data, cache) for n in range(numbers) for kind in KINDS}
        waiting |= {
            (f"zoo {kind}", seed + (0 if mixed else 100000)): pool.submit(zoo_of, kind, seed, mixed, cache)
            for (kind, mixed), seeds in ZOO.items()
            for seed in seeds
        }
        return {key: one.result() for key, one in waiting.items()}


def ship(known: dict, asked: dict, held: list[ScoredQuery], edges: list[list[float]], made: dict[str, Any]) -> None:
    """Fit on all kinds; thresholds and tables stay those of kinds left out."""
    direction = fit_direction([p for ps in known.values() for p in ps], about=made)
    model = fit_parent_model([q for qs in asked.values() for q in qs], direction, about=made)
    model = calibrate(model, held, edges)
    direction.trees.save(PRETRAINED / "direction.safetensors")
    model.trees.save(PRETRAINED / "parenthood.safetensors")


if __name__ == "__main__":
    main()
