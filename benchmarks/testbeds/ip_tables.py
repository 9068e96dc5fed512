"""Rates of the property-protection testbed: areas under curves, powers and false positives, with their intervals.

Models are what is drawn anew: a negative stands in one pair with every victim, so its pairs are drawn together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from stemma.kinship.function import combined
from stemma.kinship.function.consensus import deviation_distances
from testbeds.ip_models import GROUPS
from testbeds.ip_scores import MEASURES, Suspects

DRAWS, ALPHA = 400, 0.01
NOT_EXTRACTED = ("finetune-a", "finetune-l", "prune", "int8", "lora", "transfer-a", "transfer-l", "transfer-c")
"""Groups that one threshold has to separate."""

EXTRACTED = ("extract-p", "extract-l", "extract-adv")

COLUMNS = ("field", "label-disagreement")
"""The distances that are combined, in the order of `combined.METHODS`."""

NORMALISED = ("field", "softmax-difference", "label-disagreement", "output-cka")
"""Single measures whose pooled areas are also given in units of the null, as the combination is."""

IN_UNITS = tuple(f"{name}-in-units" for name in NORMALISED)
ALL = ("combined", *MEASURES)
Score = Callable[[np.ndarray, int, str], np.ndarray]


def closer(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """1 where a positive is closer than a negative, a half for ties, `[positives, negatives]`."""
    gap = negatives[None] - positives[:, None]
    return ((gap > 0) + 0.5 * (gap == 0)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scored:
    """One regime with a score for every pair.

    Attributes:
        found: The distances.
        victims: Victims whose copies are scored.
        scores: `[models, victims]` by measure, with `combined`.
        seed: Of the draws.
    """

    found: Suspects
    victims: Sequence[int]
    scores: Mapping[str, np.ndarray]
    seed: int = 0

    @classmethod
    def of(cls, found: Suspects, victims: Sequence[int]) -> "Scored":
        joint = np.full((*found.accuracy.shape, found.agreement.shape[1]), np.nan)
        for kind in sorted({m["kind"] for m in found.meta}):
            null = found.rows(split="calibration", group="negative", kind=kind)
            rows = found.rows(split="test", kind=kind)
            for v in victims:
                rows_of_v = [i for i in rows if found.meta[i].get("victim", v) == v]
                joint[rows_of_v, v] = combined_scores(found, np.array(rows_of_v), null, v)
        in_units = {f"{name}-in-units": _in_units(found, name, victims) for name in NORMALISED}
        return cls(found, victims, {**found.distances, **in_units, "combined": joint})

    def negatives(self, kind: str, split: str = "test", **wanted: Any) -> np.ndarray:
        return self.found.rows(split=split, group="negative", kind=kind, **wanted)

    def copies(self, group: str, victim: int, **wanted: Any) -> np.ndarray:
        return self.found.rows(split="test", group=group, victim=victim, **wanted)

    def auc(self, group: str, measure: str) -> tuple[float, np.ndarray, int] | None:
        """Area averaged over victims, its draws, and how many copies stand behind it."""
        values, kind = self.scores[measure], GROUPS[group]
        rows = self.negatives(kind)
        drawn = np.random.default_rng([self.seed, 1]).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), DRAWS)
        points, draws, count = [], [], 0
        for v in self.victims:
            own = self.copies(group, v)
            again = np.random.default_rng([self.seed, 2, v]).multinomial(
                len(own), np.full(len(own), 1 / len(own)), DRAWS
            )
            here, there = np.isfinite(values[own, v]), np.isfinite(values[rows, v])
            if not here.any() or not there.any():
                continue
            wins = closer(values[own[here], v], values[rows[there], v])
            points.append(wins.mean())
            a, b = again[:, here].astype(np.float32), drawn[:, there].astype(np.float32)
            draws.append(((a @ wins) * b).sum(1) / (a.sum(1) * b.sum(1)))
            count += int(here.sum())
        return (float(np.mean(points)), np.mean(draws, 0), count) if points else None

    def pooled(self, groups: Sequence[str], measure: str) -> dict[str, Any] | None:
        """One threshold for all groups, kinds and victims; of what was asked, None where a group was not."""
        values = self.scores[measure]
        kinds = sorted({GROUPS[g] for g in groups})
        asked = {
            g: [(i, v) for v in self.victims for i in self.copies(g, v) if np.isfinite(values[i, v])] for g in groups
        }
        if not all(asked.values()):
            return None
        own = [pair for pairs in asked.values() for pair in pairs]
        victims = sorted({v for _, v in own})
        rows = np.concatenate([self.negatives(k) for k in kinds])
        rows = rows[np.isfinite(values[rows][:, victims]).all(1)]
        positives = np.array([values[i, v] for i, v in own])
        negatives = values[rows][:, victims]
        wins = closer(positives, negatives.ravel())
        draw = np.random.default_rng([self.seed, 3])
        n = draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), DRAWS // 2).astype(np.float32)
        p = draw.multinomial(len(own), np.full(len(own), 1 / len(own)), DRAWS // 2).astype(np.float32)
        spread = np.repeat(n, len(victims), 1)
        areas = ((p @ wins) * spread).sum(1) / (p.sum(1) * spread.sum(1))
        return {"auc": float(wins.mean()), "interval": _interval(areas), "positives": len(own), "negatives": len(rows)}

    def p_values(self, rows: np.ndarray, victim: int, measure: str) -> np.ndarray:
        """Conformal p-values against the calibration negatives of the same kind; NaN where not asked."""
        kind = self.found.meta[rows[0]]["kind"] if len(rows) else "same"
        null = self.negatives(kind, "calibration")
        if measure == "combined":
            return self._ranks(rows, null, victim)
        values, base = self.scores[measure][rows, victim], self.scores[measure][null, victim]
        if not np.isfinite(base).all():
            return np.full(len(rows), np.nan)
        p = (1 + (base[None] <= values[:, None]).sum(1)) / (1 + len(base))
        return np.where(np.isfinite(values), p, np.nan)

    def hardest(self, *, matched: bool) -> dict[str, Any]:
        """Of each victim's own architecture: negatives called copies, and extracted copies found."""
        hits, n, found, copies = 0, 0, 0, 0
        for v in self.victims:
            name = next(m["architecture"] for m in self.found.meta if m.get("victim") == v and m["group"] == "int8")
            null = self.negatives("same", "calibration", **({"architecture": name} if matched else {}))
            rows = self.negatives("same", architecture=name)
            extracted = [self.copies(g, v, architecture=name) for g in EXTRACTED]
            p, q = (self._ranks(r, null, v) for r in (rows, np.concatenate(extracted)))
            hits, n = hits + int((p <= ALPHA).sum()), n + len(p)
            found, copies = found + int((q <= ALPHA).sum()), copies + len(q)
        return {"null": len(null), "hits": hits, "n": n, "rate": hits / n, "lower": _low(hits, n, 0.05),
                "extracted_found": found, "extracted": copies, "power": found / copies}  # fmt: skip

    def _ranks(self, rows: np.ndarray, null: np.ndarray, victim: int) -> np.ndarray:
        out = []
        for value, others in (_combined(self.found, i, null, victim) for i in rows):
            out.append((1 + (others <= value).sum()) / (1 + len(others)))
        return np.array(out)

    def power(self, group: str, measure: str) -> dict[str, Any] | None:
        found = np.concatenate([self.p_values(self.copies(group, v), v, measure) for v in self.victims])
        found = found[np.isfinite(found)]
        if not len(found):
            return None
        hits, n = int((found <= ALPHA).sum()), len(found)
        return {"rate": hits / n, "hits": hits, "n": n, "interval": [_low(hits, n, 0.025), _high(hits, n, 0.025)]}

    def false_positives(self, kind: str, measure: str, architecture: str | None = None) -> dict[str, Any] | None:
        """At the shipped level on test negatives; with `architecture` only those of one."""
        wanted = {} if architecture is None else {"architecture": architecture}
        rows = self.negatives(kind, **wanted)
        each = [self.p_values(rows, v, measure) for v in self.victims]
        if not np.isfinite(np.concatenate(each)).all():
            return None
        hits, n = int(sum((p <= ALPHA).sum() for p in each)), sum(map(len, each))
        worst = max(int((p <= ALPHA).sum()) for p in each)
        return {"rate": hits / n, "hits": hits, "n": n, "models": len(rows), "lower": _low(hits, n, 0.05),
                "worst_victim": {"hits": worst, "n": len(rows), "lower": _low(worst, len(rows), 0.05)}}  # fmt: skip

    def matched(self, group: str, measure: str) -> dict[str, float] | None:
        """Against negatives of the suspect's own architecture only."""
        kind, values, points, weights = GROUPS[group], self.scores[measure], [], []
        for v in self.victims:
            for name in sorted({m["architecture"] for m in self.found.meta}):
                own = self.copies(group, v, architecture=name)
                rows = self.negatives(kind, architecture=name)
                if len(own) and np.isfinite(values[own, v]).all() and np.isfinite(values[rows, v]).all():
                    points.append(closer(values[own, v], values[rows, v]).mean())
                    weights.append(len(own))
        return {"auc": float(np.average(points, weights=weights)), "n": sum(weights)} if points else None

    def selected(self, group: str, count: int = 64) -> dict[str, float]:
        """Areas of the field: all probes, the first few, and those where selection negatives are furthest."""
        table, kind = self.found.per_probe["field"], GROUPS[group]
        held, rows = self.negatives(kind, "selection"), self.negatives(kind)
        areas: dict[str, list[float]] = {"all": [], "first": [], "selected": []}
        for v in self.victims:
            own = self.copies(group, v)
            best = np.argsort(-np.nanmean(table[held, v], 0))[:count]
            for name, take in (("all", slice(None)), ("first", slice(count)), ("selected", best)):
                a, b = (np.nanmean(table[r, v][:, take], 1) for r in (own, rows))
                areas[name].append(float(closer(a, b).mean()))
        return {name: float(np.mean(x)) for name, x in areas.items()}


def _columns(found: Suspects, rows: np.ndarray, victim: int) -> np.ndarray:
    return np.stack([found.distances[name][rows, victim] for name in COLUMNS], 1).astype(float)


def _in_units(found: Suspects, name: str, victims: Sequence[int]) -> np.ndarray:
    """A single distance against the calibration negatives of the same victim and kind."""
    out = np.full(found.agreement.shape, np.nan)
    for kind in sorted({m["kind"] for m in found.meta}):
        null, rows = found.rows(split="calibration", group="negative", kind=kind), found.rows(split="test", kind=kind)
        for v in victims:
            out[rows, v] = combined.log_lower_tails(found.distances[name][rows, v], found.distances[name][null, v])
    return out


def combined_scores(found: Suspects, rows: np.ndarray, null: np.ndarray, victim: int) -> np.ndarray:
    """The shipped combination for some suspects against one null."""
    return np.array([_combined(found, i, null, victim)[0] for i in rows])


def _combined(found: Suspects, suspect: int, null: np.ndarray, victim: int) -> tuple[float, np.ndarray]:
    """The shipped combination of a suspect and of its null, with shared deviations where the classes are the same."""
    rows = np.array([suspect, *null])
    table = _columns(found, rows, victim)
    if np.isfinite(found.roots[suspect]).all():
        table = np.column_stack([table, deviation_distances(found.victims[victim], found.roots[rows])])
    return combined.statistics(table[0], table[1:])


def _interval(draws: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(draws, (0.025, 0.975))]


def _low(hits: int, n: int, level: float) -> float:
    """Clopper and Pearson's lower limit."""
    return float(beta.ppf(level, hits, n - hits + 1)) if hits else 0.0


def _high(hits: int, n: int, level: float) -> float:
    return float(beta.ppf(1 - level, hits + 1, n - hits)) if hits < n else 1.0


def sensitivity(scored: Scored, group: str) -> dict[str, float]:
    """Areas of the combination had the labels weighed more or less; for information, nothing was chosen by it."""
    found, out = scored.found, {}
    null, rows = scored.negatives(GROUPS[group], "calibration"), scored.negatives(GROUPS[group])
    for weight in (0.0, 0.25, 0.5, 1.0, 2.0):
        areas = []
        for v in scored.victims:
            base, sides = _columns(found, null, v), []
            for r in (scored.copies(group, v), rows):
                logs = combined.log_lower_tails(_columns(found, r, v), base)
                sides.append(logs[:, 0] + weight * logs[:, 1])
            areas.append(float(closer(*sides).mean()))
        out[str(weight)] = float(np.mean(areas))
    return out


def group_table(scored: Scored, group: str) -> dict[str, Any]:
    """All measures on one group, and the combination against the best single one."""
    found, measures, draws = scored.found, {}, {}
    for name in ALL:
        area = scored.auc(group, name)
        if area is None:
            continue
        draws[name] = area[1]
        measures[name] = {"auc": area[0], "interval": _interval(area[1]), "n": area[2],
                          "power": scored.power(group, name), "matched": scored.matched(group, name)}  # fmt: skip
    rivals = {n: m["auc"] for n, m in measures.items() if n in SINGLE}
    best = max(rivals, key=lambda n: rivals[n])
    gap = draws["combined"] - draws[best]
    rows = [(i, v) for v in scored.victims for i in scored.copies(group, v)]
    same = GROUPS[group] != "transfer"
    return {
        "kind": GROUPS[group], "copies": len(rows),
        "accuracy": float(np.mean([found.accuracy[i] for i, _ in rows])) if same else None,
        "agreement": float(np.mean([found.agreement[i, v] for i, v in rows])) if same else None,
        "best_single": best, "combined_minus_best": measures["combined"]["auc"] - measures[best]["auc"],
        "combined_minus_best_interval": _interval(gap), "measures": measures,
        "within_two_points": _interval(gap)[0] >= -0.02,
        "selection": scored.selected(group) if GROUPS[group] == "same" else None,
        "label_weight": sensitivity(scored, group) if group.startswith("extract") else None,
    }  # fmt: skip


SINGLE = tuple(n for n in MEASURES if n not in ("published", "published-8", "weight-cosine"))
"""Functional measures that were asked of all models, so that differences to the combination are paired."""


def regime_table(scored: Scored, groups: Sequence[str]) -> dict[str, Any]:
    """Everything about one regime."""
    kinds = sorted({GROUPS[g] for g in groups})
    targets = [g for g in NOT_EXTRACTED if g in groups]
    return {
        "groups": {g: group_table(scored, g) for g in groups},
        "pooled": {
            title: {n: found for n in (*ALL, *IN_UNITS) if (found := scored.pooled(chosen, n))}
            for title, chosen in (
                ("not_extracted", targets), ("extracted", EXTRACTED), ("all", [*targets, "merge", *EXTRACTED]),
                ("same_head", [g for g in targets if GROUPS[g] == "same"]),
            )
        },
        "own_architecture": {"mixed_null": scored.hardest(matched=False), "own_null": scored.hardest(matched=True)},
        "false_positives": {
            kind: {n: found for n in ALL if (found := scored.false_positives(kind, n))} for kind in kinds
        },
    }  # fmt: skip
