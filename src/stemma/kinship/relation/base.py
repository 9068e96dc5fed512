"""The abstract operation: something that may have been done to a model, fitted to a pair of models."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair

BITS_PER_NUMBER = 32
"""Bits per fitted parameter in a description."""


@dataclass(frozen=True)
class FittedOperation:
    """One operation fitted to a pair: the step with its parameters, and the pair with what is left to explain."""

    step: Step
    pair: Pair


class AbstractOperation(abc.ABC):
    """An operation that may have been applied to the parent; all its parameters are fitted from the pair."""

    name: ClassVar[str]

    @abc.abstractmethod
    def fit(self, pair: Pair) -> FittedOperation | None:
        """Fit the operation to the unexplained differences of a pair.

        Args:
            pair: Parent and child; earlier operations may have explained some of it.

        Returns:
            The fit with what it leaves unexplained; None where there is no sign of the operation.
        """


def entry_bits(layer: Layer, power: float) -> float:
    """Bits that describe every entry of a layer, for numbers of this total squared size: log2(power / rounding) / 2."""
    if layer.measured is None:
        return 0.5 * layer.size * math.log2(1 + layer.floor**-2)
    extra = max(0.0, layer.rounding_noise - layer.tolerance**2 * layer.sums.norm_a)  # no more than the grid can hold
    unit = max(layer.floor**2 * layer.sums.norm_a, extra, 1e-60)
    return 0.5 * layer.sums.read * math.log2(1 + power / unit)


def choice_bits(n: int, k: int) -> float:
    """Bits that describe which k of n were chosen: log2 of the binomial coefficient."""
    nats = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return max(0.0, nats / math.log(2))
