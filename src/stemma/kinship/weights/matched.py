"""Units matched: is B the same network as A in other coordinates, exactly or with changes since?"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.contents.alike import UnitsAlike
from stemma.kinship.weights.contents.in_place import reference_is_second, still
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.maps.axis_map import UnitMap
from stemma.kinship.weights.maps.blocks import Reader, Sides, balanced
from stemma.kinship.weights.maps.find import Found, find
from stemma.kinship.weights.order.similarity import distinct
from stemma.kinship.weights.residual import SLACK, rounding
from stemma.kinship.weights.sizes import could_be, left_over
from stemma.types import Evidence, Null, Relation, RelationKind, Spec, Verdict

TELLING = 0.5
"""Smallest share of a model's matrix entries that must be able to contradict a map before it proves anything."""

LIVING = 0.05
"""Smallest share of a model's matrix entries that must belong to units that are not dead."""

SAMPLE, IN_ALL, LEAST = 1 << 20, 1 << 25, 1 << 14
"""Entries of a tensor, and of all together, that are put under the map to see what is left; but at least so many."""

NEAR = 0.9998
"""Mean cosine that the units of every tensor need for a map that may be exact."""

EXACTLY = 12
"""Rounds of normalisation after which rescaled clones agree to rounding."""

AGAIN = 3
"""Times that matrices of the smaller model without a counterpart are tried with others that could hold their units."""

PLAIN = 0.01
"""Relative difference from which factors of units were divided out."""


@dataclass(frozen=True, eq=False)
class Matched:
    """A map of units, and what it shows.

    Attributes:
        evidence: What the contents of the matched units show; exhibited, without a p-value of its own, where the map
            leaves nothing but rounding.
        found: The map and what was not looked for.
        pairings: Which matrix is which under the map, from the reference to the target.
        turned: Whether the reference is the second model.
        exact: Whether nothing but rounding is left of any matrix.
        looked: Every pair of matrices that some map was looked for with, as `pairings` are.
    """

    evidence: Evidence
    found: Found
    pairings: tuple[Pairing, ...]
    turned: bool
    exact: bool
    looked: tuple[Pairing, ...] = ()

    @property
    def uneven(self) -> bool:
        """Whether one side has units that the other lacks."""
        return any(x.a != x.b and x.label.hidden for p in self.found.map.parts.values() for x in p.part.axes)


@dataclass(frozen=True)
class UnitsMatched:
    """Look for a map of units from one model to the other; see what it leaves, and what the matched units show.

    A map whose residual lies at the rounding of the number formats, over all matrices, is a construction, not an
    inference. Otherwise the contents of the matched units decide, by the bound of `units-alike`, which pays for every
    order that could have been chosen; so no null of independent networks is needed, whatever their sizes.
    Cost: see `find`; once for each correspondence of tensors.

    Attributes:
        seed: Breaks ties.

    Source: matching of units by linear assignment, propagated through layers (Ainsworth et al., ICLR 2023,
    arXiv:2209.04836, use the same steps for merging); see `find` and `units-alike` for what is new.
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
        before: int = 1, best: Matched | None = None,
    ) -> Matched | None:  # fmt: skip
        """Look for a map.

        Args:
            a: One model.
            b: The other one; the side whose structure is known better serves as reference.
            ways: Correspondences of tensors from a to b that are tried.
            alpha: Level of the decision.
            before: Maps that were tried already; paid for.
            best: The best of these.

        Returns:
            The best map; None where no tensors correspond.
        """
        turned = reference_is_second(a, b)
        one, two = (b, a) if turned else (a, b)
        looked = best.looked if best is not None else ()
        rotations = best.found.tried if best is not None else {}
        for how, pairs in ways:
            pairings = tuple(p.turned() for p in pairs) if turned else pairs
            pairings = (*pairings, *left_over(one, two, pairings))
            again = how == "contents" and _all_named(one, two)  # each by itself was tried under the names
            trial = self._trial(a, b, pairings, how, alpha, before + len(ways), rotations, alone=not again)
            looked = (*looked, *_possible(one, two, trial.pairings))
            if best is None or _better(trial, best):
                best = trial
            if trial.exact:
                break
        for more in range(AGAIN):
            if best is not None and best.evidence.verdict is Verdict.SUPPORTED:
                break
            pairings = tuple(left_over(one, two, looked, again=bool(looked)))
            if not _possible(one, two, pairings):
                break
            trial = self._trial(a, b, pairings, "sizes", alpha, 2 ** (more + 1) * (before + len(ways)), rotations)
            looked = (*looked, *_possible(one, two, trial.pairings))
            if best is None or _better(trial, best):
                best = trial
        return None if best is None else replace(best, looked=looked)

    def _trial(
        self, a: Model, b: Model, pairings: tuple[Pairing, ...], how: str, alpha: float, tried: int,
        rotations: dict[Hashable, float], *, alone: bool = True,
    ) -> Matched:  # fmt: skip
        """The map under one correspondence, from the reference to the target."""
        one, two = (b, a) if reference_is_second(a, b) else (a, b)
        found = find(one, two, pairings, structure(one), self.seed, named=how == "names", alone=alone, tried=rotations)
        pairings = _completed(tuple(p.part.pairing for n, p in found.map.parts.items() if "#" not in n), pairings)
        return self.weighed(a, b, found, pairings, how, alpha, tried=tried)

    def unmoved(self, a: Model, b: Model, pairs: tuple[Pairing, ...], alpha: float = 0.01) -> Matched:
        """The map that leaves every unit where it is.

        Args:
            a: One model.
            b: The other one.
            pairs: Which tensor of a is which of b.
            alpha: Level of the decision.

        Returns:
            What it shows: exact where only factors of units differ.
        """
        turned = reference_is_second(a, b)
        one, two = (b, a) if turned else (a, b)
        pairings = tuple(p.turned() for p in pairs) if turned else pairs
        parts = still(one, two, pairings, structure(one))
        covered = {p.a for p in pairings}, {p.b for p in pairings}
        lost, left = (tuple(n for n in matrices(m) if n not in c) for m, c in zip((one, two), covered, strict=True))
        found = Found(UnitMap(parts, {}, lost, left), Sides(Reader(one), Reader(two)), False, ())
        return self.weighed(a, b, found, pairings, "in place", alpha, tried=1)

    def weighed(
        self, a: Model, b: Model, found: Found, pairings: tuple[Pairing, ...], how: str, alpha: float, tried: int
    ) -> Matched:
        """What a map shows.

        Args:
            a: One model.
            b: The other one.
            found: The map, from whichever of the two is the reference.
            pairings: Which tensor is which, from the reference to the target.
            how: How they were paired.
            alpha: Level of the decision.
            tried: Maps that were looked at; paid for.

        Returns:
            The map with its evidence.
        """
        turned = reference_is_second(a, b)
        one, two = (b, a) if turned else (a, b)
        counted = {n: p for n, p in found.map.parts.items() if n not in found.map.fitted}
        shown = UnitsAlike().look(found.sides, counted, structure(one))
        near = all(f.cosine >= NEAR for f in shown)
        residual = residual_of(found) if near else None
        exact = residual is not None and is_exact(found.map, residual, one, two)
        evidence = UnitsAlike().evidence(
            a,
            b,
            shown,
            alpha,
            _details(found, residual, how, exact=exact, turned=turned),
            tried=tried,
            claim="units contain the same, brought together by a map",
        )
        named = _named(evidence, found, residual, exact=exact, spec=self.spec)
        return Matched(named, found, pairings, turned, exact)

    @staticmethod
    def relation(found: Evidence) -> Relation:
        """Name what a map shows by itself.

        Args:
            found: Evidence of this method.

        Returns:
            `permuted` (units permuted, rescaled or rotated) or `reformatted` for an exact map, else `related`.
        """
        steps = tuple(found.details["steps"])
        if not found.details["exact"]:
            return Relation(RelationKind.RELATED, dict(found.details), steps, found.reason)
        moved = any(s not in ("vocabulary grown", "vocabulary trimmed", "gains folded") for s in steps)
        kind = RelationKind.PERMUTED if moved else RelationKind.REFORMATTED
        return Relation(kind, dict(found.details), steps, found.reason)


def _all_named(one: Model, two: Model) -> bool:
    """Whether all matrices have a namesake of their shape."""
    own, other = matrices(one), matrices(two)
    return own.keys() == other.keys() and all(t.shape == other[n].shape for n, t in own.items())


def _possible(one: Model, two: Model, pairings: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Pairs of which one could have been made from the other, as far as sizes tell."""
    return tuple(p for p in pairings if could_be(one.weights[p.a], two.weights[p.b]))


def _completed(mapped: tuple[Pairing, ...], proposed: Sequence[Pairing]) -> tuple[Pairing, ...]:
    """Pairs under a map, and what was proposed for the matrices that it leaves out."""
    own, other = {p.a for p in mapped}, {p.b for p in mapped}
    return (*mapped, *(p for p in proposed if p.a not in own and p.b not in other))


def _better(one: Matched, other: Matched) -> bool:
    def rank(m: Matched) -> tuple[bool, float, int]:
        return m.exact, -(m.evidence.log10_p or 0.0), len(m.found.map.parts)

    return rank(one) > rank(other)


def _named(
    shown: Evidence, found: Found, residual: "Residual | None", *, exact: bool, spec: Spec
) -> Evidence:  # fmt: skip
    """The evidence under this method's name; an exact map is exhibited."""
    fields: dict[str, Any] = {"statistic": UnitsMatched.name, "spec": spec}
    if exact and residual is not None:
        steps = " and ".join(found.map.steps) or "names and layout changed"
        p = shown.log10_p
        fields |= {
            "verdict": Verdict.SUPPORTED, "effect": 1.0, "value": shown.value,
            "null": Null("none: exhibited" if p is None else shown.null.source),
            "reason": f"{steps}: applied to one model, this leaves {residual.worst:.1e} relative difference",
        }  # fmt: skip
    return Evidence(**{f: fields.get(f, getattr(shown, f)) for f in Evidence.__slots__})


def _details(
    found: Found, residual: "Residual | None", how: str, *, exact: bool, turned: bool
) -> dict[str, Any]:  # fmt: skip
    steps = [*found.map.steps]
    if residual is not None and residual.plain > PLAIN and exact:
        steps.append("units rescaled")
    if residual is not None and residual.grown:
        steps.append("vocabulary grown" if (residual.grown > 0) != turned else "vocabulary trimmed")
    if found.folded:
        steps.append("gains folded")
    pairs = [p.part.pairing for p in found.map.parts.values()]
    return {
        "exact": exact, "residual": None if residual is None else residual.worst, "steps": steps,
        "correspondence": how, "tensors_mapped": len({p.a for p in pairs}), "tensors_lost": len(found.map.lost),
        "tensors_left": len(found.map.left), "gains_folded": found.folded,
        "names": {p.a: p.b for p in pairs if p.a != p.b}, "untried": list(found.untried),
    }  # fmt: skip


@dataclass(frozen=True)
class Residual:
    """What a map leaves of the matrices that it covers.

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


def residual_of(found: Found) -> Residual | None:
    """Apply a map and look at what is left, of at most `SAMPLE` entries of each tensor.

    Args:
        found: The map.

    Returns:
        The differences; None where some matrix has no counterpart, or units are missing.
    """
    if found.map.lost or found.map.left or not found.map.parts:
        return None
    by_part, plain, grown = {}, 0.0, 0
    entries = max(LEAST, min(SAMPLE, IN_ALL // len(found.map.parts)))
    for name, p in found.map.parts.items():
        sides = found.sides.under(p.part, p.maps, entries)
        by_part[name], apart = _apart(*sides, tuple(k for k, axis in enumerate(p.part.axes) if axis.free))
        plain = max(plain, apart)
        grown = max((axis.b - axis.a for axis in p.part.axes), key=abs, default=0) or grown
        if any(axis.a != axis.b and axis.label.hidden for axis in p.part.axes):
            return None
    return Residual(by_part, plain, grown)


def _apart(x: np.ndarray, y: np.ndarray, free: tuple[int, ...]) -> tuple[float, float]:
    """Relative difference with and without positive factors per unit divided out."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    p, q = (balanced(side, free, EXACTLY) for side in (x, y))
    scaled = float(np.linalg.norm(p - q) / max(1e-30, np.linalg.norm(p)))
    return scaled, float(np.linalg.norm(x - y) / max(1e-30, np.linalg.norm(x)))


def is_exact(found: UnitMap, residual: Residual, reference: Model, target: Model) -> bool:
    """Whether a map explains every matrix of both models down to rounding.

    Args:
        found: The map.
        residual: What it leaves.
        reference: The model that it starts from.
        target: The other one.

    Returns:
        True for an exhibited identity of weights in other coordinates.
    """
    for name, left in residual.by_part.items():
        p = found.parts[name].part.pairing
        if left > 4 * max(rounding(reference, p.a), rounding(target, p.b)) + SLACK * 2.0**-24:
            return False
    return _telling(reference) >= TELLING


def _telling(model: Model) -> float:
    """Share of a model's matrix entries that a map could get wrong, those of dead units left out.

    Zero, constant and rank-one matrices agree with any others of their size once units are rescaled, diagonal ones
    once they are permuted: they show nothing, however small the residual.

    Returns:
        A share in [0, 1].
    """
    telling = total = living = 0.0
    for tensor in matrices(model).values():
        x = _corner(tensor)
        x = balanced(x, tuple(range(x.ndim))).reshape(len(x), -1)
        norm = np.linalg.norm(x, axis=1)
        alive = norm > 0
        x = x / np.where(alive, norm, 1)[:, None]
        many = np.count_nonzero(x) >= 2 * max(1, int(alive.sum()))
        share = tensor.size * float(alive.mean())
        total, living = total + tensor.size, living + share
        telling += share if many and 2 * int(distinct(x, alive).sum()) > alive.sum() else 0.0
    return telling / living if living >= LIVING * total > 0 else 0.0


def _corner(tensor: Tensor) -> np.ndarray:
    """The first rows of a tensor, at most `SAMPLE` entries, axes of length one dropped."""
    rows = min(tensor.shape[0], max(64, SAMPLE // max(1, tensor.size // tensor.shape[0])), 1024)
    x = np.asarray(tensor.rows(0, rows), np.float32)
    x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    return x.reshape([s for s in x.shape if s > 1] or [1, 1])
