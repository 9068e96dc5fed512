"""torch.distributed.checkpoint folders: a pickled table of which slice of which tensor lies where, read inertly.

The table is read by the interpreter that runs nothing (torch's own reader unpickles it, which runs what it says). Every
slice is a small PyTorch archive inside a `.distcp` file. Source: `torch.distributed.checkpoint.metadata`, torch 2.1
to 2.13; the classes are those of the pickle, in the order of their fields.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import archives, pickles, pytorch
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.formats.sliced_tensors import assembled
from stemma.checkpoints.formats.stand_ins import Thing
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import unwrap
from stemma.errors import NotAModelError, UnreadableModelError, UnsafeFileError

METADATA = ".metadata"
MAX_TABLE = 1 << 28

Chunk = tuple[tuple[int, ...], tuple[int, ...], tuple[str, int, int]]
"""Offsets and sizes of a slice, and where it lies: file, first byte, bytes."""


def is_distributed(folder: Path) -> bool:
    """Whether a folder is such a checkpoint.

    Args:
        folder: The folder.

    Returns:
        True if its table is there: other programs keep texts under that name.
    """
    try:
        with (folder / METADATA).open("rb") as f:
            return f.read(1) == b"\x80"
    except OSError:
        return False


def read(folder: Path) -> Contents:
    """List the tensors of a checkpoint, its slices put together.

    Args:
        folder: Where the table and the `.distcp` files lie.

    Returns:
        The contents, wrappers removed.

    Raises:
        UnreadableModelError: If the table is damaged, or a file is missing or does not hold what the table says.
        NotAModelError: If the table lists no tensors.
    """
    table = folder / METADATA
    if table.stat().st_size > MAX_TABLE:
        raise UnreadableModelError(f"{table} has {table.stat().st_size} bytes, more than any table needs")
    with table.open("rb") as f:
        tree = pickles.read(f, table, partial(_no_storage, table))
    fields = _fields(tree)
    described, places = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, dict) or not isinstance(places, dict):
        raise UnreadableModelError(f"{table} is no table of a torch.distributed checkpoint, or of a newer one")
    where = _places(table, places)
    tensors = {n: _tensor(folder, n, _fields(d), where) for n, d in described.items() if "chunks" in _fields(d)}
    if not tensors:
        raise NotAModelError(f"{folder} is a torch.distributed checkpoint without tensors")
    parts, notes = unwrap(_nested(table, tensors, fields.get("planner_data")))
    named = {p: tuple(Tensor(n, t.dtype, t.shape, t.storage) for n, t in found.items()) for p, found in parts.items()}
    return Contents(named, {}, tuple(notes))


def _no_storage(table: Path, _identifier: Any) -> Any:
    raise UnreadableModelError(f"{table} refers to a storage, as no table does")


def _fields(record: Any) -> Mapping[Any, Any]:
    return record.state if isinstance(record, Thing) and isinstance(record.state, dict) else {}


def _sizes(table: Path, record: Any) -> tuple[int, ...]:
    found = tuple(record) if isinstance(record, (list, tuple)) else ()
    if not isinstance(record, (list, tuple)) or any(type(n) is not int or not 0 <= n < 2**48 for n in found):
        raise UnreadableModelError(f"{table} lists an impossible size")
    return found


def _places(table: Path, places: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    out = {}
    for index, place in places.items():
        i, p = _fields(index), _fields(place)
        file, begin, length = p.get("relative_path"), p.get("offset"), p.get("length")
        if i.get("offset") is None:
            continue  # plain values
        if not isinstance(file, str) or type(begin) is not int or type(length) is not int or min(begin, length) < 0:
            raise UnreadableModelError(f"{table}: a place in the table is malformed")
        if p.get("transform_descriptors"):
            raise UnreadableModelError(f"{table}: the slices are compressed, which is not supported. Save without it")
        if "/" in file or "\\" in file or file in ("", ".", "..") or "\0" in file:
            raise UnsafeFileError(f"{table} names the file {file!r}, which leaves the folder; it was not read")
        out[str(i.get("fqn")), _sizes(table, i["offset"])] = (file, begin, length)
    return out


def _tensor(folder: Path, name: Any, said: Mapping[Any, Any], where: Mapping[Any, tuple[str, int, int]]) -> Tensor:
    shape = _sizes(folder / METADATA, said.get("size"))
    chunks = [_fields(c) for c in said["chunks"]] if isinstance(said["chunks"], list) else []
    slices: dict[tuple[int, ...], Tensor] = {}
    for chunk in chunks:
        offsets, sizes = _sizes(folder / METADATA, chunk.get("offsets")), _sizes(folder / METADATA, chunk.get("sizes"))
        place = where.get((str(name), offsets))
        if place is None:
            raise UnreadableModelError(f"{folder}: no file holds the slice of '{name}' at {list(offsets)}")
        slices[offsets] = _slice(folder, str(name), sizes, place)
    return assembled(folder, str(name), shape, slices)


def _slice(folder: Path, name: str, sizes: tuple[int, ...], place: tuple[str, int, int]) -> Tensor:
    file, begin, length = place
    path = folder / file
    if not path.is_file():
        raise UnreadableModelError(f"{folder} lacks {file}, which holds a part of '{name}'. Were all files copied?")
    records = archives.records(path, begin, begin + length)
    found = pytorch.read_records(path, records, [n for n in records if n.rpartition("/")[2] == "data.pkl"])
    tensors = found.parts.get("", ())
    if len(tensors) != 1 or tensors[0].shape != sizes:
        raise UnreadableModelError(f"{path}: the slice of '{name}' is not the one of shape {list(sizes)} in the table")
    return tensors[0]


def _nested(table: Path, tensors: Mapping[Any, Tensor], planned: Any) -> dict[str, Any]:
    """Flat names as nested mappings, by the paths that the table keeps of them.

    Returns:
        A tree as a PyTorch file would hold, so that wrappers and training state are told in the same way.

    Raises:
        UnreadableModelError: If a path leads into a tensor.
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        path = planned.get(name) if isinstance(planned, dict) else None
        keys = [str(k) for k in path] if isinstance(path, (list, tuple)) and path else [str(name)]
        inner = tree
        for key in keys[:-1]:
            below = inner.setdefault(key, {})
            if not isinstance(below, dict):
                raise UnreadableModelError(f"{table} puts '{name}' inside a tensor")
            inner = below
        inner[keys[-1]] = tensor
    return tree
