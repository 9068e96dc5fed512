"""Search for a map of units between two models, and what the map shows: exact, or contents of matched units."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.contents.contents_in_place import identity_maps, reference_is_second
from stemma.kinship.weights.contents.units_alike import UnitsAlike
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import UnitMap
from stemma.kinship.weights.maps.blocks import MappedPair, TensorReader, normalise_axes
from stemma.kinship.weights.maps.find_map import FoundMap, find_map
from stemma.kinship.weights.order.similarity import distinct
from stemma.kinship.weights.residual import SLACK, rounding
from stemma.kinship.weights.sizes import could_derive, pair_leftovers
from stemma.types import Evidence, Null, Relation, RelationKind, Spec, Verdict

MIN_SHARE_THAT_CAN_CONTRADICT = 0.5
"""Smallest share of matrix entries that must be able to contradict a map for it to be evidence."""

MIN_LIVING_SHARE = 0.05
"""Smallest share of matrix entries that must belong to units that are not dead."""

SAMPLE, IN_ALL, LEAST = 1 << 20, 1 << 25, 1 << 14
"""Most entries of a tensor, and of all tensors, that are compared under the map; and least entries of a tensor."""

NEAR_COSINE = 0.9998
"""Mean cosine in every tensor from which a map may be exact."""

NORMALISATION_ROUNDS = 12
"""Rounds of normalisation after which rescaled clones agree to rounding."""

MAX_RETRIES = 3
"""How often unpaired matrices of the smaller model are tried with others that could hold their units."""

RESCALED = 0.01
"""Relative difference from which units count as rescaled."""


@dataclass(frozen=True, eq=False)
class EvaluatedMap:
    """A map of units with its evidence.

    Attributes:
        evidence: Agreement of the contents of matched units; no p-value is needed where the map leaves only rounding.
        found: The map and what was not searched.
        pairings: Pairing of matrices under the map, from the reference to the target.
        reference_is_b: Whether the reference is the second model.
        exact: Whether only rounding is left of any matrix.
        tried_pairings: All pairs of matrices for which a map was searched, as `pairings`.
    """

    evidence: Evidence
    found: FoundMap
    pairings: tuple[Pairing, ...]
    reference_is_b: bool
    exact: bool
    tried_pairings: tuple[Pairing, ...] = ()

    @property
    def has_unequal_widths(self) -> bool:
        """Whether one side has units that the other lacks."""
        return any(x.a != x.b and x.label.hidden for p in self.found.map.parts.values() for x in p.part.axes)


@dataclass(frozen=True)
class UnitsMatched:
    """Search for a map of units from one model to the other, and evaluate it.

    A map that reproduces all matrices down to rounding is a proof, not an inference. Otherwise the contents of the
    matched units decide, by the bound of `units-alike`, which is corrected for every order that could have been chosen;
    so no control models are needed.
    Cost: see `find_map`; once for each pairing of tensors.

    Attributes:
        seed: Breaks ties.

    Source: matching of units by linear assignment, propagated through layers (Ainsworth et al., ICLR 2023,
    arXiv:2209.04836, use the same steps for merging); see `find_map` and `units-alike` for what is new.
    """

    seed: int = 0

    name = "units-matched"
    version = 2

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def search(
        self, a: Model, b: Model, ways: Sequence[tuple[str, tuple[Pairing, ...]]], alpha: float = 0.01,
        before: int = 1, best: EvaluatedMap | None = None,
    ) -> EvaluatedMap | None:  # fmt: skip
        """The best map over several pairings of tensors from a to b; None where no tensors correspond."""
        reference_is_b = reference_is_second(a, b)
        one, two = (b, a) if reference_is_b else (a, b)
        tried_pairings = best.tried_pairings if best is not None else ()
        rotations = best.found.tried if best is not None else {}
        for how, pairs in ways:
            pairings = tuple(p.swapped() for p in pairs) if reference_is_b else pairs
            pairings = (*pairings, *pair_leftovers(one, two, pairings))
            tried_before = how == "contents" and _all_named(one, two)  # each by itself was tried under the names
            trial = self._trial(a, b, pairings, how, alpha, before + len(ways), rotations, alone=not tried_before)
            tried_pairings = (*tried_pairings, *_possible(one, two, trial.pairings))
            if best is None or _better(trial, best):
                best = trial
            if trial.exact:
                break
        for more in range(MAX_RETRIES):
            if best is not None and best.evidence.verdict is Verdict.SUPPORTED:
                break
            pairings = tuple(pair_leftovers(one, two, tried_pairings, again=bool(tried_pairings)))
            if not _possible(one, two, pairings):
                break
            trial = self._trial(a, b, pairings, "sizes", alpha, 2 ** (more + 1) * (before + len(ways)), rotations)
            tried_pairings = (*tried_pairings, *_possible(one, two, trial.pairings))
            if best is None or _better(trial, best):
                best = trial
        return None if best is None else replace(best, tried_pairings=tried_pairings)

    def _trial(
        self, a: Model, b: Model, pairings: tuple[Pairing, ...], how: str, alpha: float, tried: int,
        rotations: dict[Hashable, float], *, alone: bool = True,
    ) -> EvaluatedMap:  # fmt: skip
        """The map under one pairing, from the reference to the target."""
        one, two = (b, a) if reference_is_second(a, b) else (a, b)
        found = find_map(
            one, two, pairings, structure(one), self.seed, named=how == "names", alone=alone, tried=rotations
        )
        pairings = _completed(tuple(p.part.pairing for n, p in found.map.parts.items() if "#" not in n), pairings)
        return self.evaluate(a, b, found, pairings, how, alpha, tried=tried)

    def identity(self, a: Model, b: Model, pairs: tuple[Pairing, ...], alpha: float = 0.01) -> EvaluatedMap:
        """What the identity map shows: exact where only factors of units differ."""
        reference_is_b = reference_is_second(a, b)
        one, two = (b, a) if reference_is_b else (a, b)
        pairings = tuple(p.swapped() for p in pairs) if reference_is_b else pairs
        parts = identity_maps(one, two, pairings, structure(one))
        covered = {p.a for p in pairings}, {p.b for p in pairings}
        lost, left = (tuple(n for n in matrices(m) if n not in c) for m, c in zip((one, two), covered, strict=True))
        found = FoundMap(UnitMap(parts, {}, lost, left), MappedPair(TensorReader(one), TensorReader(two)), False, ())
        return self.evaluate(a, b, found, pairings, "in place", alpha, tried=1)

    def evaluate(
        self, a: Model, b: Model, found: FoundMap, pairings: tuple[Pairing, ...], how: str, alpha: float, tried: int
    ) -> EvaluatedMap:
        """A map with its evidence; `how` names the pairing, `tried` is the number of maps to correct for."""
        reference_is_b = reference_is_second(a, b)
        one, two = (b, a) if reference_is_b else (a, b)
        counted = {n: p for n, p in found.map.parts.items() if n not in found.map.fitted}
        shown = UnitsAlike().compare(found.sides, counted, structure(one))
        near = all(f.cosine >= NEAR_COSINE for f in shown)
        residual = residual_of(found) if near else None
        exact = residual is not None and is_exact(found.map, residual, one, two)
        evidence = UnitsAlike().evidence(
            a,
            b,
            shown,
            alpha,
            _details(found, residual, how, exact=exact, reference_is_b=reference_is_b),
            tried=tried,
            claim="matched units have similar weights",
        )
        named = _evidence(evidence, found, residual, exact=exact, spec=self.spec)
        return EvaluatedMap(named, found, pairings, reference_is_b, exact)

    @staticmethod
    def relation(found: Evidence) -> Relation:
        """The relation that a map shows: permuted or reformatted if exact, else related."""
        steps = tuple(found.details["steps"])
        if not found.details["exact"]:
            return Relation(RelationKind.RELATED, dict(found.details), steps, found.reason)
        moved = any(s not in ("vocabulary grown", "vocabulary trimmed", "gains folded") for s in steps)
        kind = RelationKind.PERMUTED if moved else RelationKind.REFORMATTED
        return Relation(kind, dict(found.details), steps, found.reason)


def _all_named(one: Model, two: Model) -> bool:
    """Whether all matrices have a counterpart of equal name and shape."""
    own, other = matrices(one), matrices(two)
    return own.keys() == other.keys() and all(t.shape == other[n].shape for n, t in own.items())


def _possible(one: Model, two: Model, pairings: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Pairs of which one could derive from the other, by sizes."""
    return tuple(p for p in pairings if could_derive(one.weights[p.a], two.weights[p.b]))


def _completed(mapped: tuple[Pairing, ...], proposed: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Mapped pairs, and proposed pairs for the matrices that the map leaves out."""
    own, other = {p.a for p in mapped}, {p.b for p in mapped}
    return (*mapped, *(p for p in proposed if p.a not in own and p.b not in other))


def _better(one: EvaluatedMap, other: EvaluatedMap) -> bool:
    def rank(m: EvaluatedMap) -> tuple[bool, float, int]:
        return m.exact, -(m.evidence.log10_p or 0.0), len(m.found.map.parts)

    return rank(one) > rank(other)


def _evidence(
    shown: Evidence, found: FoundMap, residual: "Residual | None", *, exact: bool, spec: Spec
) -> Evidence:  # fmt: skip
    """The evidence under this method's name; an exact map needs no p-value."""
    fields: dict[str, Any] = {"statistic": UnitsMatched.name, "spec": spec}
    if exact and residual is not None:
        steps = " and ".join(found.map.steps) or "names and layout changed"
        p = shown.log10_p
        fields |= {
            "verdict": Verdict.SUPPORTED, "effect": 1.0, "value": shown.value,
            "null": Null("none: verified exactly" if p is None else shown.null.source),
            "reason": f"{steps}; this change turns one model into the other (relative difference {residual.worst:.1e})",
        }  # fmt: skip
    return Evidence(**{f: fields.get(f, getattr(shown, f)) for f in Evidence.__slots__})


def _details(
    found: FoundMap, residual: "Residual | None", how: str, *, exact: bool, reference_is_b: bool
) -> dict[str, Any]:  # fmt: skip
    steps = [*found.map.steps]
    if residual is not None and residual.plain > RESCALED and exact:
        steps.append("units rescaled")
    if residual is not None and residual.grown:
        steps.append("vocabulary grown" if (residual.grown > 0) != reference_is_b else "vocabulary trimmed")
    if found.gains_folded:
        steps.append("gains folded")
    pairs = [p.part.pairing for p in found.map.parts.values()]
    return {
        "exact": exact, "residual": None if residual is None else residual.worst, "steps": steps,
        "correspondence": how, "tensors_mapped": len({p.a for p in pairs}),
        "tensors_lost": len(found.map.unmapped_in_reference),
        "tensors_left": len(found.map.unmapped_in_target), "gains_folded": found.gains_folded,
        "names": {p.a: p.b for p in pairs if p.a != p.b}, "untried": list(found.untried),
    }  # fmt: skip


@dataclass(frozen=True)
class Residual:
    """Differences that remain under a map.

    Attributes:
        by_part: Relative difference, up to a positive factor per unit of any axis.
        plain: Largest relative difference without any rescaling.
        grown: By how much an axis of fixed rows is longer in the target.
    """

    by_part: dict[str, float]
    plain: float
    grown: int

    @property
    def worst(self) -> float:
        """Largest relative difference of any part."""
        return max(self.by_part.values(), default=1.0)


def residual_of(found: FoundMap) -> Residual | None:
    """Relative differences under a map, from at most `SAMPLE` entries per tensor; None if the map is incomplete."""
    if found.map.unmapped_in_reference or found.map.unmapped_in_target or not found.map.parts:
        return None
    by_part, plain, grown = {}, 0.0, 0
    entries = max(LEAST, min(SAMPLE, IN_ALL // len(found.map.parts)))
    for name, p in found.map.parts.items():
        sides = found.sides.mapped_entries(p.part, p.maps, entries)
        by_part[name], apart = _relative_differences(
            *sides, tuple(k for k, axis in enumerate(p.part.axes) if axis.free)
        )
        plain = max(plain, apart)
        grown = max((axis.b - axis.a for axis in p.part.axes), key=abs, default=0) or grown
        if any(axis.a != axis.b and axis.label.hidden for axis in p.part.axes):
            return None
    return Residual(by_part, plain, grown)


def _relative_differences(x: np.ndarray, y: np.ndarray, free: tuple[int, ...]) -> tuple[float, float]:
    """Relative difference with and without positive factors per unit divided out."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    p, q = (normalise_axes(side, free, NORMALISATION_ROUNDS) for side in (x, y))
    scaled = float(np.linalg.norm(p - q) / max(1e-30, np.linalg.norm(p)))
    return scaled, float(np.linalg.norm(x - y) / max(1e-30, np.linalg.norm(x)))


def is_exact(found: UnitMap, residual: Residual, reference: Model, target: Model) -> bool:
    """Whether a map explains every matrix of both models down to rounding."""
    for name, left in residual.by_part.items():
        p = found.parts[name].part.pairing
        if left > 4 * max(rounding(reference, p.a), rounding(target, p.b)) + SLACK * 2.0**-24:
            return False
    return _share_that_can_contradict(reference) >= MIN_SHARE_THAT_CAN_CONTRADICT


def _share_that_can_contradict(model: Model) -> float:
    """Share of the entries of living units whose matrices could contradict a map."""
    telling = total = living = 0.0
    for tensor in matrices(model).values():
        x = _corner(tensor)
        x = normalise_axes(x, tuple(range(x.ndim))).reshape(len(x), -1)
        norm = np.linalg.norm(x, axis=1)
        alive = norm > 0
        x = x / np.where(alive, norm, 1)[:, None]
        many = np.count_nonzero(x) >= 2 * max(1, int(alive.sum()))
        share = tensor.size * float(alive.mean())
        total, living = total + tensor.size, living + share
        telling += share if many and 2 * int(distinct(x, alive).sum()) > alive.sum() else 0.0
    return telling / living if living >= MIN_LIVING_SHARE * total > 0 else 0.0


def _corner(tensor: Tensor) -> np.ndarray:
    """The first rows of a tensor, at most `SAMPLE` entries, axes of length 1 dropped."""
    rows = min(tensor.shape[0], max(64, SAMPLE // max(1, tensor.size // tensor.shape[0])), 1024)
    x = np.asarray(tensor.rows(0, rows), np.float32)
    x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    return x.reshape([s for s in x.shape if s > 1] or [1, 1])
