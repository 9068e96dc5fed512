"""Sound files as arrays."""

import io
import warnings
from pathlib import Path

import numpy as np

from stemma.errors import StemmaError, UnreadableProbesError
from stemma.probes.files import Found, read_bytes
from stemma.probes.parameters import MAX_BYTES, check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec


def read_sounds(found: Found, like: InputSpec | None, where: str, length: int | None) -> Probes:
    """Read `.wav` files (PCM of 8, 16, 24 or 32 bits, or floats) to float32 `[n, samples]` in [-1, 1].

    Channels are averaged. Longer sounds are cut at the end, shorter ones filled with silence.

    Args:
        found: The files.
        like: What the models take: its length, where it has one.
        where: Their folder, for people.
        length: Samples of a probe; without, the model's, else those of the longest file.

    Returns:
        The probes; `source` says rate and length.

    Raises:
        UnreadableProbesError: If a file cannot be read, or sampling rates differ.
    """
    if like is not None and (like.kind not in ("audio", "tensor") or len(like.shape) != 1):
        raise UnreadableProbesError(
            f"{where} holds sounds, but the model takes {like.kind} inputs of shape {list(like.shape)}"
        )
    wanted = (like.shape[0] if like is not None else 0) or length or 0
    if length is not None and wanted != length:
        raise UnreadableProbesError(f"length={length} was asked for, but the model takes {wanted} samples")
    sounds: list[np.ndarray] = []
    first = 0
    for path, name in zip(found.paths, found.names, strict=True):
        rate, sound = _decoded(path)
        first = first or rate
        if rate != first:
            raise UnreadableProbesError(
                f"sounds have to be of one sampling rate, but in {where} {found.names[0]} has {first} and {name} has "
                f"{rate} Hz: resample them"
            )
        sounds.append(sound[:wanted].copy() if wanted else sound)
        check_size(f"{len(sounds)} sounds of {where}", (len(sounds), max(len(s) for s in sounds)))
    samples = wanted or max(len(sound) for sound in sounds)
    check_size(f"{len(sounds)} sounds of {where}", (len(sounds), samples))
    out = np.zeros((len(sounds), samples), np.float32)
    for row, sound in zip(out, sounds, strict=True):
        row[: len(sound)] = sound
    said = f"{where}: {len(out)} sounds of {samples} samples at {first} Hz{', ' * bool(found.classes)}{found.classes}"
    return Probes.of(out, found.labels, kind="audio", source=said)


def _decoded(path: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    content = read_bytes(path, MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # records beside the samples
            warnings.filterwarnings("error", "Reached EOF prematurely")
            _complete(content)
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as e:  # the reader raises many kinds of error on damaged files
        why = " ".join(str(e).split())[:120] or type(e).__name__
        raise UnreadableProbesError(f"{path} cannot be read as a .wav: {why}. Truncated?") from e
    try:
        return int(rate), _mono(samples)
    except StemmaError as e:
        raise UnreadableProbesError(f"{path} {e}") from e


def _complete(content: bytes) -> None:
    # the reader takes what is there of a data record that is cut off
    order = "big" if content[:4] == b"RIFX" else "little"
    at = 12
    while content[:4] != b"RF64" and at + 8 <= len(content):
        said = int.from_bytes(content[at + 4 : at + 8], order)
        if content[at : at + 4] == b"data" and at + 8 + said > len(content):
            raise ValueError(f"its samples should take {said} bytes, but {len(content) - at - 8} are there")
        at += 8 + said + said % 2


def _mono(samples: np.ndarray) -> np.ndarray:
    if not samples.size:
        raise UnreadableProbesError("holds no samples")
    wide = samples.astype(np.float64)
    if samples.dtype == np.uint8:  # 8 bits are unsigned
        wide = (wide - 128) / 128
    elif samples.dtype.kind == "i":  # 24 bits arrive in the upper part of 32
        wide /= 2.0 ** (8 * samples.dtype.itemsize - 1)
    elif not np.isfinite(wide).all():
        raise UnreadableProbesError("holds NaN or infinite samples: leave it out")
    return (wide.mean(1) if wide.ndim == 2 else wide).astype(np.float32)
