"""Data sets in a folder of the user's: images averaged to the zoo's 8 by 8 pixels, and books."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from stemma.errors import MisuseError

IMAGES = ("mnist8", "fashion8")
"""MNIST and Fashion-MNIST, averaged to 8 by 8 pixels."""

TEXTS = ("shakespeare", "bronte", "darwin", "dubois")
"""Authors of `text_authors.npz`."""

_FILES = {"mnist8": "mnist_{}.npz", "fashion8": "fashion_mnist_{}.npz"}
_LEARNT, _TESTED = 3000, 2000


def folder(path: Path | str | None = None) -> Path:
    """The folder of the data sets: the one given, else the one that `STEMMA_DATA` names."""
    chosen = path or os.environ.get("STEMMA_DATA")
    if not chosen:
        raise MisuseError(
            "the folder of the data sets is unknown. Give one (--data DIR, or the environment variable STEMMA_DATA) "
            f"with {', '.join(f.format('train') for f in _FILES.values())} or text_authors.npz; or use the data "
            "that is always available: digits, text."
        )
    return Path(chosen)


def _open(where: str, name: str) -> np.lib.npyio.NpzFile:
    path = Path(where) / name
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read: {error}. Put the data set there, or use digits or text.") from error


@cache
def images(data: str, part: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, 1, 8, 8]` in [0, 1] and classes `[n]`: parts `a` and `b` of 3000, disjoint, or `test` of 2000."""
    packed = _open(where, _FILES[data].format("test" if part == "test" else "train"))
    labels = packed["labels"].astype(np.int64)
    order = np.random.default_rng(20240101).permutation(len(labels))
    rows = {"test": order[:_TESTED], "a": order[:_LEARNT], "b": order[_LEARNT : 2 * _LEARNT]}[part]
    pixels = packed["images"][rows]
    around = (-pixels.shape[1] % 8) // 2
    padded = np.pad(pixels.astype(np.float32) / 255, ((0, 0), (around, around), (around, around)))
    side = padded.shape[1] // 8
    small = padded.reshape(len(rows), 8, side, 8, side).mean((2, 4), dtype=np.float32)
    return small[:, None], labels[rows]


@cache
def author(name: str, part: str, where: str) -> bytes:
    """One author's text (one of `TEXTS`), as bytes: the first 45 % are part `a`, the next `b`, the rest `test`."""
    raw = _open(where, "text_authors.npz")[name].astype(np.uint8)
    low, high = {"a": (0, 0.45), "b": (0.45, 0.9), "test": (0.9, 1)}[part]
    return raw[int(low * len(raw)) : int(high * len(raw))].tobytes()
