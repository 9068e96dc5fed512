"""Read sound files as arrays."""

import io
import warnings
from pathlib import Path

import numpy as np

from stemma.errors import StemmaError, UnreadableProbesError
from stemma.probes.files import ProbeFiles, read_bytes
from stemma.probes.parameters import MAX_BYTES, check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec


def read_sounds(files: ProbeFiles, input_spec: InputSpec | None, where: str, length: int | None) -> Probes:
    """Read `.wav` files (8, 16, 24 or 32-bit PCM, or floats) to float32 `[n, samples]` in [-1, 1].

    Channels are averaged. Longer sounds are truncated, shorter ones padded with silence. Without `length`, the length
    is the model's, otherwise that of the longest file.

    Raises:
        UnreadableProbesError: If a file cannot be read, or sampling rates differ.

    Returns:
        The probes; `source` states rate and length.

    """
    if input_spec is not None and (input_spec.kind not in ("audio", "tensor") or len(input_spec.shape) != 1):
        raise UnreadableProbesError(
            f"{where} contains sounds, but the model takes {input_spec.kind} inputs of shape {list(input_spec.shape)}"
        )
    target = (input_spec.shape[0] if input_spec is not None else 0) or length or 0
    if length is not None and target != length:
        raise UnreadableProbesError(f"length={length} does not match the model, which takes {target} samples")
    sounds: list[np.ndarray] = []
    first = 0
    for path, name in zip(files.paths, files.names, strict=True):
        rate, sound = _decode(path)
        first = first or rate
        if rate != first:
            raise UnreadableProbesError(
                f"sounds must have one sampling rate, but in {where} {files.names[0]} has {first} Hz and {name} has "
                f"{rate} Hz. Resample them"
            )
        sounds.append(sound[:target].copy() if target else sound)
        check_size(f"{len(sounds)} sounds of {where}", (len(sounds), max(len(s) for s in sounds)))
    samples = target or max(len(sound) for sound in sounds)
    check_size(f"{len(sounds)} sounds of {where}", (len(sounds), samples))
    out = np.zeros((len(sounds), samples), np.float32)
    for row, sound in zip(out, sounds, strict=True):
        row[: len(sound)] = sound
    description = (
        f"{where}: {len(out)} sounds of {samples} samples at {first} Hz{', ' * bool(files.classes)}{files.classes}"
    )
    return Probes.of(out, files.labels, kind="audio", source=description)


def _decode(path: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    content = read_bytes(path, MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about records other than samples
            warnings.filterwarnings("error", "Reached EOF prematurely")
            _check_complete(content)
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as e:  # the reader raises many kinds of error on damaged files
        why = " ".join(str(e).split())[:120] or type(e).__name__
        raise UnreadableProbesError(f"{path} cannot be read as .wav: {why}. Is the file truncated?") from e
    try:
        return int(rate), _mono(samples)
    except StemmaError as e:
        raise UnreadableProbesError(f"{path} {e}") from e


def _check_complete(content: bytes) -> None:
    # the reader accepts a truncated data record
    order = "big" if content[:4] == b"RIFX" else "little"
    at = 12
    while content[:4] != b"RF64" and at + 8 <= len(content):
        stated = int.from_bytes(content[at + 4 : at + 8], order)
        if content[at : at + 4] == b"data" and at + 8 + stated > len(content):
            raise ValueError(f"its samples should have {stated} bytes, but there are {len(content) - at - 8}")
        at += 8 + stated + stated % 2


def _mono(samples: np.ndarray) -> np.ndarray:
    if not samples.size:
        raise UnreadableProbesError("contains no samples")
    floats = samples.astype(np.float64)
    if samples.dtype == np.uint8:  # 8 bits are unsigned
        floats = (floats - 128) / 128
    elif samples.dtype.kind == "i":  # 24 bits arrive in the upper part of 32
        floats /= 2.0 ** (8 * samples.dtype.itemsize - 1)
    elif not np.isfinite(floats).all():
        raise UnreadableProbesError("contains NaN or infinite samples. Remove it")
    return (floats.mean(1) if floats.ndim == 2 else floats).astype(np.float32)
