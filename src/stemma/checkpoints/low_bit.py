"""Weights of two to eight bits packed into larger words: GPTQ, AWQ, compressed-tensors, bitsandbytes 4-bit.

Source: GPTQ (arXiv:2210.17323) in the AutoGPTQ v1 layout, which stores zero points minus one; AWQ (arXiv:2306.00978)
in its GEMM layout; QLoRA (arXiv:2305.14314) with double quantisation.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.errors import UnreadableModelError

AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Position of column `i` of eight among the eight nibbles of a word."""


def columns(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Columns `start:stop` of an `[n, m]` matrix, as an array `[n, stop - start]`."""
    n, m = tensor.shape
    if stop - start == m:
        return tensor.rows(0, n)
    flat = Tensor(tensor.name, tensor.dtype, (n * m,), tensor.storage)
    return np.stack([flat.rows(i * m + start, i * m + stop) for i in range(n)])


def _unpack(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    # codes in 32-bit words along an axis, lowest bits first
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (np.expand_dims(words.view(np.uint32), axis + 1) >> np.expand_dims(shifts, 1 - axis)) & ((1 << bits) - 1)
    shape = list(words.shape)
    shape[axis] *= len(shifts)
    return codes.reshape(shape).astype(np.int32)


def gptq_or_awq(layer: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, set[str]]:
    """Dequantise the GPTQ or AWQ layer `layer.qweight`: the weight `[out, in]` and the stored names it replaces."""
    names = {k: f"{layer}.{k}" for k in ("qweight", "qzeros", "scales", "g_idx")}
    words, zeros, scales, order = (tensors.get(n) for n in names.values())
    if words is None or zeros is None or scales is None:
        raise UnreadableModelError(
            f"packed format of '{layer}.qweight' is not supported: its 'qzeros' or 'scales' are missing"
        )
    if any(len(t.shape) != 2 for t in (words, zeros, scales)) or words.dtype != "I32" or zeros.dtype != "I32":
        raise UnreadableModelError(f"'{layer}' is packed inconsistently: GPTQ and AWQ use int32 matrices")
    groups, out = scales.shape
    bits = zeros.shape[1] * 32 // out if out else 0
    if bits not in (2, 4, 8) or zeros.shape != (groups, out * bits // 32):
        raise UnreadableModelError(f"packed format GPTQ with {bits} bits is not supported ('{layer}')")
    if words.shape[1] == out:
        weight = _gptq(layer, words, zeros, scales, order, bits)
    elif bits == 4 and words.shape[1] * 8 == out:
        weight = _awq(layer, words, zeros, scales)
    else:
        raise UnreadableModelError(f"'{layer}' is packed inconsistently: {words.shape} words for {scales.shape} scales")
    return weight, set(names.values())


def _gptq(layer: str, words: Tensor, zeros: Tensor, scales: Tensor, order: Tensor | None, bits: int) -> Tensor:
    per_word = 32 // bits
    fan_in, (groups, out) = words.shape[0] * per_word, scales.shape
    if not groups or fan_in % groups or (order is not None and order.shape != (fan_in,)):
        raise UnreadableModelError(f"'{layer}' is packed inconsistently: {fan_in} inputs in {groups} groups")

    def make(start: int, stop: int) -> np.ndarray:
        first, last = start // per_word, -(-stop // per_word)
        group = np.arange(fan_in) // (fan_in // groups) if order is None else order.array().astype(np.int64)
        if group.min(initial=0) < 0 or group.max(initial=0) >= groups:
            raise UnreadableModelError(f"'{layer}.g_idx' names a group beyond {groups}")
        codes = _unpack(columns(words, start, stop), bits, 0)
        zero = _unpack(columns(zeros, first, last), bits, 1)[:, start - first * per_word :][:, : stop - start] + 1
        scale = columns(scales, start, stop)
        return ((codes - zero[group]) * scale[group]).T

    return Tensor(f"{layer}.weight", "F32", (out, fan_in), RowStorage(make, (out, fan_in)))


def _awq(layer: str, words: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    fan_in, (groups, out) = words.shape[0], scales.shape
    if not groups or fan_in % groups:
        raise UnreadableModelError(f"'{layer}' is packed inconsistently: {fan_in} inputs in {groups} groups")

    def ordered(packed: np.ndarray) -> np.ndarray:
        codes = _unpack(packed, 4, 1)
        return codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].reshape(codes.shape)

    def make(start: int, stop: int) -> np.ndarray:
        first, last = start // 8, -(-stop // 8)
        keep = slice(start - first * 8, stop - first * 8)
        group = np.arange(fan_in) // (fan_in // groups)
        codes = ordered(columns(words, first, last))[:, keep]
        zero = ordered(columns(zeros, first, last))[:, keep]
        return ((codes - zero[group]) * columns(scales, start, stop)[group]).T

    return Tensor(f"{layer}.weight", "F32", (out, fan_in), RowStorage(make, (out, fan_in)))


def compressed_tensors(layer: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, set[str]]:
    """Dequantise a compressed-tensors layer of symmetric packed integers: weight `[out, in]` and replaced names."""
    names = {k: f"{layer}.{k}" for k in ("weight_packed", "weight_scale", "weight_shape")}
    words, scales, shape = (tensors.get(n) for n in names.values())
    unsupported = [k for k in ("weight_zero_point", "weight_g_idx") if f"{layer}.{k}" in tensors]
    if words is None or scales is None or shape is None or words.dtype != "I32" or unsupported or len(words.shape) != 2:
        raise UnreadableModelError(
            f"packed format compressed-tensors with {unsupported or 'these tensors'} is not supported"
        )
    numbers = shape.array() if shape.size == 2 else np.zeros(2)
    out, fan_in = (int(n) for n in numbers.reshape(-1))
    groups = scales.shape[1] if len(scales.shape) == 2 else 0
    bits = next((b for b in (4, 8) if words.shape == (out, -(-fan_in * b // 32))), 0)
    if not bits or not groups or scales.shape[0] != out or fan_in % groups:
        raise UnreadableModelError(f"'{layer}' is packed inconsistently: {words.shape} words for shape {(out, fan_in)}")

    def make(start: int, stop: int) -> np.ndarray:
        codes = _unpack(words.rows(start, stop), bits, 1)[:, :fan_in] - (1 << (bits - 1))
        return codes * np.repeat(scales.rows(start, stop), fan_in // groups, axis=1)

    return Tensor(f"{layer}.weight", "F32", (out, fan_in), RowStorage(make, (out, fan_in))), set(names.values())


def bitsandbytes4(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, set[str]]:
    """Dequantise a bitsandbytes NF4 or FP4 tensor: two codes per byte, 16 values, one scale per block."""
    companions = {n for n in tensors if n.startswith(f"{name}.")}
    state = _state(name, tensors, companions)
    packed, absmax, table = tensors[name], tensors.get(f"{name}.absmax"), tensors[f"{name}.quant_map"]
    shape, block = tuple(state["shape"]), state["blocksize"]
    size = int(np.prod(shape, dtype=object)) if shape else 1
    blocks = -(-size // block)
    if absmax is None or packed.size != -(-size // 2) or absmax.size != blocks or table.size != 16:
        raise UnreadableModelError(f"'{name}' is packed inconsistently: {packed.size} bytes for shape {list(shape)}")
    flat = Tensor(name, "U8", (packed.size,), packed.storage)
    scales = _absmax(name, absmax, state, tensors)
    row = size // shape[0] if shape and shape[0] else size

    def make(start: int, stop: int) -> np.ndarray:
        first, last = start * row, stop * row
        pairs = flat.rows(first // 2, -(-last // 2))
        codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        scale = scales(first // block, -(-last // block))
        values = table.array().reshape(-1)[codes] * scale[np.arange(first, last) // block - first // block]
        return values.reshape(-1, *shape[1:])

    return Tensor(name, "F32", shape, RowStorage(make, shape)), companions | {name}


def _state(name: str, tensors: Mapping[str, Tensor], companions: set[str]) -> dict[str, Any]:
    key = next((n for n in companions if ".quant_state.bitsandbytes__" in n), None)
    if key is None or tensors[key].size > 1 << 16:
        raise UnreadableModelError(
            f"packed format of '{name}' is not supported: its bitsandbytes quantization state is missing"
        )
    try:
        state = json.loads(tensors[key].array().tobytes())
        numbers = (*state["shape"], state["blocksize"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UnreadableModelError(f"the bitsandbytes state '{key}' is malformed") from e
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers) or not state["blocksize"]:
        raise UnreadableModelError(f"the bitsandbytes state '{key}' has invalid numbers {list(numbers)}")
    return state


def _absmax(name: str, absmax: Tensor, state: Mapping[str, Any], tensors: Mapping[str, Tensor]):
    # returns a function for the scales of blocks `start:stop`, which may be quantised themselves
    flat = Tensor(absmax.name, absmax.dtype, (absmax.size,), absmax.storage)
    if absmax.dtype != "U8":
        return flat.rows
    outer, table = tensors.get(f"{name}.nested_absmax"), tensors.get(f"{name}.nested_quant_map")
    block, offset = state.get("nested_blocksize"), state.get("nested_offset", 0.0)
    if outer is None or table is None or type(block) is not int or block < 1 or not isinstance(offset, (int, float)):
        raise UnreadableModelError(
            f"'{name}' is packed inconsistently: its nested scales lack their quantization state"
        )
    if table.size != 256 or outer.size != -(-absmax.size // block):
        raise UnreadableModelError(f"'{name}' is packed inconsistently: {outer.size} outer scales for {absmax.size}")

    def scales(start: int, stop: int) -> np.ndarray:
        group = outer.array().reshape(-1)[np.arange(start, stop) // block]
        return table.array().reshape(-1)[flat.rows(start, stop)] * group + np.float32(offset)

    return scales
