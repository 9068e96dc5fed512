"""Takes a merged model apart: its parents, the merging rule, the weights, and whether a parent is missing.

Pure: the same entries of the child, the candidates and the base come in as arrays.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from stemma.ancestry.geometry import SHARED_COSINE
from stemma.ancestry.merges.evidence import PartialShares, partial_shares
from stemma.ancestry.merges.exact_search import (
    MAX_CANDIDATES,
    best_exact_fit,
    matching_pursuit,
    tensors_not_reproduced,
    with_fewer_parents,
)
from stemma.ancestry.merges.merge import Merge, describe_merge
from stemma.ancestry.merges.merging_rules import Fit, layer_wise, linear
from stemma.ancestry.merges.missing_parents import single_parent_evidence
from stemma.ancestry.merges.stacked_layers import align_depth, stacked_parents, unstack
from stemma.ancestry.merges.task_vectors import (
    Span,
    TaskVectors,
    distinct_candidates,
    is_copy,
    non_collinear,
    possible_bases,
    task_vectors,
)
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.weights.entries import Entries, entries
from stemma.types import Spec

MIN_FINITE_SHARE = 0.99
"""Share of finite entries below which a candidate is left out."""

MAX_ENTRIES = 20_000_000
"""Entries of all models that are read by default."""

MIN_SOLE_WEIGHT, MAX_SOLE_WEIGHT, SOLE_EVIDENCE_FACTOR = 0.05, 0.8, 4.0
"""Weights between which a candidate can be the only one available of several parents, and the factor on the evidence
that it needs."""

MIN_ENTRIES_PER_CANDIDATE = 16
"""Entries per candidate below which nothing is inferred."""


@dataclass(frozen=True)
class MergeRegression:
    """Takes a merge apart by regression on task vectors, and by the rules of the merging methods.

    First every rule is tried for a fit down to rounding, which settles parents, weights and rule at once. If there is
    none, the parents are those whose task vectors explain held-out entries of the child, each given all others, by more
    than relatives explain of one another. If a single candidate does, evenly in all directions, the other parents are
    missing.
    Cost: one regression on n candidates and k entries, O(n^2 k), per layer; some hundred passes over the parents'
    entries for TIES and DARE.

    Attributes:
        max_parents: Largest number of parents searched for.
        slack: Roundings that one entry may have gone through.
        share: Share of the moved entries from which a fit counts as exact, if no tensor is an exception.
        partial: Share from which an inexact fit still shows that the rule was used.
        evidence: What the second of the candidates must reach before a merge is inferred, see `PartialShares.evidence`.
        floor: Lower bound on the share that relatives have of one another.
        alone: A candidate whose weight is this near to 1 may be the only parent, and no merge is inferred.
        loose: Partial share from which a candidate is listed as a parent of an inferred merge.
        steady: Stability under whitening from which it is.
        unwhitened: Factor on `evidence` where entries are samples and cannot be whitened; on `loose` it is 5 then.
        uneven: Largest unevenness of a single candidate that is the parent of a merge, see `SingleParent`.
        size: Largest norm of what it leaves, in norms of a typical task vector; further training leaves more.
        assume: Assume that the child is a merge, and list parents by `loose` and `steady` alone.
        seed: Of the samples of entries.

    Source: non-negative least squares and matching pursuit on task vectors: UNMERGE (2025); the exact fits, the null
        from the candidates and the analysis of the remainder are this project's.
    """

    max_parents: int = 6
    slack: float = 4.0
    share: float = 0.97
    partial: float = 0.1
    evidence: float = 0.03
    floor: float = 0.004
    alone: float = 0.05
    loose: float = 0.0015
    steady: float = 0.6
    unwhitened: float = 20.0
    uneven: float = 2.5
    size: float = 0.85
    assume: bool = False
    seed: int = 0

    name = "merge-regression"
    version = 3

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def decompose(
        self,
        child: np.ndarray,
        candidates: np.ndarray,
        base: np.ndarray | None = None,
        *,
        tensors: Sequence[tuple[str, int, int] | Span] = (),
        names: Sequence[str] = (),
    ) -> Merge | None:
        """Take a child apart.

        Args:
            child: `[k]`, entries of the child.
            candidates: `[n, k]`, the same entries of the possible parents; leave out the child's descendants.
            base: `[k]`, the same entries of the common base model, if it is known. Without it, merges whose weights sum
                to 1 are found, and others where the base is among the candidates.
            tensors: Name, first column and column after the last of each tensor; tensors whose names agree up to the
                last dot are one layer.
            names: Names of the candidates; their positions unless given.

        Returns:
            The merge; None where the child is none: a copy, the child of one parent, a relative, or unrelated.

        Raises:
            MisuseError: If shapes or names do not fit.
        """
        candidates = np.asarray(candidates)
        labels = list(names) or [str(i) for i in range(len(candidates))]
        if len(labels) != len(candidates):
            raise MisuseError(
                f"{len(candidates)} candidates were given with {len(labels)} names: give one name per candidate"
            )
        if not candidates.size:
            return None
        usable = [i for i, row in enumerate(candidates) if np.isfinite(row).mean() >= MIN_FINITE_SHARE]
        if candidates.ndim == 2 and len(usable) < len(candidates):
            usable_names = [labels[i] for i in usable]
            merge = self.decompose(child, candidates[usable], base, tensors=tensors, names=usable_names)
            return None if merge is None else merge.with_positions(usable)
        vectors = task_vectors(child, candidates, base, tensors, self.slack)
        kept, duplicates = distinct_candidates(vectors)
        if len(kept) < (1 if vectors.has_base else 2) or not vectors.child.size or is_copy(vectors, self.share):
            return None
        vectors, base_name = vectors.subset(kept), None if base is None else "given"
        fit, exact = best_exact_fit(vectors, self.max_parents, self.share)
        for at in possible_bases(vectors) if base is None and exact < self.share else ():
            others = [i for i in kept if i != kept[at]]
            rebased = task_vectors(child, candidates[others], candidates[kept[at]], tensors, self.slack)
            nearest, reached = best_exact_fit(rebased, self.max_parents, self.share)
            if reached >= self.share and _can_be_child(replace(rebased, has_base=False), nearest, is_exact=True):
                fit, exact, vectors, base_name, kept = nearest, reached, rebased, labels[kept[at]], others
                break
        other_sets: tuple[tuple[int, ...], ...] = ()
        if exact >= self.share:
            fit, other_sets = with_fewer_parents(vectors, fit, self.share)
        answer = self._answer(vectors, fit, exact, labels, kept)
        if answer is None:
            return None
        sets = [tuple(labels[kept[i]] for i in s) for s in other_sets]
        sets += [(labels[p.position], *(labels[i] for i in duplicates[p.position])) for p in answer.parents
                 if p.position in duplicates]  # fmt: skip
        return replace(answer, base=base_name, alternatives=tuple(sets), spec=self.spec)

    def _answer(
        self, vectors: TaskVectors, fit: Fit, exact: float, labels: Sequence[str], positions: Sequence[int]
    ) -> Merge | None:
        pool = list(range(vectors.n))
        if vectors.n > MAX_CANDIDATES:
            pool = sorted({*matching_pursuit(vectors, np.arange(len(vectors.child)), MAX_CANDIDATES), *fit.parents})
        pool = non_collinear(vectors, pool)
        shares = partial_shares(vectors, pool)
        not_reproduced, as_wholes = tensors_not_reproduced(vectors, fit, self.share)
        is_exact = exact >= self.share and not not_reproduced
        accepted = _can_be_child(vectors, fit, is_exact)
        if is_exact and accepted:
            remainder = "rounding"
        elif exact >= self.partial and accepted:
            remainder = "either" if as_wholes else "missing-parent"
        else:
            enough = len(vectors.child) >= max(256, MIN_ENTRIES_PER_CANDIDATE * len(pool))
            parents = (self._inferred(shares) or self._sole_parent(vectors, shares, pool)) if enough else ()
            if not parents:
                return None
            fit, exact, remainder = _best_rule(vectors, parents, self.seed), 0.0, "either"
        return describe_merge(vectors, fit, exact, remainder, shares, labels, positions)

    def _inferred(self, shares: PartialShares) -> tuple[int, ...]:
        """Candidates of an inferred merge; none unless two exceed what relatives of one parent share."""
        times, larger = (1.0, 1.0) if shares.has_matrices else (self.unwhitened, 5.0)
        sure = shares.evidence(self.floor) > times * self.evidence
        if not self.assume and (sure.sum() < 2 or shares.has_single_parent(self.alone)):
            return ()
        listed = np.flatnonzero((shares.stability >= self.steady) & (shares.shares > larger * self.loose))
        return tuple(listed.tolist()) if self.assume or len(listed) > 1 else ()

    def _sole_parent(self, vectors: TaskVectors, shares: PartialShares, pool: Sequence[int]) -> tuple[int, ...]:
        """The one available parent of a merge whose other parents are missing."""
        position = int(np.argmax(np.where(shares.stability >= self.steady, shares.shares, 0.0)))
        weight, sure = (
            float(shares.weights[position]),
            shares.evidence(self.floor)[position] > SOLE_EVIDENCE_FACTOR * self.evidence,
        )
        if (
            self.assume
            or not (vectors.has_base and shares.has_matrices and sure)
            or not MIN_SOLE_WEIGHT < weight < MAX_SOLE_WEIGHT
        ):
            return ()
        evidence = single_parent_evidence(vectors.subset(pool), pool.index(position), weight)
        return (
            (position,) if evidence and evidence.unevenness < self.uneven and evidence.residual_size < self.size else ()
        )


def _can_be_child(vectors: TaskVectors, fit: Fit, is_exact: bool) -> bool:
    """Whether a fit shows a merge: not one parent alone, and not a child whose own merge is a candidate.

    The parent of a merge is itself a sum of that merge and the other parents, with a weight above 1 (the inverse of its
    own). And a single parent's entries, pruned or copied, are what pruning and frozen layers leave.

    Returns:
        True for a merge.
    """
    if not fit.parents:
        return False
    has_plain_weights = fit.rule in ("linear", "task-arithmetic")
    if has_plain_weights and max(fit.coefficients) > 1 + 1e-3 and (len(fit.parents) == 1 or not vectors.has_base):
        return False
    if len(fit.parents) > 1:
        return True
    if fit.rule in ("ties", "dare"):
        parent_moved = np.abs(vectors.of(fit.parents)[0]) > vectors.tolerance
        moved = np.abs(vectors.child) > vectors.tolerance
        return bool((parent_moved & ~moved).mean() > max(0.02, (moved & ~parent_moved).mean()))
    return is_exact and abs(fit.coefficients[0] - 1) > 1e-3


def _best_rule(vectors: TaskVectors, parents: Sequence[int], seed: int) -> Fit:
    """One weight per parent, or weights by layer where those explain held-out entries better."""
    chosen = np.random.default_rng(seed).random(len(vectors.child)) < 0.5
    best, lowest = None, np.inf
    for rule in (linear, layer_wise):
        fit = rule(vectors, parents, np.flatnonzero(chosen))
        left = (vectors.child - np.nan_to_num(fit.predicted))[~chosen] / vectors.scale[~chosen]
        error = float(np.square(left).sum())
        if best is None or error < 0.9 * lowest:
            best, lowest = fit, error
    assert best is not None
    return best


def comparable_tensors(read: Entries, child: int, candidates: Sequence[int]) -> list[int]:
    """Positions of the tensors that all models have and that no model has replaced.

    A matrix of a new head is paired by its shape with one that others inherited; it says nothing about a merge.

    Returns:
        Positions.
    """
    return [int(t) for t in np.flatnonzero(read.present[[child, *candidates]].all(axis=0))
            if not _replaced(read.values[:, read.tensors[t].columns], child, candidates)]  # fmt: skip


def _replaced(values: np.ndarray, child: int, candidates: Sequence[int]) -> bool:
    """Whether some candidates have replaced a matrix that others inherited."""
    own, others = values[child].astype(np.float64), values[list(candidates)].astype(np.float64)
    size = np.sqrt(own @ own) * np.sqrt(np.square(others).sum(axis=1))
    cosine = np.divide(others @ own, size, out=np.zeros(len(others)), where=size > 0)
    return bool((cosine < SHARED_COSINE).any() and (cosine >= SHARED_COSINE).any())


def find_merge(
    child: Model, candidates: Sequence[Model], base: Model | None = None, method: MergeRegression | None = None,
    per_tensor: int | None = None,
) -> Merge | None:  # fmt: skip
    """Take a model apart that may be a merge of others.

    Cost: one reading of some entries of every model, see `stemma.kinship.weights.entries`, then that of the method.

    Args:
        child: The model in question.
        candidates: Its possible parents; leave out its descendants.
        base: The common base model, if it is known.
        method: The method with its parameters.
        per_tensor: Entries per matrix; unless given, as many as keep the whole within some hundred MB.

    Returns:
        The merge, or None.
    """
    chosen = method or MergeRegression()
    if not candidates:
        return None
    child = unstack(child, [*candidates, *([base] if base is not None else [])])
    candidates, smaller = align_depth(child, candidates)
    if len(smaller) > 1 and (stack := stacked_parents(child, candidates, smaller)) is not None:
        return replace(stack, spec=chosen.spec)
    base = None if base is None else align_depth(child, [base])[0][0]
    models = [child, *candidates, *([base] if base is not None else [])]
    entries_per_matrix = int(np.clip(MAX_ENTRIES // (len(models) * max(1, len(child.weights))), 4096, 65536))
    read = entries(models, reference=0, per_tensor=per_tensor or entries_per_matrix)
    comparable_candidates = [i for i in range(1, len(candidates) + 1) if read.present[i].any()]
    if not comparable_candidates or (base is not None and not read.present[-1].any()):
        return None
    common = comparable_tensors(read, 0, [*comparable_candidates, *([len(read) - 1] if base is not None else [])])
    if not common:
        return None
    columns, tensors, start = [], [], 0
    for slot in (read.tensors[t] for t in common):
        columns.append(np.arange(slot.start, slot.stop))
        count = slot.stop - slot.start
        rows_of = child.weights[slot.name].shape[0] if count == slot.size else 1
        tensors.append(Span(slot.name, start, start + count, rows_of))
        start += count
    values = read.values[:, np.concatenate(columns)]
    merge = chosen.decompose(
        values[0], values[comparable_candidates], values[-1] if base is not None else None, tensors=tensors,
        names=[candidates[i - 1].name for i in comparable_candidates],
    )  # fmt: skip
    if merge is None:
        return None
    merge = merge.with_positions([i - 1 for i in comparable_candidates])
    return replace(merge, base=base.name) if base is not None else merge
