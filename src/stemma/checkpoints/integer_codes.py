"""Integer weights without a scale: centred codes are weights up to one factor per tensor.

Comparing units within a tensor needs no scale. Packed low-bit codes, index tables and masks are distinguished from
codes by the distribution of their values.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from stemma.checkpoints.tensor import ITEMSIZE, RowStorage, Tensor

INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32"})
SAMPLE = 1 << 16
"""Entries sampled per tensor."""

SPREAD = 4.0
"""Effective number of highest nibbles from which the nibbles below them must be level, unless codes are packed."""

FLAT = 14.5
"""Effective number of highest nibbles from which values are spread evenly: compressed or packed, no weights."""

UNEVEN, NOISE = 1.25, 60.0
"""Unevenness of the second nibble (16 times the sum of squared shares; 1 is level) that shows packed codes; in a
sample of n, `NOISE / n` more."""


def center_codes(tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Center integer matrices as float32 weights where a model has little else."""
    matrices = {n: t for n, t in stored.items() if sum(s > 1 for s in t.shape) >= 2 and t.size}
    integer = sum(t.size for t in matrices.values() if t.dtype in INTEGERS)
    if 2 * integer < sum(t.size for t in matrices.values() if t.is_float or t.dtype in INTEGERS):
        return tensors
    candidates = {n: t for n, t in tensors.items() if n in matrices and t.dtype in INTEGERS}
    code_entries = sum(t.size for t in candidates.values() if is_codes(t))
    if not code_entries or 2 * code_entries < sum(t.size for t in candidates.values()):
        return tensors
    # among codes, a small kernel scaled channel by channel may be spread evenly
    return {**tensors, **{n: _center(t) for n, t in candidates.items() if is_codes(t, flat=np.inf)}}


PLAUSIBLE = (1e-9, 1e4)
"""Absolute values between which nearly all weights of a network lie."""


def reinterpret_half_floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of 16-bit integers that are really half-precision floats, as floats by name."""
    out = {}
    for name, t in tensors.items():
        if t.dtype in ("U16", "I16") and sum(s > 1 for s in t.shape) >= 2 and t.size >= 256:
            kind = next((k for k in ("BF16", "F16") if _looks_like_weights(t, k)), None)
            if kind is not None:
                out[name] = replace(t, dtype=kind)
    kinds = {t.dtype for t in out.values()}
    if len(kinds) == 1:  # vectors beside them are written the same way
        kind = next(iter(kinds))
        out |= {n: replace(t, dtype=kind) for n, t in tensors.items() if t.dtype in ("U16", "I16") and n not in out}
    return out


def _looks_like_weights(tensor: Tensor, kind: str) -> bool:
    rows = max(1, min(tensor.shape[0], SAMPLE // max(1, tensor.size // tensor.shape[0])))
    x = replace(tensor, dtype=kind).rows(0, rows).reshape(-1)
    with np.errstate(invalid="ignore"):
        size = np.abs(x[x != 0])
        plausible = np.isfinite(size) & (size > PLAUSIBLE[0]) & (size < PLAUSIBLE[1])
        negative = float((x < 0).mean())
    # most of its range stands for numbers of one size: a float's exponents are few, whole numbers fill them all
    return size.size >= 128 and float(plausible.mean()) > 0.999 and 0.2 < negative < 0.8


def is_codes(tensor: Tensor, flat: float = FLAT) -> bool:
    """Whether a tensor's integers can be quantised weights, one each: not indices, masks or packed low-bit codes."""
    values = _sample(tensor)
    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) <= 2 or (tensor.dtype == "I32" and int(np.abs(kinds).max()) > 1 << 16):
        return False
    if len(values) > 64 and len(kinds) == np.ptp(kinds) + 1 and np.ptp(counts) <= 1:
        return False  # an index: every value equally often
    bits = 8 * ITEMSIZE[tensor.dtype] if tensor.dtype != "I32" else 16
    shifted = values + (0 if tensor.dtype.startswith("U") else 1 << (bits - 1))
    shifted = shifted[values != kinds[counts.argmax()]]  # zeros of a pruned model would look uneven
    if len(shifted) < 256:
        return True
    high, second = (shifted >> (bits - 4)) & 15, (shifted >> (bits - 8)) & 15
    used = 1.0 / float(np.square(np.bincount(high, minlength=16) / len(high)).sum())
    uneven = 16.0 * float(np.square(np.bincount(second, minlength=16) / len(second)).sum())
    return used < flat and not (used >= SPREAD and uneven > UNEVEN + NOISE / len(shifted))


def _sample(tensor: Tensor) -> np.ndarray:
    rows = max(1, min(tensor.shape[0], SAMPLE // max(1, tensor.size // tensor.shape[0])))
    return tensor.rows(0, rows).reshape(-1)[: 2 * SAMPLE].astype(np.int64)


def _center(tensor: Tensor) -> Tensor:
    @cache
    def zero() -> np.float32:
        """The code of zero: 0 for signed codes, about the median of unsigned ones."""
        return np.float32(np.median(_sample(tensor)) if tensor.dtype.startswith("U") else 0)

    def make(start: int, stop: int) -> np.ndarray:
        return tensor.rows(start, stop).astype(np.float32) - zero()

    return replace(tensor, dtype="F32", storage=RowStorage(make, tensor.shape))
