"""Units in place, seen through two sketches: for models whose weights are gone."""

from dataclasses import asdict, dataclass
from math import exp, log

import numpy as np

from stemma.kinship.weights.counts import LOG10, TINY, Counts, GroupCount
from stemma.kinship.weights.similarity import assign, directions, distinct
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict


@dataclass(frozen=True)
class SketchedUnitsInPlace:
    """The test of units in place on the projected units that two weight sketches keep.

    A projection of a unit's coordinates is a function of the unit, so the permutation law holds as for the weights
    themselves; e-values of all axes are averaged. Less sensitive than the weights: projected units are noisy.

    Attributes:
        seed: Breaks ties.
        min_effect: Smallest share in place that counts as kinship.

    Source: docs/kinship.md, "when the weights are gone".
    """

    seed: int = 0
    min_effect: float = 0.05

    name = "units-in-place-sketched"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def evidence(self, a: Fingerprint, b: Fingerprint, *, alpha: float = 0.01) -> Evidence:
        """Compare two sketches.

        Args:
            a: One model's weight sketch.
            b: The other's.
            alpha: Level of the decision.

        Returns:
            The evidence; `INCONCLUSIVE` where no axis is common to both.
        """
        counts = Counts("mean-e", tuple(self._counts(a, b)))
        null = Null("uniform permutations of hidden units, seen through projections (average of e-values)")
        claim, inputs = "the weights share an origin, units in place", (a.model, b.model)
        log_p = counts.log_p()
        if log_p is None:
            reason = "the sketches hold no axis in common"
            return Evidence(claim, Axis.WEIGHTS, self.name, 0.0, null, None, None, 0.0, Verdict.INCONCLUSIVE, reason,
                            self.spec, inputs)  # fmt: skip
        found = f"{counts.in_place} of {counts.units} sketched units in place, chance gives {len(counts.groups)}"
        verdict = Verdict.INCONCLUSIVE
        if log_p <= log(alpha) and counts.effect >= self.min_effect:
            verdict = Verdict.SUPPORTED
        elif log_p > log(alpha):
            found += "; a sketch is too coarse to rule kinship out"
        return Evidence(claim, Axis.WEIGHTS, self.name, float(counts.in_place), null, max(exp(log_p), TINY),
                        log_p / LOG10, counts.effect, verdict, found, self.spec, inputs,
                        {"units_in_place": counts.in_place, "units": counts.units})  # fmt: skip

    def _counts(self, a: Fingerprint, b: Fingerprint) -> list[GroupCount]:
        out = []
        left = [tuple(int(v) for v in row) for row in np.asarray(b.values["owners"])]
        for i, row in enumerate(np.asarray(a.values["owners"])):
            owner = tuple(int(v) for v in row)
            same_size = [j for j, other in enumerate(left) if other[:3] == owner[:3] and owner[0] >= 2]
            if not same_size:
                continue
            j = next((j for j in same_size if left[j][3] == owner[3]), same_size[0])
            left[j] = (0, 0, 0, 0)
            x = np.asarray(a.values["units"])[i, : owner[0]].astype(np.float32)
            y = np.asarray(b.values["units"])[j, : owner[0]].astype(np.float32)
            (u, alive_u), (v, alive_v) = directions(x), directions(y)
            good = distinct(u, alive_u) & distinct(v, alive_v)
            if good.sum() >= 2:
                r, c = assign((u @ v.T)[np.ix_(good, good)], np.random.default_rng([self.seed, i]))
                out.append(GroupCount(f"axis {i}", len(r), int((r == c).sum())))
        return out
