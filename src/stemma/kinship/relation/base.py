"""What every operation is: something that may have been done to a model, recognised by what it leaves."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair

NUMBER = 32
"""Bits that a fitted parameter takes to tell."""


@dataclass(frozen=True)
class Explained:
    """One operation fitted to a pair.

    Attributes:
        step: The operation and its parameters.
        pair: The pair with what the operation leaves.
    """

    step: Step
    pair: Pair


class AbstractOperation(abc.ABC):
    """Something that may have been done to the parent, with all its parameters fitted from the pair."""

    name: ClassVar[str]

    @abc.abstractmethod
    def explain(self, pair: Pair) -> Explained | None:
        """Fit the operation to what is still open in a pair.

        Args:
            pair: Parent and child; earlier operations may have explained some of it.

        Returns:
            The fit with what it leaves; None where there is no sign of the operation.
        """


def entry_bits(layer: Layer, power: float) -> float:
    """Bits that it takes to tell every entry of a layer by itself.

    Args:
        layer: The layer.
        power: Sum of squares of the numbers that are told.

    Returns:
        Half the logarithm of the ratio of power to rounding, per entry.
    """
    if layer.measured is None:
        return 0.5 * layer.size * math.log2(1 + layer.floor**-2)
    extra = max(
        0.0, layer.noise - layer.tolerance**2 * layer.sums.norm_a
    )  # on a grid, no more need be told than it holds
    unit = max(layer.floor**2 * layer.sums.norm_a, extra, 1e-60)
    return 0.5 * layer.sums.read * math.log2(1 + power / unit)


def choice_bits(n: int, k: int) -> float:
    """Bits that it takes to say which `k` of `n` were chosen.

    Args:
        n: How many there are.
        k: How many were chosen.

    Returns:
        The logarithm of the binomial coefficient.
    """
    nats = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return max(0.0, nats / math.log(2))
