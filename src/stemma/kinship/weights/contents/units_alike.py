"""The contents test: are matched units closer than units of independent networks in their best order?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import entries_with_content
from stemma.kinship.weights.constants.identity import CORNER as IDENTITY
from stemma.kinship.weights.constants.identity import near_identity
from stemma.kinship.weights.contents.agreement import FEWEST, of_blocks
from stemma.kinship.weights.contents.choices import Choice, choices_of, union_of_choices
from stemma.kinship.weights.maps.axis_map import PartMap
from stemma.kinship.weights.maps.blocks import MappedPair, UnitBlock
from stemma.kinship.weights.order.counts import LOG10, TINY
from stemma.kinship.weights.reordering_bound import detectable_cosine, log_tail, surplus
from stemma.types import Axis, Evidence, Null, Spec, Verdict

LOW_AGREEMENT = 0.1
"""Largest agreement (from chance 0 to identity 1) of a tensor that counts as different."""

MANY = 16
"""Units of an axis from which the axis with fewer units is used: its units have more entries."""

TOGETHER = 64
"""Tensors whose units are held together."""


@dataclass(frozen=True, eq=False)
class TensorAgreement:
    """Agreement of the units of one pair of tensors.

    Attributes:
        name: In the reference.
        size: Entries that have a counterpart.
        pairs: Matched units that were compared.
        gain: Sum of their gains, in nats.
        cosine: Their mean cosine.
        exponent: Free numbers of a unit, less one.
        choices: What could have been chosen to make its units agree.
        digest: Digest of the reference's tensor: equal contents count once.
        comparisons: Number of axes compared to choose its units, for which the p-value is corrected.
    """

    name: str
    size: int
    pairs: int
    gain: float
    cosine: float
    exponent: float
    choices: Mapping[str, Choice]
    digest: str
    comparisons: int = 1

    def chance(self, paid: float) -> float:
        """Approximate mean cosine of the best order of independent units, for orders that cost `paid` nats."""
        if self.exponent <= 0 or not self.pairs:
            return 1.0
        return float(np.sqrt(-np.expm1(-2 * min(30.0, paid / self.pairs / self.exponent))))


@dataclass(frozen=True)
class UnitsAlike:
    """Test whether the matched units of all tensors are closer than any order of independent units could make them.

    Anybody who has the other model can forge the order of units, but not their contents. So each matched unit gains the
    significance of its cosine relative to unmatched units, and the total gain has to exceed the log number of orders
    that could have been chosen. The bound (see `reordering_bound`) holds for any map: units in place, a map that was
    searched, or one that was forged.

    No single tensor decides: the p-value remains valid if any one tensor is a constant used by both networks (filters,
    principal components, embeddings), by leaving it out. Tables of waves and identities do not count at all.
    Cost: up to `units` units with `coordinates` entries each are read of every tensor, fewer if there are many tensors.

    Attributes:
        units: Most units per tensor that are compared.
        least: Least units per tensor.
        in_all: Approximate number of units compared in all tensors.
        coordinates: Entries of a unit that are compared.
        min_effect: Smallest share of the model that counts as a relation; below it a small p-value may come from other
            shared material. Fixed beforehand.
        telling: `independent` needs tensors that could have shown a relation at this mean cosine.

    Source: this project's; see docs/methods/weight_tests.md, "Contents of matched units".
    """

    units: int = 256
    least: int = 48
    in_all: int = 8192
    coordinates: int = 512
    min_effect: float = 0.05
    telling: float = 0.9

    name = "units-alike"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def compare(self, sides: MappedPair, parts: Mapping[str, PartMap], known: Structure) -> list[TensorAgreement]:
        """Agreement of every mapped pair of tensors that can be compared; parts by reference name."""
        units = max(self.least, min(self.units, self.in_all // max(1, len(parts))))
        names, out = list(parts), []
        for at in range(0, len(names), TOGETHER):
            some = {name: parts[name] for name in names[at : at + TOGETHER]}
            out += self._tensors(sides, some, known, units)
        return out

    def _tensors(
        self, sides: MappedPair, parts: Mapping[str, PartMap], known: Structure, units: int
    ) -> list[TensorAgreement]:
        """Agreement of a few tensors, whose blocks are held together: each along one axis or two, the better counts."""
        places, blocks, axes = [], [], dict[str, int]()
        for name, p in parts.items():
            if any(near_identity(x) for x in sides.corners(p.part, IDENTITY)):
                continue
            wanted = _unit_axes(p, known)
            axes[name] = len(wanted)
            for k in wanted:
                block = self._block(sides, p, units, k)
                if block is not None:
                    places.append(name)
                    blocks.append(block)
        shown: dict[str, list[TensorAgreement]] = {}
        for name, block, agreement in zip(places, blocks, of_blocks(blocks), strict=True):
            if agreement is not None and agreement[3]:
                p = parts[name]
                digest = sides.reference.model.tensor_digests.get(p.part.pairing.a, name)
                gain, cosine, exponent, pairs = agreement
                one = TensorAgreement(name, p.part.entries, pairs, gain, cosine, exponent,
                                      choices_of(name, p, block.seen, known), f"{digest} {name.partition('#')[2]}",
                                      axes[name])  # fmt: skip
                shown.setdefault(name, []).append(one)
        return [max(found, key=lambda f: f.pairs * f.exponent) for found in shown.values()]

    def _block(self, sides: MappedPair, p: PartMap, units: int, k: int) -> UnitBlock | None:
        """The rows of one axis of a pair of tensors as matched units."""
        m = p.maps[k]
        chosen = np.unique(np.linspace(0, len(m.rows) - 1, min(units, len(m.rows))).round().astype(int))
        rows, columns = m.rows[chosen], m.columns[chosen]
        maps = [None if i == k else own for i, own in enumerate(p.maps)]
        coordinates = max(2 * units, self.coordinates * units // self.units)
        block = sides.block(p.part, maps, k, coordinates, (rows[:, None], columns[:, None]))
        if block is None or m.signs is None:
            return block
        return replace(block, a=block.a * m.signs[chosen].reshape(-1, *(1,) * (block.a.ndim - 1)))

    def evidence(
        self,
        a: Model,
        b: Model,
        found: Sequence[TensorAgreement],
        alpha: float,
        details: Mapping[str, Any],
        tried: int = 1,
        claim: str = "units in the same position have similar weights",
    ) -> Evidence:
        """Evidence from the agreement of all tensors under one map.

        Args:
            a: The first model.
            b: The second model.
            found: Agreement of their tensors.
            alpha: Significance level.
            details: Further figures to report.
            tried: Maps that were compared to choose this one; the p-value is corrected for them.
            claim: The claim that is tested.

        Returns:
            The evidence: `SUPPORTED` where contents show a relation, `REFUTED` where they would have shown one.
        """
        total = entries_with_content(a), entries_with_content(b)
        shares = _shares(found)
        chosen, chances = _significant(found, shares), _chances(found)
        comparisons = sum(f.comparisons for f in found)
        of_all, without = _log_ps(chosen, len(found) + comparisons, tried)
        nearer = {f.name: float(np.clip((f.cosine - chances[f.name]) / (1 - chances[f.name]), 0, 1)) for f in found}
        covered = sum(f.size * nearer[f.name] for f in found)
        figures = {
            "tensors": len(found), "tensors_apart": sum(n < LOW_AGREEMENT for n in nearer.values()),
            "pairs": sum(f.pairs for f in found), "least_cosine": min((f.cosine for f in found), default=0.0),
            "cosine": _mean(found, {f.name: f.cosine for f in found}),
            "chance": _mean(found, chances), "log10_p_of_all": of_all / LOG10,
            "detectable_cosine": detectable_cosine(
                [(f.pairs, f.exponent, shares[f.name]) for f in found], alpha
            ),
            "shares": [min(1.0, covered / max(1, n)) for n in total],
            "leading_tensor": max(chosen, key=lambda f: f.gain).name if chosen else None, **details,
        }  # fmt: skip
        effect = min(1.0, covered / max(1, min(total)))
        verdict, reason = self._decide(figures, of_all, without, effect, alpha)
        null = Null("the best order of units of independent networks (a bound, estimated from the pair itself)")
        return Evidence(
            claim=claim,
            axis=Axis.WEIGHTS,
            statistic=self.name,
            value=figures["cosine"],
            null=null,
            p_value=max(exp(without), TINY) if found else None,
            log10_p=without / LOG10 if found else None,
            effect=effect,
            verdict=verdict,
            reason=reason,
            spec=self.spec,
            inputs=(a.digest, b.digest),
            details=figures,
        )

    def _decide(
        self, figures: Mapping[str, Any], of_all: float, without: float, effect: float, alpha: float
    ) -> tuple[Verdict, str]:
        if not figures["tensors"]:
            return Verdict.INCONCLUSIVE, "no hidden units could be compared"
        least = figures["detectable_cosine"]
        said = f"matched hidden units have mean cosine {round(figures['cosine'], 2) + 0:.2f} in {figures['tensors']} "
        said += "tensor " if figures["tensors"] == 1 else "tensors "
        said += f"(independent networks in their best order: about {figures['chance']:.2f})"
        if without <= log(alpha) and effect >= self.min_effect:
            return Verdict.SUPPORTED, said
        if without <= log(alpha):
            return Verdict.INCONCLUSIVE, f"{said}: only {effect:.1%} of the model agrees, too little for a relation"
        if of_all <= log(alpha):
            name = figures["leading_tensor"]
            return Verdict.INCONCLUSIVE, f"{said}; only {name} agrees, which a constant used by both would explain"
        if least <= self.telling:
            return Verdict.REFUTED, f"{said}; a relation with a cosine of {least:.2f} or more would have been detected"
        return Verdict.INCONCLUSIVE, f"{said}; too few units to exclude a relation"


def _unit_axes(p: PartMap, known: Structure) -> list[int]:
    """Axes whose rows are compared as units: one with many units, and fixed rows beside a rotatable stream."""
    counts = {k: len(m.rows) for k, m in enumerate(p.maps) if m.rotation is None}
    many = [k for k, n in counts.items() if n >= MANY]
    if many:
        first = min(many, key=lambda k: (not p.part.axes[k].free, counts[k], k))
        turned = {g.name for g in known.groups if g.rotatable}
        fixed = [k for k in many if not p.part.axes[k].free and counts[k] >= counts[first]]
        return [first, *fixed[:1]] if p.part.axes[first].key in turned else [first]
    enough = [k for k, n in counts.items() if n >= FEWEST]
    return [max(enough, key=lambda k: (counts[k], -k))] if enough else []


def _shares(found: Sequence[TensorAgreement]) -> dict[str, float]:
    """Cost of each tensor's choices; those that several tensors share are divided among them."""
    every = union_of_choices([f.choices for f in found])
    sharing = Counter(key for f in found for key in f.choices)
    return {f.name: sum(every[key].cost / sharing[key] for key in f.choices) for f in found}


def _significant(found: Sequence[TensorAgreement], shares: Mapping[str, float]) -> list[TensorAgreement]:
    """Tensors whose gain exceeds their share of the cost, each contents once."""
    out, seen = [], set()
    for f in found:
        if f.digest not in seen and surplus(f.pairs, f.gain) > shares[f.name]:
            out.append(f)
        seen.add(f.digest)
    return out


def _log_ps(chosen: Sequence[TensorAgreement], bits: int, tried: int) -> tuple[float, float]:
    """Log of the bound for these tensors, and the largest log bound after leaving any one of them out."""
    if not chosen:
        return 0.0, 0.0
    costs = {key: c.cost for key, c in union_of_choices([f.choices for f in chosen]).items()}
    pairs, gain = sum(f.pairs for f in chosen), sum(f.gain for f in chosen)
    comparisons = bits * log(2) + log(max(1, tried))

    def log_p(paid: float, pairs: int, gain: float) -> float:
        return min(0.0, paid + comparisons + log_tail(pairs, gain))

    every = sum(costs.values())
    of_all = log_p(every, pairs, gain)
    if len(chosen) == 1:
        return of_all, 0.0
    left = ((every - sum(costs[key] for key in f.choices), pairs - f.pairs, gain - f.gain) for f in chosen)
    return of_all, max(of_all, *(log_p(*rest) for rest in left))


def _chances(found: Sequence[TensorAgreement]) -> dict[str, float]:
    """Cosine that the best order reaches by chance in every tensor."""
    all_choices = union_of_choices([f.choices for f in found])
    sharing = Counter(key for f in found for key in f.choices)
    cost = {key: c.cost / sharing[key] for key, c in all_choices.items() if c.kind == "order"}
    return {f.name: min(0.999, f.chance(sum(cost.get(key, 0.0) for key in f.choices))) for f in found}


def _mean(found: Sequence[TensorAgreement], values: Mapping[str, float]) -> float:
    """Mean weighted by entries."""
    weight = sum(f.size for f in found)
    return float(sum(values[f.name] * f.size for f in found) / weight) if weight else 0.0
