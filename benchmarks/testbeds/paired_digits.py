"""Paired digits: two noisy views of the 8 x 8 digits that compete, or not; images and sounds; and three modalities."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from stemma.multimodal.training_loop import Examples

RATE, FRAME, HOP, BANDS, FRAMES = 8000, 256, 256, 32, 32
"""Of the spectrograms: samples a second, samples per frame and between frames, mel bands, frames."""

SUMS = (3.67, 3.95)
"""Mean and standard deviation of the sums of rows and columns of MNIST, pixels from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Task:
    """Paired examples in four parts: to learn from, to choose on, to fit readouts on, to score."""

    train: Examples
    valid: Examples
    dep: Examples
    test: Examples

    def to(self, device: str) -> "Task":
        """On another device."""
        parts = (self.train, self.valid, self.dep, self.test)
        return Task(*(Examples({m: x.to(device) for m, x in p.inputs.items()}, p.labels.to(device)) for p in parts))


def views(seed: int, noise: tuple[float, float], shrink: float, learnt: int) -> Task:
    """Two noisy views of scikit-learn's digits, `a` and `v`, standardised; `v` is `shrink` times smaller.

    The part that strategies look at while training is the one that readouts are fitted on: 300 of 1,797.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.data / 16
    x = (x - x.mean(0)) / x.std()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(x))
    x, y = x[order], digits.target[order]
    a, v = x + noise[0] * draw.normal(size=x.shape), (x + noise[1] * draw.normal(size=x.shape)) / shrink
    whole = Examples({"a": torch.tensor(a).float(), "v": torch.tensor(v).float()}, torch.tensor(y))
    dep = whole.take(slice(800, 1100))
    return Task(whole.take(slice(0, learnt)), dep, dep, whole.take(slice(1100, None)))


def mel(waves: list[np.ndarray]) -> np.ndarray:
    """Log-mel spectrograms `[n, bands, frames]` of the first second, silence behind shorter sounds."""
    window = np.hanning(FRAME)
    starts = np.arange(FRAMES) * HOP
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FRAME, 1 / RATE)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rising, falling))
    out = np.zeros((len(waves), BANDS, FRAMES), np.float32)
    for i, wave in enumerate(waves):
        whole = np.zeros(starts[-1] + FRAME, np.float32)
        whole[: min(len(wave), len(whole))] = wave[: len(whole)]
        frames = whole[starts[:, None] + np.arange(FRAME)] * window
        out[i] = np.log(bank @ (np.abs(np.fft.rfft(frames, axis=1)) ** 2).T + 1e-4)
    return out


def sounds(folder: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Spoken digits: waveforms, digit, and which belong to the official test part."""
    packed = np.load(folder / "spoken_digits_mulaw8k.npz")
    y = packed["mulaw"].astype(np.float64) / 255 * 2 - 1
    wave = (np.sign(y) * (256.0 ** np.abs(y) - 1) / 255).astype(np.float32)
    return (
        np.split(wave, np.cumsum(packed["lengths"])[:-1]),
        packed["digit"].astype(int),
        packed["is_test"].astype(bool),
    )


def pictures(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST: images in [0, 1] as vectors, and digits."""
    packed = np.load(folder / f"mnist_{part}.npz")
    return packed["images"].reshape(-1, 784).astype(np.float32) / 255, packed["labels"].astype(int)


@cache
def components(folder: Path, energy: float, fitted: int = 12000) -> tuple[np.ndarray, np.ndarray]:
    """Mean of MNIST, and its first principal components, as many as hold at most that share of the variance."""
    images = pictures(folder, "train")[0][:fitted].astype(np.float64)
    values, axes = np.linalg.eigh(np.cov(images.T))
    values, axes = values[::-1], axes[:, ::-1]
    kept = max(1, int((np.cumsum(values) / values.sum() <= energy).sum()))
    return images.mean(0).astype(np.float32), axes[:, :kept].astype(np.float32)


@dataclass(frozen=True)
class AudioVisual:
    """How images and sounds are paired.

    Attributes:
        noise: Standard deviation of white noise added to the waveforms, relative to that of each waveform; 0 for none.
        learnt: Pairs to learn from; of the sounds that are there for it, each is used about once.
        energy: Share of the images' variance that is kept.
        raw: Whether inputs keep the range of the public set, pixels and spectrograms from 0 to 1, instead of being
            standardised.
        third: Whether the sums of rows and columns of other images of the same digit are a third modality.
    """

    noise: float = 0.0
    learnt: int = 2500
    energy: float = 0.25
    raw: bool = False
    third: bool = False

    def task(self, folder: Path, seed: int) -> Task:
        """The pairs of one seed: official test images and sounds; all else from the training parts."""
        draw = np.random.default_rng(seed)
        waves, digit, held = sounds(folder)
        if self.noise:
            waves = [w + self.noise * w.std() * draw.normal(size=len(w)).astype(np.float32) for w in waves]
        spectra = mel(waves)
        mean, std = spectra[~held].mean((0, 2), keepdims=True), spectra[~held].std()
        if self.raw:
            low, high = spectra[~held].min(), spectra[~held].max()
            spectra = (spectra - low) / (high - low)
        else:
            spectra = (spectra - mean) / std
        (clear, y), (clear_test, y_test) = pictures(folder, "train"), pictures(folder, "test")
        middle, axes = components(folder, self.energy)
        scale = 1.0 if self.raw else float(np.std((clear[:5000] - middle) @ axes @ axes.T))
        rows = draw.permutation(np.flatnonzero(~held))
        speech = {"train": rows[:2200], "valid": rows[2200:2450], "dep": rows[2450:], "test": np.flatnonzero(held)}
        order = draw.permutation(len(y))
        sight = {
            "train": order[:50000],
            "valid": order[50000:55000],
            "dep": order[55000:],
            "test": np.arange(len(y_test)),
        }
        many = {"train": self.learnt, "valid": 1000, "dep": 1000, "test": 3000}
        out = []
        for part, count in many.items():
            clean, labels = (clear_test, y_test) if part == "test" else (clear, y)
            chosen = np.resize(draw.permutation(speech[part]), count)
            kinds = digit[chosen]
            seen = (clean[_matching(draw, sight[part], labels, kinds)] - middle) @ axes @ axes.T / scale
            inputs = {
                "image": torch.from_numpy(seen + middle * self.raw).reshape(-1, 1, 28, 28),
                "audio": torch.from_numpy(spectra[chosen])[:, None],
            }
            if self.third:
                other = clean[_matching(draw, sight[part], labels, kinds)].reshape(-1, 28, 28)
                sums = np.concatenate([other.sum(1), other.sum(2)], 1)
                inputs["sums"] = torch.from_numpy((sums - SUMS[0]) / SUMS[1]).float()
            out.append(Examples(inputs, torch.from_numpy(kinds)))
        return Task(*out)


def _matching(draw: np.random.Generator, rows: np.ndarray, labels: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """One row with each label asked for, none twice as long as there are enough."""
    out = np.zeros(len(kinds), int)
    for digit in np.unique(kinds):
        there = draw.permutation(rows[labels[rows] == digit])
        out[kinds == digit] = np.resize(there, int((kinds == digit).sum()))
    return out
