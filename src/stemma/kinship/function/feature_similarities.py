"""Similarities of two sets of features, with their gradients in the first of them.

Each similarity takes features `[..., n, d]` (n probes, d coordinates, any leading axes) and gives one number for each
leading index, larger for more similar, with its gradient in closed form. `score` turns the similarity, or its
first-order estimate, into what is compared between candidates: roots are taken last.

Source: Yu and Wang 2024 (Neural Lineage), arXiv:2406.11129, and the code of its authors for the norms; the gradients
of the two correlations are derived here.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from stemma.errors import MisuseError

EXPONENT = 10.0
"""Exponents of the log-sum-exp are cut off here."""


class AbstractSimilarity(abc.ABC):
    """A similarity of features that share probes, and coordinates where it is a norm.

    Attributes:
        scale_invariant: Whether it stays the same when one side is multiplied by a number.
    """

    scale_invariant: ClassVar[bool] = False

    @abc.abstractmethod
    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Similarity of features `[..., n, d]` of parent and child, one number per leading index."""

    @abc.abstractmethod
    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How the similarity changes with the parent's features.

        Args:
            x: Features of the parent `[..., n, d]`.
            y: Features of the child.

        Returns:
            The derivative with respect to every entry of `x`; zero where it does not exist.

        Raises:
            MisuseError: If this similarity has none.
        """

    def score(self, s: torch.Tensor) -> torch.Tensor:
        """The score that is compared between candidates, from similarities or estimates of them."""
        return s


@final
@dataclass(frozen=True)
class MeanPower(AbstractSimilarity):
    """Minus the mean of the differences' absolute values to some power: `l1`, `l2`, `lp`.

    Attributes:
        power: 1 or more. Above 1 the score is minus the root of what is left after cutting off at 0, so that
            estimates beyond perfect agreement tie.
    """

    power: float

    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.value`."""
        return -(x - y).abs().pow(self.power).mean((-2, -1))

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.gradient`."""
        e = x - y
        return -self.power * e.sign() * e.abs().pow(self.power - 1) / _entries(e)

    def score(self, s: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.score`."""
        return s if self.power == 1 else -(-s.clamp(max=0)).pow(1 / self.power)


@final
@dataclass(frozen=True)
class LogSumExp(AbstractSimilarity):
    """Minus a smooth largest difference of each probe, summed over probes and divided by the number of entries: `lse`.

    The gradient follows the table of the method: where an exponent is cut off, the softmax of the uncut ones is used.

    Attributes:
        temperature: Factor on the differences before they are exponentiated.
    """

    temperature: float

    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.value`."""
        scaled = (self.temperature * (x - y).abs()).clamp(max=EXPONENT)
        return -scaled.logsumexp(-1).sum(-1) / (self.temperature * _entries(scaled))

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.gradient`."""
        e = x - y
        return -e.sign() * (self.temperature * e.abs()).softmax(-1) / _entries(e)


@final
@dataclass(frozen=True)
class LargestDifference(AbstractSimilarity):
    """Minus each probe's largest difference, averaged: `linf`. It has no gradient; `lse` is its smooth stand-in."""

    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.value`."""
        return -(x - y).abs().amax(-1).mean(-1)

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Always raises `MisuseError`."""
        raise MisuseError("the similarity linf has no gradient for the Taylor form: use lse, or form='linear'")


@final
@dataclass(frozen=True)
class Cka(AbstractSimilarity):
    """Linear centred kernel alignment: `cka`. 0 where either side answers all probes alike.

    Memory: n * n numbers per leading index.
    """

    scale_invariant = True

    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.value`."""
        kx, ky = _gram(x), _gram(y)
        return _quotient(_inner(kx, ky), _inner(kx, kx).sqrt() * _inner(ky, ky).sqrt())

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.gradient`."""
        centred = x - x.mean(-2, keepdim=True)
        kx, ky = _gram(x), _gram(y)
        a, bb, dd = _inner(kx, ky), _inner(kx, kx), _inner(ky, ky)
        ratio, whole = _quotient(a, bb), (bb * dd).sqrt()
        slope = (ky - ratio[..., None, None] * kx) @ centred
        return 2 * _quotient(slope, whole[..., None, None])


@final
@dataclass(frozen=True)
class DistanceCorrelation(AbstractSimilarity):
    """Squared distance correlation, the plain estimate: `dc`. 0 where either side answers all probes alike.

    Two probes with the same features are at a distance that has no derivative; theirs counts as zero, which needs no
    small constant inside the root. Memory: n * n numbers per leading index.
    """

    scale_invariant = True

    def value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.value`."""
        a, b = _centred(_distances(x)), _centred(_distances(y))
        return _quotient(_inner(a, b), (_inner(a, a) * _inner(b, b)).sqrt())

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `AbstractSimilarity.gradient`."""
        distances = _distances(x)
        a, b = _centred(distances), _centred(_distances(y))
        ab, aa, bb = _inner(a, b), _inner(a, a), _inner(b, b)
        by_distance = _quotient(b - _quotient(ab, aa)[..., None, None] * a, (aa * bb).sqrt()[..., None, None])
        pull = _quotient(by_distance, distances)
        return 2 * (pull.sum(-1, keepdim=True) * x - pull @ x)


def similarity(name: str, power: float, temperature: float) -> AbstractSimilarity:
    """A similarity by its name: `l1`, `l2`, `lp`, `lse`, `linf`, `cka` or `dc`."""
    known = {
        "l1": MeanPower(1.0),
        "l2": MeanPower(2.0),
        "lp": MeanPower(power),
        "lse": LogSumExp(temperature),
        "linf": LargestDifference(),
        "cka": Cka(),
        "dc": DistanceCorrelation(),
    }
    return known[name]


def _entries(e: torch.Tensor) -> int:
    return e.shape[-2] * e.shape[-1]


def _gram(x: torch.Tensor) -> torch.Tensor:
    """Inner products of the centred features; exactly zero where all rows are equal to rounding."""
    centred = x - x.mean(-2, keepdim=True)
    size, spread = x.abs().amax((-2, -1), keepdim=True), centred.abs().amax((-2, -1), keepdim=True)
    centred = torch.where(spread > ROUNDING * size, centred, 0.0)
    return centred @ centred.mT


ROUNDING = 1e-12
"""Share of the largest feature below which a spread is nothing but rounding (features are float64 here)."""


def _distances(x: torch.Tensor) -> torch.Tensor:
    found = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(found > ROUNDING * x.abs().amax((-2, -1), keepdim=True), found, 0.0)


def _centred(d: torch.Tensor) -> torch.Tensor:
    rows, columns = d.mean(-1, keepdim=True), d.mean(-2, keepdim=True)
    return d - rows - columns + d.mean((-2, -1), keepdim=True)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((-2, -1))


def _quotient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The quotient, 0 where the divisor is 0."""
    there = b != 0
    return torch.where(there, a / torch.where(there, b, 1.0), 0.0)
