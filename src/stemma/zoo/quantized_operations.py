"""Quantisation operations: integer codes, or rounded and stored as floats again.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.errors import MisuseError
from stemma.zoo.symmetries import Arrays

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]


def int8(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix as 8-bit codes per output row, with `NAME::scale` and `NAME::zero_point` beside it.

    The weight is (code - zero point) times scale.

    Returns:
        Configuration and tensors.
    """
    config, arrays = parents[0]
    out = dict(arrays)
    for name, a in arrays.items():
        if a.ndim < 2 or not name.endswith("weight"):
            continue
        rows = a.reshape(len(a), -1).astype(np.float64)
        low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
        scale = np.where(high > low, (high - low) / 255, 1.0).astype(np.float32)
        zero = np.clip(np.round(-128 - low / scale), -128, 127).astype(np.int64)
        codes = np.clip(np.round(rows / scale[:, None]) + zero[:, None], -128, 127)
        out[name] = codes.astype(np.int8).reshape(a.shape)
        out[f"{name}::scale"], out[f"{name}::zero_point"] = scale, zero
    return dict(config), out


def int4(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix rounded to 15 levels per block of `block` entries of a row, and stored as floats again."""
    config, arrays = parents[0]
    block, out = int(recipe.parameters["block"]), dict(arrays)
    for name, a in arrays.items():
        if a.ndim < 2 or not name.endswith("weight"):
            continue
        rows = a.reshape(len(a), -1)
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(a), -1, block).astype(np.float64)
        scale = np.abs(padded).max(-1, keepdims=True) / 7
        levels = np.round(padded / np.where(scale == 0, 1, scale)) * scale
        out[name] = levels.reshape(len(a), -1)[:, : rows.shape[1]].reshape(a.shape).astype(a.dtype)
    return dict(config), out


def quantize(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix rounded to a grid of `bits` bits, and stored as floats again.

    `block` entries of a row share a grid; 0 (the default) is a whole row, -1 the whole matrix. With `symmetric` (the
    default) the grid has 2^bits - 1 levels around zero, else 2^bits levels from the smallest to the largest entry,
    zero among them.

    Returns:
        Configuration and weights.

    Raises:
        MisuseError: If bits or block are invalid.
    """
    config, arrays = parents[0]
    bits, block = int(recipe.parameters["bits"]), int(recipe.parameters.get("block", 0))
    if not 2 <= bits <= 16 or block < -1:
        raise MisuseError(
            f"a grid of {bits} bits in blocks of {block} is invalid. Bits are 2 to 16; block is entries of a row, "
            "0 for a row, -1 for a matrix."
        )
    out = dict(arrays)
    for name, a in arrays.items():
        if a.ndim >= 2 and name.endswith("weight"):
            rows = a.reshape(1 if block == -1 else len(a), -1).astype(np.float64)
            size = block if block > 0 else rows.shape[1]
            padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(len(rows), -1, size)
            grid = _on_grid(padded, bits, bool(recipe.parameters.get("symmetric", True)))
            out[name] = grid.reshape(len(rows), -1)[:, : rows.shape[1]].reshape(a.shape).astype(a.dtype)
    return dict(config), out


def _on_grid(x: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """Round to the grid of each block along the last axis."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = np.abs(x).max(-1, keepdims=True) / top
        return np.round(x / np.where(step == 0, 1, step)) * step
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = np.where(high > low, (high - low) / (2**bits - 1), 1)
    zero = np.round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step
