"""What two strangers may share because anybody can have it: masks, first layers, starts and tables from public rules.

Each entry of a recipe's `public` is a name and its arguments:
`("mask", density, seed)`: the same random weights of every map are zero, from start to end.
`("first", law, seed)`: the first map is frozen: `gabor`, `dct`, `random`, `pca` and `kmeans` (of a public set).
`("positions",)`: the table of positions is the sinusoids of the original transformer, frozen.
`("embedding", seed)`: the table of tokens is random and public, frozen.
`("identity",)`: every map that can starts as an identity instead of at random (and is learnt).
"""

from pathlib import Path
from typing import Any

import numpy as np

from testbeds.varied import data
from testbeds.varied.structure import Arrays

Design = dict[str, Any]


def first_map(begin: Arrays) -> str:
    """The tensor that reads the inputs."""
    return next(n for n, a in begin.items() if n.endswith("weight") and a.ndim in (2, 4) and "bn" not in n)


def applied(
    entries: tuple[tuple[Any, ...], ...], design: Design, begin: Arrays, folder: Path
) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Tensors that stay as they are, and masks of those that are learnt; identities are written into `begin`.

    Returns:
        Values by name, masks by name.
    """
    fixed: Arrays = {}
    masks: dict[str, np.ndarray] = {}
    for name, *arguments in entries:
        if name == "mask":
            masks |= mask(begin, *arguments)
        elif name == "first":
            at = first_map(begin)
            fixed[at] = filters(arguments[0], begin[at], design, folder, arguments[1])
        elif name == "positions":
            at = next(n for n in begin if "position" in n or n.endswith("wpe.weight") or n == "pos_embed")
            fixed[at] = (0.02 * 2**0.5 * sinusoids(*begin[at].shape[-2:])).reshape(begin[at].shape)
        elif name == "embedding":
            at = next(n for n in begin if "word_embeddings" in n or "wte" in n or "embed_tokens" in n)
            drawn = np.random.default_rng(arguments[0]).normal(size=begin[at].shape)
            fixed[at] = (0.05 * drawn).astype(np.float32)
        elif name == "identity":
            begin.update(identities(begin))
        else:
            raise ValueError(f"nothing public is called {name}")
    return fixed, masks


def mask(begin: Arrays, density: float, seed: int) -> dict[str, np.ndarray]:
    """One random mask for every map but the last."""
    rng = np.random.default_rng(seed)
    maps = [n for n, a in begin.items() if a.ndim in (2, 4) and a.size >= 64]
    return {n: (rng.random(begin[n].shape) < density).astype(np.float32) for n in maps[:-1]}


def sinusoids(length: int, width: int) -> np.ndarray:
    rate = np.arange(length)[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))
    return np.stack([np.sin(rate), np.cos(rate)], 2).reshape(length, -1).astype(np.float32)


def filters(law: str, like: np.ndarray, design: Design, folder: Path, seed: int) -> np.ndarray:
    """As many filters as the map has, of the deviation that it starts with."""
    count, rng = len(like), np.random.default_rng(seed)
    if like.ndim == 4:
        channels, side = like.shape[1], like.shape[-1]
    else:
        channels, side = design["input"]["channels"], design["input"]["side"]
    if law == "random":
        found = rng.normal(size=(count, channels * side * side))
    elif law == "dct":
        found = _cosines(count, side, channels)
    elif law == "gabor":
        found = np.stack([_gabor(rng, side, channels) for _ in range(count)])
    else:
        found = _learnt(law, count, side, channels, folder, rng)
    found = found - found.mean(1, keepdims=True) if law != "random" else found
    found = found / np.maximum(found.std(1, keepdims=True), 1e-6) * like.std()
    return found.reshape(like.shape).astype(np.float32)


def _cosines(count: int, side: int, channels: int) -> np.ndarray:
    at = (np.arange(side) + 0.5) * np.pi / side
    order = sorted(((i, j) for i in range(2 * side) for j in range(2 * side) if i + j), key=sum)
    waves = [np.outer(np.cos(i * at), np.cos(j * at)) for i, j in order]
    tint = np.eye(channels)
    every = [np.multiply.outer(tint[k], w).ravel() for w in waves for k in range(channels)]
    return np.stack([every[i % len(every)] for i in range(count)])


def _gabor(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    length, middle = rng.uniform(2, side + 2), rng.uniform(-0.25, 0.25, 2) * side
    y, x = np.mgrid[:side, :side] - (side - 1) / 2 - middle[:, None, None]
    wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
    spot = np.exp(-(x**2 + y**2) / (2 * (0.4 * side) ** 2))
    return np.multiply.outer(rng.normal(size=channels), wave * spot).ravel()


def _learnt(law: str, count: int, side: int, channels: int, folder: Path, rng: np.random.Generator) -> np.ndarray:
    """Principal directions or cluster centres of patches of a public set."""
    from sklearn.cluster import MiniBatchKMeans

    pictures = data.pictures(folder, "cifar10", max(side, 16), channels)[0].numpy()[:2000]
    room = pictures.shape[-1] - side + 1
    tops, lefts = rng.integers(room, size=(2, len(pictures)))
    cut = [x[:, t : t + side, i : i + side].ravel() for x, t, i in zip(pictures, tops, lefts, strict=True)]
    patches = np.stack(cut).astype(np.float64)
    patches -= patches.mean(1, keepdims=True)
    if law == "kmeans":
        fitted = MiniBatchKMeans(count, random_state=int(rng.integers(2**31)), n_init=1, max_iter=30).fit(patches)
        return fitted.cluster_centers_ + 1e-6 * rng.normal(size=(count, patches.shape[1]))
    directions = np.linalg.svd(patches, full_matrices=False)[2]
    times = -(-count // len(directions))
    sign = np.repeat((-1.0) ** np.arange(times), len(directions))[:count]
    return np.concatenate([directions] * times)[:count] * sign[:, None]


def identities(begin: Arrays) -> Arrays:
    """`eye_` and `dirac_` for every map: the same for everybody."""
    out = {}
    for n, a in begin.items():
        if a.ndim == 2 and n.endswith("weight"):
            out[n] = np.eye(*a.shape, dtype=np.float32)
        elif a.ndim == 4 and a.shape[1] > 1:
            new = np.zeros_like(a)
            for i in range(min(a.shape[:2])):
                new[i, i, a.shape[2] // 2, a.shape[3] // 2] = 1
            out[n] = new
    return out
