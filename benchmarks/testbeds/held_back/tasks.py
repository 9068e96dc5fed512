"""What networks of the held-back beds learn: garments that lie any way round, handwritten digits, and spoken digits."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

RATE, FRAME, HOP, BANDS, TIMES = 8000, 256, 100, 20, 16
PARTS = ("a", "b", "test")


@dataclass(frozen=True)
class Task:
    """A labelling of a data set.

    Attributes:
        data: `fashion`, `mnist` or `speech`.
        by: `class`; `turned class` (how a garment lies counts); `voice` (who says which digit counts); or `speaker`.
        width: Number of labels.
        seed: Which classes, or pairs of them, share a label; 0 leaves classes as they are.
    """

    data: str
    by: str = "class"
    width: int = 10
    seed: int = 0


def folder() -> Path:
    given = os.environ.get("STEMMA_DATA")
    if not given:
        raise SystemExit("the folder of the data sets is unknown: set STEMMA_DATA")
    return Path(given)


def examples(task: Task, part: str, most: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a part: sources learn from `a`, children from `b`."""
    inputs, classes, speakers = _stored(task.data, part)
    rng = np.random.default_rng([task.seed, PARTS.index(part), 3])
    rows = rng.permutation(len(inputs))[:most]
    inputs, classes, speakers = inputs[rows], classes[rows], speakers[rows]
    if task.by == "class":
        return inputs, labelling(task, 10)[classes]
    if task.by == "speaker":
        return inputs, speakers
    if task.by == "voice":
        return inputs, labelling(task, 60)[classes * 6 + speakers]
    turns = rng.integers(4, size=len(rows))
    turned = np.stack([np.rot90(x, k, (1, 2)) for x, k in zip(inputs, turns, strict=True)])
    return turned, labelling(task, 40)[classes * 4 + turns]


def labelling(task: Task, count: int) -> np.ndarray:
    """The label of each of so many classes."""
    even = np.arange(count) % task.width
    return np.random.default_rng([task.seed, 5]).permutation(even) if task.seed else even


def few(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Rows with so many examples of each label."""
    rng = np.random.default_rng([seed, 7])
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:each] for k in np.unique(labels)])


def imbalanced(labels: np.ndarray, factor: float, seed: int) -> np.ndarray:
    """Rows with a number of examples that falls from label to label, in all by this factor."""
    rng = np.random.default_rng([seed, 8])
    kinds = rng.permutation(np.unique(labels))
    most = min(int((labels == k).sum()) for k in kinds)
    shares = factor ** -(np.arange(len(kinds)) / (len(kinds) - 1))
    counts = np.maximum(2, (most * shares).round().astype(int))
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in zip(kinds, counts, strict=True)]
    )


@lru_cache(maxsize=12)
def _stored(data: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if data == "speech":
        return _spoken(part)
    held = np.load(
        folder() / f"{data}_mnist_{_file(part)}.npz" if data == "fashion" else folder() / f"mnist_{_file(part)}.npz"
    )
    images, labels = held["images"], held["labels"].astype(np.int64)
    if part != "test":
        half = slice(0, 24_000) if part == "a" else slice(24_000, 48_000)
        images, labels = images[half], labels[half]
    return images[:, None], labels, np.zeros(len(labels), np.int64)


def _file(part: str) -> str:
    return "test" if part == "test" else "train"


def _spoken(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spectra, digit, speaker, take, is_test = _spectra()
    rows = is_test if part == "test" else ~is_test & (take % 2 == (part == "b"))
    return spectra[rows], digit[rows], speaker[rows]


@lru_cache(maxsize=1)
def _spectra() -> tuple[np.ndarray, ...]:
    """Log-mel pictures `[n, 1, bands, times]` of every recording, stretched to one length."""
    packed = np.load(folder() / "spoken_digits_mulaw8k.npz")
    y = packed["mulaw"].astype(np.float32) / 255 * 2 - 1
    waves = np.split(np.sign(y) * (256.0 ** np.abs(y) - 1) / 255, np.cumsum(packed["lengths"])[:-1])
    spectra = np.stack([_log_mel(w) for w in waves])
    spectra = (spectra - spectra.mean((0, 2), keepdims=True)) / spectra.std((0, 2), keepdims=True)
    return (
        spectra[:, None].astype(np.float32), packed["digit"].astype(np.int64), packed["speaker"].astype(np.int64),
        packed["take"].astype(np.int64), packed["is_test"],
    )  # fmt: skip


@lru_cache(maxsize=1)
def _bank() -> np.ndarray:
    """Triangles `[bands, bins]` that are evenly spaced in mel."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / RATE * FRAME
    bins = np.arange(FRAME // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


def _log_mel(wave: np.ndarray) -> np.ndarray:
    wave = np.pad(wave, (0, max(0, FRAME + (TIMES - 1) * HOP - len(wave))))
    starts = np.arange(0, len(wave) - FRAME + 1, HOP)
    frames = np.stack([wave[s : s + FRAME] for s in starts]) * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)) ** 2 @ _bank().T
    groups = np.array_split(np.log(power + 1e-4), TIMES)
    return np.stack([g.mean(0) for g in groups], 1)
