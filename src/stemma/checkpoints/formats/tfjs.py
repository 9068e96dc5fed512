"""TensorFlow.js: a `model.json` that lists weights, and shards of raw bytes."""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.files import FileStorage, SourceFile
from stemma.checkpoints.formats.views import ConcatStorage, OffsetStorage
from stemma.checkpoints.tensor import ITEMSIZE, AbstractStorage, ArrayStorage, Tensor
from stemma.errors import UnreadableModelError, UnsafeFileError

DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8", "uint16": "U16", "int16": "I16",
          "bool": "BOOL", "complex64": "C64"}  # fmt: skip
MANIFEST = "model.json"
_SHARD = re.compile(r"^group\d+-shard\d+of\d+(\.bin)?$")


class TensorFlowJs(AbstractFormat):
    """Layers models and graph models; codes of 8 and 16 bits come with their scale and zero point."""

    name: ClassVar[str] = "TensorFlow.js"
    suffixes: ClassVar[tuple[str, ...]] = ()

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        if path.name != MANIFEST or head.lstrip()[:1] != b"{":
            return False
        return any(_SHARD.match(p.name) for p in path.parent.iterdir())

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        file = SourceFile(path)
        budget.current().text(file.size)
        try:
            groups = budget.parse(file.read(0, file.size))["weightsManifest"]
            listed = [(group["paths"], group["weights"]) for group in groups]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UnreadableModelError(f"{path} is not a TensorFlow.js model: it has no list 'weightsManifest'") from e
        tensors: list[Tensor] = []
        for paths, weights in listed:
            tensors.extend(_group(path, paths, weights))
        return Contents({"": tuple(tensors)})


def _group(path: Path, paths: Any, weights: Any) -> list[Tensor]:
    if not isinstance(paths, list) or not isinstance(weights, list):
        raise UnreadableModelError(f"{path}: a group of the manifest is malformed")
    if len(paths) > budget.LIMITS.files or len(set(map(str, paths))) < len(paths):
        raise UnreadableModelError(f"{path}: a group of the manifest names {len(paths)} shards, or one of them twice")
    files = [_shard(path, name) for name in paths]
    budget.current().count(len(weights))
    whole = ConcatStorage(tuple((FileStorage(f, 0, f.size), f.size) for f in files))
    size, at = sum(f.size for f in files), 0
    tensors: list[Tensor] = []
    for entry in weights:
        name, shape, code, packed = _entry(path, entry)
        length = math.prod(shape) * ITEMSIZE[code]
        if at + length > size:
            raise UnreadableModelError(
                f"{path}: the shards end at byte {size}, but '{name}' ends at byte {at + length}"
            )
        tensors.append(Tensor(name, code, shape, OffsetStorage(whole, at)))
        tensors.extend(_scale(path, name, packed))
        at += length
    if at != size:
        raise UnreadableModelError(f"{path}: the shards have {size - at} bytes that the manifest does not list")
    return tensors


def _shard(path: Path, name: Any) -> SourceFile:
    if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
        raise UnsafeFileError(f"{path} names the shard {name!r} outside its folder; it was not read")
    if not (path.parent / name).is_file():
        raise UnreadableModelError(f"{path}: the shard {name} is missing. Put it in the same folder")
    return SourceFile(path.parent / name)


def _entry(path: Path, entry: Any) -> tuple[str, tuple[int, ...], str, Any]:
    try:
        name, shape, packed = entry["name"], tuple(entry["shape"]), entry.get("quantization")
        stored = packed["dtype"] if packed else entry["dtype"]
    except (KeyError, TypeError, AttributeError) as e:
        raise UnreadableModelError(f"{path}: a weight of the manifest is malformed") from e
    if not isinstance(name, str) or len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise UnreadableModelError(f"{path}: the weight {str(name)[:80]!r} has an invalid shape {list(shape)}")
    if not isinstance(stored, str) or stored not in DTYPES:
        raise UnreadableModelError(f"{path}: the weight '{name}' has the dtype {stored!r}, which is not supported")
    return name, shape, DTYPES[stored], packed


def _scale(path: Path, name: str, packed: Any) -> list[Tensor]:
    # value = code * scale + min, hence the zero point -min / scale
    if not packed or "scale" not in packed:
        return []
    scale, least = packed["scale"], packed.get("min", 0)
    numbers = all(isinstance(n, (int, float)) and math.isfinite(n) for n in (scale, least))
    if not numbers or not scale:
        raise UnreadableModelError(f"{path}: the weight '{name}' has an invalid scale {scale!r} or minimum {least!r}")
    return [
        Tensor(f"{name}::{label}", "F64", (1,), _number(value))
        for label, value in (("scale", float(scale)), ("zero_point", -least / scale))
    ]


def _number(value: float) -> AbstractStorage:
    return ArrayStorage(lambda: np.array([value]))
