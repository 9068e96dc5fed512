"""Units kept bit for bit: what first layers read of the input stays as it was when units are cut or moved."""

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
"""Numbers of a unit that are compared before whole units are: equal units begin alike."""

WHOLE = 1 << 16
"""Entries of a tensor up to which whole units are compared at once."""

LEVELS = 4096
"""Numbers that are told apart, at the least."""


@dataclass(frozen=True)
class UnitsKept:
    """Look for the units of one model among those of the other, bit by bit, in any order.

    In layers whose other axes are the same for all models (pixels, colours, tokens) a unit is a vector of floats that
    can be compared as it is. Training apart never gives the same one; pruning, reordering and edits of later layers
    leave it. The p-value is a bound: a number of an independent unit is taken to equal a given one with a probability
    of at most 1 in 4096 (32-bit floats hold far more), all pairs of units are counted, and one equal unit is enough.

    Attributes:
        share: Of the units of the smaller side that must be found.
        least: Units that must be found.
        different: Distinct numbers that a unit needs to count: zeros and constants are found anywhere.
        largest: Entries of a tensor up to which it is read.
        min_effect: Smallest share of the model that counts as kinship.
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
        """Look for equal units.

        Cost: a few numbers of every unit of the first layers; these are read whole only where some agree in them.

        Args:
            a: One model.
            b: The other.
            pairings: Which matrix of a is which of b.

        Returns:
            The evidence; None where too few units are equal, or no layer reads inputs that all share. The effect is
            the share of the smaller model that these units make.
        """
        known = structure(a).axes
        found = asked = pairs = 0
        entries = 0.0
        readers = [(p, axis) for p in pairings if (axis := _only_hidden(known, p)) is not None]
        readers = [(p, k) for p, k in readers if a.weights[p.a].size <= self.largest and _fits(a, b, p, k)]
        if sum(_begun_alike(a.weights[p.a], b.weights[p.b], p, axis) for p, axis in readers) < self.least:
            return None
        for p, axis in readers:
            x, y = (self._units(m.weights[n], axes, axis) for m, n, axes in ((a, p.a, p.axes_a), (b, p.b, p.axes_b)))
            found += len(x & y)
            entries += len(x & y) / max(1, len(x), len(y)) * max(a.weights[p.a].size, b.weights[p.b].size)
            asked += min(len(x), len(y))
            pairs += len(x) * len(y)
        if found < max(self.least, self.share * asked):
            return None
        log10_p = min(0.0, log10(pairs) - self.different * log10(LEVELS))
        total = min(sum(t.size for t in matrices(m).values()) for m in (a, b))
        effect = min(1.0, entries / max(1, total))
        reason = (
            f"{found} of {asked} units that read the input are bit for bit among the other's, in any order; they are "
            f"{effect:.1%} of the smaller model, and a published layer that both use would explain them too"
        )
        null = Null(f"equal numbers by chance, 1 in {LEVELS} each: a bound")
        verdict = Verdict.SUPPORTED if effect >= self.min_effect else Verdict.INCONCLUSIVE
        claim = "units that read the input are bit for bit the same"
        details = {"units": found, "of": asked}
        return Evidence(
            claim, Axis.WEIGHTS, self.name, float(found), null, 10**log10_p, log10_p, effect, verdict, reason,
            self.spec, (a.digest, b.digest), details,
        )  # fmt: skip

    def either(self, a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[Evidence, tuple[Pairing, ...]] | None:
        """As `evidence`, by names where these show it, or by another correspondence.

        Returns:
            The evidence and the correspondence that shows it.
        """
        for way in dict.fromkeys((by_name(a, b), tuple(pairings))):
            found = self.evidence(a, b, way)
            if found is not None:
                return found, way
        return None

    def _units(self, tensor: Tensor, axes: tuple[int, ...], axis: int) -> set[bytes]:
        """The units of a tensor that are told apart from any others, as bytes."""
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.asarray(tensor.array(), np.float32)
        rest = [i for i in range(x.ndim) if i not in axes]
        rows = np.moveaxis(x.transpose(*axes, *rest), axis, 0)
        rows = np.ascontiguousarray(rows.reshape(len(rows), -1))
        if is_table(rows):
            return set()  # a transform that many networks store is no descent
        return {r.tobytes() for r in rows if len(np.unique(r[r != 0])) >= self.different}


def _begun_alike(x: Tensor, y: Tensor, p: Pairing, axis: int) -> int:
    """How many units of one tensor begin like some unit of the other: no fewer than are the same."""
    if x.size <= WHOLE:
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
    """Which axis of a pair carries hidden units, where it is the only one that does."""
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
