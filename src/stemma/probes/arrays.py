"""Probes in NumPy files; headers are not trusted, and pickles are never loaded."""

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
from stemma.probes.modalities import pair_modalities
from stemma.probes.parameters import MAX_BYTES
from stemma.probes.probes import Probes
from stemma.types import InputSpec

INPUTS = ("inputs", "images")
"""Names of the array with the probes."""


def read_npz(path: Path, input_spec: InputSpec | None) -> Probes:
    """Probes from `inputs` (or `images`), `labels` and `baseline`; without `inputs`, every array is a modality."""
    try:
        with zipfile.ZipFile(path) as archive:
            every = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            arrays = {i.filename.removesuffix(".npy"): i for i in every}
            return _select_arrays(path, archive, arrays, len(every) > len(arrays), input_spec)
    except StemmaError:
        raise
    except Exception as e:  # zipfile and the decompressors raise many kinds of error on damaged input
        why = " ".join(str(e).split())[:120] or type(e).__name__
        raise UnreadableProbesError(f"{path} is a damaged archive of arrays: {why}. Was the download truncated?") from e


def _select_arrays(
    path: Path,
    archive: zipfile.ZipFile,
    arrays: Mapping[str, zipfile.ZipInfo],
    twice: bool,
    input_spec: InputSpec | None,
) -> Probes:
    named = [name for name in INPUTS if name in arrays]
    if twice:
        raise UnreadableProbesError(f"{path} contains several arrays with the same name. Store each once")
    others = [name for name in arrays if name not in (*INPUTS, "labels", "baseline")]
    if not named and "baseline" not in arrays and not twice and _have_equal_rows(archive, [arrays[n] for n in others]):
        return _read_modalities(path, archive, {n: arrays[n] for n in others}, arrays.get("labels"))
    if len(named) != 1:
        has = ", ".join(f"'{name}'" for name in list(arrays)[:12]) or "no arrays"
        what = "both 'inputs' and 'images'" if named else "neither 'inputs' nor 'images'"
        raise UnreadableProbesError(f"{path} contains {what}, only {has}. Store the probes as 'inputs'")
    parts = {
        name: _read_array(f"{path}: '{name}'", archive, arrays[name])
        for name in (named[0], "labels", "baseline")
        if name in arrays
    }
    return _probes(path, parts[named[0]], parts.get("labels"), parts.get("baseline"), input_spec)


def _have_equal_rows(archive: zipfile.ZipFile, arrays: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether these are two or more arrays with the same number of rows, by their headers."""
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


def _read_modalities(
    path: Path, archive: zipfile.ZipFile, arrays: Mapping[str, zipfile.ZipInfo], labels: zipfile.ZipInfo | None
) -> Probes:
    inputs = {name: _read_array(f"{path}: '{name}'", archive, info) for name, info in arrays.items()}
    known = None if labels is None else _read_array(f"{path}: 'labels'", archive, labels)
    description = f"{path.name}: {', '.join(f'{n} {list(x.shape[1:])}' for n, x in sorted(inputs.items()))}"
    try:
        return pair_modalities(inputs, known, source=description)
    except MisuseError as e:
        raise UnreadableProbesError(
            f"{path}: {e}. Without 'inputs' or 'images', every array except 'labels' is a modality"
        ) from e


def read_npy(path: Path, input_spec: InputSpec | None) -> Probes:
    """Probes from one array, without labels."""
    return _probes(path, _parse_array(str(path), read_bytes(path, MAX_BYTES)), None, None, input_spec)


def _probes(
    path: Path, inputs: np.ndarray, labels: np.ndarray | None, baseline: np.ndarray | None, input_spec: InputSpec | None
) -> Probes:
    sound = input_spec is not None and input_spec.kind == "audio" and inputs.ndim == 2 and inputs.dtype.kind == "f"
    try:
        return Probes.of(inputs, labels, baseline, kind="audio" if sound else None, source=path.name)
    except MisuseError as e:
        raise UnreadableProbesError(f"{path}: {e}") from e


def _read_array(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > MAX_BYTES:
        raise UnreadableProbesError(f"{where} claims {info.file_size} bytes; the limit for probes is {MAX_BYTES}")
    if info.file_size > archives.BOMB_SIZE and info.file_size > archives.MAX_RATIO * max(1, info.compress_size):
        raise UnreadableProbesError(
            f"{where} would expand from {info.compress_size} to {info.file_size} bytes: possible zip bomb. Store it "
            "uncompressed"
        )
    return _parse_array(where, archive.read(info))


def _parse_array(where: str, content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except Exception as e:  # NumPy raises many kinds of error on damaged headers
        raise UnreadableProbesError(f"{where} is not a NumPy array: its header is damaged") from e
    if dtype.hasobject:
        raise UnsafeFileError(f"{where} holds pickled Python objects, which are unsafe; it was not read")
    start = stream.tell()
    if any(n < 0 for n in shape) or start + prod(shape) * dtype.itemsize != len(content):
        raise UnreadableProbesError(
            f"{where} has {len(content) - start} bytes, which do not match an array {list(shape)} of {dtype}. Is the "
            "file truncated?"
        )
    flat = np.frombuffer(content, dtype, prod(shape), start) if prod(shape) else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
