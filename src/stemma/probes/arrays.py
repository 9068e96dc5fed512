"""Probes in NumPy files; their headers are distrusted, and no pickle is ever loaded."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from stemma.checkpoints.formats import archives
from stemma.errors import MisuseError, StemmaError, UnreadableProbesError, UnsafeFileError
from stemma.probes.files import read_bytes
from stemma.probes.modalities import paired
from stemma.probes.parameters import MAX_BYTES
from stemma.probes.probes import Probes
from stemma.types import InputSpec

INPUTS = ("inputs", "images")
"""Names of the array that holds the probes."""


def read_npz(path: Path, like: InputSpec | None) -> Probes:
    """Probes from `inputs` (or `images`), with `labels` and `baseline` where they are there; other arrays are not read.

    Where there are neither, but two or more other arrays with as many rows, each is a modality.

    Args:
        path: The archive.
        like: What the models take.

    Returns:
        The probes.

    Raises:
        UnreadableProbesError: If the archive or an array is damaged or too large, or holds no probes.
        StemmaError: If reading would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            every = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            arrays = {i.filename.removesuffix(".npy"): i for i in every}
            return _chosen(path, archive, arrays, len(every) > len(arrays), like)
    except StemmaError:
        raise
    except Exception as e:  # zipfile and the decompressors raise many kinds of error on damaged input
        why = " ".join(str(e).split())[:120] or type(e).__name__
        raise UnreadableProbesError(f"{path} is a damaged archive of arrays: {why}. Truncated download?") from e


def _chosen(
    path: Path, archive: zipfile.ZipFile, arrays: Mapping[str, zipfile.ZipInfo], twice: bool, like: InputSpec | None
) -> Probes:
    named = [name for name in INPUTS if name in arrays]
    if twice:
        raise UnreadableProbesError(f"{path} holds several arrays of one name: store each once")
    others = [name for name in arrays if name not in (*INPUTS, "labels", "baseline")]
    if not named and "baseline" not in arrays and not twice and _rowwise(archive, [arrays[n] for n in others]):
        return _paired(path, archive, {n: arrays[n] for n in others}, arrays.get("labels"))
    if len(named) != 1:
        has = ", ".join(f"'{name}'" for name in list(arrays)[:12]) or "no arrays"
        what = "both 'inputs' and 'images'" if named else "neither 'inputs' nor 'images'"
        raise UnreadableProbesError(f"{path} holds {what} but has {has}: store the probes as 'inputs', once")
    parts = {
        name: _record(f"{path}: '{name}'", archive, arrays[name])
        for name in (named[0], "labels", "baseline")
        if name in arrays
    }
    return _probes(path, parts[named[0]], parts.get("labels"), parts.get("baseline"), like)


def _rowwise(archive: zipfile.ZipFile, arrays: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether these are two or more arrays with as many rows, as their headers say."""
    shapes = []
    for info in arrays:
        with archive.open(info) as stream:
            try:
                version = npy.read_magic(stream)
                header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shapes.append(header(stream)[0])
            except Exception:  # NumPy raises many kinds of error on damaged headers
                return False
    return len(shapes) > 1 and all(len(s) > 1 for s in shapes) and len({s[0] for s in shapes}) == 1


def _paired(
    path: Path, archive: zipfile.ZipFile, arrays: Mapping[str, zipfile.ZipInfo], labels: zipfile.ZipInfo | None
) -> Probes:
    inputs = {name: _record(f"{path}: '{name}'", archive, info) for name, info in arrays.items()}
    known = None if labels is None else _record(f"{path}: 'labels'", archive, labels)
    said = f"{path.name}: {', '.join(f'{n} {list(x.shape[1:])}' for n, x in sorted(inputs.items()))}"
    try:
        return paired(inputs, known, source=said)
    except MisuseError as e:
        raise UnreadableProbesError(
            f"{path}: {e}. Without 'inputs' or 'images', every array but 'labels' is a modality"
        ) from e


def read_npy(path: Path, like: InputSpec | None) -> Probes:
    """Probes from one array.

    Returns:
        The probes, without labels.
    """
    return _probes(path, _array(str(path), read_bytes(path, MAX_BYTES)), None, None, like)


def _probes(
    path: Path, inputs: np.ndarray, labels: np.ndarray | None, baseline: np.ndarray | None, like: InputSpec | None
) -> Probes:
    sound = like is not None and like.kind == "audio" and inputs.ndim == 2 and inputs.dtype.kind == "f"
    try:
        return Probes.of(inputs, labels, baseline, kind="audio" if sound else None, source=path.name)
    except MisuseError as e:
        raise UnreadableProbesError(f"{path}: {e}") from e


def _record(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > MAX_BYTES:
        raise UnreadableProbesError(f"{where} says it has {info.file_size} bytes, {MAX_BYTES} are the limit for probes")
    if info.file_size > archives.BOMB and info.file_size > archives.MAX_RATIO * max(1, info.compress_size):
        raise UnreadableProbesError(
            f"{where} would grow from {info.compress_size} to {info.file_size} bytes: a bomb? Store it uncompressed"
        )
    return _array(where, archive.read(info))


def _array(where: str, content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except Exception as e:  # NumPy raises many kinds of error on damaged headers
        raise UnreadableProbesError(f"{where} is no NumPy array: its header is damaged") from e
    if dtype.hasobject:
        raise UnsafeFileError(f"{where} holds Python objects, which are pickles; it was not read")
    start = stream.tell()
    if any(n < 0 for n in shape) or start + prod(shape) * dtype.itemsize != len(content):
        raise UnreadableProbesError(
            f"{where} has {len(content) - start} bytes, which are no array {list(shape)} of {dtype}. Truncated?"
        )
    flat = np.frombuffer(content, dtype, prod(shape), start) if prod(shape) else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
