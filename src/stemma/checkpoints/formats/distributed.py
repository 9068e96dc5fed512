"""torch.distributed.checkpoint folders: a pickled table of tensor slices, read by an interpreter that runs nothing.

Every slice is a small PyTorch archive inside a `.distcp` file. torch's own reader would unpickle the table and run code
in it. Source: `torch.distributed.checkpoint.metadata`, torch 2.1 to 2.13.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stemma.checkpoints import budget
from stemma.checkpoints.formats import archives, pickles, pytorch
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.formats.pickle_records import UnknownObject
from stemma.checkpoints.formats.sliced_tensors import assemble_slices
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import unwrap
from stemma.errors import NotAModelError, UnreadableModelError, UnsafeFileError

METADATA = ".metadata"
MAX_TABLE = 1 << 28


def is_distributed(folder: Path) -> bool:
    """Whether a folder is a torch.distributed checkpoint: its `.metadata` is a pickle, not text."""
    try:
        with (folder / METADATA).open("rb") as f:
            return f.read(1) == b"\x80"
    except OSError:
        return False


def read(folder: Path) -> Contents:
    """Tensors of a torch.distributed checkpoint, assembled from their slices, wrappers removed."""
    table = folder / METADATA
    if table.stat().st_size > MAX_TABLE:
        raise UnreadableModelError(f"{table} has {table.stat().st_size} bytes, which is too large for a table")
    budget.current().opened(table.stat())
    with table.open("rb") as f:
        tree = pickles.read(f, table, partial(_no_storage, table))
    fields = _fields(tree)
    described, places = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, dict) or not isinstance(places, dict):
        raise UnreadableModelError(f"{table} is not the table of a torch.distributed checkpoint of a supported version")
    where = _places(table, places)
    described = {n: d for n, d in described.items() if "chunks" in _fields(d)}
    budget.current().count(len(described))
    known: dict[tuple[str, int, int], Tensor] = {}
    tensors = {n: _tensor(folder, n, _fields(d), where, known) for n, d in described.items()}
    budget.current().charge(tensors.values())
    if not tensors:
        raise NotAModelError(f"{folder} is a torch.distributed checkpoint that contains no tensors")
    parts, notes = unwrap(_nested(table, tensors, fields.get("planner_data")))
    named = {p: tuple(Tensor(n, t.dtype, t.shape, t.storage) for n, t in found.items()) for p, found in parts.items()}
    return Contents(named, {}, tuple(notes))


def _no_storage(table: Path, _identifier: Any) -> Any:
    raise UnreadableModelError(f"{table} is malformed: it refers to a tensor storage")


def _fields(record: Any) -> Mapping[Any, Any]:
    return record.state if isinstance(record, UnknownObject) and isinstance(record.state, dict) else {}


def _sizes(table: Path, record: Any) -> tuple[int, ...]:
    found = tuple(record) if isinstance(record, (list, tuple)) else ()
    if not isinstance(record, (list, tuple)) or any(type(n) is not int or not 0 <= n < 2**48 for n in found):
        raise UnreadableModelError(f"{table} lists an invalid size")
    return found


def _places(table: Path, places: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    out = {}
    for index, place in places.items():
        i, p = _fields(index), _fields(place)
        file, begin, length = p.get("relative_path"), p.get("offset"), p.get("length")
        if i.get("offset") is None:
            continue  # plain values
        if not isinstance(file, str) or type(begin) is not int or type(length) is not int or min(begin, length) < 0:
            raise UnreadableModelError(f"{table}: a file position in the table is malformed")
        if p.get("transform_descriptors"):
            raise UnreadableModelError(
                f"{table}: the slices are compressed, which is not supported. Save without compression"
            )
        if "/" in file or "\\" in file or file in ("", ".", "..") or "\0" in file:
            raise UnsafeFileError(f"{table} names the file {file!r} outside its folder; it was not read")
        out[str(i.get("fqn")), _sizes(table, i["offset"])] = (file, begin, length)
    return out


def _tensor(
    folder: Path,
    name: Any,
    description: Mapping[Any, Any],
    where: Mapping[Any, tuple[str, int, int]],
    known: dict[tuple[str, int, int], Tensor],
) -> Tensor:
    shape = _sizes(folder / METADATA, description.get("size"))
    chunks = [_fields(c) for c in description["chunks"]] if isinstance(description["chunks"], list) else []
    slices: dict[tuple[int, ...], Tensor] = {}
    for chunk in chunks:
        offsets, sizes = _sizes(folder / METADATA, chunk.get("offsets")), _sizes(folder / METADATA, chunk.get("sizes"))
        place = where.get((str(name), offsets))
        if offsets in slices:
            raise UnreadableModelError(f"{folder}: the table lists the slice of '{name}' at {list(offsets)} twice")
        if place is None:
            raise UnreadableModelError(f"{folder}: no file holds the slice of '{name}' at {list(offsets)}")
        slices[offsets] = _slice(folder, str(name), sizes, place, known)
    return assemble_slices(folder, str(name), shape, slices)


def _slice(
    folder: Path,
    name: str,
    sizes: tuple[int, ...],
    place: tuple[str, int, int],
    known: dict[tuple[str, int, int], Tensor],
) -> Tensor:
    file, begin, length = place
    path = folder / file
    if place in known and known[place].shape == sizes:
        return known[place]
    budget.current().entries(64)  # an archive of its own
    if not path.is_file():
        raise UnreadableModelError(
            f"{file} with part of '{name}' is missing in {folder}. Copy all files of the checkpoint"
        )
    records = archives.records(path, begin, begin + length)
    found = pytorch.read_records(path, records, [n for n in records if n.rpartition("/")[2] == "data.pkl"])
    tensors = found.parts.get("", ())
    if len(tensors) != 1 or tensors[0].shape != sizes:
        raise UnreadableModelError(f"{path}: the slice of '{name}' does not have the shape {list(sizes)} of the table")
    known[place] = tensors[0]
    return tensors[0]


def _nested(table: Path, tensors: Mapping[Any, Tensor], planned: Any) -> dict[str, Any]:
    """Flat names as nested mappings, by the key paths in the table, as a PyTorch file would hold them."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        path = planned.get(name) if isinstance(planned, dict) else None
        keys = [str(k) for k in path] if isinstance(path, (list, tuple)) and path else [str(name)]
        inner = tree
        for key in keys[:-1]:
            below = inner.setdefault(key, {})
            if not isinstance(below, dict):
                raise UnreadableModelError(f"{table} is malformed: it nests '{name}' inside a tensor")
            inner = below
        inner[keys[-1]] = tensor
    return tree
