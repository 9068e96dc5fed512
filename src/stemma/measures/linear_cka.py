"""Linear centred kernel alignment (CKA)."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.samples import center, refuse_repeats, sample_matrices

TINY = 1e-14
"""HSIC estimates (of features of norm one) below this are rounding errors."""


@final
@dataclass(frozen=True)
class LinearCka(AbstractMeasure):
    """One minus the linear centred kernel alignment of two sets of features: the cosine between their Gram matrices.

    The plain form (in [0, 1]) is near 0 for any two networks with more features than probes. The debiased form omits
    each sample's product with itself (the unbiased estimate of HSIC): for independent features it is 1 on average,
    whatever their width, so single values may exceed 1 (never 2). 1 - cosine is not a metric.
    Cost: min(p * q, n * n) numbers of memory for widths p, q and n samples; nothing else is quadratic.

    Attributes:
        debiased: Omit each sample's product with itself; needs four samples.

    Source: Kornblith et al. 2019, arXiv:1905.00414; the unbiased estimate by Song et al. 2012, JMLR 13, eq. 5, first
    used for CKA by Nguyen et al. 2021, arXiv:2010.15327. Its range [-1, 1] is proved by Szekely and Rizzo 2014, Ann.
    Statist. 42.
    """

    debiased: bool = True

    name = "linear-cka"
    accepts = frozenset({"features", "outputs"})
    probewise = False
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.PERMUTATION, Law.ORTHOGONAL, Law.SCALING,
                      Law.TRANSLATION})  # fmt: skip
    top = 2.0

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[1]`."""
        x, y = sample_matrices(a, b, self.name, 4 if self.debiased else 2)
        if self.debiased:
            refuse_repeats(a, b, self.name)
        x, y = (center(v) / np.linalg.norm(center(v)) for v in (x, y))
        hsic = unbiased_hsic if self.debiased else gram_product
        own, hsic_y = hsic(x, x), hsic(y, y)
        if min(own, hsic_y) <= TINY:
            raise MisuseError(f"{self.name} is undefined: {len(x)} samples are too few for the debiased estimate")
        cosine = hsic(x, y) / np.sqrt(own * hsic_y)
        return np.array([1 - np.clip(cosine, -1, 1)])


def gram_product(x: np.ndarray, y: np.ndarray) -> float:
    """`sum(x @ x.T * (y @ y.T))` for `[n, p]` and `[n, q]`, by the smaller of the two forms."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return float(np.square(x.T @ y).sum())
    return float(np.vdot(x @ x.T, y @ y.T))


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of HSIC for linear kernels, up to a factor n * (n - 3) that cancels in cosines."""
    n = len(x)
    own = [np.square(v).sum(1) for v in (x, y)]
    sums = [v @ v.sum(0) - d for v, d in zip((x, y), own, strict=True)]
    products = gram_product(x, y) - own[0] @ own[1]
    whole = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return float(products + whole - 2 / (n - 2) * (sums[0] @ sums[1]))
