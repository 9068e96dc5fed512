"""How a child was merged: the answer of a merge regression, with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.ancestry.merges.evidence import Held, intervals, permuted_log10_p
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
        share: Of what all other candidates leave of the child, the share of squares that this one explains.
        rival_share: The largest such share of a candidate that is no parent.
        steady: How much of its weight stays when what fine-tunes of one base have in common is turned down: 1 for a
            parent, less for a relative.
        log10_p: Of that share, against the candidate with its entries permuted within each tensor. Any two models of
            one family have something in common, so this is small for relatives too; the bar is `rival_share`.
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
        certain: Whether the rule reproduces the child, every tensor of it, so that the merge is exhibited and not
            inferred.
        explained: Share of the child's squared move from the base that the parents explain.
        residual: Norm of what is left over the norm of the child's move.
        remainder: What is left: `rounding`; `missing-parent`; `either` training on or a missing parent.
        base: Name of the base, None where none was known.
        base_weight: One minus the sum of the coefficients: what is left of the base itself.
        parameters: Of the method: density, drop rates, t, weights by layer.
        alternatives: Other sets of parents that do as well, where candidates are mixtures or copies of one another.
        reason: One sentence.
        spec: The method that said so.
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
    def shown(self) -> bool:
        """Whether the parents that are named are exhibited, whatever is left: all of it, or matrix by matrix."""
        return self.certain or self.method == "stacked"

    @property
    def missing_parent(self) -> bool:
        """Whether a parent may be missing: something is left that is neither rounding nor known to be training."""
        return self.remainder in ("missing-parent", "either")

    def at(self, positions: Sequence[int]) -> "Merge":
        """The same merge with parents at other positions.

        Args:
            positions: New position of each old one.

        Returns:
            The merge.
        """
        return replace(self, parents=tuple(replace(p, position=positions[p.position]) for p in self.parents))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values.
        """
        return {**jsonable(self), "missing_parent": self.missing_parent}


def account(
    vectors: TaskVectors, fit: Fit, exact: float, remainder: str, shares: Held, labels: Sequence[str],
    kept: Sequence[int],
) -> Merge:  # fmt: skip
    """Put a fit into words.

    Args:
        vectors: The task vectors.
        fit: The parents with their coefficients.
        exact: Share of the moved entries that the fit reproduces; 0 where it is inferred.
        remainder: What is left, as in `Merge`.
        shares: What the child holds of each candidate.
        labels: Names of all candidates that were given.
        kept: Which of them the task vectors are of.

    Returns:
        The answer.
    """
    rivals = [s for i, s in enumerate(shares.shares.tolist()) if i not in fit.parents]
    rows = zip(
        fit.parents, fit.coefficients, intervals(vectors, fit.parents, fit.coefficients),
        permuted_log10_p(vectors, fit.parents, fit.coefficients), strict=True,
    )  # fmt: skip
    parents = [
        MergeParent(
            labels[kept[i]],
            kept[i],
            float(c),
            interval,
            float(shares.shares[i]),
            max(rivals, default=0.0),
            float(shares.steady[i]),
            p,
        )
        for i, c, interval, p in rows
    ]
    left = (vectors.child - fit.predicted)[np.isfinite(fit.predicted)]
    whole = vectors.child[np.isfinite(fit.predicted)]
    residual = float(np.sqrt(np.square(left).sum() / max(float(np.square(whole).sum()), 1e-300)))
    certain = remainder == "rounding"
    return Merge(
        fit.rule, tuple(sorted(parents, key=lambda p: -p.coefficient)), float(exact), certain,
        1 - residual**2, residual, remainder, None, float(1 - sum(fit.coefficients)), dict(fit.details),
        reason=_reason(fit, exact, remainder),
    )  # fmt: skip


def _reason(fit: Fit, exact: float, remainder: str) -> str:
    how = f"{fit.rule} of {len(fit.parents)} reproduces {exact:.1%} of the moved entries down to rounding"
    if remainder == "rounding":
        return how
    if remainder == "missing-parent":
        return f"{how}, so nothing was trained on, and another parent accounts for the others"
    if exact > 0:
        return f"{how}, and tensors as wholes are not reproduced: those were trained on, or come from another parent"
    if len(fit.parents) == 1:
        return (
            f"one task vector is held with weight {fit.coefficients[0]:.2f} in every direction alike, as a merge holds "
            "a parent, and less than a fine-tuning is left; the other parents are not among the candidates"
        )
    return (
        f"{len(fit.parents)} task vectors are held by the child beyond what relatives hold; what is left may be "
        "training or a parent that is not among the candidates"
    )
