"""Independent networks, trained once for all tests that need some."""

from stemma.checkpoints.model import Model
from stemma.zoo.independent_networks import GROUP, independents


def perceptrons(count: int) -> list[Model]:
    """The first of two groups of networks that differ by their seed only, `mlp-31-0` and so on."""
    return independents("mlp", 2 * GROUP, seed=31)[:count]
