"""The answer of a merge regression: how a child was merged, from which parents, with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.ancestry.merges.evidence import PartialShares, intervals, permuted_log10_p
from stemma.ancestry.merges.merging_rules import Fit
from stemma.ancestry.merges.task_vectors import TaskVectors
from stemma.types import Spec, jsonable


@dataclass(frozen=True)
class MergeParent:
    """One parent of a merge.

    Attributes:
        name: As the caller named it.
        position: Its place among the candidates.
        coefficient: What its task vector (parent minus base) adds to the child on average: the weight of a linear merge
            or of task arithmetic, scale times weight of TIES, weight of DARE before dropping, 1 - t and t of SLERP, the
            mean over entries where layers have their own.
        interval: 95 % interval of the coefficient, over entries and tensors.
        share: Share of squares that it explains of what all other candidates leave of the child.
        rival_share: The largest such share of a candidate that is no parent.
        steady: Share of its weight that remains after directions common to fine-tunes of one base are down-weighted: 1
            for a parent, less for a relative.
        log10_p: Of that share, against the candidate with its entries permuted within each tensor. Any two models of
            one family have something in common, so that this is small for relatives too; compare with `rival_share`.
    """

    name: str
    position: int
    coefficient: float
    interval: tuple[float, float]
    share: float
    rival_share: float
    steady: float
    log10_p: float


@dataclass(frozen=True)
class Merge:
    """How a child was merged.

    Attributes:
        method: `linear`, `task-arithmetic`, `ties`, `dare`, `slerp`, `layer-wise` or `franken`; `stacked` where layers
            or experts of several models stand in one; what explains held-out entries best where no rule is exact.
        parents: The parents that were found, largest coefficient first.
        exact: Share of the moved entries that the rule reproduces down to rounding; 0 where the merge is inferred.
        certain: Whether the rule reproduces every tensor of the child, so that the merge is verified and not inferred.
        explained: Share of the child's squared change from the base that the parents explain.
        residual: Norm of what is left over the norm of the child's change.
        remainder: What is left: `rounding`; `missing-parent`; `either` further training or a missing parent.
        base: Name of the base, None where none was known.
        base_weight: One minus the sum of the coefficients: weight of the base itself.
        parameters: Of the method: density, drop rates, t, weights by layer.
        alternatives: Other sets of parents that fit as well, where candidates are mixtures or copies of one another.
        reason: One sentence.
        spec: The method that gave this answer.
    """

    method: str
    parents: tuple[MergeParent, ...]
    exact: float
    certain: bool
    explained: float
    residual: float
    remainder: str
    base: str | None
    base_weight: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[tuple[str, ...], ...] = ()
    reason: str = ""
    spec: Spec = field(default_factory=lambda: Spec("merge-regression"))

    @property
    def is_proven(self) -> bool:
        """Whether the named parents are verified: by an exact rule, or matrix by matrix."""
        return self.certain or self.method == "stacked"

    @property
    def missing_parent(self) -> bool:
        """Whether a parent may be missing: the remainder is neither rounding nor known to be training."""
        return self.remainder in ("missing-parent", "either")

    def with_positions(self, positions: Sequence[int]) -> "Merge":
        """The same merge with new positions of its parents, given by their old positions."""
        return replace(self, parents=tuple(replace(p, position=positions[p.position]) for p in self.parents))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**jsonable(self), "missing_parent": self.missing_parent}


def describe_merge(
    vectors: TaskVectors, fit: Fit, exact: float, remainder: str, partial: PartialShares, names: Sequence[str],
    positions: Sequence[int],
) -> Merge:  # fmt: skip
    """The answer for a fit; `positions` maps the task vectors to `names`."""
    rival_shares = [s for i, s in enumerate(partial.shares.tolist()) if i not in fit.parents]
    rows = zip(
        fit.parents, fit.coefficients, intervals(vectors, fit.parents, fit.coefficients),
        permuted_log10_p(vectors, fit.parents, fit.coefficients), strict=True,
    )  # fmt: skip
    parents = [
        MergeParent(
            names[positions[i]],
            positions[i],
            float(c),
            interval,
            float(partial.shares[i]),
            max(rival_shares, default=0.0),
            float(partial.stability[i]),
            p,
        )
        for i, c, interval, p in rows
    ]
    remainder_vector = (vectors.child - fit.predicted)[np.isfinite(fit.predicted)]
    moved = vectors.child[np.isfinite(fit.predicted)]
    residual = float(np.sqrt(np.square(remainder_vector).sum() / max(float(np.square(moved).sum()), 1e-300)))
    certain = remainder == "rounding"
    return Merge(
        fit.rule, tuple(sorted(parents, key=lambda p: -p.coefficient)), float(exact), certain,
        1 - residual**2, residual, remainder, None, float(1 - sum(fit.coefficients)), dict(fit.details),
        reason=_reason(fit, exact, remainder),
    )  # fmt: skip


def _reason(fit: Fit, exact: float, remainder: str) -> str:
    count = len(fit.parents)
    models = f"{count} models" if count > 1 else "one model"
    fit_text = f"a {fit.rule} merge of {models} reproduces {exact:.1%} of the changed entries up to rounding"
    if remainder == "rounding":
        return fit_text
    if remainder == "missing-parent":
        return f"{fit_text}; a parent that is not among the candidates accounts for the others"
    if exact > 0:
        return f"{fit_text}; other tensors as a whole were further trained, or come from another parent"
    if count == 1:
        return (
            f"one task vector has the same weight ({fit.coefficients[0]:.2f}) in every direction, as a parent has in a "
            "merge; the other parents are not among the candidates"
        )
    return (
        f"{count} task vectors explain more of the model than relatives would; the rest is further training or a "
        "parent that is not among the candidates"
    )
