"""How much rounding may have moved weights, and whether two models are the same but for it."""

from collections.abc import Sequence

import numpy as np

from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.units_of_pair import Cuts
from stemma.models.model import Model

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Largest relative rounding error of one stored number."""

SLACK = 64.0
"""Roundings that a function-preserving rewrite may pile up in float32 arithmetic before it is stored."""


def rounding(model: Model, name: str) -> float:
    """Relative rounding error of a tensor as stored (codes of eight bits or fewer count as quantised, not rounded).

    Returns:
        A relative error.
    """
    stored = model.tensors.get(name)
    return ROUNDING.get(stored.dtype if stored is not None else model.weights[name].dtype, ROUNDING["F32"])


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
