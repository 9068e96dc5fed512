"""Rules by which many networks of one stack learn at once, each at its own rate.

torch's optimisers have one rate for a whole tensor; here every network of a stack has its own, and its own weight
decay, so that networks tuned differently still train together. A test compares each rule with torch's.

Source: Kingma & Ba 2015, arXiv:1412.6980 (`adam`); Loshchilov & Hutter 2019, arXiv:1711.05101 (`adamw`);
Sutskever et al. 2013 (`momentum`, 0.9, as torch's SGD has it).
"""

from collections.abc import Sequence

import numpy as np
import torch

from stemma.errors import UnknownNameError

OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")
"""What a recipe's `optimizer` may be."""

RATE_FACTOR = {"adam": 1.0, "adamw": 1.0, "sgd": 60.0, "momentum": 8.0}
"""Usual rate of an optimiser over Adam's: a recipe without a rate uses its kind's times this."""

_FIRST, _SECOND, _EPSILON, _MOMENTUM = 0.9, 0.999, 1e-8, 0.9


def check_optimizer(name: str) -> str:
    """The name of an optimiser, checked."""
    if name not in OPTIMIZERS:
        raise UnknownNameError(f"no optimizer of the zoo is called {name!r}. There are: {', '.join(OPTIMIZERS)}.")
    return name


class Optimizer:
    """The state of one rule for a stack of m networks."""

    def __init__(self, name: str, leaves: Sequence[torch.Tensor], rates: np.ndarray, decay: np.ndarray):
        """Start with zero moments, for tensors `[m, …]` and a rate and weight decay per network, `[m]`."""
        self._name, self._leaves, self._step = check_optimizer(name), list(leaves), 0
        self._rates, self._decay = (torch.from_numpy(np.asarray(v, np.float32)) for v in (rates, decay))
        self._decays = bool(self._decay.any())
        adaptive = name in ("adam", "adamw")
        self._first = [torch.zeros_like(p) for p in leaves] if name != "sgd" else []
        self._second = [torch.zeros_like(p) for p in leaves] if adaptive else []

    def step(self, factor: float) -> None:
        """Update every network by its gradient, its rate multiplied by `factor`."""
        self._step += 1
        with torch.no_grad():
            for i, leaf in enumerate(self._leaves):
                if leaf.grad is not None:
                    self._move(i, leaf, leaf.grad, factor)
                    leaf.grad = None

    def _move(self, i: int, leaf: torch.Tensor, grad: torch.Tensor, factor: float) -> None:
        def each(values: torch.Tensor) -> torch.Tensor:
            return values.view(-1, *[1] * (leaf.ndim - 1))

        rate = self._rates * factor
        if self._decays and self._name == "adamw":
            leaf.mul_(each(1 - rate * self._decay))
        elif self._decays:
            grad = grad + each(self._decay) * leaf
        if self._name == "sgd":
            leaf.sub_(each(rate) * grad)
        elif self._name == "momentum":
            leaf.sub_(each(rate) * self._first[i].mul_(_MOMENTUM).add_(grad))
        else:
            first = self._first[i].lerp_(grad, 1 - _FIRST)
            second = self._second[i].mul_(_SECOND).addcmul_(grad, grad, value=1 - _SECOND)
            below = second.sqrt().div_((1 - _SECOND**self._step) ** 0.5).add_(_EPSILON)
            leaf.sub_(each(rate / (1 - _FIRST**self._step)) * first.div(below))
