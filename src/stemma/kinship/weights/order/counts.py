"""Counts of units in place, their distribution under independence, and the verdict."""

from dataclasses import dataclass
from math import exp, log
from typing import Any, Protocol

from stemma.checkpoints.model import Model
from stemma.kinship.weights.order import permutation_laws
from stemma.types import Axis, Evidence, Null, Spec, Verdict

LOG10 = log(10.0)
TINY = 5e-324
INFERRED = "inferred:"


class CountingTest(Protocol):
    """The test whose counts are evaluated: `UnitsInPlace`."""

    @property
    def name(self) -> str:
        """Its published name."""
        ...

    @property
    def min_effect(self) -> float:
        """Smallest share of units in place that counts as a relation."""
        ...

    @property
    def margin(self) -> float:
        """`independent` needs an upper bound of the share in place below this."""
        ...

    @property
    def spec(self) -> Spec:
        """Identity of the test with its parameters."""
        ...


@dataclass(frozen=True)
class GroupCount:
    """Counts of one block of units.

    Attributes:
        group: The group, or tensor and axis.
        units: Informative units that were matched.
        in_place: Fixed points of the matching (equal widths).
        concordant: Pairs in the same order (unequal widths), else None.
        of: The set of hidden units of an axis; empty where `group` is that set.
    """

    group: str
    units: int
    in_place: int
    concordant: int | None = None
    of: str = ""

    @property
    def units_of(self) -> str:
        """The set of hidden units that was counted."""
        return self.of or self.group


@dataclass(frozen=True)
class Counts:
    """Counts of one pairing of tensors, with their distribution.

    Attributes:
        mode: `sum` (exact) or `mean-e` (any dependence).
        groups: One entry per block.
    """

    mode: str
    groups: tuple[GroupCount, ...]

    @property
    def equal(self) -> tuple[GroupCount, ...]:
        """Blocks of equal width."""
        return tuple(g for g in self.groups if g.concordant is None)

    @property
    def unequal(self) -> tuple[GroupCount, ...]:
        """Groups that lost or gained units."""
        return tuple(g for g in self.groups if g.concordant is not None)

    @property
    def units(self) -> int:
        """Units that were matched."""
        return sum(g.units for g in self.groups)

    @property
    def in_place(self) -> int:
        """Units in place (in order, where widths differ)."""
        return sum(g.in_place for g in self.groups)

    @property
    def effect(self) -> float:
        """Share of units in place beyond chance, in [0, 1]."""
        chance = sum(_chance(g) for g in self.groups)
        room = self.units - chance
        return float(min(1.0, max(0.0, (self.in_place - chance) / room))) if room > 0 else 0.0

    def log_p(self) -> float | None:
        """Natural logarithm of the conservative p-value; None where nothing could be counted."""
        if not self.groups:
            return None
        if self.mode == "mean-e":
            return min(
                0.0,
                -permutation_laws.log_mean_e([permutation_laws.log_e_value(g.in_place, g.units) for g in self.equal]),
            )
        parts = []
        if self.equal:
            parts.append(
                permutation_laws.log_tail(
                    [permutation_laws.fixed_point_law(g.units) for g in self.equal], sum(g.in_place for g in self.equal)
                )
            )
        if self.unequal:
            law = [permutation_laws.concordance_law(g.units) for g in self.unequal]
            parts.append(permutation_laws.log_tail(law, sum(g.concordant or 0 for g in self.unequal)))
        return min(0.0, min(parts) + log(len(parts)))

    def randomised_p(self, u: float) -> float:
        """P(K > k) + u P(K = k), uniform under the null; for calibration only."""
        law = [permutation_laws.fixed_point_law(g.units) for g in self.equal]
        at, above = permutation_laws.log_pmf_and_tail(law, sum(g.in_place for g in self.equal))
        return above + u * at


def _chance(g: GroupCount) -> float:
    return 1.0 if g.concordant is None else min(g.units, 2 * g.units**0.5)


def evidence(
    method: CountingTest, a: Model, b: Model, counts: Counts, alternatives: int, details: dict[str, Any], alpha: float
) -> Evidence:
    """Evidence from the counts; the p-value is multiplied by `alternatives`, the number of pairings tried."""
    log_p = counts.log_p()
    null = Null("uniform permutations of hidden units (exact law)" if counts.mode == "sum" else
                "uniform permutations of hidden units (average of e-values, any dependence)")  # fmt: skip
    figures = {"units_in_place": counts.in_place, "units": counts.units, "blocks": len(counts.groups),
               "mode": counts.mode, **details}  # fmt: skip
    if log_p is None:
        return Evidence(
            claim="hidden units are in the same order",
            axis=Axis.WEIGHTS,
            statistic=method.name,
            value=0.0,
            null=null,
            p_value=None,
            log10_p=None,
            effect=0.0,
            verdict=Verdict.INCONCLUSIVE,
            reason="no hidden units could be compared",
            spec=method.spec,
            inputs=(a.digest, b.digest),
            details=figures,
        )
    log_p = min(0.0, log_p + log(alternatives))
    verdict, reason = _decide(method, counts, log_p, alpha)
    inferred = str(details.get("structure", "")).startswith(INFERRED)
    if verdict is Verdict.SUPPORTED and inferred and not _replicated(counts, alternatives, alpha):
        verdict, reason = Verdict.INCONCLUSIVE, f"{reason}, but all in one set of units that was only inferred"
    return Evidence(
        claim="hidden units are in the same order",
        axis=Axis.WEIGHTS,
        statistic=method.name,
        value=float(counts.in_place),
        null=null,
        p_value=max(exp(log_p), TINY),
        log10_p=log_p / LOG10,
        effect=counts.effect,
        verdict=verdict,
        reason=reason,
        spec=method.spec,
        inputs=(a.digest, b.digest),
        details=figures,
    )


def _replicated(counts: Counts, alternatives: int, alpha: float) -> bool:
    """Whether the finding survives leaving out any one set of units (partial conjunction, Benjamini & Heller 2008)."""
    sets = {g.units_of for g in counts.groups}
    for left_out in sets if len(sets) > 1 else ():
        rest = Counts(counts.mode, tuple(g for g in counts.groups if g.units_of != left_out))
        log_p = rest.log_p()
        if log_p is None or log_p + log(alternatives) > log(alpha):
            return False
    return True


def _decide(method: CountingTest, counts: Counts, log_p: float, alpha: float) -> tuple[Verdict, str]:
    chance = sum(_chance(g) for g in counts.groups)
    what = "hidden units" if counts.mode == "sum" else "views of hidden units"  # one view per tensor of a unit
    found = f"{counts.in_place:,} of {counts.units:,} {what} match in place ({chance:.0f} expected by chance)"
    if log_p <= log(alpha):
        if counts.effect >= method.min_effect:
            return Verdict.SUPPORTED, found
        return (
            Verdict.INCONCLUSIVE,
            f"{found}: significant, but too few for a relation (a shared random initialisation?)",
        )
    bound = upper_share(counts, alpha)
    if bound < method.margin:
        return Verdict.REFUTED, f"{found}; at most {bound:.0%} can match"
    few = "too few units to decide" if counts.effect < 1 - method.margin else f"not enough for alpha {alpha:g}"
    return Verdict.INCONCLUSIVE, f"{found}: {few}"


def upper_share(counts: Counts, alpha: float) -> float:
    """Upper confidence bound of the share of units in place (Clopper-Pearson, chance not subtracted)."""
    from scipy.special import betaincinv

    k, n = counts.in_place, counts.units
    return 1.0 if k >= n else float(betaincinv(k + 1, n - k, 1 - alpha))
