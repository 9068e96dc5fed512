"""How much rounding may have changed weights, and whether two models are equal up to it."""

from collections.abc import Sequence

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.pair_reader import PairReader
from stemma.types import Digest

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Largest relative rounding error of one stored number."""

SLACK = 64.0
"""Number of float32 roundings that a function-preserving rewrite may accumulate."""


PEEK, TELLING, CACHE_SIZE = 4096, 64, 256
"""Entries of a tensor that are checked for its number format, distinct values that some matrix needs for that, and
number of cached models."""


def rounding(model: Model, name: str) -> float:
    """Relative rounding error of a tensor's numbers; half precision stored in wider floats keeps its error."""
    stored = model.tensors.get(name)
    own = ROUNDING.get(stored.dtype if stored is not None else model.weights[name].dtype, ROUNDING["F32"])
    if stored is None or own > ROUNDING["F32"] or not stored.is_float:
        return own
    narrow, known = _narrowest(model)
    if narrow <= own:
        return own
    if name not in known:
        known[name] = rounding_of(_first(stored))
    return narrow if known[name] >= narrow else own


def _narrowest(model: Model) -> tuple[float, dict[str, float]]:
    """Rounding error of the narrowest float format that holds all matrices, and that of every tensor."""
    if (found := _known.get(model.digest)) is not None:
        return found
    seen = {n: _first(t) for n, t in model.tensors.items() if t.is_float and sum(s > 1 for s in t.shape) >= 2}
    telling = max((len(np.unique(x)) for x in seen.values()), default=0) >= TELLING
    errors = {n: rounding_of(x) for n, x in seen.items()} if telling else {}
    while len(_known) >= CACHE_SIZE:
        _known.pop(next(iter(_known)), None)
    _known[model.digest] = found = min(errors.values(), default=ROUNDING["F64"]), errors
    return found


_known: dict[Digest, tuple[float, dict[str, float]]] = {}


def _first(tensor: Tensor) -> np.ndarray:
    """The first entries of a tensor, as stored."""
    if not tensor.shape or not tensor.size:
        return np.asarray(tensor.array()).reshape(-1)
    rows = min(tensor.readable, max(1, PEEK // max(1, tensor.size // tensor.shape[0])))
    return np.asarray(tensor.rows(0, rows)).reshape(-1)[:PEEK]


def rounding_of(values: np.ndarray) -> float:
    """Relative rounding error of the narrowest float format (16 to 64 bits) that holds all finite values."""
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        single = finite.astype(np.float32)
        if not np.array_equal(single.astype(finite.dtype), finite):
            return ROUNDING["F64"]
        if not ((single.view(np.uint32) & 0xFFFF) != 0).any():
            return ROUNDING["BF16"]
        half = np.array_equal(single.astype(np.float16).astype(np.float32), single)
    return ROUNDING["F16"] if half else ROUNDING["F32"]


def recast_equal(a: Model, b: Model, pairings: Sequence[Pairing]) -> bool:
    """Whether paired matrices are identical once both are rounded to the narrower float of 16 bits or more."""
    cuts, values = PairReader(a, b, {p.a: p for p in pairings}), 0
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
