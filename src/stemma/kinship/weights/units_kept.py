"""The test for first-layer units that stay identical when units are removed or moved."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log10

import numpy as np

from stemma.architectures.structure import AxisLabel
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.constants.tables import is_table
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.types import Axis, Evidence, Null, Spec, Verdict

FIRST = 64
"""Entries of a unit that are compared before whole units."""

COMPARED_WHOLE = 1 << 16
"""Largest tensor, in entries, whose whole units are compared at once."""

LEVELS = 4096
"""Assumed number of distinguishable values of an entry, a lower bound."""


@dataclass(frozen=True)
class UnitsKept:
    """Search for identical units of two models, in any order.

    In layers whose other axes are the same for all models (pixels, colours, tokens) units can be compared directly.
    Independent training never gives identical units; pruning, reordering and edits of later layers preserve them. The
    p-value is a bound: an entry of an independent unit is assumed to equal a given one with a probability of at most 1
    in 4096 (32-bit floats have far more values), all pairs of units are counted, and one equal unit is enough.

    Attributes:
        share: Share of the units of the smaller side that must be found.
        least: Units that must be found.
        different: Distinct values that a unit needs: zeros and constants occur anywhere.
        largest: Largest tensor, in entries, that is read.
        min_effect: Smallest share of the model that counts as a relation.
    """

    share: float = 0.9
    least: int = 4
    different: int = 8
    largest: int = 1 << 26
    min_effect: float = 0.05

    name = "units-kept"
    version = 2

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def evidence(self, a: Model, b: Model, pairings: Sequence[Pairing]) -> Evidence | None:
        """Evidence of equal units, or None; the effect is the share of the smaller model that they make up."""
        known = structure(a).axes
        found = compared = pairs = 0
        entries = 0.0
        readers = [(p, axis) for p in pairings if (axis := _only_hidden(known, p)) is not None]
        readers = [(p, k) for p, k in readers if a.weights[p.a].size <= self.largest and _fits(a, b, p, k)]
        if sum(_count_equal_beginnings(a.weights[p.a], b.weights[p.b], p, axis) for p, axis in readers) < self.least:
            return None
        for p, axis in readers:
            x, y = (self._units(m.weights[n], axes, axis) for m, n, axes in ((a, p.a, p.axes_a), (b, p.b, p.axes_b)))
            found += len(x & y)
            entries += len(x & y) / max(1, len(x), len(y)) * max(a.weights[p.a].size, b.weights[p.b].size)
            compared += min(len(x), len(y))
            pairs += len(x) * len(y)
        if found < max(self.least, self.share * compared):
            return None
        log10_p = min(0.0, log10(pairs) - self.different * log10(LEVELS))
        total = min(sum(t.size for t in matrices(m).values()) for m in (a, b))
        effect = min(1.0, entries / max(1, total))
        reason = (
            f"{found} of {compared} input units occur identically in the other model, in any order; they make up "
            f"{effect:.1%} of the smaller model; a published layer used by both would also explain them"
        )
        null = Null(f"equal numbers by chance, 1 in {LEVELS} each: a bound")
        verdict = Verdict.SUPPORTED if effect >= self.min_effect else Verdict.INCONCLUSIVE
        claim = "first-layer units are identical bit for bit"
        details = {"units": found, "of": compared}
        return Evidence(
            claim=claim,
            axis=Axis.WEIGHTS,
            statistic=self.name,
            value=float(found),
            null=null,
            p_value=10**log10_p,
            log10_p=log10_p,
            effect=effect,
            verdict=verdict,
            reason=reason,
            spec=self.spec,
            inputs=(a.digest, b.digest),
            details=details,
        )

    def with_any_pairing(
        self, a: Model, b: Model, pairings: Sequence[Pairing]
    ) -> tuple[Evidence, tuple[Pairing, ...]] | None:
        """As `evidence`, with names or with other pairings, whichever shows it; with the pairing used."""
        for way in dict.fromkeys((by_name(a, b), tuple(pairings))):
            found = self.evidence(a, b, way)
            if found is not None:
                return found, way
        return None

    def _units(self, tensor: Tensor, axes: tuple[int, ...], axis: int) -> set[bytes]:
        """The distinguishable units of a tensor, as bytes."""
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.asarray(tensor.array(), np.float32)
        rest = [i for i in range(x.ndim) if i not in axes]
        rows = np.moveaxis(x.transpose(*axes, *rest), axis, 0)
        rows = np.ascontiguousarray(rows.reshape(len(rows), -1))
        if is_table(rows):
            return set()  # a transform that many networks store is no evidence
        return {r.tobytes() for r in rows if len(np.unique(r[r != 0])) >= self.different}


def _count_equal_beginnings(x: Tensor, y: Tensor, p: Pairing, axis: int) -> int:
    """Units of one tensor whose first numbers equal some unit's of the other: an upper bound."""
    if x.size <= COMPARED_WHOLE:
        return x.shape[p.axes_a[axis]]
    one, other = (_beginnings(t, axes, axis) for t, axes in ((x, p.axes_a), (y, p.axes_b)))
    there = {r.tobytes() for r in other}
    return sum(r.tobytes() in there for r in one)


def _beginnings(tensor: Tensor, axes: tuple[int, ...], axis: int) -> np.ndarray:
    """The first numbers of every unit, `[units, at most FIRST]`."""
    first = axes[axis] > 0 and list(axes) == sorted(axes)
    rows = max(1, min(tensor.shape[0], -(-FIRST * tensor.shape[0] * tensor.shape[axes[axis]] // tensor.size)))
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(tensor.rows(0, rows) if first else tensor.array(), np.float32)
    rest = [i for i in range(x.ndim) if i not in axes]
    units = np.moveaxis(x.transpose(*axes, *rest), axis, 0).reshape(x.shape[axes[axis]], -1)
    return np.ascontiguousarray(units[:, :FIRST])


def _only_hidden(known: Mapping[str, tuple[AxisLabel, ...]], p: Pairing) -> int | None:
    """The axis of a pair that carries hidden units, if it is the only one."""
    labels = [known[p.a][i] for i in p.axes_a]
    hidden = [k for k, label in enumerate(labels) if label.kind != "fixed"]
    plain = all(
        label.kind != "fixed" or label.role in ("pixel", "colour", "kernel", "token", "position") for label in labels
    )
    return hidden[0] if plain and len(hidden) == 1 and len(labels) > 1 else None


def _fits(a: Model, b: Model, p: Pairing, axis: int) -> bool:
    x, y = a.weights[p.a].shape, b.weights[p.b].shape
    pairs = zip(p.axes_a, p.axes_b, strict=True)
    return all(k == axis or x[i] == y[j] for k, (i, j) in enumerate(pairs))
