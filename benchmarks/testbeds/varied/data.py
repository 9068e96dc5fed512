"""Pictures and texts for the networks of the test bed, in the sizes that they ask for; read from the data folder.

Pictures: MNIST, Fashion-MNIST, CIFAR-10, spoken digits as spectrograms. Texts: four authors, as bytes or as words.
"""

import io
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

AUTHORS = ("shakespeare", "bronte", "darwin", "dubois")
NEEDED = ("mnist_train.npz", "fashion_mnist_train.npz", "cifar10_jpeg_train.npz", "text_authors.npz",
          "spoken_digits_mulaw8k.npz")  # fmt: skip
COUNT = 6000
"""Pictures of each set that are ever used; the last 1,000 are for measuring."""


def missing(folder: Path | None) -> str | None:
    """Why the data cannot be used, or None."""
    if folder is None:
        return "no data: give --data DIR or set STEMMA_DATA"
    gone = [n for n in NEEDED if not (folder / n).exists()]
    return f"no {', '.join(gone)} in the data folder" if gone else None


@lru_cache(maxsize=8)
def _raw(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures `[n, channels, side, side]` in [0, 1], and labels."""
    if name == "spoken":
        return _spoken(folder / "spoken_digits_mulaw8k.npz")
    if name == "cifar10":
        x, y = _jpeg(folder / "cifar10_jpeg_train.npz")
    else:
        with np.load(folder / f"{name}_train.npz") as found:
            order = np.random.default_rng(0).permutation(len(found["labels"]))[:COUNT]
            x, y = found["images"][order][:, None], found["labels"][order]
    return torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))


def _jpeg(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(path) as packed:
        header, bodies, labels = packed["jpeg_header"].tobytes(), packed["jpeg_bodies"].tobytes(), packed["labels"]
        ends = np.cumsum(packed["body_lengths"].astype(np.int64))
    starts = np.concatenate([[0], ends[:-1]])
    order = np.random.default_rng(0).permutation(len(labels))[:COUNT]
    found = [np.array(Image.open(io.BytesIO(header + bodies[starts[i] : ends[i]])), np.uint8) for i in order]
    return np.stack(found).transpose(0, 3, 1, 2), labels[order]


def _spoken(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithmic spectrograms of 32 by 32."""
    with np.load(path) as packed:
        y = packed["mulaw"].astype(np.float64) / 255 * 2 - 1
        wave = (np.sign(y) * (256.0 ** np.abs(y) - 1) / 255).astype(np.float32)
        waves, digit = np.split(wave, np.cumsum(packed["lengths"])[:-1]), packed["digit"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(digit))
    window, out = torch.hann_window(128), []
    for i in order:
        found = torch.stft(torch.from_numpy(waves[i]), 128, 64, window=window, return_complex=True).abs()[1:]
        small = F.interpolate(found.log1p()[None, None], (32, 32), mode="bilinear", antialias=True)[0]
        out.append(small / small.max().clamp_min(1e-6))
    return torch.stack(out), torch.from_numpy(digit[order])


@lru_cache(maxsize=24)
def pictures(folder: Path, name: str, side: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A set in the size asked for, mean 0 and deviation 1; a grey set gets colours where three channels are asked."""
    x, y = _raw(folder, name)
    if x.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    if channels == 1:
        x = x.mean(1, keepdim=True)
    elif x.shape[1] == 1:
        tint = torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(5))
        x = x * tint + (1 - x) * tint.roll(1, 0)
    return ((x - x.mean()) / x.std()).contiguous(), y


def split(folder: Path, name: str, side: int, channels: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Part `all`, `a` or `b` (halves that share nothing) of what is learnt from, or `test`."""
    x, y = pictures(folder, name, side, channels)
    kept = len(x) - len(x) // 6
    at = {"all": slice(0, kept), "a": slice(0, kept // 2), "b": slice(kept // 2, kept), "test": slice(kept, None)}
    return x[at[part]], y[at[part]]


@lru_cache(maxsize=8)
def tokens(folder: Path, author: str, vocabulary: int) -> torch.Tensor:
    """A text as numbers: bytes for a vocabulary of 256, else its commonest words and marks (0 is any other)."""
    with np.load(folder / "text_authors.npz") as found:
        text = found[author].tobytes()
        every = b" ".join(found[a].tobytes() for a in AUTHORS) if vocabulary != 256 else b""
    if vocabulary == 256:
        return torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    known = _words(every)
    values, counts = np.unique(known, return_counts=True)
    common = values[np.argsort(-counts, kind="stable")][: vocabulary - 1]
    number = {w: i + 1 for i, w in enumerate(common)}
    return torch.tensor([number.get(w, 0) for w in _words(text)])


def _words(text: bytes) -> np.ndarray:
    return np.array(re.findall(r"[a-z]+|[^a-z\s]", text.decode("utf-8", "replace").lower()))


def passages(folder: Path, author: str, vocabulary: int, part: str) -> torch.Tensor:
    """The part of a text that is learnt from (`all`, `a`, `b`) or kept for measuring (`test`)."""
    found = tokens(folder, author, vocabulary)
    kept = len(found) - len(found) // 10
    at = {"all": slice(0, kept), "a": slice(0, kept // 2), "b": slice(kept // 2, kept), "test": slice(kept, None)}
    return found[at[part]]
