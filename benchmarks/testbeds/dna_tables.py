"""Pairs of sources and children out of test groups, and what is counted of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stemma.fingerprints.dna import pack, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.dna_closeness import ProvenanceClassifier
from stemma.kinship.function.dna_population import Population, channel_correlations
from stemma.measures.intervals import at_boundary
from stemma.training.dna import populations
from stemma.training.dna_groups import FEATURE_STEP, OTHER_ARCHITECTURE_WAYS, Group, GroupRecipe
from stemma.zoo.provenance import Member

DRAWS, SEED = 1000, 20261126
DISTILLED = ("distilled", "distilled, other architecture")
TRANSFERRED = ("new head", "new head, longer", "new head, 10 shots", "other labels", "two generations", "lora")
Scores = Callable[["Looked", "Looked", np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Looked:
    """A test group with everything that was measured of it."""

    recipe: GroupRecipe
    members: Sequence[Member]
    found: Mapping[str, np.ndarray]

    def group(self, how: str = "soft answers") -> Group:
        return Group(
            self.recipe.name, self.found[how],
            np.array([m.source for m in self.members]), np.array([m.way for m in self.members]),
        )  # fmt: skip

    @cached_property
    def targets(self) -> list[str | None]:
        """What each member learnt last."""
        return [m.recipe.parameters.get("data") for m in self.members]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scored pairs.

    Attributes:
        value: Larger is nearer.
        own: Whether the source is the child's.
        family: Of the child, for the bootstrap.
        other_family: Of the source.
        same_data: Whether the two sources learnt the same data.
        kept_data: Whether the child learnt what its source had learnt.
        way: How the child was made.
        backbone: Whether candidate and true source are of one kind of network.
    """

    value: np.ndarray
    own: np.ndarray
    family: np.ndarray
    other_family: np.ndarray
    same_data: np.ndarray
    kept_data: np.ndarray
    way: np.ndarray
    backbone: np.ndarray

    def where(self, chosen: np.ndarray) -> "Pairs":
        return Pairs(*(getattr(self, n)[chosen] for n in self.__dataclass_fields__))


def pairs_of(
    groups: Sequence[Looked], score: Scores, asked: Callable[[Looked, int], bool] = lambda looked, child: True
) -> Pairs:
    """Every child of every group that is asked about against every source of every group; NaN scores are left out."""
    columns: dict[str, list[Any]] = {n: [] for n in Pairs.__dataclass_fields__}
    for home in groups:
        everyone = [i for i, m in enumerate(home.members) if m.way not in ("source", "stranger")]
        children = np.array([i for i in everyone if asked(home, i)])
        for other in groups:
            sources = [m.source for m in other.members if m.way == "source"]
            values = score(other, home, children)
            for i, s in enumerate(sources):
                for j, child in enumerate(children):
                    m = home.members[child]
                    if not np.isfinite(values[i, j]):
                        continue
                    row = {
                        "value": values[i, j], "own": home is other and m.source == s,
                        "family": f"{home.recipe.name}/{m.source}", "other_family": f"{other.recipe.name}/{s}",
                        "same_data": (home.recipe.data, home.recipe.task) == (other.recipe.data, other.recipe.task),
                        "kept_data": home.targets[child] == home.recipe.data or m.way.startswith(("8", "4", "p")),
                        "way": m.way, "backbone": home.recipe.kind == other.recipe.kind,
                    }  # fmt: skip
                    for name, value in row.items():
                        columns[name].append(value)
    return Pairs(**{n: np.array(v) for n, v in columns.items()})


def by_dna(encoder: FragmentEncoder, beside: Sequence[Group], how: str = "soft answers") -> Scores:
    """Scores by DNA; the population are the training sources of the child's kind, or strangers of its architecture."""
    judge = ProvenanceClassifier(encoder.classifier)
    codes: dict[int, np.ndarray] = {}

    def of(looked: Looked) -> np.ndarray:
        if id(looked) not in codes:
            rows = looked.found[how].astype(np.float32) * FEATURE_STEP
            codes[id(looked)] = np.stack([unpack(pack(encoder(f))) for f in rows]).astype(np.float64)
        return codes[id(looked)]

    known: dict[str, dict[bool, Population]] = {}

    def score(other: Looked, home: Looked, children: np.ndarray) -> np.ndarray:
        kind = home.recipe.kind
        if kind not in known:
            known[kind] = populations(encoder, beside, kind)
        theirs = of(other)[other.group(how).rows("source")]
        strange = np.array([home.members[c].way in OTHER_ARCHITECTURE_WAYS for c in children])
        out = np.empty((len(theirs), len(children)))
        for some, population in known[kind].items():
            here = np.flatnonzero(strange == some)
            out[:, here] = judge.log_odds(
                channel_correlations(population(theirs), population(of(home)[children[here]]))
            )
        return out

    return score


def verdicts(
    encoder: FragmentEncoder, groups: Sequence[Looked], beside: Sequence[Group], alpha: float = 0.05
) -> dict[str, Any]:
    """How often the conformal test supports kinship, the training sources of the kind being the null models.

    One view: the child among the null models, as its own source sees it, and as other sources of the same data do.
    """
    judge, rows = ProvenanceClassifier(encoder.classifier), []
    for home in groups:
        null = np.stack([
            unpack(pack(encoder(g.features[i])))
            for g in beside if g.kind == home.recipe.kind for i in g.rows("source")
        ]).astype(np.float64)  # fmt: skip
        codes = np.stack(
            [unpack(pack(encoder(f.astype(np.float32) * FEATURE_STEP))) for f in home.found["soft answers"]]
        )
        sources = home.group().rows("source")
        for child, m in enumerate(home.members):
            if m.way in ("source", "stranger", "distilled, other architecture"):
                continue
            pool = np.concatenate([codes[child][None].astype(np.float64), null])
            against = Population.of(pool)
            values = judge.log_odds(channel_correlations(against(codes[sources].astype(np.float64)), against(pool)))
            p = (values[:, 1:] >= values[:, :1]).sum(1) + 1
            rows += [(home.recipe.name, m.way, int(s) == m.source, float(q) / len(pool), m.source)
                     for s, q in zip(home.group().source[sources], p, strict=True)]  # fmt: skip
    own, p, way = np.array([r[2] for r in rows]), np.array([r[3] for r in rows]), np.array([r[1] for r in rows])
    family = np.array([f"{r[0]}/{r[4]}" for r in rows])

    def rate(chosen: np.ndarray) -> dict[str, Any]:
        hits = (p <= alpha).astype(float)
        names = np.unique(family[chosen])
        parts = [hits[chosen & (family == f)] for f in names]
        rng = np.random.default_rng(SEED)
        means = [
            np.concatenate([parts[i] for i in rng.integers(len(parts), size=len(parts))]).mean() for _ in range(DRAWS)
        ]
        low, high = at_boundary(tuple(np.quantile(means, [0.025, 0.975])), float(hits[chosen].mean()), len(names))
        return {"rate": round(float(hits[chosen].mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)],
                "n": int(chosen.sum())}  # fmt: skip

    ways = dict.fromkeys(way.tolist())
    return {"alpha": alpha, "null models": len(null), "own source": rate(own), "other source of the data": rate(~own),
            "ways": {w: {"own": rate(own & (way == w)), "other": rate(~own & (way == w))} for w in ways}}  # fmt: skip


def by_nearness(row: int) -> Scores:
    """Scores by one of the baselines, which are known within a group only."""

    def score(other: Looked, home: Looked, children: np.ndarray) -> np.ndarray:
        count = sum(m.way == "source" for m in other.members)
        return home.found["nearness"][row][:, children] if other is home else np.full((count, len(children)), np.nan)

    return score


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def cell(pairs: Pairs, positive: np.ndarray, negative: np.ndarray) -> dict[str, Any]:
    """Area under the curve between two sets of pairs, with an interval by resampling the children's families."""
    families = np.unique(pairs.family[positive | negative])
    if not positive.any() or not negative.any():
        return {"positives": int(positive.sum()), "negatives": int(negative.sum())}
    rows = [
        (pairs.value[positive & (pairs.family == f)], pairs.value[negative & (pairs.family == f)]) for f in families
    ]
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(rows), size=len(rows))
        drawn.append(auroc(*(np.concatenate([rows[i][k] for i in chosen]) for k in (0, 1))))
    p, n = pairs.value[positive], pairs.value[negative]
    low, high = at_boundary(tuple(np.nanquantile(drawn, [0.025, 0.975])), auroc(p, n), len(families))
    bar = np.quantile(n, 0.99)
    return {
        "auroc": round(auroc(p, n), 4), "interval": [round(float(low), 4), round(float(high), 4)],
        "found_at_1_percent": round(float((p > bar).mean()), 4), "positives": len(p), "negatives": len(n),
        "families": len(families),
    }  # fmt: skip


def hard(pairs: Pairs) -> dict[str, Any]:
    """Own source against sources that differ in nothing but the seed, over all ways and way by way."""
    near = pairs.same_data & pairs.backbone
    ways = {w: cell(pairs, pairs.own & (pairs.way == w), near & ~pairs.own & (pairs.way == w))
            for w in dict.fromkeys(pairs.way.tolist())}  # fmt: skip
    sets = {"transferred": TRANSFERRED, "distilled": DISTILLED}
    some = {name: cell(pairs, pairs.own & np.isin(pairs.way, s), near & ~pairs.own & np.isin(pairs.way, s))
            for name, s in sets.items()}  # fmt: skip
    return {"all": cell(pairs, pairs.own, near & ~pairs.own), **some, "ways": ways, "first": first(pairs.where(near)),
            "within": {"all": within(pairs.where(near)),
                       **{n: within(pairs.where(near & np.isin(pairs.way, s))) for n, s in sets.items()}}}  # fmt: skip


def within(pairs: Pairs) -> float:
    """Mean area over groups and ways, for methods whose figures cannot be compared across them."""
    groups = np.array([f.rsplit("/", 1)[0] for f in pairs.family])
    areas = []
    for g in np.unique(groups):
        for w in np.unique(pairs.way[groups == g]):
            here = (groups == g) & (pairs.way == w)
            areas.append(auroc(pairs.value[here & pairs.own], pairs.value[here & ~pairs.own]))
    return round(float(np.nanmean(areas)), 4)


def together(methods: Sequence[Pairs], ways: Sequence[str] = DISTILLED) -> dict[str, Any]:
    """Several methods joined: the mean of their scores, each in units of its spread over sources of a child's data."""
    tables: list[dict[tuple[str, str, str], float]] = []
    for pairs in methods:
        near = pairs.where(pairs.same_data & pairs.backbone & np.isin(pairs.way, ways))
        children: dict[tuple[str, str], list[int]] = {}
        for i, key in enumerate(zip(near.family.tolist(), near.way.tolist(), strict=True)):
            children.setdefault(key, []).append(i)
        table = {}
        for (family, way), rows in children.items():
            values = near.value[rows]
            units = (values - values.mean()) / max(float(values.std()), 1e-12)
            table |= {(family, way, near.other_family[i]): float(u) for i, u in zip(rows, units, strict=True)}
        tables.append(table)
    keys = sorted(tables[0])
    value = np.array([np.mean([t[k] for t in tables if k in t]) for k in keys])
    family, way, other = (np.array(c) for c in zip(*keys, strict=True))
    yes = np.ones(len(keys), bool)
    joined = Pairs(value, family == other, family, other, yes, yes, way, yes)
    return {"all": cell(joined, joined.own, ~joined.own),
            **{w: cell(joined, joined.own & (way == w), ~joined.own & (way == w)) for w in ways}}  # fmt: skip


def first(pairs: Pairs) -> dict[str, Any]:
    """How often a child's own source comes first among the sources of its group."""
    children: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(pairs.family.tolist(), pairs.way.tolist(), strict=True)):
        children.setdefault(key, []).append(i)
    hits = [bool(pairs.own[max(rows, key=lambda i: pairs.value[i])]) for rows in children.values()]
    return {"share": round(float(np.mean(hits)), 4), "children": len(hits)}


def difference(one: Pairs, other: Pairs) -> dict[str, Any]:
    """Paired bootstrap over families: how much larger the area of the one is among the hard pairs."""
    families = np.unique(one.family)
    near = one.same_data & one.backbone
    rows = [(one.family == f) & near for f in families]
    parts = [(one.value[r & one.own], one.value[r & ~one.own], other.value[r & other.own], other.value[r & ~other.own])
             for r in rows]  # fmt: skip
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(parts), size=len(parts))
        a, b, c, d = (np.concatenate([parts[i][k] for i in chosen]) for k in range(4))
        drawn.append(auroc(a, b) - auroc(c, d))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"difference": round(float(np.mean(drawn)), 4), "interval": [round(float(low), 4), round(float(high), 4)],
            "better": bool(low > 0)}  # fmt: skip
