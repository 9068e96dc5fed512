"""Tensors that were saved in slices, assembled lazily."""

import bisect
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

from stemma.checkpoints.formats.views import ColumnConcatStorage, ConcatStorage
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.errors import UnreadableModelError


def assemble_slices(
    folder: Path, name: str, shape: tuple[int, ...], slices: Mapping[tuple[int, ...], Tensor]
) -> Tensor:
    """A tensor from slices that form a grid over its first two axes; `slices` by the position of their first entry."""
    kinds = {t.dtype for t in slices.values()}
    axes = [sorted({o[i] for o in slices}) for i in range(len(shape))]
    cut = [i for i, starts in enumerate(axes) if len(starts) > 1]
    fits = len(kinds) == 1 and all(i < 2 for i in cut) and math.prod(len(a) for a in axes) == len(slices)
    if not fits or any(len(o) != len(t.shape) or len(o) != len(shape) for o, t in slices.items()):
        raise UnreadableModelError(
            f"{folder}: '{name}' is sliced in an unsupported way. Save it unsharded "
            "(torch: torch.distributed.checkpoint.format_utils.dcp_to_torch_save)"
        )
    code = next(iter(kinds))
    if sum(t.size for t in slices.values()) != math.prod(shape) or not _tiles(shape, slices):
        raise UnreadableModelError(f"{folder}: the slices of '{name}' do not cover its shape {list(shape)}")
    rows = [list(group) for _, group in itertools.groupby(sorted(slices), key=lambda o: o[:1])]
    bands = []
    for row in rows:
        parts = [slices[o] for o in row]
        width = tuple((t.storage, ITEMSIZE[code] * math.prod(t.shape[1:])) for t in parts)
        bands.append(
            (parts[0].storage if len(parts) == 1 else ColumnConcatStorage(width), sum(t.nbytes for t in parts))
        )
    return Tensor(name, code, shape, bands[0][0] if len(bands) == 1 else ConcatStorage(tuple(bands)))


def _tiles(shape: tuple[int, ...], slices: Mapping[tuple[int, ...], Tensor]) -> bool:
    starts = [sorted({o[axis] for o in slices}) for axis in range(len(shape))]
    for offsets, tensor in slices.items():
        for axis, (at, n) in enumerate(zip(offsets, tensor.shape, strict=True)):
            after = bisect.bisect_right(starts[axis], at)
            if at + n != (starts[axis][after] if after < len(starts[axis]) else shape[axis]):
                return False
    return True
