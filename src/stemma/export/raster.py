"""Heat maps and images as PNG inside a page."""

import base64
import struct
import zlib

import numpy as np

_ANCHORS = (
    (0, 0, 4), (20, 14, 54), (59, 15, 112), (100, 26, 128), (140, 41, 129), (183, 55, 121),
    (222, 73, 104), (247, 112, 92), (254, 159, 109), (254, 207, 146), (252, 253, 191),
)  # fmt: skip
"""Eleven equally spaced colours of the perceptually uniform map "magma" (S. van der Walt, N. Smith, 2015; CC0)."""

CELLS = 56
"""Cells per side of a heat map: a larger one is summed over squares of pixels, so that it can be read."""


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Colours `uint8 […, 3]` of non-negative numbers: dark for 0, light for `top` and more."""
    share = _share(values, top)
    ends = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(share, ends, [anchor[c] for anchor in _ANCHORS]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(values: np.ndarray, top: float, picture: np.ndarray) -> np.ndarray:
    """A heat map over a dimmed grey picture `uint8 [height, width, 3]`."""
    row_scale, column_scale = (-(-p // v) for p, v in zip(picture.shape[:2], values.shape, strict=True))
    large = np.repeat(np.repeat(values, row_scale, 0), column_scale, 1)[: picture.shape[0], : picture.shape[1]]
    grey = (picture @ np.array([0.2126, 0.7152, 0.0722]))[..., None] * BACKGROUND_LIGHTNESS
    share = _share(large, top)[..., None]
    cover = np.sqrt(share) * 0.9
    return (grey * (1 - cover) + heat(large, top) * cover).round().astype(np.uint8)


BACKGROUND_LIGHTNESS = 0.42
"""Lightness of the image under the heat map."""


def pool(values: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Sums over squares of pixels, with at most `cells` cells per side."""
    step = -(-max(values.shape) // cells)
    if step <= 1:
        return values
    padded = np.pad(values, [(0, -n % step) for n in values.shape])
    return padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).sum((1, 3))


def picture(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """An input `[channels, height, width]` as an image `uint8 [height, width, 3]`; `low` is black, `high` is white."""
    share = np.clip((image.astype(np.float64) - low) / (high - low or 1), 0, 1)
    channels = share if share.shape[0] in (1, 3) else share.mean(0, keepdims=True)
    return (np.repeat(channels, 4 - len(channels), 0)[:3].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels `uint8 [height, width, 3]`; equal pixels give equal bytes."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 3)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def inline(pixels: np.ndarray) -> str:
    """An image as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _share(values: np.ndarray, top: float) -> np.ndarray:
    return np.clip(values / top, 0, 1) if top > 0 else np.zeros(values.shape)
