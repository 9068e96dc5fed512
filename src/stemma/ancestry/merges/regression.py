"""Which models was a child merged from, by which rule, with which weights, and is a parent missing?

Pure: the same entries of the child, the candidates and the base come in as arrays, the answer goes out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from stemma.ancestry.geometry import SHARED
from stemma.ancestry.merges.account import Merge, account
from stemma.ancestry.merges.evidence import Held, held
from stemma.ancestry.merges.merging_rules import Fit, layer_wise, linear
from stemma.ancestry.merges.missing_parents import lone
from stemma.ancestry.merges.parents import WIDE, broken_tensors, exhibited, path, shorter
from stemma.ancestry.merges.stacked_layers import apart, as_deep, stack_of
from stemma.ancestry.merges.task_vectors import (
    Span,
    TaskVectors,
    central,
    distinct,
    independent,
    is_one_of,
    task_vectors,
)
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.kinship.weights.entries import Entries, entries
from stemma.types import Spec

FINITE = 0.99
"""Share of finite entries below which a candidate is left out."""

BUDGET = 20_000_000
"""Entries of all models that are read unless the caller says otherwise."""

LEAST, MOST, SOLE = 0.05, 0.8, 4.0
"""Weights between which a candidate can be the only one that is there of several parents, and how many times as much
evidence it needs."""

FEW = 16
"""Entries per candidate below which nothing is inferred."""


@dataclass(frozen=True)
class MergeRegression:
    """Take a merge apart by regression on task vectors, and by the rules of the merging methods.

    First every rule is tried for a fit down to rounding, which settles parents, weights and rule at once. Where none is
    found, the parents are those whose task vectors the child holds on held-out entries, each given all others; how much
    that is among mere relatives is read off the candidates themselves. Where one candidate alone is held, and evenly in
    all directions, the others are missing. Cost: one regression on n candidates and k
    entries, O(n^2 k), per layer; some hundred passes over the parents' entries for TIES and DARE.

    Attributes:
        max_parents: Largest number of parents looked for.
        slack: Roundings that one entry may have gone through.
        share: Share of the moved entries from which a fit counts as exact, if no tensor is an exception.
        partial: Share from which an inexact fit still shows that the rule was used.
        evidence: What the second of the candidates must reach before a merge is inferred, see `Held.evidence`.
        floor: Least share that relatives are taken to hold of one another.
        alone: A candidate whose weight is this near to 1 may be the only parent, and no merge is inferred.
        loose: Of what all others leave, the share from which a candidate is listed as a parent of an inferred merge.
        steady: How much of its weight it must keep when what fine-tunes have in common is turned down.
        unwhitened: How many times larger `evidence` is where entries are samples and cannot be whitened; `loose` is 5
            times larger then.
        uneven: A candidate that is held alone is the parent of a merge up to this unevenness, see `Lone`.
        size: Largest norm of what it leaves, in norms of a typical task vector; training on leaves more.
        assume: Take it for granted that the child is a merge, and list parents by `loose` and `steady` alone.
        seed: Of the samples of entries.

    Source: non-negative least squares and matching pursuit on task vectors: UNMERGE (2025); the exact fits, the null
    from the candidates and the account of what is left are this project's.
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
            base: `[k]`, the same entries of what all were fine-tuned from, if it is known. Without it, merges whose
                weights sum to 1 are found, and others where the base is among the candidates.
            tensors: Name, first column and column after the last of each tensor; tensors whose names agree up to the
                last dot are one layer.
            names: Names of the candidates; their positions unless given.

        Returns:
            The merge; None where the child is none: a copy, the child of one parent, kin, or unrelated.

        Raises:
            MisuseError: If shapes or names do not fit.
        """
        candidates = np.asarray(candidates)
        labels = list(names) or [str(i) for i in range(len(candidates))]
        if len(labels) != len(candidates):
            raise MisuseError(f"{len(candidates)} candidates need as many names, got {len(labels)}")
        if not candidates.size:
            return None
        usable = [i for i, row in enumerate(candidates) if np.isfinite(row).mean() >= FINITE]
        if candidates.ndim == 2 and len(usable) < len(candidates):
            some = [labels[i] for i in usable]
            found = self.decompose(child, candidates[usable], base, tensors=tensors, names=some)
            return None if found is None else found.at(usable)
        vectors = task_vectors(child, candidates, base, tensors, self.slack)
        kept, twins = distinct(vectors)
        if len(kept) < (1 if vectors.known else 2) or not vectors.child.size or is_one_of(vectors, self.share):
            return None
        vectors, whose = vectors.only(kept), None if base is None else "given"
        fit, exact = exhibited(vectors, self.max_parents, self.share)
        for at in central(vectors) if base is None and exact < self.share else ():
            others = [i for i in kept if i != kept[at]]
            again = task_vectors(child, candidates[others], candidates[kept[at]], tensors, self.slack)
            nearest, reached = exhibited(again, self.max_parents, self.share)
            if reached >= self.share and _can_be_child(replace(again, known=False), nearest, whole=True):
                fit, exact, vectors, whose, kept = nearest, reached, again, labels[kept[at]], others
                break
        other_sets: tuple[tuple[int, ...], ...] = ()
        if exact >= self.share:
            fit, other_sets = shorter(vectors, fit, self.share)
        answer = self._answer(vectors, fit, exact, labels, kept)
        if answer is None:
            return None
        sets = [tuple(labels[kept[i]] for i in s) for s in other_sets]
        sets += [(labels[p.position], *(labels[i] for i in twins[p.position])) for p in answer.parents
                 if p.position in twins]  # fmt: skip
        return replace(answer, base=whose, alternatives=tuple(sets), spec=self.spec)

    def _answer(
        self, vectors: TaskVectors, fit: Fit, exact: float, labels: Sequence[str], kept: Sequence[int]
    ) -> Merge | None:
        pool = list(range(vectors.n))
        if vectors.n > WIDE:
            pool = sorted({*path(vectors, np.arange(len(vectors.child)), WIDE), *fit.parents})
        pool = independent(vectors, pool)
        shares = held(vectors, pool)
        broken, as_wholes = broken_tensors(vectors, fit, self.share)
        whole = exact >= self.share and not broken
        accepted = _can_be_child(vectors, fit, whole)
        if whole and accepted:
            remainder = "rounding"
        elif exact >= self.partial and accepted:
            remainder = "either" if as_wholes else "missing-parent"
        else:
            enough = len(vectors.child) >= max(256, FEW * len(pool))
            parents = (self._inferred(shares) or self._alone(vectors, shares, pool)) if enough else ()
            if not parents:
                return None
            fit, exact, remainder = _best_rule(vectors, parents, self.seed), 0.0, "either"
        return account(vectors, fit, exact, remainder, shares, labels, kept)

    def _inferred(self, held: Held) -> tuple[int, ...]:
        """Candidates that a merge is inferred from; none unless two are beyond what relatives of one parent hold."""
        times, larger = (1.0, 1.0) if held.whole else (self.unwhitened, 5.0)
        sure = held.evidence(self.floor) > times * self.evidence
        if not self.assume and (sure.sum() < 2 or held.one_parent(self.alone)):
            return ()
        listed = np.flatnonzero((held.steady >= self.steady) & (held.shares > larger * self.loose))
        return tuple(listed.tolist()) if self.assume or len(listed) > 1 else ()

    def _alone(self, vectors: TaskVectors, held: Held, pool: Sequence[int]) -> tuple[int, ...]:
        """The one candidate that the child holds as a merge holds a parent, where all its other parents are missing."""
        first = int(np.argmax(np.where(held.steady >= self.steady, held.shares, 0.0)))
        weight, sure = float(held.weights[first]), held.evidence(self.floor)[first] > SOLE * self.evidence
        if self.assume or not (vectors.known and held.whole and sure) or not LEAST < weight < MOST:
            return ()
        seen = lone(vectors.only(pool), pool.index(first), weight)
        return (first,) if seen and seen.unevenness < self.uneven and seen.size < self.size else ()


def _can_be_child(vectors: TaskVectors, fit: Fit, whole: bool) -> bool:
    """Whether a fit speaks of a merge: not of one parent alone, and not of a child whose own merge is a candidate.

    The parent of a merge is itself a sum of that merge and the other parents, with a weight above 1 (the inverse of its
    own). And a single parent's entries, cut or copied, are what pruning and frozen layers leave.

    Returns:
        True for a merge.
    """
    if not fit.parents:
        return False
    plain = fit.rule in ("linear", "task-arithmetic")
    if plain and max(fit.coefficients) > 1 + 1e-3 and (len(fit.parents) == 1 or not vectors.known):
        return False
    if len(fit.parents) > 1:
        return True
    if fit.rule in ("ties", "dare"):
        own = np.abs(vectors.of(fit.parents)[0]) > vectors.tolerance
        moved = np.abs(vectors.child) > vectors.tolerance
        return bool((own & ~moved).mean() > max(0.02, (moved & ~own).mean()))
    return whole and abs(fit.coefficients[0] - 1) > 1e-3


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


def comparable(read: Entries, child: int, candidates: Sequence[int]) -> list[int]:
    """Tensors by which a child is taken apart: all have them, and nobody has another one in their place.

    A matrix of a new head is paired by its shape with one that others inherited; it says nothing of a merge.

    Args:
        read: The same entries of all models.
        child: Position of the model in question.
        candidates: Positions of its possible parents.

    Returns:
        Positions of the tensors.
    """
    return [int(t) for t in np.flatnonzero(read.present[[child, *candidates]].all(axis=0))
            if not _replaced(read.values[:, read.tensors[t].columns], child, candidates)]  # fmt: skip


def _replaced(values: np.ndarray, child: int, candidates: Sequence[int]) -> bool:
    """Whether a matrix is another one in some candidates, and inherited from the others."""
    own, others = values[child].astype(np.float64), values[list(candidates)].astype(np.float64)
    size = np.sqrt(own @ own) * np.sqrt(np.square(others).sum(axis=1))
    cosine = np.divide(others @ own, size, out=np.zeros(len(others)), where=size > 0)
    return bool((cosine < SHARED).any() and (cosine >= SHARED).any())


def merge_of(
    child: Model, candidates: Sequence[Model], base: Model | None = None, method: MergeRegression | None = None,
    per_tensor: int | None = None,
) -> Merge | None:  # fmt: skip
    """Take a model apart that may be a merge of others.

    Cost: one reading of some entries of every model, see `stemma.kinship.weights.entries`, then that of the method.

    Args:
        child: The model in question.
        candidates: Its possible parents; leave out its descendants.
        base: What all were fine-tuned from, if it is known.
        method: The method with its parameters.
        per_tensor: Entries per matrix; unless given, as many as keep the whole within some hundred MB.

    Returns:
        The merge, or None.
    """
    chosen = method or MergeRegression()
    if not candidates:
        return None
    child = apart(child, [*candidates, *([base] if base is not None else [])])
    candidates, smaller = as_deep(child, candidates)
    if len(smaller) > 1 and (stack := stack_of(child, candidates, smaller)) is not None:
        return replace(stack, spec=chosen.spec)
    base = None if base is None else as_deep(child, [base])[0][0]
    models = [child, *candidates, *([base] if base is not None else [])]
    most = int(np.clip(BUDGET // (len(models) * max(1, len(child.weights))), 4096, 65536))
    read = entries(models, reference=0, per_tensor=per_tensor or most)
    whole = [i for i in range(1, len(candidates) + 1) if read.present[i].any()]
    if not whole or (base is not None and not read.present[-1].any()):
        return None
    common = comparable(read, 0, [*whole, *([len(read) - 1] if base is not None else [])])
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
    found = chosen.decompose(
        values[0], values[whole], values[-1] if base is not None else None, tensors=tensors,
        names=[candidates[i - 1].name for i in whole],
    )  # fmt: skip
    if found is None:
        return None
    found = found.at([i - 1 for i in whole])
    return replace(found, base=base.name) if base is not None else found
