"""Dequantise packed weights: integer codes and their scales become lazy float32 tensors.

A packed tensor is recognised by the names, dtypes and shapes of its companions, never by a config. Unknown packings
are refused rather than compared as if their codes were weights. Results are computed some rows at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stemma.checkpoints import low_bit
from stemma.checkpoints.formats.onnx_scales import AxisStorage, CodesStorage
from stemma.checkpoints.integer_codes import center_codes, is_codes, reinterpret_floats
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.errors import UnreadableModelError

REFUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("EXL2", (".q_weight", ".q_scale")),
    ("EXL3", (".trellis",)),
    ("HQQ", (".W_q",)),
    ("AQLM", (".codebooks", ".codes")),
    ("QuIP#", (".Qidxs",)),
    ("Marlin", (".B", ".s")),
    ("MXFP4", ("_blocks", "_scales")),
    ("NVFP4", (".weight_packed", ".weight_global_scale")),
    ("NVFP4", (".weight", ".weight_scale", ".weight_scale_2")),
    ("MLX", (".weight", ".scales", ".biases")),
    ("SpQR", (".dense_weights", ".row_offsets")),
)
"""Unsupported packings: endings of the tensors of one layer; the first has integer codes."""

SCALES = (
    "::scale", ".scale", "_scale", ".weight_scale", "_scale_inv", ".scale_weight", "._scale", "::scales", ".scales",
    "_scales", ".weight_scales",
)  # fmt: skip
ZEROS = {
    "::scale": "::zero_point", ".scale": ".zero_point", "_scale": "_zero_point", ".weight_scale": ".weight_zero_point",
    "._scale": "._shift", "::scales": "::zero_points", ".scales": ".zero_points", "_scales": "_zero_points",
    ".weight_scales": ".weight_zero_points",
}  # fmt: skip
ACTIVATIONS = re.compile(r"\.(input_scale|output_scale|activation_scale|input_zero_point|weight_format|weight_shape)$")
"""Companions of packed layers that are not about weights."""

CODES = frozenset({"I8", "U8", "I16", "U16", "I32", "F8_E4M3", "F8_E5M2"})
BLOCKS = (128, 64, 32, 16, 256)
"""Block lengths of scales that do not divide their axis, most common first (DeepSeek: 128)."""


def dequantize(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Logical weights by name: float32 where something was packed, everything else as stored."""
    _refuse(tensors)
    halves = reinterpret_floats(tensors)
    tensors = {**tensors, **halves} if halves else tensors
    out = dict(tensors)
    for packed, companions in _packed(tensors):
        for name in companions:
            out.pop(name, None)
        if packed.name in out and packed.name not in companions:
            raise UnreadableModelError(f"the packed tensor '{packed.name}' also exists unpacked. Remove one of the two")
        out[packed.name] = _as_read(packed, [tensors[name] for name in companions if name in tensors])
    for name in [n for n in out if n.endswith(("::scale", "::zero_point"))]:
        if name.rsplit("::", 1)[0] in out:  # companions of a float tensor
            del out[name]
    if len(out) == len(tensors) and all(out[n] is tensors[n] for n in tensors if n in out):
        return center_codes(tensors, tensors)
    layers = {n.rsplit(".", 1)[0] for n in tensors if n not in out}
    for name in [n for n in out if ACTIVATIONS.search(n) and n.rsplit(".", 1)[0] in layers]:
        del out[name]
    return center_codes({n: out[n] for n in sorted(out)}, tensors)


def _as_read(packed: Tensor, stored: Sequence[Tensor]) -> Tensor:
    """Of weights whose codes were read in part, the rows that these give; none where codes have another order."""
    read = [t.readable if t.shape[:1] == packed.shape[:1] else 0 for t in stored if t.leading is not None]
    return replace(packed, leading=min(read)) if read else packed


def _refuse(tensors: Mapping[str, Tensor]) -> None:
    first_names = tuple(first for _, (first, *_) in REFUSED)
    suspicious = {n: t for n, t in tensors.items() if n.endswith(first_names) and not t.is_float}
    for kind, (first, *others) in REFUSED:
        for name, t in suspicious.items():
            named = name.endswith(first) and all(name.removesuffix(first) + o in tensors for o in others)
            if named and not t.is_float:
                raise UnreadableModelError(
                    f"packed format {kind} is not supported (tensor '{name}'). Use the model before quantization"
                )


def _packed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, set[str]]]:
    # yields each logical tensor with the stored names that it replaces
    for name, t in tensors.items():
        if t.is_float and not t.dtype.startswith("F8"):
            continue
        if name.endswith(".qweight"):
            yield low_bit.gptq_or_awq(name.removesuffix(".qweight"), tensors)
        elif name.endswith(".weight_packed"):
            yield low_bit.compressed_tensors(name.removesuffix(".weight_packed"), tensors)
        elif t.dtype == "U8" and f"{name}.quant_map" in tensors:
            yield low_bit.bitsandbytes4(name, tensors)
        elif t.dtype == "I8" and name.endswith(".weight") and f"{name.removesuffix('.weight')}.SCB" in tensors:
            scb = f"{name.removesuffix('.weight')}.SCB"
            yield scale_codes(name, t, tensors[scb], None, 1 / 127), {name, scb, f"{name}_format"}
        elif t.dtype in CODES and not name.endswith(tuple(ZEROS.values())):
            found = _companions(name, t, tensors)
            if found:
                logical, scale, zero = found
                yield scale_codes(logical, t, tensors[scale], tensors.get(zero)), {name, scale, zero}


def _companions(name: str, codes: Tensor, tensors: Mapping[str, Tensor]) -> tuple[str, str, str] | None:
    # logical name, name of the scale and name of the zero point of a tensor of codes
    annotated = codes.storage if isinstance(codes.storage, CodesStorage) else None
    if annotated and annotated.scale in tensors and _grid(codes.shape, tensors[annotated.scale]) is not None:
        return name.removesuffix("_quantized"), annotated.scale, annotated.zero
    stems = [(name, name)]
    for ending in (".weight", "._data", "_quantized"):
        if name.endswith(ending):
            stem = name.removesuffix(ending)
            stems.append((stem, name if ending == ".weight" else stem))
    for stem, logical in stems:
        for ending in SCALES:
            scale = stem + ending
            if scale not in tensors or not tensors[scale].is_float:
                continue
            # the plural is also used with packed codes
            packed = ending.endswith("scales") and len(codes.shape) > 1 and codes.size and not is_codes(codes)
            if not packed and _grid(codes.shape, tensors[scale]) is not None:
                return logical, scale, stem + ZEROS.get(ending, ending + "_zero")
    return None


def scale_codes(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None, factor: float = 1.0) -> Tensor:
    """The float32 tensor `(codes - zero) * scale * factor`; scales per tensor, per channel or per block."""
    spread = _broadcaster(codes, scale)
    shift = None if zero is None else _broadcaster(codes, zero)

    def make(start: int, stop: int) -> np.ndarray:
        values = codes.rows(start, stop) if codes.shape else codes.array()
        if shift is not None:
            values = values.astype(np.float32) - shift(start, stop)
        return values.astype(np.float32) * (spread(start, stop) * np.float32(factor))

    return Tensor(name, "F32", codes.shape, RowStorage(make, codes.shape))


def _grid(shape: tuple[int, ...], scale: Tensor) -> tuple[int, ...] | None:
    # block length per axis (0: one scale for the whole axis); None if the shapes do not fit
    scales = scale.shape
    long_axes = tuple(s for s in scales if s != 1)
    if not long_axes:
        return (0,) * len(shape)
    if len(scales) != len(shape):
        if len(long_axes) != 1 or long_axes[0] not in shape:
            return None
        known = scale.storage.axis if isinstance(scale.storage, AxisStorage) else None
        fits = known is not None and known < len(shape) and shape[known] == long_axes[0]
        axis = known if fits else shape.index(long_axes[0])
        return tuple(1 if i == axis else 0 for i in range(len(shape)))
    if any(s < 1 or s > n for n, s in zip(shape, scales, strict=True) if s != 1):
        return None
    # the common block length that fits every divided axis (last block shorter), else blocks that divide their axis
    divided = [(n, s) for n, s in zip(shape, scales, strict=True) if s not in (1, n)]
    block_length = next((b for b in BLOCKS if all(-(-n // b) == s for n, s in divided)), 0)
    if not block_length and any(n % s for n, s in divided):
        return None
    return tuple(0 if s == 1 else 1 if s == n else block_length or n // s for n, s in zip(shape, scales, strict=True))


def _broadcaster(codes: Tensor, scale: Tensor) -> Callable[[int, int], np.ndarray]:
    grid = _grid(codes.shape, scale)
    if grid is None:
        raise UnreadableModelError(
            f"'{scale.name}' of shape {list(scale.shape)} does not fit '{codes.name}' of shape {list(codes.shape)}"
        )
    laid_out = tuple(1 if not b else -(-n // b) for n, b in zip(codes.shape, grid, strict=True))

    def spread(start: int, stop: int) -> np.ndarray:
        values = scale.array().reshape(laid_out).astype(np.float32)
        for axis, (n, block) in enumerate(zip(codes.shape, grid, strict=True)):
            first, last = (start, stop) if axis == 0 else (0, n)
            if block:
                values = np.take(values, np.arange(first, last) // block, axis=axis)
        return values

    return spread
