"""How much the weights changed between two models whose tensors are paired."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.units_of_pair import Cuts
from stemma.models.model import Model

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Largest relative rounding error of one stored number."""

ENTRIES = 1 << 16
"""Entries of a tensor that are compared; of larger ones the first rows are."""

NO_GRID = 1 << 16

LEAST = 16
"""Nonzero entries that a row needs to tell anything about a grid."""

GROUP = 32
"""Entries that surely share one scale where scales belong to groups of a row."""

SLACK = 64.0
"""Roundings that a function-preserving rewrite may pile up in float32 arithmetic before it is stored."""


@dataclass(frozen=True)
class TensorChange:
    """One pair of tensors.

    Attributes:
        a: Name in A.
        b: Name in B.
        relative: Norm of the difference over the norm of A; 0 is the same. None where sizes differ.
        scaled: The same after the best positive scale per unit of either outer axis; None where sizes differ.
        floor: Relative rounding error of the narrower dtype.
        size: Entries of A.
        zeroed: Share of A's nonzero entries that are zero in B.
        on_support: The relative change where B is not zero.
        levels: Steps of the grid that B's rows lie on (along the axis where it is coarsest); `NO_GRID` without one.
    """

    a: str
    b: str
    relative: float | None
    scaled: float | None
    floor: float
    size: int
    zeroed: float
    on_support: float | None
    levels: int


def changes(a: Model, b: Model, pairings: Sequence[Pairing], *, whole: bool = False) -> tuple[TensorChange, ...]:
    """Compare every pair of tensors.

    Args:
        a: First model.
        b: Second model.
        pairings: Correspondence of tensors.
        whole: Compare every entry, in slices; otherwise the first rows of large tensors.

    Returns:
        One entry per pairing, in order.
    """
    cuts = Cuts(a, b, {p.a: p for p in pairings}, ENTRIES, 32)
    out = []
    for p in pairings:
        floor, size = max(rounding(a, p.a), rounding(b, p.b)), a.weights[p.a].size
        parts = cuts.slices(p.a) if whole else [(cuts[p.a].a, cuts[p.a].b)]
        measured = [_measure(x, y) for x, y in parts]
        out.append(_change(p, floor, size, [m for m in measured if m is not None]))
        cuts.drop(p.a)
    return tuple(out)


@dataclass(frozen=True)
class _Measured:
    """Sums of squares of one slice: of A, the difference, A and the difference where B is not zero; and the rest."""

    a: float
    difference: float
    a_kept: float
    difference_kept: float
    nonzero: int
    zeroed: int
    scaled: float
    levels: int


def _measure(x: np.ndarray, y: np.ndarray) -> _Measured | None:
    if x.shape != y.shape:
        return None
    kept, difference = y != 0, np.square(x - y, dtype=np.float64)
    square = np.square(x, dtype=np.float64)
    return _Measured(
        a=float(square.sum()),
        difference=float(difference.sum()),
        a_kept=float(square[kept].sum()),
        difference_kept=float(difference[kept].sum()),
        nonzero=int((x != 0).sum()),
        zeroed=int((~kept & (x != 0)).sum()),
        scaled=min(_scaled(np.moveaxis(x, i, 0), np.moveaxis(y, i, 0)) for i in range(x.ndim)),
        levels=min(_levels(np.moveaxis(y, i, 0)) for i in range(y.ndim)),
    )


def _levels(y: np.ndarray) -> int:
    """Levels of the grid on which some rows lie: few values for many entries, or multiples of one step."""
    rows = y.reshape(len(y), -1)
    rows = rows[:: max(1, len(rows) // 3)][:3]
    return min(_coarsest([row[:width] for row in rows]) for width in (y.size, GROUP))


def _coarsest(rows: list[np.ndarray]) -> int:
    informative = [row[row != 0] for row in rows if np.count_nonzero(row) >= LEAST]
    return max((_grid(row) for row in informative), default=NO_GRID)


def _grid(row: np.ndarray) -> int:
    values = np.unique(row)
    if len(values) * 8 <= len(row):
        return len(values) + 1
    if len(values) < 6:
        return NO_GRID  # too few to tell a grid from chance
    steps = (values - values[0]) / np.diff(values).min()
    regular = np.abs(steps - np.rint(steps)).max() <= 0.02 and steps[-1] <= 256
    return round(float(steps[-1])) + 1 if regular else NO_GRID


def _change(p: Pairing, floor: float, size: int, measured: list[_Measured]) -> TensorChange:
    if not measured:
        return TensorChange(p.a, p.b, None, None, floor, size, 0.0, None, NO_GRID)

    def relative(difference: float, norm: float) -> float:
        return min(1e9, float(np.sqrt(difference / max(norm, 1e-60))))

    return TensorChange(
        p.a,
        p.b,
        relative=relative(sum(m.difference for m in measured), sum(m.a for m in measured)),
        scaled=min(1e9, max(m.scaled for m in measured)),
        floor=floor,
        size=size,
        zeroed=sum(m.zeroed for m in measured) / max(1, sum(m.nonzero for m in measured)),
        on_support=relative(sum(m.difference_kept for m in measured), sum(m.a_kept for m in measured)),
        levels=max(m.levels for m in measured),
    )


def rounding(model: Model, name: str) -> float:
    """Relative rounding error of a tensor as stored (codes of eight bits or fewer count as quantised, not rounded).

    Returns:
        A relative error.
    """
    stored = model.tensors.get(name)
    return ROUNDING.get(stored.dtype if stored is not None else model.weights[name].dtype, ROUNDING["F32"])


def _scaled(x: np.ndarray, y: np.ndarray) -> float:
    """Relative change after the best positive scale for each row."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    square = np.einsum("ij,ij->i", y, y)
    scale = np.maximum(np.einsum("ij,ij->i", x, y), 0) / np.where(square > 0, square, 1)
    # Rows count equally: a rescaled row must not hide behind a larger one.
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))
    error = np.linalg.norm(x - y * scale[:, None], axis=1) / np.where(norm > 0, norm, 1)
    return float(np.sqrt(np.mean(np.where(norm > 1e-6 * norm.max(initial=0.0), error, 0.0) ** 2)))


def recast_equal(a: Model, b: Model, pairings: Sequence[Pairing]) -> bool:
    """Whether every paired matrix is the same, bit for bit, once both sides are rounded to the narrower float.

    Eight-bit floats are excluded: converged strangers can agree that coarsely. So are matrices of few values.

    Args:
        a: First model.
        b: Second model.
        pairings: Correspondence of tensors.

    Returns:
        True for an exhibited identity.
    """
    cuts, values = Cuts(a, b, {p.a: p for p in pairings}), 0
    for p in pairings:
        width = max(rounding(a, p.a), rounding(b, p.b))
        if width > ROUNDING["BF16"]:
            return False
        for x, y in cuts.slices(p.a):
            if x.shape != y.shape or not np.array_equal(_rounded(x, width), _rounded(y, width)):
                return False
            values = max(values, len(np.unique(x.reshape(-1)[:4096])))
    return values >= 64


def _rounded(x: np.ndarray, width: float) -> np.ndarray:
    if width == ROUNDING["BF16"]:
        bits = np.ascontiguousarray(x).view(np.uint32)
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    with np.errstate(over="ignore"):
        return x.astype(np.float16) if width == ROUNDING["F16"] else x
