"""How much the weights changed between two models whose tensors are paired."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.units_of_pair import Cuts
from stemma.models.model import Model

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Largest relative rounding error of one stored number."""

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
        levels: Distinct values in B per row at most, capped; small for quantised tensors.
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


def changes(a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[TensorChange, ...]:
    """Compare every pair of tensors (of large ones the first rows).

    Args:
        a: First model.
        b: Second model.
        pairings: Correspondence of tensors.

    Returns:
        One entry per pairing, in order.
    """
    cuts = Cuts(a, b, {p.a: p for p in pairings})
    out = []
    for p in pairings:
        cut = cuts[p.a]
        out.append(_change(a, b, p, cut.a, cut.b))
        cuts.drop(p.a)
    return tuple(out)


def _change(a: Model, b: Model, p: Pairing, x: np.ndarray, y: np.ndarray) -> TensorChange:
    size = a.weights[p.a].size
    floor = max(rounding(a, p.a), rounding(b, p.b))
    if x.shape != y.shape:
        return TensorChange(p.a, p.b, None, None, floor, size, 0.0, None, 1 << 16)
    norm = float(np.linalg.norm(x)) or 1e-30
    kept = y != 0
    support = float(np.linalg.norm(x[kept])) or 1e-30
    zeroed = float((~kept & (x != 0)).sum() / max(1, (x != 0).sum()))
    return TensorChange(
        p.a, p.b,
        relative=min(1e9, float(np.linalg.norm(x - y)) / norm),
        scaled=min(1e9, min(_scaled(np.moveaxis(x, i, 0), np.moveaxis(y, i, 0)) for i in range(x.ndim))),
        floor=floor, size=size, zeroed=zeroed,
        on_support=min(1e9, float(np.linalg.norm((x - y)[kept])) / support),
        levels=max(len(np.unique(row)) for row in y.reshape(len(y), -1)[:4]),
    )  # fmt: skip


def rounding(model: Model, name: str) -> float:
    """Relative rounding error of a tensor as stored (codes of eight bits or fewer count as quantised, not rounded).

    Returns:
        A relative error.
    """
    stored = model.tensors.get(name)
    return ROUNDING.get(stored.dtype if stored is not None else model.weights[name].dtype, ROUNDING["F32"])


def _scaled(x: np.ndarray, y: np.ndarray) -> float:
    """Relative change after the best positive scale for each row."""
    x, y = x.reshape(len(x), -1).astype(np.float64), y.reshape(len(y), -1).astype(np.float64)
    square = np.einsum("ij,ij->i", y, y)
    scale = np.maximum(np.einsum("ij,ij->i", x, y), 0) / np.where(square > 0, square, 1)
    # Rows count equally: a rescaled row must not hide behind a larger one.
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))
    error = np.linalg.norm(x - y * scale[:, None], axis=1) / np.where(norm > 0, norm, 1)
    return float(np.sqrt(np.mean(np.where(norm > 1e-6 * norm.max(initial=0.0), error, 0.0) ** 2)))
