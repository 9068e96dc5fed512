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
    if INTEGERS.isdisjoint({t.dtype for t in stored.values()}):
        return tensors
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


NEAR = 0.9
"""Share of entries that lie within a factor of 32 of their median; in Gaussian weights .98 do."""

PLAUSIBLE = (1e-9, 1e4)
"""Absolute values between which nearly all weights of a network lie."""


WHOLE_NUMBERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
"""Dtypes as which the bytes of floats may be stored."""


def reinterpret_floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of integers that are really the bytes of floats, as floats by name.

    Half floats stored as 16-bit integers are customary; bytes of wider floats in narrower integers, several for each
    entry of the last axis, hide a model from whoever takes them for codes.

    Args:
        tensors: The tensors as stored, by name.

    Returns:
        Those that are floats, with the lengths that they have as floats.
    """
    out = {}
    for name, t in tensors.items():
        if t.dtype in WHOLE_NUMBERS and sum(s > 1 for s in t.shape) >= 2 and t.size >= 256:
            kinds = ("BF16", "F16", "F32")  # two halves read as one float would look like weights too
            found = (
                as_float
                for k in kinds
                if (as_float := _stored_as(t, k)) and _looks_like_weights(as_float, near=t.shape != as_float.shape)
            )
            read = next(found, None)
            if read is not None:
                out[name] = read
    if len({(tensors[n].dtype, t.dtype) for n, t in out.items()}) == 1:  # vectors beside them are written the same way
        first = next(iter(out))
        stored, kind = tensors[first].dtype, out[first].dtype
        beside = {n: _stored_as(t, kind) for n, t in tensors.items() if t.dtype == stored and n not in out}
        out |= {n: t for n, t in beside.items() if t is not None}
    return out


def _stored_as(tensor: Tensor, kind: str) -> Tensor | None:
    """The same bytes as floats, several integers of the last axis for each; None where they do not come out even."""
    each, rest = divmod(ITEMSIZE[kind], ITEMSIZE[tensor.dtype])
    if rest or not tensor.shape or tensor.shape[-1] % each or (len(tensor.shape) == 1 and tensor.leading):
        return None
    return replace(tensor, dtype=kind, shape=(*tensor.shape[:-1], tensor.shape[-1] // each))


def _looks_like_weights(tensor: Tensor, *, near: bool) -> bool:
    """Whether floats are of plausible sizes, and `near` each other: bytes of packed codes make floats of any size."""
    rows = max(1, min(tensor.readable, SAMPLE // max(1, tensor.size // tensor.shape[0])))
    x = tensor.rows(0, rows).reshape(-1)
    with np.errstate(invalid="ignore"):
        size = np.abs(x[x != 0])
        plausible = np.isfinite(size) & (size > PLAUSIBLE[0]) & (size < PLAUSIBLE[1])
        negative = float((x < 0).mean())
    # most of its range stands for numbers of one size: a float's exponents are few, whole numbers fill them all
    if size.size < 128 or float(plausible.mean()) <= 0.999 or not 0.2 < negative < 0.8:
        return False
    apart = np.abs(np.log2(size[plausible] / np.median(size[plausible])))
    return not near or float((apart < 5).mean()) >= NEAR


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
