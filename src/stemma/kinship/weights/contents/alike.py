"""Units alike: are matched units nearer to each other than the best order of independent ones comes?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.constants.identity import CORNER as IDENTITY
from stemma.kinship.weights.constants.identity import near_identity
from stemma.kinship.weights.constants.tables import is_table
from stemma.kinship.weights.contents.choices import Choice, choices_of, together
from stemma.kinship.weights.maps.axis_map import PartMap
from stemma.kinship.weights.maps.blocks import Block, Sides
from stemma.kinship.weights.order.counts import LOG10, TINY
from stemma.kinship.weights.order.similarity import informative
from stemma.kinship.weights.reordering_bound import detectable, freedom, gains, log_tail, surplus
from stemma.types import Axis, Evidence, Null, Spec, Verdict

APART = 0.1
"""How far from chance to identity the units of a tensor are at most that do not agree."""

SAME = 0.999
"""Mean cosine from which factors of units need not be divided out."""

FEWEST, MANY = 4, 16
"""Units that an axis needs to be looked at, and from which one with fewer is preferred: so units have more numbers."""


@dataclass(frozen=True, eq=False)
class TensorAlike:
    """What one pair of tensors shows.

    Attributes:
        name: In the reference.
        size: Entries that have a counterpart.
        pairs: Matched units that were looked at.
        gain: Sum of their gains, in nats.
        cosine: Their mean cosine.
        exponent: Numbers of a unit that vary freely, less one.
        choices: What could have been chosen to make its units agree.
        digest: Of the reference's tensor: the same contents count once.
        looks: Times that it was looked at to choose its units; paid for.
    """

    name: str
    size: int
    pairs: int
    gain: float
    cosine: float
    exponent: float
    choices: Mapping[str, Choice]
    digest: str
    looks: int = 1

    def chance(self, paid: float) -> float:
        """The mean cosine that the best order of independent units reaches here, about.

        Args:
            paid: What the orders cost that this tensor's units may be put in, in nats.

        Returns:
            The cosine at which the gains of this tensor come to that.
        """
        if self.exponent <= 0 or not self.pairs:
            return 1.0
        return float(np.sqrt(-np.expm1(-2 * min(30.0, paid / self.pairs / self.exponent))))


@dataclass(frozen=True)
class UnitsAlike:
    """Put every tensor's matched units side by side and ask whether any order of independent units comes as near.

    The order of units can be written into a file by anybody who holds the other model; what the units contain cannot.
    So each matched unit gains what its cosine is worth against those of unmatched units, and what is gained in all has
    to exceed the number of orders that could have been chosen. The bound (see `bound`) holds for any map, wherever it
    came from: units in place, a map that was searched, or one that a forger chose.

    One tensor alone never decides: the p-value holds also if any one tensor is a constant that both networks use
    (filters, principal components, embeddings), by leaving it out. Tables of waves and identities do not count at all.
    Cost: up to `units` units with `coordinates` numbers each are read of every tensor, fewer where there are many
    tensors.

    Attributes:
        units: Units that are looked at per tensor, at most.
        least: And at least.
        in_all: Units that are looked at in all tensors together, about.
        coordinates: Numbers of a unit that are looked at.
        min_effect: Smallest share of the model that counts as kinship; below it a small p is the trace of something
            else that is shared. Fixed beforehand.
        telling: `independent` needs tensors that could have shown kinship at this mean cosine.

    Source: this project's; see docs/kinship.md, "Contents of matched units".
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

    def look(self, sides: Sides, parts: Mapping[str, PartMap], known: Structure) -> list[TensorAlike]:
        """What every mapped pair of tensors shows.

        Args:
            sides: Both models.
            parts: By name in the reference.
            known: The structure of the reference.

        Returns:
            One entry per part that could be looked at.
        """
        units = max(self.least, min(self.units, self.in_all // max(1, len(parts))))
        found = (self._tensor(sides, name, p, known, units) for name, p in parts.items())
        return [f for f in found if f is not None]

    def _tensor(self, sides: Sides, name: str, p: PartMap, known: Structure, units: int) -> TensorAlike | None:
        if any(near_identity(x) for x in sides.corners(p.part, IDENTITY)):
            return None
        axes = _unit_axes(p, known)
        shown = [self._units(sides, name, p, known, units, k) for k in axes]
        shown = [f for f in shown if f is not None]
        if not shown:
            return None
        return replace(max(shown, key=lambda f: f.pairs * f.exponent), looks=len(axes))

    def _units(
        self, sides: Sides, name: str, p: PartMap, known: Structure, units: int, k: int
    ) -> TensorAlike | None:  # fmt: skip
        """What one axis of a pair of tensors shows, its rows taken as units."""
        m = p.maps[k]
        chosen = np.unique(np.linspace(0, len(m.rows) - 1, min(units, len(m.rows))).round().astype(int))
        rows, columns = m.rows[chosen], m.columns[chosen]
        maps = [None if i == k else own for i, own in enumerate(p.maps)]
        coordinates = max(2 * units, self.coordinates * units // self.units)
        block = sides.block(p.part, maps, k, coordinates, (rows[:, None], columns[:, None]))
        if block is None or is_table(block.a[:, 0]) or is_table(block.b[:, 0]):
            return None
        if m.signs is not None:
            block = replace(block, a=block.a * m.signs[chosen].reshape(-1, *(1,) * (block.a.ndim - 1)))
        filled = _filled(block)
        shown = [_judged(*block.vectors(rescaled=False), filled)]
        if shown[0][1] < SAME:
            shown.append(_judged(*block.vectors(rescaled=True), filled))
        gain, cosine, exponent, pairs = max(shown)
        if not pairs:
            return None
        found = choices_of(name, p, block.seen, known)
        digest = sides.reference.model.tensor_digests.get(p.part.pairing.a, name)
        return TensorAlike(
            name, p.part.entries, pairs, gain, cosine, exponent, found, f"{digest} {name.partition('#')[2]}"
        )

    def evidence(
        self,
        a: Model,
        b: Model,
        found: Sequence[TensorAlike],
        alpha: float,
        details: Mapping[str, Any],
        tried: int = 1,
        claim: str = "units contain the same where they stand",
    ) -> Evidence:
        """Weigh what the tensors show.

        Args:
            a: One model.
            b: The other.
            found: What their tensors show under one map.
            alpha: Level of the decision.
            details: Further figures to report.
            tried: Maps that were looked at to choose this one; paid for.
            claim: What is asked.

        Returns:
            The evidence: `SUPPORTED` where contents show kinship, `REFUTED` where they could have and do not.
        """
        total = sum(t.size for t in matrices(a).values()), sum(t.size for t in matrices(b).values())
        shares = _shares(found)
        chosen, chances = _worth(found, shares), _chances(found)
        looks = sum(f.looks for f in found)
        of_all, without = _log_ps(chosen, len(found) + looks, tried)
        nearer = {f.name: float(np.clip((f.cosine - chances[f.name]) / (1 - chances[f.name]), 0, 1)) for f in found}
        covered = sum(f.size * nearer[f.name] for f in found)
        figures = {
            "tensors": len(found), "tensors_apart": sum(n < APART for n in nearer.values()),
            "pairs": sum(f.pairs for f in found), "least_cosine": min((f.cosine for f in found), default=0.0),
            "cosine": _mean(found, {f.name: f.cosine for f in found}),
            "chance": _mean(found, chances), "log10_p_of_all": of_all / LOG10,
            "detectable_cosine": detectable(
                [(f.pairs, f.exponent, shares[f.name]) for f in found], alpha
            ),
            "shares": [min(1.0, covered / max(1, n)) for n in total],
            "leading_tensor": max(chosen, key=lambda f: f.gain).name if chosen else None, **details,
        }  # fmt: skip
        effect = min(1.0, covered / max(1, min(total)))
        verdict, reason = self._decide(figures, of_all, without, effect, alpha)
        null = Null("the best order of units of independent networks (a bound, measured on the pair itself)")
        return Evidence(
            claim, Axis.WEIGHTS, self.name, figures["cosine"],
            null, max(exp(without), TINY) if found else None, without / LOG10 if found else None, effect, verdict,
            reason, self.spec, (a.digest, b.digest), figures,
        )  # fmt: skip

    def _decide(
        self, figures: Mapping[str, Any], of_all: float, without: float, effect: float, alpha: float
    ) -> tuple[Verdict, str]:
        if not figures["tensors"]:
            return Verdict.INCONCLUSIVE, "no units could be put side by side"
        least = figures["detectable_cosine"]
        said = f"matched units have mean cosine {figures['cosine']:.2f} in {figures['tensors']} tensors, "
        said += f"where the best order of independent ones reaches about {figures['chance']:.2f}"
        if without <= log(alpha) and effect >= self.min_effect:
            return Verdict.SUPPORTED, said
        if without <= log(alpha):
            return Verdict.INCONCLUSIVE, f"{said}: only {effect:.1%} of the model agrees, a trace of something shared"
        if of_all <= log(alpha):
            name = figures["leading_tensor"]
            return Verdict.INCONCLUSIVE, f"{said}; {name} alone agrees, which a table that both use would explain"
        if least <= self.telling:
            return Verdict.REFUTED, f"{said}; kin in place with a cosine of {least:.2f} would have been found"
        return Verdict.INCONCLUSIVE, f"{said}; too few units to rule kinship out"


def _unit_axes(p: PartMap, known: Structure) -> list[int]:
    """Which axes may show the units: of those with many, the one with the fewest, units before fixed rows.

    Rows of fixed order beside a stream that may be rotated are looked at too: their number is what a rotation lacks.

    Returns:
        Positions of one or two axes; none where no axis has enough units.
    """
    counts = {k: len(m.rows) for k, m in enumerate(p.maps) if m.rotation is None}
    many = [k for k, n in counts.items() if n >= MANY]
    if many:
        first = min(many, key=lambda k: (not p.part.axes[k].free, counts[k], k))
        turned = {g.name for g in known.groups if g.rotatable}
        fixed = [k for k in many if not p.part.axes[k].free and counts[k] >= counts[first]]
        return [first, *fixed[:1]] if p.part.axes[first].key in turned else [first]
    enough = [k for k, n in counts.items() if n >= FEWEST]
    return [max(enough, key=lambda k: (counts[k], -k))] if enough else []


def _filled(block: Block) -> float:
    """Share of their numbers in which matched units are not both exactly zero: a mask that both use says nothing."""
    return float(((block.a != 0) | (block.b != 0)).mean())


def _judged(u: np.ndarray, v: np.ndarray, filled: float) -> tuple[float, float, float, int]:
    """Gain, mean cosine, exponent and number of pairs of matched rows; rows that repeat another one are left out."""
    told = informative(u, v)
    u, v = u[told], v[told]
    if len(u) < FEWEST:
        return 0.0, 0.0, 0.0, 0
    similarity = u @ v.T
    own = similarity.diagonal()
    exponent = filled * freedom(similarity, np.arange(len(own)), u.shape[1])
    return float(gains(own, exponent).sum()), float(own.mean()), exponent, len(own)


def _shares(found: Sequence[TensorAlike]) -> dict[str, float]:
    """What each tensor's choices cost, those that several have in common divided among them."""
    every = together([f.choices for f in found])
    sharing = Counter(key for f in found for key in f.choices)
    return {f.name: sum(every[key].cost / sharing[key] for key in f.choices) for f in found}


def _worth(found: Sequence[TensorAlike], shares: Mapping[str, float]) -> list[TensorAlike]:
    """Tensors that say more than their share of the choices costs, each contents once."""
    out, seen = [], set()
    for f in found:
        if f.digest not in seen and surplus(f.pairs, f.gain) > shares[f.name]:
            out.append(f)
        seen.add(f.digest)
    return out


def _log_ps(chosen: Sequence[TensorAlike], bits: int, tried: int) -> tuple[float, float]:
    """Natural logarithm of the bound for the tensors taken, and the largest that leaving out any one of them gives.

    Every choice is paid for. A tensor that is left out, should it be a constant that both models use, fixes the order
    of its units, so nothing is left to choose about those.

    Cost: linear in the choices of all tensors.

    Returns:
        Two logarithms, the second at least as large; 0 where nothing is left.
    """
    if not chosen:
        return 0.0, 0.0
    costs = {key: c.cost for key, c in together([f.choices for f in chosen]).items()}
    pairs, gain = sum(f.pairs for f in chosen), sum(f.gain for f in chosen)
    looks = bits * log(2) + log(max(1, tried))

    def log_p(paid: float, pairs: int, gain: float) -> float:
        return min(0.0, paid + looks + log_tail(pairs, gain))

    every = sum(costs.values())
    of_all = log_p(every, pairs, gain)
    if len(chosen) == 1:
        return of_all, 0.0
    left = ((every - sum(costs[key] for key in f.choices), pairs - f.pairs, gain - f.gain) for f in chosen)
    return of_all, max(of_all, *(log_p(*rest) for rest in left))


def _chances(found: Sequence[TensorAlike]) -> dict[str, float]:
    """What the best order reaches by chance in every tensor, each set of units shared among the tensors it is in."""
    all_choices = together([f.choices for f in found])
    sharing = Counter(key for f in found for key in f.choices)
    cost = {key: c.cost / sharing[key] for key, c in all_choices.items() if c.kind == "order"}
    return {f.name: min(0.999, f.chance(sum(cost.get(key, 0.0) for key in f.choices))) for f in found}


def _mean(found: Sequence[TensorAlike], values: Mapping[str, float]) -> float:
    """Weighted by entries."""
    weight = sum(f.size for f in found)
    return float(sum(values[f.name] * f.size for f in found) / weight) if weight else 0.0
