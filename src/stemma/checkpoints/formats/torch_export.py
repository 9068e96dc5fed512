"""`torch.export` programs: only the weights are read, in place; the graph is neither built nor run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints import budget
from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.formats.views import strided_storage
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.errors import NotAModelError, UnreadableModelError, UnsafeFileError

WEIGHTS = "data/weights/model_weights_config.json"
DTYPES = {
    1: "U8", 2: "I8", 3: "I16", 4: "I32", 5: "I64", 6: "F16", 7: "F32", 8: "F64", 10: "C64", 11: "C128", 12: "BOOL",
    13: "BF16", 28: "U16", 29: "F8_E4M3", 30: "F8_E5M2", 34: "U32", 35: "U64",
}  # fmt: skip
"""Dtype codes by the numbers of the export schema."""


class Exported(AbstractFormat):
    """Programs saved with `torch.export.save` (torch 2.9 and newer)."""

    name: ClassVar[str] = "torch.export"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return False

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        records = archives.records(path)
        root = root_of(path, records)
        config = json_record(path, records[root + WEIGHTS]).get("config")
        if not isinstance(config, Mapping):
            raise UnreadableModelError(f"{path}: the list of weights is damaged")
        places: dict[tuple[Any, ...], list[str]] = {}
        tensors = []
        budget.current().count(len(config))
        for name, entry in config.items():
            tensor, place = _tensor(path, records, root, name, entry)
            tensors.append(tensor)
            places.setdefault((*place, tensor.shape, tensor.dtype), []).append(name)
        aliases = tuple(tuple(names) for names in places.values() if len(names) > 1)
        return Contents({"": tuple(tensors)}, {}, (), aliases)


def root_of(path: Path, records: Mapping[str, archives.Record]) -> str:
    """The folder inside the archive that holds its records, with a slash."""
    roots = [n.removesuffix(WEIGHTS) for n in records if n.endswith(WEIGHTS) and n.count("/") == WEIGHTS.count("/") + 1]
    if len(roots) != 1:
        old = any(n.endswith(("serialized_exported_program.json", "data/weights/model.pt")) for n in records)
        compiled = any("aotinductor/" in n for n in records)
        what = "compiled machine code" if compiled else "a program of torch 2.8 or older" if old else "not a program"
        raise NotAModelError(
            f"{path} is {what}. Only torch.export programs are supported: export it with torch 2.9 or newer"
        )
    return roots[0]


def json_record(path: Path, record: archives.Record) -> dict[str, Any]:
    """A JSON object stored as a record of the archive."""
    try:
        budget.current().text(record.size)
        found = budget.parse(record.read(budget.LIMITS.text))
    except (ValueError, RecursionError) as error:
        raise UnreadableModelError(f"{path}: the record '{record.name}' is not JSON") from error
    if not isinstance(found, dict):
        raise UnreadableModelError(f"{path}: the record '{record.name}' is not a JSON object")
    return found


def _tensor(
    path: Path, records: Mapping[str, archives.Record], root: str, name: str, entry: Any
) -> tuple[Tensor, tuple[Any, ...]]:
    try:
        if entry["use_pickle"]:
            raise UnsafeFileError(f"{path}: the tensor '{name}' is a Python pickle; it was not read")
        meta = entry["tensor_meta"]
        kind = int(meta["dtype"])
        shape, strides = (tuple(n["as_int"] for n in meta[key]) for key in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        record = records[f"{root}data/weights/{entry['path_name']}"]
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableModelError(f"{path}: the tensor '{name}' has an unknown description") from error
    if kind not in DTYPES:
        raise UnreadableModelError(f"{path}: the tensor '{name}' has the dtype number {kind}, which is not supported")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
        raise UnreadableModelError(f"{path}: the tensor '{name}' has an invalid shape {shape} or strides {strides}")
    width = ITEMSIZE[DTYPES[kind]]
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if all(shape) and (last + 1) * width > record.size:
        raise UnreadableModelError(f"{path}: the tensor '{name}' reaches beyond its storage of {record.size} bytes")
    storage = strided_storage(record.storage, width, offset, shape, strides) if all(shape) else record.storage
    return Tensor(name, DTYPES[kind], shape, storage), (entry["path_name"], offset, strides)
