"""Sketches that preserve inner products: long vectors hashed to a few numbers, the same on every machine."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def count_sketch(x: "torch.Tensor", size: int, seed: int, stream: int = 0) -> "torch.Tensor":
    """Every coordinate added to one of `size` sums, with a random sign; short vectors are unchanged.

    The expected product of two sketches is the product of the vectors; its standard deviation is at most
    `sqrt(2 / size)` of the product of their lengths.

    Args:
        x: `[n, d]`.
        size: Numbers kept.
        seed: Seed of the hash.
        stream: Distinguishes hashes of one seed.

    Returns:
        `[n, min(d, size)]`, float64.

    Source: Charikar et al. 2002; Clarkson and Woodruff 2013, arXiv:1207.6365.
    """
    return x.double() if x.shape[1] <= size else _hashed(x, size, seed, stream)


def product_sketch(x: "torch.Tensor", y: "torch.Tensor", size: int, seed: int) -> "torch.Tensor":
    """The outer product of two vectors per row, sketched without being computed; short ones are computed exactly.

    Args:
        x: `[n, p]`.
        y: `[n, q]`.
        size: Numbers kept.
        seed: Seed of the hashes.

    Returns:
        `[n, min(p * q, size)]`, float64, whose inner products estimate `(x @ x.T) * (y @ y.T)`.

    Source: Pham and Pagh 2013, KDD (tensor sketch).
    """
    import torch

    if x.shape[1] * y.shape[1] <= size:
        return (x.double()[:, :, None] * y.double()[:, None, :]).flatten(1)
    spectra = [torch.fft.rfft(_hashed(v, size, seed, stream)) for stream, v in ((1, x), (2, y))]
    return torch.fft.irfft(spectra[0] * spectra[1], n=size)


def _hashed(x: "torch.Tensor", size: int, seed: int, stream: int) -> "torch.Tensor":
    import torch

    generator = np.random.default_rng([seed, stream, x.shape[1], size])
    bucket = torch.from_numpy(generator.integers(0, size, x.shape[1])).to(x.device)
    sign = torch.from_numpy(generator.integers(0, 2, x.shape[1]) * 2.0 - 1).to(x.device)
    return x.new_zeros(len(x), size, dtype=torch.float64).index_add_(1, bucket, x.double() * sign)
